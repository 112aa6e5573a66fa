"""Generated aerial scenes with exact truth: `render` for one picture, `write_town` for a georeferenced town."""

from negah.images.scenes.render import Panel, Scene, render

__all__ = ["Panel", "Scene", "render"]

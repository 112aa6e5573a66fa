"""Generated aerial scenes with exact truth: `render` for one picture, `write_town` for a georeferenced town."""

from negah.images.scenes.render import Panel, Scene, render
from negah.images.scenes.write import Truth, write_town

__all__ = ["Panel", "Scene", "Truth", "render", "write_town"]

"""`negah export` (placeholder: its author overwrites this file)."""

from dataclasses import dataclass

from negah.cli import show


@dataclass
class Export(show.Verb):
    """Placeholder."""

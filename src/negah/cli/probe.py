"""`negah probe` (placeholder: its author overwrites this file)."""

from dataclasses import dataclass

from negah.cli import show


@dataclass
class ProbeTrain(show.Verb):
    """Placeholder."""


@dataclass
class ProbeEval(show.Verb):
    """Placeholder."""

"""How long work tells those who wait for it how far it is.

    def draw(cells: Sequence[Cell], *, progress: Progress = silent) -> None:
        for done, cell in enumerate(cells, 1):
            ...
            progress("drawing", done, len(cells))

Every function that takes `progress` calls it so.  What the callback raises ends the work, as Ctrl-C does.
"""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total): how many steps of a stage are done, of how many; 0 where nobody knows."""

Say = Callable[[str], None]
"""Called with a line of text now and then."""


def silent(*told: object) -> None:
    """What `progress` and `say` are where nobody listens."""

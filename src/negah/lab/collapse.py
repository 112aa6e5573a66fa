"""What keeps a network that sees no labels from saying the same of every picture?

Methods that only pull views together would be content with a constant.  Each panel takes away what rules it out.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import nn

from negah.lab.page import Page, Panel, figure
from negah.lab.training import Effort, Learned, Pictures, learn, plot_curves, small_views, summary
from negah.nn.backbone import Backbone
from negah.ssl import BYOL
from negah.train import Objective
from negah.train.schedules import cosine


class NoStopGradient(BYOL):
    """BYOL whose target learns as well: gradients go through both sides."""

    stop_gradient = False

    def target(self, views):
        return self.online(views)


def run(out: Path, effort: Effort) -> Page:
    """All panels into the folder `out`."""
    pictures = Pictures.of(effort)
    page = Page("collapse", "What keeps a network from saying nothing?", out, effort.settings())
    page.add(byol(pictures, effort))
    return page


def byol(pictures: Pictures, effort: Effort) -> Panel:
    """BYOL with and without predictor, moving average and stop-gradient."""
    made = partial(BYOL, hidden=256, dim=64, momentum=cosine(0.98, 1.0))
    settings: dict[str, Callable[[Backbone], Objective]] = {
        "BYOL": made,
        "no predictor": partial(made, predictor=nn.Identity()),
        "no moving average": partial(made, momentum=0.0),
        "neither": partial(made, momentum=0.0, predictor=nn.Identity()),
        "no stop-gradient": partial(NoStopGradient, hidden=256, dim=64),
    }
    views = [small_views(), small_views()]
    runs: list[Learned] = [
        learn(make, pictures, views, effort, label=label, seed=seed)
        for label, make in settings.items() for seed in range(effort.seeds)
    ]  # fmt: skip
    plot, (left, right) = figure(2)
    plot_curves(left, runs, "embedding_std", title="spread of embeddings", floor=1.0)
    plot_curves(right, runs, "knn", title="kNN accuracy")
    right.legend(fontsize=8, frameon=False)
    rows = summary(runs, ["embedding_std", "effective_rank", "knn", "loss"])
    gone = [row["setting"] for row in rows if row["collapse"] != "none"]
    return Panel(
        name="byol", title="BYOL without its parts",
        asks="...",
        found=f"Collapsed: {', '.join(gone) or 'none'}.",
        rows=rows, figure=plot, code=[BYOL, NoStopGradient],
    )  # fmt: skip

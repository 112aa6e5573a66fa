"""What the scripts lab_NAME.py share: run an experiment of `negah lab`, keep its plots and write down its figures."""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results
import torch

from negah.lab.page import Page
from negah.lab.training import Effort

Rows = list[dict[str, Any]]


def measure(
    name: str, experiment: Callable[[Path, Effort], Page], doc: str, headline: Callable[[Rows], dict[str, Any]], *,
    seeds: int,
) -> None:  # fmt: skip
    """Run it; rows are those of all panels, `panel` and `setting` say which; plots go to docs/img/lab-NAME-PANEL.svg.

    doc: the script's, whose first line is "Claim: " and the claim.  headline: rows to the headline.  seeds: runs of
    each setting.
    """
    claim = doc.splitlines()[0].removeprefix("Claim: ").rstrip(".")
    parser = argparse.ArgumentParser(description=claim)
    parser.add_argument("--out", type=Path, default=Path("runs") / f"lab-{name}", help="where the page goes")
    parser.add_argument("--seeds", type=int, default=seeds, help="runs of each setting")
    args = parser.parse_args()
    torch.set_num_threads(1)
    effort = Effort(seeds=args.seeds)
    page = experiment(args.out, effort)
    for panel in page.panels:
        shutil.copy(args.out / f"{panel.name}.svg", results.ROOT / "docs" / "img" / f"lab-{name}-{panel.name}.svg")
    rows = [{"panel": panel.name} | rounded(row) for panel in page.panels for row in panel.rows]
    path = results.write(
        f"lab_{name.replace('-', '_')}", claim=claim, rows=rows, headline=headline(rows), seeds=list(range(args.seeds)),
        packages=("numpy",), settings=effort.settings(), found={panel.name: panel.found for panel in page.panels},
    )  # fmt: skip
    print(path)


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Four decimals are more than these figures are good for."""
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}

"""What the scripts lab_NAME.py share: run an experiment of `negah lab`, keep its plots and write down its figures."""

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import results
import torch

from negah.lab.page import Page
from negah.lab.training import Effort

Rows = list[dict[str, Any]]


def measure(
    name: str, experiment: Callable[[Path, Effort], Page], doc: str, headline: Callable[[Rows], dict[str, Any]], *,
    seeds: int, steps: int = 200, data: Sequence[str] = (),
) -> None:  # fmt: skip
    """Run it; rows are those of all panels, `panel` and `setting` say which; plots go to docs/img/lab-NAME-PANEL.svg.

    doc: the script's, whose first line is "Claim: " and the claim.  headline: rows to the headline.  seeds: runs of
    each setting.  steps: of each run.  data: in `results.data_folder`, in place of generated pictures.
    """
    claim = doc.splitlines()[0].removeprefix("Claim: ").rstrip(".")
    parser = argparse.ArgumentParser(description=claim)
    parser.add_argument("--out", type=Path, default=Path("runs") / f"lab-{name}", help="where the page goes")
    parser.add_argument("--seeds", type=int, default=seeds, help="runs of each setting")
    args = parser.parse_args()
    torch.set_num_threads(1)
    effort = Effort(seeds=args.seeds, steps=steps, data=tuple(data))
    page = experiment(args.out, replace(effort, data=tuple(str(results.data_folder() / path) for path in data)))
    settings = dict(page.settings)
    if data:
        settings["data"] = effort.settings()["data"]  # by names that mean the same elsewhere
    for panel in page.panels:
        if panel.name == "pictures" and data:
            continue  # others' photographs are not ours to spread
        shutil.copy(args.out / f"{panel.name}.svg", results.ROOT / "docs" / "img" / f"lab-{name}-{panel.name}.svg")
    rows = [{"panel": panel.name} | rounded(row) for panel in page.panels for row in panel.rows]
    path = results.write(
        f"lab_{name.replace('-', '_')}", claim=claim, rows=rows, headline=headline(rows), seeds=list(range(args.seeds)),
        packages=("numpy",), settings=settings, found={panel.name: panel.found for panel in page.panels},
    )  # fmt: skip
    print(path)


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Four decimals are more than these figures are good for; of what is smaller, three digits."""

    def short(value: float) -> float:
        return round(value, 4) if abs(value) >= 1e-3 else float(f"{value:.3g}")

    return {key: short(value) if isinstance(value, float) else value for key, value in row.items()}

"""`negah audit`."""

from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from negah.cli import show

SHOWN = 12  # sizes that are listed


@dataclass
class Audit(show.Verb):
    """Say whether an update function of a graph network depends on the order of the neighbours.

    FUNCTION is FILE.py:function, called as f(h, messages): h [d] is a node's features, messages [n, d] its neighbours'.
    The file is executed, as code of your own: audit only what you would run. Or a line of text, which is not:
    h, messages, n, positions, numbers, + - * / **, sum, mean, max, softmax, sort, sigmoid, dot, first, ...

    certified: read line by line, made only of pointwise maps and symmetric reductions; it holds for every n.
    refuted: the smallest counterexample found is shown. not refuted: neither, which proves nothing.
    The exit status is 0 for certified and not refuted, 4 for refuted, 2 for what cannot be audited.

    Example:
        negah audit layers.py:update
        negah audit layers.py:update --dim 16 --json
        negah audit "mean(messages) + sigmoid(h)"
    """

    function: Annotated[Positional[str], arg(metavar="FUNCTION")]
    """FILE.py:function, or an expression."""
    dim: Annotated[int | None, arg(metavar="D")] = None
    """Width of the features (default: found by trying)."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of the features that are tried."""
    seconds: Annotated[float, arg(metavar="S")] = 20.0
    """Time for the search."""
    limit_s: Annotated[float, arg(metavar="S")] = 60.0
    """A function that has not returned by then is ended."""

    def run(self) -> int:
        """Audit, print the evidence; 1 where the function is refuted."""
        from negah.runs.audit import audited, split

        place = split(self.function)
        if place is not None:
            show.stderr().print(f"negah: {show.printable(place[0])} is executed")
        found = audited(
            self.function, width=self.dim, seed=self.seed, seconds=self.seconds, limit_s=self.limit_s
        )  # fmt: skip
        if self.json:
            show.as_json(found)
        else:
            tell(found)
        return 4 if found["verdict"] == "refuted" else 0


def tell(found: dict[str, Any]) -> None:
    """Print the verdict and its evidence for people."""
    out, tried = show.stdout(), found["tried"]
    out.print(f"{show.printable(found['function'])}: {found['verdict']}\n")
    if found["verdict"] == "certified":
        if found["derivation"]:
            show.table(
                [
                    (f"{s['file']} {s['line']}".strip(), s["expression"], s["axes"], s["kind"])
                    for s in found["derivation"]
                ],
                header=("line", "expression", "axes", "what it is"),
                title="Permuting the messages permutes the axis n of every line, and nothing else",
            )
        else:
            out.print("It makes no use of the messages.")
        width = f"d = {found['width']}" if found["width"] else "every d"
        out.print(f"What it returns has no axis n: it is the same in every order, for every n and {width}.")
        return
    shown = found["counterexample"]
    if shown is not None:
        same = shown["kind"] == "repeat"
        order = " ".join(str(i + 1) for i in shown["permutation"])
        show.table(
            [
                ("h", shown["h"]),
                *((f"message {i + 1}", row) for i, row in enumerate(shown["messages"])),
                ("output", said(shown["output"])),
                ("the same again" if same else f"in the order {order}", said(shown["permuted_output"])),
                ("difference", f"{shown['difference'] or float('inf'):.3g}"),
                *([] if same else [("rounding may be", f"{shown['rounding']:.1g}")]),
                *([("note", shown["note"])] if shown["note"] else []),
            ],
            title="The same input twice gives two outputs" if same else "Counterexample",
        )
        return
    sizes = tried["sizes"]
    listed = ", ".join(map(str, sizes[:SHOWN])) + (f" ... {sizes[-1]}" if len(sizes) > SHOWN else "")
    show.table(
        [
            ("no certificate", found["no_certificate"]),
            ("tried", f"{tried['evaluations']:,} evaluations, n = {listed or 'none'}, d = {tried['widths']}"),
            *((f"raises at n = {n}", said) for n, said in list(tried["refused"].items())[:3]),
            *([] if tried["complete"] else [("stopped", "the time was up: give --seconds")]),
        ],
        title="No counterexample was found, which proves nothing",
    )


def said(output: Any) -> Any:
    """An output, or the error in its place."""
    return f"raises {output['raised']}" if isinstance(output, dict) else output

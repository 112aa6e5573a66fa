"""What `negah lab adversarial` says of its figures, whichever way these came out.

Each sentence is made of the rows of a panel: one for each network, the plain one first.  A row holds accuracy by the
name of an attack.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from negah.lab.conclusions import against, error

RADII, COUNTS = (1, 4, 8), (2, 4, 8)  # of FGSM, in 255ths; steps of PGD
SINGLE = tuple(f"FGSM {radius}/255" for radius in RADII)  # the attacks' names
SEVERAL = tuple(f"PGD {count} steps" for count in COUNTS)
ONE_STEP, MANY_STEPS = SINGLE[-1], SEVERAL[-1]  # both in the ball of 8/255
DROP = 0.2  # from one check to the next, as for `OverfittingWatch`


def told_plain(row: Mapping[str, Any], library: Mapping[str, Any]) -> str:
    """What the attacks leave, which is the stronger, and whether two FGSMs are one."""
    single, several = ([row[name] for name in names] for names in (SINGLE, SEVERAL))
    gap = row[ONE_STEP] - row[MANY_STEPS]
    told = (
        f"Of {_percent(row['clean'])} % rightly classified, FGSM leaves {_listed(single)} % at {_numbers(RADII)} of"
        f" 255; PGD leaves {_listed(several)} % after {_numbers(COUNTS)} steps. In the same ball of 8/255 eight steps"
        f" leave {100 * abs(gap):.1f} points {'fewer' if gap > 0 else 'more'} than a single one."
    )
    if "values apart" not in library:
        return f"{told} torchattacks is not installed: its FGSM was not run."
    apart, of = library["values apart"], library["values"]
    if library["of these steep"]:
        return f"{told} FGSM of torchattacks gives OTHER IMAGES than ours: {apart} of {of} values are apart."
    told += " FGSM of torchattacks gives the same images as ours"
    return f"{told}, but for {apart} of {of} values, whose gradient is 0 up to rounding." if apart else f"{told}."


def path(scores: Sequence[Mapping[str, Any]], plain: float, n: int) -> str:
    """ "never came", "broke down", "past its best" or "held": what became of the robust accuracy, on n pictures.

    plain: that of the network that was not hardened, at its end.
    """
    values = [row["robust"] for row in scores]
    if against(max(values), plain, n) != "above":
        return "never came"
    if any(before - after > DROP for before, after in pairwise(values)):
        return "broke down"
    return "past its best" if against(values[-1], max(values), n) == "below" else "held"


def told_training(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which of the hardened networks kept what they had."""
    words = {
        "never came": "Robustness beyond the plain network's never came",
        "broke down": "Robustness broke down from one check to the next (catastrophic overfitting)",
        "past its best": "Robustness was better on the way than at the end (robust overfitting)",
        "held": "Robustness held to the end",
    }
    told = []
    for what, word in words.items():
        mine = [row for row in rows if row["what"] == what and row["setting"] != "plain"]
        if mine:
            listed = ", ".join(
                f"{row['setting']}, seed {row['seed']}: {row['best robust']:.3f} at best, {row['robust']:.3f} in the"
                " end"
                for row in mine
            )
            told.append(f"{word}: {listed}.")
    return " ".join(told)


def told_clean(rows: Sequence[Mapping[str, Any]], n: int) -> str:
    """Clean accuracy of the hardened networks against that of the plain one, each on n pictures."""
    plain, *hard = rows
    words = {"below": "fell", "above": "rose", "no different from": "is the same, as far as so many pictures tell"}
    told = [
        f"{row['setting']} it {words[against(row['clean'], plain['clean'], n)]}: {_percent(row['clean'])} %,"
        f" {100 * (row['clean'] - plain['clean']):+.1f} points"
        for row in hard
    ]
    return f"Clean accuracy of the plain network is {_percent(plain['clean'])} %. Hardened {'; '.join(told)}."


def told_fgsm(rows: Sequence[Mapping[str, Any]], n: int) -> str:
    """What FGSM leaves of the hardened networks, and what by itself that would make one believe."""
    plain, *hard = rows
    told = []
    for row in hard:
        word = against(row[ONE_STEP], plain[ONE_STEP], n)
        line = (
            f"The network hardened {row['setting']} keeps {_percent(row[ONE_STEP])} % at 8/255, {word} the plain one"
            f" ({_percent(plain[ONE_STEP])} %)"
        )
        if against(row[ONE_STEP], row["clean"], n) == "above":
            line += (
                f"; that is more than without any attack ({_percent(row['clean'])} %): it reads the label from the step"
                " (label leaking), which is no robustness"
            )
        told.append(f"{line}.")
    return " ".join(told)


def told_pgd(rows: Sequence[Mapping[str, Any]], n: int) -> str:
    """Whether what FGSM leaves of the hardened networks withstands more steps."""
    plain, *hard = rows
    told = [f"Eight steps leave {_percent(plain[MANY_STEPS])} % of the plain network."]
    for row in hard:
        one, many = row[ONE_STEP], row[MANY_STEPS]
        line = f"Hardened {row['setting']}, {_percent(many)} % withstand them, and {_percent(one)} % a single step: "
        if against(many, one, n) != "below":
            line += "what FGSM showed holds against more steps."
        elif many < one / 2:
            line += "most of what FGSM showed is not there. It withstands one step and not several."
        else:
            line += f"FGSM showed {100 * (one - many):.1f} points too many, the rest holds."
        told.append(line)
    return " ".join(told)


def concluded(rows: Sequence[Mapping[str, Any]]) -> str:
    """What hardening bought and cost, what FGSM alone would have claimed, and whether to believe any of it."""
    plain, *hard = rows
    n = plain["images"]
    best = max(hard, key=lambda row: row["withstand all"])
    told = [
        "All attacks together leave "
        + ", ".join(f"{_percent(row['withstand all'])} % ({row['setting']})" for row in rows)
        + "."
    ]
    bought = 100 * (best["withstand all"] - plain["withstand all"])
    if against(best["withstand all"], plain["withstand all"], n) == "above":
        paid = 100 * (plain["clean"] - best["clean"])
        price = f"for {paid:.1f} points of clean accuracy" if paid > 0 else "and cost no clean accuracy"
        told.append(f"Training {best['setting']} bought {bought:.1f} points of robustness, {price}.")
    else:
        told.append("Hardening bought no robustness that can be told from chance.")
    others = [row for row in hard if row is not best]
    for row in others:
        word = against(row["withstand all"], best["withstand all"], n)
        told.append(f"Training {row['setting']} is {word} that.")
    for row in hard:
        over = row["withstand FGSM"] - row["withstand all"]
        if over > error(row["withstand FGSM"], n):
            told.append(f"By FGSM alone one would have claimed {100 * over:.1f} points too many {row['setting']}.")
    alarms = [f"{row['setting']}: {row['alarms']}" for row in rows if row["alarms"] != "none"]
    if alarms:
        told.append(f"NOT TO BE TRUSTED: {'; '.join(alarms)}.")
    else:
        told.append("No verdict speaks against these figures; they are upper bounds all the same.")
    return " ".join(told)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _listed(shares: Sequence[float]) -> str:
    return _numbers([_percent(share) for share in shares])


def _numbers(values: Sequence[object]) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}"

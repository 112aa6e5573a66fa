"""Claim: panel outlines and areas of Jiangsu tiles are right, from the bundled detector and some calibration masks.

    python benchmarks/area_jiangsu_tiny.py

As area_jiangsu.py, where tiles, figures and baselines are explained, of negah/aerial-tiny:

tiny_from_elsewhere  it learned from masks of other places, is calibrated on those masks, and asked about the 47 tiles,
                     all of one place, that were kept aside from it.
tiny_in_place        the same tiles, calibrated on others among them: folds of single tiles of one place, which
                     flatters, and is what somebody gets who draws masks in the place that she surveys.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import results
from area_jiangsu import THRESHOLD, Cases, scored, write

from negah.probe.detector import Detector, load
from negah.runs.aerial.tiles import jiangsu
from negah.solar.calibration import Seen


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.parse_args()
    data, tiny = results.data_folder(), load("negah/aerial-tiny")
    tiny.info = replace(tiny.info, threshold=THRESHOLD)
    aside = jiangsu(data, folds=5)[1] == 0

    def cases(look: Callable[[Detector], Seen]) -> Cases:
        seen, asked = look(tiny), [(tiny, aside)]
        return {
            "tiny_from_elsewhere": ([(seen.of(~aside), seen.of(aside))], asked),
            "tiny_in_place": ([(None, seen.of(aside))], asked),
        }

    rows = scored(data, cases, baselines_of={"tiny_from_elsewhere"})
    write("area_jiangsu_tiny", "by the bundled detector and calibration masks", rows, headline="tiny_from_elsewhere")


if __name__ == "__main__":
    main()

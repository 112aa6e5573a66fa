"""Draw a town whose every panel is known, survey it with the bundled detector, and compare.

    python examples/survey_a_town.py [FOLDER]

This is `negah scene` and `negah survey` as functions.  Open the report.html whose path is printed last.
"""

import sys
from pathlib import Path

from negah import probe
from negah.images.scenes import write_town
from negah.runs.survey import Options, survey, totals

folder = Path(sys.argv[1] if sys.argv[1:] else "build/examples")
folder.mkdir(parents=True, exist_ok=True)

# A GeoTIFF in UTM zone 33N, 150 m wide, with a mask and the panels' polygons beside it.
truth = write_town(folder / "town.tif", size_px=500, gsd_m=0.3, seed=8)
print(f"drawn: {truth.arrays} arrays, {truth.plan_area_m2:.0f} m2 of panels seen from above")

# Windows overlap by a quarter, so an array on the border of one lies inside another.
detector = probe.load("negah/aerial-tiny")
options = Options(overlap=0.25, overwrite=True)
summary = survey([str(truth.image)], folder / "survey", [detector], options)

for label, value in totals(summary).items():
    print(f"{label}: {' '.join(value.split())}")
print(f"report: {summary.report}")

"""Square metres from some masks: calibrate the survey's areas, and check them on places that took no part.

    python examples/calibrate_areas.py [FOLDER]

This is `negah calibrate` as a function.  It compares what the detector measures with masks of the true panels; the
errors it reports are of each place when the others alone calibrate.
"""

import sys
from pathlib import Path

from PIL import Image

from negah import probe
from negah.images.scenes import render
from negah.runs.calibrate import calibrate

folder = Path(sys.argv[1] if sys.argv[1:] else "build/examples")
masks = folder / "masks"
masks.mkdir(parents=True, exist_ok=True)

# Pictures and their masks in one folder, NAME.png and NAME_mask.png: 0 is no panel, 255 a pixel full of it.
for seed in range(24):
    scene = render(104, 0.3, seed=seed, panels="some")
    Image.fromarray(scene.image).save(masks / f"{seed:02d}.png")
    Image.fromarray((scene.mask * 255).round().astype("uint8")).save(masks / f"{seed:02d}_mask.png")

# The bundled model learned from real tiles and doubts drawn ones: a low threshold, for enough finds.
detector = probe.load("negah/aerial-tiny")
result = calibrate(masks, folder / "calibration.json", detector, gsd=0.3, threshold=0.2)

told = result.assessment
print(f"{result.calibration.windows} windows with panels, {result.calibration.places} places")
print(f"median error of an area: {told.median_error_before:.0%} before, {told.median_error:.0%} calibrated")
print(f"bias of the sum: {told.bias_before:+.0%} before, {told.bias:+.0%} calibrated")
print(f"intervals of 95 % hold the true area in {told.coverage:.0%} of windows that took no part")
for note in result.notes:
    print(f"note: {note}")
print(f"negah survey town.tif --calibration {result.path}")
print(f"how it looks at each window: {result.pictures}")

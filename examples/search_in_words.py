"""Find pictures by words: a folder, a sentence, and the pictures that fit it best.

    python examples/search_in_words.py [FOLDER]

This is `negah search` as a function.  The bundled model is small: it knows what it has read of, and no more.
"""

import sys
from pathlib import Path

from PIL import Image

from negah.images.scenes.words import described
from negah.runs import DESCRIBER
from negah.runs.search import search

folder = Path(sys.argv[1] if sys.argv[1:] else "build/examples") / "pictures"
folder.mkdir(parents=True, exist_ok=True)

# Sixteen scenes of 48 m.  What is in them is kept to read the answers by; the search does not see it.
said = {}
for seed in range(16):
    scene = described(96, 0.5, seed=seed)
    name = f"{seed:02d}.png"
    Image.fromarray(scene.image).save(folder / name)
    said[name] = scene.captions[0]

queries = ["a house with a swimming pool", "many trees", "a large solar array on a roof"]
result = search(queries, [folder], model=DESCRIBER, best=3)
print(f"{result.images} pictures in {folder}")
for answer in result.found:
    print(f"\n{answer.query}")
    for name, cosine in answer.hits:
        print(f"  {cosine:.2f}  {Path(name).name}: {said[Path(name).name]}")

"""The recipe of `negah/aerial-tiny`: a small panel detector from few labels, on a CPU.

    python benchmarks/duke_grouped.py --work runs/aerial        # in five grouped folds; chooses the threshold
    python -m negah.runs.aerial --data ../shared/data --out runs/aerial --threshold 0.71        # the bundled model

`tiles` are the sources, `objectives` the losses, `recipe` the stages, `score` what a card says.
"""

"""The recipe of `negah/aerial-tiny`: a small panel detector from few labels, on a CPU.

    python -m negah.runs.aerial --data ../shared/data --out runs/aerial     # the bundled model
    python benchmarks/duke_grouped.py                                       # the same, in five grouped folds

`tiles` are the sources, `objectives` the losses, `recipe` the stages, `score` what a card says.
"""

"""How `negah/refine-neighbours` is made: generated towns, their windows as graphs, and the refiner trained on them.

`python -m negah.runs.neighbours` runs it; the survey's side is `negah.runs.refine`.
"""

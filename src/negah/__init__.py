"""negah (نگاه, "gaze"): learn to see, look where it matters, and say how sure you are.

Nothing is imported with the package: each room is, by its name, when it is wanted.

    from negah import probe                             # detectors on frozen features
    from negah.images.scenes import render              # generated pictures
    from negah.runs.survey import Options, survey       # what `negah survey` does, as a function

A room's own names are its contract: `load` takes a name or a path and a device and returns a model in evaluation mode,
`save` takes the model and a path and returns the path, attacks take (model, images, labels), and whatever is random
takes a generator or a seed.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"

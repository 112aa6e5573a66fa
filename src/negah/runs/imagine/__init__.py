"""How the bundled text-to-image model is made: `python -m negah.runs.imagine`."""

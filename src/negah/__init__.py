"""negah (نگاه, "gaze"): learn to see, look where it matters, and say how sure you are."""

__version__ = "0.1.0"

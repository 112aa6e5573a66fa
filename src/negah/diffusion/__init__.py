"""Imagine: denoise under guidance (Stable Diffusion, classifier and classifier-free guidance, DreamBooth)."""

from negah.diffusion.load import load
from negah.diffusion.model import TextToImage
from negah.diffusion.schedule import Schedule

__all__ = ["Schedule", "TextToImage", "load"]

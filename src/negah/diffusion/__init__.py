"""Imagine: denoise under guidance (Stable Diffusion, classifier and classifier-free guidance, DreamBooth)."""

from negah.diffusion.generate import generate
from negah.diffusion.load import load
from negah.diffusion.model import TextToImage

__all__ = ["TextToImage", "generate", "load"]

"""Imagine: denoise under guidance (Stable Diffusion, classifier and classifier-free guidance, DreamBooth)."""

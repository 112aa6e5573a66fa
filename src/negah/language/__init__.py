"""Pictures and words: CLIP, SimVLM, and what turns texts into tokens."""

from negah.language.clip import CLIP
from negah.language.load import load
from negah.language.simvlm import SimVLM
from negah.language.tokens import Tokenizer

__all__ = ["CLIP", "SimVLM", "Tokenizer", "load"]

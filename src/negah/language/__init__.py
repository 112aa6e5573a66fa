"""Pictures and words: CLIP, CoCa, SimVLM, and what turns texts into tokens."""

from negah.language.clip import CLIP
from negah.language.coca import CoCa
from negah.language.load import load, load_both, save
from negah.language.simvlm import SimVLM
from negah.language.tokens import Tokenizer

__all__ = ["CLIP", "CoCa", "SimVLM", "Tokenizer", "load", "load_both", "save"]

"""Proof that a model can't be fooled, or how it can: attacks, an evaluation with evidence, adversarial training."""

from negah.adversarial.deepfool import deepfool
from negah.adversarial.evaluate import Robustness, evaluate
from negah.adversarial.gradient import apgd, apgd_targeted, fgsm, pgd
from negah.adversarial.norms import L1, L2, Linf
from negah.adversarial.square import square
from negah.adversarial.target import Classifier
from negah.adversarial.universal import fooling_rate, random_signs, universal, universal_deepfool

__all__ = [
    "L1", "L2", "Classifier", "Linf", "Robustness", "apgd", "apgd_targeted", "deepfool", "evaluate", "fgsm",
    "fooling_rate", "pgd", "random_signs", "square", "universal", "universal_deepfool",
]  # fmt: skip

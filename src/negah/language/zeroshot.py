"""Zero-shot classification: the classes are words, a picture belongs to the one that it is nearest to.

Radford et al. 2021, arXiv:2103.00020, section 3.1: each class is the mean of the vectors of its name in several
sentences, which is better than the bare name, since what CLIP has read are sentences.

    classes = prototypes(model, tokens, ["airport", "forest"], AERIAL)
    chances = (model.log_scale.exp() * model.images(pictures) @ classes.T).softmax(1)

The chances are among these classes only: a picture of none of them belongs to one nevertheless.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float

from negah.errors import InputError
from negah.language.clip import CLIP
from negah.language.coca import CoCa
from negah.language.tokens import Tokenizer

PHOTO = ("a photo of a {}.", "a picture of a {}.", "a photo of the {}.", "a photo of many {}.", "a close-up of a {}.")
AERIAL = (
    "an aerial image of a {}.", "a satellite image of a {}.", "an aerial view of the {}.", "a {} seen from above.",
    "there is a {} in this aerial image.",
)  # fmt: skip


@torch.no_grad()
def prototypes(
    model: CLIP | CoCa, tokens: Tokenizer, classes: Sequence[str], templates: Sequence[str] = PHOTO
) -> Float[torch.Tensor, "class dim"]:
    """Unit vectors of the classes.  Raises InputError without classes, and for templates without {}."""
    if not classes or not templates:
        raise InputError("zero-shot needs at least one class and one template")
    if lacking := [template for template in templates if "{}" not in template]:
        raise InputError(f"the template {lacking[0]!r} has no {{}}, where the class goes")
    device = model.log_scale.device
    sentences = [template.replace("{}", name) for name in classes for template in templates]
    vectors = torch.cat([model.texts(tokens(part).to(device)) for part in _parts(sentences)])
    return F.normalize(vectors.unflatten(0, (len(classes), len(templates))).mean(1), dim=1)


def _parts(texts: Sequence[str], size: int = 256) -> list[Sequence[str]]:
    return [texts[i : i + size] for i in range(0, len(texts), size)]

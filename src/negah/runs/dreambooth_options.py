"""What `negah dreambooth` is asked for, and what comes of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from negah import ranks
from negah.diffusion.dreambooth import Method
from negah.diffusion.identifier import Weakness
from negah.diffusion.sample import SAMPLERS, SamplerName
from negah.errors import InputError

PROMPTS = ("a {}", "a {} with many trees", "a {} beside a street")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to personalise.

    token: a new word, or None to measure which existing one says least.  lr: None takes what is customary.
    prior_weight: of the class's loss; 0 for no prior preservation.  class_images: drawn before.  every: steps between
    two looks.  prompts: that are looked at, {} standing for the thing; the first is that of fidelity and diversity.
    samples: pictures of each prompt.  sampler, sampler_steps, scale: of all drawing.
    """

    class_word: str
    token: str | None = None
    method: Method = "lora"
    rank: int = 4
    train_text: bool = False
    steps: int = 400
    batch: int = 1
    lr: float | None = None
    prior_weight: float = 1.0
    class_images: int = 200
    min_snr: float | None = None
    every: int = 100
    prompts: tuple[str, ...] = PROMPTS
    samples: int = 4
    sampler: SamplerName = "dpmpp-2m"
    sampler_steps: int = 20
    scale: float = 6.0
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0

    def check(self) -> None:
        """Raise InputError for what makes no sense."""
        if self.method not in get_args(Method):
            raise InputError(f"no method {self.method}: there are {', '.join(get_args(Method))}")
        if self.sampler not in SAMPLERS:
            raise InputError(f"no sampler {self.sampler}: there are {', '.join(SAMPLERS)}")
        if not self.class_word.strip():
            raise InputError("--class-word is empty: give what the pictures show, such as house")
        for name in ("rank", "steps", "batch", "class_images", "every", "sampler_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 1 or more")
        if self.samples < 2:
            raise InputError(f"--samples {self.samples}: give 2 or more, or nothing can be said of diversity")
        for name in ("lr", "min_snr"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise InputError(f"--{name.replace('_', '-')} {value:g}: give a number above 0")
        if self.prior_weight < 0:
            raise InputError(f"--prior-weight {self.prior_weight:g}: give 0 (no prior preservation) or more")
        if not self.prompts or any("{}" not in prompt for prompt in self.prompts):
            raise InputError("each --prompts needs {} where the thing is named, such as 'a {} beside a street'")
        if self.batch % ranks.world():
            raise InputError(f"--batch {self.batch} is not a multiple of the {ranks.world()} processes")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of it.

    model: the LoRA file, or the folder of the whole model.  token, why: the identifier, and why it was taken.
    step, reason: whose weights were kept, and why.  held_out: what the loss at fixed noise is taken on.  scores: of
    step 0 and each look.  real: fidelity of the subject's own pictures to each other, which is as much as there is to
    reach.  ranking: of existing tokens, where one was measured.
    """

    model: Path
    report: Path
    token: str
    why: str
    step: int
    reason: str
    held_out: str
    images: dict[str, int]
    scores: list[dict[str, float]]
    real: dict[str, float]
    notes: list[str] = field(default_factory=list)
    ranking: list[Weakness] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

"""DINO: a student that sees any crop of an image says what its teacher says of the whole; no labels, no negatives.

Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", arXiv:2104.14294.

With backbone f, head h (logits over K prototypes), their moving averages f', h', two global crops and any number of
local ones,

    t_g = softmax((h'(f'(x_g)) - c) / tau_t)                            g: the two global crops
    loss = mean over g, and all crops v other than g, of -sum_k t_gk log softmax(h(f(x_v)) / tau_s)_k
    c <- 0.9 c + 0.1 mean h'(f'(x_g))                                   over the images of all processes
    f', h'  <- m f', h' + (1 - m) f, h                                  after each step, m rising from 0.996 to 1

What rules out the constant solution: two opposite forces on the teacher's answer.  Centring takes away what all images
have in common, so that no prototype can win everywhere, and alone leads to the uniform answer; sharpening
(tau_t < tau_s) forbids that one, and alone leads to one prototype.
How it can still fail: with either force too weak.  The entries tell: `entropy` of a target at ln K with the loss at
ln K is the uniform answer; `kl` (of the student from its target) at 0 means that all crops get one answer;
`kl_uniform` (of the mean target) at ln K that one prototype has won.

Experiments change it from Python: `center_momentum=1.0` is no centring; `teacher_temperature=constant(0.1)`, the
student's, no sharpening; batches of two crops no multi-crop; a subclass may define other `targets`.

As trained in the paper: AdamW, lr 5e-4 * batch / 256 after 10 epochs of warm-up, weight decay from 0.04 to 0.4 by a
cosine, clip 3, drop-path 0.1 in the student, 8 local crops.  Departures: none.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from negah import ranks
from negah.errors import InputError
from negah.losses.distill import Center, entropy, kl_uniform, pairs_cross_entropy
from negah.nn.backbone import Backbone
from negah.nn.linear import product
from negah.nn.norm import globalise
from negah.ssl.dino_head import DINOHead
from negah.ssl.teacher import Teacher
from negah.train import Objective
from negah.train.schedules import Schedule, cosine, linear, ramp


class DINO(Objective):
    """Objective on batches of crops: two global ones, which the teacher sees, then local ones.

    The batch norms of `backbone` are changed in place to take the statistics of all processes.

    Args:
        prototypes: K; 65,536 for ImageNet, 2,048 to 8,192 for small data.
        hidden, bottleneck, head_norm: of the head, see `DINOHead`.
        teacher_temperature: tau_t by progress; the default is the paper's first 30 of 100 epochs.
        center_momentum: of c.
        momentum: m of the teacher.
        freeze_last: share of the run over which the head's last layer stays as it is; one epoch of a hundred.
    """

    def __init__(
        self, backbone: Backbone, *, prototypes: int = 65_536, hidden: int = 2048, bottleneck: int = 256,
        head_norm: bool = False, student_temperature: float = 0.1,
        teacher_temperature: Schedule = ramp(linear(0.04, 0.07), until=0.3),
        center_momentum: float = 0.9,
        momentum: float | Schedule = cosine(0.996, 1.0),
        freeze_last: float = 0.01,
    ):  # fmt: skip
        super().__init__()
        globalise(backbone)
        self.backbone = backbone
        self.head = DINOHead(backbone.width, prototypes, hidden=hidden, bottleneck=bottleneck, norm=head_norm)
        self.teacher = Teacher(self._student(), momentum)
        self.center = Center(prototypes, center_momentum)
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.freeze_last = freeze_last
        self.seen: dict[str, Tensor] = {}
        self.before_step(0.0)

    def forward(self, crops: Sequence[Float[Tensor, "batch 3 _ _"]]) -> dict[str, Tensor]:
        if len(crops) < 2:
            raise InputError(f"DINO needs two global crops of each image, got {len(crops)} crops in all")
        logits = self.answers(crops[:2])
        targets = self.targets(logits)
        if self.training:
            self.center.update(logits)

        projected = self.head.project(torch.cat(self.backbone.many(crops)))
        student = product(projected, self.head.directions()).unflatten(0, (len(crops), -1))
        loss = pairs_cross_entropy(student, targets, temperature=self.student_temperature)

        embedding = projected.detach().unflatten(0, (len(crops), -1))[:2]
        self.seen = {"embedding": embedding, "teacher_logits": logits, "teacher_probs": targets}
        unsure = entropy(targets).mean()  # each target has as many pairs, so the mean divergence is a difference
        common = kl_uniform(ranks.mean(targets.mean((0, 1))))
        return {"loss": loss, "entropy": unsure, "kl": loss.detach() - unsure, "kl_uniform": common}

    @torch.no_grad()
    def answers(self, crops: Sequence[Float[Tensor, "batch 3 h w"]]) -> Float[Tensor, "view batch prototype"]:
        """The teacher's logits."""
        backbone, head = self.teacher.model.children()
        features = backbone.many(crops)  # pyright: ignore[reportCallIssue]
        return head(torch.cat(features)).unflatten(0, (len(crops), -1))

    def targets(self, logits: Float[Tensor, "view batch prototype"]) -> Float[Tensor, "view batch prototype"]:
        """t: the teacher's logits, centred and sharpened."""
        return self.center(logits, self.temperature)

    def units(self) -> Sequence[nn.Module]:
        return [self.backbone, self.teacher.model.get_submodule("0")]

    def before_step(self, progress: float) -> None:
        self.temperature = self.teacher_temperature(progress)
        self.head.frozen = progress < self.freeze_last

    def after_step(self, progress: float) -> None:
        self.teacher.update(self._student(), progress)

    def _student(self) -> nn.Sequential:
        """What the teacher averages."""
        return nn.Sequential(self.backbone, self.head)

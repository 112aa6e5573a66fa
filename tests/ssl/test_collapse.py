"""Each kind of collapse is named when it is there, none when it is not, and figures are what their papers say."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from negah.errors import InputError, TrainingError
from negah.losses.distill import Center, sharpened, sinkhorn
from negah.ssl.collapse import CollapseDoctor, CollapseWarning, Settings, diagnose
from negah.ssl.figures import alignment, duplicates, effective_rank, uniformity
from negah.train import Objective, fit
from negah.train.run import Run


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def views(n: int, d: int, *, rank: int | None = None, agree: float = 0.9, seed: int = 0) -> Tensor:
    """Two views whose cosine is about `agree`, on a subspace of some rank."""
    rank = rank or d
    basis = torch.linalg.qr(noise(d, rank, seed=seed + 1))[0].T
    image, each = noise(n, rank, seed=seed + 2), noise(2, n, rank, seed=seed + 3)
    return (agree**0.5 * image + (1 - agree) ** 0.5 * each) @ basis


# Figures


@pytest.mark.parametrize(("s", "expected"), [([3.0, 3, 3, 3], 4.0), ([5.0, 0, 0], 1.0), ([2.0, 1, 1], 2 * 2**0.5)])
def test_effective_rank_of_known_singular_values(s, expected):
    """Centred orthonormal rows with those values: for (1/2, 1/4, 1/4) the entropy is 1.5 ln 2."""
    n, d = 40, 7
    columns = noise(n, len(s))
    left = torch.linalg.qr(columns - columns.mean(0))[0]
    right = torch.linalg.qr(noise(d, len(s), seed=1))[0]
    x = left @ torch.diag(torch.tensor(s)) @ right.T
    assert effective_rank(x) == pytest.approx(expected, abs=1e-2)
    assert effective_rank(x + 100 * noise(d, seed=2)) == pytest.approx(expected, abs=1e-2)  # a shared mean says nothing
    assert effective_rank(x @ torch.linalg.qr(noise(60, d))[0].T) == pytest.approx(expected, abs=1e-2)  # wide


def test_effective_rank_of_one_point_is_one():
    assert effective_rank(torch.ones(5, 3)) == 1


def test_alignment_and_uniformity_equal_loops():
    a, b = F.normalize(views(9, 5), dim=2)
    assert alignment(a, b) == pytest.approx(sum(float((x - y) @ (x - y)) for x, y in zip(a, b)) / 9, rel=1e-5)
    pairs = [math.exp(-2 * float((a[i] - a[j]) @ (a[i] - a[j]))) for i in range(9) for j in range(i)]
    assert uniformity(a) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)
    assert uniformity(F.normalize(noise(256, 2048), dim=1)) == pytest.approx(-4, abs=0.05)


def test_duplicates_count_pairs():
    x = noise(10, 6)
    x[7], x[8] = 3 * x[2], x[2]  # three alike: 3 of 45 pairs
    assert duplicates(x) == pytest.approx(3 / 45)


def test_diagnosis_figures_are_those_of_the_views():
    z = views(60, 12)
    found = diagnose(embedding=z).figures
    unit = F.normalize(z, dim=2)
    assert found["alignment"] == pytest.approx(alignment(unit[0], unit[1]))
    assert found["effective_rank"] == pytest.approx((effective_rank(unit[0]) + effective_rank(unit[1])) / 2)
    assert diagnose(embedding=noise(400, 64)).figures["embedding_std"] == pytest.approx(1, abs=0.01)


def test_teacher_is_read_against_ln_k():
    flat = diagnose(teacher_probs=torch.full((8, 100), 0.01)).figures
    assert flat["teacher_entropy"] == pytest.approx(math.log(100)) and flat["teacher_kl"] == pytest.approx(0, abs=1e-5)
    one = diagnose(teacher_probs=F.one_hot(torch.full((8,), 3), 100).float()).figures
    assert one["teacher_entropy"] == 0 and one["teacher_kl"] == pytest.approx(math.log(100))


# Good health


@pytest.mark.parametrize("n", [16, 64, 256])
@pytest.mark.parametrize("d", [8, 128, 2048])
def test_healthy_embeddings_do_not_alarm(n, d):
    for seed in range(2):
        spread = views(n, d, seed=seed)
        cone = spread + 3 * noise(d, seed=9)  # mean cosine .9, as after a ReLU
        slow = spread * torch.arange(1, d + 1) ** -0.5  # variance falls off along the dimensions
        few = 4 * noise(10, d, seed=8)[torch.arange(n) % 10] + spread  # ten clusters
        tight = views(n, d, agree=0.98, seed=seed)
        for z in (spread, cone, slow, few, tight, spread.bfloat16(), spread[0]):
            assert diagnose(embedding=z).kind == "none", diagnose(embedding=z).text


@pytest.mark.parametrize("n", [16, 256])
@pytest.mark.parametrize("k", [64, 4096])
def test_healthy_teachers_do_not_alarm(n, k):
    logits = F.normalize(views(n, 64), dim=2) @ F.normalize(noise(64, k, seed=5), dim=0)
    for temperature in (0.04, 0.07):
        centred = sharpened(logits, temperature, logits.mean((0, 1)))
        balanced = sinkhorn(logits.flatten(0, 1), temperature).view_as(logits)
        clusters = F.one_hot(torch.arange(n) % 10, k).float().expand(2, n, k)
        for probs in (centred, balanced, clusters):
            assert diagnose(teacher_probs=probs, teacher_logits=logits).kind == "none"


def test_too_few_images_say_nothing():
    found = diagnose(embedding=torch.ones(2, 3, 8), teacher_probs=torch.full((2, 3, 8), 1 / 8))
    assert found.kind == "none" and found.figures == {} and "fewer than 4" in found.text
    assert diagnose(embedding=torch.ones(2, 1, 8)).kind == "none"


# Planted collapses


@pytest.mark.parametrize("n", [16, 256])
@pytest.mark.parametrize("d", [8, 128, 2048])
def test_planted_embeddings_are_named(n, d):
    for constant in (torch.zeros(2, n, d), torch.ones(2, n, d), 1 + 0.01 * noise(2, n, d), -noise(d).expand(2, n, d)):
        assert diagnose(embedding=constant).kind == "complete"
        assert diagnose(embedding=constant.bfloat16()).kind == "complete"
    few = F.normalize(views(n, d, rank=1 if d == 8 else 2), dim=2)
    for planted in (few, few + 0.05 * noise(2, n, d) / d**0.5, 1 + 0.5 * few * d**0.5):
        assert diagnose(embedding=planted).kind == "dimensional"
    same = views(n, d, agree=1.0)
    assert diagnose(embedding=same).kind == "equal views"
    assert diagnose(embedding=same + 0.01 * noise(2, n, d, seed=7)).kind == "equal views"


def test_a_few_axes_of_many_are_dimensional_and_not_complete():
    z = F.pad(views(64, 2), (0, 4094))
    found = diagnose(embedding=z)
    assert found.kind == "dimensional" and found.figures["embedding_std"] > 0.9


def test_a_small_subspace_of_a_wide_embedding_is_dimensional():
    assert diagnose(embedding=views(256, 128, rank=3)).kind == "dimensional"
    assert diagnose(embedding=views(256, 128, rank=8)).kind == "none"


def test_few_directions_are_a_collapse_only_where_the_teacher_makes_little_of_them():
    along = torch.linspace(-1, 1, 64) + 0.1 * noise(2, 64)
    arc = torch.stack([along.cos(), along.sin()], 2)  # one line, on which every image has its place
    embedding, angles = F.pad(arc, (0, 30)), torch.linspace(-1, 1, 16)
    prototypes = torch.stack([angles.cos(), angles.sin()])
    for temperature, kind in ((0.02, "none"), (0.6, "dimensional")):  # decided answers, and much the same for all
        probs = sharpened(arc @ prototypes, temperature)
        found = diagnose(embedding=embedding, teacher_probs=probs)
        assert found.kind == kind and found.figures["rank_share"] < 0.25, found.figures
    assert diagnose(embedding=embedding).kind == "dimensional"  # nothing but the embedding tells the images apart


def test_planted_teachers_are_named():
    flat = torch.softmax(0.1 * noise(2, 64, 1000), 2)
    one = torch.softmax(noise(2, 64, 1000) + 30 * F.one_hot(torch.tensor(5), 1000), 2)
    fixed = torch.softmax(3 * noise(1000), 0).expand(2, 64, 1000)
    assert [diagnose(teacher_probs=p).kind for p in (flat, one, fixed)] == [
        "uniform teacher", "one prototype", "complete"
    ]  # fmt: skip


def test_the_teacher_names_what_made_embeddings_constant():
    probs = torch.full((2, 32, 50), 1 / 50)
    found = diagnose(embedding=torch.ones(2, 32, 8), teacher_probs=probs, teacher_logits=noise(50).expand(2, 32, 50))
    assert found.kind == "uniform teacher" and "same logits" in found.cause


@pytest.mark.parametrize(
    ("settings", "tensors", "says"),
    [
        (Settings(predictor=False), {"embedding": torch.ones(2, 9, 4)}, "no predictor"),
        (Settings(stop_gradient=False), {"embedding": torch.ones(2, 9, 4)}, "no stop-gradient"),
        (Settings(adam_lr=0.02), {"embedding": torch.ones(2, 9, 4)}, "learning rate of 0.02"),
        (Settings(temperature=5.0), {"embedding": torch.ones(2, 9, 4)}, "temperature 5"),
        (Settings(), {"embedding": torch.ones(2, 9, 4)}, "too weak"),
        (Settings(temperature=0.01), {"embedding": views(64, 32, rank=1)}, "nearest negative"),
        (Settings(), {"embedding": views(64, 32, rank=1)}, "augmentation"),
        (Settings(centering=False), {"teacher_probs": torch.eye(9)[:1].expand(9, 9)}, "neither centred"),
        (Settings(teacher_temperature=0.01), {"teacher_probs": torch.eye(9)[:1].expand(9, 9)}, "one choice"),
        (Settings(), {"teacher_probs": torch.eye(9)[:1].expand(9, 9)}, "too slowly"),
        (
            Settings(teacher_temperature=0.1, student_temperature=0.1),
            {"teacher_probs": torch.full((9, 9), 1 / 9)},
            "not below the student's 0.1",
        ),
        (Settings(), {"teacher_probs": torch.full((9, 9), 1 / 9)}, "too little sharpening"),
        (Settings(norm_per_process=True), {"embedding": views(32, 8, agree=1.0)}, "global batch norm"),
        (
            Settings(),
            {"embedding": views(32, 8, agree=1.0), "images": noise(1, 32, 3, 40, 40).expand(2, 32, 3, 40, 40)},
            "augmentation is off",
        ),
        (
            Settings(),
            {"embedding": views(32, 8, agree=1.0), "images": noise(2, 32, 3, 40, 40)},
            "survives augmentation",
        ),
    ],
)
def test_the_cause_follows_from_the_settings(settings, tensors, says):
    found = diagnose(**tensors, settings=settings)
    assert says in found.cause and found.text.endswith(found.cause) and "\n" not in found.text


def test_copies_are_told_and_are_no_collapse():
    z, pixels = views(32, 16), noise(2, 32, 3, 8, 8)
    z[:, 16:], pixels[:, 16:] = z[:, :16], pixels[:, :16]
    found = diagnose(embedding=z, images=pixels)
    assert found.kind == "none" and "duplicates, 3% of the images'" in found.text
    assert found.figures["duplicates"] == pytest.approx(16 / (32 * 31 / 2))


def test_a_large_batch_is_thinned_and_a_broken_one_refused():
    z = views(2000, 16)
    assert diagnose(embedding=z).figures["uniformity"] == pytest.approx(uniformity(F.normalize(z[0], dim=1)), abs=0.1)
    with pytest.raises(InputError, match="embedding is not finite"):
        diagnose(embedding=torch.full((2, 8, 4), float("nan")))


# In a run


class Shrinking(Objective):
    """Views of width 16 whose difference between images is `scale` to the power of the steps done."""

    def __init__(self, scale: float = 1.0, start: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("apart", torch.tensor(start))
        self.scale, self.predictor, self.seen = scale, nn.Identity(), {}

    def forward(self, batch) -> dict[str, Tensor]:
        self.seen = {"embedding": self.apart * views(32, 16) + 1}
        return {"loss": self.weight.square().sum()}

    def after_step(self, progress: float) -> None:
        self.apart *= self.scale


def train(objective: Objective, doctor: CollapseDoctor, steps: int = 60, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit(objective, [0], steps=steps, lr=1e-3, callbacks=[doctor], log_every=1, **options)
    return result, [str(w.message) for w in caught if w.category is CollapseWarning]


def test_a_collapse_is_warned_of_once_and_stops_the_run_if_asked():
    result, said = train(Shrinking(0.8), CollapseDoctor())
    assert len(said) == 1 and said[0].startswith("complete collapse") and "no predictor" in said[0]
    assert result.step == 60 and not result.stopped
    doctor = CollapseDoctor(stop=True)
    result, said = train(Shrinking(0.8), doctor)
    assert result.step < 60 and result.stopped == said[0] == doctor.warning
    first = next(r["step"] for r in doctor.readings if r["kind"] == "complete")
    assert result.step == first + 4 and f"since step {first}" in said[0]  # the fifth reading in a row


def test_health_a_slow_start_and_a_short_dip_are_no_alarm():
    assert train(Shrinking(), CollapseDoctor())[1] == []
    assert train(Shrinking(1.3, start=0.01), CollapseDoctor(grace=0.0))[1] == []  # collapsed at first, and recovering
    assert train(Shrinking(1e-3), CollapseDoctor(grace=0.9))[1] != []
    assert train(Shrinking(0.8), CollapseDoctor(patience=60))[1] == []


def test_nothing_is_said_within_the_grace():
    doctor = CollapseDoctor(grace=0.5, stop=True)
    assert train(Shrinking(start=0.0), doctor)[0].step == 30


def test_readings_stand_in_the_history_at_their_steps():
    doctor = CollapseDoctor(every=20)
    result, _ = train(Shrinking(), doctor)
    assert [r["step"] for r in doctor.readings] == [20, 40, 60]
    assert [row["step"] for row in result.history if "embedding_std" in row] == [20, 40, 60]
    assert result.history[19]["effective_rank"] == doctor.readings[0]["effective_rank"]


def test_a_resumed_run_is_diagnosed_as_an_undisturbed_one(tmp_path):
    class Cut(CollapseDoctor):
        def after_step(self, run: Run) -> None:
            super().after_step(run)
            if run.step == 17:  # in the middle of a streak
                raise KeyboardInterrupt

    whole, cut = CollapseDoctor(stop=True), Cut(stop=True)
    cut.__class__.__name__ = "CollapseDoctor"  # a checkpoint knows callbacks by name
    whole_result, _ = train(Shrinking(0.8), whole)
    with pytest.raises(KeyboardInterrupt):
        train(Shrinking(0.8), cut, out=tmp_path, checkpoint_every=8)
    again = CollapseDoctor(stop=True)
    result, _ = train(Shrinking(0.8), again, out=tmp_path, checkpoint_every=8)
    assert result.step == whole_result.step and again.warning == whole.warning
    assert again.readings == whole.readings and result.history == whole_result.history


def test_the_settings_are_read_from_the_objective():
    class Dino(Shrinking):
        def __init__(self, momentum: float):
            super().__init__()
            self.center, self.balanced = Center(4, momentum), False
            self.student_temperature, self.teacher_temperature = 0.1, lambda progress: 0.04 + 0.03 * progress
            self.temperature = 0.05  # the teacher's of this step, not a contrastive loss's

    objective = Dino(0.9)
    run = Run(objective, torch.optim.AdamW(objective.parameters()), steps=10, step=5, history=[{"lr": 0.2}])
    assert Settings.of(run) == Settings(
        predictor=False, centering=True, student_temperature=0.1, teacher_temperature=0.055, adam_lr=0.2
    )
    run = Run(Dino(1.0), torch.optim.SGD(objective.parameters()), steps=10)
    assert Settings.of(run).centering is False and Settings.of(run).adam_lr is None


def test_an_objective_without_anything_to_see_is_refused():
    objective = Shrinking()
    objective.forward = lambda batch: {"loss": objective.weight.square().sum()}
    with pytest.raises(TrainingError, match="Shrinking.seen holds nothing"):
        train(objective, CollapseDoctor())

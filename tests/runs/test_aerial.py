import copy
from dataclasses import replace

import numpy as np
import torch

from negah.runs.aerial import recipe, score
from negah.runs.aerial.objectives import Detection, Distillation, Teacher
from negah.runs.aerial.tiles import (
    MASKED,
    UNLABELLED,
    Batch,
    Elsewhere,
    Mixture,
    Tiles,
    background,
    cross,
    duke,
    masked,
    with_panels,
)


def tiles(labels: list[int], masks: np.ndarray | None = None) -> Tiles:
    rng = np.random.default_rng(0)
    return Tiles(rng.integers(0, 256, (len(labels), 104, 104, 3), dtype=np.uint8), np.array(labels), masks)


def batch_of(source: Tiles, n: int = 12) -> Batch:
    mixture = Mixture([source], side=104)
    generator = torch.Generator().manual_seed(0)
    return mixture.collate([mixture[i % len(mixture)] for i in range(n)], generator)


def small_teacher() -> Teacher:
    return recipe.new_teacher(widths=(8, 8, 16))


def test_image_labels_teach_presence_and_only_negatives_teach_the_patches():
    batch = batch_of(tiles([1, 0]))
    assert batch.present.tolist() == [1, 0] * 6
    assert batch.asked.all()
    assert batch.dense.tolist() == [0, 1] * 6  # where panels lie in a positive is not known
    assert (batch.fraction == 0).all()


def test_an_unlabelled_tile_is_asked_for_nothing():
    batch = batch_of(tiles([UNLABELLED, 0]))
    assert batch.asked.tolist() == [0, 1] * 6
    assert batch.dense.tolist() == [0, 1] * 6


def test_panels_are_drawn_onto_tiles_without_any_and_known_to_the_pixel():
    source = tiles([0, 1, 0])
    drawn = with_panels(source, copies=3, seed=1)
    assert drawn.masks is not None and drawn.images.shape == (6, 104, 104, 3)
    changed = (drawn.images != source.images[[0, 2, 0, 2, 0, 2]]).any(-1)
    assert changed[drawn.masks > 0].mean() > 0.99
    assert not np.array_equal(drawn.masks[0], drawn.masks[2])  # the same tile, other panels
    batch = batch_of(drawn)
    assert batch.dense.all()
    assert torch.equal(batch.present[batch.asked > 0] == 1, (batch.fraction.sum(1) >= 0.35)[batch.asked > 0])


def test_a_mask_decides_presence_and_slivers_are_not_asked_for():
    masks = np.zeros((3, 104, 104), np.uint8)
    masks[1, 40:60, 40:60] = 255
    masks[2, 52:55, 52:55] = 255  # a seventh of a patch
    batch = batch_of(tiles([MASKED, MASKED, MASKED], masks), 3)
    assert batch.present.tolist()[:2] == [0, 1]
    assert batch.asked.tolist() == [1, 1, 0]
    assert abs(float(batch.fraction[1].sum()) * 64 - 400) < 0.4 * 400  # moved and zoomed by at most 15 %


def test_sources_are_drawn_by_their_shares():
    mixture = Mixture([replace(tiles([0] * 50), share=0.25), replace(tiles([1] * 10), share=0.75)], side=104)
    order = torch.cat([mixture.order(torch.Generator().manual_seed(s)) for s in range(40)])
    assert abs(float((order >= 50).float().mean()) - 0.75) < 0.03


def test_a_crossed_view_shows_whole_patches_of_another_and_knows_what_both_knew():
    n = 200
    views = (torch.arange(n).float() / n).view(n, 1, 1, 1).expand(n, 3, 104, 104)
    fraction = (torch.arange(n).float() / n).view(n, 1).expand(n, 169)
    labels = torch.tensor([MASKED, 0, 1, UNLABELLED]).repeat(n // 4)
    crossed, mixed, known = cross(views, fraction, labels, share=0.5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(crossed[:, 0].unfold(1, 8, 8).unfold(2, 8, 8).amax((3, 4)).flatten(1), mixed)  # pixels and truth
    assert torch.equal(crossed[:, 0].unfold(1, 8, 8).unfold(2, 8, 8).amin((3, 4)).flatten(1), mixed)
    changed = (mixed != fraction).any(1)
    assert 0.35 < changed.float().mean() < 0.65
    assert torch.equal(known[~changed], labels[~changed])
    other = fraction.roll(-1, 0)
    assert torch.equal(mixed[changed], torch.where(mixed == fraction, fraction, other)[changed])
    said = {int(label): set(known[changed & (labels == label)].tolist()) for label in labels.unique()}
    # the next of a masked view has no panel; of one without panels, an unknown number; of an unlabelled one, a mask
    assert said == {MASKED: {MASKED}, 0: {UNLABELLED}, 1: {UNLABELLED}, UNLABELLED: {UNLABELLED}}


def test_teacher_and_detector_speak_of_the_same_patches():
    images = torch.zeros(1, 3, 104, 104, dtype=torch.uint8)
    images[..., 40:48, 64:72] = 255  # one patch: row 5, column 8
    teacher, blank = small_teacher().eval(), torch.zeros_like(images)
    moved = (teacher(images).features - teacher(blank).features).square().sum(-1)[0]
    row, column = divmod(int(moved.argmax()), 13)
    assert abs(row - 5) <= 1 and abs(column - 8) <= 1  # a place of the map is centred on a corner of its patch
    detector = recipe.new_detector(dim=64, depth=1).eval()
    assert detector(images).patch_logits.shape == teacher(images).patch_logits.shape == (1, 169)


def test_a_few_steps_lower_the_loss_and_leave_the_start_as_it_was(tmp_path):
    source = tiles([0] * 16 + [1] * 16)
    detector = recipe.new_detector(dim=64, depth=1)
    objective = Detection(detector)
    batch = batch_of(source, 16)
    before = float(objective(batch)["loss"].detach())
    trained = recipe.train(objective, [source], steps=12, lr=2e-3, side=64, batch=8, out=tmp_path)
    assert float(Detection(trained)(batch)["loss"].detach()) < before
    p = score.predict(trained, source.images)
    assert p.shape == (32,) and ((p > 0) & (p < 1)).all()


def test_the_detector_comes_to_say_what_its_teacher_says_where_nothing_is_known():
    source, teacher = tiles([UNLABELLED] * 16), small_teacher()
    torch.nn.init.constant_(teacher.whole.bias, 3.0)
    torch.nn.init.constant_(teacher.patch.bias, -3.0)
    before = copy.deepcopy(teacher.state_dict())
    objective = Distillation(recipe.new_detector(dim=64, depth=1), teacher, momentum=0.8)
    trained = recipe.train(objective, [source], steps=40, lr=3e-3, side=64, batch=8)
    for name, tensor in teacher.state_dict().items():  # not even the running statistics of its norms
        assert torch.equal(tensor, before[name]), name
    reading = trained(torch.from_numpy(source.images).permute(0, 3, 1, 2))
    assert float(reading.logit.sigmoid().mean()) > 0.75
    assert float(reading.patch_logits.sigmoid().mean()) < 0.25


def test_the_second_stage_leaves_the_first_as_it_was():
    labelled, unlabelled = tiles([0, 1] * 4), tiles([UNLABELLED] * 2)
    mask = np.zeros((2, 104, 104), np.uint8)
    known = tiles([MASKED] * 2, mask)
    elsewhere = Elsewhere(masked=known, background=tiles([0] * 2), drawn=known, generated=known)
    first = recipe.Pair(recipe.new_detector(dim=64, depth=1), small_teacher())
    before = copy.deepcopy([network.state_dict() for network in first])
    second = recipe.second_stage(first, labelled, unlabelled, elsewhere, scale=0.002)
    for network, state in zip(first, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not torch.equal(second.detector.head.classifier.weight, first.detector.head.classifier.weight)


def test_real_sources_have_both_labels_and_nothing_kept_aside_is_trained_on(data_dir):
    for source in (masked, background):
        seen, aside = source(data_dir), source(data_dir, kept_aside=True)
        known = {image.tobytes() for image in seen.images}
        assert not any(image.tobytes() in known for image in aside.images)
    patches = score.patches_of(masked(data_dir))
    assert 0.05 < (patches == 0).mean() < 0.95  # negatives of the same source


def test_no_tile_that_overlaps_a_test_tile_is_trained_on(data_dir):
    tiles = duke(data_dir)
    assert len(tiles.labelled.images) == 1200 and tiles.labelled.labels.sum() == 408
    assert len(tiles.unlabelled.images) == 558
    fold = tiles.folds()
    for k in range(5):
        known, unlabelled = tiles.without(fold == k)
        assert len(known.images) == (fold != k).sum()
        left_out = tiles.unlabelled.images[np.isin(tiles.unlabelled_groups, tiles.groups[fold == k])]
        assert len(left_out) and len(unlabelled.images) + len(left_out) == 558
        kept = {image.tobytes() for image in unlabelled.images} | {image.tobytes() for image in known.images}
        assert not any(image.tobytes() in kept for image in left_out)

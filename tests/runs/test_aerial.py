from dataclasses import replace

import numpy as np
import torch

from negah.runs import aerial
from negah.runs.aerial import Batch, Detection, Mixture, Tiles


def tiles(labels: list[int], **more) -> Tiles:
    rng = np.random.default_rng(0)
    return Tiles(rng.integers(0, 256, (len(labels), 104, 104, 3), dtype=np.uint8), np.array(labels), share=1.0, **more)


def batch_of(source: Tiles, n: int = 12) -> Batch:
    mixture = Mixture([source], side=104)
    generator = torch.Generator().manual_seed(0)
    return mixture.collate([mixture[i % len(mixture)] for i in range(n)], generator)


def test_image_labels_teach_presence_and_only_negatives_teach_the_patches():
    batch = batch_of(tiles([1, 0]))
    assert batch.present.tolist() == [1, 0] * 6
    assert batch.asked.all()
    assert batch.dense.tolist() == [0, 1] * 6  # where panels lie in a positive is not known
    assert (batch.fraction == 0).all()


def test_drawn_panels_are_known_to_the_pixel():
    batch = batch_of(tiles([0, 0], drawn=1.0))
    assert batch.dense.all()
    assert (batch.fraction.sum(1) > 0).float().mean() > 0.9
    assert torch.equal(batch.present[batch.asked > 0] == 1, (batch.fraction.sum(1) >= 0.35)[batch.asked > 0])


def test_a_mask_decides_presence_and_slivers_are_not_asked_for():
    masks = np.zeros((3, 104, 104), np.uint8)
    masks[1, 40:60, 40:60] = 255
    masks[2, 52:55, 52:55] = 255  # a seventh of a patch
    batch = batch_of(tiles([-1, -1, -1], masks=masks), 3)
    assert batch.present.tolist()[:2] == [0, 1]
    assert batch.asked.tolist() == [1, 1, 0]
    assert abs(float(batch.fraction[1].sum()) * 64 - 400) < 0.4 * 400  # moved and zoomed by at most 15 %


def test_sources_are_drawn_by_their_shares():
    mixture = Mixture([replace(tiles([0] * 50), share=0.25), replace(tiles([1] * 10), share=0.75)], side=104)
    order = torch.cat([mixture.order(torch.Generator().manual_seed(s)) for s in range(40)])
    assert abs(float((order >= 50).float().mean()) - 0.75) < 0.03


def test_a_few_steps_lower_the_loss_and_leave_the_start_as_it_was(tmp_path):
    source = tiles([0] * 16, drawn=0.5)
    start = aerial.new_detector(dim=32, depth=1)
    objective = Detection(start)
    batch = batch_of(source, 16)
    before = float(objective(batch)["loss"].detach())
    trained = aerial.train(start, [source], steps=12, lr=2e-3, side=64, batch=8, out=tmp_path)
    assert float(Detection(trained)(batch)["loss"].detach()) < before
    p = aerial.predict(trained, source.images)
    assert p.shape == (16,) and ((p > 0) & (p < 1)).all()


def test_real_sources_have_both_labels_and_nothing_kept_aside_is_trained_on(data_dir):
    seen, aside = aerial.masked(data_dir), aerial.masked(data_dir, kept_aside=True)
    assert seen.masks is not None
    empty = (seen.masks.reshape(len(seen.masks), -1) == 0).all(1)
    assert 0.05 < empty.mean() < 0.95  # negatives of the same source
    known = {image.tobytes() for image in seen.images}
    assert not any(image.tobytes() in known for image in aside.images)
    labelled, groups = aerial.duke(data_dir)
    assert len(labelled.images) == len(groups) == 1200 and labelled.labels.sum() == 408

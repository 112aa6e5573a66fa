"""Attention on the object is counted right, and what the page says follows from the runs."""

import pytest
import torch

from negah.errors import InputError
from negah.lab import background
from negah.lab.background import cls_attention, turned
from negah.lab.shapes import shapes
from negah.lab.training import Effort
from negah.nn.vit import ViT


class Attending(ViT):
    """A transformer whose CLS attends to itself by half, and to the patches by `given`."""

    def __init__(self, given: torch.Tensor):
        super().__init__(patch=4, dim=8, depth=1, heads=1, grid=(8, 8))
        self.given = 0.5 * given / given.sum(-1, keepdim=True)

    def attention(self, images, layer=-1):
        n, heads, patches = self.given.shape
        rows = torch.cat([torch.full((n, heads, 1), 0.5), self.given], -1)
        return rows.unsqueeze(2).expand(-1, -1, patches + 1, -1)


def test_blind_attention_is_1_and_attention_on_the_object_alone_is_1_over_its_area():
    masks = torch.zeros(6, 32, 32)
    masks[:, 8:16, 4:12] = 1  # four patches of 64
    on_it = torch.zeros(6, 8, 8)
    on_it[:, 2:4, 1:3] = 1
    weights = torch.stack([torch.ones(6, 64), on_it.flatten(1), 1 - on_it.flatten(1)], 1)
    images = torch.zeros(6, 3, 32, 32, dtype=torch.uint8)
    assert turned(Attending(weights), images, masks).tolist() == pytest.approx([1.0, 16.0, 0.0])


def test_cls_attention_is_that_of_the_transformer_without_cls_itself():
    vit = ViT(patch=8, dim=32, depth=2, heads=2, grid=(4, 4), layer_scale=None)
    images = shapes(3).images
    found = cls_attention(vit, images)
    assert found.shape == (3, 2, 16)
    torch.testing.assert_close(found.sum(-1), torch.ones(3, 2))
    whole = vit.attention(images)[:, :, 0]
    torch.testing.assert_close(found[0, 1, 5] / found[0, 1, 3], whole[0, 1, 6] / whole[0, 1, 4])


def test_a_page_of_both_panels_in_equal_compute(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "TRAIN", 40)
    monkeypatch.setattr(background, "TEST", 20)
    page = background.run(tmp_path, Effort(steps=10, batch=16, seeds=2, say=lambda line: None))
    share, maps = page.panels
    local, alone = share.rows
    assert local["steps"] == 10 and local["seeds"] == 2
    compute = [row["steps"] * background.tokens(locals) for row, locals in ((local, background.LOCALS), (alone, 0))]
    assert compute[0] == pytest.approx(compute[1], rel=0.05)
    for row in (local, alone):
        assert len(row["best head by seed"]) == 2
        assert row["best head"] == pytest.approx(sum(row["best head by seed"]) / 2)
        assert f"{row['all heads']:.2f} (all heads)" in share.found
    assert all(f"in {row['shown, turned to']} of those shown ({row['setting']})" in maps.found for row in maps.rows)
    for panel in (share, maps):
        assert (tmp_path / f"{panel.name}.svg").stat().st_size > 1000


@pytest.mark.parametrize(("local", "told"), [(2.0, "to the object more than"), (1.1, "to the object no more than")])
def test_what_is_said_follows_the_figures(local, told):
    lit = (local, 0.5)

    def watched(label: str, end: float) -> background.Watched:
        scores = [{"step": step, "all heads": value, "best head": value} for step, value in ((0, 1.0), (9, end))]
        return background.Watched(label, 0, scores, 0.5, torch.rand(8, 8, 8), lit, 1.0)

    runs = [watched("with local crops", local), watched("global crops alone", 1.5)]
    found = background._share(runs).found
    assert f"alike: with local crops 0 of 1 ({local:.2f} and 0.50)" in found
    assert told in found and f"in {int(local > 1.5)} of 1 seeds" in found


def test_bright_objects_are_told_from_dark_ones():
    masks = torch.zeros(2, 24, 24)
    masks[:, 4:12, 4:12] = 1
    images = (100 + torch.tensor([50, -50])[:, None, None] * masks).byte().unsqueeze(1).expand(-1, 3, -1, -1)
    assert background.brighter(images, masks).tolist() == [True, False]
    rows = [{"setting": "a", "bright objects by seed": [2.0, 0.1], "dark objects by seed": [1.5, 3.0]}]
    assert background._lit(rows).endswith("a 1 of 2 (2.00 and 1.50; 0.10 and 3.00).")


def test_pictures_of_unknown_objects_are_refused(tmp_path):
    with pytest.raises(InputError, match="leave out --data"):
        background.run(tmp_path, Effort(data=("folder",)))

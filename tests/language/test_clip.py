"""CLIP's loss and scale, what a text's vector depends on, and that it learns."""

import math

import pytest
import torch
import torch.nn.functional as F

from negah.language import CLIP
from negah.nn.clip_resnet import ClipResNet
from negah.nn.text import TextTransformer
from negah.nn.vit import ViT
from negah.train import Batches, fit

END = 19


def model(seed: int = 0) -> CLIP:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vit = ViT(patch=8, dim=32, depth=1, heads=2, grid=(2, 2), pre_norm=True, layer_scale=None)
        return CLIP(vit, TextTransformer(vocabulary=20, length=8, dim=32, depth=2, heads=2), dim=16, end=END)


def pairs(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, END, (n, 8), generator=generator)
    ids[:, 5:] = END
    return torch.rand(n, 3, 16, 16, generator=generator), ids


def test_the_loss_is_the_mean_of_both_cross_entropies():
    clip, (images, ids) = model(), pairs()
    logits = clip.logits(images, ids)
    target = torch.arange(len(ids))
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    found = clip((images, ids))
    torch.testing.assert_close(found["loss"], expected)
    ours = torch.autograd.grad(found["loss"], list(clip.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(expected, list(clip.parameters()), allow_unused=True)
    for a, b in zip(ours, theirs):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_texts_that_mean_the_same_do_not_push_each_other_away():
    clip, (images, ids) = model(), pairs(4)
    ids = ids[[0, 0, 1, 2]]
    same = torch.tensor([0, 0, 1, 2])
    log = clip.logits(images, ids).log_softmax(1), clip.logits(images, ids).T.log_softmax(1)
    target = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    expected = -sum((target * side).sum(1).mean() for side in log) / 2
    torch.testing.assert_close(clip((images, ids, same))["loss"], expected)


def test_the_scale_stays_at_100_or_less():
    clip = model()
    assert clip.log_scale.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        clip.log_scale.fill_(9.0)
    clip.after_step(0.0)
    assert clip.log_scale.exp().item() == pytest.approx(100, rel=1e-6)


def test_a_text_is_what_stands_before_its_end():
    clip, (_, ids) = model().eval(), pairs()
    changed = ids.clone()
    changed[:, 6:] = 3  # behind the end
    torch.testing.assert_close(clip.texts(changed), clip.texts(ids))
    changed[:, 0] = (changed[:, 0] + 1) % END
    assert (clip.texts(changed) - clip.texts(ids)).abs().amax(1).min() > 1e-4
    torch.testing.assert_close(clip.texts(ids[:, :6]), clip.texts(ids))


def test_no_token_sees_a_later_one():
    text = TextTransformer(vocabulary=20, length=8, dim=32, depth=3, heads=2)
    ids = torch.randint(0, 20, (2, 8), generator=torch.Generator().manual_seed(1))
    for at in range(8):
        changed = ids.clone()
        changed[:, at] = (changed[:, at] + 7) % 20
        moved = (text(changed) - text(ids)).abs().amax((0, 2))
        assert (moved[:at] == 0).all() and (moved[at:] > 0).all()
    weights = text.blocks[0].attn.weights(text.tokens(ids))
    assert (weights.triu(1) == 0).all() and torch.allclose(weights.sum(-1), torch.ones(()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_is_causal_as_well(dtype):
    text = TextTransformer(vocabulary=20, length=8, dim=32, depth=1, heads=2).to(dtype).eval()
    ids = torch.randint(0, 20, (2, 8), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 20
    with torch.no_grad():
        assert torch.equal(text(changed)[:, :-1], text(ids)[:, :-1])


def test_it_learns_which_text_belongs_to_which_picture():
    clip, (images, ids) = model(), pairs(12)
    batches = Batches(list(zip(images, ids)), 12, seed=0)
    fit(clip, batches, steps=150, lr=3e-3)
    logits = clip.eval().logits(images, ids)
    target = torch.arange(12)
    assert (logits.argmax(1) == target).all() and (logits.argmax(0) == target).all()


def test_what_does_not_fit_is_named():
    clip, (images, ids) = model(), pairs()
    with pytest.raises(ValueError, match="text 2 has no end token"):
        clip.texts(torch.where(torch.arange(12)[:, None] == 2, 1, ids))
    with pytest.raises(ValueError, match="longer than the 8"):
        clip.texts(ids.repeat(1, 2))
    with pytest.raises(ValueError, match="end token 20"):
        CLIP(clip.image, clip.text, dim=16, end=20)
    resnet = ClipResNet(depths=(1, 1, 1, 1), width=8, size=64, dim=24)
    with pytest.raises(ValueError, match="dim 24 for a space of 16"):
        CLIP(resnet, clip.text, dim=16, end=END)
    with pytest.raises(ValueError, match="sees 64 px only"):
        resnet(images)
    loss = CLIP(resnet, clip.text, dim=24, end=END)((torch.rand(3, 3, 64, 64), ids[:3]))["loss"]
    assert math.isfinite(loss.item())

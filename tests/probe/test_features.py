"""Each image meets the backbone once; what is kept is found again, and never mistaken for something else."""

import numpy as np
import pytest
import torch

from negah.errors import OutputError, WeightsError
from negah.nn.vit import ViT
from negah.probe.features import cached_tokens, fit_to, model_key, turned


class Counting(ViT):
    """A tiny ViT that counts the images it was shown."""

    seen = 0

    def tokens(self, images):
        self.seen += len(images)
        return super().tokens(images)


def backbone(seed: int = 0) -> Counting:
    torch.manual_seed(seed)
    return Counting(patch=4, dim=8, depth=1, heads=2, grid=(2, 3)).eval()


def pictures(n: int, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, 8, 12), generator=g, dtype=torch.uint8) for _ in range(n)]


def test_tokens_are_the_backbones_in_any_order(tmp_path):
    vit, images = backbone(), pictures(7)
    cached = cached_tokens(vit, images, tmp_path, batch=3)
    with torch.no_grad():
        direct = vit.tokens(torch.stack(images)).half()
    assert len(cached) == 7 and cached[[0]].shape == (1, 7, 8)
    assert torch.allclose(cached[:], direct, atol=2e-3)
    order = torch.tensor([6, 0, 0, 3])
    assert torch.equal(cached[order], cached[:][order])
    assert torch.equal(torch.cat(list(cached.batches(2))), cached[:])


def test_no_image_is_computed_twice(tmp_path):
    vit, images = backbone(), pictures(6)
    cached_tokens(vit, [*images[:4], images[0]], tmp_path, batch=3)
    assert vit.seen == 4  # the repeated image waited in the same or was known from an earlier batch
    again = cached_tokens(vit, images[::-1], tmp_path)
    assert vit.seen == 6
    assert torch.equal(again[[5, 5]], cached_tokens(vit, images, tmp_path)[[0, 0]]) and vit.seen == 6


def test_other_weights_and_other_pixels_have_their_own_features(tmp_path):
    image = pictures(1)
    first, other = backbone(0), backbone(1)
    assert model_key(first) == model_key(backbone(0)) != model_key(other)
    a = cached_tokens(first, image, tmp_path)[:]
    b = cached_tokens(other, image, tmp_path)[:]
    c = cached_tokens(first, [turned(image[0], 4)], tmp_path)[:]
    assert other.seen == 1 and first.seen == 2 and not torch.allclose(a, b) and not torch.allclose(a, c)


def test_what_was_finished_before_a_stop_is_kept(tmp_path, monkeypatch):
    vit, images = backbone(), pictures(5)
    monkeypatch.setattr("negah.probe.features.SHARD_BYTES", 1)

    def interrupted():
        yield from images[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_tokens(vit, interrupted(), tmp_path, batch=2)
    assert vit.seen == 4
    (next(iter(tmp_path.iterdir())) / "0000.17.part").write_bytes(b"half a shard")  # left by a kill -9
    cached_tokens(vit, images, tmp_path)
    assert vit.seen == 5


def test_broken_features_and_broken_folders_are_named(tmp_path):
    vit, images = backbone(), pictures(1)
    cached_tokens(vit, images, tmp_path)
    shard = next(tmp_path.rglob("*.safetensors"))
    shard.write_bytes(b"rubbish")
    with pytest.raises(OutputError, match=f"{shard.name}.*delete it"):
        cached_tokens(vit, images, tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="another folder"):
        cached_tokens(vit, images, tmp_path / "file")
    torch.nn.init.constant_(vit.norm.bias, 1e6)
    with pytest.raises(WeightsError, match="not finite in half precision"):
        cached_tokens(vit, images, tmp_path)


def test_fit_to_keeps_the_scale_where_it_can():
    image = np.random.default_rng(0).integers(0, 256, (101, 99, 3), dtype=np.uint8)
    out = fit_to(image, 104, patch=8)
    assert out.shape == (3, 104, 104)
    assert np.array_equal(out[:, 1:102, 2:101].permute(1, 2, 0).numpy(), image)
    assert torch.equal(out[:, 0], out[:, 2]) and torch.equal(out[:, :, 1], out[:, :, 3])  # mirrored, not black
    assert np.array_equal(fit_to(image[:96, :96], 96, patch=8).permute(1, 2, 0).numpy(), image[:96, :96])


def test_fit_to_resizes_without_aliasing_what_it_must():
    stripes = np.zeros((256, 200, 3), np.uint8)
    stripes[::2] = 200
    small = fit_to(stripes, 64, patch=8)
    assert small.shape == (3, 64, 64) and small.float().std() < 20
    assert fit_to(stripes[:1, :1], 32, patch=16).shape == (3, 32, 32)


def test_views_are_the_eight_of_the_square():
    image = torch.arange(9).reshape(1, 3, 3)
    views = {tuple(turned(image, v).flatten().tolist()) for v in range(8)}
    assert len(views) == 8 and torch.equal(turned(image, 0), image)

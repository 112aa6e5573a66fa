"""CoCa equals open_clip's, and what public versions get wrong is looked for one by one."""

import json

import pytest
import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa as OpenCoca
from safetensors.torch import save_file
from torch import nn

from negah import language
from negah.errors import WeightsError
from negah.language import CoCa
from negah.language.coca import there
from negah.language.load import save
from negah.losses.contrast import contrast
from negah.nn.text import Past
from negah.nn.vit import ViT
from negah.train import Batches, fit

START, END, PAD, VOCABULARY, LENGTH = 18, 19, 0, 20, 8
POOLERS = ("cascade", "parallel", "shared")
TEXT = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 64, "heads": 1, "layers": 2}


def model(poolers: str = "cascade", seed: int = 0, **options) -> CoCa:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vit = ViT(patch=8, dim=32, depth=1, heads=2, grid=(2, 2), layer_scale=None)
        return CoCa(
            vit, dim=24, vocabulary=VOCABULARY, length=LENGTH, start=START, end=END, width=32, depth=2, heads=2,
            queries=6, pooler_heads=2, poolers=poolers, **options,
        ).eval()  # fmt: skip


def batch(n: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures, and texts of 1 to 6 words, of which none is 0."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((n, LENGTH), PAD)
    ids[:, 0] = START
    for row, count in zip(ids, torch.randint(1, LENGTH - 1, (n,), generator=generator).tolist()):
        row[1 : 1 + count] = torch.randint(1, START, (count,), generator=generator)
        row[1 + count] = END
    return torch.rand(n, 3, 4, 4, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3), ids


def of_open_clip(poolers: str, *, quick: bool, correct: bool, dim: int) -> tuple[OpenCoca, dict]:
    pool = True if poolers == "shared" else poolers
    vision = {"image_size": 16, "layers": 2, "width": 64, "patch_size": 8, "attentional_pool": pool,
              "attn_pooler_queries": 6, "attn_pooler_heads": 2, "output_tokens": True}  # fmt: skip
    text = TEXT | {"embed_cls": True, "output_tokens": True}
    config = {"embed_dim": dim, "vision_cfg": vision, "text_cfg": text, "multimodal_cfg": TEXT, "quick_gelu": quick}
    theirs = OpenCoca(**config)
    theirs.text.correct_cls_mask = correct  # which its configs cannot say
    generator = torch.Generator().manual_seed(0)
    for name, p in theirs.named_parameters():
        if p.ndim:
            norm = p.ndim == 1 and not name.endswith(("bias", "class_embedding", "cls_emb"))
            nn.init.normal_(p, mean=float(norm), std=0.1 if p.ndim == 1 else 0.05, generator=generator)
    return theirs.eval(), config


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("poolers", POOLERS)
def test_it_is_open_clips(tmp_path, poolers, correct):
    """open_clip's second half takes its picture's dim to be the text's width: 64."""
    theirs, config = of_open_clip(poolers, quick=correct, correct=correct, dim=64)
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    ours = language.load(tmp_path)
    assert ours.legacy
    ours.legacy = not correct
    images, ids = batch()
    with torch.no_grad():
        out = theirs((images - ours.image.mean) / ours.image.std, ids)
        vector, places = ours.look(images)
        text, words = ours.read(ids)
        logits = ours.output(ours.decoder(words, places))
        latent = theirs.encode_text(ids)
    assert (text[0] - text[1]).abs().max() > 1e-3 and (vector[0] - vector[1]).abs().max() > 1e-4
    assert (vector - out["image_features"].reshape(vector.shape)).abs().max() <= 1e-5
    assert (text - latent).abs().max() <= 1e-5
    mine = logits[:, : out["logits"].shape[1]]
    known = there(ids, END)[:, : mine.shape[1]]
    assert (mine - out["logits"])[known].abs().max() <= 1e-5  # behind the end nothing is asked for


def test_ours_come_back(tmp_path):
    for poolers in POOLERS:
        ours, (images, ids) = model(poolers, legacy=poolers == "shared"), batch()
        save(ours, tmp_path / "ours.safetensors", dtype=torch.float32)
        again = language.load(tmp_path / "ours.safetensors")
        assert torch.equal(again((images, ids))["loss"], ours((images, ids))["loss"])


def test_a_file_that_does_not_fit_is_named(tmp_path):
    theirs, _ = of_open_clip("shared", quick=False, correct=False, dim=64)
    state = {k: v.contiguous() for k, v in theirs.state_dict().items() if k != "text_decoder.cross_attn.1.ln_1_kv.bias"}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="of a CoCa; missing: text_decoder.cross_attn.1.ln_1_kv.bias"):
        language.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("poolers", POOLERS)
def test_the_loss_is_the_contrast_and_twice_the_caption(poolers):
    net, (images, ids) = model(poolers), batch()
    vector, places = net.look(images)
    text, words = net.read(ids)
    logs = net.output(net.decoder(words, places)).log_softmax(-1)
    ends = (ids == END).int().argmax(1)
    losses = [-logs[i, at, ids[i, at + 1]] for i in range(len(ids)) for at in range(int(ends[i]))]
    near = contrast(vector, text, temperature=1 / net.log_scale.exp(), symmetric=True)
    found = net((images, ids))
    torch.testing.assert_close(found["caption"], torch.stack(losses).mean())
    torch.testing.assert_close(found["loss"], near + 2 * torch.stack(losses).mean())


def test_padding_changes_nothing():
    net, (images, ids) = model(), batch()
    padded = ids.masked_fill(ids == PAD, 7)
    torch.testing.assert_close(net.texts(padded), net.texts(ids))
    torch.testing.assert_close(net((images, padded))["loss"], net((images, ids))["loss"])
    legacy = model(legacy=True)
    assert (legacy.texts(padded) - legacy.texts(ids)).abs().max() > 1e-5  # as published weights have it


def test_no_word_sees_a_later_one_or_the_token_at_the_end():
    net, (images, ids) = model(), batch()

    def logits(texts: torch.Tensor) -> torch.Tensor:
        _, words = net.read(texts)
        return net.output(net.decoder(words, net.look(images)[1]))

    before = logits(ids)
    for at in range(1, LENGTH):
        changed = ids.clone()
        changed[:, at] = (changed[:, at] + 5) % START
        moved = (logits(changed) - before).abs().amax((0, 2))
        assert (moved[:at] == 0).all() and moved[at] > 0
    with torch.no_grad():
        net.text.cls += 1
    assert torch.equal(logits(ids), before)


def test_the_first_half_sees_no_picture_and_the_second_does():
    net, (images, ids) = model(), batch()
    _, words = net.read(ids)
    first, second = (net.output(net.decoder(words, net.look(x)[1])) for x in (images, images.flip(0)))
    assert (first - second).abs().amax((1, 2)).min() > 1e-5


@pytest.mark.parametrize("poolers", POOLERS)
def test_all_that_is_learned_gets_a_gradient(poolers):
    net, (images, ids) = model(poolers), batch()
    net((images, ids))["loss"].backward()
    none = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert none == ["image.mask_token"]


def test_what_is_kept_is_what_would_be_computed():
    net, (images, ids) = model(), batch()
    places = net.look(images)[1]
    whole = net.output(net.decoder(net.read(ids)[1], places))
    for sizes in ((1,) * LENGTH, (3, 1, LENGTH - 4)):
        past, parts, first = Past(), [], 0
        for size in sizes:
            new = net.text.words(ids[:, first : first + size], past)
            parts.append(net.output(net.decoder(new, places, past=past)))
            first += size
        known = there(ids, END)
        torch.testing.assert_close(torch.cat(parts, 1)[known], whole[known], rtol=1e-5, atol=1e-6)


def test_the_scale_stays_at_100_or_less():
    net = model()
    with torch.no_grad():
        net.log_scale.fill_(9.0)
    net.after_step(0.0)
    assert net.log_scale.exp().item() == pytest.approx(100, rel=1e-6)


@pytest.fixture(scope="module")
def learnt() -> tuple[CoCa, torch.Tensor, torch.Tensor]:
    net, (images, ids) = model(seed=1), batch(12, seed=3)
    fit(net, Batches(list(zip(images, ids)), 12, seed=0), steps=200, lr=3e-3)
    return net.eval(), images, ids


@pytest.mark.parametrize("beams", [1, 3])
def test_it_learns_captions_by_heart_and_to_tell_pictures(learnt, beams):
    net, images, ids = learnt
    found = net.caption(images, most=LENGTH, beams=beams)
    for row, text in zip(found.tolist(), ids[:, 1:].tolist()):
        assert row[: row.index(END) + 1] == text[: text.index(END) + 1]
    cosines = F.normalize(net.images(images)) @ F.normalize(net.texts(ids)).T
    assert torch.equal(cosines.argmax(1), torch.arange(12))


def test_what_does_not_fit_is_named():
    net, (_, ids) = model(), batch()
    with pytest.raises(ValueError, match="longer than the 8"):
        net.texts(ids.repeat(1, 2))

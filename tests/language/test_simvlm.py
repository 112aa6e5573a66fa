"""What public versions of SimVLM get wrong, looked for one by one; and that it learns captions by heart."""

import pytest
import torch
import torch.nn.functional as F

from negah.language.simvlm import SimVLM
from negah.nn.resnet import ResNet
from negah.nn.text import Past
from negah.train import Batches, fit

START, END, PAD, VOCABULARY, LENGTH = 0, 1, 2, 20, 9


def model(seed: int = 0, depth: int = 2) -> SimVLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stem = ResNet(widths=(8, 16, 32), depths=(1, 1, 1), stem="cifar")
        return SimVLM(
            stem, places=16, vocabulary=VOCABULARY, length=LENGTH, start=START, end=END, dim=32, depth=depth, heads=2
        ).eval()


def batch(n: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures, texts of 3 to 7 words, and how many words each has."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((n, LENGTH), PAD)
    ids[:, 0] = START
    counts = torch.randint(3, LENGTH - 1, (n,), generator=generator)
    for row, count in zip(ids, counts):
        row[1 : 1 + count] = torch.randint(3, VOCABULARY, (int(count),), generator=generator)
        row[1 + count] = END
    return torch.rand(n, 3, 4, 4, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3), ids, counts


def logits_of(net: SimVLM, images: torch.Tensor, ids: torch.Tensor, prefix: int) -> torch.Tensor:
    """Of the words behind a prefix: row k is of what follows word prefix + k."""
    count = torch.full((len(ids),), prefix)
    memory, seen = net.read(images, ids[:, 1:], count)
    written = torch.cat([torch.full((len(ids), 1), START), ids[:, prefix + 1 :]], 1)
    return net.write(written, count, memory, seen)


@pytest.mark.parametrize("prefix", [0, 2])
def test_no_word_sees_a_later_one(prefix):
    net, (images, ids, _) = model(), batch()
    before = logits_of(net, images, ids, prefix)
    for at in range(prefix + 1, LENGTH):
        changed = ids.clone()
        changed[:, at] = (changed[:, at] + 5) % VOCABULARY
        moved = (logits_of(net, images, changed, prefix) - before).abs().amax((0, 2))
        assert (moved[: at - prefix] == 0).all()  # those that are written before this word is read
        assert (moved[at - prefix :] > 0).all()


def test_the_prefix_is_read_in_both_directions():
    net, (images, ids, _) = model(), batch()
    count = torch.full((len(ids),), 3)
    before, seen = net.read(images, ids[:, 1:], count)
    changed = ids.clone()
    changed[:, 3] = (changed[:, 3] + 5) % VOCABULARY  # the last word of the prefix
    after, _ = net.read(images, changed[:, 1:], count)
    assert ((after - before).abs().amax(2)[seen] > 0).all()  # moves every patch, and the words before it
    assert seen.sum(1).tolist() == [16 + 3] * len(ids)


def test_each_text_has_its_own_prefix():
    """A batch of several lengths is what its texts are alone, and words behind a prefix are not in the memory."""
    net, (images, ids, words) = model(), batch()
    count = torch.tensor([0, 1, 2, 3, 1, 2])
    alone = [net((images[i : i + 1], ids[i : i + 1], count[i : i + 1]))["loss"] for i in range(6)]
    targets = words + 1 - count
    expected = (torch.stack(alone) * targets).sum() / targets.sum()
    torch.testing.assert_close(net((images, ids, count))["loss"], expected)
    changed = ids.clone()
    changed[:, 4:] = 7
    for a, b in zip(net.read(images, ids[:, 1:], count), net.read(images, changed[:, 1:], count)):
        there = net.read(images, ids[:, 1:], count)[1]
        assert torch.equal(a[there], b[there])


def test_the_loss_is_that_of_the_words_behind_the_prefix_and_of_the_end():
    net, (images, ids, words) = model(), batch()
    for prefix in (0, 2):
        logits = logits_of(net, images, ids, prefix).log_softmax(-1)
        losses = [
            -logits[i, at - prefix, ids[i, at + 1]] for i in range(len(ids)) for at in range(prefix, int(words[i]) + 1)
        ]
        found = net((images, ids, torch.full((6,), prefix)))["loss"]
        torch.testing.assert_close(found, torch.stack(losses).mean())
    padded = ids.clone()
    padded[ids == PAD] = 5
    torch.testing.assert_close(net((images, padded, torch.zeros(6).long()))["loss"],
                               net((images, ids, torch.zeros(6).long()))["loss"])  # fmt: skip


def test_prefixes_are_drawn_from_none_to_all_words():
    net, (images, ids, words) = model(), batch(64)
    seen = []
    net.read, read = lambda i, w, count: (seen.append(count), read(i, w, count))[1], net.read
    for seed in range(8):
        torch.manual_seed(seed)
        net((images, ids))
    counts = torch.stack(seen)
    assert counts.min() == 0 and (counts <= words).all() and (counts.amax(0) >= words - 1).float().mean() > 0.8


def test_all_that_is_learned_gets_a_gradient():
    net, (images, ids, _) = model(), batch()
    for name, p in net.stem.named_parameters():
        if name.endswith("bn2.weight"):
            torch.nn.init.ones_(p)  # zero at first, so that what lies behind it would have no gradient
    net((images, ids, torch.full((6,), 2)))["loss"].backward()
    none = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not none
    start = F.cross_entropy(torch.zeros(1, VOCABULARY), torch.tensor([3]))
    assert abs(net((images, ids))["loss"] - start) < 0.5  # an untrained model knows nothing, and no more


def test_what_is_kept_is_what_would_be_computed():
    net, (images, ids, _) = model(), batch()
    whole = logits_of(net, images, ids, 1)
    count = torch.ones(6, dtype=torch.long)
    memory, seen = net.read(images, ids[:, 1:], count)
    written = torch.cat([torch.full((6, 1), START), ids[:, 2:]], 1)
    for sizes in ((1,) * written.shape[1], (3, 1, written.shape[1] - 4)):
        past, parts, first = Past(), [], 0
        for size in sizes:
            parts.append(net.write(written[:, first : first + size], count + past.length, memory, seen, past))
            first += size
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def learnt() -> tuple[SimVLM, torch.Tensor, torch.Tensor]:
    net = model(depth=1)
    images, ids, _ = batch(32, seed=3)
    fit(net, Batches(list(zip(images, ids)), 32, seed=0), steps=600, lr=3e-3)
    return net.eval(), images, ids


def until_end(row: torch.Tensor) -> list[int]:
    return row.tolist()[: row.tolist().index(END) + 1]


@pytest.mark.parametrize("beams", [1, 3])
def test_it_learns_32_captions_by_heart(learnt, beams):
    net, images, ids = learnt
    found = net.caption(images, most=LENGTH, beams=beams)
    assert [until_end(row) for row in found] == [until_end(row[1:]) for row in ids]


def test_it_goes_on_from_given_words(learnt):
    net, images, ids = learnt
    found = net.caption(images, ids[:, 1:3], most=LENGTH)
    assert [until_end(row) for row in found] == [until_end(row[3:]) for row in ids]


def test_pictures_of_another_size_are_named():
    with pytest.raises(ValueError, match="64 places: this model reads 16"):
        model().caption(torch.rand(1, 3, 32, 32), most=3)

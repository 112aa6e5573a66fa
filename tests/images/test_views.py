import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as peer

from negah.images import views as module
from negah.images.colour import blur, brighten, contrast, luminance, saturate, turn_hue
from negah.images.views import (
    View,
    Views,
    aerial,
    byol,
    crop,
    dino,
    dinov2,
    draw,
    moco_v1,
    moco_v2,
    resizing,
    simclr,
    simclr_cifar,
    unblurred,
    views,
)

WHOLE = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Soft blobs with some noise, so that neighbours resemble each other as in a picture."""
    coarse = torch.rand(batch, 3, 6, 6, generator=seeded(seed))
    soft = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1) * 240
    return (soft + 15 * torch.rand(soft.shape, generator=seeded(seed + 1))).to(torch.uint8)


# Crops


@pytest.mark.parametrize("shape, scale", [((64, 64), (0.08, 1.0)), ((40, 120), (0.4, 1.0)), ((300, 60), (0.9, 1.0))])
def test_crops_are_distributed_as_torchvisions(shape, scale):
    n = 3000  # the last shape takes the fallback in every case
    ours = draw(n, shape, View(8, scale=scale), generator=seeded()).boxes.double()
    torch.manual_seed(0)
    image = torch.empty(3, *shape)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [*scale], [3 / 4, 4 / 3]) for _ in range(n)]).double()
    for measured in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: (b[:, 3] / b[:, 2]).log(),
        lambda b: b[:, 0],
        lambda b: b[:, 1],
    ):
        a, b = measured(ours).sort().values, measured(theirs).sort().values
        points = torch.cat([a, b])  # Kolmogorov-Smirnov; 1.95 sqrt(2 / n) is exceeded once in a thousand times
        distance = (
            torch.searchsorted(a, points, right=True) - torch.searchsorted(b, points, right=True)
        ).abs().max() / n
        assert distance < 1.95 * (2 / n) ** 0.5
    inside = ours[:, :2] + ours[:, 2:]
    assert (ours[:, :2] >= 0).all() and (inside <= torch.tensor(shape)).all() and (ours[:, 2:] > 0).all()


def test_the_plain_view_is_the_resized_picture():
    images = pictures(3, 50, 50)
    for size in (20, 50, 77):
        (view,) = views(images, [View(size, **WHOLE)], generator=seeded())
        expected = F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True).clamp(0, 255) / 255
        assert view.dtype == torch.float32
        torch.testing.assert_close(view, expected, rtol=0, atol=1.5 / 255)  # rounded after each axis


def test_shrinking_averages():
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    images = board.to(torch.uint8).expand(1, 3, 64, 64)
    (view,) = views(images, [View(16, **WHOLE)], generator=seeded())
    assert (view[..., 2:-2, 2:-2] - 0.5).abs().max() < 0.02


def test_matrices_resize_like_the_kernel_for_bytes():
    # What runs on accelerators, held against what runs on CPUs.
    images = pictures(6, 40, 56)
    boxes = torch.tensor(
        [[0, 0, 40, 56], [3, 5, 9, 14], [10, 0, 30, 20], [39, 55, 1, 1], [0, 50, 40, 6], [5, 5, 16, 16]]
    )
    for size in (8, 16, 33):
        down, across = resizing(40, boxes[:, 0], boxes[:, 2], size), resizing(56, boxes[:, 1], boxes[:, 3], size)
        found = (down[:, None] @ images.float() @ across[:, None].mT).clamp(0, 255)
        for i, (top, left, height, width) in enumerate(boxes.tolist()):
            part = images[i : i + 1, :, top : top + height, left : left + width].float()
            expected = F.interpolate(part, size=(size, size), mode="bicubic", antialias=True).clamp(0, 255)
            torch.testing.assert_close(found[i : i + 1], expected, rtol=0, atol=1e-2)
        torch.testing.assert_close(
            crop(images, boxes, size).float(), found, rtol=0, atol=1.5
        )  # rounded after each axis


def test_flips_and_turns_make_all_eight_lays_of_a_square():
    image = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2).expand(1, 3, 2, 2).repeat(400, 1, 1, 1) * 80
    (view,) = views(image, [View(2, scale=(1, 1), ratio=(1, 1), turns=True)], generator=seeded())
    lays, counts = (view[:, 0].flatten(1) * 255 / 80).round().unique(dim=0, return_counts=True)
    assert len(lays) == 8 and counts.min() > 25
    (view,) = views(image, [View(2, **{**WHOLE, "flip": 0.5})], generator=seeded())
    assert {tuple(row) for row in (view[:, 0].flatten(1) * 255 / 80).round().int().tolist()} == {
        (0, 1, 2, 3),
        (1, 0, 3, 2),
    }


# Colours


@pytest.mark.parametrize(
    "ours, theirs, factors",
    [
        (brighten, peer.adjust_brightness, [0.0, 0.4, 1.0, 1.8]),
        (contrast, peer.adjust_contrast, [0.0, 0.4, 1.0, 1.8]),
        (saturate, peer.adjust_saturation, [0.0, 0.4, 1.0, 1.8]),
        (turn_hue, peer.adjust_hue, [-0.5, -0.1, 0.0, 0.3]),
    ],
)
def test_colours_are_torchvisions(ours, theirs, factors):
    x = torch.rand(len(factors), 3, 16, 16, generator=seeded())
    x[:, :, :4] = x[:, :1, :4]  # grey, where a hue means nothing
    x[:, :, 4] = 0
    x[:, :, 5] = 1
    before = x.clone()
    found = ours(x, torch.tensor(factors))
    assert torch.equal(x, before)
    for i, factor in enumerate(factors):
        torch.testing.assert_close(found[i], theirs(x[i], factor), rtol=0, atol=3e-6)


def test_grey_and_solarise_are_torchvisions():
    images = pictures(4, 24, 24)
    (grey,) = views(images, [View(24, **WHOLE, grey=1.0)], generator=seeded())
    torch.testing.assert_close(grey, peer.rgb_to_grayscale(images / 255, num_output_channels=3))
    torch.testing.assert_close(luminance(images / 255), grey[:, :1])
    (solar,) = views(images, [View(24, **WHOLE, solarise=1.0)], generator=seeded())
    torch.testing.assert_close(solar, peer.solarize(images / 255, 0.5))


def test_blur_is_torchvisions_with_a_sigma_for_each_image():
    x, sigma = torch.rand(3, 3, 20, 31, generator=seeded()), [0.1, 0.9, 2.0]
    found = blur(x, torch.tensor(sigma), reach=6)
    for i, s in enumerate(sigma):
        torch.testing.assert_close(found[i], peer.gaussian_blur(x[i], [13, 13], [s, s]), rtol=0, atol=1e-5)
    assert blur(x[..., :4, :4], torch.tensor(sigma), reach=6).shape == (3, 3, 4, 4)  # smaller than the kernel


def test_jitter_takes_the_drawn_factors_in_the_drawn_order():
    view = View(12, **WHOLE, jitter=0.7, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    images = pictures(40, 12, 12)
    drawn = draw(40, (12, 12), view, generator=seeded())
    (found,) = views(images, [view], generator=seeded())
    steps = (peer.adjust_brightness, peer.adjust_contrast, peer.adjust_saturation, peer.adjust_hue)
    assert 15 < drawn.jitter.sum() < 40 and len(drawn.order.unique(dim=0)) > 10
    for i in range(40):
        expected = images[i] / 255
        for k in drawn.order[i].tolist() if drawn.jitter[i] else ():
            expected = steps[k](expected, float(drawn.factors[i, k]))
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-5)


def test_factors_and_probabilities_are_those_asked_for():
    view = View(
        8, jitter=0.8, brightness=0.4, contrast=1.5, hue=0.1, grey=0.2, blur=0.5, solarise=0.1, sigma=(0.5, 1.0)
    )
    drawn = draw(4000, (20, 20), view, generator=seeded())
    lows, highs = drawn.factors.amin(0), drawn.factors.amax(0)
    torch.testing.assert_close(lows, torch.tensor([0.6, 0.0, 1.0, -0.1]), rtol=0, atol=0.01)
    torch.testing.assert_close(highs, torch.tensor([1.4, 2.5, 1.0, 0.1]), rtol=0, atol=0.01)
    for name in ("jitter", "grey", "blur", "solarise", "flip"):
        assert abs(getattr(drawn, name).float().mean() - getattr(view, name)) < 0.03
    assert 0.5 <= drawn.sigma.min() < 0.51 and 0.99 < drawn.sigma.max() <= 1.0
    assert (drawn.turns == 0).all()


# The whole


def test_a_seed_gives_the_same_bits_and_leaves_the_global_generator_alone():
    images, before = pictures(5, 40, 30), torch.get_rng_state()
    recipe = aerial(dino(24, 12, locals=2))
    first, again = (views(images, recipe, generator=seeded(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[0], views(images, recipe, generator=seeded(4))[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert [tuple(x.shape) for x in first] == [(5, 3, 24, 24)] * 2 + [(5, 3, 12, 12)] * 2
    assert all(0 <= x.min() and x.max() <= 1 for x in first)


def test_an_image_is_seen_the_same_whatever_the_others_show(monkeypatch):
    images, others = pictures(6, 30, 30), pictures(6, 30, 30, seed=9)
    others[2] = images[2]
    recipe = byol(16)
    whole = views(images, recipe, generator=seeded())
    mixed = views(others, recipe, generator=seeded())
    monkeypatch.setattr(module, "CHUNK", 1)  # one image at a time
    apart = views(images, recipe, generator=seeded())
    for a, b, c in zip(whole, mixed, apart):
        torch.testing.assert_close(a[2], b[2], rtol=0, atol=0)
        torch.testing.assert_close(a, c, rtol=0, atol=1e-6)


def test_views_stay_on_the_device_of_the_images():
    images = torch.empty(4, 3, 20, 20, dtype=torch.uint8, device="meta")  # has no values, and so needs no accelerator
    found = views(images, aerial(dino(16, 8, locals=1)), generator=seeded())
    assert [(x.device.type, tuple(x.shape), x.dtype) for x in found] == [
        ("meta", (4, 3, side, side), torch.float32) for side in (16, 16, 8)
    ]


def test_images_are_left_as_they_were():
    images = pictures(3, 16, 16)
    before = images.clone()
    views(images, [View(16, **WHOLE, jitter=1, brightness=0.9, solarise=1)], generator=seeded())
    assert torch.equal(images, before)


def test_views_collate_and_travel_to_workers():
    images = pictures(4, 20, 20)
    collate = pickle.loads(pickle.dumps(Views(tuple(simclr_cifar(8)))))  # noqa: S301
    found = collate(list(images), seeded(1))
    assert all(torch.equal(a, b) for a, b in zip(found, views(images, simclr_cifar(8), generator=seeded(1))))


def test_recipes_are_those_of_the_papers():
    colours = ("jitter", "brightness", "contrast", "saturation", "hue", "grey", "blur", "solarise")

    def of(view: View) -> tuple:
        return view.scale, *(round(getattr(view, name), 6) for name in colours)

    assert [of(v) for v in simclr()] == [((0.08, 1), 0.8, 0.8, 0.8, 0.8, 0.2, 0.2, 0.5, 0)] * 2
    assert [of(v) for v in simclr_cifar()] == [((0.08, 1), 0.8, 0.4, 0.4, 0.4, 0.1, 0.2, 0, 0)] * 2
    assert [of(v) for v in moco_v1()] == [((0.2, 1), 1, 0.4, 0.4, 0.4, 0.4, 0.2, 0, 0)] * 2
    assert [of(v) for v in moco_v2()] == [((0.2, 1), 0.8, 0.4, 0.4, 0.4, 0.1, 0.2, 0.5, 0)] * 2
    first, second = byol()
    assert of(first) == ((0.08, 1), 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 1, 0)
    assert of(second) == ((0.08, 1), 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 0.1, 0.2)
    for recipe, parting, local in ((dino(), 0.4, 96), (dinov2(), 0.32, 98)):
        assert [v.size for v in recipe] == [224] * 2 + [local] * 8
        assert [v.scale for v in recipe] == [(parting, 1)] * 2 + [(0.05, parting)] * 8
        assert [(v.blur, v.solarise) for v in recipe] == [(1, 0), (0.1, 0.2)] + [(0.5, 0)] * 8
        assert all(of(v)[1:7] == of(first)[1:7] for v in recipe)
    assert not any(v.blur for v in unblurred(dino()))
    seen = aerial(dinov2())
    assert all(v.turns for v in seen)
    assert [v.scale for v in seen] == [(0.4, 1)] * 2 + [(0.4 * 0.32, 0.32)] * 8


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"scale": (0.5, 0.2)}, {"ratio": (0, 1)}, {"blur": 1.5}, {"hue": 0.6}, {"contrast": -1}]
)
def test_views_that_cannot_be_drawn_are_refused(wrong):
    with pytest.raises(ValueError):
        replace(View(8), **wrong)

import torch

from negah.images.augment import move, recolour
from negah.images.paste import paste_panels


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_mask_moves_with_its_picture():
    masks = torch.zeros(16, 1, 40, 40)
    masks[:, :, 8:20, 12:30] = 1
    images = (masks.expand(-1, 3, -1, -1) * 255).to(torch.uint8)
    moved, moved_masks = move(images, masks, size=40, generator=generator(), zoom=(0.7, 1.4), turn_deg=30, shift=0.1)
    assert torch.allclose(moved, moved_masks.expand(-1, 3, -1, -1), atol=1e-5)
    assert not torch.equal(moved_masks[0], moved_masks[1])


def test_without_zoom_turn_and_shift_only_the_eight_ways_up_are_left():
    picture = torch.randint(0, 256, (1, 3, 12, 12), dtype=torch.uint8, generator=generator())
    views, _ = move(
        picture.expand(200, -1, -1, -1), torch.zeros(200, 1, 12, 12), size=12, generator=generator(1),
        zoom=(1, 1), turn_deg=0, shift=0,
    )  # fmt: skip
    eight = [torch.rot90(p, k, (1, 2)) for p in (picture[0], picture[0].flip(2)) for k in range(4)]
    found = {next(i for i, e in enumerate(eight) if torch.allclose(v, e / 255, atol=1e-4)) for v in views}
    assert found == set(range(8))


def test_a_share_of_the_views_is_not_resampled():
    picture = torch.randint(0, 256, (1, 3, 12, 12), dtype=torch.uint8, generator=generator())
    views, _ = move(
        picture.expand(400, -1, -1, -1), torch.zeros(400, 1, 12, 12), size=12, generator=generator(1), exact=0.75
    )
    eight = [torch.rot90(p, k, (1, 2)) / 255 for p in (picture[0], picture[0].flip(2)) for k in range(4)]
    kept = sum(any(torch.allclose(v, e, atol=1e-4) for e in eight) for v in views)
    assert 0.68 < kept / 400 < 0.82


def test_strength_scales_how_far_colours_go():
    images = torch.rand(64, 3, 16, 16, generator=generator())
    assert torch.allclose(recolour(images, generator=generator(1), strength=0), images, atol=1e-3)
    changes = [(recolour(images, generator=generator(1), strength=s) - images).abs().mean() for s in (0.2, 0.5, 1.0)]
    assert changes[0] < changes[1] < changes[2]


def test_zoom_changes_the_area_by_its_square():
    masks = torch.zeros(4, 1, 64, 64)
    masks[:, :, 24:40, 24:40] = 1
    images = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    _, moved = move(images, masks, size=64, generator=generator(), zoom=(1.5, 1.5), turn_deg=20, shift=0)
    assert torch.allclose(moved.sum((1, 2, 3)), torch.full((4,), 256 * 1.5**2), rtol=0.02)


def test_views_come_from_the_generator_alone():
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=generator())
    masks = torch.zeros(3, 1, 16, 16)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = recolour(move(images, masks, size=16, generator=generator(5))[0], generator=generator(6))
    second = recolour(move(images, masks, size=16, generator=generator(5))[0], generator=generator(6))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.min() >= 0 and first.max() <= 1


def test_every_picture_gets_panels_and_only_masked_or_decoy_pixels_change():
    images = torch.rand(8, 3, 64, 64, generator=generator())
    pasted, masks = paste_panels(images, gsd_m=0.3, generator=generator(1), decoys=0)
    assert pasted.shape == images.shape and masks.shape == (8, 1, 64, 64)
    assert (masks.sum((1, 2, 3)) > 5).all()
    outside = (masks == 0).expand_as(images)
    assert torch.equal(pasted[outside], images[outside])
    assert not torch.allclose(pasted[~outside], images[~outside])


def test_panels_have_the_size_of_modules_at_any_ground_sampling_distance():
    blank = torch.full((300, 3, 80, 80), 0.5)
    areas = []
    for gsd in (0.25, 0.5):
        _, masks = paste_panels(blank, gsd_m=gsd, generator=generator(2), arrays=1, decoys=0)
        areas.append(masks.sum((1, 2, 3)).median() * gsd**2)
    assert areas[0] > 3  # at least two modules of 1.65 m2
    assert torch.isclose(areas[0], areas[1], rtol=0.35)  # arrays cut by the smaller picture's border lose some


def test_decoys_are_not_panels():
    images = torch.rand(6, 3, 48, 48, generator=generator())
    pasted, masks = paste_panels(images, gsd_m=0.3, generator=generator(3), arrays=0, decoys=3)
    assert masks.sum() == 0
    assert not torch.equal(pasted, images)

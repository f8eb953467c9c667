import math

import pytest
import torch
from kornia.geometry import transform as kornia

from wspnb.augment import augment, jitter, sample_affine, to_unit, warp

OFF = {"p_flip": 0.0, "p_crop": 0.0, "p_rotate": 0.0, "p_translate": 0.0}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def smooth_images(n, height=40, width=48, seed=0):
    """Images without fine detail, (n, 1, h, w) in [0, 1]."""
    noise = torch.rand(n, 1, height, width, generator=seeded(seed))
    return torch.nn.functional.avg_pool2d(noise, 5, 1, 2)


def homogeneous(affine):
    row = torch.tensor([0.0, 0.0, 1.0], dtype=affine.dtype).expand(len(affine), 1, 3)
    return torch.cat([affine, row], 1)


def test_identity_is_exact():
    images = torch.randint(256, (5, 1, 40, 48), dtype=torch.uint8, generator=seeded(0))
    views = augment(images, seeded(1), **OFF)
    assert views.dtype == torch.float32
    assert torch.equal(views, images.float() / 255)
    assert torch.equal(augment(images.float() / 255, seeded(1), **OFF), images.float() / 255)


def test_flips_equal_torch_flip():
    images = torch.rand(64, 2, 17, 24, generator=seeded(0))
    only = {**OFF, "p_flip": 0.5}
    views, affine = augment(images, seeded(1), **only), sample_affine(64, 17, 24, seeded(1), **only)
    seen = set()
    for image, view, matrix in zip(images, views, affine, strict=True):
        flips = (matrix[0, 0].item(), matrix[1, 1].item())
        dims = [dim for dim, sign in zip((2, 1), flips, strict=True) if sign < 0]
        torch.testing.assert_close(view, image.flip(dims), rtol=0, atol=2e-5)
        seen.add(flips)
    assert seen == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_rotation_equals_kornia():
    images = smooth_images(32)
    only = {**OFF, "p_rotate": 1.0, "degrees": 40.0}
    affine = sample_affine(32, 40, 48, seeded(2), **only)
    degrees = torch.rad2deg(torch.atan2(affine[:, 0, 1], affine[:, 0, 0]))
    assert degrees.abs().max() > 30 and degrees.min() < -20 < 20 < degrees.max()
    expected = kornia.rotate(images, degrees)
    torch.testing.assert_close(augment(images, seeded(2), **only), expected, rtol=0, atol=1e-5)


def test_quarter_turn_is_anticlockwise():
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 8] = 1  # right of the centre
    only = {**OFF, "p_rotate": 1.0, "degrees": 1.0}
    angle = torch.atan2(*sample_affine(1, 9, 9, seeded(0), **only)[0, 0, [1, 0]])
    view = augment(image, seeded(0), **{**only, "degrees": 90 / torch.rad2deg(angle).abs().item()})
    row = 0 if angle > 0 else 8
    assert view[0, 0, row, 4].item() == pytest.approx(1, abs=1e-4)


def test_crop_equals_kornia_resized_crop():
    height, width, images = 40, 48, smooth_images(32)
    only = {**OFF, "p_crop": 1.0}
    affine = sample_affine(32, height, width, seeded(3), **only)
    # The box that the map spreads over the image, by its corners.
    x, y = width - 1, height - 1
    corner = torch.tensor([[0, 0, 1], [x, 0, 1], [x, y, 1], [0, y, 1.0]])
    boxes = (homogeneous(affine).inverse() @ corner.T).mT[:, :, :2]  # (32, 4, 2)
    assert boxes.min() >= -1e-4
    assert boxes[..., 0].max() <= x + 1e-4 and boxes[..., 1].max() <= y + 1e-4
    expected = kornia.crop_and_resize(images, boxes, (height, width))
    torch.testing.assert_close(augment(images, seeded(3), **only), expected, rtol=0, atol=2e-5)


def test_translation_equals_kornia():
    images = smooth_images(32)
    only = {**OFF, "p_translate": 1.0, "translate": 0.2}
    shift = sample_affine(32, 40, 48, seeded(4), **only)[:, :, 2]
    expected = kornia.translate(images, shift)
    torch.testing.assert_close(augment(images, seeded(4), **only), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_map_is_the_product_of_the_steps(seed):
    # Every call draws the same numbers, so each step can be had alone.
    def step(**on):
        return homogeneous(sample_affine(50, 40, 48, seeded(seed), **{**OFF, **on}).double())

    flip, crop, turn = step(p_flip=0.5), step(p_crop=0.5), step(p_rotate=0.5)
    move = step(p_translate=0.5, translate=0.2)
    whole = homogeneous(sample_affine(50, 40, 48, seeded(seed), translate=0.2).double())
    torch.testing.assert_close(whole, turn @ move @ crop @ flip, rtol=0, atol=5e-5)
    without = homogeneous(sample_affine(50, 40, 48, seeded(seed)).double())
    torch.testing.assert_close(without, turn @ crop @ flip, rtol=0, atol=5e-5)


def test_ranges_and_probabilities():
    n = 40_000

    def draw(**on):
        return sample_affine(n, 161, 161, seeded(5), **{**OFF, **on}).double()

    def share(affine):
        return (affine - torch.eye(2, 3)).abs().amax((1, 2)).gt(1e-6).double().mean().item()

    flips = draw(p_flip=0.5)
    both = torch.stack([flips[:, 0, 0] < 0, flips[:, 1, 1] < 0]).double()
    assert both.mean(1).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    assert (both[0] * both[1]).mean().item() == pytest.approx(0.25, abs=0.01)

    turn = draw(p_rotate=0.5)
    assert share(turn) == pytest.approx(0.5, abs=0.01)
    angle = torch.rad2deg(torch.atan2(turn[:, 0, 1], turn[:, 0, 0]))
    angle = angle[angle != 0]
    assert angle.abs().max().item() == pytest.approx(30, abs=0.01)
    assert angle.mean().item() == pytest.approx(0, abs=0.5)
    assert angle.std().item() == pytest.approx(60 / math.sqrt(12), rel=0.01)

    crop = draw(p_crop=0.5)
    assert share(crop) == pytest.approx(0.5, abs=0.01)
    crop = crop[crop[:, 0, 0] != 1]
    area = 1 / (crop[:, 0, 0] * crop[:, 1, 1])
    torch.testing.assert_close(area, torch.full_like(area, 0.7), rtol=1e-5, atol=0)
    ratio = (crop[:, 1, 1] / crop[:, 0, 0]).log()
    assert ratio.min().item() == pytest.approx(math.log(3 / 4), abs=1e-3)
    assert ratio.max().item() == pytest.approx(math.log(4 / 3), abs=1e-3)
    assert ratio.mean().item() == pytest.approx(0, abs=5e-3)
    left = -crop[:, :, 2] / crop[:, [0, 1], [0, 1]] / 160  # corner of the box, share of the image
    room = 1 - 1 / crop[:, [0, 1], [0, 1]]
    assert (left / room).mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    assert -1e-5 < (left / room).min() and (left / room).max() < 1 + 1e-5

    move = draw(p_translate=0.5, translate=0.2)
    assert share(move) == pytest.approx(0.5, abs=0.01)
    assert move[:, :, 2].abs().amax(0).tolist() == pytest.approx([0.2 * 161] * 2, rel=1e-3)


def test_translation_is_off_by_default():
    default = sample_affine(500, 40, 48, seeded(0), p_crop=0, p_rotate=0)
    corner = default[:, :, 2]
    assert all(x in (0, 47) and y in (0, 39) for x, y in corner.tolist())


def test_seed_decides_and_global_generator_is_untouched():
    images = smooth_images(8)
    state = torch.get_rng_state()
    first, again, other = (augment(images, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    generator = seeded(1)
    assert torch.equal(augment(images, generator), first)
    assert not torch.equal(augment(images, generator), first)


def test_values_stay_in_the_window_and_air_outside():
    bright = torch.full((64, 1, 40, 48), 255, dtype=torch.uint8)
    views = augment(bright, seeded(0))
    assert views.min() == 0 and views.max() <= 1 + 1e-6
    # Nothing outside without rotation.
    inside = augment(bright, seeded(0), p_rotate=0.0)
    torch.testing.assert_close(inside, torch.ones_like(inside), rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_memory_format_shape_and_autocast(channels):
    images = torch.rand(4, channels, 20, 24, generator=seeded(0))
    expected = augment(images, seeded(1))
    last = augment(images.contiguous(memory_format=torch.channels_last), seeded(1))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-6)
    assert channels == 1 or not expected.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(images, seeded(1)), expected)
    assert augment(images[:0]).shape == (0, channels, 20, 24)


def test_one_interpolation_is_sharper_than_two():
    stripes = (1 + torch.sin(torch.arange(120) * 2 * math.pi / 5)) / 2
    images, middle = stripes.expand(1, 1, 120, 120), (..., slice(40, 80), slice(40, 80))
    turn = dict(p_flip=0.0, p_crop=0.0, p_rotate=1.0)
    crop = dict(p_flip=0.0, p_crop=1.0, p_rotate=0.0)
    both = dict(p_flip=0.0, p_crop=1.0, p_rotate=1.0)
    ratios = []
    for seed in range(10):
        generators = [torch.Generator().manual_seed(seed) for _ in range(3)]
        once = augment(images, generators[0], **both)[middle]
        twice = augment(augment(images, generators[1], **crop), generators[2], **turn)[middle]
        assert (once - twice).abs().mean() < 0.12  # the same view, but for the blur
        ratios.append(float(once.std() / twice.std()))
    assert min(ratios) > 1.02 and sum(ratios) / 10 > 1.1


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 40, 48), (3, 65, 33)])
def test_warp_equals_kornia(channels, height, width):
    images = torch.rand(50, channels, height, width, generator=seeded(0))
    affine = sample_affine(50, height, width, seeded(1), translate=0.2)
    expected = kornia.warp_affine(images, affine, (height, width))
    torch.testing.assert_close(warp(images, affine), expected, rtol=0, atol=1e-6)
    assert (expected - images).abs().mean() > 0.01


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"expected \(b, c, h, w\)"):
        augment(torch.rand(4, 20, 20))
    with pytest.raises(ValueError, match=r"crop_area=1\.5"):
        augment(torch.rand(4, 1, 20, 20), crop_area=1.5)


def test_crop_area_from_a_range_and_no_vertical_flip():
    options = {"p_flip": 0.5, "p_flip_vertical": 0.0, "p_crop": 1.0, "p_rotate": 0.0}
    generator = torch.Generator().manual_seed(0)
    affine = sample_affine(20_000, 64, 64, generator, crop_area=(0.2, 1.0), **options)
    area = 1 / (affine[:, 0, 0] * affine[:, 1, 1]).abs()
    assert area.min() >= 0.2 - 1e-4 and area.max() <= 1 + 1e-4
    assert abs(area.mean() - 0.6) < 0.005 and abs(area.std() - 0.8 / 12**0.5) < 0.005  # uniform
    assert (affine[:, 1, 1] > 0).all() and abs((affine[:, 0, 0] < 0).float().mean() - 0.5) < 0.01
    with pytest.raises(ValueError, match="crop_area"):
        sample_affine(1, 8, 8, crop_area=(0.5, 0.2))


def test_jitter_moves_brightness_and_contrast_within_their_ranges():
    images = torch.tensor([0.2, 0.4]).view(1, 1, 1, 2).expand(5000, 1, 1, 2)
    views = jitter(images, torch.Generator().manual_seed(0), 0.4, 0.4)
    mean, gap = views.mean((1, 2, 3)), views[:, 0, 0, 1] - views[:, 0, 0, 0]
    assert mean.min() >= 0.3 * 0.6 - 1e-6 and mean.max() <= 0.3 * 1.4 + 1e-6
    contrast = gap / mean / (0.2 / 0.3)
    assert contrast.min() >= 0.6 - 1e-5 and contrast.max() <= 1.4 + 1e-5
    assert abs(mean.mean() - 0.3) < 0.003 and abs(contrast.mean() - 1) < 0.01
    assert torch.equal(jitter(images, None, 0.0, 0.0), images)


@pytest.mark.parametrize("kind", [torch.int16, torch.int32, torch.int64, torch.uint16, torch.bool])
def test_whole_numbers_other_than_uint8_are_refused(kind):
    with pytest.raises(ValueError, match=r"give uint8 .0 to 255. or floats"):
        augment(torch.ones(2, 1, 8, 8).to(kind))


def test_floats_outside_the_unit_range_are_refused():
    image = torch.full((1, 1, 8, 8), 0.5)
    assert torch.equal(to_unit(image), image)
    assert torch.equal(to_unit(image.half()), image)
    for wrong in (255.0, -0.1, 1.1, float("nan")):
        image[0, 0, 3, 3] = wrong
        with pytest.raises(ValueError, match="window and scale them first"):
            augment(image)


@pytest.mark.parametrize("ranges", [
    {"p_flip": 1.5}, {"p_crop": math.nan}, {"degrees": math.inf}, {"translate": math.nan},
    {"crop_ratio": (0, 1)}, {"crop_ratio": (2, 0.5)},
])  # fmt: skip
def test_ranges_that_are_none_are_refused(ranges):
    with pytest.raises(ValueError, match=r"out of range|crop_ratio="):
        augment(torch.rand(2, 1, 9, 9), **ranges)


@pytest.mark.parametrize("name", ["crop_area", "translate", "p_flip"])
@pytest.mark.parametrize("value", ["0.7", None])
def test_a_number_as_text_is_refused_in_our_words(name, value):
    with pytest.raises(ValueError, match=r"crop_area=.*give numbers"):
        augment(torch.rand(2, 1, 9, 9), **{name: value})


def test_a_view_is_never_the_image_itself_and_places_are_one_each():
    images = torch.rand(2, 1, 9, 9)
    augment(images, p_flip=0, p_crop=0, p_rotate=0).zero_()
    assert images.max() > 0
    with pytest.raises(ValueError, match=r"2 images, 2 places, batch_size=0: give each"):
        augment(images, share=torch.tensor([0, 1]))


def test_the_default_type_of_floats_changes_no_view():
    images = smooth_images(2).float()
    views = augment(images, seeded(0))
    torch.set_default_dtype(torch.float64)
    try:
        again = augment(images, seeded(0))
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, views)


@pytest.mark.parametrize("views", [torch.ones(2, 1, 4, 4, dtype=torch.uint8), torch.ones(1, 4, 4)])
def test_jitter_of_other_images_is_refused(views):
    with pytest.raises(ValueError, match="expected floats"):
        jitter(views)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        jitter(torch.full((2, 1, 4, 4), 200.0))


def test_jitter_is_finite_and_float32():
    images = torch.rand(2, 1, 4, 4)
    for bad in (math.nan, math.inf, -0.1):
        for name in ("brightness", "contrast"):
            with pytest.raises(ValueError, match="changes from 0 on"):
                jitter(images, **{name: bad})
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert jitter(images.float()).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)

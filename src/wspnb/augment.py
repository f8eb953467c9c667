"""Random views of images on their device: flips, crop and rotation in one interpolation."""

from numbers import Real

import torch
from kornia.geometry.conversions import convert_affinematrix_to_homography, normalize_homography
from torch import Tensor
from torch.nn.functional import grid_sample


def sample_affine(
    n: int,
    height: int,
    width: int,
    generator: torch.Generator | None = None,
    p_flip: float = 0.5,
    p_crop: float = 0.5,
    crop_area: float | tuple[float, float] = 0.7,
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    p_rotate: float = 0.5,
    degrees: float = 30.0,
    translate: float = 0.0,
    p_translate: float = 0.5,
    p_flip_vertical: float | None = None,
) -> Tensor:
    """Random affine maps from source to destination pixels: flip, crop, translate, rotate.

    The paper names rotation, crop and flips; ranges, probabilities and their order are *paper
    silent*, taken from the released code. Every call draws the same number of random values,
    whatever the probabilities.

    Args:
        n, height, width: number of images and their size, pixels.
        generator: None = the global generator.
        p_flip: probability of a horizontal flip and, apart, of a vertical flip.
        p_crop: probability of a crop enlarged to the full size.
        crop_area: area of the crop as a share of the image; or its range, uniform.
        crop_ratio: range of the crop's relative width / height, log-uniform. *Paper silent*:
            Kornia's default.
        p_rotate: probability of a rotation.
        degrees: largest angle; the sign is drawn too, positive turns anticlockwise as displayed.
        translate: largest shift as a share of the size, each axis. *Paper silent*: only the
            released code has it (0.2), so it is off.
        p_translate: probability of a translation.
        p_flip_vertical: probability of a vertical flip; None = ``p_flip``.

    Returns:
        ``(n, 2, 3)`` float32 on the generator's device, in pixels: (x, y) of the destination from
        (x, y, 1).

    Raises:
        ValueError: if ``crop_area`` is not a share of the image, a probability not between 0 and 1,
            or a range negative or not finite.
    """
    least, most = crop_area if isinstance(crop_area, (tuple, list)) else (crop_area, crop_area)
    chances = (p_flip, p_crop, p_rotate, p_translate)
    ranges = (*crop_ratio, degrees, translate)
    if not all(isinstance(value, Real) for value in (least, most, *chances, *ranges)):
        given = f"crop_area={crop_area!r}, probabilities {chances}, ratio, degrees, shift {ranges}"
        raise ValueError(f"{given}: give numbers")
    if not 0 < least <= most <= 1:
        raise ValueError(f"crop_area={crop_area}: must be a share of the image, 0 < area <= 1")
    if not all(0 <= p <= 1 for p in chances) or not all(0 <= value < 1e9 for value in ranges):
        raise ValueError(f"probabilities {chances}, ratio, degrees, shift {ranges}: out of range")
    if not 0 < crop_ratio[0] <= crop_ratio[1]:
        raise ValueError(f"crop_ratio={crop_ratio}: lowest, then highest width / height, above 0")
    device = generator.device if generator is not None else "cpu"
    draws = torch.rand(11, n, generator=generator, device=device, dtype=torch.float32)
    p_vertical = p_flip if p_flip_vertical is None else p_flip_vertical
    chances = torch.tensor([p_flip, p_vertical, p_crop, p_translate, p_rotate], device=device)
    flip_x, flip_y, crop, shift, turn = draws[:5] < chances[:, None]
    crop_x, crop_y, ratio, shift_x, shift_y, angle = draws[5:]

    low, high = torch.tensor(crop_ratio, dtype=torch.float64).log().tolist()
    # Where an image is cropped, the number that said so is uniform below p_crop: it gives the area.
    area = least + (most - least) * (draws[2].double() / max(p_crop, 1e-9)).clamp(max=1)  # (n,)
    # The crop stays inside the image: its ratio is bounded by the area.
    ratio = (low + ratio * (high - low)).exp().clamp(area.float(), (1 / area).float()).sqrt()
    side = area.sqrt().float()
    box = torch.stack([side * ratio, side * ratio.reciprocal()], 1)  # (n, 2) shares of x, y
    box = torch.where(crop[:, None], box.clamp(max=1), 1)
    size = torch.tensor([width, height], dtype=torch.float32, device=device)
    extent = size - 1
    centre = (torch.stack([crop_x, crop_y], 1) - 0.5) * (1 - box) * extent
    moved = torch.stack([shift_x, shift_y], 1) * 2 - 1
    moved = torch.where(shift[:, None], moved * translate * size, 0)

    flips = 1 - 2 * torch.stack([flip_x, flip_y], 1).float()
    radians = torch.where(turn, torch.deg2rad((2 * angle - 1) * degrees), 0)
    cos, sin = radians.cos(), radians.sin()
    rotation = torch.stack([cos, sin, -sin, cos], 1).view(n, 2, 2)

    # About the centre of the image, from which the crop's centre is also measured:
    # p -> rotation (flips p / box - centre / box + moved).
    linear = rotation * (flips / box)[:, None, :]
    offset = (rotation * (moved - centre / box)[:, None, :]).sum(2)
    middle = extent / 2
    offset = offset + middle - (linear * middle).sum(2)
    return torch.cat([linear, offset[:, :, None]], 2)


def augment(
    images: Tensor,
    generator: torch.Generator | None = None,
    share: Tensor | None = None,
    batch_size: int = 0,
    **ranges,
) -> Tensor:
    """One random view of each image, by a single bilinear interpolation; air (0) outside.

    One composed map instead of a pass per step: no repeated blur, and what a rotation brings in
    after a crop is the patient, not the crop's border.

    Args:
        images: ``(b, c, h, w)``, uint8 or float in [0, 1] (window already applied: 0 = air).
        generator: source of randomness, best on the CPU: views are then equal on every device.
        share: places of these images in a batch of ``batch_size``, of which other devices hold the
            rest, ``(b,)``: maps are drawn for the whole batch, so that it looks alike on any number
            of devices. None: the images are the batch.
        batch_size: images in the whole batch.
        ranges: as :func:`sample_affine`, e.g. ``degrees=15``.

    Returns:
        ``(b, c, h, w)`` float32 in [0, 1], on the images' device, channels_last if the images are.

    Raises:
        ValueError: if the images are not ``(b, c, h, w)``, or see :func:`to_unit`.
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise ValueError(f"images of shape {tuple(images.shape)}: expected (b, c, h, w), a tensor")
    if share is not None and not len(share) == len(images) <= batch_size:
        sizes = f"{len(images)} images, {len(share)} places, batch_size={batch_size}"
        raise ValueError(f"{sizes}: give each image its place in the whole batch")
    n = len(images) if share is None else batch_size
    affine = sample_affine(n, *images.shape[2:], generator, **ranges)
    affine = affine if share is None else affine[share]
    with torch.autocast(images.device.type, enabled=False):
        views = to_unit(images)
        if not torch.equal(affine, torch.eye(2, 3, device=affine.device).expand_as(affine)):
            views = warp(views, affine)
        elif views is images:
            views = views.clone()  # so that a change of the view leaves the image
    if images.is_contiguous(memory_format=torch.channels_last):
        views = views.contiguous(memory_format=torch.channels_last)
    return views


def warp(images: Tensor, affine: Tensor) -> Tensor:
    """Images through affine maps, bilinear, air (0) outside: the numbers of Kornia's
    ``warp_affine`` without the copies it makes of the grid. Not under autocast.

    Args:
        images: ``(b, c, h, w)`` float32, two pixels or more each way.
        affine: ``(b, 2, 3)`` float32, in pixels: (x, y) of the destination from (x, y, 1). Maps on
            the CPU are turned round there: on a GPU that would be some twenty tiny kernels, and
            Kornia's constants would make the host wait.

    Returns:
        ``(b, c, h, w)``, on the images' device.
    """
    size = images.shape[2:]
    forth = normalize_homography(convert_affinematrix_to_homography(affine), size, size)
    rows = forth.unbind(1)  # the inverse by its adjugate: torch's would wait for a GPU
    adjugate = [torch.linalg.cross(rows[i - 2], rows[i - 1]) for i in range(3)]
    back = torch.stack(adjugate, 2) / (rows[0] * adjugate[0]).sum(1)[:, None, None]
    back = back.to(images.device, non_blocking=True)
    along_x, along_y, offset = back[:, :2, :, None, None].unbind(2)  # (b, 2, 1, 1) each
    y, x = (torch.linspace(-1, 1, n, device=images.device, dtype=torch.float32) for n in size)
    # x and y as two planes: their sums and the reading of them then run at the memory's speed.
    grid = along_x * x + along_y * y[:, None]
    grid += offset
    return grid_sample(images, grid.permute(0, 2, 3, 1), align_corners=True)


def jitter(
    views: Tensor,
    generator: torch.Generator | None = None,
    brightness: float = 0.4,
    contrast: float = 0.4,
) -> Tensor:
    """Grey images ``(b, 1, h, w)`` in [0, 1] with random brightness and contrast, the colour jitter
    of a grey image. Ranges are *paper silent*: those of SimCLR's and SupCon's code.

    Args:
        generator: on the CPU; None = the global generator.
        brightness, contrast: largest relative change of the grey values, and of their distance from
            the image's mean.

    Raises:
        ValueError: if the images are no four-dimensional floats; on the CPU also of other values.
    """
    sound = all(0 <= change < 1e9 for change in (brightness, contrast))
    if views.ndim != 4 or not views.is_floating_point() or not sound:
        found = f"views {views.dtype} {tuple(views.shape)}, {brightness=}, {contrast=}"
        raise ValueError(f"{found}: expected floats (b, 1, h, w) and changes from 0 on")
    views = to_unit(views) if views.is_cpu else views  # a GPU would wait for the look
    draws = torch.rand(2, len(views), 1, 1, 1, generator=generator, dtype=torch.float32)
    draws = draws.to(views.device) * 2 - 1
    views = views * (1 + brightness * draws[0])
    mean = views.mean((1, 2, 3), keepdim=True)
    return (mean + (views - mean) * (1 + contrast * draws[1])).clamp(0, 1)


def to_unit(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1]: uint8 is divided by 255, floats are taken as they are.

    Raises:
        ValueError: if they are of another type of whole numbers, whose range nothing tells, or
            floats outside [0, 1].
    """
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(
            f"images of {images.dtype}: give uint8 (0 to 255) or floats in [0, 1]; "
            "window and scale others first"
        )
    images = images.float()
    if images.numel() and not (images.amin() > -1e-3 and images.amax() < 1 + 1e-3):
        span = f"{images.amin():.4g} to {images.amax():.4g}"
        raise ValueError(f"images of {span}: floats must be in [0, 1], window and scale them first")
    return images

"""A 2-D U-Net that draws the liver where no mask is given (WSP, section 3).

The paper says no more than that: a U-Net, trained on a set with manual masks. Network, loss, sizes
and training are *paper silent*.
"""

import errno
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_model, save_model
from tqdm.auto import tqdm

from wspnb.augment import augment, to_unit
from wspnb.data.headers import open_header
from wspnb.data.inventory import open_hu, slice_images
from wspnb.data.masks import read_given, write_mask
from wspnb.data.organs import LIVER_ML, check_place, check_size, largest_component, measure
from wspnb.data.volumes import padding, resize, to_image
from wspnb.files import need, whole
from wspnb.models import evaluating
from wspnb.pretrain import check_sound


def liver_unet(seed: int = 0) -> torch.nn.Module:
    """MONAI's 2-D U-Net (Ronneberger et al. 2015), five levels, 8 to 128 channels: 166k parameters.

    Returns:
        ``(b, 1, h, w)`` in [0, 1] to ``(b, 1, h, w)`` logits; h and w are multiples of 16. Its
        weights depend on the seed alone; the global generator is left as it is.

    Raises:
        ModuleNotFoundError: without monai; says how to install it.
    """
    (nets,) = need("segment", "monai.networks.nets")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nets.UNet(2, 1, 1, (8, 16, 32, 64, 128), (2, 2, 2, 2), num_res_units=0, norm="batch")


def dice_loss() -> torch.nn.Module:
    """Soft Dice of the batch, as a slice without liver has none of its own, plus cross-entropy, on
    logits (MONAI's DiceCELoss)."""
    (losses,) = need("segment", "monai.losses")
    return losses.DiceCELoss(sigmoid=True, batch=True)


def slice_outlines(mask, spacing, numbers, size) -> np.ndarray:
    """Slices of a mask, as :func:`wspnb.data.inventory.slice_images`: uint8, 255 = liver."""
    planes = [to_image(mask[:, :, z]).astype(np.float32) for z in numbers]
    inside = [resize(plane, size, (spacing[1], spacing[0]), 0.0) > 0.5 for plane in planes]
    return np.stack(inside) * np.uint8(255)


def depth_sheet(volume, livers, low=-100.0, high=400.0, coding=""):
    """Eight slices of a volume from the lowest to the highest with liver, to draw outlines upon.

    Args:
        livers: masks ``(x, y, z)``; where all are empty, the slices span the volume.
        volume, low, high, coding: see :func:`training_pairs`.

    Returns:
        Slice numbers ``(8,)``, images ``(8, 160, 160)`` uint8 and outlines ``(8, n_livers, 160,
        160)`` uint8, 255 = liver.
    """
    hu = open_hu(volume, coding)
    inside = np.flatnonzero(np.any(livers, axis=(0, 1, 2)))
    ends = inside[[0, -1]] if len(inside) else (0, hu.shape[2] - 1)
    numbers = np.linspace(*ends, 8).round().astype(int)
    outlines = [slice_outlines(liver, hu.spacing, numbers, 160) for liver in livers]
    return numbers, slice_images(hu, numbers, 160, low, high), np.stack(outlines, axis=1)


def training_pairs(
    volume, mask, n_slices=8, value: int | None = None, size=128, low=-100.0, high=400.0, coding=""
) -> tuple[np.ndarray, np.ndarray]:
    """Slices spread evenly over a volume, with and without liver, and their outlines.

    Args:
        volume, mask: NIfTI files.
        n_slices: at most so many.
        value: label of the liver in the mask (TotalSegmentator's ``total``: 5), None for all above
            zero.
        size, low, high: see :func:`wspnb.data.inventory.slice_images`.
        coding: of the intensities, see :data:`wspnb.data.inventory.CODINGS`; empty to decide by
            evidence.

    Returns:
        ``(n, size, size)`` uint8 in the window, and ``(n, size, size)`` uint8, 255 = liver.

    Raises:
        OSError, ValueError: if the volume cannot be read, or is no HU and cannot be decoded; with
            "no liver mask" in front if the mask cannot be read, is empty or of no liver's size.
    """
    hu = open_hu(volume, coding)
    try:
        liver = read_given(mask, volume, value)
        inside = np.flatnonzero(liver.any((0, 1)))[:: max(1, liver.shape[2] // 40)]
        check_place(mask, volume, {**hu.row}, [hu[:, :, z][liver[:, :, z]] for z in inside])
        # Smaller than a whole liver: a crop, or a child's, may be learnt from (paper silent).
        check_size(mask, measure(liver, open_header(volume)), (20.0, LIVER_ML[1]))
    except (ValueError, OSError) as error:
        raise ValueError(f"no liver mask: {error}") from error
    numbers = np.unique(np.linspace(0, hu.shape[2] - 1, n_slices).round().astype(int))
    images = slice_images(hu, numbers, size, low, high)
    return images, slice_outlines(liver, hu.spacing, numbers, size)


def read_pairs(pool: pd.DataFrame, n_slices=8, value: int | None = None, **view):
    """:func:`training_pairs` of all rows of the cohort table with a mask.

    Returns:
        Images and outlines ``(n, size, size)``, the row of the pool that each belongs to ``(n,)``,
        and what could not be used: a list of ``volume``, ``patient``, ``reason``.

    Raises:
        ValueError: if no volume can be used.
    """
    pairs, owners, failed = [], [], []
    for number, row in enumerate(tqdm(pool.to_dict("records"), "pairs", mininterval=2)):
        try:
            own = {**view, "coding": row.get("coding", "")}
            pairs.append(training_pairs(row["volume"], row["mask"], n_slices, value, **own))
            owners += [number] * len(pairs[-1][0])
        except MemoryError:
            raise
        except Exception as error:  # whatever is wrong with it, one file ends no cohort
            known = isinstance(error, (ValueError, OSError))
            who = {"volume": row["volume"], "patient": row["patient"]}
            failed.append(who | {"reason": str(error) if known else repr(error)})
    if not pairs:
        raise ValueError(f"no mask to learn from: {failed or 'give a train_dir, or hide fewer'}")
    images, livers = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return images, livers, np.array(owners), failed


def vary(images, truth, generator: torch.Generator, flip: float = 0.0):
    """One random view of each pair: the same crop and rotation for both, another brightness.

    Rotations are up to 15 degrees, grey values scaled by 0.8 to 1.2 and shifted by -0.1 to 0.1 of
    the window (paper silent).

    Args:
        images, truth: ``(b, h, w)`` uint8, 255 = liver in the second.
        generator: on the CPU.
        flip: probability of a flip along each axis; volumes are in canonical orientation, where a
            flip would put the liver in the spleen's place.

    Returns:
        Images ``(b, 1, h, w)`` float32 in [0, 1] and outlines ``(b, 1, h, w)``, 0 or 1.
    """
    both = torch.from_numpy(np.stack([images, truth], 1))  # (b, 2, h, w)
    both = augment(both, generator, p_flip=flip, degrees=15.0)
    scale, shift = torch.rand(2, len(both), 1, 1, 1, generator=generator)
    views = both[:, :1] * (0.8 + 0.4 * scale) + 0.2 * shift - 0.1
    return views.clamp(0, 1), (both[:, 1:] > 0.5).float()


def save_network(network: torch.nn.Module, file: Path) -> None:
    """Weights (safetensors); the file appears whole or not at all, and not if one is not finite."""
    check_sound(f"{file}, not written", network.state_dict(), [])
    with whole(file) as temporary:
        save_model(network, temporary)


def load_network(file: Path, device="cpu") -> Callable[[np.ndarray], np.ndarray]:
    """The network that :func:`save_network` wrote, as :func:`segmenter` gives it."""
    network = liver_unet()
    load_model(network, file)
    check_sound(file, network.state_dict(), [], "; delete it")
    return segmenter(network.to(device, memory_format=torch.channels_last))


def segmenter(network: torch.nn.Module, batch: int = 32) -> Callable[[np.ndarray], np.ndarray]:
    """The network as a function of ``(n, size, size)`` uint8 to probabilities of the same shape."""
    device = next(network.parameters()).device

    @torch.inference_mode()
    def segment(images: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(images)[:, None].split(batch)
        with evaluating(network):
            logits = torch.cat([network(to_unit(part.to(device))).float() for part in parts])
        return logits.sigmoid()[:, 0].cpu().numpy()

    return segment


def back_to_grid(picture: np.ndarray, shape: tuple[int, int], pixel) -> np.ndarray:
    """What :func:`wspnb.data.volumes.resize` made square, ``(size, size)`` float32, on its own
    pixels (height and width in mm) again: ``shape`` float32, bilinear, without the padding."""
    square, inside = padding(shape, pixel)
    wide = torch.nn.functional.interpolate(
        torch.from_numpy(picture)[None, None], square, mode="bilinear", antialias=True
    )
    return wide[0, 0].numpy()[inside]


def predict_mask(
    volume, segment, size=128, low=-100.0, high=400.0, coding=""
) -> tuple[np.ndarray, float]:
    """The liver of a volume, slice by slice, its largest component.

    Args:
        segment: ``(n, size, size)`` uint8 to probabilities, see :func:`segmenter`.
        volume, size, low, high, coding: see :func:`training_pairs`.

    Returns:
        ``(x, y, z)`` bool, canonical, perhaps empty; and its volume in ml.
    """
    hu = open_hu(volume, coding)
    mask, pixel = np.zeros(hu.shape, bool), (hu.spacing[1], hu.spacing[0])
    for numbers in np.array_split(np.arange(hu.shape[2]), math.ceil(hu.shape[2] / 32)):
        pictures = segment(slice_images(hu, numbers, size, low, high))
        for z, picture in zip(numbers, pictures, strict=True):
            shape = (hu.shape[1], hu.shape[0])
            mask[:, :, z] = to_image(back_to_grid(picture, shape, pixel) > 0.5)
    ml = hu.spacing.prod() / 1000
    del hu  # before the components, which cost as much
    mask = largest_component(mask)
    return mask, float(np.count_nonzero(mask) * ml)


def predict_to(path, volume, segment, min_ml=200.0, **settings) -> str:
    """Predict and write a mask, or say why not.

    Args:
        path: of the mask to write; its folder exists.
        volume, segment, settings: see :func:`predict_mask`.
        min_ml: a liver smaller than this is taken for a failure, as is one above ``LIVER_ML``.
            Paper silent.

    Returns:
        Empty when the mask is written, else the reason.
    """
    try:
        mask, ml = predict_mask(volume, segment, **settings)
    except (ValueError, OSError) as error:
        return str(error)
    if ml < max(min_ml, 1e-9):
        found = f"{ml:.0f} ml predicted, under {min_ml:g} ml" if ml else "none found"
        return f"no liver mask: {found}"
    if ml > LIVER_ML[1]:
        return f"no liver mask: {ml:.0f} ml predicted, over {LIVER_ML[1]:g} ml"
    try:
        write_mask(path, mask, volume)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # a full disk concerns all
            raise
        return f"{volume}: a name too long for its mask: give the file a shorter one"
    return ""

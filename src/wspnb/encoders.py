"""Frozen encoders of others, judged beside ours: which input each wants, and where it comes from.

Nothing of them is shipped or downloaded: a folder as their authors publish it (``config.json`` and
``model.safetensors``) is read by the model classes of transformers; needs the extra ``encoders``.
Tested with small random networks of these classes and keys; never run with the published weights.
"""

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from wspnb.augment import to_unit
from wspnb.files import own_files, read_json
from wspnb.models import IMAGENET_MEAN, IMAGENET_SD

BACKBONE = "vit"  # of their runs' names and rows


@dataclass(frozen=True)
class Row:
    """An encoder: which network, the input that it wants, and where it is."""

    label: str  # as tables of results print it
    kinds: tuple[str, ...]  # model_type in config.json, which names transformers' model class
    channels: int  # of the input; a grey slice is repeated
    size: int  # pixels of the input's sides
    resize: str  # to that size
    mean: tuple | None  # grey values taken off, in [0, 1]; None: mean and SD of each slice itself
    sd: tuple | None
    address: str  # of the weights
    licence: str


HUB = "https://huggingface.co/"
DINOV2 = ("dinov2", "dinov2_with_registers")
# Input: from preprocessor_config.json at the address (DINOv3's are also the defaults of
# transformers' DINOv3ViTImageProcessor); Curia-2's from its curia_image_processor.py, which takes
# HU or normalised slices, rows to the back and columns to the left, as ours are. Deviation: the
# file of DINOv2 resizes to 256 and cuts off a border, which here would be the body.
ENCODERS = {
    "dinov2": Row("DINOv2", DINOV2, 3, 224, "bicubic", IMAGENET_MEAN, IMAGENET_SD,
                  f"{HUB}facebook/dinov2-base", "Apache-2.0"),
    "rad_dino": Row("RAD-DINO", DINOV2, 3, 518, "bicubic", (0.5307,) * 3, (0.2583,) * 3,
                    f"{HUB}microsoft/rad-dino", "MIT"),
    "curia2": Row("Curia-2", DINOV2, 1, 512, "bicubic", None, None,
                  f"{HUB}raidium/curia-2", "research only (RAIL-M), to be accepted there"),
    "dinov3": Row("DINOv3", ("dinov3_vit",), 3, 224, "bilinear", IMAGENET_MEAN, IMAGENET_SD,
                  f"{HUB}facebook/dinov3-vitb16-pretrain-lvd1689m",
                  "DINOv3 License, to be accepted there"),
}  # fmt: skip


class Frozen(nn.Module):
    """Grey slices as the encoder wants them, then its summary token: ``(b, 1, h, w) -> (b, d)``."""

    def __init__(self, model: nn.Module, row: Row):
        super().__init__()
        self.model, self.row = model.eval(), row

    def extra_repr(self) -> str:  # what its features depend on, beside the weights
        return str(asdict(self.row))

    def prepare(self, images: Tensor) -> Tensor:
        """Input ``(b, channels, size, size)`` of slices ``(b, 1, h, w)``, uint8 or in [0, 1]."""
        size, images = (self.row.size,) * 2, to_unit(images)
        images = interpolate(images, size, mode=self.row.resize, antialias=True).clamp(0, 1)
        if self.row.mean is None:
            sd, mean = torch.std_mean(images, (2, 3), keepdim=True)
            return (images - mean) / torch.where(sd < 1e-6, 1, sd)
        mean, sd = (images.new_tensor(v)[:, None, None] for v in (self.row.mean, self.row.sd))
        return (images.expand(-1, self.row.channels, -1, -1) - mean) / sd

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=self.prepare(images)).pooler_output


def read_folders(text: str) -> dict[str, str]:
    """Name and folder of each encoder in ``"dinov2=/data/dinov2-base, curia2=/data/curia-2"``.

    Raises:
        ValueError: if a part is no such pair, or names an encoder twice or one that the table does
            not know.
    """
    folders = {}
    for pair in filter(str.strip, text.split(",")):
        name, _, folder = map(str.strip, pair.partition("="))
        if name not in ENCODERS or not folder:
            raise ValueError(f"{name}={folder}: NAME=FOLDER, NAME one of {', '.join(ENCODERS)}")
        if name in folders:
            raise ValueError(f"{name} twice, {folders[name]} and {folder}: one a run (run_dir)")
        folders[name] = folder
    return folders


def check_folder(name: str, folder: str | Path) -> Path:
    """The folder, where the files of this encoder of the table are in it.

    Raises:
        FileNotFoundError: if not; says where to get them, and the licence.
    """
    row, folder = ENCODERS[name], Path(folder).expanduser()
    if not (folder / "config.json").is_file() or not own_files(folder, "model*.safetensors"):
        raise FileNotFoundError(
            f"{name}: {folder} does not hold config.json and model.safetensors: get them from "
            f"{row.address} (licence: {row.licence})"
        )
    return folder


def load_frozen(name: str, folder: str | Path) -> Frozen:
    """An encoder of ``ENCODERS`` from a local folder and nowhere else, in float32 and evaluation
    mode.

    Raises:
        FileNotFoundError: of :func:`check_folder`.
        ImportError: if transformers is not installed.
        ValueError: if the folder holds another kind of network, or weights that do not fit it.
    """
    row, folder = ENCODERS[name], check_folder(name, folder)
    config = read_json(folder / "config.json")
    kind, channels = config.get("model_type"), config.get("num_channels", 3)
    if kind not in row.kinds or channels != row.channels:
        raise ValueError(
            f"{folder / 'config.json'}: {kind} of {channels} channels, {name} is "
            f"{' or '.join(row.kinds)} of {row.channels}: get it from {row.address}"
        )
    with contextlib.suppress(FileNotFoundError):
        about = read_json(folder / "preprocessor_config.json")
        for key, own in (("image_mean", row.mean), ("image_std", row.sd)):
            said = about.get(key)  # one number stands for all channels
            said = tuple(said) if isinstance(said, list) else (said,) * row.channels
            if own and about.get(key) and said != own:
                raise ValueError(f"{folder}: {key} is {about[key]}, {name}'s {own}: which is it?")
    try:
        from transformers import AutoModel
        from transformers.utils import logging
    except ImportError as error:
        raise ImportError(f"{name} needs transformers: pip install 'wspnb[encoders]'") from error
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its report of the keys; what is wrong in it is said below
    options = {"local_files_only": True, "output_loading_info": True, "dtype": torch.float32}
    try:
        model, info = AutoModel.from_pretrained(folder, ignore_mismatched_sizes=True, **options)
    except Exception as error:
        raise ValueError(f"{folder}: cannot be read as {name} ({error}): get it again") from None
    # The library draws what is missing at random and drops what has no place, as registers; a head
    # beside the network's parts may go. The mask token serves training only.
    parts = tuple(f"{part}." for part, _ in model.named_children())
    wrong = [f"no {key} in the weights" for key in info["missing_keys"]]
    wrong += [f"{key} of another size in the weights" for key, *_ in info["mismatched_keys"]]
    extra = [key for key in info["unexpected_keys"] if key.startswith(parts)]
    wrong += [f"{key} in the weights has no place in config.json's network" for key in extra]
    if wrong := sorted(words for words in wrong if "mask_token" not in words):
        raise ValueError(f"{folder}: {wrong[0]}: another network's, or damaged")
    return Frozen(model, row)

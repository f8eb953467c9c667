"""TinyNet, ResNet-18 and their projection heads; ImageNet weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from operator import index
from pathlib import Path

import torch
from torch import Tensor, nn

# features, hidden, latent
HEADS = {"tiny": (256, 128, 64), "tiny_padded": (256, 128, 64), "resnet18": (512, 256, 128)}

# torchvision's published file; the grey values of its training images (RGB, in [0, 1]).
IMAGENET_FILE = "resnet18-f37072fd.pth"
IMAGENET_URL = f"https://download.pytorch.org/models/{IMAGENET_FILE}"
IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TinyNet(nn.Module):
    """Five 5x5 convolutions, each max pooled and rectified, then a global average.

    Without norm 1,088,896 parameters (WSP, section 3; widths as in the released code, repaired).
    Pooling comes before the ReLU: the two commute, and the ReLU has a quarter of the work.

    Args:
        norm: None as in the paper; "batch" puts a batch norm after each pooling (*paper silent*: a
            deviation of the laptop profile, without it a few hundred steps teach nothing).
        padding: pixels of air around the input of each convolution, 0 as in the paper; 2 lets small
            images through (a deviation, "tiny_padded").

    Raises:
        ValueError: if ``norm`` is unknown.
    """

    n_features = 256

    def __init__(self, in_channels: int = 1, norm: str | None = None, padding: int = 0):
        super().__init__()
        if norm not in (None, "none", "batch"):
            raise ValueError(f"norm={norm!r}: choose None or 'batch'")
        self.smallest_image = 1  # pixels: what five times (size + 2 padding - 4) // 2 must leave
        self.blocks = nn.Sequential()
        for a, b in pairwise((in_channels, 16, 32, 64, 128, 256)):
            self.smallest_image = max(2 * self.smallest_image + 4 - 2 * padding, 1)
            block = [nn.Conv2d(a, b, 5, padding=padding), nn.MaxPool2d(2)]
            block += [nn.BatchNorm2d(b) if norm == "batch" else nn.Identity()]
            self.blocks.append(nn.Sequential(*block, nn.ReLU(inplace=True)))

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(b, 256)`` of images ``(b, c, h, w)``; ValueError if these are too small."""
        if min(images.shape[-2:]) < self.smallest_image:
            size = "x".join(map(str, images.shape[-2:]))
            padded = ", or backbone to tiny_padded" * (self.smallest_image > 32)
            raise ValueError(
                f"images of {size} px: TinyNet's convolutions need at least "
                f"{self.smallest_image} px, set image_size to that or more{padded}"
            )
        return self.blocks(images).mean((2, 3))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, figure 5 left)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet18(nn.Module):
    """ResNet-18 without its classifier (He et al. 2016), with torchvision's key names."""

    n_features = 512

    def __init__(self, in_channels: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for level, (a, b) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], 1):
            first = BasicBlock(a, b, stride=1 if level == 1 else 2)
            setattr(self, f"layer{level}", nn.Sequential(first, BasicBlock(b, b, 1)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(b, 512)`` of images ``(b, c, h, w)``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


def resnet18(in_channels: int = 1) -> ResNet18:
    """ResNet-18 backbone, 11,170,240 parameters with one channel: ``(b, c, h, w) -> (b, 512)``."""
    return ResNet18(in_channels)


def projection_head(backbone: str, norm: bool = False) -> nn.Sequential:
    """Head from features to the space of the loss: TinyNet 256-128-64, ResNet-18 512-256-128.

    Two dense layers with a ReLU between (WSP, section 3: latent sizes; hidden sizes as released);
    ``norm`` adds a batch norm before it, as BYOL, SimSiam and Barlow Twins have.

    Raises:
        ValueError: if the backbone is unknown.
    """
    return two_layers(*HEADS[_known(backbone)], norm)


def two_layers(first: int, hidden: int, last: int, norm: bool = False) -> nn.Sequential:
    """Two dense layers of these sizes with a ReLU between, and before it a batch norm if wanted."""
    norms = [nn.BatchNorm1d(hidden)] if norm else []
    return nn.Sequential(nn.Linear(first, hidden), *norms, nn.ReLU(), nn.Linear(hidden, last))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; each of its parts is given back in the mode that it had."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let weights made here depend on the seed alone; global generators stay untouched, and so do
    the default type and device, which are float32 and the CPU here."""
    was = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(index(seed))  # numpy's whole numbers, too
            yield
    finally:
        torch.set_default_dtype(was)


def build_encoder(backbone: str, norm: str | None = None, seed: int = 0) -> nn.Module:
    """Encoder with weights that depend on the seed alone; global generators stay untouched.

    TinyNet's initial weights are PyTorch's defaults (*paper silent*), ResNet-18's He's.

    Args:
        backbone: "tiny", "tiny_padded" (for images under 156 px) or "resnet18".
        norm: None (or "none") and "batch" for TinyNet; ResNet-18 has its batch norms anyway.

    Returns:
        A module with ``n_features`` that maps ``(b, 1, h, w)`` to ``(b, n_features)``.

    Raises:
        ValueError: if the backbone or norm is unknown.
    """
    _known(backbone)
    with seeded(seed):
        if backbone == "resnet18":
            return resnet18()
        return TinyNet(norm=norm, padding=2 if backbone == "tiny_padded" else 0)


def build_head(backbone: str, seed: int = 0, norm: bool = False) -> nn.Sequential:
    """Projection head with weights that depend on the seed alone, see :func:`build_encoder`."""
    with seeded(seed + 1_000_003):  # not the encoder's numbers again
        return projection_head(backbone, norm)


def load_imagenet(encoder: ResNet18, file: str | Path) -> None:
    r"""Give a one-channel ResNet-18 the ImageNet weights that torchvision publishes.

    The RGB stem is folded to one channel: a grey image x shown as RGB and normalised by ImageNet's
    mean :math:`\mu` and SD :math:`s` gives the convolution :math:`\sum_c w_c (x - \mu_c) / s_c`, so
    the folded filter is :math:`\sum_c w_c / s_c` and the constant goes into the running mean of the
    batch norm after it. Exact but within 3 pixels of the border, where air is padded instead of
    ImageNet's mean.

    Args:
        encoder: filled in place.
        file: a copy of ``resnet18-f37072fd.pth``, which ``sources.downloads`` fetches.

    Raises:
        FileNotFoundError: if the file is absent; says where to get it.
        ValueError: if it does not hold torchvision's keys and shapes; names the first that differs.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: get {IMAGENET_URL} and name it there")
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    except Exception as error:
        raise ValueError(f"{path}: not a file of weights ({error}); get {IMAGENET_URL}") from None
    state = {k: v for k, v in state.items() if not k.startswith("fc.")}
    expected = {k: tuple(v.shape) for k, v in encoder.state_dict().items()}
    expected["conv1.weight"] = (64, 3, 7, 7)
    for key in [*expected, *state]:
        found = tuple(state[key].shape) if key in state else "nothing"
        if found != expected.get(key, "nothing"):
            raise ValueError(f"{path}: {key} is {found}, not {expected.get(key)}: no ResNet-18")
    filters = state["conv1.weight"] / torch.tensor(IMAGENET_SD)[:, None, None]  # (64, 3, 7, 7)
    offset = (filters * torch.tensor(IMAGENET_MEAN)[:, None, None]).sum((1, 2, 3))  # (64,)
    state["conv1.weight"] = filters.sum(1, keepdim=True)
    state["bn1.running_mean"] = state["bn1.running_mean"] + offset
    encoder.load_state_dict(state)


def _known(backbone: str) -> str:
    if backbone not in HEADS:
        raise ValueError(f"backbone={backbone!r}: choose one of {', '.join(HEADS)}")
    return backbone


def on_sphere(views: Tensor) -> Tensor:
    """Rows of length 1, at least float32; squares of very small or large ones would leave range,
    and so would gradients of those at the end of the type's range, which get none."""
    views = views if views.dtype == torch.float64 else views.float()
    largest = views.detach().abs().amax(1, keepdim=True)
    usual = ((largest > 1e-6) & (largest < 1e15)) | (largest == 0)
    end = (largest < 100 * torch.finfo(views.dtype).tiny) & ~usual
    views = torch.where(end, views.detach(), views)
    return nn.functional.normalize(views / largest.masked_fill(usual, 1), dim=1)

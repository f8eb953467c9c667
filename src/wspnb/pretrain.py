"""What the visible loop of notebook 02 needs tested: settings, schedule, health, files."""

import hashlib
import io
import json
import math
import re
import warnings
import zipfile
from dataclasses import asdict, dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor

from wspnb.files import plain_json, read_json, whole, write_csv, write_text
from wspnb.kernels import check_finite
from wspnb.methods import has_line, loss_of
from wspnb.models import HEADS, on_sphere

PRECISIONS = ("auto", "no", "bf16", "fp16")
UNTRAINED = ("random", "imagenet")  # no step is taken
STEP = "augment blockwise distributed kernels losses methods models momentum pretrain sampling"
LOST = ": the training diverged, take a lower learning_rate, more warmup_steps or precision no"


@dataclass(frozen=True)
class Config:
    """Settings of one pretraining, checked when made; saved beside the encoder.

    Raises:
        ValueError: names the setting, the value received and what it may be.
    """

    method: str
    backbone: str
    norm: str
    sigma: float
    temperature: float
    batch_size: int
    n_steps: int
    warmup_steps: int
    learning_rate: float
    weight_decay: float
    image_size: int
    precision: str
    translate: float
    crop_area: float
    normalise: str
    convention: str
    severe_from: int
    train_cohort: str
    data: str  # checksum of slices and weak labels, see identity
    seed: int

    def __post_init__(self):
        for name, kind in self.__annotations__.items():
            value, taken = getattr(self, name), {int: Integral, float: Real}.get(kind, kind)
            if not isinstance(value, taken) or isinstance(value, bool):
                raise ValueError(f"{name}={value!r}: takes {kind.__name__}")
            object.__setattr__(self, name, kind(value))  # numpy's cannot be read back from a file
        if self.method == "supervised":
            raise ValueError("method=supervised: notebook 03b trains it, inside the folds")
        loss_of(self.method)  # an error names all there are
        choices = {
            "backbone": tuple(HEADS),
            "norm": ("batch", "none"),
            "precision": PRECISIONS,
            "normalise": ("row", "column"),
            "convention": ("k/(n-1)", "k/n"),
        }
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name}={value!r}: choose one of {', '.join(allowed)}")
        positive = ("sigma", "temperature", "batch_size", "n_steps", "learning_rate", "image_size")
        limits = dict.fromkeys(("temperature", "learning_rate", "weight_decay"), 1e9)
        limits |= {"crop_area": 1, "translate": 1, "seed": 2**63 - 1}
        for name in (*positive, *limits, "warmup_steps", "severe_from"):
            value, above_0 = getattr(self, name), name in (*positive, "crop_area")
            if not (value > 0 if above_0 else value >= 0):
                word = "be positive" if above_0 else "not be negative"
                raise ValueError(f"{name}={value}: must {word}")
            if value > limits.get(name, math.inf):
                raise ValueError(f"{name}={value}: must be at most {limits[name]:g}")
        if self.batch_size < 2:
            raise ValueError("batch_size=1: a contrastive batch needs at least two patients")
        if self.method == "imagenet" and self.backbone != "resnet18":
            raise ValueError(f"method=imagenet exists for resnet18, not for {self.backbone}")


def settings(values: dict, config: Config | None = None, *made) -> Config:
    """The settings among a notebook's ``values``; a ValueError where they are no more those of
    ``config``, or what must be made of them has not been since (is None)."""
    now = Config(**{name: values[name] for name in Config.__annotations__})
    if config not in (None, now) or any(part is None for part in made):
        raise ValueError("a parameter was changed: run all again from the settings on")
    return now


def run_name(name: str, backbone: str, seed: int) -> str:
    """Folder of one run, the same in every notebook, e.g. ``wsp-tiny-seed0``.

    ``name`` is the method, or the name of a variant of it, e.g. ``wsp_sigma0.3``.

    Raises:
        ValueError: if the name is no plain file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
        raise ValueError(f"name={name!r}: letters, digits, point and underscore only")
    return f"{name}-{backbone}-seed{seed}"


def weak_labels(table: pd.DataFrame, severe_from: int = 0) -> Tensor:
    """Weak label of each slice (column ``weak_label``), ``(n,)``; -1 where it is unknown.

    ``severe_from``: 0 keeps all stages apart (paper); k makes two classes, stage k and above
    against the rest (released code: severe, 3)."""
    stage = pd.to_numeric(table.weak_label).to_numpy(float, copy=True, na_value=-1)
    if not (stage == stage.astype(int)).all():
        raise ValueError("weak_label: stages are whole numbers, 0, 1, 2 ..., or missing")
    stage = np.maximum(stage.astype(int), -1)
    return torch.tensor(np.where(stage < 0, -1, stage >= severe_from) if severe_from else stage)


def slice_positions(table: pd.DataFrame, stored: str, wanted: str) -> Tensor:
    """Position of each slice, ``(n,)`` float32, in the wanted convention.

    Args:
        table: slices with ``position`` and ``n_kept``, the slices kept of the volume.
        stored: convention of the store, "k/(n-1)" (paper: the last slice is 1) or "k/n" (released
            code).
        wanted: convention to give.

    Raises:
        ValueError: if a position is missing, or no number from 0 to 1; names patient and slice.
    """
    given = table[["position", "n_kept"]].apply(pd.to_numeric, errors="coerce")
    position, n = given.to_numpy(float, copy=True, na_value=np.nan).T
    steps = {"k/(n-1)": np.maximum(n - 1, 1), "k/n": n}
    if other := {stored, wanted} - set(steps):
        raise ValueError(f"convention {other}: choose k/(n-1) or k/n")
    position[(position < -1e-6) | (position > 1 + 1e-6)] = np.nan  # mm, percent: of no height
    if stored != wanted:
        position = np.round(position * steps[stored]) / steps[wanted]
        if wanted == "k/(n-1)":  # one slice alone lies in the middle
            position = np.where(n == 1, 0.5, position)
    positions = torch.tensor(position, dtype=torch.float32)
    kept = [name for name in ("patient", "z", "position", "n_kept") if name in table]
    check_finite(positions, lambda i: f"slice {i} {table[kept].iloc[i].to_dict()}, from 0 to 1,")
    return positions


def pick_precision(precision: str) -> str:
    """Accelerate's name of the precision; "auto" is bf16 where the hardware multiplies in it, else
    float32.

    On a CPU with bf16 instructions TinyNet trains several times faster, without them slower.

    Raises:
        ValueError: if it is none of :data:`PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    flags = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if flags.get("amx_bf16") or flags.get("avx512_bf16") else "no"


def learning_rate_factor(step: int, n_steps: int, warmup_steps: int) -> float:
    """Share of the learning rate at a step (0-based): linear rise, then cosine to 0 (paper).

    The rise is *paper silent*: without it SupCon can stay at the collapsed solution. It is the same
    for all methods; 0 steps of it are the paper's schedule.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, n_steps - warmup_steps)))


def byol_momentum(step: int, n_steps: int) -> float:
    """Share that BYOL's target keeps at a step (0-based): from .996 to 1 as a cosine (paper)."""
    return 1 - (1 - 0.996) * 0.5 * (1 + math.cos(math.pi * step / n_steps))


def collapse_loss(batch_size: int) -> float:
    """Loss of B slices when all embeddings are equal: ``log(2B - 1)``, whatever the kernel."""
    return math.log(2 * batch_size - 1)


def is_collapsed(losses, batch_size: int) -> bool:
    """Whether the mean of the last tenth of the losses (five of them at least) is within 0.05 of
    the collapsed solution."""
    return not _end(list(losses)) < collapse_loss(batch_size) - 0.05


def _end(values: list[float]) -> float:
    """Mean of the last tenth, of five values at least."""
    tail = values[-max(5, len(values) // 10) :]
    return sum(tail) / len(tail)


def verdict(method: str, log: list[dict], batch_size: int) -> str:
    """ "untrained", "healthy", "at the line" or "embeddings collapsed", by the log's last tenth
    (five rows at least).

    Embeddings are collapsed where a contrastive loss is that of equal ones, see
    :func:`is_collapsed`, and their ``embedding_sd`` is under 0.1 (*paper silent*). A label that is
    too noisy to be learnt leaves the loss there with embeddings well spread ("at the line"). The
    loss of BYOL is 0 when collapsed, and denominators of their own have no such line: there the
    spread alone decides. Embeddings are what the head gives: neither verdict says what the
    encoder's features can do, which only a probe tells.
    """
    if not log:
        return "untrained"
    spread, losses = ([row[key] for row in log] for key in ("embedding_sd", "loss"))
    flat = _end(spread) < 0.1 or math.isnan(_end(losses))  # a spread of NaN is of one embedding
    lined = has_line(method)
    if lined and not is_collapsed(losses, batch_size):
        return "healthy"
    return "embeddings collapsed" if flat else "at the line" if lined else "healthy"


@torch.no_grad()
def health(view_1: Tensor, view_2: Tensor, features: Tensor) -> dict[str, float]:
    """Alignment, uniformity and spread of a batch of embeddings (Wang and Isola 2020, alpha = t =
    2).

    Args:
        view_1, view_2: embeddings of both views, ``(n, dim)``, any scale.
        features: what the encoder gave for the same images, ``(2n, d)``.

    Returns:
        ``alignment`` mean squared distance of the two views of a slice (0 = equal), ``uniformity``
        log of the mean Gaussian potential between different slices (0 = collapsed, lower = spread),
        ``embedding_sd`` mean standard deviation of a coordinate over the batch, times sqrt(dim) (0
        = collapsed, 1 = uniform on the sphere), ``feature_sd`` the mean standard deviation of a
        feature over its mean absolute value (0 = all images alike).
    """
    features = features.float()
    a, b = on_sphere(view_1.float()), on_sphere(view_2.float())
    return {
        "alignment": float((a - b).pow(2).sum(1).mean()),
        "uniformity": float(torch.pdist(a).pow(2).mul(-2).exp().mean().log()),
        "embedding_sd": float(a.std(0).mean() * a.shape[1] ** 0.5),
        "feature_sd": float(features.std(0).mean() / features.abs().mean().clamp_min(1e-12)),
    }


def identity(images: str, slices: pd.DataFrame, label: str) -> str:
    """Checksum of what is learnt from: the store's checksum of its images, and patient, cohort and
    column ``label`` of ``slices``, the rows used: a label corrected elsewhere trains nothing again.
    """
    used = slices[["patient", "cohort", label]].to_csv(index=False)
    return hashlib.sha256(f"{images}{used}".encode()).hexdigest()


def save_checkpoint(path: Path, step: int, log: list[dict], config: Config, **parts) -> None:
    """Everything needed to go on after ``step`` steps, in one file that is replaced as a whole.

    Args:
        path, step, log: file to write, steps done, rows of the log so far.
        config: settings; a checkpoint of other settings is refused by :func:`load_checkpoint`.
        parts: objects with ``state_dict``, or generators; None where a run has no such part.

    Raises:
        ValueError: if a value is not finite: an earlier checkpoint stays.
    """
    state = {
        name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
        for name, part in parts.items()
        if part is not None
    }
    losses, when = [row["loss"] for row in log], f" after {step} steps"
    check_sound(f"{path}, not written", state, losses, when=when)
    log = json.loads(json.dumps(log, default=lambda v: v.item()))  # no numbers of numpy
    content = io.BytesIO()  # a full disk is then an error that says so
    about = {"step": int(step), "log": log, "config": asdict(config), "code": code()}
    torch.save(about | state, content)
    with whole(path) as temporary:
        temporary.write_bytes(content.getbuffer())


@cache  # an update while this runs is not what runs
def code(*names: str) -> dict[str, str]:
    """Checksums of files of this package, by default those that say what a step is."""
    files = (Path(__file__).parent / f"{name}.py" for name in names or STEP.split())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def load_checkpoint(path: Path, config: Config, **parts) -> tuple[int, list[dict]]:
    """Put a checkpoint's state back into the given parts.

    Returns:
        Steps done and the log so far; ``(0, [])`` when there is no checkpoint. One that other
        code began is warned of.

    Raises:
        ValueError: if the file is damaged, of other settings or of a run that diverged; says so.
    """
    if not path.exists():
        return 0, []
    advice = "; delete it, or use existing=restart"
    try:
        with zipfile.ZipFile(path) as file:  # torch itself does not compare checksums
            if damaged := file.testzip():
                raise ValueError(f"{damaged} is damaged")
        state = torch.load(path, weights_only=True, map_location="cpu")
        then, log, step = dict(state["config"]), state["log"], state["step"]
        losses, other = [row["loss"] for row in log], differences(then, config)
        own = {} if other else {k: state[k] for k, part in parts.items() if part is not None}
    except Exception as error:
        said = " ".join(str(error).partition(". ")[0].split())  # torch goes on for a page
        raise ValueError(f"{path}: not a readable checkpoint ({said}){advice}") from None
    unknown = ", ".join(f"{k}: unknown here" for k in then if not hasattr(config, k))
    if other := other or unknown:
        other = f"written with other settings ({other})"
        raise ValueError(f"{path}: {other}{advice} or another run_dir")
    check_sound(path, own, losses, advice)
    now = code()
    if other := ", ".join(k for k, v in state.get("code", {}).items() if now.get(k) != v):
        words = f"{path}: begun with another {other}, so that the run is of both"
        warnings.warn(f"{words}: existing=restart begins anew", stacklevel=2)
    if step not in range(config.n_steps + 1):
        raise ValueError(f"{path}: {step} of {config.n_steps} steps{advice}")
    for name, values in own.items():
        load = getattr(parts[name], "load_state_dict", None) or parts[name].set_state
        try:
            load(values)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            said = " ".join(str(error).split())
            raise ValueError(f"{path}: {name} is another one ({said}){advice}") from None
    return step, log


def check_sound(where, state: dict, losses: list[float], advice="", when="") -> None:
    """Refuse weights or losses that are not finite; says which, and what to do (ValueError)."""
    if lost := _not_finite({**state, "loss": losses}):
        raise ValueError(f"{where}: {lost} is not finite{when}{LOST}{advice}")


def _not_finite(state, name: str = "") -> str:
    """Name of the first tensor or loss with a value that is not finite, or ""."""
    if isinstance(state, (Tensor, float, np.ndarray, np.floating)):
        return "" if torch.as_tensor(state).isfinite().all() else name
    pairs = state.items() if isinstance(state, dict) else enumerate(state)
    inner = (dict, list, tuple, Tensor, float, np.ndarray, np.floating)
    found = (_not_finite(v, f"{name}.{k}".strip(".")) for k, v in pairs if isinstance(v, inner))
    return next(filter(None, found), "")


def check_existing(existing: str, folder: Path, config: Config) -> bool:
    """Whether there is nothing to ``resume``: a run of these settings was finished by this code.
    One of others is refused, unless to ``replace``: a ValueError says what differs, what to do."""
    now, files = code(), [folder / name for name in ("config.json", "encoder.safetensors")]
    if existing not in ("resume", "restart", "replace"):
        raise ValueError(f"existing={existing!r}: choose resume, restart or replace")
    if existing == "replace" or not all(file.exists() for file in files):
        return False
    found, sha = read_json(files[0]), hashlib.sha256(files[1].read_bytes()).hexdigest()
    if other := differences(found, config):
        advice = "give this one a name (name), or say existing=replace"
        raise ValueError(f"{folder} holds a finished run of other settings ({other}): {advice}")
    same = (found.get("code"), found.get("encoder_sha256")) == (now, sha)  # and both are whole
    return same and existing == "resume" and not (folder / "checkpoint.pt").exists()


def differences(then: dict, config) -> str:
    """In which settings a dataclass differs from those of a file, in words; "" if in none."""
    then, now = (json.loads(plain_json(settings)) for settings in (then, asdict(config)))
    odd = (k for k in now if then.get(k) != now[k])
    return ", ".join(f"{k}: {then.get(k)} there, {now[k]} now" for k in odd)


def save_run(
    folder: Path, encoder: torch.nn.Module, config: Config, log: list[dict], **facts
) -> None:
    """Write ``log.csv``, ``config.json`` and, last, ``encoder.safetensors``; each appears whole or
    not at all.

    Weights are in float32; ``facts`` of the run (seconds, versions) are kept in ``config.json``.
    """
    while {*encoder._modules} in ({"_orig_mod"}, {"module"}):  # wrapped by torch.compile, DDP
        (encoder,) = encoder._modules.values()  # without the names that these add
    state = {k: v.cpu().contiguous() for k, v in encoder.state_dict().items()}
    content = save({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    facts |= {"code": code(), "encoder_sha256": hashlib.sha256(content).hexdigest()}
    write_csv(folder / "log.csv", pd.DataFrame(log, columns=None if log else ["step"]))
    write_text(folder / "config.json", plain_json({**asdict(config), **facts}))
    with whole(folder / "encoder.safetensors") as file:
        file.write_bytes(content)

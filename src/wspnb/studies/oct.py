"""Clinical values as weak labels (Kokilepersaud et al. 2023), and how biomarkers are judged."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import accuracy_score, precision_score, recall_score, roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from wspnb.data.bscans import BIOMARKERS
from wspnb.data.store import digest_file
from wspnb.files import read_csv, read_json
from wspnb.folds import check_names
from wspnb.kernels import gaussian, mixture, same_label, same_slice
from wspnb.losses import contrastive_loss
from wspnb.models import build_encoder, build_head, seeded, two_layers
from wspnb.momentum import MODULES, Moco
from wspnb.pretrain import code, differences, verdict
from wspnb.probe import classifier
from wspnb.results.statistics import ends, interval, pairwise_wins

# Method -> kernel of a batch, from its values and the widths or weights in ``s``. Widths of BCVA
# and CST are in units of their SD, that of the position as WSP's.
KERNELS = {
    "simclr": lambda v, s: same_slice(v["bcva"]),
    "bcva": lambda v, s: same_label(v["bcva"]),
    "cst": lambda v, s: same_label(v["cst"]),
    "eye": lambda v, s: same_label(v["eye"]),
    "bcva_cst": lambda v, s: mixture(
        [same_label(v["bcva"]), same_label(v["cst"])], [s["alpha"], 1 - s["alpha"]]
    ),
    "soft": lambda v, s: (
        gaussian(v["bcva"], s["sigma_bcva"] * s["sd_bcva"])
        * gaussian(v["cst"], s["sigma_cst"] * s["sd_cst"])
        * gaussian(v["position"], s["sigma"])
    ),
}
ROWS = {
    "random": "None (random)",
    "supervised": "Supervised",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "moco": "MoCo v2",
    "bcva": "BCVA",
    "cst": "CST",
    "eye": "Eye",
    "bcva_cst": "BCVA + CST",
    "soft": "BCVA x CST x position (ours)",
    # without negatives, with the batch norms of the originals: kernel of the identity, or ours
    "byol_simclr": "BYOL with batch norms",
    "byol_soft": "BYOL with ours",
    "simsiam_simclr": "SimSiam",
    "simsiam_soft": "SimSiam with ours",
    "barlow_simclr": "Barlow Twins",
    "barlow_soft": "Barlow Twins with ours",
}
COLOURS = "#999999 #000000 #56B4E9 #CC79A7 #888844 #E69F00 #F0E442 #0072B2 #009E73 #D55E00".split()
COLOURS += "#E8B9D2 #B0447E #C9C98A #5E5E20 #B3D9F2 #1F5F86".split()
COLOURS = dict(zip(ROWS, COLOURS, strict=True))


@dataclass(frozen=True)
class Settings:
    """Settings of one training, checked when made; saved beside the encoder.

    Raises:
        ValueError: names the setting and the value received.
    """

    method: str
    backbone: str
    norm: str
    seed: int
    optimizer: str
    batch_size: int
    n_steps: int
    warmup_steps: int
    learning_rate: float
    weight_decay: float
    temperature: float
    alpha: float
    sigma: float
    sigma_bcva: float
    sigma_cst: float
    n_keys: int
    momentum: float
    precision: str
    image_size: int
    data: str  # checksum of the store

    def __post_init__(self):
        if self.method not in ROWS:
            raise ValueError(f"method={self.method!r}: choose one of {', '.join(ROWS)}")
        positive = ("n_steps", "learning_rate", "temperature", "n_keys")
        for name in (*positive, "sigma", "sigma_bcva", "sigma_cst"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")
        if self.optimizer not in ("adam", "sgd"):
            raise ValueError(f"optimizer={self.optimizer!r}: choose adam or sgd (authors)")
        if not self.batch_size > 1:
            raise ValueError(f"batch_size={self.batch_size}: must be 2 or more")
        if not 0 <= self.alpha <= 1 or not 0 <= self.momentum < 1:
            raise ValueError(f"alpha={self.alpha}, momentum={self.momentum}: shares are 0 to 1")


def finished(folder: Path, settings: Settings) -> bool:
    """Whether a folder holds the encoder of these very settings and this code."""
    file = folder / "encoder.safetensors"
    if not file.exists():
        return False
    found = read_json(folder / "config.json")  # of another encoder if killed between the two
    same = found.get("encoder_sha256") == digest_file(file) and found.get("code") in (None, code())
    return same and not differences(found, settings)


def collapsed(folder: Path) -> bool:
    """Whether a finished training ended at embeddings without spread, see
    :func:`wspnb.pretrain.verdict`; the untrained and the supervised network train no head: no."""
    if read_json(folder / "config.json")["method"] in ("random", "supervised"):
        return False
    log = read_csv(folder / "log.csv").to_dict("records")
    return verdict("byol", log, 0) == "embeddings collapsed"  # by the spread alone


def clinical_kernel(method: str, values: dict[str, Tensor], settings: dict[str, float]) -> Tensor:
    """Kernel ``(n, n)`` of a clinical method (a key of ``KERNELS``) for one batch.

    Args:
        values: bcva, cst, eye, position of each scan, ``(n,)``.
        settings: alpha; sigma_bcva and sigma_cst in units of sd_bcva and sd_cst; sigma.

    Raises:
        ValueError: if the method has no kernel.
    """
    if method not in KERNELS:
        raise ValueError(f"method={method!r} has no kernel: choose one of {', '.join(KERNELS)}")
    return KERNELS[method](values, settings)


def build(settings: Settings):
    """Encoder, head and what the method needs besides (module of a loss without negatives, MoCo's
    following copy, the supervised layer of the biomarkers, or an empty module), with weights that
    depend on the seed alone."""
    family, _, kernel = settings.method.partition("_")
    norm = family in MODULES and kernel != ""
    encoder = build_encoder(settings.backbone, settings.norm, settings.seed)
    encoder = encoder.to(memory_format=torch.channels_last)
    head = build_head(settings.backbone, settings.seed, norm)
    if settings.backbone == "resnet18":  # the authors' head is wider than WSP's
        with seeded(settings.seed + 1_000_003):
            head = two_layers(512, 512, 128, norm)
    if family in MODULES:
        made = MODULES[family](encoder, head, settings.backbone, settings.seed, norm)
        return encoder, head, made
    if settings.method == "moco":
        return encoder, head, Moco(encoder, head, settings.n_keys, settings.temperature)
    if settings.method != "supervised":
        return encoder, head, nn.Module()
    layer = nn.Linear(encoder.n_features, len(BIOMARKERS))
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return encoder, head, layer


def optimizer(parts: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """SGD with momentum 0.9 as the authors', or Adam.

    Adam is a deviation of the laptop profile, chosen by the losses of SimCLR alone: in 100 steps
    SGD with the authors' rate (and with a fifth of it) ends at equal embeddings.
    """
    given = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adam":
        return torch.optim.Adam(parts.parameters(), **given)
    return torch.optim.SGD(parts.parameters(), momentum=0.9, **given)


def loss(
    extra: nn.Module,
    features: Tensor,
    view_1: Tensor,
    view_2: Tensor,
    views: Tensor,
    truth: Tensor,
    values: dict[str, Tensor],
    settings: Settings,
    widths: dict[str, float],
) -> Tensor:
    """Loss of one batch: cross-entropy (supervised), MoCo's, one without negatives, or the
    contrastive loss of all others; the last two with the method's kernel.

    Args:
        extra: third part of :func:`build`.
        features: of both views, ``(2n, d)``.
        view_1, view_2: embeddings of each view, ``(n, dim)``.
        views: the images, ``(2n, 1, h, w)``.
        truth: biomarkers, 0/1, ``(n, k)``; read by the supervised method only.
        values, widths: of the scans and the kernels, see :func:`clinical_kernel`.
    """
    if settings.method == "supervised":
        target = truth.to(features.device).repeat(2, 1)
        return binary_cross_entropy_with_logits(extra(features).float(), target)
    if settings.method in ("byol", "moco"):
        return extra(view_1, view_2, views)
    family, _, name = settings.method.partition("_")
    name = name if family in MODULES else settings.method
    kernel = clinical_kernel(name, values, widths).to(view_1.device)
    if family in MODULES:
        return extra(view_1, view_2, views, kernel)
    return contrastive_loss(view_1, view_2, kernel, settings.temperature)


def result_table(labels, runs: dict, patients, n: int = 2000) -> pd.DataFrame:
    """Macro AUROC of each method: mean and SD over seeds, 95 % interval over patients, difference.

    Args:
        labels, patients: of each scan, 0/1 ``(m, k)`` and ``(m,)``.
        runs: method -> probabilities of each seed, ``(m, k)`` each.

    Returns:
        One row per method: method, seeds, macro_auroc, seed_sd, low, high; the mean of the metrics
        over biomarkers and seeds; the AUROC of each biomarker; "soft" minus the method with its
        interval over patients (NaN where there is no "soft"); and ``gain``, what the product kernel
        adds to the method's own loss, likewise (NaN for other kernels).
    """
    draws = {m: macro_draws(labels, own, patients, n).mean(1) for m, own in runs.items()}
    found = {m: [biomarker_metrics(labels, run) for run in own] for m, own in runs.items()}
    macro = {m: pd.Series([table.auroc.mean() for table in own]) for m, own in found.items()}
    soft, rows = macro.get("soft", pd.Series(dtype=float)).mean(), []
    for method, own in macro.items():
        both, (low, high) = pd.concat(found[method]), ends(draws[method])
        row = {"method": ROWS[method], "seeds": len(own), "macro_auroc": own.mean()}
        row |= {"seed_sd": own.std(), "low": low, "high": high}
        row |= both[["rounded", "accuracy", "precision"]].mean()
        row |= both.loc[both.rounded.notna(), ["recall", "specificity"]].mean()  # of the same ones
        row |= {f"auroc_{name}": both.auroc[name].mean() for name in BIOMARKERS}
        gap = draws["soft"] - draws[method] if soft == soft and method != "soft" else []
        row |= {"soft_minus": soft - own.mean()}
        row |= dict(zip(("soft_minus_low", "soft_minus_high"), ends(gap), strict=True))
        plain = method.replace("soft", "simclr") if "soft" in method else None
        gain, gap = np.nan, []
        if plain in macro:
            gain, gap = own.mean() - macro[plain].mean(), draws[method] - draws[plain]
        names = ("gain", "gain_low", "gain_high")
        rows.append(row | dict(zip(names, (gain, *ends(gap)), strict=True)))
    return pd.DataFrame(rows)


def findings(table: pd.DataFrame) -> list[str]:
    """What a :func:`result_table` says, in words: who is first, and where "soft" stands."""
    best = table.loc[table.macro_auroc.idxmax()]
    ends_of = interval(best.low, best.high)
    lines = [f"{best.method} is first with {best.macro_auroc:.2f}{ends_of}."]
    if len(ours := table.macro_auroc[table.method == ROWS["soft"]]):
        own = ours.iloc[0]
        place = (table.macro_auroc > own).sum() + 1
        words = f"The product kernel (ours) has {own:.2f}, place {place} of {len(table)}"
        sides = {"ahead of": table.soft_minus_low > 0, "behind": table.soft_minus_high < 0}
        for side, those in sides.items():
            cells = table[those].apply("{0.method} ({0.soft_minus:+.2f})".format, axis=1)
            words += f"; {side} {', '.join(cells)}" if those.any() else ""
        lines.append(f"{words}; from the others it is not told by the interval over patients.")
    names = {ROWS["soft"]: ROWS["simclr"]}  # whose loss it is
    gains = [
        f"to {names.get(r.method, r.method.removesuffix(' with ours'))} "
        f"{r.gain:+.2f}{interval(r.gain_low, r.gain_high, '+.2f')}"
        for r in table[table.gain.notna()].itertuples()
    ]
    if gains:
        lines.append(f"What the product kernel adds: {', '.join(gains)}.")
    return lines


def probabilities(features, labels, train, test) -> np.ndarray:
    """Probability ``(len(test), k)`` of each biomarker in the test scans, from one linear layer
    each.

    The layer is the logistic regression of notebook 03, its C *paper silent*. Under the multi-label
    loss (a sum of binary cross-entropies) a shared linear layer falls apart into the same layers.

    Args:
        features, labels: ``(n, d)``; 0/1, ``(n, k)``.
        train, test: row numbers.
    """
    given, found = np.asarray(labels), []
    if not np.isin(given, (0, 1)).all():
        raise ValueError("labels of biomarkers: 0 or 1, none missing: leave those scans out")
    labels = given.astype(int)
    for own in labels.T:
        if len(np.unique(own[train])) < 2:  # nothing to learn: the class that all have
            found.append(np.full(len(features[test]), float(own[train][0])))
        else:
            layer = classifier(0.01).fit(features[train], own[train])
            found.append(layer.predict_proba(features[test])[:, 1])
    return np.stack(found, axis=1)


def biomarker_metrics(labels, scores) -> pd.DataFrame:
    """Accuracy, precision, recall, specificity at one half, and AUROC of each biomarker.

    Args:
        labels, scores: 0/1 and probabilities, ``(n, 6)``, columns as ``BIOMARKERS``.

    Returns:
        One row per biomarker; ``rounded`` is the AUROC of the scores rounded to 0 or 1, which is
        (recall + specificity) / 2 and no AUROC of the scores; ratios without cases are NaN.
    """
    rows, zero = [], {"zero_division": np.nan}
    for truth, score in zip(np.asarray(labels).T, np.asarray(scores).T, strict=True):
        called, both = (score >= 0.5).astype(int), 0 < truth.sum() < len(truth)
        row = {"accuracy": accuracy_score(truth, called)}
        row["precision"] = precision_score(truth, called, **zero)
        row["recall"] = recall_score(truth, called, **zero)
        row["specificity"] = recall_score(truth, called, pos_label=0, **zero)
        row["auroc"] = roc_auc_score(truth, score) if both else np.nan
        row["rounded"] = roc_auc_score(truth, called) if both else np.nan
        rows.append(row)
    return pd.DataFrame(rows, list(BIOMARKERS))


def macro_draws(labels, runs, patients, n: int = 2000, seed: int = 0) -> np.ndarray:
    """Macro AUROC of each run under ``n`` resamples of the patients, ``(n, n_runs)``.

    Scans of a patient stay together; one patient fewer is drawn than there are (Rao and Wu 1988). A
    pair of scans counts as often as its two patients are drawn. Resamples are the same for all
    runs, so that differences are paired. A biomarker that a resample lacks is left out of its mean.

    Args:
        labels: 0/1, ``(m, k)``.
        runs: probabilities of each run, ``(m, k)`` each.
        patients: of each scan, ``(m,)``.
    """
    check_names(patients)
    number, names = pd.factorize(np.asarray(patients))
    size, labels = len(names), np.asarray(labels)
    belongs = np.eye(size)[number]  # (m, size)
    drawn = np.random.default_rng(seed).integers(size, size=(n, max(size - 1, 1)))
    cells = (drawn + size * np.arange(n)[:, None]).ravel()
    times = np.bincount(cells, minlength=n * size).reshape(n, size).astype(float)
    total = []
    for run in runs:
        aucs = []
        for truth, score in zip(labels.T, np.asarray(run).T, strict=True):
            yes, no = belongs[truth == 1], belongs[truth == 0]
            wins = yes.T @ pairwise_wins(truth, score) @ no  # (size, size)
            pairs = np.outer(yes.sum(0), no.sum(0))
            above, all_of = (np.einsum("np,pq,nq->n", times, x, times) for x in (wins, pairs))
            aucs.append(np.divide(above, all_of, out=np.full(n, np.nan), where=all_of > 0))
        total.append(pd.DataFrame(aucs).mean().to_numpy())
    return np.stack(total, axis=1)

"""Judging a frozen encoder: features and patient-level cross-validation."""

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wspnb.files import plain_json, read_csv, read_json, whole, write_csv, write_text
from wspnb.folds import check_classes, check_whole, checked, cohorts_of, deal, patient_folds

if TYPE_CHECKING:  # scores of features need no torch, which takes seconds
    from torch import nn

# Settings of the pretraining that runs in one table must share.
EQUAL_SETTINGS = ("n_steps", "warmup_steps", "batch_size", "learning_rate", "weight_decay")
EQUAL_SETTINGS += ("sigma", "temperature", "norm", "image_size", "translate", "crop_area")
EQUAL_SETTINGS += ("normalise", "convention", "severe_from", "train_cohort", "data", "precision")


class Probe(NamedTuple):
    """One cross-validation: out-of-fold score of each patient, AUC of each fold."""

    scores: pd.DataFrame  # one row per patient: patient, label, fold, score
    fold_auc: np.ndarray  # (n_folds,)

    @property
    def mean(self) -> float:
        return float(self.fold_auc.mean())

    @property
    def sd(self) -> float:
        return float(self.fold_auc.std(ddof=1)) if len(self.fold_auc) > 1 else float("nan")


def load_encoder(
    folder: Path | None, backbone: str, norm: str, seed: int
) -> tuple["nn.Module", dict]:
    """The encoder of a finished pretraining, or the untrained one of that seed (``folder`` None),
    in evaluation mode, and the run's ``config.json`` (empty when untrained).

    Raises:
        FileNotFoundError: if the run is not finished; says which notebook makes it.
        ValueError: if the run's config names another backbone, norm or seed, or the weights are not
            those that were written.
    """
    from safetensors.torch import load

    from wspnb.models import build_encoder

    encoder = build_encoder(backbone, norm, seed)
    if folder is None:
        return encoder.eval(), {}
    file = find_encoder(folder)
    found = read_json(folder / "config.json")
    wanted = {"backbone": backbone, "norm": norm, "seed": seed}
    if wrong := {k: found.get(k) for k, v in wanted.items() if found.get(k) != v}:
        raise ValueError(f"{folder / 'config.json'} says {wrong}, asked for {wanted}")
    content = file.read_bytes()
    if found.get("encoder_sha256", digest := hashlib.sha256(content).hexdigest()) != digest:
        raise ValueError(f"{file}: damaged, or not the encoder that was written: run 02 again")
    try:
        encoder.load_state_dict(load(content))
    except Exception as error:
        raise ValueError(f"{file}: no encoder of {backbone} ({error}): run 02 again") from None
    if not all(weights.isfinite().all() for weights in encoder.state_dict().values()):
        raise ValueError(f"{file}: weights not finite, the training diverged: run 02 again")
    return encoder.eval(), found


def find_encoder(folder: Path) -> Path:
    """The file of a finished pretraining; FileNotFoundError says which notebook makes it."""
    file = folder / "encoder.safetensors"
    if not file.exists():
        first = "run 02_pretrain with this method, backbone and seed first"
        raise FileNotFoundError(f"{file} does not exist: {first}")
    return file


def read_probe(folder: Path) -> dict:
    """``results.json`` of a finished probe, of the encoder that is there now.

    Raises:
        FileNotFoundError: if the probe is not finished.
        ValueError: if the encoder was trained anew since.
    """
    if not (folder / "results.json").exists():
        raise FileNotFoundError(f"{folder} is not complete: run 03_linear_probe for it")
    found = read_json(folder / "results.json")
    config = folder.parents[1] / "pretrain" / folder.name / "config.json"
    if found.get("encoder") and config.exists():  # those of another pretrain_dir carry None
        if read_json(config).get("encoder_sha256") != found["encoder"]:
            raise ValueError(f"{folder}: its encoder was trained anew since: run 03 again")
    return found


def check_unseen(trained: dict, store: dict, cohorts: list[str]) -> None:
    """Refuse to judge an encoder on what it was trained on, or on slices of another size.

    Args:
        trained: config of the pretraining, empty when untrained; ImageNet's is let pass.
        store, cohorts: settings of the slices to judge on, and names of the cohorts.

    Raises:
        ValueError: if the pretraining saw one of the cohorts, or the image sizes differ.
    """
    from wspnb.pretrain import UNTRAINED

    if not trained or trained.get("method") in UNTRAINED:  # has seen no CT
        return
    cohort, images = trained["train_cohort"], trained.get("images", trained["data"])
    if images == store["sha256"] and cohort in cohorts:
        found = f"the encoder was pretrained on cohort {cohort!r} of these data"
        raise ValueError(f"{found}: judge it on patients it has not seen")
    if trained["image_size"] != store["image_size"]:
        raise ValueError(
            f"the encoder was pretrained on {trained['image_size']} px slices, these have "
            f"{store['image_size']} px: preprocess them alike"
        )


def extract_features(
    encoder: "nn.Module", images: np.ndarray, rows, batch_size: int = 16, progress=None
) -> np.ndarray:
    """Frozen features of slices, ``(n, d)`` float32, not augmented (paper: none at inference).

    Args:
        encoder: ``(b, 1, h, w)`` in [0, 1] -> ``(b, d)``; used on its device, weights channels last
            (twice as fast on a CPU), in evaluation mode; it is given back as it was.
        images: the store, ``(n_slices, h, w)`` uint8, may be memory-mapped.
        rows: slice numbers to read, ``(n,)``, or which, ``(n_slices,)`` bool.
        batch_size: slices at a time. With 32 of 160 px a layer exceeds what glibc keeps (32 MB):
            every batch asks for zeroed pages anew, a third slower, the same features.
        progress: wraps the iterable of batches (``tqdm``), or None.

    Raises:
        ValueError: no slice to read, or an encoder of half precision or of other results.
    """
    import torch

    from wspnb.augment import to_unit
    from wspnb.models import evaluating

    rows, plain = np.asarray(rows), all(w.is_contiguous() for w in encoder.parameters())
    rows = np.flatnonzero(rows) if rows.dtype == bool and len(rows) == len(images) else rows
    sound = rows.ndim == 1 and rows.dtype.kind in "iu" and len(rows) and rows.min() >= 0
    if not sound or images.ndim != 3:  # -1, not found, would be the last slice
        found = f"rows {rows.dtype} {rows.shape} {[*rows.flat[:3]]}, images {images.shape}"
        raise ValueError(f"no slice to take features of: {found}, give numbers, or a bool for each")
    check_whole("batch_size", batch_size, 1)
    weight, features = next(encoder.parameters(), torch.empty(0)), []
    if weight.dtype.itemsize < 4:
        raise ValueError(f"the encoder is in {weight.dtype}: features are float32, take .float()")
    encoder.to(memory_format=torch.channels_last)
    batches = np.split(rows, np.arange(0, len(rows), int(batch_size))[1:])
    try:
        off = torch.autocast(weight.device.type, enabled=False)
        with evaluating(encoder), torch.inference_mode(), off:
            for batch in progress(batches) if progress else batches:
                pixels = torch.from_numpy(np.asarray(images[batch])).to(weight.device)
                found = encoder(to_unit(pixels[:, None]).to(weight.dtype))
                if not isinstance(found, torch.Tensor) or found.shape[:-1] != (len(batch),):
                    kind = getattr(found, "shape", type(found).__name__)
                    raise ValueError(f"the encoder gave {kind}, expected features (b, d)")
                features.append(found.float().cpu().numpy())
    finally:
        if plain:  # it is left as it was
            encoder.to(memory_format=torch.contiguous_format)
    return np.concatenate(features)


def features_key(encoder: "nn.Module", data: str, rows) -> str:
    """What features depend on, as one SHA-256: layers, code and weights of the encoder, checksum of
    the store, slice numbers."""
    import torch

    from wspnb.pretrain import code

    digest = hashlib.sha256(f"{encoder}{data}{code('models', 'augment', 'encoders')}".encode())
    rows = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else rows
    digest.update(np.asarray(rows, dtype=np.int64).tobytes())
    for name, values in encoder.state_dict().items():
        values = values.cpu().reshape(-1).view(torch.uint8)  # numpy has no bfloat16
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()


def saved_features(folder: Path, key: str) -> np.ndarray | None:
    """Features that :func:`save_probe` wrote for this key, ``(n, d)``; None without such."""
    file = folder / "results.json"
    found = read_json(file) if file.exists() else {}
    if found.get("features") != key or not (folder / "features.npy").exists():
        return None
    content = (folder / "features.npy").read_bytes()
    same = found.get("features_sha256") == hashlib.sha256(content).hexdigest()
    return np.load(io.BytesIO(content)) if same else None


def classifier(C: float):
    """Scaler and L2-penalised logistic regression; scaling, penalty and C are *paper silent*.

    Classes are weighted equally, as D1 and D2 are unbalanced in opposite directions. Newton steps
    suit many slices of few features: the optimum of the default solver, many times faster.
    """
    regression = LogisticRegression(C=C, class_weight="balanced", solver="newton-cholesky")
    return make_pipeline(StandardScaler(), regression)


def cross_validate(
    features, labels, patients, C: float = 0.01, n_folds: int = 5, seed: int = 0
) -> Probe:
    """Linear probe by stratified folds of patients (paper, section 3: five, mean over slices).

    Scaler and regression see the training part alone; all slices of a patient are on one side.

    Args:
        features: ``(n_slices, d)``.
        labels, patients, n_folds, seed: as :func:`wspnb.folds.patient_folds`; methods share folds.
        C: inverse strength of the L2 penalty.

    Returns:
        Scores of the held-out patients and AUC per fold. ValueError as there.
    """
    people = patient_folds(labels, patients, n_folds, seed)
    people["score"] = held_out_scores(features, labels, patients, people, C)
    return Probe(people, fold_auc(people))


def judge(
    features, slices: pd.DataFrame, group: str, C: float = 0.01, n_folds: int = 5, seed: int = 0
) -> Probe:
    """Linear probe of an entry of ``evaluate``: by folds, or fitted on one cohort, judged on one.

    Args:
        features, slices: ``(n_slices, d)``; cohort, patient and label of each, row by row.
        group: "d1", "d1+d2", or "d1>d2"; see :func:`wspnb.folds.sides`.
        C, n_folds, seed: as :func:`cross_validate`; with ">" the folds are those of the threshold.

    Returns:
        As there, with the ``threshold`` of their fold for each patient; with ">" one AUC.

    Raises:
        ValueError: as there, or if a patient is on both sides of ">".
    """
    keep = slices.cohort.isin(cohorts_of([group])).to_numpy()
    features = np.asarray(features)
    if len(features) != len(slices):
        raise ValueError(f"{len(features)} features of {len(slices)} slices: give one row each")
    people = deal(slices, group, n_folds, seed)
    given = features[keep], slices.label[keep], slices.patient[keep]
    people["score"] = held_out_scores(*given, people, C)
    people["threshold"] = fold_thresholds(*given, people, C, seed, n_folds)
    people = people[people.fold >= 0].reset_index(drop=True)
    return Probe(people, fold_auc(people))


def held_out_scores(features, labels, patients, people: pd.DataFrame, C: float) -> np.ndarray:
    """Mean slice probability of each patient of ``people`` (of :func:`patient_folds`), from a
    classifier that was fitted without their fold; the others as :func:`cross_validate`."""
    features, labels, patients = checked(features, labels, patients)
    fold_of_slice = pd.Series(patients).map(people.set_index("patient").fold).to_numpy()
    if lost := int(np.isnan(fold_of_slice).sum()):
        raise ValueError(f"{lost} slices are of nobody in people: name the patient of each")
    scores = []
    for fold in people.fold[people.fold >= 0].unique():
        test = fold_of_slice == fold
        model = classifier(C).fit(features[~test], labels[~test])
        probability = model.predict_proba(features[test])[:, 1]
        scores.append(pd.Series(probability).groupby(patients[test]).mean())
    return people.patient.map(pd.concat(scores)).to_numpy()


def fold_thresholds(features, labels, patients, people, C: float = 0.01, seed=0, n_folds=None):
    """Threshold for each fold from the patients outside it: Youden's, on inner held-out scores.

    How the paper's thresholds were chosen is *paper silent*. An inner cross-validation (as many
    folds, fewer if a class is smaller) scores the training patients, as a classifier separates the
    patients it was fitted on too well for a threshold. Where only one patient of a class is outside
    the fold there is nothing to choose on, and the threshold is 0.5.

    Args:
        features, labels, patients, C: as :func:`cross_validate`.
        people: scores of :func:`cross_validate`, for its folds.
        seed, n_folds: of the inner folds; None for as many as ``people`` has.

    Returns ``(n_patients,)``, one for each row of ``people``.
    """
    features, labels, patients = checked(features, labels, patients)
    thresholds, folds = {}, people.fold[people.fold >= 0].unique()
    for fold, training in ((fold, people[people.fold != fold]) for fold in folds):
        part = np.isin(patients, training.patient)
        n_inner = min(n_folds or people.fold.nunique(), training.label.value_counts().min())
        if n_inner < 2:
            thresholds[fold] = 0.5
            continue
        inner = patient_folds(labels[part], patients[part], n_inner, seed)
        scores = held_out_scores(features[part], labels[part], patients[part], inner, C)
        thresholds[fold] = youden(inner.label, scores)
    return people.fold.map(thresholds).to_numpy()


def youden(labels, scores) -> float:
    """Threshold of the largest sensitivity + specificity (Youden 1950), halfway to the next lower
    score; who is at or above it is called positive."""
    if len(set(labels)) != 2:
        raise ValueError(f"labels {np.unique(labels).tolist()}: a threshold is between two classes")
    false_positive, true_positive, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    kind = np.result_type(np.asarray(scores), np.float16)
    thresholds[0] = np.nextafter(kind.type(thresholds[1]), kind.type(np.inf))  # nobody positive
    best = int(np.argmax(true_positive - false_positive))
    pair = thresholds[best : best + 2]
    middle = kind.type(pair.mean())  # as scores are: of two neighbouring numbers it is one
    return float(pair[0] if middle <= pair[-1] else middle)


def fold_balanced_accuracy(people: pd.DataFrame) -> np.ndarray:
    """Balanced accuracy of each fold of patients at its threshold, ``(n_folds,)``."""
    check_classes(people, "score", "threshold")
    called = people.assign(decision=(people.score >= people.threshold).astype(int))
    folds = called.groupby("fold")[["label", "decision"]]
    return folds.apply(lambda p: balanced_accuracy_score(p.label, p.decision)).to_numpy()


def plane_quality(
    plane, positions, labels, patients, neighbours: int = 15, n_folds: int = 5
) -> dict[str, float]:
    """What the eye can read from a plane, as numbers: depth and class predicted from neighbours of
    other patients.

    Args:
        plane: coordinates ``(n, 2)``.
        positions, labels, patients: of each slice, in [0, 1], 0 or 1, by name, ``(n,)``.
        neighbours: number of neighbours.
        n_folds: groups of patients, fewer if a class is smaller.

    Returns:
        ``depth_r2`` of the held-out slices (1 = read off exactly, <= 0 = not at all) and
        ``class_auc`` of the held-out patients (mean probability over their slices; 0.5 = not at
        all); NaN where there is nothing to read: all positions equal, one class, one patient, two
        slices.
    """
    plane, labels, patients = checked(plane, labels, patients)
    positions = np.asarray(positions, float)
    if positions.shape != (len(plane),) or not np.isfinite(positions).all():
        found = f"positions {positions.shape} of {len(plane)} slices"
        raise ValueError(f"{found}, {np.isnan(positions).sum()} missing: give one each")
    if len(set(patients)) < 2 or np.bincount(labels).max() < 2:
        return {"depth_r2": np.nan, "class_auc": np.nan}
    depth, score, fold = np.zeros((3, len(plane)))
    fewest = pd.Series(labels, patients).groupby(level=0).first().value_counts().min()
    splitter = StratifiedGroupKFold(max(2, min(n_folds, fewest)), shuffle=True, random_state=0)
    for number, (train, test) in enumerate(splitter.split(plane, labels, patients)):
        fold[test] = number
        k = min(neighbours, len(train))
        reader = KNeighborsRegressor(k).fit(plane[train], positions[train])
        depth[test] = reader.predict(plane[test])
        model = KNeighborsClassifier(k).fit(plane[train], labels[train])
        score[test] = model.predict_proba(plane[test]) @ model.classes_
    columns = {"patient": patients, "label": labels, "score": score, "fold": fold}
    people = pd.DataFrame(columns).groupby("patient").mean().round(9)  # ties stay ties
    # One AUC per fold: scores of different folds lean against their own class shares.
    parts = [part for _, part in people.groupby("fold") if part.label.nunique() == 2]
    aucs = [roc_auc_score(part.label, part.score) for part in parts]
    return {
        "depth_r2": float(r2_score(positions, depth)) if np.ptp(positions) > 0 else np.nan,
        "class_auc": float(np.mean(aucs)) if aucs else np.nan,
    }


def fold_auc(people: pd.DataFrame) -> np.ndarray:
    """AUC of the patients of each fold, ``(n_folds,)``."""
    check_classes(people, "score")
    folds = people.groupby("fold")
    return folds[["label", "score"]].apply(lambda p: roc_auc_score(p.label, p.score)).to_numpy()


def save_probe(folder: Path, scores: pd.DataFrame, run: dict, features=None, slices=None) -> None:
    """Write ``features.npy`` and ``slices.csv`` (row-aligned, if given), ``scores.csv`` and, last,
    ``results.json``: a folder that holds it is complete, so an earlier one goes first."""
    (folder / "results.json").unlink(missing_ok=True)
    if features is not None:
        with whole(folder / "features.npy") as file:
            np.save(file, features.astype(np.float32))
            run = run | {"features_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        write_csv(folder / "slices.csv", slices)
    write_csv(folder / "scores.csv", scores)
    write_text(folder / "results.json", plain_json(run))


def read_slices(folder: Path) -> pd.DataFrame:
    """The slice of each row of a probe's ``features.npy``; names are text."""
    return read_csv(folder / "slices.csv")

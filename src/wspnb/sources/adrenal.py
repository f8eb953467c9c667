"""AdrenalMNIST3D as a cohort: real adrenal shapes from abdominal CT, normal against hyperplasia.

Source: MedMNIST v2 (Yang et al., Scientific Data 2023, doi 10.1038/s41597-022-01721-8), CC BY 4.0;
1,584 left and right glands of 792 patients, a binary mask each, 28 voxels a side of a 64 mm cube
about the gland. Which two are one patient's is not published, nor does the order tell: the
official parts are split by patient, but within a part every gland counts as a patient here, so
folds may part a patient's two glands and intervals over "patients" are too narrow. The grey
values of the CT are not published, and the anatomy of the axes is undocumented: by the shapes the
last axis runs along the body (the two limbs of the gland show across it), and LPS is assumed.
Whether it runs upwards, and which side a gland is from, cannot be told.

The label is strong (0 normal, 1 hyperplasia). A weak label is *simulated* for the training part.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pooch
from tqdm.auto import tqdm

from wspnb.data.volumes import write_image
from wspnb.files import write_csv
from wspnb.sources.downloads import fetch_file

URL = "https://zenodo.org/records/10519652/files/adrenalmnist3d.npz?download=1"
MD5 = "bbd3c5a5576322bc4cdfea780653b1ce"
COUNTS = {"train": 1188, "val": 98, "test": 298}
SPACING = 64 / 28  # mm
GLAND_ML = (0.0, 100.0)  # least and most of a mask, for wspnb.data.slices.write_slices
BACKGROUND, GLAND = -100, 400  # HU, the ends of the default window: the mask itself is the image


def fetch_adrenal(folder: str | Path, local: str | Path | None = None) -> Path:
    """The file with the official md5, 277 KB: the copy ``local`` of adrenalmnist3d.npz, used in
    place, or the one in ``folder``, downloaded if it is not there.

    Raises:
        FileNotFoundError: if the local copy is missing.
        ValueError: if it has another md5.
        ConnectionError: if the download fails.
    """
    if local:
        local = Path(local)
        if not local.is_file():
            raise FileNotFoundError(f"{local}: no such file; download it from {URL}")
        if (found := pooch.file_hash(str(local), alg="md5")) != MD5:
            advice = f"not the official {MD5}: download it from {URL}"
            raise ValueError(f"{local}: md5 {found}, {advice}")
        return local
    instead = "download it by hand and give its path (local)"
    return fetch_file(URL, folder, f"md5:{MD5}", "adrenalmnist3d.npz", instead)


def make_adrenal(
    folder: str | Path,
    local: str | Path | None = None,
    reader_accuracy: float = 0.82,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    r"""Write the patients as NIfTI volumes with masks and a cohort table, as any other CT.

    Cohort "train" (official training part): ``weak_label`` is the true label, wrong in a share
    :math:`1-a` of each class, drawn without replacement, so its balanced accuracy is :math:`a` up
    to rounding; ``weak_label_simulated`` says so and ``label`` is empty. Cohort "probe" (official
    validation and test parts): ``label`` only. ``true_label`` is for audits.

    Args:
        folder: receives volumes/, masks/ and cohort.csv, whose path is returned; volumes that exist
            are kept, as they follow from the checked source.
        local: see :func:`fetch_adrenal`.
        reader_accuracy: a, in [0.5, 1]; 0.82 is the radiologist's in the paper.
        seed: of the wrong weak labels.

    Raises:
        ValueError: if the accuracy is outside [0.5, 1], or the source is another file; others as
            :func:`fetch_adrenal`.
    """
    if not 0.5 <= reader_accuracy <= 1:
        raise ValueError(f"reader_accuracy {reader_accuracy}: choose a value in [0.5, 1]")
    folder = Path(folder)
    with np.load(fetch_adrenal(folder, local)) as source:
        shapes = {split: source[f"{split}_images"] for split in COUNTS}
        labels = {split: source[f"{split}_labels"][:, 0].astype(int) for split in COUNTS}
    weak = simulate_weak_labels(labels["train"], reader_accuracy, seed)
    patients = [(split, n) for split, count in COUNTS.items() for n in range(count)]
    affine = np.diag([-SPACING, -SPACING, SPACING, 1])  # LPS, see above
    rows = []
    for split, number in tqdm(patients, "adrenal", unit="patient", disable=not progress):
        name, truth, train = f"{split}_{number:04d}", labels[split][number], split == "train"
        gland, file = (shapes[split][number] > 0).astype(np.uint8), f"{name}.nii.gz"
        volume = np.where(gland, GLAND, BACKGROUND).astype(np.int16)
        for part, voxels in (("volumes", volume), ("masks", gland)):
            if not (folder / part / file).exists():
                write_image(folder / part / file, voxels, affine)
        row = {"volume": f"volumes/{file}", "mask": f"masks/{file}", "patient": name}
        row |= {"weak_label": weak[number] if train else "", "label": "" if train else truth}
        row |= {"cohort": "train" if train else "probe", "split": split}
        rows.append(row | {"weak_label_simulated": int(train), "true_label": truth})
    write_csv(folder / "cohort.csv", pd.DataFrame(rows))
    return folder / "cohort.csv"


def simulate_weak_labels(labels: np.ndarray, accuracy: float, seed: int) -> np.ndarray:
    """Labels ``(n,)``, 0 or 1, read by someone of this balanced accuracy: the seed says who is
    read wrongly, the same share of each class, rounded to whole patients."""
    rng, read = np.random.default_rng(seed), labels.copy()
    for value in (0, 1):
        patients = np.flatnonzero(labels == value)
        wrong = rng.permutation(patients)[: round((1 - accuracy) * len(patients))]
        read[wrong] = 1 - value
    return read

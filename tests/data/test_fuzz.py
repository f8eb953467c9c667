"""Damaged files of every kind: each reader ends in an error of ours, or in a right answer.

Some hundred cases each; `FUZZ=10000 pytest tests/data/test_fuzz.py` for more, `SEED=1` for others.
"""

import os
import random
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from wspnb.data.cohort import read_cohort
from wspnb.data.slices import write_slices
from wspnb.data.store import verify_store
from wspnb.data.volumes import load_mask, load_volume
from wspnb.models import build_encoder
from wspnb.pretrain import Config, load_checkpoint, save_checkpoint, save_run
from wspnb.probe import load_encoder
from wspnb.run import gather

CASES, SEED = int(os.environ.get("FUZZ", 120)), int(os.environ.get("SEED", 0))
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "02_pretrain.ipynb"
WORDS = [
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\0",
    b"-1",
    b"1e999",
    b"nan",
    b"\xff\xfe",
    b"9" * 40,
    b"..",
    b"'",
]
WORDS += [
    b"{",
    b"[",
    b": ",
    b"&a ",
    b"*a",
    b"!!python/object:os.system ",
    b"\xe2\x80\x8b",
    b"/",
    b"#",
]
CONFIG = Config(
    **{"method": "wsp", "backbone": "tiny_padded", "norm": "batch", "sigma": 0.1},
    **{"temperature": 0.1, "batch_size": 4, "n_steps": 3, "warmup_steps": 0, "seed": 0},
    **{"learning_rate": 1e-3, "weight_decay": 0.0, "image_size": 16, "precision": "no"},
    **{"translate": 0.0, "crop_area": 0.7, "normalise": "row", "convention": "k/(n-1)"},
    **{"severe_from": 0, "train_cohort": "radio", "data": "d"},
)


def mutated(content: bytes, rng: random.Random, head: int = 0) -> bytes:
    """One to three damages: a byte, a bit, a word, a gap, a repeat, an end cut off.

    Args:
        content: of a sound file.
        rng: what is random here.
        head: if not 0, half of the damages are within so many bytes.
    """
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        end = min(head, len(found)) if head and rng.random() < 0.5 else len(found)
        at, length = rng.randrange(max(1, end)), rng.choice((1, 2, 4, 17))
        kind = rng.randrange(7)
        if kind == 0 and found:
            found[at] = rng.randrange(256)
        elif kind == 1 and found:
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            found[at:at] = rng.choice(WORDS)
        elif kind == 3:
            found[at : at + length] = rng.choice(WORDS)
        elif kind == 4:
            del found[at : at + length]
        elif kind == 5:
            found[at:at] = found[at : at + length]
        elif kind == 6:
            del found[at:]
    return bytes(found)


def fuzz(files: list[Path], read, same, head: int = 0, places: tuple[str, ...] = ()) -> dict:
    """Damage one file at a time, read, and put it back.

    Args:
        files: sound ones, one of which is damaged in each case.
        read: call without arguments.
        same: whether what it gave is right; of the answer and the damaged file.
        head: of :func:`mutated`.
        places: an error names one of these, or a file.
    """
    rng, sound = random.Random(SEED), {file: file.read_bytes() for file in files}
    counts = {"refused": 0, "right": 0}
    for case in range(CASES):
        file = rng.choice(files)
        file.write_bytes(content := mutated(sound[file], rng, head))
        told = f"case {case} of seed {SEED}: {file.name} {content[:400]!r}"
        start = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = read()
        except (ValueError, FileNotFoundError) as error:
            assert type(error) in (ValueError, FileNotFoundError), f"{told}: {error!r}"
            named = [*map(str, files), str(file.parent), *places]
            assert any(place in str(error) for place in named), f"{told}: names no file: {error}"
            counts["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"{told}: {error!r}") from error
        else:
            assert same(answer, content), f"{told}: accepted"
            counts["right"] += 1
        assert time.monotonic() - start < 20, f"{told}: hangs"
        file.write_bytes(sound[file])
    print(files[0].name, counts)
    return counts


def volume(path: Path, shift: float = 0.0) -> Path:
    voxels = np.random.default_rng(int(shift)).integers(-100, 300, (6, 5, 4)).astype(np.int16)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[0, 3] = shift
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def sane(hu: np.ndarray, spacing: np.ndarray) -> bool:
    """Finite values, as many as the file has room for, and millimetres."""
    return hu.size <= 10_000 and bool(np.isfinite(hu).all()) and min(spacing) > 0


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_volumes(tmp_path, ending):
    file = volume(tmp_path / f"a.{ending}")
    counts = fuzz([file], partial(load_volume, file), lambda found, _: sane(*found), head=352)
    assert counts["refused"] > CASES / 20


def test_masks(tmp_path):
    file, scan = tmp_path / "mask.nii", volume(tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti1Image(np.ones((6, 5, 4), np.uint8), np.diag([2, 2, 3, 1.0])), file)
    read = partial(load_mask, file, scan, 1)
    right = lambda mask, _: mask.shape == (6, 5, 4) and mask.dtype == bool  # noqa: E731
    assert fuzz([file], read, right, head=352)["refused"] > CASES / 20


@pytest.fixture
def cohort(tmp_path) -> Path:
    """A table of six volumes."""
    lines = ["volume,mask,patient,weak_label,label,cohort,note"]
    for number in range(6):
        volume(tmp_path / f"{number}.nii", shift=number)
        lines.append(f'{number}.nii,,P{number},{number % 3},,radio,"a, b {number}"')
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "cohort.csv"


def test_cohort_tables(cohort):
    def right(table, content):
        """A row for each line that is not blank, and labels as written."""
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        rows = [
            line for line in text.split("\n")[1:] if line.strip(', "\t\v\f\x1c\x1d\x1e\x85\xa0')
        ]
        return len(table) == len(rows) and table.patient.ne("").all() and table.cohort.ne("").all()

    assert fuzz([cohort], partial(read_cohort, cohort), right)["refused"] > CASES / 20


def test_parameter_files(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text('method: wsp\nsigma: 0.3\nn_steps: 20\nresume: false\ntrain_cohort: "a: b"\n')
    kinds = {"method": str, "sigma": float, "n_steps": int, "resume": bool, "train_cohort": str}
    fuzz(
        [file],
        partial(gather, NOTEBOOK, [str(file)], []),
        lambda given, _: all(
            type(given[name]) is kinds.get(name, type(given[name])) for name in given
        ),
    )


def test_stores(cohort, tmp_path):
    folder = write_slices(cohort, tmp_path / "store", image_size=16, workers=1, progress=False)
    sound = verify_store(folder)
    images, table = np.array(sound.images), sound.table
    files = [folder / f for f in ("slices.npy", "slices.csv", "failed.csv", "store.json")]

    def same(store, _):
        return np.array_equal(store.images, images) and store.table.equals(table)

    assert fuzz(files, partial(verify_store, folder), same)["refused"] > CASES / 2


def test_checkpoints(tmp_path):
    file = tmp_path / "checkpoint.pt"
    parts = {"encoder": torch.nn.Linear(3, 2), "generator": torch.Generator().manual_seed(1)}
    save_checkpoint(file, 2, [{"step": 0, "loss": 1.5}], CONFIG, **parts)
    weight = parts["encoder"].weight.detach().clone()

    def same(answer, _):
        unmoved = torch.equal(parts["encoder"].weight, weight)
        return answer == (2, [{"step": 0, "loss": 1.5}]) and unmoved

    counts = fuzz([file], partial(load_checkpoint, file, CONFIG, **parts), same)
    assert counts["refused"] > CASES / 2
    with pytest.raises(ValueError, match=r"sigma: 0\.1 there, 0\.2 now"):
        load_checkpoint(file, replace(CONFIG, sigma=0.2), **parts)


def test_encoders(tmp_path):
    encoder = build_encoder("tiny_padded", "batch", 0)
    save_run(tmp_path, encoder, CONFIG, [{"step": 0, "loss": 1.0}])
    weights = encoder.state_dict()

    def same(answer, _):
        return all(torch.equal(v, weights[k]) for k, v in answer[0].state_dict().items())

    files = [tmp_path / name for name in ("encoder.safetensors", "config.json")]
    counts = fuzz(files, partial(load_encoder, tmp_path, "tiny_padded", "batch", 0), same)
    assert counts["refused"] > CASES / 4

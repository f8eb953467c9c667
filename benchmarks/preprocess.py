"""How fast volumes become slices, and what memory a worker needs.

    python benchmarks/preprocess.py [--volumes 4] [--side 512] [--depth 200] [--image-size 512]

Draws int16 volumes of side x side x depth with masks (gzip), then runs `write_slices` with 1, 2, 4
and so on workers, each time in a process of its own. All are of one size in mm, with a liver of
2.7 litres. Small sides give many volumes in little time, which shows whether the parent's memory
grows with the cohort.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from wspnb.workers import count_cores


def draw(folder: Path, volumes: int, side: int, depth: int) -> float:
    """Volumes, masks and cohort.csv; returns the MB of one volume in memory."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(*[np.linspace(-1, 1, side)] * 2, indexing="ij")
    plane = np.where(np.hypot(x / 0.8, y / 0.6) < 1, 50, -1000).astype(np.int16)
    mask = np.zeros((side, side, depth), np.uint8)
    half, third = side // 2, side // 3
    mask[half : half + side // 4, third : 2 * third, depth // 4 : -depth // 4] = 1
    affine = np.diag([-410 / side, -410 / side, 400 / depth, 1])  # mm
    lines = ["volume,mask,patient,weak_label,label,cohort"]
    noise = rng.normal(0, 15, (side, side, 8)).astype(np.int16)
    for number in range(volumes):
        hu = np.empty((side, side, depth), np.int16, order="F")
        for z in range(depth):
            hu[:, :, z] = plane + np.roll(noise[:, :, z % 8], (number * 7 + z, z), (0, 1))
        hu[:2, 0, 0] = number % 500, number // 500  # no two are equal
        save = nib.Nifti1Image(hu, affine)
        nib.save(save, folder / f"v{number}.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), folder / f"m{number}.nii.gz")
        lines.append(f"v{number}.nii.gz,m{number}.nii.gz,p{number},{number % 2},,bench")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return side * side * depth * 2 / 1e6


def measure_apart(folder: Path, workers: int, image_size: int) -> dict:
    """What :func:`measure` says of a run in a process of its own."""
    command = [sys.executable, __file__, "--folder", str(folder), "--workers", str(workers)]
    command += ["--image-size", str(image_size)]
    return json.loads(subprocess.check_output(command).splitlines()[-1])


def own_peak() -> float:
    """Peak MB of this process. (Linux; its ``ru_maxrss`` may be that of the one that began it.)"""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1e3 for line in status if line.startswith("VmHWM"))


def measure(folder: Path, workers: int, image_size: int) -> None:
    """One run, in this process; prints seconds, CPU seconds, peak MB of worker and parent, and the
    bytes of the store."""
    from wspnb.data.slices import write_slices

    def peak(who):
        return resource.getrusage(who).ru_maxrss / 1e3  # MB

    before = peak(resource.RUSAGE_SELF)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        write_slices(folder / "cohort.csv", out, image_size, workers=workers, progress=False)
        stored = (Path(out) / "slices.npy").stat().st_size
    seconds = time.perf_counter() - start
    who = resource.RUSAGE_SELF if workers == 1 else resource.RUSAGE_CHILDREN
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in used)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpu": cpu,
                "peak": peak(who),
                "before": before,
                "parent": own_peak(),
                "stored": stored,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--depth", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--workers", type=int, nargs="*", help="default: 1, 2, 4, ... all cores")
    parser.add_argument("--folder", type=Path, help="of a run, used by the script itself")
    asked = parser.parse_args()
    if asked.folder:
        return measure(asked.folder, asked.workers[0], asked.image_size)
    cores = count_cores()
    counts = asked.workers or [n for n in (1, 2, 4, 8, 16, 32, 64) if n < cores] + [cores]
    with tempfile.TemporaryDirectory() as folder:
        size = draw(Path(folder), asked.volumes, asked.side, asked.depth)
        stored = sum(p.stat().st_size for p in Path(folder).glob("v*.nii.gz")) / asked.volumes / 1e6
        print(
            f"{asked.volumes} volumes of {size:.0f} MB ({stored:.0f} MB as .nii.gz), {cores} cores"
        )
        names = ["workers", "volumes/s", "MB/s per worker", "speed-up", "MB per CPU second"]
        names += ["peak MB per worker", "without libraries, in volumes", "peak MB of the parent"]
        print("|", " | ".join(names), "|")
        print("|" + "---|" * len(names))
        first = None
        for workers in counts:
            run = measure_apart(Path(folder), workers, asked.image_size)
            rate = asked.volumes / run["seconds"]
            first = first or rate
            above = (run["peak"] - run["before"]) / size  # beside the libraries
            cells = f"{workers} | {rate:.2f} | {rate * size / workers:.0f} | {rate / first:.2f}"
            cells += f" | {size * asked.volumes / run['cpu']:.0f} | {run['peak']:.0f}"
            print(f"| {cells} | {above:.2f} | {run['parent']:.0f} |", flush=True)


if __name__ == "__main__":
    main()

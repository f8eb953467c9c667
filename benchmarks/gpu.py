"""Everything that wants a card, in one call, within its time: `make gpu`. Call it again to go on.

    python benchmarks/gpu.py [--out runs/gpu] [--minutes 9] [--size 160] [--plans reference]
        [--steps 6240] [--workers 12] [--share 1.0] [--skip tests,step] [--publish figures]

First the tests of tests/core/test_gpu.py and step.py (TinyNet and ResNet-18, 160 and 512 px); then
runs of the reference experiment, a process each, as many as the time holds; finished ones are
kept. Needs no network and no Jupyter; PYTHONPATH=src is enough where nothing is installed. The
folder then holds gpu.txt (what was printed), card.csv (the steps) and the runs. Without a card it
runs on the CPU, and the tests are skipped.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}  # a run each core
sys.path.insert(0, str(Path(__file__).parent))
ROOT = Path(__file__).parents[1]

from ours import at_least_one, machine  # noqa: E402  the environment above first

from wspnb.workers import count_cores  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--plans", default="reference")
    parser.add_argument("--steps", type=int, default=6240)
    parser.add_argument("--workers", type=at_least_one, default=max(1, count_cores() - 3))
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--skip", default="")
    parser.add_argument("--publish", type=Path, help="folder that gets tables and scores")
    asked = parser.parse_args()
    from wspnb.studies.reference import plan, publish, run_all

    try:
        runs = [run for which in asked.plans.split(",") for run in plan(which.strip())]
    except (KeyError, ValueError) as error:
        parser.error(f"--plans: {error}")
    if not 0 < asked.share <= 1:
        parser.error(f"--share {asked.share}: above 0, 1 at most")
    end = time.monotonic() + 60 * asked.minutes
    asked.out = asked.out.resolve()  # what is called below works in another folder
    asked.out.mkdir(parents=True, exist_ok=True)

    def say(*words) -> None:
        print(*words, flush=True)
        with (asked.out / "gpu.txt").open("a", encoding="utf-8") as file:
            print(*words, file=file)

    def call(title: str, *words) -> None:
        if title.split()[0] not in asked.skip.split(","):
            left = max(10, min(120, end - time.monotonic()))
            try:
                found = subprocess.run(
                    [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=left
                )
                say(f"== {title}\n{found.stdout[-4000:]}{found.stderr[-1500:]}")
            except subprocess.TimeoutExpired:
                say(f"== {title}: stopped after {left:.0f} s")

    say(machine())
    call("tests", "-m", "pytest", "-p", "no:cacheprovider", "tests/core/test_gpu.py")
    for backbone in ("tiny", "resnet18"):
        for size in (160, 512):
            call(
                f"step {backbone} {size}",
                "benchmarks/step.py",
                "--backbone",
                backbone,
                "--size",
                str(size),
                "--table",
                str(asked.out / "card.csv"),
            )
    run_all(
        runs,
        asked.out,
        asked.size,
        asked.steps,
        asked.workers,
        end - time.monotonic(),
        asked.share,
        say,
    )
    if asked.publish:
        try:
            say("tables:", *publish(asked.out, asked.size, asked.publish))
        except FileNotFoundError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()

"""Where the time of a run went: ``python benchmarks/where.py RUN_DIR [RUN_DIR ...]`` prints, for
each notebook, its seconds in all and how often it ran, a column per run."""

import sys
from pathlib import Path

import pandas as pd

from wspnb.results.report import executed


def seconds(run: Path) -> pd.Series:
    """Seconds of the executed notebooks by step, and their number."""
    spent = {}
    for name, about in executed(run / "notebooks").items():
        spent.setdefault(name.split("-")[0], []).append(about["duration"])
    if not spent:
        sys.exit(f"{run}: no executed notebook in its folder notebooks")
    named = {step: f"{sum(each):.0f} ({len(each)})" for step, each in sorted(spent.items())}
    return pd.Series(named | {"sum": f"{sum(map(sum, spent.values())):.0f}"}, name=str(run))


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    table = pd.concat(map(seconds, map(Path, sys.argv[1:])), axis=1).fillna("").sort_index()
    print(table.to_string())

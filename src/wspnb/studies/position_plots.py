"""Drawing of a study: differences along a factor, over two factors, and learning on the way."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from wspnb.plots import PALETTE
from wspnb.results.tables import row_label
from wspnb.studies.position_runs import paired_difference, point_name


def difference_panel(axis: Axes, gaps: pd.DataFrame, ticks: dict[str, str]) -> None:
    """Differences (of :func:`~wspnb.studies.position_runs.differences`) with their intervals,
    points by the text under them; a ring marks pairs with a collapsed run, grey the base."""
    others = list(dict.fromkeys(gaps.other))
    rows = gaps.set_index(["point", "other"])
    for number, other in enumerate(others):
        own = rows.loc[[(point, other) for point in ticks.values()]].reset_index()
        x = own.index.to_numpy() + 0.16 * (number - (len(others) - 1) / 2)
        error = [own["mean"] - own.low, own.high - own["mean"]]
        look = {"color": PALETTE[other], "capsize": 2, "marker": "o", "ms": 4}
        axis.errorbar(x, own["mean"], error, label=f"WSP minus {row_label(other)}", **look)
        bad = own.collapsed.to_numpy() > 0
        axis.plot(x[bad], own["mean"][bad], "o", ms=11, mfc="none", color="black")
    for number, point in enumerate(ticks.values()):
        if point == "base":
            axis.axvspan(number - 0.4, number + 0.4, color="0.92", zorder=0)
    axis.axhline(0, color="black", lw=0.8)
    axis.set_xticks(range(len(ticks)), ticks, fontsize=8)


def difference_map(
    axis: Axes, gaps: pd.DataFrame, other: str, factors: dict[str, list], base: dict, top: float
):
    """Differences over two factors, with half the interval in each cell; the image is returned, for
    a colour bar.

    Args:
        gaps, other: of :func:`~wspnb.studies.position_runs.differences`; the method subtracted.
        factors: values of the factor that goes up, then of the one that goes right.
        base: value of both at the base point.
        top: difference at the end of the colour scale.
    """
    rows = gaps[gaps.other == other].set_index("point")
    (up, right), (ups, rights) = factors.keys(), factors.values()
    pairs = [[{up: a, right: b} for b in rights] for a in ups]
    names = [[point_name({k: v for k, v in p.items() if v != base[k]}) for p in r] for r in pairs]
    mean = np.array([rows["mean"].loc[line] for line in names])
    high = np.array([rows.high.loc[line] for line in names])
    picture = axis.imshow(mean, cmap="RdBu_r", vmin=-top, vmax=top, origin="lower", aspect="auto")
    for (i, j), value in np.ndenumerate(mean):
        text = f"{value:+.2f}\n± {high[i, j] - value:.2f}"
        colour = "white" if abs(value) > 0.7 * top else "black"
        axis.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(rights)), rights)
    axis.set_yticks(range(len(ups)), ups)
    axis.set(title=f"WSP minus {row_label(other)}", xlabel=right)
    return picture


def learning_curves(
    axis: Axes, rows: pd.DataFrame, value: str, methods, gained: bool = False
) -> None:
    """Mean of a judged value against the training step, with 95 % intervals over seeds: from the
    table of runs at one point; ``gained`` draws what was gained since step 0, seed by seed."""
    for method in methods:
        seen = rows[rows.method == method].pivot(index="seed", columns="step", values=value)
        seen = seen.sub(seen[0], axis=0) if gained else seen
        found = pd.DataFrame([paired_difference(seen[step], 0 * seen[step]) for step in seen])
        steps, colour = seen.columns, PALETTE[method]
        axis.fill_between(steps, found.low, found.high, color=colour, alpha=0.15, lw=0)
        axis.plot(steps, found["mean"], marker=".", color=colour, label=row_label(method))
    axis.set_xscale("symlog", linthresh=10)
    axis.set(xlabel="training step", xlim=(0, None))

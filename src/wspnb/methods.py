"""Methods by name: who attracts whom (numerator) and who repels whom (denominator), a row each.

A name is a row of ``METHODS``, with its number or without: ``wsp``, ``wsp_floor0.3``. A new method
is a new row. Every place that reads a name (notebooks, workflow, tables) reads it here.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from wspnb.kernels import (
    cauchy,
    closer,
    combine,
    gaussian,
    jaccard,
    mixture,
    nested,
    order,
    same_label,
    same_slice,
    soft_graph,
)


@dataclass(frozen=True)
class Batch:
    """Slices of a batch as the rows of the table see them: ``same`` label, ``near`` in depth, the
    ``stages`` as nested labels, ``itself``; ``number`` is the one in the method's name."""

    labels: Tensor | None
    positions: Tensor | None
    sigma: float
    number: float
    rows: Tensor | None

    def __post_init__(self):
        sizes = [len(given) for given in (self.labels, self.positions) if given is not None]
        if len(set(sizes)) > 1:
            raise ValueError(f"{sizes[0]} labels for {sizes[1]} positions: one per slice")

    def _given(self, name: str) -> Tensor:
        if (values := getattr(self, name)) is None:
            raise ValueError(f"{name} of the slices are missing, and the method needs them")
        return values

    @property
    def same(self) -> Tensor:
        return same_label(self._given("labels"), self.rows)

    @property
    def near(self) -> Tensor:
        return gaussian(self._given("positions"), self.sigma, self.rows)

    @property
    def stages(self) -> Tensor:
        return jaccard(nested(self._given("labels")), rows=self.rows)

    @property
    def itself(self) -> Tensor:
        given = self._given("positions") if self.labels is None else self.labels
        return same_slice(given, self.rows)


@dataclass(frozen=True)
class Method:
    """A row of the table: who attracts whom (numerator), and who repels whom (denominator)."""

    label: str  # as tables of results print it; {} is the number
    attract: Callable[[Batch], Tensor]
    repel: Callable[[Batch], Tensor] | None = None  # None: all others alike
    denominator: str = "all"  # how the repelling kernel enters, see losses.DENOMINATORS
    number: float | None = None  # default of the number that may end the name
    limits: tuple[float, float] = (0.0, math.inf)  # of that number
    narrows: bool = False  # sigma falls linearly from the number to sigma
    loss: str = "contrast"  # or byol, simsiam, barlow, which have no denominator


def _wsp(b: Batch) -> Tensor:
    return b.same * b.near


# One row a method: numerator, then denominator. Above the line those of the paper.
METHODS = {
    "wsp": Method("WSP", _wsp),
    "depth_aware": Method("depth-Aware", lambda b: b.near),
    "supcon": Method("SupCon", lambda b: b.same),
    "simclr": Method("SimCLR", lambda b: b.itself),
    # ---- other numerators
    "wsp_floor": Method("WSP, floor {}", lambda b: b.same * (b.number + (1 - b.number) * b.near),
                        number=0.2, limits=(0, 1)),
    "wsp_narrowing": Method("WSP, sigma from {} to 0.1", _wsp, number=0.5, narrows=True),
    "wsp_mixture": Method("WSP, label {} + depth",
                          lambda b: mixture([b.same, b.near], [b.number, 1 - b.number]),
                          number=0.5, limits=(0, 1)),
    "wsp_stages": Method("WSP, nested stages", lambda b: b.stages * b.near),
    "wsp_minimum": Method("WSP, minimum", lambda b: combine([b.stages, b.near], "minimum")),
    "jaccard": Method("Jaccard of stages", lambda b: b.stages),
    "xclr": Method("X-CLR, graph {}",
                   lambda b: soft_graph((b.same + b.near) / 2, b.number), number=0.1),
    "pcl": Method("PCL", lambda b: closer(b._given("positions"), b.sigma, b.rows)),
    "cauchy": Method("Cauchy", lambda b: cauchy(b._given("positions"), b.sigma, b.rows)),
    # ---- other denominators
    "wsp_own": Method("WSP, one's own class repels as far as it attracts", _wsp,
                      lambda b: torch.where(b.same > 0, b.near, 1)),
    "wsp_near": Method("WSP, only a similar depth repels", _wsp, lambda b: b.near),
    "wsp_threshold": Method("WSP, threshold", _wsp, _wsp, "less"),
    "wsp_exp": Method("WSP, exp", _wsp, _wsp, "exp"),
    "depth_threshold": Method("depth-Aware, threshold", lambda b: b.near, lambda b: b.near, "less"),
    "depth_exp": Method("depth-Aware, exp", lambda b: b.near, lambda b: b.near, "exp"),
    "rank": Method("Rank-N-Contrast", lambda b: torch.ones_like(b.near),
                   lambda b: order(b._given("positions"), b.sigma, b.rows), "no_more"),
}  # fmt: skip
PLAIN = ("supervised", "random", "imagenet", "byol")  # without a kernel
FAMILIES = {"byol": "BYOL", "simsiam": "SimSiam", "barlow": "Barlow Twins"}


@cache
def parse(name: str) -> Method:
    """The row of a method by its name: one of ``METHODS``, with its number or without, or a loss
    without negatives, plain (simsiam) or with the kernel of a row (barlow_wsp_floor0.3).

    Raises:
        ValueError: if there is no such method, or its number is out of range.
    """
    name = str(name)
    family, more, kernel = name.partition("_")
    if family in FAMILIES:
        row = parse(kernel if more else "simclr")
        if row.loss == "contrast" and row.repel is None:
            label = f"{FAMILIES[family]}{', ' + row.label if kernel else ''}"
            return replace(row, label=label, loss=family)
    found = re.fullmatch(r"([a-z_]+?)(\d+\.?\d*|\.\d+)?", name)
    row = METHODS.get(found[1]) if found else None
    if row is None or (found[2] and row.number is None):
        raise ValueError(
            f"method={name!r} has no kernel: choose one of {', '.join(METHODS)}, or "
            f"{', '.join(FAMILIES)}, alone or followed by _ and one of these; random and imagenet "
            "are not trained"
        )
    if row.number is None:
        return row
    number = float(found[2] or row.number)
    low, high = row.limits
    if not low <= number <= high:
        raise ValueError(f"{name}: {number} must be between {low} and {high}")
    return replace(row, number=number, label=row.label.format(found[2] or row.number))


def loss_of(name: str) -> str:
    """contrast, byol, simsiam or barlow; "none" where nothing is compared with anything."""
    return "none" if name in PLAIN and name not in FAMILIES else parse(name).loss


def has_line(name: str) -> bool:
    """Whether equal embeddings cost log(2B - 1): a contrast whose denominator weighs all alike."""
    return loss_of(name) == "contrast" and parse(name).repel is None


def needs_labels(name: str) -> bool:
    """Whether the method's kernel reads the labels."""
    if loss_of(name) == "none":
        return False
    try:
        pair_kernel(name, None, torch.zeros(2))
    except ValueError:
        return True
    return False


def is_method(name: str) -> bool:
    """Whether something trains under this name."""
    try:
        return name in PLAIN or bool(parse(name))
    except ValueError:
        return False


def split_name(name: str) -> tuple[str, dict[str, str]]:
    """Method of a run and the settings that its name changes: ``wsp_floor0.3`` is the method
    ``wsp_floor0.3``, ``wsp_sigma0.3_n_steps500`` is ("wsp", {"sigma": "0.3", "n_steps": "500"}).

    Raises:
        ValueError: if it is neither.
    """
    if is_method(name):
        return name, {}
    for place in [found.start() for found in re.finditer("_", name)][::-1]:  # the longest method
        method, rest = name[:place], name[place + 1 :]
        changed = re.findall(r"([a-z][a-z_]*?)([0-9.]+|inf)(?:_|$)", rest)
        if is_method(method) and changed and rest == "_".join(map("".join, changed)):
            parse(name) if f"{method}_{changed[0][0]}" in METHODS else None  # number out of range
            if len(dict(changed)) == len(changed):
                return method, dict(changed)
    raise ValueError(
        f"run {name}: no method of {', '.join([*PLAIN, *METHODS])}, nor byol, simsiam, barlow "
        "with one of them, nor params/NAME.yaml, nor METHOD_PARAMETERvalue"
    )


def check_name(name: str, method: str, settings: dict) -> dict[str, float]:
    """Numbers among the ``settings`` of a run that its name says, see :func:`split_name`.

    Raises:
        ValueError: if it says another number, or another method; one's own name says nothing.
    """
    try:
        said, changed = split_name(name)
    except ValueError:
        return {}
    numbers = {k: v for k, v in settings.items() if isinstance(v, int | float) or v == "inf"}
    numbers = {key: float(numbers[key]) for key in changed.keys() & numbers}
    right = all(float(changed[key]) == value for key, value in numbers.items())
    labels = [m if m in PLAIN or not is_method(m) else parse(m).label for m in (method, said)]
    if not right or (method != name and labels[0] != labels[1]):
        found = f"it is called {name} and trained as {method} with {numbers or 'its settings'}"
        raise ValueError(f"{found}: run 02 and 03 with what the name says, or under another name")
    return numbers


def loss_terms(
    method: str,
    labels: Tensor | None,
    positions: Tensor | None,
    sigma: float = 0.1,
    done: float = 1,
    rows: Tensor | None = None,
) -> dict:
    """What a method passes to :func:`wspnb.losses.contrastive_loss` for one batch.

    Args:
        method, labels, positions, rows: as for :func:`pair_kernel`.
        sigma: Gaussian width in the unit of ``positions``, at the end of training.
        done: share of the training that is done, 0 to 1, where sigma narrows.

    Returns:
        ``kernel``, who attracts whom; ``negatives``, who repels whom, or None where all others
        repel alike (the methods of the paper); ``denominator``.
    """
    row = parse(method)
    if row.narrows:
        sigma = row.number * (1 - done) + sigma * done
    batch = Batch(labels, positions, sigma, row.number, rows)
    repel = row.repel and row.repel(batch)
    return {"kernel": row.attract(batch), "negatives": repel, "denominator": row.denominator}


def pair_kernel(
    method: str,
    labels: Tensor | None,
    positions: Tensor | None,
    sigma: float = 0.1,
    rows: Tensor | None = None,
) -> Tensor:
    """Who attracts whom by a method, for one batch of slices: its row in ``METHODS``.

    Args:
        method: a name that :func:`parse` knows.
        labels: class of each slice, ``(n,)``; None where the method does not use it.
        positions: normalised height of each slice, ``(n,)``; None where the method does not use it.
        sigma: width of the depth kernel in the unit of ``positions``.
        rows: numbers of the slices whose rows are wanted, ``(m,)``; None for all n.

    Returns:
        ``(m, n)`` degrees of positiveness.

    Raises:
        ValueError: if the method is unknown, or what it needs is missing or of another length.
    """
    row = parse(method)
    return row.attract(Batch(labels, positions, sigma, row.number, rows))

"""Numbers and sentences of README and docs, from the tables in figures/: ``make docs``.

A page holds ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; what stands between them is what the
function NAME of :data:`BLOCKS` returns, and nothing else in a page states a result. A table that is
not there yet is said to be missing, by the page itself.
"""

import re
import sys
import textwrap
from functools import cache
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
from ledger import choices, ledger

from wspnb.files import own_files, read_csv, read_json, write_text
from wspnb.methods import split_name
from wspnb.results import audit, tables
from wspnb.results.statistics import interval

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(str(p.relative_to(ROOT)) for p in own_files(ROOT / "docs", "**/*.md"))]
MARK = re.compile(r"<!-- begin (\w+) -->\n(.*?)<!-- end \1 -->", re.DOTALL)
PLACES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
COHORTS = {"d1": "D1", "d2": "D2", "d12": "D1+2", "d1+d2": "D1+2", "probe": "AUC"}


@cache
def table(name: str) -> pd.DataFrame | None:
    file = ROOT / "figures" / f"{name}.csv"
    return pd.read_csv(file) if file.exists() else None


def number(value: float, sign: str = "") -> str:
    """.75, -.05, 1.00; with ``sign`` "+" also +.05."""
    return "" if value != value else re.sub(r"^([+-]?)0\.", r"\1.", f"{value:{sign}.2f}")


def between(low: float, high: float, sign: str = "") -> str:
    """[.60, .80], with a blank before it; nothing where a table has none."""
    return f" [{number(low, sign)}, {number(high, sign)}]" if number(low) and number(high) else ""


def cell(row, tag: str) -> str:
    """Mean ± SD over seeds [interval over patients] of a row of Table 1 or 3."""
    sd = number(row[f"seed_sd_{tag}"])
    text = number(row[f"auc_{tag}"]) + (f" ± {sd}" if sd else "")
    return text + between(row[f"low_{tag}"], row[f"high_{tag}"])


def amount(row, digits: str = "+") -> str:
    """Mean and the widest interval that a difference has; none where both order all pairs alike."""
    both = "_both" if row.get("low_both") == row.get("low_both", 0) and "low_both" in row else ""
    low, high = row[f"low{both}"], row[f"high{both}"]
    ends = between(low, high, digits) if low < high else ""
    return number(row["mean"], digits if ends else "") + ends


def side(row) -> str:
    """What the interval of a difference says about its first method."""
    both = "_both" if "low_both" in row and row["low_both"] == row["low_both"] else ""
    low, high = row[f"low{both}"], row[f"high{both}"]
    return "ahead of" if low > 0 else "behind" if high < 0 else "not told from"


def grid(head: list, rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)


def missing(name: str) -> str:
    return f"*Not there yet: `figures/{name}.csv`.*"


def listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1] if words else ""]))


def bullets(lines: list[str]) -> str:
    """One bullet each, broken at 118 characters."""
    fold = {"width": 118, "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(textwrap.fill(f"- {s}", subsequent_indent="  ", **fold) for s in lines)


def own_rows(name: str = "table1", backbone: str = "TinyNet") -> pd.DataFrame:
    """The paper's methods of one backbone, padded only where there is no other."""
    full = table(name)
    kind = backbone if backbone in set(full.backbone) else f"{backbone} (padded)"
    return full[(full.backbone == kind) & full.method.isin(tables.ROWS.values())]


def gaps(name: str) -> pd.DataFrame:
    """Differences of a committed audit, methods as the tables print them."""
    full = table(name)
    return full.assign(
        method=full.method.map(tables.ROWS), reference=full.reference.map(tables.ROWS)
    )


def settings(profile: str) -> dict:
    """What the pretrainings of a profile's committed runs share, empty where none are committed."""
    file = ROOT / "figures" / "runs" / profile / "runs.json"
    kept = read_json(file) if file.exists() else {}
    runs = kept.get("runs", {}).values()
    return next((run["training"] for run in runs if run.get("training")), {})


def main_profile() -> str:
    """Profile of the tables without a suffix."""
    return "reference" if settings("reference") else "laptop"


def ranked() -> tuple[str, pd.DataFrame]:
    """Where the methods are compared with most power, and their rows (method, auc, low, high),
    best first."""
    population = table("reference_population")
    if population is not None:
        rows = population[population.method.isin(tables.ROWS.values())]
        where = "the population"
    else:
        rows = own_rows()
        rows = rows.rename(columns={"auc_d1": "auc", "low_d1": "low", "high_d1": "high"})
        where = "D1"
    return where, rows.sort_values("auc", ascending=False, ignore_index=True)


def versus() -> tuple[str, pd.DataFrame]:
    """WSP minus each method where that is known best: columns method, mean, low, high."""
    full = table("reference_differences")
    if full is None:
        rows = gaps("audit_differences")
        return "D1", rows[(rows.cohort == "d1") & (rows.reference == "WSP")].set_index("method")
    rows = full.rename(columns={"difference": "mean"})
    rows = rows[(rows["first"] == "wsp") & rows.second.isin(tables.ROWS)]
    rows = rows.assign(method=rows.second.map(tables.ROWS)).set_index("method")
    return "the population", rows


def order() -> str:
    """Who comes first and where WSP stands."""
    where, rows = ranked()
    best, place = rows.iloc[0], rows.index[rows.method == "WSP"]
    text = f"On {where} {best.method} has the highest mean AUC, {number(best.auc)}"
    text += between(best.low, best.high)
    if len(place) and place[0] > 0:
        wsp = rows.loc[place[0]]
        text += f"; WSP is {PLACES[place[0]]} of {len(rows)} with {number(wsp.auc)}"
        text += between(wsp.low, wsp.high)
    base = rows[rows.method == "None (random)"]
    text += f"; the untrained network has {number(base.auc.iloc[0])}" if len(base) else ""
    return text + ". The paper, on real CT, has WSP first."


def told_apart() -> str:
    """Which of the others WSP is ahead of, behind, or not told from."""
    where, rows = versus()
    groups = rows.apply(side, axis=1).groupby(lambda name: side(rows.loc[name]), sort=False)
    parts = [f"{words} {listed(list(part.index))}" for words, part in groups]
    return f"By the interval of the difference on {where}, WSP is {'; '.join(parts)}."


def few_patients() -> str:
    """What the position adds where fewer patients are pretrained on."""
    full = table("reference_differences")
    rows = [] if full is None else full[full["first"].str.startswith("wsp_patients")].itertuples()
    parts = []
    for row in rows:
        share = float(row.first.removeprefix("wsp_patients"))
        gap = row._asdict() | {"mean": row.difference}
        alone = " (1 seed)" if row.n_seeds == 1 else ""
        parts.append(f"{amount(gap)} with {share:.0%} of them{alone}")
    return f" Pretrained on fewer patients, WSP minus SupCon is {listed(parts)}." if parts else ""


def judged(kernels: bool = True) -> str:
    """What became of WSP, and of the kernels chosen on the tables' phantom, on other phantoms."""
    full = table("reference_differences_judged")
    if full is None:
        return missing("reference_differences_judged")
    rows = full.set_index(["first", "second"])

    def says(first: str, second: str) -> str:
        row = rows.loc[first, second]
        ends = f"{row.difference:+.3f}{interval(row.low_both, row.high_both, '+.3f')}"
        return ends.replace("0.", ".")

    text = f"On {full.n_seeds.max()} further phantoms, where nothing was chosen, WSP is "
    text += f"{side(rows.loc['wsp', 'supcon'])} SupCon ({says('wsp', 'supcon')}), with 10% of the "
    few = ("wsp_patients0.1", "supcon_patients0.1")
    text += f"patients {side(rows.loc[few])} it ({says(*few)}). "
    if not kernels:
        return text.rstrip()
    before = table("reference_population").set_index("name").auc
    best = before[list(rows.loc[:, "wsp", :].index)].idxmax()
    text += f"The kernel that was best before, {tables.row_label(best)}, is there "
    text += f"{side(rows.loc[best, 'wsp'])} WSP ({says(best, 'wsp')}) and "
    return text + f"{side(rows.loc[best, 'supcon'])} SupCon ({says(best, 'supcon')})."


def position_images() -> str:
    return bullets([position_and_label(), judged()])


def position_steps() -> str:
    """WSP minus SupCon after some steps, by share of the patients: paired by training seed."""
    from wspnb.studies.position_runs import paired_difference

    full = table("reference_curves")
    auc = full.set_index(["name", "step", "seed"]).auc_population.sort_index()
    shares = [name.removeprefix("wsp") for name in full.name.unique() if "wsp_patients" in name]
    steps, lines = sorted(set(full.step) - {0}), []
    for share in (*sorted(shares), ""):
        cells = [
            amount(
                pd.Series(paired_difference(*(auc[f"{m}{share}", s] for m in ("wsp", "supcon"))))
            )
            for s in steps
        ]
        lines.append([f"{float(share.removeprefix('_patients') or 1):.0%}", *cells])
    return grid(["patients", *(f"{step:,} steps" for step in steps)], lines)


def position_factors() -> str:
    """WSP and SupCon on phantoms that differ in one factor."""
    gaps, people = (table(f"reference_{n}_factors") for n in ("differences", "population"))
    if gaps is None:
        return missing("reference_differences_factors")
    people, lines = people.set_index("name"), []
    for _, row in gaps.rename(columns={"difference": "mean"}).iterrows():
        own = [people.loc[row[side]] for side in ("first", "second")]
        factor, value = list(split_name(row["first"])[1].items())[-1]
        cells = [number(run[c]) for c in ("auc", "depth_r2") for run in own]
        lines.append([f"{factor.replace('_', ' ')} {value}", *cells, amount(row), row.n_seeds])
    head = ["factor", "WSP", "SupCon", "WSP, R2 of depth", "SupCon, R2 of depth"]
    return grid([*head, "WSP minus SupCon", "seeds"], lines)


def training() -> str:
    """How the trainings ended, in the words of their verdicts, beside what the features can do."""
    full, parts = table("reference_population"), []
    if full is None:
        return missing("reference_population")
    for row in full[full.verdict.astype(str).str.contains("line|collapsed")].itertuples():
        if row.method in tables.ROWS.values():
            parts.append(f"{row.method}: {row.verdict}, yet an AUC of {number(row.auc)}")
    text = "Trainings whose loss ended at that of equal embeddings: "
    return text + ("; ".join(parts) if parts else "none") + "."


def position_and_label() -> str:
    where, rows = versus()
    words = {"ahead of": "raises", "behind": "lowers", "not told from": "is not seen to change"}
    parts = []
    for what, other in (("position", "SupCon"), ("weak label", "depth-Aware")):
        if other in rows.index:
            row = rows.loc[other]
            verb = words[side(row)]
            parts.append(f"the {what} {verb} the AUC (WSP minus {other}: {amount(row)})")
    return f"On {where} {listed(parts)}.{few_patients()}"


def settled() -> str:
    """What a study of the paper's size can settle, from its own numbers and from drawn studies."""
    claims = table("audit_claims")
    n = (claims.paper == "supported").sum()
    text = f"The paper's printed means and spreads, cautiously judged, settle {n} of its "
    text += f"{len(claims)} claims (each on each cohort)."
    studies = table("reference_studies")
    if studies is not None:
        own = studies[studies.better.isin(tables.ROWS) & studies.worse.isin(tables.ROWS)]
        close = own[own.difference < 0.05]
        text += f" A drawn study of D1's size ranks two methods wrongly in {own.wrong.mean():.0%}"
        text += " of the cases"
        if len(close):
            text += f", and in {close.wrong.mean():.0%} where they differ by less than .05"
        text += "."
    return text


def glands(suffix: str = "_long") -> str:
    rows = own_rows(f"table1_adrenal{suffix}").sort_values("auc_probe", ascending=False)
    best = rows.iloc[0]
    others = gaps(f"audit_differences_adrenal{suffix}").set_index("method")
    text = f"**Real glands** (AdrenalMNIST3D, weak label simulated): {best.method} is first with "
    text += number(best.auc_probe)
    if best.method != "WSP":
        wsp = rows[rows.method == "WSP"].iloc[0]
        text += f", WSP has {number(wsp.auc_probe)}"
    parts = {}
    for method in ("SupCon", "SimCLR"):
        row = others.loc[method]
        parts.setdefault(side(row), []).append(f"{method} ({amount(row)})")
    verdicts = [f"{word} {listed(names)}" for word, names in parts.items()]
    return f"{text}; WSP is {listed(verdicts)}."


def how() -> str:
    """Settings and seeds of the tables."""
    own, rows = settings(main_profile()), own_rows()
    seeds = sorted(set(rows.n_seeds))
    text = f"{'/'.join(map(str, seeds))} pretraining seed{'s' if max(seeds) > 1 else ''}"
    if own:
        text = f"{own['image_size']} px, batches of {own['batch_size']}, {own['n_steps']:,} steps, "
        text += f"{'/'.join(map(str, seeds))} seeds"
    if (people := counts(main_profile(), "population")) is not None:
        text += f"; population: {people:,} further patients"
    return text


def counts(profile: str, name: str) -> int | None:
    """Patients in a file of committed scores, None where there is none."""
    file = ROOT / "figures" / "runs" / profile / f"{name}.csv.gz"
    return read_csv(file).patient.nunique() if file.exists() else None


def found() -> str:
    """README: the four bullets."""
    first = "**Synthetic patients, not livers.** All images here are drawn; they show how the "
    first += f"methods behave, and are no evidence about livers. TinyNet, {how()}."
    second = f"**The order.** {order()} {told_apart()}"
    third = f"**Position.** {position_and_label()} {judged(kernels=False)}"
    fourth = f"**What can be told.** {settled()} {glands()}"
    return bullets([first, second, third, fourth])


def results() -> str:
    """README: Table 1 beside the paper's."""
    return with_paper(own_rows(), "TinyNet")


def with_paper(rows: pd.DataFrame, backbone: str) -> str:
    paper = pd.read_csv(ROOT / "figures" / "paper" / "table1_auc.csv")
    paper = paper[paper.backbone == backbone].set_index("method")
    tags, lines = ("d1", "d2", "d12"), []
    for _, row in rows.iterrows():
        printed = [number(paper[f"auc_{t}"].get(row.method, float("nan"))) for t in tags]
        cells = [f"{cell(row, t)} · {p}" for t, p in zip(tags, printed, strict=True)]
        lost = f" (collapsed {row.collapsed:.0f}/{row.n_seeds})" if row.collapsed else ""
        lines.append([row.method + lost, *cells])
    return grid(["method", *(f"{COHORTS[t]} · paper" for t in tags)], lines)


def table1() -> str:
    """Both backbones beside the paper, then the variants."""
    full, parts = table("table1"), []
    for backbone in ("TinyNet", "ResNet-18"):
        rows = own_rows("table1", backbone)
        if len(rows):
            seeds = "/".join(map(str, sorted(set(rows.n_seeds))))
            parts.append(f"**{backbone}**, seeds: {seeds}\n\n{with_paper(rows, backbone)}")
        else:
            parts.append(f"*{backbone}: not run.*")
    others = full[~full.method.isin(tables.ROWS.values())]
    if len(others):
        tags = [t for t in ("d1", "d2", "d12") if f"auc_{t}" in full]
        lines = [[r.method, r.n_seeds, *(cell(r, t) for t in tags)] for _, r in others.iterrows()]
        head = grid(["variant", "seeds", *(COHORTS[t] for t in tags)], lines)
        parts.append(f"One setting changed at a time:\n\n{head}")
    return "\n\n".join(parts)


def population(name: str = "reference_population") -> str:
    full = table(name)
    if full is None:
        return missing(name)
    lines = []
    for _, row in full.iterrows():
        ends = between(row.low, row.high)
        sd = f" ± {number(row.auc_sd)}" if row.auc_sd == row.auc_sd else ""
        cells = [row.method, row.n_seeds, f"{number(row.auc)}{sd}{ends}", number(row.ceiling)]
        verdict = row.verdict if isinstance(row.verdict, str) else ""
        lines.append([*cells, number(row.depth_r2), number(row.loss), verdict])
    head = ["method", "seeds", "AUC, probe fitted on D1", "AUC, many labels", "R2 of depth"]
    return grid([*head, "loss at the end", "training"], lines)


def judged_population() -> str:
    return population("reference_population_judged")


def judged_differences() -> str:
    return population_differences("reference_differences_judged")


def population_differences(name: str = "reference_differences") -> str:
    full = table(name)
    if full is None:
        return missing(name)
    lines = []
    for _, row in full.rename(columns={"difference": "mean"}).iterrows():
        names = [tables.row_label(row[k]) for k in ("first", "second")]
        lines.append([f"{names[0]} minus {names[1]}", row.n_seeds, amount(row)])
    return grid(["", "seeds", "difference [95 % interval]"], lines)


def studies() -> str:
    full = table("reference_studies")
    if full is None:
        return missing("reference_studies")
    lines = [
        [tables.row_label(r.better), tables.row_label(r.worse), number(r.difference),
         number(r.spread), f"{r.wrong:.0%}"]
        for r in full.itertuples()
    ]  # fmt: skip
    head = ["better", "worse", "true difference", "SD of what a study reports", "ranked wrongly"]
    return grid(head, lines)


def summary() -> str:
    """Phantom page: order, position, verdicts in words."""
    return bullets([order(), told_apart(), position_and_label(), judged(), training(), settled()])


def differences() -> str:
    return differences_of("audit_differences")


def differences_of(name: str) -> str:
    if table(name) is None:
        return missing(name)
    rows = gaps(name)
    cohorts, lines = list(dict.fromkeys(rows.cohort)), []
    for method, part in rows.groupby("method", sort=False):
        part = part.set_index("cohort")
        lines.append([method, *(amount(part.loc[c]) for c in cohorts)])
    reference = rows.reference.iloc[0]
    return grid([f"{reference} minus", *(COHORTS.get(c, c) for c in cohorts)], lines)


def claims() -> str:
    rows = table("audit_claims").fillna("")
    lines = [
        [r.claim, COHORTS.get(r.cohort, r.cohort), f"**{r.paper}**: {r._4}", f"**{r.run}**: {r._6}"]
        for r in rows.itertuples()
    ]
    return grid(["claim", "cohort", "the paper's numbers", "this run"], lines)


def correlations() -> str:
    """Verdicts that change when two methods' AUCs are correlated as they are here."""
    own = pd.concat([t for t in (table("audit_differences"),) if t is not None])
    printed = ROOT / "figures" / "paper"
    table1, table3 = audit.read_printed(printed, audit.COUNTS)
    rows = table1[table1.backbone == "TinyNet"]
    rows = rows.set_index(rows.method.map({v: k for k, v in tables.ROWS.items()}))
    rows = pd.concat([rows, table3.set_index("wsp_sigma" + table3.sigma.astype(str))])
    needs, count = audit.claims_of("wsp", table3.sigma), []
    for r in (0, 0.7):
        source = {"paper": audit.printed_differences(rows, audit.COUNTS, r)}
        count.append((audit.judge(needs, source, audit.COUNTS, {}).paper == "supported").sum())
    text = "These errors treat two methods as if each had its own patients, which is cautious: the "
    text += f"paper prints no correlation (here {number(own.r.min())} to {number(own.r.max())}). "
    text += f"With .7, {count[1]} verdicts would be *supported* instead of {count[0]}."
    return bullets([text])[2:].replace("\n  ", "\n")


def accuracy() -> str:
    rows, lines = table("table2"), []
    names = [c.removeprefix("bacc_") for c in rows if c.startswith("bacc_")]
    paper = pd.read_csv(ROOT / "figures" / "paper" / "table2_bacc.csv").set_index("method").bacc
    for _, row in rows.iterrows():
        each = [number(row[f"bacc_{n}"]) for n in names]
        each = [
            text + (f" ± {number(row[f'seed_sd_{n}'])}" if number(row[f"seed_sd_{n}"]) else "")
            for text, n in zip(each, names, strict=True)
        ]
        best = number(row.bacc) + between(row.low, row.high)
        printed = paper.get(row.method.replace("simulated reading", "Radiologists"))
        lines.append([row.method, *each, best, number(printed) if printed else ""])
    if "simulated reading" not in set(rows.method):
        lines.append(["radiologists", *[""] * len(names), "", number(paper["Radiologists"])])
    best = "better of the two" if len(names) > 1 else "[interval over patients]"
    return grid(["method", *names, best, "paper (better of two)"], lines)


def widths() -> str:
    rows, lines = table("table3"), []
    paper = pd.read_csv(ROOT / "figures" / "paper" / "table3_sigma.csv").set_index("sigma")
    for _, row in rows.iterrows():
        cells = []
        for tag in ("d1", "d2", "d12"):
            printed = paper[f"auc_{tag}"].get(row.sigma)
            cells.append(cell(row, tag) + (f" · {number(printed)}" if printed else ""))
        many = row.effective_positives
        many = f"{many:.1f}".removesuffix(".0") if many == many else ""
        lines.append([f"{row.sigma:g}", f"{row.n_seeds:.0f}", *cells, many])
    head = ["sigma", "seeds", "D1 · paper", "D2 · paper", "D1+2 · paper", "effective positives"]
    n = len(head) - rows.effective_positives.isna().all()  # the reference experiment counts none
    return grid(head[:n], [line[:n] for line in lines])


def variants() -> str:
    return variants_of("audit_variants")


def variants_of(name: str) -> str:
    rows = table(name)
    if rows is None:
        return missing(name)
    cohorts, lines = list(dict.fromkeys(rows.cohort)), []
    for (variant, of), part in rows.groupby(["variant", "of"], sort=False):
        part = part.set_index("cohort")
        words = [tables.row_label(variant), tables.row_label(of), part.seeds.iloc[0]]
        lines.append([*words, *(amount(part.loc[c]) for c in cohorts)])
    return grid(["variant", "minus", "seeds", *(COHORTS.get(c, c) for c in cohorts)], lines)


def pairs() -> str:
    rows = table("audit_pairs")
    if rows is None:
        return missing("audit_pairs")
    lines = [
        [tables.row_label(r.method), *(number(v) for v in (r.pooled, r.within, r.between))]
        for r in rows.itertuples() if r.method in tables.ROWS
    ]  # fmt: skip
    return grid(["method, on D1+2", "all pairs", "within a data set", "across"], lines)


def adrenal(suffix: str = "") -> str:
    """Adrenal page: order of the methods, and WSP minus each."""
    if table(f"table1_adrenal{suffix}") is None:
        return missing(f"table1_adrenal{suffix}")
    other = gaps(f"audit_differences_adrenal{suffix}").set_index("method")
    lines = [
        [r.method, r.n_seeds, cell(r, "probe"),
         amount(other.loc[r.method]) if r.method in other.index else ""]
        for _, r in own_rows(f"table1_adrenal{suffix}").iterrows()
    ]  # fmt: skip
    return grid(["method", "seeds", "AUC", "WSP minus it"], lines)


def adrenal_summary() -> str:
    return bullets([glands(), *gland_verdicts("_long")])


def gland_verdicts(suffix: str) -> list[str]:
    """What WSP is told from, what wider intervals leave of it, and trainings without a spread."""
    other = gaps(f"audit_differences_adrenal{suffix}").set_index("method")
    parts = other.apply(side, axis=1).groupby(lambda m: side(other.loc[m]), sort=False)
    words = "; ".join(f"{word} {listed(list(part.index))}" for word, part in parts)
    wide = other.assign(half=(other.high_both - other.low_both) / 2 * 2**0.5)
    lost = [m for m, r in wide.iterrows() if side(r) != "not told from" and r.half > abs(r["mean"])]
    lines = [f"WSP is {words}."]
    if (other.apply(side, axis=1) != "not told from").any():
        text = "Intervals wider by the root of 2 (see above) would no longer tell apart: "
        lines.append(text + (listed(lost) if lost else "none of these change") + ".")
    rows = own_rows(f"table1_adrenal{suffix}").set_index("method")
    for method, row in rows[rows.collapsed > 0].iterrows():
        text = f"{method}: embeddings collapsed in {row.collapsed} of {row.n_seeds} trainings; "
        text += f"the features have an AUC of {number(row.auc_probe)}; untrained they have "
        lines.append(text + number(rows.loc["None (random)"].auc_probe) + ".")
    return lines


def adrenal_long() -> str:
    return adrenal("_long")


def adrenal_short() -> str:
    return bullets(gland_verdicts(""))


def adrenal_variants() -> str:
    return variants_of("audit_variants_adrenal")


def adrenal_clean() -> str:
    return adrenal("_clean")


def _kernel_seeds() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs of notebook 08 on the seeds that chose (all methods) and on those that judged."""
    runs = table("kernels_help")
    many = runs.groupby("seed").method.transform("nunique") == runs.method.nunique()
    return runs[many], runs[~many]


def kernels_choice() -> str:
    from wspnb.studies import position_runs

    if table("kernels_help") is None:
        return missing("kernels_help")
    first, fresh = _kernel_seeds()
    found = position_runs.compare_rows(fresh, position_runs.choose_rows(first))
    return bullets(position_runs.recommend(fresh, found))


def kernels() -> str:
    from wspnb.studies import position_runs

    if table("kernels_help") is None:
        return missing("kernels_help")
    first, fresh = _kernel_seeds()
    auc, depth = (position_runs.over_points(first, v) for v in ("auc_population", "depth_r2"))
    judged, images = position_runs.over_points(fresh).mean(), table("reference_population")
    images, lines = images.set_index("name").auc.rename({"wsp_floor0.2": "wsp_floor"}), []
    for name in auc.mean().sort_values(ascending=False).index:
        own = [
            f"{number(auc[name].mean())} ± {number(auc[name].std())}",
            number(depth[name].mean()),
        ]
        more = [number(column.get(name, float("nan"))) for column in (images, judged)]
        lines.append([f"`{name}`", tables.row_label(name), *own, *more])
    seeds = [f"{part.seed.nunique()} seeds" for part in (first, fresh)]
    head = ["name", "", f"AUC, {seeds[0]}", "R2 of depth", "images", f"judged, {seeds[1]}"]
    return grid(head, lines)


def position() -> str:
    """Position page: what notebook 06b finds in the table of its study."""
    from wspnb.studies import position_runs

    runs = table("position_help")
    if runs is None:
        return missing("position_help")
    return bullets(position_runs.findings(runs))


def position_base() -> str:
    from wspnb.studies import position_runs

    rows, lines = position_runs.differences(table("position_help")), []
    for point, part in rows.groupby("point", sort=False):
        part = part.set_index("other")
        cells = [amount(part.loc[m]) for m in ("supcon", "depth_aware", "simclr")]
        lines.append([point.replace("_", " "), *cells, part.n.iloc[0]])
    head = ["point", "WSP minus SupCon", "minus depth-Aware", "minus SimCLR", "seeds"]
    return grid(head, lines)


def oct_table() -> str:
    return oct_rows("table_oct")


def oct_long() -> str:
    return oct_rows("table_oct_500")


def oct_rows(name: str) -> str:
    rows, lines = table(name), []
    if rows is None:
        return missing(name)
    for r in rows.itertuples():
        sd = f" ± {r.seed_sd:.3f}" if r.seed_sd == r.seed_sd else ""
        ends = between(r.soft_minus_low, r.soft_minus_high, "+")
        minus = f"{r.soft_minus:+.3f}{ends}" if ends else ""
        auc = f"{r.macro_auroc:.3f}{sd}{between(r.low, r.high)}"
        lines.append([r.method, r.seeds, auc, f"{r.rounded:.3f}", minus])
    return grid(["method", "seeds", "macro AUROC", "rounded scores", "ours minus it"], lines)


def oct_summary() -> str:
    from wspnb.studies import oct

    lines = []
    for name, words in (("table_oct", ""), ("table_oct_500", "Longer: ")):
        rows = table(name)
        if rows is not None:
            steps = f"{words}{rows.n_steps.iloc[0]} steps, seeds: {rows.seeds.iloc[0]}. "
            lines += [steps + " ".join(oct.findings(rows))]
    return bullets(lines)


def oct_audit() -> str:
    rows = table("olives_audit")
    shared = rows[(rows.finding == "patients in both") & rows.value.notna()]
    lines = [f"{r.table}: patients in both parts are {r.value}." for r in shared.itertuples()]
    total = rows[rows.finding == "biomarker rows of all eyes"]
    lines += [f"Biomarker rows of all eyes: {v}." for v in total.value]
    return bullets(lines)


def card() -> str:
    """Speed of a step on a card, from the rows of benchmarks/step.py."""
    rows = pd.read_csv(ROOT / "benchmarks" / "card.csv")
    lines = [
        [r.backbone, r.size, f"{1000 * r.step_s:.1f}", f"{2 * r.slices / r.step_s:,.0f}",
         f"{r.utilisation:.0%}", f"{r.tflops:.0f} of {r.peak_tflops:.0f}", f"{r.memory_gib:.1f}",
         f"{6240 * r.step_s / 60:.1f}"]
        for r in rows.itertuples()
    ]  # fmt: skip
    head = ["network", "px", "ms a step", "views a second", "card at work", "TFLOP/s of measured"]
    table = grid([*head, "GiB", "6,240 steps, min"], lines)
    return (
        f"{listed(list(dict.fromkeys(rows.machine)))}; {rows.slices[0]} slices a step.\n\n{table}"
    )


BLOCKS = {
    f.__name__: f
    for f in (found, results, summary, table1, population, population_differences,
              judged_population, judged_differences, position_images, position_steps,
              position_factors, studies,
              differences, claims, correlations, accuracy, widths, variants, pairs,
              adrenal, adrenal_long, adrenal_summary, adrenal_short, adrenal_variants,
              adrenal_clean, kernels, kernels_choice, position, position_base,
              oct_table, oct_long, oct_summary, oct_audit, choices, ledger, card)
}  # fmt: skip


def render(text: str) -> str:
    """A page with each block as its function writes it now.

    Raises:
        KeyError: if a page names a block that there is not.
    """
    fill = "<!-- begin {0} -->\n{1}\n<!-- end {0} -->"
    return MARK.sub(lambda m: fill.format(m[1], BLOCKS[m[1]]()), text)


def main() -> int:
    """Write the pages anew; says which changed."""
    for name in PAGES:
        old = (ROOT / name).read_text(encoding="utf-8")
        new = render(old)
        if new != old:
            write_text(ROOT / name, new)
        print(f"{'written' if new != old else 'as it was':9}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Three stages read from frozen features, and from how few labels: for cohorts with ``stage``.

    python -m wspnb.results.stages RUN_DIR ...  after notebook 03; notebook 05 does it too

Fitted on the patients of one cohort ("train"), judged on those of another ("judged"). The stage is
whatever the table calls so; in CirrMRI600+ it is a radiologist's look at the MRI, no histology.
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from wspnb.files import read_csv, write_csv
from wspnb.folds import check_names, checked
from wspnb.plots import save_figure
from wspnb.probe import classifier, read_slices
from wspnb.results import tables
from wspnb.results.statistics import draw_again, ends, interval

# Of the training patients of each stage, rounded up; draws of a share below 1, the same for all.
SHARES, DRAWS = (0.1, 0.25, 0.5, 1.0), 5
MEASURES = {"severe_auc": "AUC severe", "mild_auc": "AUC mild"}  # and as tables print them
MEASURES |= {"kappa": "Quadratic kappa", "bacc": "Balanced accuracy"}


def read_stages(features, stage, patients, train, C: float = 0.01) -> pd.DataFrame:
    """Probability of each stage for each patient that is not in ``train``.

    Args:
        features: ``(n_slices, d)``.
        stage: 1 mild, 2 moderate, 3 severe, of each slice's patient, ``(n_slices,)``.
        patients: of each slice, ``(n_slices,)``.
        train: whether the probe is fitted on a slice, ``(n_slices,)`` bool; the others are judged.
        C: inverse strength of the L2 penalty.

    Returns:
        One row per judged patient: ``stage``, ``p1, p2, p3`` (mean over the slices).

    Raises:
        ValueError: if a slice has no patient, stage or side, a patient two stages, a stage is
            missing in the training part, a patient is on both sides, or features are not finite.
    """
    check_names(patients)
    stage, patients, train = (np.asarray(v) for v in (stage, patients, train))
    if lost := int(pd.isna(train).sum()):
        raise ValueError(f"{lost} slices of no side (train): True where fitted on, else False")
    train = train.astype(bool)
    if (lost := ~np.isin(stage, (1, 2, 3))).any():
        raise ValueError(f"patient {patients[lost][0]}: stage {stage[lost][0]}, not 1, 2 or 3")
    each = pd.DataFrame({"patient": patients, "stage": stage}).drop_duplicates().patient
    if len(mixed := each[each.duplicated()]):
        who = ", ".join(map(str, mixed[:5]))
        raise ValueError(f"patients of two stages: {who}; one stage per patient")
    if both := sorted(set(patients[train]) & set(patients[~train])):
        raise ValueError(f"patients on both sides: {', '.join(map(str, both[:5]))}")
    if (there := np.unique(stage[train]).tolist()) != [1, 2, 3]:
        raise ValueError(f"stages {there} to fit on: all of 1, 2, 3 are needed")
    features, *_ = checked(features, train, patients)
    found = {"patient": patients[~train], "stage": stage[~train]}
    for k in (1, 2, 3):  # one against the rest, as the two classes are weighted equally
        model = classifier(C).fit(features[train], stage[train] == k)
        found[f"p{k}"] = model.predict_proba(features[~train])[:, 1]
    return pd.DataFrame(found).groupby("patient").mean()


def measures(people: pd.DataFrame) -> dict[str, float]:
    """From :func:`read_stages`: AUC of severe and of mild against the rest, and of the likeliest
    stage the quadratic kappa and the balanced accuracy; NaN where a stage is absent, and but for
    the first where only ``p3`` is given."""
    row, all_stages = dict.fromkeys(MEASURES, np.nan), "p1" in people
    severe = people.stage == 3
    if severe.nunique() < 2 or (all_stages and people.stage.nunique() < 3):
        return row
    row["severe_auc"] = roc_auc_score(severe, people.p3)
    if all_stages:
        stage = people.stage.astype(int)
        read = people[["p1", "p2", "p3"]].to_numpy().argmax(1) + 1
        row["mild_auc"] = roc_auc_score(stage == 1, people.p1)
        row["kappa"] = cohen_kappa_score(stage, read, weights="quadratic", labels=[1, 2, 3])
        row["bacc"] = balanced_accuracy_score(stage, read)
    return row


def with_intervals(people: pd.DataFrame, n: int = 1000) -> dict[str, float]:
    """:func:`measures`, each with its 95 % interval from patients drawn again within their stage;
    the probe stays. NaN where a stage has one patient."""
    rng, own = np.random.default_rng(0), [part for _, part in people.groupby("stage")]
    who = zip(*(draw_again(len(part), n, rng) for part in own), strict=True)
    drawn = [
        measures(pd.concat(part.iloc[w] for part, w in zip(own, them, strict=True))) for them in who
    ]
    row = measures(people)
    for measure, values in pd.DataFrame(drawn).items():
        row[f"{measure}_low"], row[f"{measure}_high"] = ends(values)
    return row


def label_efficiency(features, slices: pd.DataFrame, C: float = 0.01) -> pd.DataFrame:
    """:func:`measures` by the share of the training patients that have a label.

    Args:
        features: ``(n_slices, d)``.
        slices: patient, cohort ("train", "judged") and stage of each.
        C: as for :func:`read_stages`.

    Returns:
        One row per share and draw: ``share``, ``draw``, ``patients``, and the measures.
    """
    people = slices[slices.cohort == "train"].groupby("patient").stage.first().sort_index()
    judged, rows = (slices.cohort == "judged").to_numpy(), []
    for share in SHARES:
        for draw in range(DRAWS if share < 1 else 1):
            rng = np.random.default_rng([0, draw])
            chosen = [  # a draw of 25 % holds that of 10 %
                rng.permutation(own.index)[: int(np.ceil(share * len(own)))]
                for _, own in people.groupby(people)
            ]
            fitted = slices.patient.isin(np.concatenate(chosen)).to_numpy()
            keep = fitted | judged
            part = slices[keep]
            found = read_stages(features[keep], part.stage, part.patient, fitted[keep], C)
            row = {"share": share, "draw": draw, "patients": sum(map(len, chosen))}
            rows.append(row | measures(found))
    return pd.DataFrame(rows)


def summarise(run_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of all finished probes of a folder: stages with intervals, and the curve. A network
    that was fine-tuned on severe against the rest has no features: its first measure alone.

    Raises:
        ValueError: if there is none with features of both cohorts and a column ``stage``.
    """
    table, curve, tuned = [], [], []
    for run in tables.read_runs(run_dir):
        who = {name: run[name] for name in ("name", "backbone", "seed")}
        if not (file := run["folder"] / "features.npy").exists():
            people = tables.cohort_scores(run, "train>judged")
            if len(people):  # its class 1 is severe; the others are one
                people = pd.DataFrame({"stage": 1 + 2 * people.label, "p3": people.score})
                tuned.append(who | {"n": len(people)} | with_intervals(people))
            continue
        slices = read_slices(file.parent)
        if "stage" not in slices or not {"train", "judged"} <= set(slices.cohort):
            continue
        keep = slices.cohort.isin(["train", "judged"]).to_numpy()
        slices = slices[keep].reset_index(drop=True)
        features = tables.read_features(file.parent)[keep]
        train = (slices.cohort == "train").to_numpy()
        people = read_stages(features, slices.stage, slices.patient, train, run["C"])
        counts = {"n": len(people), "trained": slices.patient[train].nunique()}
        table.append(who | counts | with_intervals(people))
        curve.append(label_efficiency(features, slices, run["C"]).assign(**who))
    if not table:
        raise ValueError(
            f"{run_dir}: no probe with stages of the cohorts train and judged: run notebook 03 with"
            " evaluate [train>judged]"
        )
    table += [row | {"trained": table[0]["trained"]} for row in tuned]
    return pd.DataFrame(table), pd.concat(curve, ignore_index=True)


def draw_curve(curve: pd.DataFrame) -> plt.Figure:
    """One line per encoder, mean over the draws and seeds, one panel per measure."""
    fig, axes = plt.subplots(1, len(MEASURES), figsize=(13, 3.2), layout="constrained")
    sizes = sorted({round(size) for size in curve.patients})
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        for (backbone, name), own in curve.groupby(["backbone", "name"]):
            mean = own.groupby("share")[[measure, "patients"]].mean()
            beside = f"  {tables.BACKBONES[backbone]}" if curve.backbone.nunique() > 1 else ""
            label = tables.row_label(name) + beside
            axis.plot(mean.patients, mean[measure], "o-", label=label)
        axis.set(title=title, xlabel="training patients with a label", xscale="log")
        axis.set_xticks(sizes, sizes)
        axis.set_xticks([], minor=True)
        axis.set_ylim(top=min(axis.get_ylim()[1], 1.02))
    axes[0].legend(fontsize="small")
    return fig


def write(run_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write ``stages.csv``, ``stages_curve.csv`` and the curve's picture to ``figures/``; the two
    tables of :func:`summarise` to read: measures with their intervals, and by share of labels."""
    table, curve = summarise(run_dir)
    folder = run_dir / "figures"
    write_csv(folder / "stages.csv", table.round(4))
    write_csv(folder / "stages_curve.csv", curve.round(4))
    save_figure(fig := draw_curve(curve), folder, "stages_curve")
    plt.close(fig)
    rows = [
        {"Encoder": tables.BACKBONES[run["backbone"]], "Method": tables.row_label(run["name"])}
        | {"Seed": run["seed"], "Fitted on": run["trained"], "Judged": run["n"]}
        | {
            name: f"{run[m]:.2f}{interval(run[f'{m}_low'], run[f'{m}_high'])}".replace("nan", "–")
            for m, name in MEASURES.items()
        }
        for run in table.to_dict("records")
    ]
    few = curve.rename(columns=MEASURES | {"patients": "Patients"})
    keys = [few.backbone.map(tables.BACKBONES).rename("Encoder")]
    keys += [few.name.map(tables.row_label).rename("Method")]
    keys += [few.share.map("{:.0%}".format).rename("Labels"), "Patients"]
    means = few.groupby(keys, sort=False)[[*MEASURES.values()]].mean()
    return pd.DataFrame(rows), means.reset_index()


def over_folds(found: list[pd.DataFrame]) -> pd.DataFrame:
    """Mean and SD of each measure over folds that are runs of their own (``stages.csv`` of each),
    one row per encoder.

    Raises:
        ValueError: if an encoder is missing in a fold.
    """
    rows = pd.concat(found).groupby(["backbone", "name", "seed"], sort=False)[list(MEASURES)]
    for name, n in rows.size().items():
        if n != len(found):
            raise ValueError(f"{name}: in {n} of {len(found)} runs, not in all")
    mean, sd = rows.mean(), rows.std()
    return mean.join(sd.add_suffix("_sd")).assign(folds=len(found)).reset_index()


def main(arguments: list[str]) -> int:
    """See :func:`write`; of several folders, folds of one cohort, also :func:`over_folds`, which is
    written to ``figures/stages_folds.csv`` of the first."""
    parser = argparse.ArgumentParser("python -m wspnb.results.stages", description=__doc__)
    parser.add_argument("run_dir", nargs="+", type=Path, help="several: folds of one cohort")
    folders = parser.parse_args(arguments).run_dir
    try:
        if len({folder.resolve() for folder in folders}) < len(folders):
            raise ValueError("a folder is there twice: name each fold once")
        found = [table for run_dir in folders for table in write(run_dir)]
        if len(folders) > 1:
            stages = [read_csv(folder / "figures" / "stages.csv") for folder in folders]
            found.append(over_folds(stages))
            write_csv(folders[0] / "figures" / "stages_folds.csv", found[-1].round(4))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for table in found:
        print(table.round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    plt.switch_backend("Agg")  # as for notebooks: the user's own matplotlibrc does not count
    plt.rcdefaults()
    sys.exit(main(sys.argv[1:]))

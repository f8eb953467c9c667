"""The cohort table: one row per CT volume, checked before anything is computed."""

import csv
import os
from collections import Counter
from pathlib import Path

import pandas as pd

from wspnb.data.inventory import CODINGS

COLUMNS = ("volume", "mask", "patient", "weak_label", "label", "cohort")
EMPTY = {"", "nan", "na", "<na>", "none"}  # how tables write an unknown label


def read_cohort(path: str | Path) -> pd.DataFrame:
    """The cohort's table with its paths resolved and its labels as integers.

    The file is comma-separated UTF-8 with the columns ``volume, mask, patient, weak_label, label,
    cohort`` and any others, which are kept. Paths are relative to the file's folder, or absolute;
    ``mask``, ``weak_label`` and ``label`` may be empty. A ``mask`` that is a folder with a
    ``liver.nii.gz`` in it, as TotalSegmentator writes one per patient, stands for that file. A
    further column ``coding`` says how a volume's intensities are coded
    (:data:`wspnb.data.inventory.CODINGS`), empty to find out.

    Args:
        path: the CSV file.

    Returns:
        One row per volume: ``volume`` and ``mask`` as absolute paths (mask "" when there is none),
        ``patient`` and ``cohort`` as text, ``weak_label`` (0, 1, 2, ...) and ``label`` (0/1) as
        nullable integers (Int64).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: one error with every problem found (the first ten), each with its line, column
            and value.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such cohort table; give the path of a CSV file")
    names, lines, rows = _read_lines(path)
    folder = os.path.abspath(path.parent)
    raw = pd.DataFrame(rows, columns=names, index=pd.Index(lines, name="line"), dtype=str)
    for column in ("volume", "mask"):
        raw[column] = [
            os.path.normpath(os.path.join(folder, os.path.expanduser(name))) if name else ""
            for name in raw[column]
        ]
    livers = [os.path.join(name, "liver.nii.gz") if name else "" for name in raw["mask"]]
    raw["mask"] = [
        liver if os.path.isfile(liver) else name
        for liver, name in zip(livers, raw["mask"], strict=True)
    ]
    problems = cohort_errors(raw)
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:10])
        more = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"{path}: {len(problems)} problems in the cohort table\n{shown}{more}")

    table = raw.reset_index(drop=True)
    for column in ("weak_label", "label"):
        values = [pd.NA if v.lower() in EMPTY else int(float(v)) for v in table[column]]
        table[column] = pd.array(values, dtype="Int64")
    for column in names:
        if column not in (
            *COLUMNS,
            "coding",
        ):  # numbers where all of a column are numbers, else text
            numbers = pd.to_numeric(table[column].where(table[column] != ""), errors="coerce")
            if numbers.notna().equals(table[column] != ""):
                table[column] = numbers
    return table[[*COLUMNS, *(name for name in names if name not in COLUMNS)]]


def cohort_errors(table: pd.DataFrame) -> list[str]:
    """Everything wrong with a cohort table, one sentence per problem.

    Args:
        table: columns as in the file, all text, paths absolute; the index holds the line numbers of
            the file.

    Returns:
        Line, column, value and what to do, in the order of the lines; empty when all is sound.
    """
    found = []
    first_line: dict[str, int] = {}
    known: dict[tuple[str, str], tuple[str, int]] = {}
    for line, row in zip(table.index, table.to_dict("records"), strict=True):
        for column in ("volume", "patient", "cohort"):
            if not row[column]:
                found.append((line, f"{column} is empty: fill it in or delete the line"))
        for column in ("volume", "mask"):
            if row[column] and not os.path.isfile(row[column]):
                advice = "correct the path" + (" or leave it empty" if column == "mask" else "")
                advice += ", with / for \\" if "\\" in row[column] and os.sep == "/" else ""
                found.append((line, f"{column} {row[column]!r} is not a file: {advice}"))
        volume = row["volume"]
        if volume and first_line.setdefault(volume, line) != line:
            where = first_line[volume]
            found.append((line, f"volume {volume!r} is already in line {where}: delete one"))
        for column in ("weak_label", "label"):
            problem = _label_problem(column, row[column])
            if problem:
                found.append((line, problem))
        coding = row.get("coding", "")
        if coding and coding not in CODINGS:
            found.append(
                (line, f"coding {coding!r} is none of {', '.join(CODINGS)}: or leave it empty")
            )
        for column in ("weak_label", "label", "cohort"):
            value = row[column]
            if not row["patient"] or value.lower() in EMPTY or _label_problem(column, value):
                continue
            value = value if column == "cohort" else str(int(float(value)))
            other, where = known.setdefault((row["patient"], column), (value, line))
            if other != value:
                found.append(
                    (
                        line,
                        f"patient {row['patient']!r} has {column} {value!r} here and {other!r}"
                        f" in line {where}: a patient has one; correct it, or delete a line",
                    )
                )
    return [f"line {line}: {problem}" for line, problem in found]


def _label_problem(column: str, value: str) -> str:
    """What is wrong with one label, or nothing."""
    if column == "cohort" or value.lower() in EMPTY:
        return ""
    try:
        number = float(value)
        whole = number == int(number)
    except (ValueError, OverflowError):
        number, whole = -1.0, False
    if column == "label" and number not in (0.0, 1.0):
        return f"label {value!r} is not 0 or 1: leave it empty where it is unknown"
    if not whole or not 0 <= number < 2**31:
        return f"weak_label {value!r} is not an integer from 0: leave it empty where it is unknown"
    return ""


def _read_lines(path: Path) -> tuple[list[str], list[int], list[list[str]]]:
    """Column names, and for each row that is not blank its line number and its fields."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            names = [name.strip() for name in next(reader, [])]
            stripped = ([field.strip() for field in row] for row in reader)
            content = [(reader.line_num, row) for row in stripped if any(row)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}): save the table as CSV UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV file ({error}): save the table as CSV") from error
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        hint = " and separate columns by commas" if len(names) == 1 else ""
        raise ValueError(
            f"{path}: columns {missing} are missing, found {names}: add them{hint}"
            " (mask and labels may be empty)"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: columns {twice} appear more than once: rename or delete them")
    if not content:
        raise ValueError(f"{path}: no rows below the header: add one line per volume")
    wrong = [(line, len(row)) for line, row in content if len(row) != len(names)]
    if wrong:
        listed = "\n".join(f"  line {n}: {k} fields, not {len(names)}" for n, k in wrong[:10])
        raise ValueError(
            f"{path}: {len(wrong)} lines do not fit the header\n{listed}\n"
            "  put fields that hold a comma between double quotes"
        )
    return names, [line for line, _ in content], [row for _, row in content]

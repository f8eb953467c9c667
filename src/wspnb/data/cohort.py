"""The cohort table: one row per CT volume, checked before anything is computed."""

import csv
import os
import re
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pandas as pd

from wspnb.data.inventory import CODINGS
from wspnb.data.looks import look_alikes, visible
from wspnb.files import CODE, separator

COLUMNS = ("volume", "mask", "patient", "weak_label", "label", "cohort")
# How tables write what is unknown.
EMPTY = {"", "nan", "na", "<na>", "none", "null", "n/a", "#n/a", "#na", "nat", "-", "?", "unknown"}
EMPTY |= {".", "--", "\u2013", "\u2014", "n.a.", "n.a", "missing", "not available", "unk", "???"}
EMPTY |= {f"[{word}]" for word in ("not available", "unknown", "not evaluated", "not applicable")}
EMPTY |= {"not reported", "not evaluated", "not applicable", "[discrepancy]", "'--"}  # TCGA, GDC
EMPTY |= {"unbekannt", "k.a.", "k. a.", "inconnu", "desconocido", "#nv", "#n/d"}  # spreadsheets too
UNKNOWN = EMPTY - {""}
# #REF!, #¡VALOR!, Err:502, ####: what spreadsheets leave.
BROKEN = re.compile(r"#\S+[!?]|#[^\W\d]+/[^\W\d]|#YOK|#{3,}|(Err|Error|Erreur|Fehler) ?: ?\d+")
INTEGER = re.compile(r"\+?[0-9]{1,10}(\.0*)?")  # a column with gaps is written 1.0 by many tools
MONTH = "jan|feb|fév|fev|mar|mär|mrz|mrt|maa|apr|avr|abr|may|mai|mei|mag|maj|jun|jui|jul|giu|lug"
MONTH = f"(?:{MONTH}|aug|aoû|ago|sep|set|oct|okt|ott|out|nov|dec|dez|déc|dic|ene|gen)\\w{{0,2}}"
DATE = re.compile(
    rf"\d{{1,2}}[-. ]{{1,2}}{MONTH}\.?([-. ]\d{{2,4}})?|{MONTH}[- ]\d\d"
    r"|(\d{4}([-/.])\d\d?\3\d\d?|\d{1,2}([./])\d{1,2}\4(\d{4}|\d\d))([ T]0?0:00(:00)?)?"
    r"|\d{1,2}:\d\d(:\d\d)?",
    re.IGNORECASE,
)
PACKED = ("", ".gz", ".GZ", ".bz2", ".zst", ".Z")
NOBODY = re.compile(  # what an anonymiser or a form writes for all alike
    r"anonym\w*|removed|de-?identified|x{3,}|nn|0+|\(blank\)|empty|onbekend"
    r"|sconosciuto|deleted|no name|n/k",
    re.IGNORECASE,
)
EXPONENT = re.compile(r"[0-9]+([.,][0-9]+)?[eE][+-][0-9]+")  # as spreadsheets show long numbers


def read_cohort(path: str | Path) -> pd.DataFrame:
    """The cohort's table with its paths resolved and its labels as integers.

    The file is UTF-8, separated by commas (or semicolons, or tabs), with the columns ``volume,
    mask, patient, weak_label, label, cohort`` and any others, which are kept. Paths are relative to
    the file's folder, or absolute; ``mask``, ``weak_label`` and ``label`` may be empty.
    A ``mask`` that is a folder with a ``liver.nii.gz`` in it, as TotalSegmentator writes one per
    patient, stands for that file. A further column ``coding`` says how a volume's intensities are
    coded (:data:`wspnb.data.inventory.CODINGS`), empty to find out; a column ``modality`` says ct
    (also where it is empty) or mr, whose coding is then "MR". Accents may be written in one
    character or in two, in paths and in names; characters that nobody sees are dropped. A row is a
    line: a field with a line break in it is refused, as an open quote makes one.

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
        advice = "give the path of a CSV file"
        if path.with_name("settings.json").is_file():
            advice = "notebook 01b writes it when it ends: give its command again"
        raise FileNotFoundError(f"{path}: no such cohort table; {advice}")
    raw, folder = _read_lines(path), os.path.abspath(path.parent)
    for column in ("mask", "coding", "modality"):
        if column in raw:
            raw[column] = raw[column].where(~raw[column].str.lower().isin(EMPTY), "")
    if "modality" in raw:
        raw["modality"] = raw["modality"].str.lower()
        coding = raw.get("coding", pd.Series("", raw.index))
        raw["coding"] = coding.mask((raw["modality"] == "mr") & (coding == ""), "MR")
    for column in ("patient", "cohort"):
        raw[column] = raw[column].map(visible)
    for column in ("volume", "mask"):
        raw[column] = [locate(folder, name) if name else "" for name in raw[column]]
    livers = raw["mask"] + "/liver.nii.gz"
    raw["mask"] = raw["mask"].mask((raw["mask"] != "") & livers.map(os.path.isfile), livers)
    if problems := cohort_errors(raw):
        shown = "\n".join(f"  {problem}" for problem in problems[:10])
        more = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        if "labels_from" in raw:  # by notebook 01b
            own = os.path.normpath(path.parent / raw.labels_from.iloc[0])
            more += f"\n  It was made of {own}: correct that one where it is wrong, then give"
            more += " notebook 01b's command again, with every -p that it had and -p source_dir"
            more += f" {os.path.dirname(own)} at its end"
        raise ValueError(f"{path}: {count} in the cohort table\n{shown}{more}")
    table = raw.reset_index(drop=True)
    for column in ("weak_label", "label"):
        values = [pd.NA if v.lower() in EMPTY else int(float(v)) for v in table[column]]
        table[column] = pd.array(values, dtype="Int64")
    for oddity in _oddities(raw, table.weak_label.dropna().unique().tolist()):
        warnings.warn(f"{path}: {oddity}", stacklevel=2)
    further = [name for name in table if name not in COLUMNS]
    for column in further:  # numbers where all that is known of a column are numbers, else text
        if column not in ("coding", "modality"):
            known = ~table[column].str.lower().isin(EMPTY)
            numbers = pd.to_numeric(table[column].where(known), errors="coerce")
            if numbers.notna().equals(known) and not table[column].str.match(CODE).any():
                table[column] = numbers
    return table[[*COLUMNS, *further]]


def _oddities(raw: pd.DataFrame, classes: list[int]) -> Iterator[str]:
    """What may be right and seldom is."""
    owners = raw[raw["mask"] != ""].groupby("mask").patient.unique()
    for mask, whose in owners[owners.map(len) > 1].items():
        who = f"{len(whose)} patients, {whose[0]!r} and {whose[1]!r} among them"
        yield f"mask {mask!r} is that of {who}: is a path wrong?"
    for column in ("patient", "cohort"):
        for (one, first), (other, line) in look_alikes(raw[column], column == "patient"):
            who = f"{column}s {one!r} (line {first}) and {other!r} (line {line})"
            yield f"{who} look like one: if they are, write both alike"
    stages = raw["weak_label"].where(~raw["weak_label"].str.lower().isin(EMPTY))
    for patient, own in stages.groupby(raw["patient"]):
        if 0 < own.count() < len(own):
            lines = f"in line {own.first_valid_index()} and none in line {own.index[own.isna()][0]}"
            yield f"patient {patient!r} has a weak_label {lines}: a patient has one, fill it in"
    for name, n in raw.groupby("patient").volume.nunique().items():
        if n > 1 and NOBODY.fullmatch(name):
            yield f"patient {name!r} has {n} volumes: is that one patient, or a word for nobody?"
    long = [name for name in raw["patient"].unique() if re.fullmatch(r"\d{16,}", name)]
    if long and all(set(name[15:]) == {"0"} for name in long):
        made = "only zeros behind its 15th digit, as where a spreadsheet cut a long number"
        yield f"patient {long[0]!r} has {made}: write the column as text from its source"
    for name in filter(DATE.fullmatch, raw["patient"].unique()):
        made = "a date that a spreadsheet made of a name such as 5-1"
        yield f"patient {name!r} looks like {made}: write the column as text"
    for below, code in pairwise(sorted(classes)):
        if code > 6 and code - below > 1:
            advice = "where it stands for unknown, leave it empty"
            yield f"weak_label {code} is a class of its own: {advice}"


def cohort_errors(table: pd.DataFrame) -> list[str]:
    """Everything wrong with a cohort table, in the order of the lines: line, column, value and what
    to do. Its columns are as in the file, all text, paths absolute; the index holds the lines."""
    rows = zip(table.index, table.to_dict("records"), strict=True)
    several = table.patient.str.lower().isin(UNKNOWN).sum() > 1  # a single patient may be called so
    found = [(line, text) for line, row in rows for text in _row_errors(row, several)]
    found += _contradictions(table)
    whose = {line: f" (patient {name})" if name else "" for line, name in table.patient.items()}
    found = sorted(
        (line, text + whose[line] * (" patient" not in f" {text}")) for line, text in found
    )
    return [f"line {line}: {problem}" for line, problem in found]


def _row_errors(row: dict[str, str], several: bool) -> Iterator[str]:
    """What is wrong with one line; ``several``: more than one patient is called unknown."""
    for column in ("volume", "patient", "cohort"):
        if not row[column]:
            yield f"{column} is empty: fill it in or delete the line"
    for column in ("patient", "cohort"):
        if row[column].lower() in UNKNOWN and (column == "cohort" or several):
            yield f"{column} {row[column]!r} stands for unknown: fill it in, or write another name"
        elif BROKEN.fullmatch(row[column]):
            yield f"{column} {row[column]!r} is a spreadsheet's error: correct it"
        elif "\ufffd" in row[column]:
            yield f"{column} {row[column]!r} has lost a letter: write it again, as UTF-8"
    if {*"+>"} & {*row["cohort"]}:
        advice = "+ and > have a meaning in the settings: write another name"
        yield f"cohort {row['cohort']!r}: {advice}"
    if EXPONENT.fullmatch(row["patient"]):
        advice = "a spreadsheet has cut a long number: format the column as text and fill it in"
        yield f"patient {row['patient']!r} has lost its digits: {advice}"
    for column in ("volume", "mask"):
        if row[column] and not os.path.isfile(row[column]):
            advice = "correct the path" + (" or leave it empty" if column == "mask" else "")
            advice += ", with / for \\" if "\\" in row[column] and os.sep == "/" else ""
            if os.path.isdir(row[column]):
                advice = "correct the path to a file in this folder, or convert its DICOM first"
            elif near := _other_case(row[column]):
                advice += f", there is {near}"
            yield f"{column} {row[column]!r} is not a file: {advice}"
    for column in ("weak_label", "label"):
        if problem := _label_problem(column, row[column]):
            yield problem
    coding, modality = row.get("coding", ""), row.get("modality", "")
    if coding and coding not in CODINGS:
        yield f"coding {coding!r} is none of {', '.join(CODINGS)}: or leave it empty"
    if modality not in ("", "ct", "mr"):
        yield f"modality {modality!r} is none of ct, mr: or leave it empty for ct"
    elif modality and coding and (modality == "mr") != (coding == "MR"):
        yield f"modality {modality!r} contradicts coding {coding!r}: delete one"


def _contradictions(table: pd.DataFrame) -> Iterator[tuple[int, str]]:
    """Lines that do not fit an earlier one, with what is wrong."""
    volumes = table.volume[table.volume != ""]
    for volume, lines in volumes.index.groupby(volumes).items():
        for line in lines[1:]:
            yield line, f"volume {volume!r} is already in line {lines[0]}: delete one"
    for column in ("weak_label", "label", "cohort"):
        known: dict[str, tuple[str, int]] = {}
        for line, patient, value in zip(table.index, table.patient, table[column], strict=True):
            if not patient or value.lower() in EMPTY or _label_problem(column, value):
                continue
            value = value if column == "cohort" else str(int(float(value)))
            other, where = known.setdefault(patient, (value, line))
            if other != value:
                here = f"patient {patient!r} has {column} {value!r} here and {other!r} in line"
                yield line, f"{here} {where}: a patient has one; correct it, or delete a line"
    cohorts = dict(zip(table.patient, table.cohort, strict=True))
    for (one, first), (other, line) in look_alikes(table.patient):
        if cohorts[one] != cohorts[other]:
            here = f"patient {other!r} in cohort {cohorts[other]!r} looks like {one!r} of line"
            advice = "a patient has one cohort; write both alike, or rename one if they are two"
            yield line, f"{here} {first} in {cohorts[one]!r}: {advice}"


def file_stamp(path: str) -> list:
    """What changes with a file's content and with nothing else; dates do not count.

    Of a pair of header and voxels (.hdr and .img, .HEAD and .BRIK) both. Of gzip beyond 1 MB its
    own checksum, which the last 8 bytes hold, so that nothing else is read; of several gzip
    members, and of any other file, the checksum of all bytes. Empty for an empty path.
    """
    if not path:
        return []
    stem, end = os.path.splitext(re.sub(r"\.(gz|bz2|zst|Z)$", "", path, flags=re.IGNORECASE))
    for pair in ((".hdr", ".img"), (".HDR", ".IMG"), (".HEAD", ".BRIK")):
        if end in pair:
            files = [stem + one + packed for one in pair for packed in PACKED]
            return [_stamp(file) for file in files if os.path.isfile(file)]
    return _stamp(path)


def _stamp(path: str) -> list:
    """Size and checksum of one file."""
    try:
        with open(path, "rb") as file:
            begin = file.read(1 << 16)
            gzipped = begin[:2] == b"\x1f\x8b" and not int.from_bytes(begin[3:4]) & 4  # bgzip's
            several, stored = _first_member(begin) if gzipped else (False, False)
            size = file.seek(0, os.SEEK_END)
            # A small one may be of members that are larger.
            if gzipped and not several and size > 1 << 20:
                file.seek(-8, os.SEEK_END)
                end = file.read()
                if int.from_bytes(end[4:], "little") > size:  # else members, or nothing was packed
                    return [size, end.hex()]
            file.seek(0)
            crc, adler = 0, 1
            while block := file.read(1 << 20):
                crc = zlib.crc32(block, crc)
                adler = zlib.adler32(block, adler) if several or stored else 0  # CRC-32 is blind
            return [size, f"{crc:08x}" + f"{adler:08x}" * (several or stored)]
    except OSError:  # is set aside with its reason when its turn comes
        return ["not readable"]


def _first_member(begin: bytes) -> tuple[bool, bool]:
    """Of gzip: whether its first member is a header alone, and whether packing gained nothing."""
    first = zlib.decompressobj(31)
    with suppress(zlib.error):
        plain = first.decompress(begin, 1 << 20)
        return bool(first.unused_data), len(plain) < len(begin)
    return False, False


def locate(folder: str, name: str) -> str:
    """The path that a table names, or the one there that differs in the form of accents only."""
    named = os.path.join(folder, os.path.expanduser(name))
    path = os.path.normpath(named)
    if os.path.exists(named) and not (os.path.exists(path) and os.path.samefile(named, path)):
        return os.path.realpath(named)  # .. behind a link leads elsewhere than it reads
    if os.path.exists(path):
        return path
    parent, name = os.path.split(path)
    if parent == path or not os.path.isdir(parent := locate(parent, "")):
        return path
    wanted = unicodedata.normalize("NFC", name)
    there = (n for n in _names_in(parent) if unicodedata.normalize("NFC", n) == wanted)
    return os.path.join(parent, next(there, name))


def _names_in(folder: str) -> list[str]:
    """What is in a folder; nothing where it is none, or may not be listed."""
    with suppress(OSError):
        return os.listdir(folder)
    return []


def _other_case(path: str) -> str:
    """Name of a file there that differs in case only, as where a table comes from Windows."""
    folder, name = os.path.split(path)
    return next((other for other in _names_in(folder) if other.casefold() == name.casefold()), "")


def _label_problem(column: str, value: str) -> str:
    """What is wrong with one label, or nothing."""
    if column == "cohort" or value.lower() in EMPTY:
        return ""
    number = int(float(value)) if INTEGER.fullmatch(value) else -1
    if column == "label" and number not in (0, 1):
        return f"label {value!r} is not 0 or 1: write one of these, or leave it empty if unknown"
    if not 0 <= number < 2**31:
        advice = "write digits alone (2 for 2,0; a number for each word), or nothing if unknown"
        return f"weak_label {value!r} is not an integer from 0: {advice}"
    return ""


def _read_lines(path: Path) -> pd.DataFrame:
    """The rows that are not blank, all text; the index holds their line numbers."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True, delimiter=separator(path))
            names = [visible(name) for name in next(reader, [])]
            # Blanks go, line breaks stay: a quote that is left open ends in one and swallows rows.
            ends = re.compile(r"^[^\S\r\n]+|[^\S\r\n]+$")
            stripped = ([ends.sub("", field) for field in row] for row in reader)
            content = [(reader.line_num, row) for row in stripped if any(row)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}): save the table as CSV UTF-8") from error
    except csv.Error as error:
        found = f"not a CSV file ({error} in line {reader.line_num})"
        advice = "save the table as CSV, or close the quote that is open there or above"
        raise ValueError(f"{path}: {found}: {advice}") from error
    while names and not names[-1] and all(len(r) == len(names) and not r[-1] for _, r in content):
        del names[-1]  # spreadsheets write columns without name or content
        content = [(line, row[:-1]) for line, row in content]
    if problem := _table_error(names, content):
        raise ValueError(f"{path}: {problem}")
    lines, rows = zip(*content, strict=True)
    return pd.DataFrame(rows, index=lines, columns=names, dtype=str)


def _table_error(names: list[str], content: list[tuple[int, list[str]]]) -> str:
    """Why header and rows are no cohort table, or nothing."""
    if names and names[0].startswith("sep="):
        return f"its first line is {names[0]!r}, which spreadsheets write: delete that line"
    if missing := [name for name in COLUMNS if name not in names]:
        hint = " and separate columns by commas" if len(names) == 1 else ""
        advice = f"add them{hint} (mask and labels may be empty)"
        if set(missing) <= {name.lower() for name in names}:
            advice = "write them in small letters"
        return f"columns {missing} are missing, found {names}: {advice}"
    cases = Counter(name.lower() for name in names)
    if twice := [name for name in names if cases[name.lower()] > 1]:
        return f"columns {twice} appear more than once: rename or delete them"
    if not content:
        return "no rows below the header: add one line per volume"
    for line, row in content:
        if any("\n" in field or "\r" in field for field in row):
            advice = "a quote is opened and not closed there or above, or write it on one line"
            return f"a field that ends in line {line} holds a line break: {advice}"
    if wrong := [(line, len(row)) for line, row in content if len(row) != len(names)]:
        listed = "".join(f"\n  line {n}: {k} fields, not {len(names)}" for n, k in wrong[:10])
        advice = "put fields that hold a comma between double quotes"
        if all(k < len(names) for _, k in wrong):
            advice = (
                "a field is missing; spreadsheets leave out empty ones at the end: fill the last"
            )
            advice += " column in, or move it further to the front"
        return f"{len(wrong)} lines do not fit the header{listed}\n  {advice}"
    return ""

"""The cohort table: paths, types, and errors that name line, column and value."""

import gzip
import re
import unicodedata
import warnings
from pathlib import Path

import pandas as pd
import pytest

from wspnb.data.cohort import COLUMNS, file_stamp, read_cohort

HEADER = "volume,mask,patient,weak_label,label,cohort"


def write(folder, *lines, header=HEADER, encoding="utf-8"):
    """A cohort.csv in the folder; volumes a, b, c and one awkward name exist there."""
    for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz", "m.nii.gz", "Éva 1, rechts.nii.gz"):
        (folder / name).write_bytes(b"x")
    path = folder / "cohort.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding=encoding)
    return path


def test_types_paths_and_extra_columns(tmp_path):
    path = write(
        tmp_path,
        "a.nii.gz,m.nii.gz,007,2,,radio,1.5,left",
        f"{tmp_path}/b.nii.gz,,NA,3.0,,radio,2,",
        '"Éva 1, rechts.nii.gz",,Éva,,1,d1,,right',
        header=HEADER + ",age,side",
        encoding="utf-8-sig",
    )
    table = read_cohort(path)
    assert table.columns.tolist() == [*COLUMNS, "age", "side"]
    assert table.volume.tolist() == [
        str(tmp_path / name) for name in ("a.nii.gz", "b.nii.gz", "Éva 1, rechts.nii.gz")
    ]
    assert table["mask"].tolist() == [str(tmp_path / "m.nii.gz"), "", ""]
    assert table.patient.tolist() == ["007", "NA", "Éva"]
    assert table.weak_label.dtype == table.label.dtype == pd.Int64Dtype()
    assert table.weak_label.tolist() == [2, 3, pd.NA]
    assert table.label.tolist() == [pd.NA, pd.NA, 1]
    assert table.age[:2].tolist() == [1.5, 2.0] and table.age.isna()[2]
    assert table.side.tolist() == ["left", "", "right"]


@pytest.mark.parametrize("sign", [";", "\t"])
def test_semicolons_and_tabs_of_a_spreadsheet_separate_as_commas_do(tmp_path, sign):
    lines = ["a.nii.gz,m.nii.gz,007,2,,radio,", "b.nii.gz,,8,,1,d1,"]
    commas = read_cohort(write(tmp_path, *lines, header=HEADER + ",age"))
    lines = [line.replace(",", sign) for line in (HEADER + ",age", *lines)]
    lines = [lines[0], lines[1] + "63,5\r", lines[2] + "70,1\r"]
    table = read_cohort(write(tmp_path, *lines[1:], header=lines[0], encoding="utf-8-sig"))
    pd.testing.assert_frame_equal(table[[*COLUMNS]], commas[[*COLUMNS]])
    assert table.age.tolist() == ["63,5", "70,1"]


@pytest.mark.parametrize("start", ["\ufeff\ufeff", "\ufeff\u200b", "\u200b"])
def test_marks_that_nobody_sees_before_the_first_column_are_dropped(tmp_path, start):
    """Two programs have saved the table as UTF-8 with a mark, one after the other."""
    path = write(tmp_path, "a.nii.gz,,A,2,,radio", header=start + HEADER)
    assert read_cohort(path).patient.tolist() == ["A"]


def test_column_order_and_blank_lines_do_not_matter(tmp_path):
    path = write(
        tmp_path,
        "",
        "d1,0,,p,,a.nii.gz",
        ",,,,,",
        " , ,,,,",
        "   ",
        header="cohort,label,weak_label,patient,mask,volume",
    )
    table = read_cohort(path)
    assert table.columns.tolist() == list(COLUMNS)
    assert table.loc[0, ["patient", "cohort", "label"]].tolist() == ["p", "d1", 0]


def test_paths_start_at_the_table_not_at_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "data set").mkdir()
    write(tmp_path / "data set", "./a.nii.gz,,p,1,,radio")
    monkeypatch.chdir(tmp_path)
    assert read_cohort("data set/cohort.csv").volume[0] == str(tmp_path / "data set" / "a.nii.gz")


@pytest.mark.parametrize(
    "lines, words",
    [
        (["gone.nii.gz,,p,1,,radio"], ["line 2: volume", "gone.nii.gz", "not a file"]),
        (["a.nii.gz,gone.nii.gz,p,1,,radio"], ["line 2: mask", "not a file", "leave it empty"]),
        (["a.nii.gz,,p,1.5,,radio"], ["line 2: weak_label '1.5'", "not an integer"]),
        (["a.nii.gz,,p,severe,,radio"], ["line 2: weak_label 'severe'"]),
        (["a.nii.gz,,p,-1,,radio"], ["line 2: weak_label '-1'"]),
        (["a.nii.gz,,p,inf,,radio"], ["line 2: weak_label 'inf'"]),
        (["a.nii.gz,,p,1e30,,radio"], ["line 2: weak_label '1e30'", "not an integer"]),
        (["ct\\a.nii.gz,,p,1,,radio"], ["line 2: volume", "correct the path, with / for \\"]),
        (["a.nii.gz,,p,,2,d1"], ["1 problem in", "line 2: label '2' is not 0 or 1", "(patient p)"]),
        (["a.nii.gz,,,1,,radio"], ["line 2: patient is empty"]),
        (["a.nii.gz,,p,1,,"], ["line 2: cohort is empty"]),
        ([",,p,1,,radio"], ["line 2: volume is empty"]),
        (
            ["a.nii.gz,,p,1,,radio", "", "b.nii.gz,,p,2,,radio"],
            ["line 4: patient 'p' has weak_label '2' here and '1' in line 2"],
        ),
        (
            ["a.nii.gz,,p,,0,d1", "b.nii.gz,,p,,1,d1"],
            ["line 3: patient 'p' has label '1' here and '0' in line 2"],
        ),
        (
            ["a.nii.gz,,p,1,,radio", "b.nii.gz,,p,,1,d1"],
            ["line 3: patient 'p' has cohort 'd1' here and 'radio' in line 2"],
        ),
        (
            ["a.nii.gz,,p,1,,radio", "./a.nii.gz,,q,1,,radio"],
            ["line 3: volume", "already in line 2"],
        ),
        ([], ["no rows"]),
        (["a.nii.gz,,p,1,radio"], ["line 2: 5 fields, not 6", "leave out empty ones at the end"]),
    ],
)
def test_each_fault_is_named_with_its_line(tmp_path, lines, words):
    path = write(tmp_path, *lines)
    with pytest.raises(ValueError) as error:
        read_cohort(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_all_faults_come_in_one_error_ten_shown(tmp_path):
    lines = ["a.nii.gz,,p,x,3,radio"] + [f"gone{n}.nii.gz,,q{n},1,,radio" for n in range(20)]
    with pytest.raises(ValueError) as error:
        read_cohort(write(tmp_path, *lines))
    text = str(error.value)
    assert "22 problems" in text and "and 12 more" in text
    assert text.count("line ") == 10 and "weak_label 'x'" in text and "label '3'" in text


def test_missing_columns_wrong_separator_encoding_and_file(tmp_path):
    with pytest.raises(ValueError, match=r"columns \['mask', 'weak_label'\] are missing"):
        read_cohort(write(tmp_path, header="volume,patient,label,cohort"))
    with pytest.raises(ValueError, match="by commas"):
        read_cohort(write(tmp_path, header=HEADER.replace(",", "|")))
    with pytest.raises(ValueError, match="more than once"):
        read_cohort(write(tmp_path, header=HEADER + ",label"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_cohort(write(tmp_path, "a.nii.gz,,Éva,1,,radio", encoding="latin-1"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        read_cohort(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("label", ["2_3", "0_1", "1e0", "0x1", "١", "1,0", "+-1", "1.", "01"])
def test_numbers_are_written_in_digits_and_nothing_else(tmp_path, label):
    """2_3 is a stage between two, not 23."""
    quoted = f'a.nii.gz,,p,"{label}",,radio'
    if label in ("1.", "01"):
        assert read_cohort(write(tmp_path, quoted)).weak_label[0] == 1
        return
    with pytest.raises(
        ValueError,
        match=r"weak_label .* from 0: write digits alone \(2 for 2,0; a number for each word\)",
    ):
        read_cohort(write(tmp_path, quoted))
    with pytest.raises(ValueError, match=r"label .* is not 0 or 1"):
        read_cohort(write(tmp_path, f'a.nii.gz,,p,,"{label}",d1'))


WORDS = [
    "",
    "nan",
    "NaN",
    "NA",
    "N/A",
    "#N/A",
    "null",
    "None",
    "?",
    "-",
    "unbekannt",
    "k.A.",
    "#NV",
]


@pytest.mark.parametrize("word", WORDS)
def test_words_for_unknown(tmp_path, word):
    table = read_cohort(
        write(tmp_path, f"a.nii.gz,{word},p,{word},{word},r,{word},{word}", "b.nii.gz,,q,1,,r,,70",
              header=HEADER + ",coding,age")
    )  # fmt: skip
    assert table["mask"].tolist() == ["", ""] and table.coding.tolist() == ["", ""]
    assert table.weak_label.tolist() == [pd.NA, 1] and table.label.isna().all()
    assert table.age.isna()[0] and table.age[1] == 70
    if word:
        with pytest.raises(ValueError, match=r"line 2: cohort .* stands for unknown"):
            read_cohort(write(tmp_path, f"a.nii.gz,,p,1,,{word}"))
        lines = [f"{name}.nii.gz,,{word},1,,radio" for name in "ab"]  # two unknown ones, not one
        with pytest.raises(ValueError, match=r"line 3: patient .* stands for unknown"):
            read_cohort(write(tmp_path, *lines))


LOOKS = [("P1", "p1"), ("0012", "12"), ("12", "12.0"), ("P 1", "P1"), ("P-1", "P–1"), ("Ｐ1", "P1")]
LOOKS += [("P-01", "P1"), ("Doe.J", "Doe J"), ("José", "Jose"), ("١٢", "12")]


@pytest.mark.parametrize("one, two", LOOKS)
def test_one_patient_under_two_looks_is_found(tmp_path, one, two):
    with pytest.raises(ValueError) as error:
        read_cohort(write(tmp_path, f"a.nii.gz,,{one},0,,radio", f"b.nii.gz,,{two},,1,d1"))
    assert f"line 3: patient {two!r} in cohort 'd1' looks like {one!r} of line 2" in str(
        error.value
    )
    with pytest.warns(UserWarning, match=r"\(line 2\) and .* \(line 3\) look like one"):
        table = read_cohort(write(tmp_path, f"a.nii.gz,,{one},0,,r", f"b.nii.gz,,{two},0,,r"))
    assert table.patient.tolist() == [one, two]  # perhaps two: nothing is joined


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [("Mueller^Hans", "Hans Müller", True), ("A-1", "1-A", False), ("P A", "A P", False)],
)
def test_a_name_in_two_orders_is_warned_of(tmp_path, one, other, named):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lines = f"a.nii.gz,,{one},0,,radio", f"b.nii.gz,,{other},,1,d1"
        assert read_cohort(write(tmp_path, *lines)).patient.tolist() == [one, other]
    assert ("(line 3) look like one" in str([str(w.message) for w in said])) is named


@pytest.mark.parametrize("hidden", ["\u200b", "\ufeff", "\u00ad", "\u202a"])
def test_what_nobody_sees_makes_no_other_patient(tmp_path, hidden):
    decomposed = unicodedata.normalize("NFD", "Müller") + hidden
    lines = ["a.nii.gz,,Müller,0,,radio", f"b.nii.gz,,{decomposed},,1,d1"]
    with pytest.raises(ValueError, match="'Müller' has cohort 'd1' here and 'radio' in line 2"):
        read_cohort(write(tmp_path, *lines))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = read_cohort(write(tmp_path, lines[0], lines[1].replace(",,1,d1", ",0,1,radio")))
    assert table.patient.tolist() == ["Müller"] * 2


def test_numbers_that_a_spreadsheet_has_cut_are_no_names(tmp_path):
    for name in ("1.23457E+11", "1E+05", '"1,23E+11"'):
        with pytest.raises(ValueError, match=r"line 2: patient .* has lost its digits"):
            read_cohort(write(tmp_path, f"a.nii.gz,,{name},0,,radio"))


@pytest.mark.parametrize("written, stored", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_path_is_found_in_the_other_form_of_its_accents(tmp_path, written, stored):
    name = "Köhler/größe é.nii.gz"
    file = tmp_path / unicodedata.normalize(stored, name)
    file.parent.mkdir()
    file.write_bytes(b"x")
    line = f"{unicodedata.normalize(written, name)},,p,0,,radio"
    assert read_cohort(write(tmp_path, line)).volume[0] == str(file)


@pytest.mark.parametrize(
    "lines",
    [
        ['a.nii.gz,,p0,0,,"radio', "b.nii.gz,,p1,1,,radio", "c.nii.gz,,p2,2,,radio"],
        ['a.nii.gz,,p0,0,,"radio', 'b.nii.gz,,p1,1,,radio"', "c.nii.gz,,p2,2,,radio"],
        ['a.nii.gz,,"p0,0,,radio', 'b.nii.gz,,p1",1,,radio', "c.nii.gz,,p2,2,,radio"],
        ['a.nii.gz,,p0,0,,"', 'radio"', "c.nii.gz,,p2,2,,radio"],
        ['a.nii.gz,,p0,0,,"radio', '"', "c.nii.gz,,p2,2,,radio"],
    ],
)
def test_an_open_quote_swallows_no_rows(tmp_path, lines):
    with pytest.raises(ValueError, match="quote") as error:
        read_cohort(write(tmp_path, *lines))
    assert "in line " in str(error.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *[("P-1", "P_1"), ("P1.", "P1"), ("'0012", "12"), ("\u0410\u041a1", "AK1"), ("+12", "12")],
        *[("Sørensen", "Sorensen"), ("Łukasz", "LUKASZ"), ("Đorđe", "Dorde"), ("Ægir", "Aegir")],
        *[("Jäger", "Jaeger"), ("Søby", "Soeby"), ("Åberg", "Aaberg"), ("Jörg", "JÃ¶rg")],
        *[("P0123", "PO123"), ("P101", "P10l"), ("A-1001", "A-I001"), ("S10", "S1O")],
        *[("10234", "10.234"), ("10234", "10'234"), ("1020304", '"1,020,304"')],
    ],
)
def test_one_patient_in_two_cohorts_under_two_looks(tmp_path, one, other):
    path = write(tmp_path, f"a.nii.gz,,{one},0,,radio", f"b.nii.gz,,{other},,1,d1")
    with pytest.raises(ValueError, match=r"line 3: patient .* looks like"):
        read_cohort(path)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("a.nii.gz,,#REF!,0,,r",), "patient '#REF!' is a spreadsheet's error"),
        (("a.nii.gz,,#¡VALOR!,0,,r",), "patient '#¡VALOR!' is a spreadsheet's error"),
        (("a.nii.gz,,Err:502,0,,r",), "patient 'Err:502' is a spreadsheet's error"),
        (("a.nii.gz,,#######,0,,r",), "patient '#######' is a spreadsheet's error"),
        (("a.nii.gz,,.,0,,r", "b.nii.gz,,.,0,,r"), "patient '.' stands for unknown"),
        (("a.nii.gz,,1.23E-05,0,,r",), "lost its digits"),
        (("a.nii.gz,,p,0,,r+s",), "have a meaning in the settings"),
        (("a.nii.gz,,p,0,,age>60",), "have a meaning in the settings"),
    ],
)
def test_what_a_spreadsheet_or_a_copied_line_leaves_is_refused(tmp_path, lines, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        read_cohort(write(tmp_path, *lines))


def test_looks_of_cohorts_and_codes_for_unknown_are_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"cohorts .D1. .line 2. and .d1."):
        read_cohort(write(tmp_path, "a.nii.gz,,p,,0,D1", "b.nii.gz,,q,,1,d1"))
    with pytest.warns(UserWarning, match=r"m.nii.gz' is that of 2 patients, 'p' and 'q'"):
        read_cohort(write(tmp_path, "a.nii.gz,m.nii.gz,p,0,,r", "b.nii.gz,m.nii.gz,q,0,,r"))
    for code in (9, 88, 98, 1000):
        with pytest.warns(UserWarning, match=f"weak_label {code} is a class of its own"):
            read_cohort(write(tmp_path, "a.nii.gz,,p,1,,r", f"b.nii.gz,,q,{code},,r"))
    with pytest.warns(UserWarning, match="only zeros behind its 15th digit"):
        read_cohort(write(tmp_path, "a.nii.gz,,330106199001010000,1,,r"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a number that is whole, and stages with one left out
        read_cohort(write(tmp_path, "a.nii.gz,,330106199001011234,4,,r", "b.nii.gz,,q,6,,r"))


@pytest.mark.parametrize(
    "date",
    [
        "05. Jan", "5-Jan", "Jan-05", "2023-01-05 00:00:00", "05-janv", "01.05.2024", "5/1/2024",
        "05/01/24", "2024/01/05", "1/5/2024 0:00", "05.01.24", "05-Jan-24", "M\u00e4r 01", "0:05",
    ],
)  # fmt: skip
def test_names_that_a_spreadsheet_made_dates_of_are_warned_of(tmp_path, date):
    with pytest.warns(UserWarning, match=f"patient '{date}' looks like a date"):
        read_cohort(write(tmp_path, "a.nii.gz,,1-13,0,,r", f"b.nii.gz,,{date},1,,r"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # separators of numbers count; sub-01 is BIDS
        read_cohort(write(tmp_path, "a.nii.gz,,1-13,0,,r", "b.nii.gz,,11-3,,1,d1"))
        read_cohort(write(tmp_path, "a.nii.gz,,sub-01,0,,r", "b.nii.gz,,Pat 02,,1,d1"))


def test_a_weak_label_in_one_line_of_a_patient_is_asked_for_in_all(tmp_path):
    lines = ["a.nii.gz,,p,3,,r", "b.nii.gz,,p,,,r", "c.nii.gz,,q,,,r"]
    with pytest.warns(UserWarning, match=r"patient 'p' has a weak_label in line 2 and none in li"):
        read_cohort(write(tmp_path, *lines))
    lines[1] = "b.nii.gz,,p,3,,r"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_cohort(write(tmp_path, *lines)).weak_label.tolist() == [3, 3, pd.NA]


def test_dots_behind_a_link_lead_where_the_system_says(tmp_path):
    for folder in ("disk/tables", "disk/ct", "project/ct"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "project" / "data").symlink_to(tmp_path / "disk" / "tables")
    for name in ("disk", "project"):  # read as text, ../ct would be that of the project
        (tmp_path / name / "ct" / "v.nii.gz").write_text(name)
    header, line = HEADER + "\n", "../ct/v.nii.gz,,p,0,,r\n"
    (tmp_path / "disk" / "tables" / "cohort.csv").write_text(header + line)
    table = read_cohort(tmp_path / "project" / "data" / "cohort.csv")
    assert Path(table.volume[0]).read_text() == "disk"


def test_names_that_are_like_but_not_alike_are_two(tmp_path):
    for one, other in (
        ("PR1", "PRO1"),
        ("1.2345", "12345"),
        ("Paul", "Pal"),
        ("12.345.6", "123456"),
    ):
        lines = f"a.nii.gz,,{one},0,,radio", f"b.nii.gz,,{other},,1,d1"
        assert read_cohort(write(tmp_path, *lines)).patient.tolist() == [one, other]
    with pytest.raises(ValueError, match="patient 'M\ufffdller' has lost a letter"):
        read_cohort(write(tmp_path, "a.nii.gz,,M\ufffdller,0,,radio"))


def test_what_differs_in_case_or_comes_before_the_header_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"A\.nii\.gz' is not a file: .*, there is a\.nii\.gz"):
        read_cohort(write(tmp_path, "A.nii.gz,,p,0,,r"))
    with pytest.raises(ValueError, match=r"columns \['label', 'Label'\] appear more than once"):
        read_cohort(write(tmp_path, "a.nii.gz,,p,0,0,r,1", header=HEADER + ",Label"))
    with pytest.raises(ValueError, match=r"its first line is 'sep='.*: delete that line"):
        read_cohort(write(tmp_path, HEADER.replace(",", ";"), "a.nii.gz;;p;0;;r", header="sep=;"))


def test_columns_without_name_and_content_go_and_codes_keep_their_zeros(tmp_path):
    path = write(
        tmp_path,
        "a.nii.gz,,p,0,,r,007,45,,",
        "b.nii.gz,,q,.,,r,010,NA,,",
        header=HEADER + ",site,age,,",
    )
    table = read_cohort(path)
    assert table.columns.tolist() == [*COLUMNS, "site", "age"]
    assert table.site.tolist() == ["007", "010"]
    assert table.age.tolist()[0] == 45
    assert table.weak_label.tolist() == [0, pd.NA]


@pytest.mark.parametrize("asked", ["v.hdr", "v.img"])
def test_the_stamp_of_a_pair_is_of_both_files(tmp_path, asked):
    (tmp_path / "v.hdr").write_bytes(b"header")
    (tmp_path / "v.img").write_bytes(b"voxels")
    stamps = [file_stamp(str(tmp_path / asked))]
    for name in ("v.hdr", "v.img"):
        (tmp_path / name).write_bytes(b"change")
        stamps.append(file_stamp(str(tmp_path / asked)))
    assert stamps[0] != stamps[1] != stamps[2]
    assert stamps[0] != stamps[2]
    for name in ("V.HDR.GZ", "V.IMG.GZ"):
        (tmp_path / name).write_bytes(b"header")
    stamp = file_stamp(str(tmp_path / "V.HDR.GZ"))
    (tmp_path / "V.IMG.GZ").write_bytes(b"voxels")
    assert file_stamp(str(tmp_path / "V.HDR.GZ")) != stamp


def test_the_stamp_of_gzip_in_blocks_is_of_all_of_them(tmp_path):
    """As bgzip packs a mask: blocks of 64 KB, the last larger than the whole file is packed."""
    stamps = []
    for value in (0, 1):
        blocks = [bytes(1 << 16) + bytes([value]), *[bytes(1 << 16)] * 3]
        file = tmp_path / "m.nii.gz"
        file.write_bytes(b"".join(gzip.compress(block, mtime=0) for block in blocks))
        stamps.append(file_stamp(str(file)))
    assert stamps[0] != stamps[1]


def test_columns_in_capitals_are_named(tmp_path):
    (tmp_path / "cohort.csv").write_text("Volume,Mask,Patient,Cohort,Weak_label,Label\n")
    with pytest.raises(ValueError, match=r"'volume'.*are missing.*: write them in small letters"):
        read_cohort(tmp_path / "cohort.csv")


@pytest.mark.parametrize("name", ["anonymous", "Anonymized", "REMOVED", "XXXX", "0", "(blank)"])
def test_a_word_for_nobody_with_several_volumes_is_warned_of(tmp_path, name):
    lines = [f"{x}.nii.gz,,{name},1,,r" for x in "ab"]
    with pytest.warns(UserWarning, match="has 2 volumes: is that one patient, or a word for nob"):
        read_cohort(write(tmp_path, *lines))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_cohort(write(tmp_path, lines[0]))


def test_a_code_close_behind_the_scores_is_warned_of(tmp_path):
    for below, code in ((6, 9), (4, 7)):
        with pytest.warns(UserWarning, match=f"weak_label {code} is a class of its own"):
            read_cohort(write(tmp_path, f"a.nii.gz,,p,{below},,r", f"b.nii.gz,,q,{code},,r"))


def test_pairs_packed_by_bzip2_change_with_either_file(tmp_path):
    for changed, named in (("x.hdr.bz2", "x.img.bz2"), ("y+orig.BRIK.bz2", "y+orig.HEAD")):
        for name in (changed, named):
            (tmp_path / name).write_bytes(b"one")
        before = file_stamp(str(tmp_path / named))
        (tmp_path / changed).write_bytes(b"two")
        assert file_stamp(str(tmp_path / named)) != before

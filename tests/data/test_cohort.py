"""The cohort table: paths, types, and errors that name line, column and value."""

import pandas as pd
import pytest

from wspnb.data.cohort import COLUMNS, read_cohort

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
        (["a.nii.gz,,p,,2,d1"], ["line 2: label '2' is not 0 or 1"]),
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
        (["a.nii.gz,,p,1,radio"], ["line 2: 5 fields, not 6"]),
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
        read_cohort(write(tmp_path, header=HEADER.replace(",", ";")))
    with pytest.raises(ValueError, match="more than once"):
        read_cohort(write(tmp_path, header=HEADER + ",label"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_cohort(write(tmp_path, "a.nii.gz,,Éva,1,,radio", encoding="latin-1"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        read_cohort(tmp_path / "nowhere.csv")

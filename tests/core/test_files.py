"""A file is there whole or not at all, whatever happens while it is written."""

import ast
import contextlib
import errno
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wspnb.files import (
    check_writable,
    files_below,
    own_files,
    package_version,
    plain_json,
    read_csv,
    read_json,
    separator,
    whole,
    write_csv,
    write_text,
)


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old\r\nü")
    assert path.read_bytes() == "old\r\nü".encode()
    with pytest.raises(OSError, match="disk full"), whole(path) as temporary:
        temporary.write_text("ha")
        raise OSError("disk full")
    assert path.read_bytes() == "old\r\nü".encode() and list(path.parent.iterdir()) == [path]
    with whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_bytes() == "old\r\nü".encode() and temporary.suffix == ".txt"
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]
    write_text(path.with_name(f"{'wsp_sigma0.1' * 20}.txt"), "a name that just fits")


def test_a_table_goes_without_its_index(tmp_path):
    write_csv(tmp_path / "t.csv", pd.DataFrame({"patient": ["007"], "score": [0.5]}, index=[9]))
    assert (tmp_path / "t.csv").read_text() == "patient,score\n007,0.5\n"


def test_what_a_killed_writer_left_is_removed_and_a_living_one_is_not_disturbed(tmp_path):
    path, code = (
        tmp_path / "a.csv",
        (
            "import sys, time; from wspnb.files import whole\n"
            "with whole(sys.argv[1]) as temporary:\n"
            "    temporary.write_text('half'); print('ready', flush=True); time.sleep(60)"
        ),
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"ready\n"
        mine = tmp_path / f".tmp-{other.pid}-a.csv"
        write_text(path, "whole")
        assert mine.exists() and path.read_text() == "whole"
        other.kill()
    end = time.monotonic() + 10
    while mine.exists() and time.monotonic() < end:
        write_text(path, "again")
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
    assert path.read_text() == "again" and os.path.getsize(path) == 5


def test_names_are_read_as_they_were_written(tmp_path):
    table = pd.DataFrame({"patient": ["007", "7", "NA", "nan", ""], "auc": [0.5, None, 1, 0, 0.25]})
    write_csv(tmp_path / "t.csv", table)
    found = read_csv(tmp_path / "t.csv")
    assert found.patient.tolist() == table.patient.tolist()
    assert found.auc.isna().tolist() == [False, True, False, False, False]
    wide = read_csv(tmp_path / "t.csv", usecols=["patient"], dtype={"patient": "category"})
    assert list(wide.columns) == ["patient"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of files")
def test_colleagues_can_read(tmp_path):
    for mask, mode in ((0o022, 0o644), (0o027, 0o640)):
        before = os.umask(mask)
        try:
            with whole(tmp_path / "a") as temporary:
                temporary.touch(0o600)
        finally:
            assert os.umask(before) == mask
        assert (tmp_path / "a").stat().st_mode & 0o777 == mode


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="Linux")
def test_a_folder_that_gives_its_group_the_right_to_write_does(tmp_path):
    rows = ((1, 7, -1), (4, 7, -1), (8, 7, 4242), (16, 7, -1), (32, 5, -1))
    rights = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *row) for row in rows)
    try:
        os.setxattr(tmp_path, "system.posix_acl_default", rights)
    except OSError as error:
        pytest.skip(str(error))
    write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").touch()
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"ours": 0o664, "plain": 0o664}


def test_version_of_a_package_that_is_not_installed():
    assert package_version("no-such-package-of-ours") == "unknown"
    assert package_version("pandas") == pd.__version__


def test_every_text_file_names_its_encoding():
    """Else Windows, or LANG=C, reads and writes something other than UTF-8."""
    root = Path(__file__).parents[2]
    files = [p for name in ("src", "benchmarks", "docs") for p in (root / name).rglob("*.py")]
    sources = {p: p.read_text(encoding="utf-8") for p in files}
    for notebook in (root / "notebooks").glob("[0-9]*.ipynb"):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        sources[notebook] = "\n".join(code)
    silent = []
    for path, source in sources.items():
        for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            said = any(word.arg == "encoding" for word in call.keywords)
            method = isinstance(call.func, ast.Attribute)
            if method and (name == "read_text" or (name == "write_text" and len(call.args) < 2)):
                if not said:
                    silent.append(f"{path.name}:{call.lineno}")
    assert not silent


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError("4096 requested and 17 written")],
    ids=["write", "numpy"],
)
def test_a_full_disk_names_the_file(tmp_path, error):
    path = tmp_path / "features.npy"
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'") as caught:
        with whole(path):
            raise error
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
    other = OSError(errno.ENOENT, "No such file", "other.nii")
    with pytest.raises(FileNotFoundError, match=r"other\.nii"), whole(path):
        raise other  # names its own


def test_a_folder_that_takes_nothing_is_named_before_the_work(tmp_path):
    check_writable(tmp_path / "new" / "probe")
    assert not list((tmp_path / "new" / "probe").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        check_writable(tmp_path / "file" / "probe")


def test_codes_keep_their_zeros_and_text_is_left_as_written(tmp_path):
    (tmp_path / "t.csv").write_text("\ufeffsite,age,x\n007,45,NA\n,,0.5\n", encoding="utf-8")
    table = read_csv(tmp_path / "t.csv")
    assert table.columns.tolist() == ["site", "age", "x"]
    assert table.site.tolist()[0] == "007" and table.site.isna().tolist() == [False, True]
    assert table.age.dtype == float
    assert read_csv(tmp_path / "t.csv", text=True).age.tolist() == ["45", ""]
    odd = pd.DataFrame({"sign": ["+007", "1"], "blank": [" 007", "1"], "sheet": ["TRUE", "FALSE"]})
    write_csv(tmp_path / "odd.csv", odd.assign(ours=[True, False]))
    pd.testing.assert_frame_equal(read_csv(tmp_path / "odd.csv"), odd.assign(ours=[True, False]))


@pytest.mark.parametrize(
    "content",
    [
        "patient\nMüller\n".encode("latin-1"),
        "patient\nMüller\n".encode("utf-16"),
        b"",
        b"a,b\n1,2\n1,2,3\n",
        b"a,b\n1,2,3\n1,2,3\n",  # one field too many in every line: not an index
    ],
)
def test_what_is_no_table_is_named(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.csv: not a CSV table .*save it as CSV UTF-8"):
        read_csv(tmp_path / "t.csv")


def test_what_others_leave_in_a_folder_is_no_file_of_ours(tmp_path):
    folder = tmp_path / "a [1] ü"
    (folder / "b.csv").mkdir(parents=True)
    (folder / ".ipynb_checkpoints").mkdir()
    for name in (
        "2.csv",
        "1.csv",
        "._1.csv",
        ".ipynb_checkpoints/1-checkpoint.csv",
        "b.csv/.x.csv",
    ):
        (folder / name).touch()
    (folder / "dead.csv").symlink_to(tmp_path / "gone")
    assert own_files(folder, "*.csv") == own_files(folder, "**/*.csv")
    assert [path.name for path in own_files(folder, "*.csv")] == ["1.csv", "2.csv"]
    assert own_files(tmp_path / "none", "*") == []
    for left in (".tmp-4194399-c[1].csv", ".tmp-4194399-c1.csv"):  # of processes that are gone
        (tmp_path / left).touch()
    (tmp_path / ".tmp-4194398-c[1].csv").mkdir()
    write_text(tmp_path / "c[1].csv", "whole")
    assert {p.name for p in tmp_path.glob(".tmp*")} == {".tmp-4194398-c[1].csv", left}


def test_tables_come_back_as_they_were_written(tmp_path):
    score = np.concatenate(
        [np.random.default_rng(0).random(2000), [1 / 3, 5e-324, 1.7e308, 2.5e15]]
    )
    write_csv(tmp_path / "t.csv", pd.DataFrame({"score": score}))
    if package_version("pandas") >= "3.1":  # those before lose a last digit here and there
        assert read_csv(tmp_path / "t.csv").score.tolist() == score.tolist()
    table = {"patient": ["a\rb", "c\nd", 'e"f'], "reason": ["\r", "", "x"], "n": [1.0, None, 2]}
    table["accession"] = ["12345678901234567", "12345678901234568", "5"]
    write_csv(tmp_path / "t.csv", pd.DataFrame(table))
    found = read_csv(tmp_path / "t.csv")
    for name in ("patient", "accession"):
        assert found[name].tolist() == table[name]
    assert found.n.isna().tolist() == [False, True, False] and found.reason[0] == "\r"


def test_a_quote_left_open_in_anothers_table_is_named(tmp_path):
    rows = ["patient,label,note", 'a,0,"see', "b,1,x", 'c,0,y"', "d,1,z"]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(ValueError, match="row 1 below the header holds a line break"):
        read_csv(tmp_path / "t.csv", foreign=True)


def test_codes_that_look_like_numbers_stay_text(tmp_path):
    (tmp_path / "t.csv").write_text("site,n\n1e5,1e-05\n100000,2e+16\n")
    found = read_csv(tmp_path / "t.csv")
    assert found.site.tolist() == ["1e5", "100000"] and found.n.tolist() == [1e-5, 2e16]


@pytest.mark.parametrize(
    ("owner", "name", "number", "taken"),
    [
        (Path, "chmod", errno.EPERM, True),
        (os, "fsync", errno.EINVAL, True),
        (os, "fsync", errno.EIO, False),
        (os, "fsync", errno.ENOSPC, False),
    ],
)
def test_drives_without_rights_or_flushing_are_written_to(
    tmp_path, monkeypatch, owner, name, number, taken
):
    def unable(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(owner, name, unable)
    with contextlib.nullcontext() if taken else pytest.raises(OSError):
        write_text(tmp_path / "a.txt", "x")
    assert os.listdir(tmp_path) == ["a.txt"] * taken


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_linked_folders_are_entered_once(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a").touch()
    (tmp_path / "copy" / "x").mkdir(parents=True)
    (tmp_path / "copy" / "b").touch()
    (tmp_path / "copy" / "masks").symlink_to(tmp_path / "disk")
    (tmp_path / "copy" / "x" / "up").symlink_to(tmp_path / "copy")
    (tmp_path / "copy" / "gone").symlink_to("nowhere")
    found = [p.relative_to(tmp_path / "copy").as_posix() for p in files_below(tmp_path / "copy")]
    assert found == ["b", "masks/a"]


def test_json_for_every_language():
    odd = {"a": float("nan"), "b": [float("inf"), -float("inf"), 1.5], "c": "größe"}
    assert json.loads(plain_json(odd)) == {"a": None, "b": ["inf", "-inf", 1.5], "c": "größe"}


def test_json_with_the_mark_of_windows_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 0}\r\n', encoding="utf-8-sig")
    assert read_json(tmp_path / "config.json") == {"seed": 0}


def test_commas_in_a_heading_separate_nothing(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('volume;patient;"stage (0, 1, 2, 3, 4)"\n')
    assert separator(path) == ";"
    path.write_text('volume,patient,"a;b;c;d"\n')
    assert separator(path) == ","

"""A file is there whole or not at all, whatever happens while it is written."""

import os
import subprocess
import sys
import time

import pandas as pd
import pytest

from wspnb.files import whole, write_csv, write_text


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

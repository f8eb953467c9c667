"""A record from a stand-in server: resumed, verified, pinned; archives that mean harm."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from urllib3.util import retry
from zenodo_server import Zenodo

from wspnb.sources import archives, downloads
from wspnb.sources.archives import gather, unpack
from wspnb.sources.downloads import BLOCK, TRIES, fetch_file, fetch_imagenet, fetch_record

RECORD = "8199165"
BIG = np.random.default_rng(0).bytes(1_000_003)
Usage = namedtuple("usage", "total used free")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that were asked to wait for; nobody waits."""
    return nobody_waits(monkeypatch)


def nobody_waits(monkeypatch):
    waits = []
    for module in (downloads, retry):
        clock = SimpleNamespace(sleep=waits.append, time=time.time)
        monkeypatch.setattr(module, "time", clock)
    return waits


@pytest.fixture
def server():
    server = Zenodo({"big.bin": BIG, "note é.txt": b"small", "empty": b""})
    yield server
    server.close()


def fetch(server, folder, **options):
    return fetch_record(RECORD, folder, server.api, **{"progress": False} | options)


def test_whole_record_then_without_network(server, tmp_path):
    paths = fetch(server, tmp_path)
    assert [p.read_bytes() for p in paths] == [BIG, b"small", b""]
    assert server.sent("big.bin") == len(BIG)
    assert server.agents == {f"wspnb/{downloads.package_version('wspnb')}"}
    pinned = json.loads((tmp_path / "registry.json").read_text())
    assert pinned["record"] == RECORD and [f["size"] for f in pinned["files"]] == [1_000_003, 5, 0]
    assert all(set(f) == {"key", "size", "checksum"} for f in pinned["files"])
    assert sorted(p.name for p in (tmp_path / "download").iterdir()) == [
        "big.bin",
        "empty",
        "note é.txt",
    ]
    server.asked = []
    assert fetch(server, tmp_path) == paths and server.asked == []


def test_cut_connection_goes_on_at_the_byte(server, tmp_path):
    server.cuts = [300_000, 400_000]
    fetch(server, tmp_path)
    asked = [row for row in server.asked if "big.bin" in row[0]]
    assert [row[2] for row in asked] == [200, 206, 206]
    starts = [int(row[1].removeprefix("bytes=").rstrip("-")) for row in asked[1:]]
    assert 300_000 - BLOCK < starts[0] <= 300_000 and starts[0] < starts[1]
    assert len(BIG) <= server.sent("big.bin") <= len(BIG) + 2 * BLOCK  # nothing twice but a block


def test_a_file_list_that_breaks_off_is_asked_for_again(server, tmp_path, waits):
    server.list_cuts = [100, 40]
    assert [path.name for path in fetch(server, tmp_path)] == list(server.files)
    assert len(waits) == 2
    server.list_cuts = [100] * (TRIES + 1)
    with pytest.raises(ConnectionError, match="Try again later"):
        fetch(server, tmp_path / "other")


def test_killed_process_goes_on_at_the_byte(server, tmp_path):
    server.pause = 0.02  # 16 KiB each: the whole takes over a second
    code = (
        "import sys; from wspnb.sources.downloads import fetch_record;"
        "fetch_record('8199165', sys.argv[1], sys.argv[2], progress=False)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), server.api])
    part, until = tmp_path / "download" / "big.bin.part", time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 3 * BLOCK):
        assert child.poll() is None and time.monotonic() < until, "no download to kill"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    have = part.stat().st_size
    assert 3 * BLOCK < have < len(BIG) and not (tmp_path / "registry.json").exists()
    server.pause, server.asked = 0.0, []
    assert fetch(server, tmp_path)[0].read_bytes() == BIG
    assert server.sent("big.bin") == len(BIG) - have
    assert [row[1] for row in server.asked if "big.bin" in row[0]] == [f"bytes={have}-"]


def test_server_without_ranges_starts_again(server, tmp_path):
    server.ranges, server.cuts = False, [500_000]
    assert fetch(server, tmp_path)[0].read_bytes() == BIG
    asked = [row for row in server.asked if "big.bin" in row[0]]
    assert [row[2] for row in asked] == [200, 200] and asked[1][1].startswith("bytes=")
    assert server.sent("big.bin") == 500_000 + len(BIG)


def test_a_part_that_is_too_long_or_of_another_file_is_thrown_away(server, tmp_path):
    part = tmp_path / "download" / "big.bin.part"
    part.parent.mkdir()
    part.write_bytes(BIG + b"more")
    assert fetch(server, tmp_path)[0].read_bytes() == BIG
    assert server.sent("big.bin") == len(BIG)
    for path in tmp_path.glob("*/*"):
        path.unlink()
    part.write_bytes(bytes(400_000))  # resumed, damaged as a whole, fetched once afresh
    server.asked = []
    assert fetch(server, tmp_path)[0].read_bytes() == BIG
    assert server.sent("big.bin") == 600_003 + len(BIG)


def test_a_part_that_is_whole_is_not_fetched_again(server, tmp_path):
    part = tmp_path / "download" / "big.bin.part"
    part.parent.mkdir()
    part.write_bytes(BIG)  # killed between the last byte and the check
    assert fetch(server, tmp_path)[0].read_bytes() == BIG
    assert server.sent("big.bin") == 0 and 416 in [row[2] for row in server.asked]


def test_wrong_checksum(server, tmp_path):
    server.damaged = [True]  # once: fetched again
    assert fetch(server, tmp_path)[0].read_bytes() == BIG
    assert server.sent("big.bin") == 2 * len(BIG)
    server.stated["big.bin"] = "md5:" + 32 * "0"
    with pytest.raises(ConnectionError, match=r"big\.bin.*does not match the known hash"):
        fetch(server, tmp_path / "other")
    assert not list((tmp_path / "other").glob("download/big*"))
    assert not (tmp_path / "other" / "registry.json").exists()


def test_busy_server_is_given_the_time_it_asks_for(server, tmp_path, waits):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    server.refusals = [(429, {"Retry-After": "7"}), (503, {"Retry-After": date}), (429, {})]
    fetch(server, tmp_path)
    assert waits[0] == 7 and 25 < waits[1] <= 30 and waits[2] == 4
    assert [row[2] for row in server.asked[:4]] == [429, 503, 429, 200]


def test_busy_server_is_not_asked_for_ever(server, tmp_path, waits):
    server.refusals = [(429, {})] * 100
    with pytest.raises(ConnectionError, match=r"429.*by hand"):
        fetch(server, tmp_path)
    assert len(server.asked) == TRIES and waits == [2, 4, 8, 16]  # first at once
    server.refusals, server.asked = [(429, {"Retry-After": "86400"})], []
    with pytest.raises(ConnectionError, match="429, asks to wait over 600 s"):
        fetch(server, tmp_path)
    assert len(server.asked) == 1 and len(waits) == 4
    with pytest.raises(ConnectionError, match="404"):
        fetch_record("1", tmp_path / "one", server.api)
    assert len(waits) == 4  # what does not exist is asked for once


def test_no_server(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests.Session, "get", refuse)
    with pytest.raises(ConnectionError, match=r"no route.*local_file"):
        fetch_record(RECORD, tmp_path)
    with pytest.raises(ConnectionError, match=r"resnet18.*no route.*path as imagenet_file"):
        fetch_imagenet()
    assert fetch_imagenet(tmp_path / "r.pth") == tmp_path / "r.pth"


def test_one_file_is_fetched_once(server, tmp_path):
    url = f"{server.api}/records/{RECORD}/files/big.bin/content"
    for _ in range(2):
        path = fetch_file(url, tmp_path / "new", f"sha256:{sha256(BIG).hexdigest()}", "a.bin")
        assert path == tmp_path / "new" / "a.bin" and path.read_bytes() == BIG
    assert server.sent("big.bin") == len(BIG)


def test_changed_record_is_refused_unless_accepted(server, tmp_path):
    fetch(server, tmp_path)
    before = (tmp_path / "registry.json").read_text()
    server.files["big.bin"] = BIG[::-1]
    server.files["new.bin"] = b"new"
    del server.files["empty"]
    assert fetch(server, tmp_path)[0].read_bytes() == BIG  # all there: nobody asks
    (tmp_path / "download" / "note é.txt").write_bytes(b"SMALL")  # damaged here
    with pytest.raises(ValueError, match=r"big\.bin, empty, new\.bin changed"):
        fetch(server, tmp_path)
    assert (tmp_path / "registry.json").read_text() == before
    paths = fetch(server, tmp_path, accept_changed=True)
    assert [p.read_bytes() for p in paths] == [BIG[::-1], b"small", b"new"]
    assert (tmp_path / "registry.json").read_text() != before
    with pytest.raises(ValueError, match="of record 8199165, not 7"):
        fetch_record("7", tmp_path, server.api)


def test_disk_too_small(server, tmp_path, monkeypatch):
    server.files["a.zip"] = bytes(1000)
    need = len(BIG) + 5 + 3 * 1000
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: Usage(0, 0, need - 1))
    with pytest.raises(OSError, match="GB are needed"):
        fetch(server, tmp_path)
    assert server.sent("big.bin") == 0
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: Usage(0, 0, need))
    fetch(server, tmp_path)


@pytest.mark.parametrize("key", ["../x", "a/b", "..", ""])
def test_file_names_of_a_record_stay_in_the_folder(server, tmp_path, key):
    server.files = {key: b"x"}
    with pytest.raises(ValueError, match="file name"):
        fetch(server, tmp_path)


def test_other_forms_are_named(server, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "body", lambda _: {"hits": 1})
    with pytest.raises(ValueError, match="not a Zenodo record"):
        fetch(server, tmp_path)
    monkeypatch.setattr(server, "body", lambda _: {"files": []})
    with pytest.raises(ValueError, match="lists no file"):
        fetch(server, tmp_path)
    (tmp_path / "registry.json").write_text("{}")
    with pytest.raises(ValueError, match=r"registry\.json: damaged"):
        fetch(server, tmp_path)


# --- archives ---------------------------------------------------------------------------------


def tar(path, *entries, mode="w:gz"):
    """Entries are (name, content) or a TarInfo."""
    with tarfile.open(path, mode) as file:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                file.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                file.addfile(info, BytesIO(entry[1]))
    return path


def zipped(path, *entries):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


def special(kind, name="x", target="y"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


ODD = [("a b/ü, ';\n$(x).nii.gz", b"1"), ("..hidden..", b"2"), ("deep/er/é", b"3")]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_archive_with_odd_names(tmp_path, name):
    source = tmp_path / name
    if name == "a.zip":
        zipped(source, *ODD)
    else:
        tar(source, special(tarfile.DIRTYPE, "./"), *ODD, mode="w" if name == "a.tar" else "w:gz")
    out = unpack(source, tmp_path / "out")
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert found == dict(ODD)
    source.unlink()
    assert unpack(source, tmp_path / "out") == out  # there already
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("../evil", b"x"), "outside the destination"),
        (("a/../../evil", b"x"), "outside the destination"),
        (special(tarfile.SYMTYPE, "x", "/etc"), "is a link"),
        (special(tarfile.SYMTYPE, "x", "good"), "is a link"),
        (special(tarfile.LNKTYPE, "x", "good"), "is a link"),
        (special(tarfile.FIFOTYPE), "is a special file"),
        (special(tarfile.CHRTYPE), "is a special file"),
        (("good/inside", b"x"), "damaged"),
    ],
    ids=str,
)
def test_hostile_tar(tmp_path, entry, message):
    source = tar(tmp_path / "a.tar.gz", ("good", b"1"), entry)
    with pytest.raises(ValueError, match=message):
        unpack(source, tmp_path / "in" / "out")
    assert not list((tmp_path / "in").iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz", "in"]


def test_hostile_zip(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    source = zipped(tmp_path / "a.zip", ("../evil", "x"), ("/worse", "y"), (link, "/etc/passwd"))
    out = unpack(source, tmp_path / "in" / "out")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "a.zip",
        "evil",
        "link",
        "worse",
    ]
    assert (out / "evil").read_text() == "x" and (out / "worse").read_text() == "y"
    assert not (out / "link").is_symlink() and (out / "link").read_text() == "/etc/passwd"
    source = zipped(tmp_path / "b.zip", (link, "/etc"), ("link/x", "y"))
    with pytest.raises(ValueError, match="damaged"):
        unpack(source, tmp_path / "two" / "out")
    assert not list((tmp_path / "two").iterdir())


def test_tar_with_an_absolute_name_stays_inside(tmp_path):
    source = tar(tmp_path / "a.tar", (f"{tmp_path}/evil", b"x"), mode="w")
    out = unpack(source, tmp_path / "in" / "out")
    assert not (tmp_path / "evil").exists()
    assert [p.name for p in out.rglob("*") if p.is_file()] == ["evil"]


def test_bounds_of_an_archive(tmp_path, monkeypatch):
    for source in (
        tar(tmp_path / "a.tar.gz", ("a", bytes(600)), ("b", bytes(600))),
        zipped(tmp_path / "a.zip", ("a", bytes(600)), ("b", bytes(600))),
    ):
        for name, most, said in (("BYTES", 1199, "more than"), ("MEMBERS", 1, "than 1 entries")):
            with monkeypatch.context() as patch, pytest.raises(ValueError, match=said):
                patch.setattr(archives, f"MAX_{name}", most)
                unpack(source, tmp_path / "in" / "out")
        with monkeypatch.context() as patch:
            patch.setattr(archives.shutil, "disk_usage", lambda _: Usage(0, 0, 1000))
            with pytest.raises(OSError, match="needs more"):
                unpack(source, tmp_path / "in" / "out")
        assert not list((tmp_path / "in").iterdir())
        with monkeypatch.context() as patch:
            patch.setattr(archives, "MAX_BYTES", 1200)
            patch.setattr(archives, "MAX_MEMBERS", 2)
            unpack(source, tmp_path / f"out {source.name}")
    huge = tarfile.TarInfo("huge")
    huge.size = 1 << 50  # stated, and refused before a byte is read
    with open(tmp_path / "b.tar", "wb") as file:
        file.write(huge.tobuf() + bytes(1024))
    with pytest.raises(ValueError, match="more than"):
        unpack(tmp_path / "b.tar", tmp_path / "in" / "out")


def test_damaged_archives(tmp_path):
    whole = tar(tmp_path / "a.tar.gz", ("a", BIG)).read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(whole[:500_000])
    (tmp_path / "b.tar.gz").write_bytes(b"no archive")
    (tmp_path / "c.zip").write_bytes(b"no archive")
    (tmp_path / "d.zip").write_bytes(zipped(tmp_path / "z.zip", ("a", BIG)).read_bytes())
    with open(tmp_path / "d.zip", "r+b") as file:
        file.seek(1000)
        file.write(b"other")  # its checksum tells
    for name in ("a.tar.gz", "b.tar.gz", "c.zip", "d.zip"):
        with pytest.raises(ValueError, match="damaged"):
            unpack(tmp_path / name, tmp_path / "in" / "out")
        assert not list((tmp_path / "in").iterdir())


def test_a_packing_that_is_not_read_is_no_damage(tmp_path):
    """Deflate64, method 9, which Windows takes above 2 GB."""
    raw = bytearray(zipped(tmp_path / "a.zip", ("a", b"1" * 500)).read_bytes())
    for at in (8, raw.index(b"PK\1\2") + 10):
        raw[at : at + 2] = b"\t\0"
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(
        ValueError, match=r"a\.zip: packed in a way that is not read here .*by hand"
    ):
        unpack(tmp_path / "a.zip", tmp_path / "in" / "out")
    assert not list((tmp_path / "in").iterdir())


def test_interrupted_unpacking_begins_anew(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f"out.part-{gone.pid}-abc" / "old"
    left.parent.mkdir()
    left.write_text("of a call that was killed")
    other = tmp_path / f"out.part-{os.getpid()}-abc"  # of a call that is under way
    other.mkdir()
    out = unpack(tar(tmp_path / "a.tar", ("new", b"1"), mode="w"), tmp_path / "out")
    assert os.listdir(out) == ["new"] and not left.exists() and other.exists()


def test_a_quicker_caller_is_no_trouble(tmp_path, monkeypatch):
    archive, real = tar(tmp_path / "a.tar", ("new", b"1"), mode="w"), os.replace

    def slower(part, target):
        if not Path(target).exists():
            shutil.copytree(part, target)  # another one has just ended
        real(part, target)

    monkeypatch.setattr(os, "replace", slower)
    assert os.listdir(unpack(archive, tmp_path / "out")) == ["new"]
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "out"]


def test_a_zip_of_windows_and_one_whose_entries_would_be_one_file(tmp_path):
    file = zipped(tmp_path / "a.zip", ("masks\\a.nii", b"1"), ("volumes\\a.nii", b"2"))
    out = unpack(file, tmp_path / "out")
    assert (out / "masks" / "a.nii").read_bytes() == b"1"
    assert (out / "volumes" / "a.nii").read_bytes() == b"2"
    for first in ("../a", "/a", "./a"):
        with pytest.raises(ValueError, match="would be one file"):
            unpack(zipped(tmp_path / "b.zip", (first, b"1"), ("a", b"2")), tmp_path / "b")


def test_archives_within_archives_and_a_copy_around_the_folder(tmp_path):
    (tmp_path / "copy").mkdir()
    inner = zipped(tmp_path / "inner.zip", ("a.nii", b"1")).read_bytes()
    zipped(tmp_path / "copy" / "outer.zip", ("inner.zip", inner))
    for _ in range(2):  # what is unpacked lies below the copy, and is not gathered twice
        found = gather(tmp_path / "copy" / "mine", tmp_path / "copy", list)
        assert [path.name for path in found] == ["outer.zip", "inner.zip", "a.nii"]

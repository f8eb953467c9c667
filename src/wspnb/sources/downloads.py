"""Public files on disk: downloaded with resume, verified; a Zenodo record pinned to what it was.

A record's folder holds ``download/`` (its files; ``NAME.part`` while one is on its way) and
``registry.json`` (record, and key, size and checksum of each file), written when all was first
there. From then on the record must stay what it was, and what is there is not asked for again.
"""

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pooch
import requests
from requests.adapters import HTTPAdapter
from tqdm.auto import tqdm
from urllib3.util.retry import Retry

from wspnb.files import package_version, write_text
from wspnb.sources.archives import SUFFIXES

API = "https://zenodo.org/api"
BUSY = (429, 500, 502, 503, 504)  # answers after which to ask again
TRIES = 6  # without a new byte, then an error
LONGEST_WAIT = 600.0  # s, for one Retry-After
BLOCK = 1 << 16  # bytes: as much is lost at most when a connection is cut
UNPACKED = 2.0  # bytes unpacked per byte of an archive: a guess, verified when unpacking
BY_HAND = "download it by hand and give its folder (local_file)"
IMAGENET_SHA256 = "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"


class Patience(Retry):
    """Asks a busy server again after the time it states, unless that is too long."""

    def get_retry_after(self, response):
        wait = super().get_retry_after(response)
        if wait and wait > LONGEST_WAIT:
            words = f"{response.status}, asks to wait over {LONGEST_WAIT:.0f} s"
            raise requests.ConnectionError(words)
        return wait


def fetch_file(
    url: str,
    folder: str | Path | None,
    checksum: str,
    name: str,
    instead: str = BY_HAND,
    progress: bool = False,
) -> Path:
    """A file of known content: ``name`` in ``folder`` (None is the user's cache), or downloaded; if
    damaged, once afresh. An interrupted call goes on at the byte where it stopped.

    ``checksum`` is "md5:..." or "sha256:..."; ``instead`` says in the error what else can be done.

    Raises:
        ConnectionError: if it cannot be had, or what comes is not of this checksum.
    """
    folder = Path(folder or pooch.os_cache("pooch"))
    cache = pooch.create(folder, "", registry={name: checksum}, urls={name: url}, retry_if_failed=1)

    def downloader(url: str, output: str, _: pooch.Pooch) -> None:
        part = folder / f"{name}.part"
        _resume(url, part, progress)
        os.replace(part, output)  # where pooch verifies it; what is damaged is deleted there

    try:
        return Path(cache.fetch(name, downloader=downloader))
    except (OSError, ValueError) as error:  # no network, a refusal, another content
        advice = f"what is there is kept, try again later; or {instead}"
        raise ConnectionError(f"{url}: download failed ({error}): {advice}") from error


def fetch_imagenet(file: str | Path | None = None) -> Path:
    """torchvision's ResNet-18 weights, 45 MB: a copy that is there, or downloaded to the cache."""
    if file:
        return Path(file).expanduser()
    from wspnb.models import IMAGENET_FILE, IMAGENET_URL  # with torch, which nothing else needs

    instead = f"get {IMAGENET_FILE} by other means and give its path as imagenet_file"
    return fetch_file(IMAGENET_URL, None, f"sha256:{IMAGENET_SHA256}", IMAGENET_FILE, instead)


def fetch_record(
    record: str,
    folder: str | Path,
    api: str = API,
    accept_changed: bool = False,
    progress: bool = True,
    lister: Callable[[str, str], dict[str, dict]] | None = None,
) -> list[Path]:
    """All files of a record, each with the size and checksum that the record states.

    Args:
        folder: of the data, made if missing. Without network if all is there.
        accept_changed: take a record that is not what ``registry.json`` says.
        progress: say how much it is first, and show a bar per file.
        lister: as :func:`read_record`, of another server.

    Returns:
        Paths below ``folder/download``, in the record's order.

    Raises:
        ConnectionError: if the server cannot be reached, refuses, asks to wait too long, or sends
            other files than it states.
        OSError: if the disk is too small.
        ValueError: if the record has changed or is of an unknown form.
    """
    home, note = Path(folder) / "download", Path(folder) / "registry.json"
    pinned = read_registry(note, record) if note.exists() else []
    if not pinned or accept_changed or not all(_is_there(home, file) for file in pinned):
        listed = (lister or read_record)(record, api)
        files = list(listed.values())
        changed = {f["key"] for f in pinned + files if f not in pinned or f not in files}
        if pinned and changed and not accept_changed:
            raise ValueError(
                f"record {record} is not what {note} says: {', '.join(sorted(changed))} changed."
                " Results on it would not compare: look at the record's page, then choose another"
                " folder, or pass accept_changed=True to take it as it is now"
            )
        home.mkdir(parents=True, exist_ok=True)
        missing = [file for file in files if not _is_there(home, file)]
        check_space(home, missing)
        if progress and missing:
            size = sum(file["size"] for file in missing) / 1e9
            tqdm.write(f"{record}: {len(missing)} files to download, {size:.1f} GB")
        for url, file in listed.items():
            fetch_file(url, home, file["checksum"], file["key"], progress=progress)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"record": record, "api": api, "date": now, "files": files}
        write_text(note, json.dumps(content, indent=1) + "\n")
        pinned = files
    return [home / file["key"] for file in pinned]


def read_registry(path: Path, record: str) -> list[dict]:
    """Files of a ``registry.json``: key, size, checksum."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        files = [_checked(file) for file in found["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}): delete it to pin the record anew") from error
    if found.get("record") != record:
        raise ValueError(f"{path}: of record {found.get('record')}, not {record}: another folder?")
    return files


def read_record(record: str, api: str = API) -> dict[str, dict]:
    """What a record states: address of each file, and its ``key``, ``size`` (bytes) and
    ``checksum``."""
    url = f"{api}/records/{record}"
    try:
        files = [_checked(file) for file in read_json(url)["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{url}: not a Zenodo record ({error!r}): {BY_HAND}") from error
    if not files:
        raise ValueError(f"{url}: lists no file, is it restricted? {BY_HAND}")
    return {f"{url}/files/{quote(file['key'])}/content": file for file in files}


def read_json(url: str):
    """What a server answers, with the patience of a download.

    Raises:
        ConnectionError: if it cannot be had.
        ValueError: if it is no JSON.
    """
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "record.json.part"
        try:
            _resume(url, part, progress=False)
        except requests.RequestException as error:
            raise ConnectionError(f"{url}: {error}. Try again later, or {BY_HAND}") from error
        return json.loads(part.read_bytes())


def check_space(folder: Path, files: list[dict]) -> None:
    """Refuse a download that the disk cannot hold, archives counted with their content."""
    need = 0
    for file in files:
        part = folder / f"{file['key']}.part"
        need += file["size"] - (part.stat().st_size if part.exists() else 0)
        need += UNPACKED * file["size"] * file["key"].lower().endswith(SUFFIXES)
    free = shutil.disk_usage(folder).free
    if need > free:
        needed = f"about {need / 1e9:.1f} GB are needed (the files and their unpacked content)"
        advice = "make room or choose another folder (source_dir)"
        raise OSError(f"{folder}: {free / 1e9:.1f} GB are free, {needed}: {advice}")


def _resume(url: str, part: Path, progress: bool) -> None:
    """Append to ``part`` until the server has no more; start again where it cannot go on."""
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    session = requests.Session()
    retry = Patience(TRIES - 1, backoff_factor=1, status_forcelist=BUSY)
    session.mount(url, HTTPAdapter(max_retries=retry))
    headers = {"User-Agent": f"wspnb/{package_version('wspnb')}", "Accept-Encoding": "identity"}
    most, stuck = -1, 0
    while True:
        have = part.stat().st_size
        most, stuck = max(most, have), 0 if have > most else stuck + 1
        span = {"Range": f"bytes={have}-"} if have else {}
        with session.get(url, headers=headers | span, stream=True, timeout=60) as answer:
            place = answer.headers.get("Content-Range", "")
            if answer.status_code == 416 and place == f"bytes */{have}":
                return  # all was there
            if answer.status_code == 416 and stuck < TRIES:
                os.truncate(part, 0)
                continue
            answer.raise_for_status()
            goes_on = place.startswith(f"bytes {have}-")
            start, length = have * goes_on, int(answer.headers.get("Content-Length", 0))
            look = {"unit": "B", "unit_scale": True, "disable": not progress}
            bar = tqdm(desc=part.stem, initial=start, total=start + length, **look)
            try:
                with bar, open(part, "ab" if goes_on else "wb", buffering=0) as output:
                    for block in answer.iter_content(BLOCK):
                        output.write(block)
                        bar.update(len(block))
                return
            except requests.RequestException:  # cut: go on from here
                if stuck == TRIES:
                    raise
                time.sleep(2.0**stuck)


def _checked(file: dict) -> dict:
    """One entry of a record or registry, refused if its name or checksum is not as known."""
    key, checksum = file["key"], str(file.get("checksum"))
    if not isinstance(key, str) or Path(key).name != key or key in ("", ".", ".."):
        raise ValueError(f"file name {key!r}")
    if not re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", checksum):
        raise ValueError(f"checksum {checksum!r} of {key!r}")
    return {"key": key, "size": int(file["size"]), "checksum": checksum}


def _is_there(folder: Path, file: dict) -> bool:
    path, (kind, digest) = folder / file["key"], file["checksum"].split(":")
    return path.is_file() and pooch.file_hash(str(path), alg=kind) == digest

"""A public Zenodo record on disk: downloaded with resume, verified, pinned, unpacked safely.

The folder holds ``download/`` (the record's files; ``NAME.part`` while one is on its way) and
``registry.json`` (record, and key, size and checksum of each file), written when all was first
there. From then on the record must stay what it was, and what is there is not asked for again.
"""

import json
import os
import re
import shutil
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path

import pooch
import requests
from tqdm.auto import tqdm

from wspnb.files import write_text
from wspnb.sources.archives import SUFFIXES

API = "https://zenodo.org/api"
BUSY = (429, 500, 502, 503, 504)  # answers after which to ask again
TRIES = 6  # without a new byte, then an error
LONGEST_WAIT = 600.0  # s, for one Retry-After
BLOCK = 1 << 16  # bytes: as much is lost at most when a connection is cut
UNPACKED = 2.0  # bytes unpacked per byte of an archive: a guess, verified when unpacking


def fetch_record(
    record: str,
    folder: str | Path,
    api: str = API,
    accept_changed: bool = False,
    sleep=time.sleep,
    progress: bool = True,
) -> list[Path]:
    """All files of a record, each with the size and checksum that the record states.

    An interrupted call goes on at the byte where it stopped. Without network if all is there.

    Args:
        record: number of the record.
        folder: of the data, made if missing.
        api: base URL.
        accept_changed: take a record that is not what ``registry.json`` says.
        sleep: takes seconds.
        progress: show a bar per file.

    Returns:
        Paths below ``folder/download``, in the record's order.

    Raises:
        ConnectionError: if the server cannot be reached, refuses, or asks to wait too long.
        OSError: if the disk is too small.
        ValueError: if the record has changed or is of an unknown form, or a file is damaged.
    """
    folder = Path(folder)
    pinned = read_registry(folder, record)
    if pinned and not accept_changed and all(_is_there(folder, file) for file in pinned):
        return [folder / "download" / file["key"] for file in pinned]
    files = read_record(record, api, sleep)
    changes = _changes(pinned or files, files)
    if changes and not accept_changed:
        raise ValueError(
            f"record {record} is not what {folder / 'registry.json'} says: {'; '.join(changes)}."
            " Results on it would not compare: look at the record's page, then choose another"
            " folder, or pass accept_changed=True to take it as it is now"
        )
    missing = [file for file in files if not _is_there(folder, file)]
    check_space(folder, missing)
    for file in missing:
        _fetch_file(folder / "download", file, api, sleep, progress)
    stated = [{name: file[name] for name in ("key", "size", "checksum")} for file in files]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"record": record, "api": api, "date": now, "files": stated}
    write_text(folder / "registry.json", json.dumps(content, indent=1) + "\n")
    return [folder / "download" / file["key"] for file in files]


def read_registry(folder: str | Path, record: str | None = None) -> list[dict] | None:
    """Files of ``registry.json`` (key, size, checksum), or None before the first success."""
    path = Path(folder) / "registry.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        files = [_checked(file) for file in found["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}): delete it to pin the record anew") from error
    if record and found.get("record") != record:
        raise ValueError(f"{path}: of record {found.get('record')}, not {record}: another folder?")
    return files


def read_record(record: str, api: str = API, sleep=time.sleep) -> list[dict]:
    """What a record states: ``key``, ``size`` (bytes), ``checksum`` ("md5:...") and ``url``.

    Both forms of InvenioRDM are read: ``files`` as a list, and ``entries`` (in the record, or at
    its own address ``/files``).
    """
    url = f"{api}/records/{record}"
    for address in (url, f"{url}/files"):
        answer = _ask(address, sleep, stream=False)
        try:
            body = answer.json()
            found = body.get("entries") or body["files"]
            if isinstance(found, dict):
                found = found.get("entries") or []
            files = [_checked(f) for f in (found.values() if isinstance(found, dict) else found)]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{address}: not the form of a Zenodo record ({error!r}): download the files by"
                " hand and give their folder (local_file)"
            ) from error
        if files:
            return files
    raise ValueError(
        f"{url}: lists no file, is it restricted? Give a folder with them (local_file)"
    )


def check_space(folder: Path, files: list[dict]) -> None:
    """Refuse a download that the disk cannot hold, archives counted with their content."""
    (folder / "download").mkdir(parents=True, exist_ok=True)
    need = 0
    for file in files:
        part = folder / "download" / f"{file['key']}.part"
        need += file["size"] - (part.stat().st_size if part.exists() else 0)
        need += UNPACKED * file["size"] * file["key"].lower().endswith(SUFFIXES)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OSError(
            f"{folder}: {free / 1e9:.1f} GB are free, about {need / 1e9:.1f} GB are needed (the"
            " files and their unpacked content): make room or choose another folder (source_dir)"
        )


def retry_after(value: str | None, default: float) -> float:
    """Seconds that a server asks to wait: its Retry-After in seconds or as a date, or default."""
    if not value:
        return default
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return default
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _ask(url: str, sleep, start: int = 0, stream: bool = True) -> requests.Response:
    """The server's answer from a byte on, its body to be read by the caller unless ``stream`` is
    False; waits and asks again where that may help."""
    headers = {"User-Agent": f"wspnb/{version('wspnb')}"}
    headers["Accept-Encoding"] = "identity"  # the bytes as they are stored
    if start:
        headers["Range"] = f"bytes={start}-"
    for attempt in range(TRIES):
        wait = 2.0**attempt
        try:
            answer = requests.get(url, headers=headers, stream=stream, timeout=60)
        except requests.RequestException as error:
            reason = str(error)
        else:
            if answer.ok or answer.status_code == 416:
                return answer
            reason = f"{answer.status_code} {answer.reason}"
            wait = retry_after(answer.headers.get("Retry-After"), wait)
            answer.close()
            if answer.status_code not in BUSY:
                break
            reason += f", to be asked again in {wait:.0f} s"
        if wait > LONGEST_WAIT:
            break
        if attempt < TRIES - 1:
            sleep(wait)
    raise ConnectionError(
        f"{url}: {reason}. Try again later, what is there is kept and not fetched again; or"
        " download it by hand and give its folder (local_file)"
    )


def _fetch_file(folder: Path, file: dict, api: str, sleep, progress: bool) -> None:
    """One file through pooch: resumed, then verified, and fetched once afresh if it is damaged."""
    key, size = file["key"], file["size"]
    cache = pooch.create(
        folder, api, registry={key: file["checksum"]}, urls={key: file["url"]}, retry_if_failed=1
    )
    part = folder / f"{key}.part"

    def download(url: str, output: str, _: pooch.Pooch) -> None:
        with tqdm(
            desc=key, total=size, unit="B", unit_scale=True, unit_divisor=1024, disable=not progress
        ) as bar:
            _resume(url, part, size, sleep, bar)
        os.replace(part, output)  # where pooch verifies it; what is damaged is deleted there

    try:
        cache.fetch(key, downloader=download)
    except ValueError as error:
        raise ValueError(
            f"{key}: fetched twice, and both times not the {file['checksum']} that the record"
            f" states ({error}): try again later, or tell the record's authors"
        ) from error


def _resume(url: str, part: Path, size: int, sleep, bar: tqdm) -> None:
    """Append to ``part`` until it has ``size`` bytes; start again where the server cannot go on."""
    part.touch()
    most, stuck = -1, 0
    while (have := part.stat().st_size) != size:
        most, stuck = (have, 0) if most < have <= size else (most, stuck + 1)
        if stuck == TRIES:
            raise ConnectionError(
                f"{url}: {most} of {size} bytes after {TRIES} more tries: try again later"
            )
        if have > size:
            part.write_bytes(b"")
            continue
        with _ask(url, sleep, have) as answer:
            place = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            goes_on = answer.status_code == 206 and place and int(place[1]) == have
            if answer.status_code == 416 or (answer.status_code == 206 and not goes_on):
                part.write_bytes(b"")
                continue
            try:
                with open(part, "ab" if goes_on else "wb", buffering=0) as output:
                    for block in answer.iter_content(BLOCK):
                        output.write(block)
                        bar.update(output.tell() - bar.n)
                        if output.tell() > size:
                            break
            except requests.RequestException:  # cut: go on from here
                sleep(2.0**stuck)


def _checked(file: dict) -> dict:
    """One entry of a record or registry, refused if its name or checksum is not as known."""
    key, checksum = file["key"], str(file.get("checksum"))
    if not isinstance(key, str) or Path(key).name != key or key in ("", ".", ".."):
        raise ValueError(f"file name {key!r}")
    if not re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", checksum):
        raise ValueError(f"checksum {checksum!r} of {key!r}")
    links = file.get("links", {})
    url = links.get("content") or links.get("self") or ""
    return {"key": key, "size": int(file["size"]), "checksum": checksum, "url": url}


def _is_there(folder: Path, file: dict) -> bool:
    path = folder / "download" / file["key"]
    if not path.is_file() or path.stat().st_size != file["size"]:
        return False
    kind, _, digest = file["checksum"].partition(":")
    return pooch.file_hash(str(path), alg=kind) == digest


def _changes(before: list[dict], now: list[dict]) -> list[str]:
    """What differs between two states of a record, in words."""
    old, new = ({file["key"]: file for file in files} for files in (before, now))
    gone = [f"{key} is gone" for key in old if key not in new]
    added = [f"{key} is new" for key in new if key not in old]
    return (
        gone
        + added
        + [
            f"{key} had {old[key][name]}, has {new[key][name]}"
            for key in old.keys() & new.keys()
            for name in ("size", "checksum")
            if old[key][name] != new[key][name]
        ]
    )

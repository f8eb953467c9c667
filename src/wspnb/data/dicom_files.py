"""Files below a patient's folder: which are DICOM images, and why the others are none."""

import os
import re
import unicodedata
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from wspnb.files import need, paths_below, printable

DEFLATED, END = "1.2.840.10008.1.2.1.99", b"\xfe\xff\xdd\xe0\0\0\0\0"  # of packed pixels
# What must be the same in all slices of a series.
SAME = (
    "PatientID PatientName Modality Rows Columns PixelSpacing ImageOrientationPatient"
    " SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit"
    " PixelRepresentation RescaleSlope RescaleIntercept RescaleType ImageType FrameOfReferenceUID"
    " ConvolutionKernel SliceThickness SOPClassUID KVP StudyInstanceUID PatientPosition"
    " PatientBirthDate AccessionNumber DeviceSerialNumber ReconstructionDiameter"
    " ManufacturerModelName BodyPartExamined PatientSex PatientAge StudyID InstitutionName"
    " Manufacturer StationName ProtocolName ScanOptions FilterType LossyImageCompression"
    " ModalityLUTSequence"
).split()
# What may change from one block of slices to the next, but not to and fro.
BLOCKS = (
    "AcquisitionNumber AcquisitionUID TemporalPositionIdentifier AcquisitionTime TriggerTime"
    " NominalPercentageOfCardiacPhase AcquisitionDateTime SeriesNumber SeriesDescription"
    " ContrastBolusAgent StudyDate SeriesDate AcquisitionDate ContentDate StudyTime SeriesTime"
).split()
TAGS = [*SAME, *BLOCKS, "SOPInstanceUID", "SeriesInstanceUID", "NumberOfFrames", "InstanceNumber"]
# Hints of where slices lie, and how many there are.
HINTS = ["SpacingBetweenSlices", "GantryDetectorTilt", "ImagesInAcquisition"]
HINTS += ["NumberOfSeriesRelatedInstances", "LossyImageCompressionRatio"]
TAGS += ["BurnedInAnnotation", "ImagePositionPatient", "ContentTime", "PixelPaddingValue", *HINTS]
NUMBERS = ("RescaleSlope", "RescaleIntercept", "KVP", "SliceThickness", *HINTS)
NUMBERS += ("ReconstructionDiameter",)
CT = ("", "1.2.840.10008.5.1.4.1.1.2")  # SOPClassUID of CT images, if it is given
PICTURES = "LOCALIZER|MIP|MINIP|MAX_IP|MIN_IP|SCREEN[ _]?SAVE|PERFUSION|SUBTRACTION|IODINE|CALCIUM"
PICTURES += "|TOPOGRAM|SCOUT|VRT|CBF|CBV|MTT|TMAX|ZEFF|EFF_Z|_DENSITY|SEGMENTATION|(?<![A-Z_])DOSE"
PICTURES += r"|ATOMIC_NUM|MAT_(SPECIFIC|FRACTIONAL|VALUE)|Z_EFF|EFFECTIVE_Z|\b(RHO|WATER)\b"
PICTURES += r"|\b(VPCT|PERF)\b(?!.*\bAVG\b)"  # of perfusion all but the mean over time, which is HU
PICTURES += r"|\b(MAXIMUM|MINIMUM|STD_DEVIATION|DIVISION|MULTIPLICATION)\b"  # PS3.3, C.8.16.1.4
PICTURES = re.compile(PICTURES)  # in ImageType: no slices in HU
# Of a series that says that it is derived, in its type or its description: perhaps none in HU.
DERIVED = (
    r"\b(MASKED|MIP|MINIP|MAXIP|M(AX|IN) IP|VRT?|MAP|IODINE|PERFUSION|SUBTRACT\w*|CB[FV]|MTT)\b"
)
DERIVED = re.compile(DERIVED)
# Of LossyImageCompression, or of a transfer syntax that loses, or may lose, something.
LOSSY = ("01", *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 91, 203)))
ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd")
ARCHIVES += (b"PK\x07\x08", b"\x1f\x9d", b"\x04\x22\x4d\x18", b"MSCF")
PACKED = (".tar", ".iso", ".dmg", ".zip", ".7z", ".rar", ".lzma", ".lz4", ".cab", ".z")
# Of an archive that was split.
PARTS = re.compile(r"\.(z|r|7z\.|zip\.|rar\.)\d\d\d?$", re.IGNORECASE)
# Packed, and no slices: volumes of other formats, lists.
VOLUMES = re.compile(r"\.(nii|img|hdr|brik|mnc|mgh|mha|csv|txt|json|log)\.(gz|bz2|xz|zst)$|\.mgz$")
DOCUMENTS = {"[Content_Types].xml", "META-INF/MANIFEST.MF", "mimetype"}  # in a zip that is none
PAGES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".htm", ".html", ".xml")
PAGES += (".txt", ".json", ".csv", ".pdf")  # previews and lists beside slices
PARTIAL = (".part", ".partial", ".crdownload", ".download", ".filepart", ".tmp", ".aria2")


class File(NamedTuple):
    """A file below a folder: an image, or why it is none."""

    path: str
    tags: dict[str, Any]  # of :data:`TAGS`, numbers as floats; empty where it is no DICOM
    reason: str = ""  # why it cannot be used
    damaged: bool = False  # it may be a slice that is lost
    start: int = 0  # byte where its pixels begin, if they are not packed


def index(folder: str | Path) -> list[File]:
    """Every file below a folder, whatever its name; links are followed.

    Raises:
        ImportError: if the extra ``dicom`` is not installed.
    """
    need("dicom", "pydicom", "SimpleITK")  # before the work
    found = []

    def lost(error):
        found.append(File(error.filename, {}, f"a folder that cannot be read ({error})", True))

    for path in paths_below(folder, lost):
        found.append(index_file(path))
    return found


def is_ct(file: File) -> bool:
    """Whether an image says that it is a slice of a CT: no picture made of one, no dose report."""
    tags = file.tags
    kind = tags["SOPClassUID"] in CT or tags["SOPClassUID"].startswith(f"{CT[1]}.")
    return tags["Modality"] == "CT" and kind and not PICTURES.search(tags["ImageType"].upper())


def doubts(files: list[File]) -> Iterator[str]:
    """What may spoil slices that are read all the same."""
    how = ("LossyImageCompression", "TransferSyntaxUID", "LossyImageCompressionRatio")
    if lossy := [f for f in files if (f.tags[how[0]] or f.tags[how[1]]) in LOSSY or f.tags[how[2]]]:
        found = f"{len(lossy)} of {len(files)} slices have lossy compression, or may have it"
        found += f", such as {printable(lossy[0].path)}: their texture is not the scanner's"
        yield f"{found}: get lossless ones from the source"
    if burned := [f for f in files if f.tags["BurnedInAnnotation"].upper() == "YES"]:
        found = f"{len(burned)} of {len(files)} slices have words or marks in their pixels"
        found += f" (BurnedInAnnotation), such as {printable(burned[0].path)}"
        yield f"{found}: look at them, and get plain ones from the source"
    kind, words = files[0].tags["ImageType"].upper(), files[0].tags["SeriesDescription"]
    if "DERIVED" in kind and (word := DERIVED.search(f"{kind} {words.upper()}")):
        found = f"a derived series that says {word[0]} ({kind}, {words}): perhaps a map, or made of"
        yield f"{found} several slices, and not in HU: look at it, or take the scanner's own"


def find_series(folder: str | Path, files: list[File] | None = None) -> dict[str, list[File]]:
    """Images of each series below a folder, damaged ones among them."""
    found: dict[str, list[File]] = {}
    for file in index(folder) if files is None else files:
        if uid := file.tags.get("SeriesInstanceUID"):
            found.setdefault(uid, []).append(file)
    return found


def account(files: list[File], used: str = "", why: str = "") -> pd.DataFrame:
    """What became of each file, ``used`` being the series that was converted, if one was, and
    ``why`` what stood against it: ``file``, ``series`` and ``use``."""
    rows, idle, first = [], f"image, not converted{': ' * bool(why)}{why}", {}
    for file in files:
        uid = file.tags.get("SeriesInstanceUID", "")
        other = "image, not converted: of another series than the one taken" if used else idle
        use = file.reason or ("used" if uid == used and uid else other)
        if use == "used":
            tags = file.tags
            own = tags["SOPInstanceUID"] or file.path, tags["ImagePositionPatient"]
            if (one := first.setdefault(own, file.path)) != file.path:
                use = f"a copy of {printable(os.path.basename(one))}"
        rows.append({"file": printable(file.path), "series": uid, "use": use})
    return pd.DataFrame(rows, columns=["file", "series", "use"])


def name_form(path: str) -> str:
    """A file's name whatever its numbers: IM3 is a slice where IM1, IM2 and IM4 are."""
    form = re.sub(r"[0-9a-fA-F]*[0-9][0-9a-fA-F]*", "0", os.path.basename(path))
    return re.sub(r"0(\.0)+", "0.0", form)  # UIDs have more numbers or fewer


def lost_slices(files: list[File]) -> list[File]:
    """Files that cannot be read and may be slices, of whichever series."""
    forms = {name_form(file.path) for file in files if file.tags}
    there = {file.path for file in files if file.tags}

    def like_a_slice(path):
        """Named as slices are, perhaps with a sign before or an ending behind (.icloud, .gpg)."""
        place, name = os.path.split(path)
        bare, end = os.path.splitext(name.lstrip("."))
        lost = [bare] * (end.lower() not in PAGES)
        lost += [name.strip("#~"), re.sub(r"_(dcm|ima)$", r".\1", name, flags=re.IGNORECASE)]
        lost = [other for other in lost if name_form(other) in forms and other != name]
        lost = any(os.path.join(place, other) not in there for other in lost)
        return name_form(name) in forms or lost

    return [
        file
        for file in files
        if not file.tags.get("SeriesInstanceUID")
        and (file.damaged or (file.reason == "no DICOM" and like_a_slice(file.path)))
    ]


def leave_out(files: list[File], patient: Path, drop: str, series: str) -> list[File]:
    """Files but those that ``drop`` names, of this series or of none, by name or by path from the
    patient's folder."""
    drop = unicodedata.normalize("NFC", drop)  # accents in one character or in two
    gone, kept = {part.strip() for part in drop.split(";") if part.strip()}, []
    asked = gone.copy()
    for file in files:
        if file.tags.get("SeriesInstanceUID", series) != series:
            kept.append(file)
            continue
        names = {printable(os.path.relpath(file.path, patient)), (name := Path(file.path).name)}
        names = {unicodedata.normalize("NFC", printable(name)) for name in names}
        names |= {str(int(name))} if name.isdecimal() else set()  # a spreadsheet cuts zeros
        if len(twice := names & asked - gone):
            found = f"drop: {' '.join(twice)} is the name of several files: write the path of one"
            raise ValueError(f"{printable(patient)}: {found}, from the patient's folder on")
        kept += [] if names & gone else [file]
        gone -= names
    if gone:
        some = ", ".join(Path(printable(file.path)).name for file in files[:3])
        found = f"no file {', '.join(sorted(gone))} to drop, there are {some}, ..."
        advice = "write the whole name, and several parted by semicolons"
        raise ValueError(f"{printable(patient)}: {found}: {advice}")
    return kept


def index_file(path: str) -> File:
    """One file's header, and whether its pixels are all there."""
    (pydicom,) = need("dicom", "pydicom")
    if not os.path.exists(path):
        return File(path, {}, "a link that leads nowhere", True)
    if not os.path.isfile(path):
        return File(path, {}, "no regular file")
    try:
        with open(path, "rb") as stream:
            head, size = stream.read(132), os.fstat(stream.fileno()).st_size
            stream.seek(0)
            if head.startswith(b"\0\x05\x16\x07"):  # ._NAME, beside each file that a Mac has copied
                return File(path, {}, "a Mac's note on a file, no image")
            if not head.strip(b"\0"):
                return File(path, {}, "empty" if not size else "holds zeros only", True)
            if VOLUMES.search(path.lower()):
                return File(path, {}, "no DICOM but a volume of another format")
            if head.startswith(b"PK") and zipfile.is_zipfile(stream):
                if DOCUMENTS & set(zipfile.ZipFile(stream).namelist()):
                    return File(path, {}, "a document or program, no image")
            if head.startswith(ARCHIVES) or path.lower().endswith(PACKED):
                return File(path, {}, "an archive: unpack it, and take it away", True)
            if path.lower().endswith(PARTIAL):
                return File(path, {}, "a download that did not end", True)
            if head[128:] != b"DICM" and PARTS.search(path):
                return File(path, {}, "a part of an archive: unpack it, and take it away", True)
            if head[128:] != b"DICM" and head[:2] not in (b"\x08\0", b"\x02\0", b"\0\x08"):
                return File(path, {}, "no DICOM", path.lower().endswith((".dcm", ".ima")))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of values that are not used, or refused below
                header = pydicom.dcmread(stream, True, True, True, TAGS)
                tags = {name: _value(header, name) for name in TAGS}
            tags["TransferSyntaxUID"] = str(header.file_meta.get("TransferSyntaxUID", ""))
            if not (tags["Rows"] and tags["Columns"]):
                kind = tags["SOPClassUID"] or header.file_meta.get("MediaStorageSOPClassUID", "")
                named = (said := pydicom.uid.UID(kind).name) != kind  # DICOM's own list has it
                own = kind.startswith("1.2.840.10008.") or "1.2.840.10008.".startswith(kind)
                whole = named or not own or os.path.basename(path).upper() == "DICOMDIR"
                if said.endswith("Image Storage") or not whole:
                    return File(path, {}, "cut off within its header", True)
                return File(path, {}, f"DICOM without an image ({pydicom.uid.UID(kind).name})")
            counts = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "NumberOfFrames")
            for name in counts:
                if not str(tags[name] or 1).isdecimal():
                    return File(path, {}, f"{name} is no whole number but {tags[name]}", True)
            problem, start = _pixels_missing(stream, header, tags, size)
    except Exception as error:  # a file cut within its header, unreadable, or no DICOM after all
        return File(path, {}, f"cannot be read ({str(error).splitlines()[0][:100]})", True)
    if not tags["SeriesInstanceUID"]:
        return File(path, {}, "an image of no series (no SeriesInstanceUID)", True)
    return File(path, tags, problem, bool(problem), start)


def _value(header, name: str):
    """A tag's value: text, or numbers rounded to what a written decimal holds; "" if missing."""
    try:
        value = header.get(name, "")
        if value is None or value == "":
            return ""
        if name in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"):
            return tuple(round(float(v), 4) for v in value)
        if name in NUMBERS:
            return float(value)
        if isinstance(value, int):
            return int(value)
        if name == "PatientName":  # components that are empty may be left out
            return str(value).rstrip("^= ")
        if name.endswith("Time") and name != "ContentTime":  # 103012 is 103012.000
            return re.sub(r"\.0*$|(\.\d*?)0+$", r"\1", str(value).strip())
        return str(value).strip()
    except (ValueError, TypeError, OverflowError):
        return "not readable"


def _pixels_missing(stream, header, tags, size: int) -> tuple[str, int]:
    """Whether the file ends before its pixels do, and where they begin if they are not packed; the
    stream stands at their tag."""
    frames = int(tags["NumberOfFrames"] or 1) * int(tags["SamplesPerPixel"] or 1)
    image = tags["Rows"] * tags["Columns"] * int(tags["BitsAllocated"] or 0) * frames // 8
    if tags["TransferSyntaxUID"] == DEFLATED:  # unpacked at once; one that is cut off cannot be
        stream.seek(0)
        (pydicom,) = need("dicom", "pydicom")
        content = pydicom.dcmread(stream, force=True, specific_tags=["PixelData"]).PixelData
        length, rest = len(content), content[image:]
        right = image <= length < max(2 * image, 3) and not rest.strip(b"\0")
        return "" if right else f"{length} bytes of pixels, but the header's image needs {image}", 0
    start = stream.tell()
    little, implicit = header.original_encoding[1], header.original_encoding[0]
    begin = stream.read(8 if implicit else 12)
    if len(begin) < (8 if implicit else 12):
        return "cut off before its pixels", 0
    length = int.from_bytes(begin[-4:], "little" if little else "big")
    if length == 0xFFFFFFFF:
        return "" if END in stream.read() else "cut off within its pixels", 0
    needed = max(length, image)
    start += len(begin)
    there = size - start
    if min(there, length) < needed:
        return f"cut off, {there} of {needed} bytes of its pixels", 0
    stream.seek(start + image)  # zeros fill up; other bytes are of an image of another size
    if length >= 2 * image > 2 or stream.read(length - image).strip(b"\0"):
        return f"{length} bytes of pixels, but the header's image needs {image}", 0
    return "", start if little else 0

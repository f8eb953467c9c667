"""Names of one patient that differ in nothing but their look."""

import re
import unicodedata
from contextlib import suppress

import pandas as pd

SHAPES = str.maketrans(  # Cyrillic and Greek letters that look like Latin ones
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0445\u0443"
    "\u03b1\u03b2\u03b5\u03b7\u03b9\u03ba\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7",
    "abekmhopctxyabehikvoptyx",
)
SHAPES |= str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe"})


def visible(text: str) -> str:
    """A name without the characters that nobody sees, its accents in one character each."""
    seen = (c for c in text if unicodedata.category(c) not in ("Cc", "Cf"))
    return unicodedata.normalize("NFC", "".join(seen)).strip()


def as_respelt(name: str) -> str:
    """What a spreadsheet or another system leaves of a name: accents in one character each, no
    zeros in front of a number."""
    name = unicodedata.normalize("NFC", name)
    return name.lstrip("0") if name.isdecimal() else name


def look_alikes(
    names: pd.Series, turned: bool = False
) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """Pairs of names that differ in nothing but their look, each with its first line; where
    ``turned``, also in the order of two words or more, each of two letters or more."""
    pairs, seen = {}, {}
    for line, name in names.drop_duplicates().items():
        look = _look(name)
        words = sorted(map(_look, re.findall(r"[^\W_]+", name)))
        keys = [re.sub(r"(?<!\d)0+(?=\d)", "", look), f"typed {_typed(look)}"]
        if turned and len(words) > 1 and all(len(w) > 1 and w.isalpha() for w in words):
            keys.append(" ".join(words))
        for key in keys:
            first = seen.setdefault(key, (name, line))
            if first[0] != name:
                pairs.setdefault(name, (first, (name, line)))
    return list(pairs.values())


def _look(patient: str) -> str:
    """What is left of a name when case, blanks, accents and how they are written out, kinds of
    punctuation, marks of thousands, wide letters, zeros behind a number, digits, look-alike
    letters of other scripts and UTF-8 that was read as Latin-1 do not count."""
    for code in ("latin-1", "cp1252"):
        with suppress(UnicodeError):
            patient = patient.encode(code).decode()
    text = unicodedata.normalize("NFKD", patient).casefold()
    seen = (c for c in text if not unicodedata.combining(c))
    text = "".join(str(unicodedata.decimal(c, c)) for c in seen)
    text = re.sub(r"^(\d+)[.,]0+$", r"\1", "".join(text.split())).translate(SHAPES)
    text = re.sub(r"(?<=a)[ae]|(?<=[ou])e", "", text)  # Mueller, Aarhus
    if re.fullmatch(r"\d{1,3}(([.,'\u2019])\d{3})(\2\d{3})*", text):  # 10,234
        text = re.sub(r"\D", "", text)
    text = re.sub(r"[\W_]+", "-", text)
    return re.sub(r"(?<!\d)-|-(?!\d)", "", text)  # P-1 is P1, but 1-12 is not 11-2


def _typed(look: str) -> str:
    """The same where an O beside digits was typed for 0, an l or I for 1."""
    for letters, digit in (("o", "0"), ("il", "1")):
        look = re.sub(rf"(?<=\d)[{letters}]|[{letters}](?=\d)", digit, look)
    return look

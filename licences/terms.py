"""Read what a licence allows from its words, and say it of a thing; in commercial mode, forbid what forbids that."""

from __future__ import annotations

import enum
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

NOT_STATED = "not stated"
COMMERCIAL_VARIABLE = "FACEREWARD_COMMERCIAL"
"""In the environment, so that the processes that a command starts have it too."""


class Terms(enum.IntEnum):
    """What a licence asks for, the mildest first."""

    permissive = 0
    weak_copyleft = 1
    copyleft = 2
    own_terms = 3
    """Commercial use is allowed under conditions of its own, such as OpenRAIL's or NVIDIA's."""
    unknown = 4
    non_commercial = 5

    @property
    def words(self) -> str:
        """'weak copyleft'"""
        return self.name.replace("_", " ").replace("non commercial", "non-commercial")


PATTERNS: tuple[tuple[Terms, str], ...] = (
    (
        Terms.non_commercial,
        r"\bnon[\W_]*comm?ercial|(?<![a-z])by[\W_]+nc(?![a-z])|S-Lab|"
        r"\b(no|not (be used )?for|without|excluding) (any )?commercial|"
        r"\bcommercial use( is| are)? (not|prohibited|forbidden|excluded)|"
        r"\b(research|academic|educational?|personal|evaluation)[\W_]+((use|purposes?)[\W_]+)?only\b|"
        r"\bonly for ([\w-]+ )?(research|academic|education|personal|evaluation)|research purposes",
    ),
    (Terms.own_terms, r"RAIL\b|RAIL\+|proprietary"),
    (Terms.weak_copyleft, r"\bLGPL|\bMPL|Mozilla|\bEPL|lesser general"),
    (Terms.copyleft, r"\bA?GPL|general public|BY-SA"),
    (
        Terms.permissive,
        r"\bMIT\b|MIT-|\bBSD|0BSD|Apache|\bISC\b|PSF|Python Software Foundation|Zlib|HPND|\bCC0|CC[- ]BY[- ]4|BSL-1|"
        r"Boost|public domain|Unlicense|CNRI|WTFPL",
    ),
)
"""What a licence's words say, the first that is found; words that say none of it are unknown."""
IDS = (
    (r"^apache.*", "Apache-2.0"),
    (r"^(the )?mit( license)?$", "MIT"),
    (r".*(3-clause|bsd[- ]3).*", "BSD-3-Clause"),
    (r".*(2-clause|bsd[- ]2).*", "BSD-2-Clause"),
    (r"^(the )?bsd( license)?$", "BSD"),
    (r"^boost software license.*", "BSL-1.0"),
    (r"^(psfl|python software foundation license)$", "PSF-2.0"),
    (r"^mozilla public license 2.*", "MPL-2.0"),
    (r"^isc license.*", "ISC"),
    (r"^nvidia proprietary.*", "LicenseRef-NVIDIA-Proprietary"),
)


@dataclass(frozen=True)
class Licensed:
    """A thing and its licence."""

    kind: Literal["code", "weights", "data"]
    name: str
    licence: str
    """SPDX's id where it has one, else in words; NOT_STATED where nobody says."""
    instead: str = ""
    """What does without it, as a sentence's end: 'use --metrics permissive'."""

    @property
    def terms(self) -> Terms:
        """What its licence asks for."""
        return read_terms(self.licence)

    def __str__(self) -> str:
        return f"{self.name} ({self.licence})"


def normalise(words: str) -> str:
    """A licence by SPDX's id where its words are another name of one."""
    words = " ".join(words.split())
    return next((known for pattern, known in IDS if re.fullmatch(pattern, words, re.IGNORECASE)), words)


def read_terms(licence: str) -> Terms:
    """What a licence asks for: of several with OR the mildest, else the strictest that its words name.

    Words that speak of non-commercial use count wherever they stand: what a file was made from binds it too.
    """
    if re.search(PATTERNS[0][1], licence, re.IGNORECASE):
        return Terms.non_commercial
    if not licence.strip() or re.match(r"not |none |unknown", licence, re.IGNORECASE):
        return Terms.unknown
    return _read_expression(licence)


def _read_expression(words: str) -> Terms:
    parts = re.split(r"\s+AND\s+(?![^(]*\))", words)
    if len(parts) > 1:
        return max(map(_read_expression, parts))
    if len(parts := re.split(r"\s+OR\s+", words.strip("() "))) > 1:
        return min(map(_read_expression, parts))
    found = [terms for terms, pattern in PATTERNS if re.search(pattern, words, re.IGNORECASE)]
    return max(found, default=Terms.unknown)


def sort_strictest(things: Iterable[Licensed]) -> list[Licensed]:
    """Each thing once, the strictest licence first."""
    return sorted(dict.fromkeys(things), key=lambda one: (-one.terms, one.kind, one.name))


def read_manifest(path: Path) -> dict[str, Licensed]:
    """The weights of a manifest by name; a table's `licence` says which."""
    table: Mapping[str, Mapping[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: Licensed("weights", name, str(entry.get("licence", NOT_STATED))) for name, entry in table.items()}


def to_json(things: Iterable[Licensed]) -> str:
    """As a file beside what was made of them has it, the strictest first."""
    rows = [{**asdict(one), "terms": one.terms.words} for one in sort_strictest(things)]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def from_json(text: str) -> list[Licensed]:
    """What `to_json` wrote.

    Raises:
        ValueError: it did not.
    """
    try:
        return [Licensed(**{name: row[name] for name in Licensed.__dataclass_fields__}) for row in json.loads(text)]
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a list of licences: {error}") from error


def format_list(things: Iterable[Licensed]) -> list[str]:
    """Lines of a card, in Markdown; whatever the names and licences hold, nothing but text begins in them."""
    lines = [
        f"- {_escape(one.name)} ({one.kind}): {_escape(one.licence)}. **{one.terms.words}**"
        for one in sort_strictest(things)
    ]
    return lines or ["- none recorded"]


def _escape(text: str) -> str:
    return "".join(f"&#{ord(one)};" if one in "<>[]`|\\&*" else one for one in " ".join(text.split()))


def set_commercial() -> None:
    """Forbid what forbids commercial use, in this process and those that it starts."""
    os.environ[COMMERCIAL_VARIABLE] = "1"


def is_commercial() -> bool:
    """Whether what forbids commercial use is forbidden here."""
    return os.environ.get(COMMERCIAL_VARIABLE, "") not in ("", "0")

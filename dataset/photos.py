"""Count the pairs of a dataset whose photo is there, without checking the rows: a form asks at every change of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Literal

from runs.file_cache import read_file

Tally = Counter[tuple[str, str, bool, bool]]
"""(split, origin, whether lq is there, whether hq is) -> pairs."""


def count_photos(dataset: Path, photo: Literal["lq", "hq"], wanted: set[tuple[str, str]]) -> tuple[int, int]:
    """(pairs that lack the photo, all pairs), of the splits and origins that are wanted.

    (0, 0) where `pairs.jsonl` is not there or no dataset: whoever reads it whole says what is wrong with it.

    Args:
        wanted: (split, origin).
    """
    tally: Tally = read_file(dataset / "pairs.jsonl", _tally_photos) or Counter()
    chosen = {key: count for key, count in tally.items() if key[:2] in wanted}
    place = 2 if photo == "lq" else 3
    return sum(count for key, count in chosen.items() if not key[place]), sum(chosen.values())


def _tally_photos(path: Path) -> Tally:
    with open(path, encoding="utf-8") as stream:
        rows = (json.loads(line) for line in stream)
        return Counter((row["split"], row["origin"], bool(row["lq"]), bool(row["hq"])) for row in rows)

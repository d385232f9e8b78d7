"""Write the files of a dataset folder so that the same rows give the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from db.errors import UserError
from db.images import DamagedImage, image_path, read_stored
from pixels.metadata import strip_metadata

Row = dict[str, Any]
SCORE_COLUMNS = ("sha256", "metric", "version", "reference", "value", "raw_value", "failure")
IMAGE_FIELDS = ("image_a", "image_b", "lq", "hq")
HASH_FIELDS = ("sha256_a", "sha256_b", "sha256_lq", "sha256_hq")
CONSENT_FILE = "consent.json"
"""In a dataset folder: the people of its project agreed to publication when it was exported."""


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object per line, UTF-8, fields in the order given."""
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_scores(path: Path, scores: list[tuple[Any, ...]]) -> None:
    """Metric values as Parquet: rows of SCORE_COLUMNS."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = [pa.string(), pa.string(), pa.string(), pa.string(), pa.float64(), pa.float64(), pa.string()]
    schema = pa.schema(list(zip(SCORE_COLUMNS, types, strict=True)))
    columns = list(zip(*scores, strict=True)) or [()] * len(types)
    pq.write_table(pa.table([pa.array(c, t) for c, t in zip(columns, types, strict=True)], schema=schema), path)


def read_image(data: Path, name: str) -> bytes:
    """The bytes of the stored image that a dataset calls `name` ('images/<sha256>.png').

    Raises:
        DamagedImage: the file is missing, or is not what its name says.
        UserError: it holds metadata, which nobody is to get.
    """
    sha256, suffix = os.path.splitext(Path(name).name)
    content = read_stored(data, sha256, suffix)
    if found := strip_metadata(content)[1]:
        raise UserError(
            f"{image_path(data, sha256, suffix)} holds metadata ({', '.join(found)}), as an earlier version stored it. "
            "Take it out of all images with `python -m annotate check --mend`; judgments and values stay."
        )
    return content


def list_images(rows: Iterable[Row]) -> list[str]:
    """The image files that rows name, each once, sorted."""
    return sorted({row[name] for row in rows for name in IMAGE_FIELDS if row[name]})


def find_damaged(data: Path, names: Iterable[str]) -> dict[str, str]:
    """Those of a dataset's images whose stored files are missing or not what their names say, with the reason.

    Raises:
        UserError: see `read_image`.
    """

    def check(name: str) -> tuple[str, str]:
        try:
            read_image(data, name)
        except DamagedImage as error:
            return name, str(error)
        return name, ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {name: why for name, why in pool.map(check, names) if why}


def copy_images(folder: Path, rows: list[Row], data: Path, progress: Callable[[int, int], None] | None = None) -> int:
    """Copy the rows' image files, byte for byte, to `images/`; returns how many.

    Copies, not hard links: whoever edits a file of the dataset must not change the stored one.

    Args:
        progress: called with (images copied, total).
    Raises:
        UserError: an image file is missing or damaged.
    """
    wanted = list_images(rows)
    (folder / "images").mkdir()
    for done, name in enumerate(wanted, 1):
        (folder / name).write_bytes(read_image(data, name))
        if progress:
            progress(done, len(wanted))
    return len(wanted)


def write_checksums(folder: Path) -> None:
    """`SHA256SUMS` of all files, as `sha256sum --check` reads it."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    with open(folder / "SHA256SUMS", "w", encoding="utf-8", newline="\n") as sums:
        for name in names:
            with open(folder / name, "rb") as stream:
                sums.write(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {name}\n")

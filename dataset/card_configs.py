"""Describe a folder's files to `datasets.load_dataset` in the card: their splits, and the type of every column.

Without types they are guessed from a file's first 10 MB, and a column that is empty there has none; without splits, a
folder with images is taken for a dataset of nothing but images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

ALL_SPLITS = "all_splits"
"""Name in `datasets` of the one split of a file that holds all of ours: not "train", for held-out rows are among it."""


@dataclass(frozen=True)
class Config:
    """One table of a dataset folder, as `load_dataset(folder, name)` loads it."""

    name: str
    files: dict[str, str]
    """Split to file, or to a pattern of files, in the folder."""
    schema: pa.Schema
    """Of its columns; a struct of `bytes` and `path` is an image."""


def write_front_matter(configs: list[Config]) -> list[str]:
    """YAML lines `configs` and `dataset_info`; the first config is what `load_dataset(folder)` loads.

    Raises:
        ValueError: a column has a type that is not known here.
    Source: huggingface.co/docs/hub/datasets-manual-configuration; `sequence` is what every version since 2 reads.
    """
    lines = ["configs:"]
    for place, config in enumerate(configs):
        lines += [f"- config_name: {config.name}", *(["  default: true"] if place == 0 else []), "  data_files:"]
        for split, path in config.files.items():
            lines += [f"  - split: {split}", f"    path: {json.dumps(path)}"]
    lines += ["dataset_info:"]
    for config in configs:
        lines += [f"- config_name: {config.name}", "  features:", *_write_features(config.schema, "  ")]
    return lines


def _write_features(fields: Iterable[pa.Field], indent: str) -> list[str]:
    import pyarrow as pa

    lines = []
    for field in fields:
        lines.append(f"{indent}- name: {field.name}")
        kind = field.type
        if pa.types.is_list(kind):
            item = kind.value_type
            if _word(item):
                lines.append(f"{indent}  sequence: {_word(item)}")
            else:
                lines += [f"{indent}  list:", *_write_features(item, f"{indent}  ")]
        elif _word(kind):
            lines.append(f"{indent}  dtype: {_word(kind)}")
        else:
            lines += [f"{indent}  struct:", *_write_features(kind, f"{indent}  ")]
    return lines


def _word(kind: pa.DataType) -> str:
    """Return the name of a type in `datasets`; empty for a struct that is not an image."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return "image" if [field.name for field in kind] == ["bytes", "path"] else ""
    words = {
        pa.string(): "string",
        pa.binary(): "binary",
        pa.bool_(): "bool",
        pa.int64(): "int64",
        pa.float64(): "float64",
        pa.timestamp("us", tz="UTC"): "timestamp[us, tz=UTC]",
    }
    if kind not in words:
        raise ValueError(f"{kind} has no type name in a dataset card")
    return words[kind]

"""Define a labelled pair: two images of one source, and how probable it is that the first is better."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Split = Literal["train", "val", "test"]
Origin = Literal["human", "svm", "constructed"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """One label: two images of one source, and how probable it is that a is better."""

    pair: str
    """The pair's key, unique in a dataset."""
    image_a: Path
    image_b: Path
    sha256_a: str | None
    """None where the format does not say; scores.parquet is keyed by it."""
    sha256_b: str | None
    p_a: float
    """0 … 1; 0.5 for a tie."""
    weight: float
    """Of the label, 0 or more."""
    origin: Origin
    made_by: str
    agreement: float | None
    """Share of the label's judgments that gave its most frequent answer, where known."""
    caption: str | None
    source: str
    group: str
    """The person on the photo where known, else the source; never in two splits."""
    split: Split
    method_a: str | None
    """None where the format does not say."""
    method_b: str | None
    lq: Path | None
    hq: Path | None
    sha256_lq: str | None = None
    sha256_hq: str | None = None
    judgments: tuple[str, ...] = ()
    """Keys of the judgments that it was made of, where the dataset says."""


def inside(folder: Path, name: str | None) -> Path | None:
    """The file that a dataset calls `name`.

    Raises:
        ValueError: the name leads out of the dataset.
    """
    if name is None:
        return None
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name!r} lies outside the dataset")
    return folder / name

"""Read HPDv2's own files as labelled pairs: pairs (`train.json`, `val.json`) and rankings (`test.json`).

Images lie where the items say, beside the file or in the folder of its name (`train/`, `test/`), as HPDv2 is packed.
A source is what annotate's import makes of it: the images that pairs of one prompt connect.
Source: huggingface.co/datasets/ymhao/HPDv2; HPSv2 src/training/data.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import networkx as nx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dataset.labelled import SPLITS, LabelledPair, Split, first_fault, inside
from db.errors import UserError

MADE_BY = "imported:hpdv2"


class TrainItem(BaseModel):
    """An item of `train.json` or `val.json`; further fields of HPDv2's are passed over."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    prompt: str
    file_path: list[str] = Field(min_length=2, max_length=2)
    human_preference: list[float] = Field(min_length=2, max_length=2)


class Annotation(BaseModel):
    """One person's ranking in `test.json`."""

    model_config = ConfigDict(strict=True)

    rank: list[int]


class TestItem(BaseModel):
    """An item of `test.json`: images of one prompt, and their ranks, the smaller the better."""

    model_config = ConfigDict(strict=True)

    prompt: str
    image_path: list[str] = Field(min_length=2)
    rank: list[int]
    raw_annotations: list[Annotation] = []


@dataclass(frozen=True, slots=True)
class Preference:
    """Two files of a prompt and the probability that the first is better."""

    prompt: str
    names: tuple[str, str]
    p_first: float
    agreement: float | None


def find_files(path: Path) -> dict[Split, Path]:
    """HPDv2's files by split: those of a folder, or the one that is named."""
    if path.is_file():
        return {split: path for split in SPLITS if path.name == f"{split}.json"}
    return {split: path / f"{split}.json" for split in SPLITS if (path / f"{split}.json").is_file()}


def read_hpdv2(path: Path) -> list[LabelledPair]:
    """All pairs of the files that are there; a ranking of n images becomes its n(n − 1)/2 pairs.

    Raises:
        UserError: malformed; the item is named.
    """
    return [row for split, file in find_files(path).items() for row in _to_rows(split, file, _read_file(file))]


def _read_file(file: Path) -> list[Preference]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}).") from error
    if not isinstance(values, list):
        raise UserError(f"{file}: is not a list of items; HPDv2's is.")
    found: list[Preference] = []
    for number, value in enumerate(values):
        try:
            ranked = isinstance(value, dict) and "rank" in value
            found += _read_ranking(value) if ranked else [_read_preference(value)]
        except ValidationError as error:
            raise UserError(f"{file}, item {number}: {first_fault(error)}.") from error
        except ValueError as error:
            raise UserError(f"{file}, item {number}: {error}.") from error
    return found


def _read_preference(value: object) -> Preference:
    item = TrainItem.model_validate(value)
    first, second = item.human_preference
    if min(first, second) < 0 or first + second <= 0:
        raise ValueError(f"human_preference must be numbers of at least 0, one above 0, not {item.human_preference}")
    return Preference(item.prompt, (item.file_path[0], item.file_path[1]), first / (first + second), None)


def _read_ranking(value: object) -> list[Preference]:
    item = TestItem.model_validate(value)
    rankings = [item.rank, *(annotation.rank for annotation in item.raw_annotations)]
    if any(len(rank) != len(item.image_path) for rank in rankings):
        raise ValueError(f"a rank has another length than the {len(item.image_path)} images")
    found = []
    for i, j in combinations(range(len(item.image_path)), 2):
        label, *votes = ((rank[j] > rank[i]) - (rank[j] < rank[i]) for rank in rankings)
        agreement = max(votes.count(vote) for vote in votes) / len(votes) if votes else None
        found.append(Preference(item.prompt, (item.image_path[i], item.image_path[j]), (label + 1) / 2, agreement))
    return found


def _to_rows(split: Split, file: Path, preferences: list[Preference]) -> Iterator[LabelledPair]:
    folder = file.parent
    nested = (folder / split).is_dir()
    graph: nx.Graph[tuple[str, str]] = nx.Graph()
    graph.add_edges_from(((p.prompt, p.names[0]), (p.prompt, p.names[1])) for p in preferences)
    source_of: dict[tuple[str, str], str] = {}
    for nodes in nx.connected_components(graph):
        prompt = next(iter(nodes))[0]
        text = "\n".join([split, prompt, *sorted(name for _, name in nodes)])
        source_of |= dict.fromkeys(nodes, "hpdv2-" + hashlib.sha256(text.encode()).hexdigest()[:16])
    for number, preference in enumerate(preferences):
        a, b = (_find_image(folder, split, name, nested, file) for name in preference.names)
        if a == b:
            raise UserError(f"{file}: {a} is compared with itself; leave the pair out.")
        source = source_of[preference.prompt, preference.names[0]]
        yield LabelledPair(
            pair=f"hpdv2-{split}-{number}",
            image_a=a,
            image_b=b,
            sha256_a=None,
            sha256_b=None,
            p_a=preference.p_first,
            weight=1.0,
            origin="human",
            made_by=MADE_BY,
            agreement=preference.agreement,
            caption=preference.prompt or None,
            source=source,
            group=source,
            split=split,
            method_a=None,
            method_b=None,
            lq=None,
            hq=None,
        )


def _find_image(folder: Path, split: Split, name: str, nested: bool, file: Path) -> Path:
    try:
        path = inside(folder, name)
    except ValueError as error:
        raise UserError(f"{file}: {error}.") from error
    assert path is not None
    return folder / split / name if nested and not path.exists() else path

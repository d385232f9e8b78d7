"""Read HPDv2's own files: pairs of images (`train.json`, `val.json`) and rankings (`test.json`).

Source: huggingface.co/datasets/ymhao/HPDv2; HPSv2 src/training/data.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dataset.fields import STRICT, Text
from db.errors import UserError, first_fault
from runs.image_folders import read_text

FIELDS = ConfigDict(strict=True, allow_inf_nan=False)
"""Rankings have further fields, which are passed over."""


@dataclass(frozen=True, slots=True)
class Preference:
    """Two files of a prompt, and the probability that the first is better."""

    prompt: str
    names: tuple[str, str]
    p_first: float
    agreement: float | None = None
    """Of a ranking: the share of people who gave a pair's most frequent answer."""


class PairItem(BaseModel):
    """An item of `train.json` or `val.json`."""

    model_config = STRICT

    prompt: Text
    file_path: list[Text] = Field(min_length=2, max_length=2)
    human_preference: list[float] = Field(min_length=2, max_length=2)
    tasks: list[Text] = []
    """A column of ours, not kept."""
    user_hash: object = None
    """Names of the judges in HPDv2's own file; not kept."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.human_preference) < 0 or sum(self.human_preference) <= 0:
            raise ValueError(
                f"human_preference must be numbers of at least 0, one above 0, not {self.human_preference}"
            )
        return self

    def split(self) -> Iterator[Preference]:
        """The one pair that it is."""
        first, second = self.human_preference
        yield Preference(self.prompt, (self.file_path[0], self.file_path[1]), first / (first + second))


class Annotation(BaseModel):
    """One person's ranking in `test.json`."""

    model_config = FIELDS

    rank: list[int]


class RankingItem(BaseModel):
    """An item of `test.json`: images of one prompt and their ranks, the smaller the better."""

    model_config = FIELDS

    prompt: Text
    image_path: list[Text] = Field(min_length=2)
    rank: list[int]
    raw_annotations: list[Annotation] = []

    @model_validator(mode="after")
    def _check(self) -> Self:
        for rank in self.rankings():
            if len(rank) != len(self.image_path):
                raise ValueError(f"a rank of {len(rank)} for {len(self.image_path)} images")
        return self

    def rankings(self) -> list[list[int]]:
        """The ranking itself, then each person's."""
        return [self.rank, *(annotation.rank for annotation in self.raw_annotations)]

    def split(self) -> Iterator[Preference]:
        """All n(n − 1)/2 pairs: the smaller rank is better, equal ranks are a tie."""
        for i, j in combinations(range(len(self.image_path)), 2):
            label, *votes = ((rank[j] > rank[i]) - (rank[j] < rank[i]) for rank in self.rankings())
            agreement = max(votes.count(vote) for vote in votes) / len(votes) if votes else None
            yield Preference(self.prompt, (self.image_path[i], self.image_path[j]), (label + 1) / 2, agreement)


def read_preferences(path: Path) -> list[Preference]:
    """All pairs of a file.

    Raises:
        UserError: malformed; the item is named.
    """
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(values, list) or not values:
        raise UserError(f"{path}: is not a list of pairs; HPDv2's train.json is.")
    if isinstance(values[0], dict) and "source" in values[0]:
        raise UserError(
            f"{path} is one JSON list of rows; a manifest has a row per line: save it as .jsonl (pandas: "
            "to_json(orient='records', lines=True)) or .csv."
        )
    found: list[Preference] = []
    for number, value in enumerate(values):
        kind: type[PairItem | RankingItem] = RankingItem if isinstance(value, dict) and "rank" in value else PairItem
        try:
            found += kind.model_validate(value).split()
        except ValidationError as error:
            raise UserError(f"{path}, item {number}: {first_fault(error)}.") from error
    return found

"""Define the rows of `tasks.jsonl`, and read what an answer to a task says of one pair of its candidates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from dataset.fields import STRICT, Key, Name, Seed, Sha256
from db.records import candidate_key, pair_key, task_key
from metrics.rankings import LETTERS, derive_pairs, read_ranking

Row = dict[str, Any]


class TaskCandidate(BaseModel):
    """A candidate of a task; the first of them is a, the second b, and so on."""

    model_config = STRICT

    method: Name
    seed: Seed
    image: Name
    sha256: Sha256


class TaskRow(BaseModel):
    """A line of `tasks.jsonl`: three to six candidates of one source that were judged at once."""

    model_config = STRICT

    task: Key
    source: Name
    candidates: list[TaskCandidate] = Field(min_length=3, max_length=len(LETTERS))

    def keys(self) -> list[str]:
        """The candidates' keys, by letter."""
        return [candidate_key(self.source, one.method, one.seed) for one in self.candidates]

    def pairs(self, ranking: str) -> dict[str, str]:
        """Key of each pair that a ranking tells of, to the choice: a, b or tie, as of the pair's own a and b."""
        keys = self.keys()
        told = derive_pairs(ranking, len(keys))
        return {pair_key(keys[LETTERS.index(x)], keys[LETTERS.index(y)])[0]: choice for x, y, choice in told}

    @model_validator(mode="after")
    def _check(self) -> Self:
        keys = self.keys()
        if keys != sorted(set(keys)):
            raise ValueError("the candidates are not in the order of their keys, each once")
        if task_key(keys) != self.task:
            raise ValueError(f"{self.task} is not the task of its source, methods and seeds")
        return self


def ranks_of(ranking: str, size: int) -> list[int]:
    """Rank of each letter, 1 the best: letters that are tied have the same rank, and so have those not told apart."""
    tiers, rest, worst = read_ranking(ranking, size)
    parts = [*tiers, *([rest] if rest else []), *worst]
    return [next(at for at, part in enumerate(parts, 1) if letter in part) for letter in LETTERS[:size]]


def read_choices(judgments: Iterable[Row], tasks: Mapping[str, TaskRow]) -> dict[str, dict[str, str]]:
    """uuid to pair key to choice of every answer that is no skip: of a pair one, of a task all that it tells of."""
    found = {}
    for row in judgments:
        if row.get("ranking"):
            found[row["uuid"]] = tasks[row["task"]].pairs(row["ranking"])
        elif row["pair"] is not None:
            found[row["uuid"]] = {row["pair"]: row["choice"]}
    return found

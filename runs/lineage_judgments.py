"""Count the judgments behind a thing, people's and programs' apart, each once however it got there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.models import Judgment, Person

Hashes = npt.NDArray[np.uint64]
"""Judgments, by a hash of their uuids."""
NONE: Hashes = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True)
class Judgments:
    """Judgments behind something, people's and programs' apart."""

    human: Hashes = field(default_factory=lambda: NONE)
    simulated: Hashes = field(default_factory=lambda: NONE)
    at_least: tuple[int, int] = (0, 0)
    """(human, simulated) where only their numbers are known."""

    def join(self, other: Judgments) -> Judgments:
        """Those behind either."""
        lows = zip(self.at_least, other.at_least, strict=True)
        return Judgments(
            np.union1d(self.human, other.human),
            np.union1d(self.simulated, other.simulated),
            (max(next(lows)), max(next(lows))),
        )

    def count(self) -> dict[str, int]:
        """Count both kinds."""
        human, simulated = self.at_least
        return {"human": max(human, len(self.human)), "simulated": max(simulated, len(self.simulated))}


def parse_labeler(path: Path) -> Hashes:
    """The judgments that a labeler was trained on, of its labeler.json."""
    rows = json.loads(path.read_text(encoding="utf-8"))["provenance"]["trained_on"]
    return hash_all(uuid for row in rows for uuid in row[4])


def parse_judgments(path: Path) -> Judgments:
    """The judgments of a dataset, of its judgments.jsonl."""
    with open(path, encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    human, simulated = ([row["uuid"] for row in rows if row["simulated"] is which] for which in (False, True))
    return Judgments(hash_all(human), hash_all(simulated))


def hash_all(uuids: Iterable[str]) -> Hashes:
    """(N,) sorted, each once."""
    digests = b"".join(hashlib.blake2b(uuid.encode(), digest_size=8).digest() for uuid in uuids)
    return np.unique(np.frombuffer(digests, dtype=np.uint64))


def find_simulated(session: Session) -> Hashes:
    """The judgments that simulated annotators made."""
    of_programs = select(Judgment.uuid).join(Person, Person.id == Judgment.person_id).where(Person.simulated)
    return hash_all(session.scalars(of_programs))


def count_all(session: Session) -> dict[str, int]:
    """Live judgments of the project, and who made them."""
    counted = (
        select(Person.simulated, func.count(), func.count(Judgment.person_id.distinct()))
        .join(Judgment, Judgment.person_id == Person.id)
        .where(Judgment.superseded_at.is_(None))
        .group_by(Person.simulated)
    )
    found = {bool(simulated): (count, people) for simulated, count, people in session.execute(counted)}
    human, simulated = found.get(False, (0, 0)), found.get(True, (0, 0))
    return {"human": human[0], "people": human[1], "simulated": simulated[0], "programs": simulated[1]}

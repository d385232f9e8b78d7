"""Fixtures of the labelling core's tests: one open session, people, a project of a given size."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy.special import expit
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person
from annotate.labeler.svm import Training
from db.models import Choice, Judgment, Lease, Pair, Person, Split
from db.project import ProjectSettings
from db.session import Database
from tests.making import add_candidates, judge


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    """A session of a fresh database; nothing is committed before the test ends."""
    with database.write() as opened:
        yield opened


@pytest.fixture
def rng() -> random.Random:
    return random.Random(7)


@pytest.fixture
def settings() -> ProjectSettings:
    """One judgment a pair, no repeats, no gold: each test turns on what it is about."""
    return ProjectSettings(repeat_share=0, gold_share=0)


@pytest.fixture
def people(session: Session) -> list[Person]:
    """Four annotators."""
    return [add_person(session, name) for name in ("Ada", "Ben", "Cleo", "Dan")]


@pytest.fixture
def make_project(session: Session, settings: ProjectSettings) -> Callable[..., list[Pair]]:
    """`make_project(5, wanted=3)`: that many sources of two candidates each, so as many pairs, in their order."""

    def make(pairs: int, wanted: int = 1) -> list[Pair]:
        for number in range(pairs):
            add_candidates(session, f"face{number}", ["m1", "m2"], Split.train)
        make_pairs(session, settings.model_copy(update={"judgments_per_pair": wanted}))
        return list(session.scalars(select(Pair).order_by(Pair.shuffle_key)))

    return make


@pytest.fixture
def answer(session: Session) -> Callable[..., Judgment]:
    """`answer(person, lease, Choice.a)`: record a judgment of what the lease shows, under a new uuid."""

    def record(person_id: int, lease: Lease, choice: Choice = Choice.a, **fields: object) -> Judgment:
        shown = {"repeat_no": lease.repeat_no, "shown_left": lease.shown_left}
        return judge(session, person_id, lease.pair_id, choice, **{**shown, **fields})

    return record


@pytest.fixture(scope="session")
def taste() -> np.ndarray:
    """What a simulated person weighs: two metrics of four strongly, one weakly, one not at all."""
    return np.array([2.0, -2.0, 0.6, 0.0])


@pytest.fixture(scope="session")
def make_training(taste: np.ndarray) -> Callable[..., Training]:
    """`make_training(200, sources=20)`: so many labelled pairs whose answers follow the taste, with logistic noise."""

    def make(n: int, seed: int = 0, sources: int = 20) -> Training:
        rng = np.random.default_rng(seed)
        differences = rng.normal(size=(n, 4))
        answers = (rng.random(n) < expit(differences @ taste)).astype(float)
        photos = np.array([f"face{at % sources}" for at in range(n)])
        return Training(differences, answers, np.ones(n), photos, photos)

    return make

"""Make studies, draw their pairs, and open, pause and close them."""

from __future__ import annotations

import random
import secrets
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Select, func, insert, select
from sqlalchemy.orm import Session, aliased

from annotate.judging.pairs import check_method
from annotate.studies.settings import StudySettings, load_study_settings
from db.errors import UserError
from db.models import Candidate, Method, Pair, Source, Split, utc_now
from db.pairs import SHUFFLE_RANGE
from db.studies import Study, StudyEvent, StudyPair, StudyState

MAX_NAME = 50
"""Characters: the names of a study's people are made of it."""
ALLOWED = {
    StudyState.draft: {StudyState.open, StudyState.closed},
    StudyState.open: {StudyState.paused, StudyState.closed},
    StudyState.paused: {StudyState.open, StudyState.closed},
    StudyState.closed: set[StudyState](),
}


def create_study(session: Session, name: str, settings: StudySettings, *, seed: int = 0) -> Study:
    """A new study, a draft, its pairs drawn.

    Raises:
        UserError: the name is taken or none, there are fewer pairs or gold pairs than one participant is asked about,
            or a method or training pair is not there.
    """
    name = name.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise UserError(f"{name[:60]!r} cannot be a study's name: use 1 to {MAX_NAME} printable characters.")
    if session.scalar(select(Study.id).where(Study.name == name)) is not None:
        raise UserError(f"There is already a study called {name!r}; choose another name.")
    check_gold(session, settings)
    drawn = draw_pairs(session, settings, random.Random(f"{seed}\n{name}"))
    check_enough(drawn, settings)
    study = Study(
        name=name,
        link=secrets.token_urlsafe(16),
        settings=settings.model_dump(mode="json"),
        strata=sorted({row["stratum"] for row in drawn}),
    )
    session.add(study)
    session.flush()
    session.execute(insert(StudyPair), [{"study_id": study.id, **_without_source(row)} for row in drawn])
    note_event(session, study.id, None, "created", pairs=len(drawn), answers=sum(row["wanted"] for row in drawn))
    return study


def draw_pairs(session: Session, settings: StudySettings, rng: random.Random) -> list[dict[str, Any]]:
    """The pairs that a study asks about, with `wanted`, `stratum` and `source_id`.

    As many from each stratum as from any other while they last; the answers that they want add up to
    `answers_per_stratum` at most.
    """
    by_stratum: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for pair_id, source_id, split, *methods in session.execute(_select_pairs(session, settings)):
        by_stratum[name_stratum(settings.stratify, sorted(methods), split.value)].append((pair_id, source_id))
    for rows in by_stratum.values():
        rng.shuffle(rows)
    left: dict[str, int | None] = dict.fromkeys(by_stratum, settings.answers_per_stratum or None)
    drawn: list[dict[str, Any]] = []
    for stratum, (pair_id, source_id) in _take_turns(by_stratum):
        if settings.pairs and len(drawn) == settings.pairs:
            break
        room = left[stratum]
        wanted = settings.answers_per_pair if room is None else min(settings.answers_per_pair, room)
        if wanted == 0:
            continue
        left[stratum] = None if room is None else room - wanted
        key = rng.randrange(SHUFFLE_RANGE)
        drawn.append(
            {"pair_id": pair_id, "source_id": source_id, "stratum": stratum, "wanted": wanted, "shuffle_key": key}
        )
    return drawn


def _take_turns(by_stratum: dict[str, list[tuple[int, int]]]) -> Iterator[tuple[str, tuple[int, int]]]:
    """One pair of each stratum after the other, until all have given all."""
    for place in range(max(map(len, by_stratum.values()), default=0)):
        for stratum, rows in sorted(by_stratum.items()):
            if place < len(rows):
                yield stratum, rows[place]


def _without_source(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "source_id"}


def name_stratum(stratify: str, methods: list[str], split: str) -> str:
    """The stratum of a pair, as the reports name it."""
    both = f"{methods[0]} against {methods[1]}"
    return {"methods": both, "split": split, "both": f"{both}, {split}", "none": "all pairs"}[stratify]


def _select_pairs(session: Session, settings: StudySettings) -> Select[int, int, Split, str, str]:
    """(pair, source, split, method of a, method of b) of what may be asked, in the order of the pairs' keys."""
    for name in settings.methods:
        check_method(session, name)
    a, b, method_a, method_b = aliased(Candidate), aliased(Candidate), aliased(Method), aliased(Method)
    statement = (
        select(Pair.id, Pair.source_id, Source.split, method_a.name, method_b.name)
        .join(Source, Source.id == Pair.source_id)
        .join(a, a.id == Pair.a_id)
        .join(b, b.id == Pair.b_id)
        .join(method_a, method_a.id == a.method_id)
        .join(method_b, method_b.id == b.method_id)
        # One that wants no judgments was set aside, and of a gold pair the answer is known.
        .where(Pair.gold_answer.is_(None), Pair.judgments_wanted > 0, Source.split.in_(settings.splits))
        .order_by(Pair.key)
    )
    if settings.methods:
        statement = statement.where(method_a.name.in_(settings.methods), method_b.name.in_(settings.methods))
    return statement


def check_gold(session: Session, settings: StudySettings) -> None:
    """Refuse a study that asks about more gold pairs than there are.

    Raises:
        UserError: as said, or a training pair that is no gold pair.
    """
    shown = [item.pair for item in settings.training]
    known = set(session.scalars(select(Pair.key).where(Pair.key.in_(shown), Pair.gold_answer.is_not(None))))
    if lacking := [key for key in shown if key not in known]:
        raise UserError(f"The training pair {lacking[0]} is no gold pair here; `annotate project gold FILE` adds them.")
    free = session.scalar(select(func.count()).where(Pair.gold_answer.is_not(None), Pair.key.not_in(shown))) or 0
    if free < settings.qualification:
        raise UserError(
            f"qualification asks {settings.qualification} gold pairs that the training does not show, and there are "
            f"{free}. Add gold pairs, or ask fewer."
        )
    if settings.stop_after_wrong > free - settings.qualification:
        raise UserError(
            f"stop_after_wrong is {settings.stop_after_wrong}, and {free - settings.qualification} gold pairs are left "
            "for the task. Add gold pairs, or let it be 0."
        )


def check_enough(drawn: list[dict[str, Any]], settings: StudySettings) -> None:
    """Refuse a study in which one participant would run out of pairs.

    Raises:
        UserError: as said.
    """
    if not drawn:
        raise UserError("No pair fits this study: make pairs first, or name other methods or splits.")
    photos: dict[int, int] = defaultdict(int)
    for row in drawn:
        photos[row["source_id"]] += 1
    cap = settings.answers_per_photo or len(drawn)
    most = sum(min(cap, number) for number in photos.values())
    if most < settings.answers:
        raise UserError(
            f"One participant can be asked about {most} of the {len(drawn)} pairs of this study, and `answers` is "
            f"{settings.answers}. Let it be {most} or fewer, or give the study more pairs."
        )


def count_wanted(session: Session, study: Study) -> tuple[int, int]:
    """(answers that the pairs of a study want, those that there are)."""
    sums = select(func.coalesce(func.sum(StudyPair.wanted), 0), func.coalesce(func.sum(StudyPair.done), 0))
    wanted, done = session.execute(sums.where(StudyPair.study_id == study.id)).one()
    return int(wanted), int(done)


def get_study(session: Session, name: str) -> Study:
    """The study of that name.

    Raises:
        UserError: there is none; the message names those there are.
    """
    study = session.scalar(select(Study).where(Study.name == name.strip()))
    if study is None:
        known = ", ".join(session.scalars(select(Study.name).order_by(Study.name).limit(20))) or "none yet"
        raise UserError(f"There is no study called {name[:60]!r}. Known: {known}.")
    return study


def find_by_link(session: Session, link: str) -> Study | None:
    """The study of a public address's last part."""
    return session.scalar(select(Study).where(Study.link == link))


def lock_study(session: Session, study: Study) -> None:
    """Let those who come, and those who add to the ledger, wait for each other; a writer on SQLite is alone anyway."""
    session.execute(select(Study.id).where(Study.id == study.id).with_for_update(key_share=True))


def set_state(session: Session, study: Study, state: StudyState) -> None:
    """Open, pause or close a study; what is so already stays so.

    Raises:
        UserError: it is closed, or was never open.
    """
    if study.state is state:
        return
    if state not in ALLOWED[study.state]:
        raise UserError(f"The study {study.name!r} is {study.state.value}; that cannot become {state.value}.")
    study.state = state
    if state is StudyState.open and study.opened_at is None:
        study.opened_at = utc_now()
    if state is StudyState.closed:
        study.closed_at = utc_now()
    note_event(session, study.id, None, state.value)


def change_settings(session: Session, study: Study, settings: StudySettings) -> None:
    """Replace a draft's settings; its pairs are drawn anew only by a new study.

    Raises:
        UserError: people have come already, or what is drawn would change.
    """
    if study.state is not StudyState.draft:
        raise UserError(f"The study {study.name!r} is {study.state.value}: its settings are what people agreed to.")
    before = load_study_settings(study)
    drawing = ("answers_per_pair", "pairs", "methods", "splits", "stratify", "answers_per_stratum")
    if changed := [name for name in drawing if getattr(before, name) != getattr(settings, name)]:
        raise UserError(f"{changed[0]} says which pairs are drawn, which is done; make a new study.")
    check_gold(session, settings)
    study.settings = settings.model_dump(mode="json")


def note_event(session: Session, study_id: int, participant_id: int | None, kind: str, **detail: object) -> None:
    """Keep what happened, with its reason. Nothing in it may be a panel's id of a person."""
    session.add(StudyEvent(study_id=study_id, participant_id=participant_id, kind=kind, detail=detail))

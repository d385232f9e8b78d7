"""Make pairs of candidates, and choose the pair that a person sees next.

`next_pair` is one function from the state of the database to a lease. The order of showing is `_pick_queued`'s: at
random, or by the shortlists that `annotate.labeler.active` writes whenever a labeler is fitted, with a share at random.

Why a pair was shown is kept with its judgment (`Picked`), since accuracy may be measured only on pairs drawn at random.
So that the random picks stay a fair sample while active orders take pairs out, they have a reserve that no active order
ever touches: the pairs of the val and test splits, and some three in sixteen of the train split by the pair's key.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    union_all,
    update,
)
from sqlalchemy.orm import Session, aliased

from annotate.judging.people import lock_person
from db.errors import UserError
from db.models import Candidate, Choice, Judgment, Lease, Method, Pair, Picked, Shortlist, Side, Source, Split, utc_now
from db.project import ProjectSettings
from db.records import candidate_key, insert_row, pair_key

SHUFFLE_RANGE = 2**31
GIVEN_BACK_SECONDS = 10.0
"""For so long a page that went may come back, as a reload does, and find its own pairs again."""
INSERT_BATCH = 5_000
RESERVED_LAST_DIGITS = "012"
ACTIVE_ORDERS = (Picked.uncertain, Picked.disagreement, Picked.diverse)


@dataclass
class PairReport:
    """Result of `make_pairs`. Counts of pairs, but for the two of sources."""

    added: int = 0
    existing: int = 0
    identical: int = 0
    """Left out: both candidates show the same pixels, so there is nothing to judge."""
    set_aside: int = 0
    """Pairs of the same pixels that were there, and are not asked any more."""
    sources_with_pairs: int = 0
    sources_without_pairs: int = 0
    """Sources with fewer than two candidates (or without the named method)."""


@dataclass(frozen=True)
class _Row:
    candidate_id: int
    key: str
    method: str
    image_id: int
    split: Split


def make_pairs(
    session: Session,
    settings: ProjectSettings,
    *,
    per_source: int | None = None,
    against: str | None = None,
    seed: int = 0,
    pixels: Mapping[int, str] | None = None,
) -> PairReport:
    """Pair the candidates of each source; pairs that are there already stay as they are.

    Args:
        per_source: at most this many pairs of a source, drawn with `seed`; None takes all.
        against: only pairs in which one candidate is of this method; None takes all.
        pixels: `annotate.ingest.equal_pixels.hash_candidates`; without it only the same file is known to look the same.
    Raises:
        UserError: no such method, or `per_source` below 1.
    """
    if per_source is not None and per_source < 1:
        raise UserError(f"{per_source} pairs per source: give 1 or more.")
    if against is not None and session.scalar(select(Method.id).where(Method.name == against)) is None:
        known = ", ".join(session.scalars(select(Method.name).order_by(Method.name))) or "none yet"
        raise UserError(f"There is no method called {against!r}. Known: {known}.")
    report = PairReport()
    batch: list[dict[str, object]] = []
    for source_id, source_key, rows in _candidates_by_source(session):
        combinations = []
        for first, second in itertools.combinations(rows, 2):
            if against is not None and against not in (first.method, second.method):
                continue
            if same_picture(first.image_id, second.image_id, pixels or {}):
                report.identical += 1
                continue
            combinations.append((first, second))
        if not combinations:
            report.sources_without_pairs += 1
            continue
        report.sources_with_pairs += 1
        if per_source is not None and per_source < len(combinations):
            combinations = random.Random(f"{seed}\n{source_key}").sample(combinations, per_source)
        batch.extend(_pair_row(source_id, first, second, settings) for first, second in combinations)
        if len(batch) >= INSERT_BATCH:
            _insert_new(session, batch, report)
            batch = []
    _insert_new(session, batch, report)
    return report


def same_picture(first: int, second: int, pixels: Mapping[int, str]) -> bool:
    """Whether two images, by id, are one file or have the same pixels."""
    return first == second or (first in pixels and pixels[first] == pixels.get(second))


def _candidates_by_source(session: Session) -> Iterator[tuple[int, str, list[_Row]]]:
    """(source id, source key, its candidates by id) of every source, those without candidates too."""
    statement = (
        select(Source.id, Source.key, Source.split, Candidate.id, Candidate.image_id, Candidate.seed, Method.name)
        .outerjoin(Candidate, Candidate.source_id == Source.id)
        .outerjoin(Method, Candidate.method_id == Method.id)
        .order_by(Source.id, Candidate.id)
        .execution_options(yield_per=10_000)
    )
    for (source_id, source_key), group in itertools.groupby(
        session.execute(statement), key=lambda row: (row[0], row[1])
    ):
        rows = [
            _Row(candidate_id, candidate_key(source_key, name, seed), name, image_id, split)
            for _, _, split, candidate_id, image_id, seed, name in group
            if candidate_id is not None
        ]
        yield source_id, source_key, rows


def _pair_row(source_id: int, first: _Row, second: _Row, settings: ProjectSettings) -> dict[str, object]:
    key, first_is_a = pair_key(first.key, second.key)
    a, b = (first, second) if first_is_a else (second, first)
    return {
        "key": key,
        "source_id": source_id,
        "a_id": a.candidate_id,
        "b_id": b.candidate_id,
        "shuffle_key": compute_shuffle_key(key, settings.seed),
        "reserved": is_reserved(key, first.split),
        "judgments_wanted": wanted_judgments(first.split, settings),
        "judgment_count": 0,
        "created_at": utc_now(),
    }


def compute_shuffle_key(key: str, seed: int) -> int:
    """Place of a pair in the random order of showing: 0 … 2^31 − 1, fixed by its key and the project's seed."""
    return random.Random(f"{seed}\n{key}").randrange(SHUFFLE_RANGE)


def is_reserved(key: str, split: Split) -> bool:
    """Whether a pair is shown by random picks only.

    By the pair's key, a hash: the same in every database, and independent of the pair's place in the shuffled order.
    """
    return split is not Split.train or key[-1] in RESERVED_LAST_DIGITS


def wanted_judgments(split: Split, settings: ProjectSettings) -> int:
    """Return the number of judgments that a pair of that split takes."""
    return settings.judgments_per_test_pair if split is Split.test else settings.judgments_per_pair


def _insert_new(session: Session, batch: list[dict[str, object]], report: PairReport) -> None:
    present: set[str] = set()
    for start in range(0, len(batch), 500):
        chunk = batch[start : start + 500]
        present.update(session.scalars(select(Pair.key).where(Pair.key.in_([row["key"] for row in chunk]))))
    new = [row for row in batch if row["key"] not in present]
    if new:
        session.execute(insert(Pair), new)
    report.added += len(new)
    report.existing += len(batch) - len(new)


# The statements of the labelling page's every answer are built once: building one takes longer than running it. Those
# that bring no rows of the session's own go to its connection, since the session makes three times as much of each.
# Their parameters: asker (person id), besides (pair ids), level, start (a shuffle_key), pair_id and some of their own.
ASKER: BindParameter[int] = bindparam("asker")
BESIDES: BindParameter[list[int]] = bindparam("besides", expanding=True)
Walk = tuple[Select[int], Select[int]]
PROLONG = (
    update(Lease).where(Lease.person_id == ASKER, Lease.pair_id.in_(BESIDES)).values(expires_at=bindparam("until"))
)
INSERT_LEASE = insert(Lease)
# A lease that its person is just prolonging is locked, and so passed over.
EXPIRED = select(Lease.id).where(Lease.expires_at < bindparam("now")).with_for_update(skip_locked=True)
DELETE_EXPIRED = delete(Lease).where(Lease.id.in_(EXPIRED))
GIVE_BACK = (
    update(Lease)
    .where(Lease.person_id == ASKER, Lease.pair_id.in_(BESIDES), Lease.expires_at > bindparam("until"))
    .values(expires_at=bindparam("until"))
)
# Locked, so that none is deleted as expired by another person's request while it is prolonged. Before DELETE_EXPIRED:
# who waits here holds no lease of others yet, so that no two requests wait for each other.
HELD_BESIDES = (
    select(Lease.id)
    .where(Lease.person_id == ASKER, Lease.pair_id.not_in(BESIDES), Lease.expires_at >= bindparam("now"))
    .order_by(Lease.id)
    .limit(bindparam("count"))
    .with_for_update()
)
NOT_SEEN = (
    ~exists().where(Judgment.pair_id == Pair.id, Judgment.person_id == ASKER, Judgment.superseded_at.is_(None)),
    ~exists().where(Lease.pair_id == Pair.id, Lease.person_id == ASKER),
    Pair.id.not_in(BESIDES),
)
SLOTS_HELD = select(func.count(Lease.id)).where(Lease.pair_id == Pair.id, Lease.repeat_no == 0).scalar_subquery()
WANTED = (*NOT_SEEN, Pair.judgments_wanted - Pair.judgment_count - SLOTS_HELD > 0)
QUEUED = (Pair.queue_level == bindparam("level"), *WANTED)
STILL_WANTED = select(Pair.id).where(Pair.id == bindparam("pair_id"), Pair.queue_level.is_not(None), *WANTED)
STILL_QUEUED = select(Pair.id).where(Pair.id == bindparam("pair_id"), *QUEUED)
NEXT_LEVEL = select(func.min(Pair.queue_level)).where(Pair.queue_level > bindparam("above"))
OF_RESERVE = Pair.reserved == bindparam("reserved")
NEXT_LEVEL_OF = NEXT_LEVEL.where(OF_RESERVE)
ANY_SHORTLIST = select(Shortlist.place).limit(1)
LISTED = (
    select(Pair.id)
    .join(Shortlist, Shortlist.pair_id == Pair.id)
    .where(Shortlist.picked == bindparam("picked"), Pair.queue_level.is_not(None), *WANTED)
    .order_by(Shortlist.place)
    .limit(1)
    .with_for_update(skip_locked=True, key_share=True, of=Pair)
)


# From the leases, which are few: from the pairs it would walk over all that the asker has judged.
_Theirs = aliased(Lease)
WITH_OTHERS = (
    select(func.count(_Theirs.pair_id.distinct()))
    .join(Pair, Pair.id == _Theirs.pair_id)
    .where(_Theirs.person_id != ASKER, _Theirs.repeat_no == 0, Pair.queue_level.is_not(None), *NOT_SEEN[:2])
)


def _walk(*conditions: ColumnElement[bool]) -> Walk:
    """Statements for the first pair that fits: at or after `start` in the shuffled order, and before it."""
    first = select(Pair.id).where(*conditions).order_by(Pair.shuffle_key).limit(1)
    # PostgreSQL: a pair that another request is judging or leasing is passed over rather than waited for.
    first = first.with_for_update(skip_locked=True, key_share=True, of=Pair)
    return first.where(Pair.shuffle_key >= bindparam("start")), first.where(Pair.shuffle_key < bindparam("start"))


QUEUE = _walk(*QUEUED)
QUEUE_OF = _walk(OF_RESERVE, *QUEUED)
# A pair that wants no judgments at all was set aside: its images are equal (annotate.ingest.equal_pixels).
GOLD = _walk(Pair.gold_answer.in_(["a", "b", "tie"]), Pair.judgments_wanted > 0, *NOT_SEEN)
SIDES_SHOWN = union_all(
    select(Judgment.shown_left).where(
        Judgment.pair_id == bindparam("pair_id"), Judgment.repeat_no == 0, Judgment.superseded_at.is_(None)
    ),
    select(Lease.shown_left).where(Lease.pair_id == bindparam("pair_id"), Lease.repeat_no == 0),
)
FIRST_LOOK = (Judgment.person_id == ASKER, Judgment.repeat_no == 0, Judgment.superseded_at.is_(None))
OWN_FIRST_LOOKS = select(Judgment.id).where(*FIRST_LOOK)
_Repeat = aliased(Judgment)
REPEATABLE = (
    select(Judgment.pair_id, Judgment.shown_left)
    .join(Pair, Pair.id == Judgment.pair_id)
    .where(
        *FIRST_LOOK,
        Judgment.choice != Choice.skip,
        Pair.gold_answer.is_(None),
        Pair.judgments_wanted > 0,
        Judgment.pair_id.not_in(BESIDES),
        Judgment.id.between(bindparam("lower"), bindparam("upper")),
        ~exists().where(
            _Repeat.pair_id == Judgment.pair_id,
            _Repeat.person_id == ASKER,
            _Repeat.repeat_no == 1,
            _Repeat.superseded_at.is_(None),
        ),
        ~exists().where(Lease.pair_id == Judgment.pair_id, Lease.person_id == ASKER),
    )
    .order_by(Judgment.id)
    .limit(1)
)


def lease_pairs(
    session: Session,
    person_id: int,
    settings: ProjectSettings,
    rng: random.Random,
    *,
    count: int,
    holding: Sequence[int],
) -> list[Lease]:
    """Up to `count` pairs for a person to look at, those first that they hold a lease on and their page does not show.

    Args:
        holding: ids of the pairs that the person's page has; their leases are prolonged, also where they ran out and
            nobody else asked since.
    Returns:
        leases, fewer than `count` where no more pairs want this person's judgment (on PostgreSQL also for the moment
        in which the last ones are locked by another person's request).
    """
    lock_person(session, person_id)
    now = utc_now()
    expires_at = now + timedelta(seconds=settings.lease_seconds)
    asking = {"asker": person_id, "besides": list(holding)}
    session.connection().execute(PROLONG, {**asking, "until": expires_at})
    held = session.connection().scalars(HELD_BESIDES, {**asking, "now": now, "count": count}).all()
    leases = [session.get_one(Lease, lease_id, populate_existing=True) for lease_id in held]
    for lease in leases:
        lease.expires_at = expires_at
    session.flush()
    session.connection().execute(DELETE_EXPIRED, {"now": now})
    while len(leases) < count:
        following = next_pair(session, person_id, settings, rng, expires_at, besides=holding)
        if following is None:
            break
        leases.append(following)
    return leases


def release_leases(session: Session, person_id: int, pair_ids: Sequence[int]) -> None:
    """Give pairs back that a person's page does not show any more: others get them GIVEN_BACK_SECONDS later."""
    lock_person(session, person_id)
    until = utc_now() + timedelta(seconds=GIVEN_BACK_SECONDS)
    session.connection().execute(GIVE_BACK, {"asker": person_id, "besides": list(pair_ids), "until": until})


def count_with_others(session: Session, person_id: int) -> int:
    """Pairs that want this person's judgment but for the others who are looking at them just now."""
    return int(session.connection().scalar(WITH_OTHERS, {"asker": person_id}) or 0)


def next_pair(
    session: Session,
    person_id: int,
    settings: ProjectSettings,
    rng: random.Random,
    expires_at: datetime,
    *,
    besides: Sequence[int] = (),
) -> Lease | None:
    """Lease the pair that this person sees next; None when none wants their judgment.

    The next of the project's order; now and then in its place a gold pair, or a repeat of an own pair with its sides
    swapped. Never a pair that this person has judged or holds, nor one whose open slots are all leased to others.

    Args:
        besides: ids of pairs that are not wanted.
    """
    asking = {"asker": person_id, "besides": list(besides)}
    lease = _pick_queued(session, asking, settings, rng)
    if lease is None:
        return None  # Repeats and gold pairs accompany the queue; alone they would keep a finished person going.
    draw = rng.random()
    if draw < settings.repeat_share:
        lease = _pick_repeat(session, asking, settings.repeat_gap, rng) or lease
    elif draw < settings.repeat_share + settings.gold_share:
        lease = _pick_gold(session, asking, rng) or lease
    lease.expires_at = expires_at
    insert_row(session, INSERT_LEASE, lease)
    return lease


def _first_from(session: Session, walk: Walk, rng: random.Random, **values: object) -> int | None:
    """First pair that fits from a random place in the shuffled order on, then from its beginning.

    The random place keeps the look-up short: without it every pair that this person may not see would be walked over
    again each time, since those gather at the front.
    """
    values["start"] = rng.randrange(SHUFFLE_RANGE)
    for statement in walk:
        pair_id = session.connection().scalar(statement, values)
        if pair_id is not None:
            return pair_id
    return None


def _pick_queued(
    session: Session, asking: dict[str, Any], settings: ProjectSettings, rng: random.Random
) -> Lease | None:
    """A pair of the queue: at random, or else `random_share` of them at random and the others by an active order.

    Before a labeler has written shortlists every order is random. Where the order has no pair for this person, the
    other pairs follow, so that nobody is sent away while a pair wants their judgment.
    """
    listed = session.connection().scalar(ANY_SHORTLIST) is not None
    if settings.order == "random" or not listed:
        return _pick_at_random(session, asking, rng, listed=listed)
    active = rng.choice(ACTIVE_ORDERS) if settings.order == "mixed" else Picked(settings.order)
    picks = [active, Picked.leftover, Picked.random]
    if rng.random() < settings.random_share:
        picks = [Picked.random, active, Picked.leftover]
    for picked in picks:
        if picked is active:
            pair_id = _find_listed(session, asking, picked)
        else:
            pair_id = _find_queued(session, asking, rng, reserved=picked is Picked.random)
        if pair_id is not None:
            return _make_lease(session, asking, pair_id, picked, rng)
    return None


def _pick_at_random(session: Session, asking: dict[str, Any], rng: random.Random, *, listed: bool) -> Lease | None:
    """Any pair of the queue; where active orders have been at work, only a reserved one counts as picked at random."""
    pair_id = _find_queued(session, asking, rng)
    if pair_id is None:
        return None
    fair = not listed or session.scalar(select(Pair.reserved).where(Pair.id == pair_id))
    return _make_lease(session, asking, pair_id, Picked.random if fair else Picked.leftover, rng)


def _make_lease(session: Session, asking: dict[str, Any], pair_id: int, picked: Picked, rng: random.Random) -> Lease:
    side = _draw_left(session, pair_id, rng)
    return Lease(pair_id=pair_id, person_id=asking["asker"], repeat_no=0, shown_left=side, picked=picked)


def _queue_levels(session: Session, of: dict[str, bool]) -> Iterator[int]:
    """The numbers of judgments that waiting pairs have, upwards.

    One look into the index for each; SELECT DISTINCT would walk over all waiting pairs.
    """
    statement = NEXT_LEVEL_OF if of else NEXT_LEVEL
    level: int | None = -1
    while (level := session.connection().scalar(statement, {"above": level, **of})) is not None:
        yield level


def _find_queued(
    session: Session, asking: dict[str, Any], rng: random.Random, *, reserved: bool | None = None
) -> int | None:
    """Least-judged first, random within; of the reserve, of the others, or (None) of all pairs."""
    of = {} if reserved is None else {"reserved": reserved}
    walk = QUEUE_OF if of else QUEUE
    alone = session.get_bind().dialect.name == "sqlite"
    for level in _queue_levels(session, of):
        while (pair_id := _first_from(session, walk, rng, level=level, **of, **asking)) is not None:
            # PostgreSQL locked the row only now: another person's lease may have come in after it was looked at.
            if (
                alone
                or session.connection().scalar(STILL_QUEUED, {"pair_id": pair_id, "level": level, **asking}) is not None
            ):
                return pair_id
    return None


def _find_listed(session: Session, asking: dict[str, Any], picked: Picked) -> int | None:
    """The first pair of an order's shortlist that wants this person's judgment."""
    while (pair_id := session.connection().scalar(LISTED, {"picked": picked, **asking})) is not None:
        if session.connection().scalar(STILL_WANTED, {"pair_id": pair_id, **asking}) is not None:  # as in _find_queued
            return pair_id
    return None


def _draw_left(session: Session, pair_id: int, rng: random.Random) -> Side:
    """Random for the 1st, 3rd … showing of a pair, for each next one the side that balances it."""
    shown = session.connection().scalars(SIDES_SHOWN, {"pair_id": pair_id}).all()
    balance = shown.count(Side.a) - shown.count(Side.b)
    if balance == 0:
        return rng.choice([Side.a, Side.b])
    return Side.b if balance > 0 else Side.a


def _pick_gold(session: Session, asking: dict[str, Any], rng: random.Random) -> Lease | None:
    """A pair with a known answer that this person has not seen; everyone sees each, so slots do not matter."""
    pair_id = _first_from(session, GOLD, rng, **asking)
    if pair_id is None:
        return None
    side = rng.choice([Side.a, Side.b])
    return Lease(pair_id=pair_id, person_id=asking["asker"], repeat_no=0, shown_left=side)


def _pick_repeat(session: Session, asking: dict[str, Any], gap: int, rng: random.Random) -> Lease | None:
    """An own pair with at least `gap` judgments since and not repeated yet, sides swapped."""
    last = session.scalar(OWN_FIRST_LOOKS.order_by(Judgment.id.desc()).offset(gap).limit(1), asking)
    if last is None:
        return None
    first = session.scalars(OWN_FIRST_LOOKS.order_by(Judgment.id).limit(1), asking).one()
    start = rng.randint(first, last)
    for lower, upper in ((start, last), (first, start - 1)):
        row = session.connection().execute(REPEATABLE, {"lower": lower, "upper": upper, **asking}).first()
        if row is not None:
            side = Side.b if row.shown_left == Side.a else Side.a
            return Lease(pair_id=row.pair_id, person_id=asking["asker"], repeat_no=1, shown_left=side)
    return None

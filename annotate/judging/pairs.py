"""Make pairs of candidates, and choose the pair or task that a person sees next.

`next_pair` is one function from the state of the database to a lease. First comes what a training waits for. Then the
order of showing is `_pick_queued`'s: at random, or by the shortlists that `annotate.labeler.active` writes whenever a
labeler is fitted, with a share at random.

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
from functools import cache, partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sqlalchemy import Executable, select
from sqlalchemy.orm import Session

from annotate.judging.people import lock_person
from annotate.judging.queue import (
    DELETE_EXPIRED,
    GIVE_BACK,
    INSERT_LEASE,
    OWN_FIRST_LOOKS,
    OWN_LEASES,
    PAIR_QUEUE,
    PROLONG,
    SIZE_OF_TASK,
    TASK_QUEUE,
    Queue,
    Walk,
)
from db.errors import UserError
from db.models import Asked, Candidate, Judgment, Lease, Method, Picked, Side, Source, utc_now
from db.pairs import SHUFFLE_RANGE, Row, insert_new_pairs, pair_row
from db.project import ProjectSettings
from db.records import candidate_key, insert_row
from metrics.rankings import LETTERS

PROLONGED_AT = 0.1
"""A lease is prolonged once this share of its time has passed: not with every answer, which would write it anew."""
GIVEN_BACK_SECONDS = 10.0
"""For so long a page that went may come back, as a reload does, and find its own pairs again."""
INSERT_BATCH = 5_000


class Draw(Protocol):
    """Leases what a person sees next, until a moment, besides the pairs of these ids; None where there is nothing."""

    def __call__(self, expires_at: datetime, *, besides: Sequence[int]) -> Lease | None: ...


ACTIVE_ORDERS = (Picked.uncertain, Picked.disagreement, Picked.diverse)


@dataclass
class PairReport:
    """Result of `make_pairs`. Counts of pairs, but for the two of sources."""

    added: int = 0
    existing: int = 0
    identical: int = 0
    """Left out: both candidates show the same pixels, so there is nothing to judge."""
    sources_with_pairs: int = 0
    sources_without_pairs: int = 0
    """Sources with fewer than two candidates (or without the named method)."""


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
    check_method(session, against)
    report = PairReport()
    batch: list[dict[str, object]] = []
    for source_id, source_key, rows in candidates_by_source(session):
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
        batch.extend(pair_row(source_id, first, second, settings) for first, second in combinations)
        if len(batch) >= INSERT_BATCH:
            _count_new(report, batch, insert_new_pairs(session, batch))
            batch = []
    _count_new(report, batch, insert_new_pairs(session, batch))
    return report


def _count_new(report: PairReport, batch: Sequence[object], added: int) -> None:
    report.added += added
    report.existing += len(batch) - added


def check_method(session: Session, name: str | None) -> None:
    """Refuse the name of a method that is not there.

    Raises:
        UserError: as said.
    """
    if name is not None and session.scalar(select(Method.id).where(Method.name == name)) is None:
        known = ", ".join(session.scalars(select(Method.name).order_by(Method.name))) or "none yet"
        raise UserError(f"There is no method called {name!r}. Known: {known}.")


def same_picture(first: int, second: int, pixels: Mapping[int, str]) -> bool:
    """Whether two images, by id, are one file or have the same pixels."""
    return first == second or (first in pixels and pixels[first] == pixels.get(second))


def candidates_by_source(session: Session) -> Iterator[tuple[int, str, list[Row]]]:
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
            Row(candidate_id, candidate_key(source_key, name, seed), name, image_id, split)
            for _, _, split, candidate_id, image_id, seed, name in group
            if candidate_id is not None
        ]
        yield source_id, source_key, rows


def lease_pairs(
    session: Session,
    person_id: int,
    settings: ProjectSettings,
    rng: random.Random,
    *,
    count: int,
    holding: Sequence[int],
    holding_tasks: Sequence[int] = (),
    draw: Draw | None = None,
) -> list[Lease]:
    """Up to `count` pairs or tasks for a person to look at, those first that they hold and their page does not show.

    Args:
        holding: ids of the pairs that the person's page has; their leases are prolonged, also where they ran out and
            nobody else asked since.
        holding_tasks: ids of the tasks that it has.
        draw: what leases the next one; `next_pair` where it is not told.
    Returns:
        leases, fewer than `count` where no more want this person's judgment (on PostgreSQL also for the moment in
        which the last ones are locked by another person's request).
    """
    lock_person(session, person_id)
    now = utc_now()
    expires_at = now + timedelta(seconds=settings.lease_seconds)
    own = session.connection().execute(OWN_LEASES, {"asker": person_id, "now": now}).all()
    shown = {lease.id for lease in own if lease.pair_id in holding or lease.task_id in holding_tasks}
    soon = expires_at - settings.lease_seconds * PROLONGED_AT * timedelta(seconds=1)
    if any(lease.expires_at < soon for lease in own if lease.id in shown):
        asking = {"asker": person_id, "pairs": list(holding), "tasks": list(holding_tasks)}
        session.connection().execute(PROLONG, {**asking, "until": expires_at})
    held = [lease.id for lease in own if lease.id not in shown and lease.expires_at >= now][:count]
    leases = [session.get_one(Lease, lease_id, populate_existing=True) for lease_id in held]
    for lease in leases:
        lease.expires_at = expires_at
    session.flush()
    if not own or own[0].any_expired:
        session.connection().execute(DELETE_EXPIRED, {"now": now})
    draw = draw or partial(next_pair, session, person_id, settings, rng, besides_tasks=holding_tasks)
    while len(leases) < count:
        following = draw(expires_at, besides=holding)
        if following is None:
            break
        leases.append(following)
    return leases


def release_leases(session: Session, person_id: int, pair_ids: Sequence[int], task_ids: Sequence[int] = ()) -> None:
    """Give back what a person's page does not show any more: others get it GIVEN_BACK_SECONDS later."""
    lock_person(session, person_id)
    until = utc_now() + timedelta(seconds=GIVEN_BACK_SECONDS)
    these = {"asker": person_id, "pairs": list(pair_ids), "tasks": list(task_ids)}
    session.connection().execute(GIVE_BACK, {**these, "until": until})


def count_with_others(session: Session, person_id: int, settings: ProjectSettings) -> int:
    """What wants this person's judgment but for the others who are looking at it just now."""
    statement = own_queue(settings).with_others
    return int(session.connection().scalar(statement, {"asker": person_id}) or 0)


def own_queue(settings: ProjectSettings) -> Queue:
    """The queue that a project shows: of its tasks where it asks about more than two at once, else of its pairs."""
    return PAIR_QUEUE if settings.task_size == 2 else TASK_QUEUE


def next_pair(
    session: Session,
    person_id: int,
    settings: ProjectSettings,
    rng: random.Random,
    expires_at: datetime,
    *,
    besides: Sequence[int] = (),
    besides_tasks: Sequence[int] = (),
) -> Lease | None:
    """Lease the pair or task that this person sees next; None when none wants their judgment.

    What a training waits for, pair or task; else the next of the project's order: a pair, or a task of any size where
    the project's `task_size` is above 2 (its pairs do not follow when the tasks are done, for they are the same
    comparisons once more). Now and then in the place of the latter a gold one, a repeat of an own one with the sides
    swapped or the places changed, or, by `mixed_share`, one asked in another way. Never one that this person has judged
    or holds, nor one whose open slots are all leased to others.

    Args:
        besides: ids of pairs that are not wanted.
        besides_tasks: ids of tasks that are not wanted.
    """
    queue = own_queue(settings)
    awaited, listed, first_level = session.connection().execute(queue.what_waits).one()
    turn = Turn(session, person_id, settings, rng, list(besides), list(besides_tasks), queue, first_level)
    lease = _pick_awaited(turn) if awaited else None
    if lease is not None:
        lease.expires_at = expires_at
        insert_row(session, INSERT_LEASE, lease)
        return lease
    lease = _pick_queued(turn, queue, listed=listed)
    if lease is None:
        return None  # The others accompany the queue; alone they would keep a finished person going.
    draw = rng.random()
    if draw < settings.repeat_share:
        lease = pick_repeat(turn, queue) or lease
    elif draw < settings.repeat_share + settings.gold_share:
        lease = pick_gold(turn, queue) or lease
    elif settings.mixed_share and rng.random() < settings.mixed_share:
        lease = _ask_otherwise(turn, queue, lease, listed=listed)
    lease.expires_at = expires_at
    insert_row(session, INSERT_LEASE, lease)
    return lease


@dataclass(frozen=True)
class Turn:
    """One person's request for something to see."""

    session: Session
    person_id: int
    settings: ProjectSettings
    rng: random.Random
    besides: list[int]
    besides_tasks: list[int]
    queue: Queue
    """The project's own."""
    first_level: int | None
    """Of that queue."""

    def scalar(self, statement: Executable, queue: Queue, **values: object) -> Any:
        """The first value that one of a queue's statements finds for this person."""
        return self.session.connection().scalar(statement, {**self.asking(queue), **values})

    def asking(self, queue: Queue) -> dict[str, object]:
        """Parameters that the statements share."""
        return {"asker": self.person_id, "besides": self.besides if queue is PAIR_QUEUE else self.besides_tasks}


def _first_from(turn: Turn, queue: Queue, walk: Walk, **values: object) -> int | None:
    """The first that fits from a random place in the shuffled order on, then from its beginning.

    The random place keeps the look-up short: without it every pair that this person may not see would be walked over
    again each time, since those gather at the front.
    """
    start = turn.rng.randrange(SHUFFLE_RANGE)
    for statement in walk:
        found: int | None = turn.scalar(statement, queue, start=start, **values)
        if found is not None:
            return found
    return None


def _pick_awaited(turn: Turn) -> Lease | None:
    """One that a training waits for. Not at random: its images are of one restorer as it learns."""
    for queue in (TASK_QUEUE, PAIR_QUEUE):
        while (found := turn.scalar(queue.awaited, queue)) is not None:
            if turn.scalar(queue.still_wanted, queue, of=found) is not None:  # as in _find_queued
                return make_lease(turn, queue, found, Picked.leftover)
    return None


def _pick_queued(turn: Turn, queue: Queue, *, listed: bool) -> Lease | None:
    """One of the queue: at random, or else `random_share` of them at random and the others by an active order.

    Before a labeler has written shortlists every order is random. Where the order has none for this person, the
    others follow, so that nobody is sent away while one wants their judgment.

    Args:
        listed: whether there are shortlists.
    """
    settings, rng = turn.settings, turn.rng
    if settings.order == "random" or not listed:
        return _pick_at_random(turn, queue, listed=listed)
    active = rng.choice(ACTIVE_ORDERS) if settings.order == "mixed" else choose_picked(settings.order)
    picks = [active, Picked.leftover, Picked.random]
    if rng.random() < settings.random_share:
        picks = [Picked.random, active, Picked.leftover]
    for picked in picks:
        if picked is active:
            found = _find_listed(turn, queue, picked)
        else:
            found = _find_queued(turn, queue, reserved=picked is Picked.random)
        if found is not None:
            return make_lease(turn, queue, found, picked)
    return None


def choose_picked(order: str) -> Picked:
    """Why pairs of an active order are shown, as is kept: a spread is the disagreement of another committee."""
    return Picked.disagreement if order == "spread" else Picked(order)


def _pick_at_random(turn: Turn, queue: Queue, *, listed: bool) -> Lease | None:
    """Any of the queue; where active orders have been at work, only a reserved one counts as picked at random."""
    found = _find_queued(turn, queue)
    if found is None:
        return None
    fair = not listed or turn.scalar(queue.is_reserved, queue, of=found)
    return make_lease(turn, queue, found, Picked.random if fair else Picked.leftover)


def _ask_otherwise(turn: Turn, queue: Queue, lease: Lease, *, listed: bool) -> Lease:
    """The lease asked in one of the other ways by lot; one of the other queue where that way is of it.

    The same lease where the other queue has nothing for this person.
    """
    own = Asked.pair if queue is PAIR_QUEUE else Asked(turn.settings.asked)
    asked = turn.rng.choice([way for way in Asked if way is not own])
    if (asked is Asked.pair) is (queue is PAIR_QUEUE):
        lease.asked = asked
        return lease
    other = TASK_QUEUE if queue is PAIR_QUEUE else PAIR_QUEUE
    found = _pick_queued(turn, other, listed=listed)
    if found is not None:
        found.asked = asked
    return found or lease


def make_lease(turn: Turn, queue: Queue, found: int, picked: Picked) -> Lease:
    """Lease a pair or task, its sides or places drawn and balanced against its other showings."""
    shown = turn.session.connection().scalars(queue.shown, {"of": found}).all()
    if queue is PAIR_QUEUE:
        return _lease_of(turn, queue, found, draw_left(shown, turn.rng), picked=picked)
    size = turn.scalar(SIZE_OF_TASK, queue, of=found)
    return _lease_of(turn, queue, found, draw_places(shown, size, turn.rng), picked=picked)


def _lease_of(
    turn: Turn,
    queue: Queue,
    found: int,
    standing: Side | str,
    *,
    picked: Picked = Picked.random,
    repeat_no: int = 0,
    asked: Asked | None = None,
) -> Lease:
    # Every column is said, None too: one that is not would be read back from the database by who looks at it.
    of: dict[str, Any] = {"pair_id": None, "shown_left": None, "task_id": None, "places": None}
    if queue is PAIR_QUEUE:
        of |= {"pair_id": found, "shown_left": standing, "asked": Asked.pair}
    else:
        of |= {"task_id": found, "places": standing, "asked": asked or Asked(turn.settings.asked)}
    return Lease(person_id=turn.person_id, repeat_no=repeat_no, picked=picked, **of)


def _queue_levels(turn: Turn, queue: Queue, of: dict[str, bool]) -> Iterator[int]:
    """The numbers of judgments that waiting pairs or tasks have, upwards.

    One look into the index for each; SELECT DISTINCT would walk over all that wait.
    """
    statement = queue.next_level_of if of else queue.next_level
    level: int | None = -1
    if queue is turn.queue and not of:
        level = turn.first_level
        if level is None:
            return
        yield level
    while (level := turn.session.connection().scalar(statement, {"above": level, **of})) is not None:
        yield level


def _find_queued(turn: Turn, queue: Queue, *, reserved: bool | None = None) -> int | None:
    """Least-judged first, random within; of the reserve, of the others, or (None) of all."""
    of = {} if reserved is None else {"reserved": reserved}
    walk = queue.walk_of if of else queue.walk
    alone = turn.session.get_bind().dialect.name == "sqlite"
    for level in _queue_levels(turn, queue, of):
        while (found := _first_from(turn, queue, walk, level=level, **of)) is not None:
            # PostgreSQL locked the row only now: another person's lease may have come in after it was looked at.
            if alone or turn.scalar(queue.still_queued, queue, of=found, level=level) is not None:
                return found
    return None


def _find_listed(turn: Turn, queue: Queue, picked: Picked) -> int | None:
    """The first of an order's shortlist that wants this person's judgment."""
    while (found := turn.scalar(queue.listed, queue, picked=picked)) is not None:
        if turn.scalar(queue.still_wanted, queue, of=found) is not None:  # as in _find_queued
            return int(found)
    return None


def draw_left(shown: Sequence[Side], rng: random.Random) -> Side:
    """Random for the 1st, 3rd … showing of a pair, for each next one the side that balances it."""
    balance = shown.count(Side.a) - shown.count(Side.b)
    if balance == 0:
        return rng.choice([Side.a, Side.b])
    return Side.b if balance > 0 else Side.a


def draw_places(shown: Sequence[str], size: int, rng: random.Random) -> str:
    """Letters in the order in which they are to stand on the screen, each where it stood least so far; else by lot.

    After `size` showings every candidate has stood in every place once: what was drawn before always leaves such an
    order (a Latin rectangle can be completed).

    Args:
        shown: the places of the task's showings that count.
    """
    letters = LETTERS[:size]
    if not shown:
        return "".join(rng.sample(letters, size))
    orders, place = _list_orders(size), np.arange(size)
    stood = np.zeros((size, size), dtype=int)
    for one in shown:
        stood[place, [LETTERS.index(letter) for letter in one]] += 1
    cost = stood[place, orders].sum(axis=1)
    best = np.flatnonzero(cost == cost.min())
    return "".join(letters[letter] for letter in orders[best[rng.randrange(len(best))]])


@cache
def _list_orders(size: int) -> npt.NDArray[np.int_]:
    """(size!, size): every order of so many letters, by their numbers."""
    return np.array(list(itertools.permutations(range(size))))


def pick_gold(turn: Turn, queue: Queue) -> Lease | None:
    """One with a known answer that this person has not seen; everyone sees each, so slots do not matter.

    Gold pairs check people in a project of tasks too, after its gold tasks.
    """
    for one in (queue,) if queue is PAIR_QUEUE else (queue, PAIR_QUEUE):
        found = _first_from(turn, one, one.gold)
        if found is not None and one is PAIR_QUEUE:
            return _lease_of(turn, one, found, turn.rng.choice([Side.a, Side.b]))
        if found is not None:
            places = draw_places([], turn.scalar(SIZE_OF_TASK, one, of=found), turn.rng)
            return _lease_of(turn, one, found, places)
    return None


def pick_repeat(turn: Turn, queue: Queue) -> Lease | None:
    """An own one with at least `repeat_gap` judgments since and not repeated yet, asked as then, sides swapped.

    Of a task every candidate stands in another place.
    """
    asking, rng = turn.asking(queue), turn.rng
    latest = OWN_FIRST_LOOKS.order_by(Judgment.id.desc()).offset(turn.settings.repeat_gap).limit(1)
    last = turn.session.scalar(latest, asking)
    if last is None:
        return None
    first = turn.session.scalars(OWN_FIRST_LOOKS.order_by(Judgment.id).limit(1), asking).one()
    start = rng.randint(first, last)
    for lower, upper in ((start, last), (first, start - 1)):
        row = turn.session.connection().execute(queue.repeatable, {"lower": lower, "upper": upper, **asking}).first()
        if row is None:
            continue
        found, stood, asked = row
        if queue is PAIR_QUEUE:
            return _lease_of(turn, queue, found, Side.b if stood == Side.a else Side.a, repeat_no=1)
        return _lease_of(turn, queue, found, draw_places([stood], len(stood), rng), repeat_no=1, asked=asked)
    return None

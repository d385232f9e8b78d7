"""Order pairs and tasks so that those that teach the labeler most are judged next.

The `rank_` functions are query strategies, arrays in and indices out, best first. `write_shortlists` applies them to
the waiting pairs after a fit, and to the waiting tasks, whose value is the mean of their pairs';
`annotate.judging.pairs` then shows those of the project's order. Nothing of the reserve is ever a candidate here, so
that what is picked at random stays a fair sample.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Select, delete, func, insert, select
from sqlalchemy.orm import Session, aliased

from annotate.ingest.image_files import batches
from annotate.labeler.information import estimate_scale, gain_of_pairs, rank_information
from annotate.labeler.spread import load_spreads
from annotate.labeler.svm import Labeler, Training, compute_p_a, fit_bag
from annotate.measure.vectors import load_differences
from annotate.report.rank import load_answers
from db.models import Candidate, Judgment, Method, Pair, Picked, Shortlist, Task, TaskCandidate
from db.pairs import SHUFFLE_RANGE
from db.session import Database
from metrics.rankings import MAX_SIZE

MAX_CANDIDATES = 20_000
"""Waiting pairs that are ranked; of more, a part drawn at random."""
MAX_TASKS = 4_000
"""Waiting tasks that are ranked, likewise: each has 3 to 15 pairs."""
SHORTLIST_LENGTH = 500
"""Pairs of an order: as many as are judged between ten fits, and few enough that a used-up list is passed quickly."""
AT_ONCE_PER_SOURCE = 2
"""Pairs of one photo that an order takes before it has taken so many of every other: pairs of one photo are alike."""

Array = npt.NDArray[Any]


def rank_uncertain(p_a: Array) -> Array:
    """Indices of pairs, those first whose more likely answer is the least likely: the smallest margin |p_a − 1/2|.

    Args:
        p_a: (n,) calibrated probability that a is better; NaN where a metric value is missing.
    Returns:
        (m,) indices of the pairs that have a probability, ties in the order given.
    Source: Lewis & Gale, A Sequential Algorithm for Training Text Classifiers, 1994; with two answers the same as
        equations 2.1 to 2.3 (least confident, margin, entropy) of Settles, Active Learning Literature Survey, 2009.
    """
    return _smallest_first(np.abs(p_a - 0.5))


def rank_disagreement(bagged_p_a: Array) -> Array:
    """Indices of pairs, those first on which the labelers of a bag differ most.

    The difference is the mean Kullback-Leibler divergence of the labelers' answers from their mean answer: the part of
    the uncertainty that more labels can remove. A pair that all of them find even scores 0.

    Args:
        bagged_p_a: (labelers, n) probability that a is better; NaN where a metric value is missing.
    Returns:
        (m,) indices of the pairs that have probabilities, ties in the order given.
    Source: Abe & Mamitsuka, Query learning strategies using boosting and bagging, 1998, with the divergence of
        McCallum & Nigam, Employing EM and pool-based active learning for text classification, 1998.
    """
    return _smallest_first(-compute_disagreement(bagged_p_a))


def compute_disagreement(bagged_p_a: Array) -> Array:
    """(n,) nats by which the labelers of a bag differ on each pair, see `rank_disagreement`; NaN where one has none."""
    return np.asarray(_entropy(bagged_p_a.mean(axis=0)) - _entropy(bagged_p_a).mean(axis=0))


def _entropy(p: Array) -> Array:
    """Entropy of a two-sided draw in nats, by element."""
    inside = np.clip(p, 1e-12, 1 - 1e-12)  # keeps NaN
    return np.asarray(-inside * np.log(inside) - (1 - inside) * np.log1p(-inside))


def _smallest_first(scores: Array) -> Array:
    order = np.argsort(scores, kind="stable")
    return order[np.isfinite(scores[order])]


def rank_diverse(
    sources: Array, method_pairs: Array, judged_sources: Array, judged_method_pairs: Array, count: int
) -> Array:
    """Indices of pairs, spread evenly over sources and over pairs of methods.

    Greedily the pair whose source is judged or taken least often, among those the one whose pair of methods is; ties in
    the order given.

    Args:
        sources, method_pairs: (n,) ids of the waiting pairs.
        judged_sources, judged_method_pairs: (m,) the same of the pairs judged so far, each as often as it was judged.
        count: how many to rank.
    Returns:
        (min(n, count),) indices.
    Source: the strata of stratified sampling taken in turn (Cochran, Sampling Techniques, 1977, chapter 5); that
        diversity by itself is a strong query strategy: Hacohen et al., Active Learning on a Budget, 2022.
    """
    source, times_source = _count_judged(sources, judged_sources)
    method, times_method = _count_judged(method_pairs, judged_method_pairs)
    # One number that orders by source first: no count of methods reaches `step`.
    step = len(judged_method_pairs) + len(sources) + 1
    taken = np.zeros(len(sources), dtype=bool)
    ranked = []
    for _ in range(min(len(sources), count)):
        cost = times_source[source] * step + times_method[method]
        cost[taken] = np.iinfo(np.int64).max
        best = int(np.argmin(cost))
        taken[best] = True
        times_source[source[best]] += 1
        times_method[method[best]] += 1
        ranked.append(best)
    return np.array(ranked, dtype=np.intp)


def _count_judged(values: Array, judged: Array) -> tuple[Array, Array]:
    """((n,) number of each value, (k,) how often the value of each number was judged)."""
    names, numbers = np.unique(values, return_inverse=True)
    waiting = np.searchsorted(names, judged[np.isin(judged, names)])
    return numbers, np.bincount(waiting, minlength=len(names))


def spread_sources(ranked: Array, sources: Array, at_once: int = AT_ONCE_PER_SOURCE) -> Array:
    """The same indices in rounds: `at_once` of each source in their order, then as many more of each, and so on.

    Args:
        ranked: (m,) indices, best first.
        sources: (n,) source of each pair.
    """
    order = np.argsort(sources[ranked], kind="stable")  # by source, best first within
    by_source = sources[ranked][order]
    first = np.concatenate([[True], by_source[1:] != by_source[:-1]])[: len(ranked)]
    starts = np.maximum.accumulate(np.where(first, np.arange(len(ranked)), 0))
    place = np.empty(len(ranked), dtype=np.intp)
    place[order] = np.arange(len(ranked)) - starts
    return np.asarray(ranked[np.argsort(place // at_once, kind="stable")])


@dataclass(frozen=True)
class Candidates:
    """Pairs that an active order may show: (n,) ids of the pairs, their sources, and their pairs of methods."""

    pair_ids: Array
    sources: Array
    method_pairs: Array


_A, _B = aliased(Candidate), aliased(Candidate)


def load_candidates(session: Session, most: int, seed: int) -> Candidates:
    """At most `most` waiting pairs that are not reserved: least-judged first, drawn at random within."""
    rng = np.random.default_rng(seed)
    rows: list[Sequence[int]] = []
    for level in session.scalars(
        select(Pair.queue_level)
        .where(Pair.reserved.is_(False), Pair.queue_level.is_not(None))
        .distinct()
        .order_by(Pair.queue_level)
    ).all():
        waiting = _pair_columns().where(Pair.reserved.is_(False), Pair.queue_level == level)
        start = int(rng.integers(SHUFFLE_RANGE))
        for part in (Pair.shuffle_key >= start, Pair.shuffle_key < start):
            statement = waiting.where(part).order_by(Pair.shuffle_key, Pair.key).limit(most - len(rows))
            rows += [tuple(row) for row in session.execute(statement)]
    return Candidates(*_columns_of(rows))


def _pair_columns() -> Select[int, int, int, int]:
    """Id, source and methods of pairs."""
    return (
        select(Pair.id, Pair.source_id, _A.method_id, _B.method_id)
        .join(_A, _A.id == Pair.a_id)
        .join(_B, _B.id == Pair.b_id)
    )


def _columns_of(rows: list[Sequence[int]]) -> tuple[Array, Array, Array]:
    """(ids, sources, pairs of methods as one number each, whichever way round) of rows of `_pair_columns`."""
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    low, high = table[:, 2:].min(axis=1), table[:, 2:].max(axis=1)
    return table[:, 0], table[:, 1], low * 2**32 + high


def load_judged(session: Session) -> tuple[Array, Array]:
    """((m,) sources, (m,) pairs of methods) of the judged pairs, each as often as it was judged."""
    times = func.count(Judgment.id)
    statement = (
        _pair_columns()
        .add_columns(times)
        .join(Judgment, Judgment.pair_id == Pair.id)
        .where(Judgment.superseded_at.is_(None), Judgment.repeat_no == 0, Pair.gold_answer.is_(None))
        .group_by(Pair.id, Pair.source_id, _A.method_id, _B.method_id)
    )
    rows = [tuple(row) for row in session.execute(statement)]
    _, sources, method_pairs = _columns_of([row[:4] for row in rows])
    counts = np.array([row[4] for row in rows], dtype=np.int64)
    return np.repeat(sources, counts), np.repeat(method_pairs, counts)


def make_shortlists(
    session: Session, labeler: Labeler, bag: Sequence[Labeler], seed: int = 0, *, by_spread: bool = False
) -> dict[Picked, list[int]]:
    """Ids of the waiting pairs that each active order would show next, best first, SHORTLIST_LENGTH at most.

    With `by_spread` the disagreement is that of a reward's members, see `load_spreads`, not of labelers.

    A pair that lacks a metric value is on the lists of diverse pairs and of information only.
    """
    candidates = load_candidates(session, MAX_CANDIDATES, seed)
    sources = candidates.sources
    differences = load_differences(session, labeler.columns, candidates.pair_ids.tolist())
    disagreed = rank_disagreement(np.array([compute_p_a(one, differences) for one in bag]))
    if by_spread:
        disagreed = _smallest_first(-load_spreads(session, candidates.pair_ids.tolist()))
    ranked = {
        Picked.uncertain: spread_sources(rank_uncertain(compute_p_a(labeler, differences)), sources),
        Picked.disagreement: spread_sources(disagreed, sources),
        Picked.diverse: rank_diverse(sources, candidates.method_pairs, *load_judged(session), SHORTLIST_LENGTH),
        Picked.information: rank_by_scale(session, _split_methods(candidates.method_pairs), seed),
    }
    return {picked: candidates.pair_ids[order[:SHORTLIST_LENGTH]].tolist() for picked, order in ranked.items()}


def _split_methods(method_pairs: Array) -> Array:
    """(n, 2) ids of the methods of numbered pairs of methods."""
    return np.column_stack([method_pairs >> 32, method_pairs & (2**32 - 1)])


def rank_by_scale(session: Session, methods: Array, seed: int) -> Array:
    """Indices of pairs or tasks by what an answer would tell of the methods' scale, as people's answers give it so far.

    Args:
        methods: (n, k) ids of the methods of each, padded by -1.
    """
    names = {method.id: method.name for method in session.scalars(select(Method))}
    ids = np.array(sorted(names), dtype=np.int64)
    scale = estimate_scale(load_answers(session), [names[number] for number in ids.tolist()])
    numbered = np.where(methods >= 0, np.searchsorted(ids, methods), -1)
    return rank_information(numbered, gain_of_pairs(*scale), SHORTLIST_LENGTH, np.random.default_rng(seed))


@dataclass(frozen=True)
class Tasks:
    """Tasks that an active order may show: (n,) ids, their sources, their sets of methods; the pairs in each.

    methods: (n, 6) ids of the methods, padded by -1.

    pair_ids, task_of: (m,) ids of pairs, and for each of them the index of its task.
    """

    task_ids: Array
    sources: Array
    method_sets: Array
    methods: Array
    pair_ids: Array
    task_of: Array

    def average(self, of_pairs: Array) -> Array:
        """(n,) mean of a number over each task's pairs that have one; NaN where none has."""
        known = np.isfinite(of_pairs)
        length = len(self.task_ids)
        total = np.bincount(self.task_of[known], weights=of_pairs[known], minlength=length)
        count = np.bincount(self.task_of[known], minlength=length)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def load_tasks(session: Session, most: int, seed: int) -> Tasks:
    """At most `most` waiting tasks that are not reserved: least-judged first, drawn at random within."""
    start = int(np.random.default_rng(seed).integers(SHUFFLE_RANGE))
    waiting = (
        select(Task.id, Task.source_id)
        .where(Task.reserved.is_(False), Task.queue_level.is_not(None))
        .order_by(Task.queue_level, Task.shuffle_key < start, Task.shuffle_key, Task.key)
        .limit(most)
    )
    rows = session.execute(waiting).all()
    place = {row.id: at for at, row in enumerate(rows)}
    x, y = aliased(TaskCandidate), aliased(TaskCandidate)
    pairs, methods = [], defaultdict[int, list[int]](list)
    for batch in batches(place):
        of_methods = select(x.task_id, Candidate.method_id).join(Candidate, Candidate.id == x.candidate_id)
        for task_id, method_id in session.execute(of_methods.where(x.task_id.in_(batch))):
            methods[task_id].append(method_id)
        of_pairs = (
            select(x.task_id, Pair.id)
            .join(y, (y.task_id == x.task_id) & (y.letter > x.letter))
            .join(Pair, (Pair.a_id == x.candidate_id) & (Pair.b_id == y.candidate_id))
        )
        found = session.execute(of_pairs.where(x.task_id.in_(batch)))
        pairs += [(pair_id, place[task_id]) for task_id, pair_id in found]
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    ids, sources = (np.array([row[at] for row in rows], dtype=np.int64) for at in (0, 1))
    sets = np.array([number_set(methods[task_id]) for task_id in place], dtype=np.int64)
    padded = np.full((len(place), MAX_SIZE), -1, dtype=np.int64)
    for task_id, at in place.items():
        padded[at, : len(methods[task_id])] = methods[task_id]
    return Tasks(ids, sources, sets, padded, pair_ids=table[:, 0], task_of=table[:, 1])


def number_set(methods: Sequence[int]) -> int:
    """A number of a set of methods, whatever their order; the same for the same set."""
    return int(hashlib.sha256(repr(sorted(methods)).encode()).hexdigest()[:15], 16)


def load_judged_tasks(session: Session) -> tuple[Array, Array]:
    """((m,) sources, (m,) sets of methods) of the judged tasks, each as often as it was judged."""
    statement = (
        select(Task.id, Task.source_id, Task.judgment_count, Candidate.method_id)
        .join(TaskCandidate, TaskCandidate.task_id == Task.id)
        .join(Candidate, Candidate.id == TaskCandidate.candidate_id)
        .where(Task.judgment_count > 0, Task.gold_ranking.is_(None))
        .order_by(Task.id)
    )
    sources, sets = [], []
    for (_, source_id, times), group in itertools.groupby(session.execute(statement), key=lambda row: row[:3]):
        sources += [source_id] * times
        sets += [number_set([row[3] for row in group])] * times
    return np.array(sources, dtype=np.int64), np.array(sets, dtype=np.int64)


def make_task_shortlists(
    session: Session, labeler: Labeler, bag: Sequence[Labeler], seed: int = 0, *, by_spread: bool = False
) -> dict[Picked, list[int]]:
    """Ids of the waiting tasks that each active order would show next, best first, SHORTLIST_LENGTH at most.

    What a task is worth to an order is the mean over its pairs, of those that have all metric values; a task of which
    none has is on the lists of diverse tasks and of information only. A set of methods is there what a pair of methods
    is to pairs.
    """
    tasks = load_tasks(session, MAX_TASKS, seed)
    differences = load_differences(session, labeler.columns, tasks.pair_ids.tolist())
    margin = tasks.average(np.abs(compute_p_a(labeler, differences) - 0.5))
    disagreed = compute_disagreement(np.array([compute_p_a(one, differences) for one in bag]))
    if by_spread:
        disagreed = load_spreads(session, tasks.pair_ids.tolist())
    disagreement = tasks.average(disagreed)
    ranked = {
        Picked.uncertain: spread_sources(_smallest_first(margin), tasks.sources),
        Picked.disagreement: spread_sources(_smallest_first(-disagreement), tasks.sources),
        Picked.diverse: rank_diverse(tasks.sources, tasks.method_sets, *load_judged_tasks(session), SHORTLIST_LENGTH),
        Picked.information: rank_by_scale(session, tasks.methods, seed),
    }
    return {picked: tasks.task_ids[order[:SHORTLIST_LENGTH]].tolist() for picked, order in ranked.items()}


def replace_shortlists(
    session: Session, shortlists: dict[Picked, list[int]], of_tasks: Mapping[Picked, Sequence[int]] | None = None
) -> None:
    """Put new lists in the place of the stored ones; an order's tasks stand after its pairs.

    Where nothing is left to list, the stored ones stay: that there are any says that active orders have been at work.
    """
    rows: list[dict[str, object]] = []
    for picked in Picked:
        pair_ids, task_ids = shortlists.get(picked, []), (of_tasks or {}).get(picked, [])
        both = [*((pair_id, None) for pair_id in pair_ids), *((None, task_id) for task_id in task_ids)]
        rows += [
            {"picked": picked, "place": place, "pair_id": pair_id, "task_id": task_id}
            for place, (pair_id, task_id) in enumerate(both)
        ]
    if rows:
        session.execute(delete(Shortlist))
        session.execute(insert(Shortlist), rows)


def write_shortlists(
    database: Database, labeler: Labeler, training: Training, seed: int = 0, *, by_spread: bool = False
) -> dict[Picked, list[int]]:
    """Rank the waiting pairs and tasks by every active order and store the best, for the labelling page to show.

    Nobody waits for the ranking: only the replacing of the rows takes the database's write lock.

    Args:
        training: what the labeler was fitted on; the bag is fitted on parts of it.
        by_spread: whether disagreement is that of a stored reward's members.
    Returns:
        the pair ids of each list.
    """
    bag = fit_bag(training, labeler, seed=seed)
    with database.read() as session:
        shortlists = make_shortlists(session, labeler, bag, seed, by_spread=by_spread)
        any_task = session.scalar(select(Task.id).limit(1)) is not None
        of_tasks = make_task_shortlists(session, labeler, bag, seed, by_spread=by_spread) if any_task else {}
    with database.write() as session:
        replace_shortlists(session, shortlists, of_tasks)
    return shortlists

"""Label the pairs that nobody judged with a fitted labeler: a stream, a block of pairs and a transaction at a time.

A pair is left alone where a person judged it, alone or in a task, or a human label was imported: human labels always
win. Running the same labeler again changes nothing, and goes on where a killed run ended; another labeler's labels are
superseded, kept as history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Row, exists, func, insert, select, update
from sqlalchemy.orm import Session, aliased

from annotate.ingest.image_files import batches
from annotate.judging.labels import find_pairs_told_by_tasks
from annotate.labeler.file import StoredLabeler
from annotate.labeler.svm import Array, compute_p_a
from annotate.labeler.threshold import choose_threshold
from annotate.measure.vectors import differences_of
from db.errors import UserError
from db.models import Candidate, Label, Method, MetricValue, Origin, Pair, Source, Split, utc_now
from db.session import Database

BLOCK_PAIRS = 20_000


@dataclass
class LabelReport:
    """Result of labelling; counts of pairs."""

    labeler: str = ""
    target_accuracy: float = 0.0
    confidence: float = 0.0
    """That the labels keep the target accuracy."""
    knows_groups: bool = True
    """False of a labeler of an earlier version: its answers count as if each were of another person's photo."""
    threshold: float | None = None
    """Certainty below which the labeler abstains; None where the target cannot be promised, so nothing was labelled."""
    expected_coverage: float = 0.0
    """Share that the held-out folds let expect."""
    pairs: int = 0
    """Unjudged pairs that were looked at."""
    labelled: int = 0
    """Pairs that carry a label of this labeler now."""
    abstained: int = 0
    unmeasured: int = 0
    """Pairs that lack a metric value; not labelled."""
    added: int = 0
    flipped: int = 0
    """Labels whose preferred image changed."""
    changed: int = 0
    """Labels of another labeler replaced by one that prefers the same image."""
    withdrawn: int = 0
    """Labels superseded without a new one, since the labeler abstains now."""
    unchanged: int = 0

    @property
    def coverage(self) -> float:
        """Share of the measured pairs that were labelled."""
        return self.labelled / max(1, self.labelled + self.abstained)


@dataclass(frozen=True)
class Filter:
    """Filter of the unjudged pairs to label; an empty one takes all."""

    splits: tuple[Split, ...] = ()
    methods: tuple[str, ...] = ()


def label_pairs(
    database: Database,
    stored: StoredLabeler,
    target_accuracy: float,
    confidence: float,
    chosen: Filter,
    *,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> LabelReport:
    """Label every unjudged pair of which the labeler is sure enough.

    Args:
        target_accuracy, confidence: accuracy that the labels keep, and with which confidence (0.5 … 1).
        dry_run: only count.
        progress: called with (pairs checked, total).
    Raises:
        UserError: an unknown method, or no pair is measured with the labeler's very metrics and versions.
    """
    held_out = stored.held_out
    group = held_out.get("group", np.arange(len(held_out["right"])))
    answers = (held_out["confidence"], held_out["right"], held_out["weight"], group)
    threshold = choose_threshold(*answers, target_accuracy, confidence)
    report = LabelReport(stored.name, target_accuracy, confidence, stored.knows_groups, threshold)
    with database.read() as session:
        conditions = _conditions(session, chosen)
        _check_versions(session, stored)
        if threshold is None:
            return report
        total, last = session.execute(select(func.count(), func.max(Pair.id)).where(*conditions)).one()
        told = find_pairs_told_by_tasks(session)
    report.expected_coverage = float((held_out["confidence"] >= threshold).mean())
    after = 0
    while last is not None and after < last:
        with database.read() as session:
            block = _read_block(session, conditions, after, last)
            after = int(block[-1].id)
            block = [row for row in block if row.id not in told]
            p_a = compute_p_a(stored.labeler, _differences(session, stored, block)) if block else np.zeros(0)
        changes = _compare(block, p_a, threshold, stored.made_by, report)
        if not dry_run and changes:
            with database.write() as session:
                _write(session, changes, stored.made_by)
        if progress:
            progress(report.pairs, total)
    if report.pairs and report.unmeasured == report.pairs:
        raise UserError(_nothing_measured(stored))
    return report


def _conditions(session: Session, chosen: Filter) -> list[ColumnElement[bool]]:
    """No live judgment, no human label, no gold answer, and the filter."""
    known = set(session.scalars(select(Method.name)))
    for name in chosen.methods:
        if name not in known:
            raise UserError(f"There is no method called {name!r}. Known: {', '.join(sorted(known)) or 'none yet'}.")
    human = aliased(Label)
    conditions: list[ColumnElement[bool]] = [
        Pair.judgment_count == 0,
        # Not `is_(None)`: SQLite would take the index of gold pairs and walk over all pairs for each block.
        func.coalesce(Pair.gold_answer, "") == "",
        ~exists().where(human.pair_id == Pair.id, human.origin == Origin.human, human.superseded_at.is_(None)),
    ]
    if chosen.splits:
        conditions.append(Pair.source_id.in_(select(Source.id).where(Source.split.in_(chosen.splits))))
    if chosen.methods:
        of_methods = select(Candidate.id).join(Method, Method.id == Candidate.method_id)
        of_methods = of_methods.where(Method.name.in_(chosen.methods))
        conditions += [Pair.a_id.in_(of_methods), Pair.b_id.in_(of_methods)]
    return conditions


def _check_versions(session: Session, stored: StoredLabeler) -> None:
    """A labeler's columns must be measured in its own versions, not in others only."""
    for column in stored.labeler.columns:
        of_metric = select(MetricValue.version).where(MetricValue.metric == column.metric)
        if session.scalar(of_metric.where(MetricValue.version == column.version).limit(1)) is not None:
            continue
        other = session.scalar(of_metric.limit(1))
        seen = f"measured with {other}" if other else "not measured at all"
        raise UserError(
            f"{stored.name} wants {column.metric} of {column.version}, which is {seen}. Measure again with that "
            "version, or fit a new labeler on what is measured."
        )


def _nothing_measured(stored: StoredLabeler) -> str:
    names = ", ".join(column.name for column in stored.labeler.columns)
    return f"No unjudged pair has all of the labeler's metrics ({names}); run `python -m annotate measure` first."


def _read_block(session: Session, conditions: Sequence[ColumnElement[bool]], after: int, last: int) -> list[Row[Any]]:
    """The next pairs by id: id, a_id, b_id, and of a live SVM label its id, p_a and maker."""
    statement = (
        select(Pair.id, Pair.a_id, Pair.b_id, Label.id.label("label_id"), Label.p_a, Label.made_by)
        .outerjoin(Label, (Label.pair_id == Pair.id) & (Label.origin == Origin.svm) & Label.superseded_at.is_(None))
        .where(Pair.id > after, Pair.id <= last, *conditions)
        .order_by(Pair.id)
        .limit(BLOCK_PAIRS)
    )
    return list(session.execute(statement))


def _differences(session: Session, stored: StoredLabeler, block: list[Row[Any]]) -> Array:
    columns = stored.labeler.columns
    return differences_of(session, columns, [row.a_id for row in block], [row.b_id for row in block])


@dataclass
class _Changes:
    superseded: list[int]
    """Label ids."""
    added: list[tuple[int, float]]
    """(pair id, p_a)"""

    def __bool__(self) -> bool:
        return bool(self.superseded or self.added)


def _compare(block: list[Row[Any]], p_a: Array, threshold: float, name: str, report: LabelReport) -> _Changes:
    """List the changes that a block needs, counted in the report."""
    changes = _Changes([], [])
    sure = np.maximum(p_a, 1 - p_a) >= threshold
    report.pairs += len(block)
    report.unmeasured += int(np.isnan(p_a).sum())
    report.labelled += int(sure.sum())
    report.abstained += int((~sure & ~np.isnan(p_a)).sum())
    for row, new, is_sure in zip(block, p_a.tolist(), sure.tolist(), strict=True):
        if row.label_id is None:
            if is_sure:
                changes.added.append((row.id, new))
                report.added += 1
        elif is_sure and row.made_by == name and row.p_a == new:
            report.unchanged += 1
        else:
            changes.superseded.append(row.label_id)
            report.withdrawn += not is_sure
            if is_sure:
                changes.added.append((row.id, new))
                report.flipped += (row.p_a > 0.5) != (new > 0.5)
                report.changed += (row.p_a > 0.5) == (new > 0.5)
    return changes


def _write(session: Session, changes: _Changes, name: str) -> None:
    """Supersede, then add, where still nobody judged the pair: a judgment may have come in since it was read."""
    now = utc_now()
    for some in batches(changes.superseded):
        session.execute(update(Label).where(Label.id.in_(some)).values(superseded_at=now))
    judged: set[int] = set()
    for some in batches([pair_id for pair_id, _ in changes.added]):
        judged.update(session.scalars(select(Pair.id).where(Pair.id.in_(some), Pair.judgment_count > 0)))
    rows = [
        {"pair_id": pair_id, "origin": Origin.svm, "made_by": name, "p_a": p_a, "weight": 1.0, "created_at": now}
        for pair_id, p_a in changes.added
        if pair_id not in judged
    ]
    if rows:
        session.connection().execute(insert(Label), rows)  # past the ORM, which takes longer than the database

"""Count measured and missing values by column, and list the values of a column by method.

Apart from the measuring, for the pages: a few queries however many images there are.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Select, Subquery, func, literal, select, tuple_
from sqlalchemy.orm import Session, aliased

from annotate.ingest.image_files import batches
from db.models import Candidate, Image, Method, MetricValue, Source
from metrics.lists import Column

MAX_SOURCES = 2_000
"""Photos whose values are read for a distribution; of more, a part drawn at random, the same for every method."""


@dataclass
class ColumnCount:
    """Progress of one column, in values: one per image, or one per image and reference."""

    column: Column
    wanted: int
    measured: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """Values that could not be computed, by reason, the most frequent first."""

    @property
    def failed(self) -> int:
        """Values that could not be computed; measuring does not try them again."""
        return sum(self.failures.values())

    @property
    def missing(self) -> int:
        """Values that measuring would add."""
        return max(0, self.wanted - self.measured - self.failed)


def count_columns(session: Session, columns: Sequence[Column]) -> list[ColumnCount]:
    """The counts of every column, as `annotate.measure.missing.find_missing` sees them, in the columns' order."""
    counts: dict[Column, ColumnCount] = {}
    for reference in sorted({column.reference for column in columns}):
        of_kind = {(c.metric, c.version): c for c in columns if c.reference == reference}
        needed = _needed(reference).subquery()
        wanted = session.scalar(select(func.count()).select_from(needed)) or 0
        counts |= {column: ColumnCount(column, wanted) for column in of_kind.values()}
        for metric, version, failure, measured, n in session.execute(_stored(needed, list(of_kind))):
            count = counts[of_kind[metric, version]]
            count.measured += measured
            if n > measured:
                count.failures[failure or "no reason is stored"] = n - measured
    return [counts[column] for column in columns]


def _needed(reference: str) -> Select[int, str]:
    """(image id, reference) that a column is measured for: each candidate's image, once."""
    if not reference:
        return select(Candidate.image_id, literal("").label("sha256")).distinct()
    image = aliased(Image)
    of_source = Source.lq_image_id if reference == "lq" else Source.hq_image_id
    return (
        select(Candidate.image_id, image.sha256)
        .join(Source, Source.id == Candidate.source_id)
        .join(image, image.id == of_source)
        .distinct()
    )


def _stored(needed: Subquery, versions: list[tuple[str, str]]) -> Select[str, str, str | None, int, int]:
    """(metric, version, failure, values, rows) of the stored rows that are needed."""
    kind = (MetricValue.metric, MetricValue.version, MetricValue.failure)
    return (
        select(*kind, func.count(MetricValue.value), func.count())
        .join(needed, (needed.c.image_id == MetricValue.image_id) & (needed.c.sha256 == MetricValue.reference))
        .where(tuple_(MetricValue.metric, MetricValue.version).in_(versions))
        .group_by(*kind)
        .order_by(func.count().desc())
    )


def load_by_method(
    session: Session, column: Column, max_sources: int = MAX_SOURCES
) -> tuple[dict[str, npt.NDArray[np.float64]], int, int]:
    """(values of a column by method, photos they were read of, photos in all); methods without a value are left out.

    Values are oriented: higher is better. Of the same photos for each method, so that they may be compared.
    """
    sources = list(session.scalars(select(Source.id).order_by(Source.id)))
    drawn = sources
    if len(sources) > max_sources:
        drawn = sorted(random.Random(0).sample(sources, max_sources))
    found: defaultdict[str, list[float]] = defaultdict(list)
    for some in batches(drawn):
        statement = _values(column).where(Candidate.source_id.in_(some))
        for method, value in session.execute(statement):
            found[method].append(float(value))
    return {name: np.array(values) for name, values in sorted(found.items())}, len(drawn), len(sources)


def _values(column: Column) -> Select[str, Any]:
    """(method, value) of a column, without those that failed."""
    statement = (
        select(Method.name, MetricValue.value)
        .join(Candidate, Candidate.method_id == Method.id)
        .join(MetricValue, MetricValue.image_id == Candidate.image_id)
        .where(
            MetricValue.metric == column.metric,
            MetricValue.version == column.version,
            MetricValue.value.is_not(None),
        )
    )
    if not column.reference:
        return statement.where(MetricValue.reference == "")
    image = aliased(Image)
    of_source = Source.lq_image_id if column.reference == "lq" else Source.hq_image_id
    return (
        statement.join(Source, Source.id == Candidate.source_id)
        .join(image, image.id == of_source)
        .where(MetricValue.reference == image.sha256)
    )

"""Read the metric vectors of candidates, and their differences, from the stored values.

A value that was never measured, or whose measuring failed, is NaN here and nowhere zero. Which columns a labeler uses
is settled when it is fitted (`choose_columns`): those that nearly all labelled pairs have. A pair that lacks one of
them is neither trained on nor labelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Select, select, tuple_
from sqlalchemy.orm import Session, aliased

from annotate.ingest.image_files import batches
from db.models import Candidate, Image, MetricValue, Pair, Source
from metrics.lists import Column

Array = npt.NDArray[Any]

COLUMN_SHARE = 0.9
"""Share of the labelled pairs that must have a column for a labeler to use it."""


def load_vectors(session: Session, columns: Sequence[Column], candidate_ids: Sequence[int]) -> Array:
    """(n, d) oriented values of candidates, NaN where there is none.

    Args:
        candidate_ids: (n,) ids, each once.
    """
    values = np.full((len(candidate_ids), len(columns)), np.nan)
    place = {candidate_id: row for row, candidate_id in enumerate(candidate_ids)}
    for reference in sorted({column.reference for column in columns}):
        wanted = {c.metric: at for at, c in enumerate(columns) if c.reference == reference}
        versions = [(c.metric, c.version) for c in columns if c.reference == reference]
        for some in batches(candidate_ids):
            statement = _values_of(reference).where(
                Candidate.id.in_(some), tuple_(MetricValue.metric, MetricValue.version).in_(versions)
            )
            found = session.execute(statement).all()
            rows = np.fromiter((place[row[0]] for row in found), dtype=np.intp, count=len(found))
            at = np.fromiter((wanted[row[1]] for row in found), dtype=np.intp, count=len(found))
            values[rows, at] = np.fromiter((row[2] for row in found), dtype=np.float64, count=len(found))
    return values


def _values_of(reference: str) -> Select[int, str, float | None]:
    """(candidate id, metric, value) of the values that take this reference."""
    statement = (
        select(Candidate.id, MetricValue.metric, MetricValue.value)
        .join(MetricValue, MetricValue.image_id == Candidate.image_id)
        .where(MetricValue.value.is_not(None))
    )
    if not reference:
        return statement.where(MetricValue.reference == "")
    image = aliased(Image)
    of_source = Source.lq_image_id if reference == "lq" else Source.hq_image_id
    return (
        statement.join(Source, Source.id == Candidate.source_id)
        .join(image, image.id == of_source)
        .where(MetricValue.reference == image.sha256)
    )


def load_differences(session: Session, columns: Sequence[Column], pair_ids: Sequence[int]) -> Array:
    """(n, d) values of a minus b of pairs, NaN where either is missing."""
    sides: dict[int, tuple[int, int]] = {}
    for some in batches(pair_ids):
        statement = select(Pair.id, Pair.a_id, Pair.b_id).where(Pair.id.in_(some))
        sides.update((pair_id, (a, b)) for pair_id, a, b in session.execute(statement))
    a_ids, b_ids = ([sides[pair_id][side] for pair_id in pair_ids] for side in (0, 1))
    return differences_of(session, columns, a_ids, b_ids)


def differences_of(session: Session, columns: Sequence[Column], a_ids: Sequence[int], b_ids: Sequence[int]) -> Array:
    """(n, d) values of the candidates `a_ids` minus those of `b_ids`."""
    a, b = np.asarray(a_ids, dtype=np.int64), np.asarray(b_ids, dtype=np.int64)
    ids = np.unique(np.concatenate([a, b]))
    vectors = load_vectors(session, columns, ids.tolist())
    return np.asarray(vectors[np.searchsorted(ids, a)] - vectors[np.searchsorted(ids, b)])


def choose_columns(differences: Array) -> npt.NDArray[np.intp]:
    """Indices of the columns that at least COLUMN_SHARE of the pairs (n, d) have."""
    return np.nonzero(np.isfinite(differences).mean(axis=0) >= COLUMN_SHARE)[0]

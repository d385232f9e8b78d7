"""Read how unsure a stored reward's members are of pairs, so that people judge those first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.ingest.image_files import batches
from annotate.measure.vectors import load_vectors
from db.candidates import SPREAD_PREFIX
from db.models import MetricValue, Pair
from metrics.lists import Column

Array = npt.NDArray[Any]


def load_spreads(session: Session, pair_ids: Sequence[int]) -> Array:
    """(n,) how unsure a reward's members are of each pair: the root of the sum of its two candidates' variances.

    Of the reward whose spread was stored last; NaN where a candidate has none, everywhere where none is stored. A
    reward that sees the photo beside the image is read for the pair's own photo.
    """
    newest = (
        select(MetricValue.metric, MetricValue.version)
        .where(MetricValue.metric.startswith(SPREAD_PREFIX, autoescape=True))
        .order_by(MetricValue.id.desc())
    )
    stored = session.execute(newest.limit(1)).one_or_none()
    if stored is None:
        return np.full(len(pair_ids), np.nan)
    sides: dict[int, tuple[int, int]] = {}
    for some in batches(pair_ids):
        found = session.execute(select(Pair.id, Pair.a_id, Pair.b_id).where(Pair.id.in_(some)))
        sides.update((pair_id, (a, b)) for pair_id, a, b in found)
    ids = sorted({one for both in sides.values() for one in both})
    columns = [Column(stored.metric, stored.version, reference) for reference in ("", "lq", "hq")]
    values = load_vectors(session, columns, ids)
    kept = np.array([next((one for one in row if np.isfinite(one)), np.nan) for row in values])
    place = {candidate_id: at for at, candidate_id in enumerate(ids)}
    a, b = ([place[sides[pair_id][side]] for pair_id in pair_ids] for side in (0, 1))
    return np.asarray(np.hypot(kept[a], kept[b]))

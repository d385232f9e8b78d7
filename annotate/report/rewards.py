"""Average the stored rewards of each method's candidates, to compare with people's ranking."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sqlalchemy import or_, select
from sqlalchemy.orm import Session, aliased

from db.candidates import REWARD_PREFIX
from db.models import Candidate, Image, Method, MetricValue, Source, Split
from metrics.accuracy import bootstrap_mean

COLUMNS = ["reward", "version", "method", "mean", "low", "high", "n_images", "n_sources"]


def compute_mean_rewards(session: Session, split: Split | None = None, seed: int = 0) -> pd.DataFrame:
    """A row a stored reward model and method, the highest mean of each model first.

    reward, version (as `python -m reward score` stored it), method, mean, low, high (95 %, from resampling sources),
    n_images, n_sources. No row without stored rewards. One that sees the photo beside the image counts for the photos
    it was computed with, and no more where they were replaced.

    Args:
        split: only of photos of this split.
    """
    lq, hq = aliased(Image), aliased(Image)
    statement = (
        select(MetricValue.metric, MetricValue.version, Method.name, Source.id, MetricValue.value)
        .join(Candidate, Candidate.image_id == MetricValue.image_id)
        .join(Method, Method.id == Candidate.method_id)
        .join(Source, Source.id == Candidate.source_id)
        .outerjoin(lq, lq.id == Source.lq_image_id)
        .outerjoin(hq, hq.id == Source.hq_image_id)
        .where(or_(MetricValue.reference == "", MetricValue.reference.in_((lq.sha256, hq.sha256))))
        .where(MetricValue.metric.startswith(REWARD_PREFIX, autoescape=True), MetricValue.value.is_not(None))
    )
    if split:
        statement = statement.where(Source.split == split)
    found = pd.DataFrame(session.execute(statement).all(), columns=["reward", "version", "method", "source", "value"])
    rows = []
    for key, group in found.groupby(["reward", "version", "method"], sort=True):
        values, sources = group["value"].to_numpy(float), group["source"].to_numpy()
        interval = bootstrap_mean(values, np.ones(len(values)), sources, seed)
        rows.append((*key, *interval, len(group), len(set(sources))))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values(["reward", "version", "mean"], ascending=[True, True, False], ignore_index=True)

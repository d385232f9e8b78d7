"""Mean rewards by method, of a reward that sees the photo beside the image."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.report.rewards import compute_mean_rewards
from db.models import Candidate, Source, Split
from db.records import add_metric_value
from tests.making import add_candidates, add_image_row


def test_an_image_of_two_photos_counts_with_each_ones_own_reward(session: Session) -> None:
    for number in range(2):
        add_candidates(session, f"face{number}", ["m1", "m2"], Split.train)
    photos = [add_image_row(session, str(at) * 64) for at in range(3)]
    sources = session.scalars(select(Source).order_by(Source.id)).all()
    for source, photo in zip(sources, photos, strict=False):
        source.lq_image_id = photo.id
    shared = session.scalars(select(Candidate).order_by(Candidate.id)).first()
    assert shared is not None
    other = session.scalars(select(Candidate).where(Candidate.source_id == sources[1].id)).first()
    assert other is not None
    other.image_id = shared.image_id  # one image, a candidate of both photos
    session.flush()
    session.refresh(other)
    for photo, value in zip(photos, (1.0, 3.0, 99.0), strict=True):  # the last was replaced
        values = {"value": value, "raw_value": value, "reference": photo.sha256}
        add_metric_value(session, shared.image, "reward-mine", "reward 1", **values)
        add_metric_value(session, shared.image, "spread-mine", "reward 1", **values)
    session.flush()
    (row,) = compute_mean_rewards(session).to_dict("records")
    assert (row["reward"], row["method"], row["mean"], row["n_images"]) == ("reward-mine", "m1", pytest.approx(2.0), 2)

"""What is measured and what is missing: as many as measuring would find, and values by method."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from annotate.measure.counts import count_columns, load_by_method
from db.models import Candidate, Image, Split
from db.records import add_metric_value, add_source
from metrics.lists import Column
from tests.making import add_candidates, add_image_row

SHARPNESS, CONTRAST = Column("sharpness", "facereward 1", ""), Column("contrast", "facereward 1", "")
SSIM_LQ, SSIM_HQ = Column("ssim", "pyiqa 1", "lq"), Column("ssim", "pyiqa 1", "hq")
COLUMNS = [SSIM_HQ, SHARPNESS, SSIM_LQ, CONTRAST]


@pytest.fixture
def candidates(session: Session) -> list[Candidate]:
    """Three photos, two methods; all have lq, the first one hq; one image is shared by two methods of the last."""
    sources = [
        add_source(
            session,
            f"face{n}",
            Split.train,
            lq=add_image_row(session, f"a{n}"),
            hq=add_image_row(session, "b") if not n else None,
        )
        for n in range(3)
    ]
    made = [add_candidates(session, source.key, ["m1", "m2"]) for source in sources[:2]]
    return [*made[0], *made[1], *add_candidates(session, "face2", ["m=1", "m=2"])]


def store(session: Session, image: Image, column: Column, value: float | None, reference: Image | None = None) -> None:
    failure, name = "no face found" if value is None else None, reference.sha256 if reference else ""
    values = {"value": value, "raw_value": value, "failure": failure, "reference": name}
    add_metric_value(session, image, column.metric, column.version, **values)


def test_counts_by_column(session: Session, candidates: list[Candidate]) -> None:
    for place, candidate in enumerate(candidates[:3]):
        store(session, candidate.image, SHARPNESS, None if place == 2 else 1.0)
    store(session, candidates[0].image, SSIM_LQ, 0.5, candidates[0].source.lq)
    store(session, candidates[0].image, SSIM_HQ, 0.5, candidates[0].source.hq)
    store(session, candidates[1].image, SSIM_HQ, 0.5, candidates[4].source.lq)  # against another photo
    store(session, candidates[0].image, Column("contrast", "facereward 0", ""), 1.0)  # an older version
    store(session, add_image_row(session, "c"), CONTRAST, 1.0)  # of no candidate
    found = {count.column.name: count for count in count_columns(session, COLUMNS)}
    assert list(found) == ["ssim@hq", "sharpness", "ssim@lq", "contrast"]
    counts = {name: (count.measured, count.failed, count.missing, count.wanted) for name, count in found.items()}
    assert counts == {
        "sharpness": (2, 1, 2, 5),
        "contrast": (0, 0, 5, 5),
        "ssim@lq": (1, 0, 4, 5),
        "ssim@hq": (1, 0, 1, 2),
    }
    assert found["sharpness"].failures == {"no face found": 1}


def test_counts_of_an_empty_database(session: Session) -> None:
    assert [(count.wanted, count.missing) for count in count_columns(session, COLUMNS)] == [(0, 0)] * 4
    assert count_columns(session, []) == []


def test_values_by_method(session: Session, candidates: list[Candidate]) -> None:
    for place, candidate in enumerate(candidates):
        store(session, candidate.image, SHARPNESS, None if place == 0 else float(place))
        store(session, candidate.image, SSIM_LQ, float(place), candidate.source.lq)
    by_method, read, photos = load_by_method(session, SHARPNESS)
    assert {name: values.tolist() for name, values in by_method.items()} == {
        "m1": [2.0],
        "m2": [1.0, 3.0],
        "m=1": [5.0],
        "m=2": [5.0],
    }
    assert (read, photos) == (3, 3)
    assert load_by_method(session, SSIM_LQ)[0]["m1"].tolist() == [0.0, 2.0]
    assert load_by_method(session, SSIM_HQ)[0] == {}


def test_of_many_photos_a_part_is_read_the_same_for_every_method(session: Session) -> None:
    for number in range(40):
        for candidate in add_candidates(session, f"face{number}", ["m1", "m2"]):
            store(session, candidate.image, SHARPNESS, float(number))
    by_method, read, photos = load_by_method(session, SHARPNESS, max_sources=10)
    assert (read, photos) == (10, 40)
    assert by_method["m1"].tolist() == by_method["m2"].tolist()
    assert len(set(by_method["m1"].tolist())) == 10

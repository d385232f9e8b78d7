"""Which values are missing, how they are stored, what is reported; the measuring itself is replaced by a stand-in."""

from __future__ import annotations

import pytest
from sqlalchemy import event, select

from annotate.measure import run as measure
from annotate.measure.missing import find_missing, make_batches
from annotate.measure.run import measure_missing
from annotate.measure.worker import BatchResult
from db.candidates import store_values
from db.errors import UserError
from db.models import Image, MetricValue
from db.records import add_candidate, add_method, add_metric_value, add_source
from metrics.lists import Column, Metric, MetricError, MetricList
from tests.making import add_image_row, fetch

SHARP = Column("sharpness", "facereward 1", "")
SSIM_LQ = Column("ssim", "pyiqa 9", "lq")
SSIM_HQ = Column("ssim", "pyiqa 9", "hq")
OURS = MetricList(name="ours", version="1", description="", metrics=[Metric(name="sharpness"), Metric(name="contrast")])


@pytest.fixture
def two_sources(database):
    """face1 with lq and hq, face2 with lq alone; two candidates each, one image shared by both sources."""
    with database.write() as session:
        lq1, hq1, lq2, own1, own2, shared = (
            add_image_row(session, name) for name in ("a1", "b1", "a2", "c1", "c2", "5")
        )
        first, second = add_method(session, "gfpgan"), add_method(session, "codeformer")
        face1 = add_source(session, "face1", "train", lq=lq1, hq=hq1)
        face2 = add_source(session, "face2", "train", lq=lq2)
        for source, own in ((face1, own1), (face2, own2)):
            add_candidate(session, source, first, own)
            add_candidate(session, source, second, shared)
    return database


def missing_of(database, *columns):
    return {
        (job.file.sha256.rstrip("0"), wanted.column.name, wanted.reference and wanted.reference.sha256.rstrip("0"))
        for job in find_missing(database, columns)
        for wanted in job.wanted
    }


def test_candidates_are_measured_against_the_references_of_each_of_their_sources(two_sources):
    assert missing_of(two_sources, SHARP, SSIM_LQ, SSIM_HQ) == {
        ("c1", "sharpness", None),
        ("c2", "sharpness", None),
        ("5", "sharpness", None),
        ("c1", "ssim@lq", "a1"),
        ("c2", "ssim@lq", "a2"),
        ("5", "ssim@lq", "a1"),
        ("5", "ssim@lq", "a2"),
        ("c1", "ssim@hq", "b1"),
        ("5", "ssim@hq", "b1"),
    }


def test_what_is_stored_is_not_missing_another_version_is(two_sources):
    with two_sources.write() as session:
        image = session.scalars(select(Image).where(Image.sha256.startswith("c1"))).one()
        add_metric_value(session, image, "sharpness", "facereward 1", value=None, raw_value=None, failure="flat")
    assert ("c1", "sharpness", None) not in missing_of(two_sources, SHARP)
    assert ("c1", "sharpness", None) in missing_of(two_sources, Column("sharpness", "facereward 2", ""))


def test_pages_follow_each_other_and_images_of_one_size_lie_together(database, monkeypatch):
    monkeypatch.setattr("annotate.measure.missing.PAGE_IMAGES", 4)
    with database.write() as session:
        source, method = add_source(session, "face", "train"), add_method(session, "m")
        for number in range(9):
            add_candidate(session, source, method, add_image_row(session, f"{number}", 8 + number % 2), seed=number)
    jobs = list(find_missing(database, [SHARP]))
    assert sorted(job.image_id for job in jobs) == list(range(1, 10))
    assert [int(job.file.sha256[0]) % 2 for job in jobs] == [0, 0, 1, 1, 0, 0, 1, 1, 0]
    assert [len(batch) for batch in make_batches(iter(jobs), 4)] == [4, 4, 1]


def row_of(image_id: int, value: float | None = 1.0, failure: str | None = None) -> dict[str, object]:
    return {
        "image_id": image_id,
        "metric": "sharpness",
        "version": "facereward 1",
        "reference": "",
        "value": value,
        "raw_value": value,
        "failure": failure,
    }


def test_a_value_is_stored_once_whoever_comes_second(two_sources):
    store_values(two_sources, [row_of(4)])
    store_values(two_sources, [row_of(4, 2.0), row_of(5, 2.0)])
    store_values(two_sources, [])
    with two_sources.read() as session:
        rows = session.execute(select(MetricValue.image_id, MetricValue.value).order_by(MetricValue.image_id)).all()
        assert rows == [(4, 1.0), (5, 2.0)]


def test_batches_are_stored_as_they_come_and_the_report_counts_them(two_sources, monkeypatch):
    results = [BatchResult(2, [row_of(4), row_of(5, None, "flat")], []), BatchResult(1, [], [("60.png", "truncated")])]
    monkeypatch.setattr(measure, "measure_here", lambda *_args: iter(results))
    told = []
    report = measure_missing(two_sources, None, OURS, progress=lambda done, total: told.append((done, total)))
    assert (report.images, report.values, report.failures) == (3, 1, {"sharpness: flat": 1})
    assert (report.unreadable, report.unreadable_count) == ([("60.png", "truncated")], 1)
    assert told == [(0, 3), (2, 3), (3, 3)]


def test_batches_stored_before_a_fault_stay(two_sources, monkeypatch):
    def two_and_a_fault(*_args):
        yield BatchResult(1, [row_of(4)])
        raise MetricError("There is no GPU.")

    monkeypatch.setattr(measure, "measure_here", two_and_a_fault)
    with pytest.raises(UserError, match=r"There is no GPU\."):
        measure_missing(two_sources, None, OURS)
    assert len(missing_of(two_sources, SHARP)) == 2


def test_nothing_missing_starts_nothing(database, monkeypatch):
    monkeypatch.setattr(measure, "measure_here", lambda *_args: pytest.fail("started workers"))
    assert measure_missing(database, None, OURS).images == 0


@pytest.mark.parametrize("option", [{"workers": 0}, {"batch_size": 0}])
def test_numbers_below_one_are_refused(database, option):
    with pytest.raises(UserError, match="give 1 or more"):
        measure_missing(database, None, OURS, **option)


def test_a_full_disk_is_one_line_and_stores_nothing_of_the_batch(two_sources):
    two_sources.engine.dispose()

    @event.listens_for(two_sources.engine, "connect")
    def allow_no_more_pages(connection, _record):
        connection.execute("PRAGMA max_page_count = 1")  # SQLite takes the present number for it

    store_values(two_sources, [row_of(4)])
    with pytest.raises(UserError, match=r"^The disk is full\. What was stored before stays; free some space"):
        store_values(two_sources, [{**row_of(5), "metric": f"metric {number}"} for number in range(20_000)])
    assert fetch(two_sources, select(MetricValue.image_id)) == [4]

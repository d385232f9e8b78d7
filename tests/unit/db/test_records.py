import hashlib
import math
from collections import Counter

import pytest
from sqlalchemy import delete, insert, select

from db.errors import UserError
from db.models import Candidate, Image, Method, MetricValue, Source, Split
from db.records import (
    add_candidate,
    add_method,
    add_metric_value,
    add_source,
    candidate_key,
    draw_split,
    insert_row,
    pair_key,
)
from db.session import Database
from tests.making import add_image_row, count_rows, fetch


@pytest.fixture
def two_images(database: Database) -> list[Image]:
    """Rows of two images, without files."""
    with database.write() as session:
        return [add_image_row(session, letter * 64) for letter in ("a", "b")]


def test_a_candidates_key_is_the_documented_hash() -> None:
    expected = hashlib.sha256(b"face1\ngfpgan\n7").hexdigest()[:32]
    assert candidate_key("face1", "gfpgan", 7) == expected
    keys = {
        candidate_key(*parts) for parts in (("face1", "gfpgan", 8), ("face1", "gfpgan2", 7), ("face", "1gfpgan", 7))
    }
    assert len({expected, *keys}) == 4


def test_a_pair_is_the_same_whichever_way_round() -> None:
    first, second = "0" * 32, "f" * 32
    key, first_is_a = pair_key(first, second)
    assert first_is_a
    assert pair_key(second, first) == (key, False)
    assert key == hashlib.sha256(f"{first}\n{second}".encode()).hexdigest()[:32]
    assert pair_key(first, "e" * 32)[0] != key


def test_a_pairs_sides_say_nothing_of_the_method() -> None:
    """With method names in order, a is the first method's candidate about half of the time."""
    first_is_a = sum(
        pair_key(candidate_key(f"face{number}", "bicubic", 0), candidate_key(f"face{number}", "gfpgan", 0))[1]
        for number in range(1000)
    )
    assert abs(first_is_a - 500) < 5 * math.sqrt(250)


def test_split_shares_are_the_asked_ones() -> None:
    drawn = Counter(draw_split(f"person {number}", 0, val_share=0.1, test_share=0.2) for number in range(10_000))
    for split, share in ((Split.test, 0.2), (Split.val, 0.1), (Split.train, 0.7)):
        assert abs(drawn[split] - 10_000 * share) < 4 * math.sqrt(10_000 * share * (1 - share)), split


def test_a_split_is_the_same_for_ever() -> None:
    expected = {}
    for number in range(200):
        draw = int(hashlib.sha256(f"3\nperson {number}".encode()).hexdigest()[:13], 16) / 16**13
        expected[number] = Split.test if draw < 0.25 else Split.val if draw < 0.5 else Split.train
    assert {number: draw_split(f"person {number}", 3, 0.25, 0.25) for number in range(200)} == expected
    known = {"Eileen Collins": Split.train, "Grace Hopper": Split.train}
    assert {group: draw_split(group, 0, 0.1, 0.1) for group in known} == known


def test_a_larger_test_share_only_adds_to_the_test_split() -> None:
    groups = [f"person {number}" for number in range(500)]
    small = {group for group in groups if draw_split(group, 0, 0.1, 0.1) is Split.test}
    large = {group for group in groups if draw_split(group, 0, 0.1, 0.3) is Split.test}
    assert small < large
    assert {draw_split(group, 0, 0.0, 0.0) for group in groups} == {Split.train}


def test_another_seed_draws_another_split() -> None:
    groups = [f"person {number}" for number in range(200)]
    assert [draw_split(group, 0, 0.25, 0.25) for group in groups] != [
        draw_split(group, 1, 0.25, 0.25) for group in groups
    ]


def test_a_method_is_added_once(database: Database) -> None:
    with database.write() as session:
        first = add_method(session, "gfpgan", {"version": "1.4"})
        assert add_method(session, "gfpgan") is first
        assert add_method(session, "GFPGAN") is not first
    with database.read() as session:
        assert {method.name: method.settings for method in session.scalars(select(Method))} == {
            "gfpgan": {"version": "1.4"},
            "GFPGAN": {},
        }


def test_a_source_is_added_once_and_completed(database: Database, two_images: list[Image]) -> None:
    lq, hq = two_images
    with database.write() as session:
        bare = add_source(session, "face1", Split.val)
        assert (bare.group, bare.lq_image_id, bare.hq_image_id, bare.caption) == ("face1", None, None, None)
        assert add_source(session, "face1", Split.train, lq=lq, caption="a smile") is bare
        add_source(session, "face1", Split.train, hq=hq)
        add_source(session, "face1", Split.train, lq=lq, hq=hq, caption="a smile", group="face1")
    with database.read() as session:
        stored = session.scalars(select(Source)).one()
        assert (stored.lq_image_id, stored.hq_image_id, stored.caption) == (lq.id, hq.id, "a smile")
        assert stored.split is Split.val  # the split is drawn once


def test_a_source_that_is_there_otherwise_is_refused(database: Database, two_images: list[Image]) -> None:
    lq, hq = two_images
    with database.write() as session:
        add_source(session, "face1", Split.train, group="Ada", caption="a smile", lq=lq, hq=hq)
    for changes, said in (
        ({"group": "Bea"}, "already stored with group 'Ada', not 'Bea'"),
        ({"lq": hq}, "already stored with another lq image"),
        ({"hq": lq}, "already stored with another hq image"),
        ({"caption": "a frown"}, "already stored with the caption 'a smile', not 'a frown'"),
    ):
        with pytest.raises(UserError, match=f"source 'face1' is {said}"), database.write() as session:
            add_source(session, "face1", Split.train, **changes)


def test_a_candidate_is_added_once_a_seed(database: Database, two_images: list[Image]) -> None:
    one, other = two_images
    with database.write() as session:
        source, method = add_source(session, "face1", Split.train), add_method(session, "gfpgan")
        first = add_candidate(session, source, method, one)
        assert add_candidate(session, source, method, one) is first
        assert add_candidate(session, source, method, other, seed=1) is not first
    said = "source 'face1' is already stored with another image by method 'gfpgan', seed 0"
    with pytest.raises(UserError, match=said), database.write() as session:
        add_candidate(session, source, method, other)
    assert count_rows(database, Candidate) == [2]


def test_metric_values_are_kept_once_and_never_infinite(database: Database, two_images: list[Image]) -> None:
    one, other = two_images
    with database.write() as session:
        add_metric_value(session, one, "niqe", "1", value=-4.0, raw_value=4.0)
        add_metric_value(session, one, "niqe", "1", value=-5.0, raw_value=5.0)
        add_metric_value(session, one, "lpips", "1", value=-0.2, raw_value=0.2, reference=other.sha256)
        add_metric_value(session, one, "psnr", "1", value=math.inf, raw_value=math.inf)
        add_metric_value(session, other, "psnr", "1", value=math.nan, raw_value=1.0)
        add_metric_value(session, other, "niqe", "1", value=None, raw_value=None, failure="no face found")
    with database.read() as session:
        stored = {
            (row.image_id, row.metric): (row.value, row.raw_value, row.reference, row.failure)
            for row in session.scalars(select(MetricValue))
        }
    assert stored == {
        (one.id, "niqe"): (-5.0, 5.0, "", None),
        (one.id, "lpips"): (-0.2, 0.2, other.sha256, None),
        (one.id, "psnr"): (None, None, "", "the metric gave inf"),
        (other.id, "psnr"): (None, None, "", "the metric gave nan"),
        (other.id, "niqe"): (None, None, "", "no face found"),
    }


def test_a_row_written_at_once_is_the_sessions_own_also_under_the_number_of_a_deleted_one(database: Database) -> None:
    statement = insert(Method)
    with database.write() as session:
        first = Method(name="first", settings={"a": 1})
        insert_row(session, statement, first)
        session.connection().execute(delete(Method))
        second = Method(name="second")
        insert_row(session, statement, second)
        assert (second.id, second.settings, session.get(Method, second.id)) == (first.id, {}, second)
        second.name = "renamed"
    assert fetch(database, select(Method.name)) == ["renamed"]

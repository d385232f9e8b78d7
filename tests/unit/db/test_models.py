"""The constraints of the schema: what no caller can store, whatever it does."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import Session

from db.models import (
    Base,
    Candidate,
    Choice,
    Image,
    Judgment,
    Label,
    Lease,
    MetricValue,
    Origin,
    Pair,
    Person,
    Project,
    Role,
    Run,
    Side,
    Source,
    Split,
    utc_now,
)
from db.session import Database
from tests.making import add_candidates, fetch


@pytest.fixture
def pair_row(database: Database) -> dict[str, Any]:
    """The columns of a pair of two stored candidates, and one stored person with id 1."""
    with database.write() as session:
        first, second = add_candidates(session, "face1", ["m1", "m2"])
        session.add(Person(name="Ada", role=Role.annotator, public_id="p1"))
        session.add(Person(name="Bea", role=Role.annotator, public_id="p2"))
        return {"key": "k" * 32, "source_id": first.source_id, "a_id": first.id, "b_id": second.id, "shuffle_key": 5}


@pytest.fixture
def pair_id(database: Database, pair_row: dict[str, Any]) -> int:
    with database.write() as session:
        pair = Pair(**pair_row)
        session.add(pair)
        session.flush()
        return pair.id


def judge(session: Session, pair_id: int, uuid: str, **changes: Any) -> Judgment:
    columns: dict[str, Any] = {"person_id": 1, "choice": Choice.a, "shown_left": Side.a, "seconds": 1.0, **changes}
    judgment = Judgment(uuid=uuid, pair_id=pair_id, **columns)
    session.add(judgment)
    session.flush()
    return judgment


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"choice": Choice.skip}, "skip_has_reason"),
        ({"choice": Choice.tie, "skip_reason": "identical"}, "skip_has_reason"),
        ({"seconds": -0.1}, "seconds_not_negative"),
        ({"repeat_no": -1}, "repeat_not_negative"),
        ({"person_id": 99}, "FOREIGN KEY"),
    ],
)
def test_wrong_judgments_are_refused(
    database: Database, pair_id: int, changes: dict[str, Any], constraint: str
) -> None:
    with pytest.raises(IntegrityError, match=constraint), database.write() as session:
        judge(session, pair_id, "u1", **changes)


def test_one_live_judgment_a_pair_person_and_repeat(database: Database, pair_id: int) -> None:
    with database.write() as session:
        judge(session, pair_id, "first")
        judge(session, pair_id, "the repeat", repeat_no=1)
        judge(session, pair_id, "another person's", person_id=2)
        judge(session, pair_id, "with its reason", person_id=2, repeat_no=1, choice=Choice.skip, skip_reason="both bad")
    with pytest.raises(IntegrityError, match=r"judgment\.pair_id"), database.write() as session:
        judge(session, pair_id, "second")
    with database.write() as session:
        session.execute(update(Judgment).where(Judgment.uuid == "first").values(superseded_at=utc_now()))
        judge(session, pair_id, "second")
    with pytest.raises(IntegrityError, match=r"judgment\.uuid"), database.write() as session:
        judge(session, pair_id, "second", repeat_no=2)


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"key": "other"}, None),
        ({}, "pair.key"),
        ({"key": "other", "b_id": "a_id"}, "two_candidates"),
        ({"key": "other", "judgment_count": -1}, "count_not_negative"),
        ({"key": "other", "gold_answer": "left"}, "gold_answer_known"),
        ({"key": "other", "a_id": 99}, "FOREIGN KEY"),
    ],
)
def test_wrong_pairs_are_refused(
    database: Database, pair_row: dict[str, Any], pair_id: int, changes: dict[str, Any], constraint: str | None
) -> None:
    row = {**pair_row, **changes}
    row["b_id"] = row["a_id"] if row["b_id"] == "a_id" else row["b_id"]
    if constraint is None:
        with database.write() as session:
            session.add(Pair(**row))
        return
    with pytest.raises(IntegrityError, match=constraint), database.write() as session:
        session.add(Pair(**row))
    assert fetch(database, select(Pair.id)) == [pair_id]


def test_the_queue_level_follows_the_counts(database: Database, pair_id: int) -> None:
    expected = {
        (0, 1, None): 0,
        (1, 1, None): None,
        (1, 3, None): 1,
        (2, 3, None): 2,
        (3, 3, None): None,
        (0, 1, "a"): None,
    }
    for (count, wanted, gold), level in expected.items():
        with database.write() as session:
            session.execute(update(Pair).values(judgment_count=count, judgments_wanted=wanted, gold_answer=gold))
        with database.read() as session:
            assert session.scalar(select(Pair.queue_level)) == level, (count, wanted, gold)


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        (Source, {"key": "s", "group_key": "s", "split": "holdout"}),
        (Person, {"name": "n", "public_id": "p", "role": "owner", "simulated": False}),
        (Run, {"kind": "k", "code_version": "v", "config": "{}", "state": "paused"}),
        (Lease, {"pair_id": 1, "person_id": 1, "repeat_no": 0, "shown_left": "left", "expires_at": "2026-01-01"}),
    ],
)
@pytest.mark.usefixtures("pair_id")
def test_unknown_enum_values_are_refused_by_the_schema(
    database: Database, table: type[Base], columns: dict[str, object]
) -> None:
    names = ", ".join(columns)
    values = ", ".join(f":{name}" for name in columns)
    created = "" if table is Lease else ", created_at"
    created_value = "" if table is Lease else ", '2026-01-01'"
    statement = f"INSERT INTO {table.__tablename__} ({names}{created}) VALUES ({values}{created_value})"
    with pytest.raises(IntegrityError, match="CHECK"), database.write() as session:
        session.connection().exec_driver_sql(statement, columns)


@pytest.mark.usefixtures("pair_id")
def test_unknown_enum_values_are_refused_by_the_models(database: Database) -> None:
    with pytest.raises(StatementError, match="holdout"), database.write() as session:
        session.execute(insert(Source).values(key="s", group="s", split="holdout"))


def test_one_live_label_a_pair_and_origin(database: Database, pair_id: int) -> None:
    def label(session: Session, p_a: float = 1.0, origin: Origin = Origin.human, weight: float = 1.0) -> Label:
        row = Label(pair_id=pair_id, origin=origin, made_by="majority", p_a=p_a, weight=weight)
        session.add(row)
        session.flush()
        return row

    with database.write() as session:
        first = label(session)
        label(session, origin=Origin.svm)
    with pytest.raises(IntegrityError, match=r"label\.pair_id"), database.write() as session:
        label(session)
    with database.write() as session:
        session.merge(first).superseded_at = utc_now()
        session.flush()
        label(session, p_a=0.5)
    with database.write() as session:
        session.execute(update(Label).values(superseded_at=utc_now()))
    for p_a, weight, constraint in ((1.01, 1.0, "p_a_is_probability"), (1.0, -1.0, "weight_not_negative")):
        with pytest.raises(IntegrityError, match=constraint), database.write() as session:
            label(session, p_a=p_a, weight=weight)


def test_the_other_rows_that_are_unique(database: Database, pair_id: int) -> None:
    with database.write() as session:
        first, _ = add_candidates(session, "face1", ["m1", "m2"])
        session.add(Lease(pair_id=pair_id, person_id=1, shown_left=Side.a, expires_at=utc_now()))
        session.add(MetricValue(image_id=first.image_id, metric="niqe", version="1", value=1.0))
        session.add(Project(id=1, settings={}))
    for row, said in (
        (Source(key="face1", group="x", split=Split.train), "source.key"),
        (Candidate(source_id=1, method_id=first.method_id, image_id=2, seed=0), "candidate.source_id"),
        (Lease(pair_id=pair_id, person_id=1, shown_left=Side.b, expires_at=utc_now()), "lease.pair_id"),
        (MetricValue(image_id=first.image_id, metric="niqe", version="1", value=2.0), "metric_value.image_id"),
        (Person(name="Ada", role=Role.admin, public_id="p9"), "person.name"),
        (Project(id=2, settings={}), "single_row"),
        (Image(sha256="ab", suffix=".png", width_px=1, height_px=1, size_bytes=1), "sha256_is_hex"),
        (Image(sha256="a" * 64, suffix=".png", width_px=0, height_px=1, size_bytes=1), "has_pixels"),
    ):
        with pytest.raises(IntegrityError, match=said), database.write() as session:
            session.add(row)


def test_times_are_utc_and_aware(database: Database) -> None:
    noon_in_delhi = datetime(2026, 3, 1, 12, 0, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    with database.write() as session:
        session.add(Run(kind="k", code_version="v", config={}, started_at=noon_in_delhi))
    with database.read() as session:
        run = session.scalars(select(Run)).one()
        assert run.started_at == noon_in_delhi
        assert run.started_at is not None
        assert run.started_at.tzinfo is UTC
        assert run.started_at.hour == 6
        assert run.created_at.tzinfo is UTC
    with pytest.raises(StatementError, match="naive time"), database.write() as session:
        session.add(Run(kind="k", code_version="v", config={}, started_at=datetime(2026, 3, 1)))

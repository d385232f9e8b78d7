"""What SQLite and PostgreSQL must do alike: migrate, keep the constraints, label from photo to label."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import select, text
from sqlalchemy.exc import DataError, IntegrityError, StatementError

from annotate.judging.judgments import Answer, record_judgment, undo_judgment
from annotate.judging.labels import resolve_labels
from annotate.judging.pairs import lease_pairs
from annotate.judging.people import add_person
from annotate.judging.queue import PAIR_QUEUE
from db.errors import UserError
from db.models import Base, Choice, Judgment, Label, Lease, Pair, Project, Side
from db.project import ProjectSettings, load_settings, save_settings
from db.session import open_database
from tests.making import add_pairs, judge

pytestmark = pytest.mark.filterwarnings("ignore:The (inplace|copy) keyword")  # crowd-kit's, not ours


@pytest.fixture
def fill(any_database):
    """`fill(pairs, people)`: that many pairs and people; gives the people's ids."""

    def make(pairs, people, **settings):
        with any_database.write() as session:
            add_pairs(session, pairs, **{"repeat_share": 0.0, "gold_share": 0.0, **settings})
            return [add_person(session, f"person {number}").id for number in range(people)]

    return make


def test_the_schema_is_the_models_and_migrating_again_changes_nothing(any_database, data, database_url):
    open_database(data, database_url).close()
    with any_database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_two_processes_may_open_an_empty_database_at_once(data, database_url):
    with ThreadPoolExecutor(4) as pool:
        for opened in pool.map(lambda _: open_database(data, database_url), range(4)):
            opened.close()


def test_a_newer_database_is_refused(any_database, data, database_url):
    with any_database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match="revision '9999', which this version"):
        open_database(data, database_url)


def test_from_pair_to_label(any_database, fill):
    ada, ben = fill(3, 2, judgments_per_pair=2)
    rng = random.Random(0)
    with any_database.write() as session:
        settings = load_settings(session)
        for person, choice in ((ada, Choice.a), (ben, Choice.tie)):
            for lease in lease_pairs(session, person, settings, rng, count=5, holding=[]):
                record_judgment(
                    session,
                    person,
                    Answer(str(uuid4()), lease.pair_id, 0, lease.shown_left, choice, 1.5, reasons=["eyes"]),
                )
        assert lease_pairs(session, ada, settings, rng, count=1, holding=[]) == []
    with any_database.write() as session:
        last = session.scalars(select(Judgment).order_by(Judgment.id.desc()).limit(1)).one()
        assert (last.reasons, last.seconds, last.created_at.tzinfo is not None) == (["eyes"], 1.5, True)
        undo_judgment(session, ben, last.uuid, settings)
        assert resolve_labels(session).added == 3
    with any_database.read() as session:
        labels = {label.pair_id: label for label in session.scalars(select(Label))}
        assert sorted(label.p_a for label in labels.values()) == [0.75, 0.75, 1.0]
        assert labels[last.pair_id].p_a == 1.0
        assert {len(label.judgments) for label in labels.values()} == {1, 2}
        assert session.scalars(select(Pair.queue_level).order_by(Pair.queue_level)).all().count(1) == 1
    with any_database.write() as session:
        assert resolve_labels(session).unchanged == 3
        assert resolve_labels(session, "dawid-skene").replaced == 3


def test_repeats_and_gold_are_found(any_database, fill):
    (ada,) = fill(30, 1, repeat_share=0.4, repeat_gap=2, gold_share=0.3)
    rng, kinds = random.Random(1), []
    with any_database.write() as session:
        settings = load_settings(session)
        gold = session.scalars(select(Pair.id).limit(8)).all()
        session.execute(text("UPDATE pair SET gold_answer = 'a' WHERE id <= :last"), {"last": max(gold)})
        while leases := lease_pairs(session, ada, settings, rng, count=1, holding=[]):
            (lease,) = leases
            kinds.append("repeat" if lease.repeat_no else "gold" if lease.pair_id in gold else "queue")
            record_judgment(
                session, ada, Answer(str(uuid4()), lease.pair_id, lease.repeat_no, lease.shown_left, Choice.b, 1.0)
            )
    assert kinds.count("queue") == 22
    assert 0 < kinds.count("gold") <= 8
    assert kinds.count("repeat") > 2


def live_judgment(**changes):
    values = {
        "uuid": str(uuid4()),
        "pair_id": 1,
        "person_id": 1,
        "choice": Choice.a,
        "shown_left": Side.a,
        "seconds": 1.0,
    }
    return Judgment(**{**values, **changes})


@pytest.mark.parametrize(
    "break_it",
    [
        lambda session: session.add_all([live_judgment(), live_judgment()]),
        lambda session: session.add_all([live_judgment(uuid="1" * 36), live_judgment(uuid="1" * 36, repeat_no=1)]),
        lambda session: session.add(live_judgment(choice=Choice.skip)),
        lambda session: session.add(live_judgment(skip_reason="identical")),
        lambda session: session.add(live_judgment(seconds=-1.0)),
        lambda session: session.add(live_judgment(choice="maybe")),
        lambda session: session.add(live_judgment(pair_id=77)),
        lambda session: session.execute(text("UPDATE person SET role = 'king'")),
        lambda session: session.execute(text("UPDATE pair SET b_id = a_id")),
        lambda session: session.execute(text("UPDATE pair SET judgment_count = -1")),
        lambda session: session.execute(text("UPDATE pair SET gold_answer = 'left'")),
        lambda session: session.add(Project(id=2, settings={})),
        lambda session: session.add(Label(pair_id=1, origin="human", made_by="x", p_a=1.5)),
        lambda session: session.add_all([Label(pair_id=1, origin="svm", made_by=m, p_a=0.5) for m in "xy"]),
    ],
)
def test_constraints_hold_whoever_writes(any_database, fill, break_it):
    fill(1, 1)
    with pytest.raises((IntegrityError, DataError, StatementError)), any_database.write() as session:
        break_it(session)
    with any_database.read() as session:
        assert session.scalars(select(Judgment)).all() == []
        assert session.scalars(select(Label)).all() == []


def test_superseded_rows_do_not_count_for_uniqueness(any_database, fill):
    (ada,) = fill(1, 1)
    with any_database.write() as session:
        before = None
        for _ in range(3):
            before = judge(session, ada, 1, replaces=before).uuid
    with any_database.read() as session:
        rows = session.scalars(select(Judgment).order_by(Judgment.id)).all()
        assert [row.superseded_at is None for row in rows] == [False, False, True]


def test_a_block_that_raises_leaves_nothing(any_database, fill):
    (ada,) = fill(1, 1)

    def judge_a_pair_that_is_there_and_one_that_is_not():
        with any_database.write() as session:
            for pair_id in (1, 99):
                judge(session, ada, pair_id)

    with pytest.raises(UserError, match="no pair 99"):
        judge_a_pair_that_is_there_and_one_that_is_not()
    with any_database.read() as session:
        assert session.scalars(select(Judgment)).all() == []
        assert session.scalars(select(Pair.judgment_count)).all() == [0]
        assert session.scalars(select(Lease)).all() == []


def test_an_unreachable_server_is_one_clear_message(data):
    with pytest.raises(UserError, match="Cannot open the database"):
        open_database(data, "postgresql+psycopg://nobody@/none?host=/nowhere")


def test_default_settings_survive_a_round_trip(any_database):
    with any_database.write() as session:
        save_settings(session, {"title": "Gesichter — Łódź"})
    with any_database.read() as session:
        assert load_settings(session) == ProjectSettings(title="Gesichter — Łódź")


def test_connections_that_the_server_closed_are_replaced_unnoticed(data, postgres_url):
    database = open_database(data, postgres_url)
    with database.read() as one, database.read() as another:
        ended = [session.scalar(text("SELECT pg_backend_pid()")) for session in (one, another)]
    other = open_database(data, postgres_url)
    with other.read() as session:
        for number in ended:
            session.execute(text("SELECT pg_terminate_backend(:number, 5000)"), {"number": number})
    for _ in range(3):
        with database.look_up() as connection:
            assert connection.scalar(text("SELECT pg_backend_pid()")) not in ended
    with database.write() as session:  # a look-up leaves no connection without transactions behind
        add_person(session, "ada")
        session.rollback()
    with database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM person")) == 0
    other.close()
    database.close()


def test_the_queue_is_walked_by_its_index_once_the_tables_are_counted(data, postgres_url):
    database = open_database(data, postgres_url)
    with database.write() as session:
        add_pairs(session, 30, [f"m{number}" for number in range(8)])
    database.analyze()
    with database.read() as session:
        counted = session.scalar(text("SELECT reltuples FROM pg_class WHERE relname = 'pair'"))
        assert counted == 30 * 28
        values = {"asker": 1, "besides": [3], "level": 0, "start": 5}
        asked = (
            PAIR_QUEUE.walk[0]
            .params(values)
            .compile(database.engine, compile_kwargs={"literal_binds": True, "render_postcompile": True})
        )
        plan = "\n".join(session.scalars(text(f"EXPLAIN {asked}")))
    assert "ix_pair_queue" in plan
    assert "Sort" not in plan, plan
    database.close()

"""A database of an older version keeps its rows when it is opened."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from alembic import command
from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError, StatementError

from annotate.judging.discard import discard_answers
from db.engine import alembic_config, default_url, make_engine
from db.models import (
    Asked,
    Candidate,
    Judgment,
    Label,
    Lease,
    Pair,
    Person,
    Picked,
    Question,
    Run,
    RunState,
    Shortlist,
    Task,
    TaskCandidate,
)
from db.project import ProjectSettings, question_key, store_question
from db.session import open_database

OLD_ROWS = """
INSERT INTO image (id, sha256, suffix, width_px, height_px, size_bytes, created_at)
    VALUES (1, '{sha256}', '.png', 8, 8, 1, '2026-01-01 00:00:00');
INSERT INTO method (id, name, settings, created_at) VALUES (1, 'm1', '{{}}', '2026-01-01 00:00:00');
INSERT INTO source (id, key, group_key, split, created_at) VALUES
    (1, 'learn', 'learn', 'train', '2026-01-01 00:00:00'), (2, 'exam', 'exam', 'test', '2026-01-01 00:00:00');
INSERT INTO candidate (id, source_id, method_id, image_id, seed, created_at) VALUES
    (1, 1, 1, 1, 0, '2026-01-01 00:00:00'), (2, 1, 1, 1, 1, '2026-01-01 00:00:00');
INSERT INTO pair (id, key, source_id, a_id, b_id, shuffle_key, judgments_wanted, judgment_count, created_at) VALUES
    (1, '{key}a', 1, 1, 2, 5, 2, 1, '2026-01-01 00:00:00'), (2, '{key}1', 1, 1, 2, 6, 1, 0, '2026-01-01 00:00:00'),
    (3, '{key}b', 2, 1, 2, 7, 1, 0, '2026-01-01 00:00:00');
INSERT INTO person (id, name, public_id, role, simulated, created_at)
    VALUES (1, 'Ada', 'p1', 'annotator', false, '2026-01-01 00:00:00');
INSERT INTO judgment
    (id, uuid, pair_id, person_id, repeat_no, choice, reasons, shown_left, view_mode, seconds, created_at)
    VALUES (1, 'u1', 1, 1, 0, 'a', '[]', 'a', 'fit', 1.5, '2026-01-01 00:00:00');
INSERT INTO lease (id, pair_id, person_id, repeat_no, shown_left, expires_at)
    VALUES (1, 2, 1, 0, 'b', '2026-01-01 00:00:00');
INSERT INTO label (id, pair_id, origin, made_by, p_a, weight, created_at)
    VALUES (1, 1, 'human', 'majority', 1.0, 1.0, '2026-01-01 00:00:00');
INSERT INTO label_judgment (label_id, judgment_id) VALUES (1, 1);
"""


@pytest.fixture
def engine(data, database_url):
    """An engine for a database that is not there yet."""
    data.mkdir()
    made = make_engine(database_url or default_url(data))
    yield made
    made.dispose()


@contextmanager
def migrated(engine, how, revision):
    """A connection to the database once it was brought up or back to a revision."""
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        how(config, revision)
        yield connection


def add_old_rows(connection):
    for statement in OLD_ROWS.format(sha256="0" * 64, key="f" * 31).split(";\n"):
        if statement.strip():
            connection.execute(text(statement))


def test_rows_of_the_first_version_were_picked_at_random_and_pairs_get_their_reserve(data, database_url, engine):
    with migrated(engine, command.upgrade, "0001") as connection:
        add_old_rows(connection)
    database = open_database(data, database_url)
    with database.read() as session:
        judgment, lease = session.scalars(select(Judgment)).one(), session.scalars(select(Lease)).one()
        assert (judgment.picked, judgment.seconds, lease.picked) == (Picked.random, 1.5, Picked.random)
        reserved = session.execute(select(Pair.id, Pair.reserved, Pair.queue_level).order_by(Pair.id)).all()
        assert reserved == [(1, False, 1), (2, True, 0), (3, True, 0)], "the key's last digit, and the test split"
        assert session.scalars(select(Shortlist)).all() == []
    database.close()
    with migrated(engine, command.downgrade, "0001") as connection:  # and back
        assert connection.execute(text("SELECT uuid, choice FROM judgment")).all() == [("u1", "a")]


@pytest.mark.parametrize("changed", [None, "2025-12-31 00:00:00", "2026-01-02 00:00:00"])
def test_a_judgment_of_before_answered_the_present_question_where_that_is_known(data, database_url, engine, changed):
    """It is known where the settings were never stored, or last changed before the judgment."""
    settings = ProjectSettings() if changed is None else ProjectSettings(question="¿Cuál es mejor?")
    with migrated(engine, command.upgrade, "0003") as connection:
        add_old_rows(connection)
        if changed is not None:
            connection.execute(
                text("INSERT INTO project (id, settings, updated_at) VALUES (1, :settings, :changed)"),
                {"settings": settings.model_dump_json(), "changed": changed},
            )
    database = open_database(data, database_url)
    with database.write() as session:
        question, judgment = session.scalars(select(Question)).one(), session.scalars(select(Judgment)).one()
        assert (question.id, question.key, question.reasons) == (1, question_key(settings), settings.reasons)
        assert judgment.question_id == (None if changed == "2026-01-02 00:00:00" else 1)
        assert store_question(session, settings) is question
        assert store_question(session, ProjectSettings(question="Next?")).id == 2, "the numbers go on"
    database.close()
    with migrated(engine, command.downgrade, "0003") as connection:  # and back
        assert connection.execute(text("SELECT uuid, choice FROM judgment")).all() == [("u1", "a")]


def test_the_servers_time_of_before_is_not_known_and_what_was_discarded_stays_out_of_older_versions(
    data, database_url, engine
):
    with migrated(engine, command.upgrade, "0004") as connection:
        add_old_rows(connection)
    database = open_database(data, database_url)
    with database.read() as session:
        judgment, lease = session.scalars(select(Judgment)).one(), session.scalars(select(Lease)).one()
        assert (judgment.server_seconds, judgment.discarded_at, lease.leased_at) == (None, None, None)
    with database.write() as session:
        discard_answers(session, session.get_one(Person, 1).name)
    with pytest.raises(IntegrityError, match="server_seconds_not_negative"), database.write() as session:
        session.execute(update(Judgment).values(server_seconds=-1))
    database.close()
    with migrated(engine, command.downgrade, "0004") as connection:  # and back
        assert connection.execute(text("SELECT uuid FROM judgment WHERE superseded_at IS NOT NULL")).all() == [("u1",)]
        assert connection.execute(text("SELECT id FROM lease")).all() == []


def test_runs_of_before_the_queue_keep_what_they_were_and_none_is_started_by_surprise(data, database_url, engine):
    with migrated(engine, command.upgrade, "0002") as connection:
        for number, (state, pid) in enumerate((("finished", 7), ("running", 8), ("queued", 9), ("queued", None)), 1):
            row = {"id": number, "state": state, "pid": pid}
            connection.execute(
                text(
                    "INSERT INTO run (id, kind, config, state, pid, code_version, created_at) VALUES "
                    "(:id, 'annotate pair', '{\"seed\": 3}', :state, :pid, 'v', '2026-01-01 00:00:00')"
                ),
                row,
            )
    database = open_database(data, database_url)
    with database.read() as session:
        runs = session.scalars(select(Run).order_by(Run.id)).all()
        assert [run.state for run in runs] == [RunState.finished, RunState.running, RunState.queued, RunState.lost]
        assert {(tuple(run.arguments), tuple(run.after), run.cwd, run.device, run.host) for run in runs} == {
            ((), (), None, None, None)
        }
        assert [(run.config, run.launcher) for run in runs] == [({"seed": 3}, {})] * 4
    database.close()
    with migrated(engine, command.downgrade, "0002") as connection:
        assert connection.execute(text("SELECT count(*) FROM run")).scalar() == 4


def test_who_is_signed_in_stays_so(data, database_url, engine):
    with migrated(engine, command.upgrade, "0004") as connection:
        connection.execute(
            text(
                "INSERT INTO person (id, name, public_id, role, simulated, link_hash, created_at)"
                " VALUES (1, 'Ada', 'p1', 'annotator', false, 'abc', '2026-01-01 00:00:00')"
            )
        )
    database = open_database(data, database_url)
    with database.read() as session:
        ada = session.get_one(Person, 1)
        assert (ada.session_version, ada.link_hash, ada.link_expires_at, ada.link_once) == (0, "abc", None, False)
    database.close()
    with migrated(engine, command.downgrade, "0004") as connection:  # and back
        assert connection.execute(text("SELECT name FROM person")).all() == [("Ada",)]
    engine.dispose()


def test_what_a_run_of_before_was_made_from_is_not_known(data, database_url, engine):
    with migrated(engine, command.upgrade, "0006") as connection:
        connection.execute(
            text(
                "INSERT INTO run (id, kind, config, state, arguments, after, launcher, code_version, created_at) VALUES"
                " (1, 'reward train', '{\"dataset\": \"/d\"}', 'finished', '[]', '[]', '{}', 'v',"
                " '2026-01-01 00:00:00')"
            )
        )
    database = open_database(data, database_url)
    with database.write() as session:
        old = session.get_one(Run, 1)
        assert (old.inputs, old.outputs, old.config) == (None, None, {"dataset": "/d"})
        recorded = [{"option": "dataset", "kind": "dataset", "value": "/d"}]
        session.add(Run(id=2, kind="reward train", config={}, code_version="v", inputs=recorded, outputs=[]))
    with database.read() as session:
        new = session.get_one(Run, 2)
        assert (new.inputs, new.outputs) == (recorded, [])
    database.close()
    with migrated(engine, command.downgrade, "0006") as connection:  # and back
        assert connection.execute(text("SELECT kind FROM run ORDER BY id")).all() == [("reward train",)] * 2


def test_answers_of_before_there_were_tasks_read_as_before(data, database_url, engine):
    with migrated(engine, command.upgrade, "0007") as connection:
        add_old_rows(connection)
        columns = "uuid, pair_id, person_id, repeat_no, choice, shown_left, picked, seconds, superseded_at"
        before = connection.execute(text(f"SELECT {columns} FROM judgment")).all()
        links = connection.execute(text("SELECT * FROM label_judgment")).all()
    with open_database(data, database_url).write() as session:
        assert session.execute(text(f"SELECT {columns} FROM judgment")).all() == before
        assert session.execute(text("SELECT * FROM label_judgment")).all() == links
        judgment, lease = session.scalars(select(Judgment)).one(), session.scalars(select(Lease)).one()
        assert (judgment.asked, judgment.task_id, judgment.ranking) == (Asked.pair, None, None)
        assert (lease.asked, lease.pair_id, lease.places) == (Asked.pair, 2, None)
        candidates = [Candidate(id=seed + 8, source_id=1, method_id=1, image_id=1, seed=seed) for seed in range(2, 5)]
        task = Task(key="t", source_id=1, size=3, shuffle_key=1)
        task.candidates = [
            TaskCandidate(letter=letter, candidate=candidate)
            for letter, candidate in zip("abc", candidates, strict=True)
        ]
        session.add(task)
        session.flush()
        answer = Judgment(
            id=2, uuid="u2", task_id=task.id, person_id=1, ranking="b>?", places="cab", asked="best",
            seconds=2.0,
        )  # fmt: skip
        session.add(answer)
        session.flush()
        session.add(Label(id=2, pair_id=2, origin="human", made_by="majority", p_a=1.0, judgments=[answer]))
    with migrated(engine, command.downgrade, "0007") as connection:
        assert connection.execute(text(f"SELECT {columns} FROM judgment")).all() == before
        assert connection.execute(text("SELECT * FROM label_judgment")).all() == links
        assert connection.scalar(text("SELECT count(*) FROM label")) == 1, "a label of a task's answer is gone"
    with migrated(engine, command.upgrade, "head") as connection:
        assert connection.execute(text("SELECT uuid FROM judgment")).scalars().all() == ["u1"]


@pytest.mark.parametrize(
    "values",
    [
        {"pair_id": 1, "task_id": 1}, {"task_id": None, "pair_id": None}, {"ranking": None}, {"places": None},
        {"asked": "pair"}, {"asked": "loudly"}, {"choice": "a", "ranking": None}, {"choice": "skip"},
        {"skip_reason": "both bad"}, {"shown_left": "a"},
        {"pair_id": 1, "task_id": None, "places": None, "asked": "pair", "shown_left": "a"},
    ],
)  # fmt: skip
def test_an_answer_to_a_task_that_contradicts_itself_is_refused(data, database_url, engine, values):
    with migrated(engine, command.upgrade, "head") as connection:
        add_old_rows(connection)
        connection.execute(
            text(
                "INSERT INTO task (id, key, source_id, size, shuffle_key, judgments_wanted, judgment_count, created_at)"
                " VALUES (1, 't', 1, 3, 1, 1, 0, '2026-01-01 00:00:00')"
            )
        )
    row = {"uuid": "u2", "pair_id": None, "task_id": 1, "person_id": 1, "ranking": "b>?",
           "places": "cab", "asked": "best", "seconds": 2.0}  # fmt: skip
    with open_database(data, database_url).write() as session:
        session.add(Judgment(id=2, **row))
    with pytest.raises((IntegrityError, StatementError)), open_database(data, database_url).write() as session:
        session.add(Judgment(**{**row, "id": 3, "uuid": "u3", "person_id": 1, "repeat_no": 1, **values}))

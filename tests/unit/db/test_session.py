import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from db.engine import default_url
from db.errors import UserError
from db.models import Base, Method, Source, Split
from db.records import add_method, add_source
from db.session import Database, open_database
from tests.making import fetch


def test_the_migrations_make_exactly_the_tables_of_the_models(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        tables = set(inspect(connection).get_table_names())
    assert tables == {*Base.metadata.tables, "alembic_version"}


def test_the_migrations_keep_every_check_and_computed_column(database: Database, tmp_path: Path) -> None:
    fresh = open_database(tmp_path / "other")  # compare_metadata does not look at these
    Base.metadata.drop_all(fresh.engine)
    Base.metadata.create_all(fresh.engine)
    for table in Base.metadata.tables:
        migrated, created = inspect(database.engine), inspect(fresh.engine)
        checks = [
            {check["name"]: check["sqltext"] for check in one.get_check_constraints(table)}
            for one in (migrated, created)
        ]
        assert checks[0] == checks[1], table
        computed = [
            {column["name"]: column.get("computed") for column in one.get_columns(table)} for one in (migrated, created)
        ]
        assert computed[0] == computed[1], table
    fresh.close()


def test_opening_again_changes_nothing(database: Database, data: Path) -> None:
    with database.write() as session:
        add_source(session, "face1", Split.val)
    again = open_database(data)
    assert fetch(again, select(Source.key)) == ["face1"]
    again.close()


def test_a_newer_database_is_refused_and_left_alone(database: Database, data: Path) -> None:
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match="revision '9999', which this version of FaceReward does not know"):
        open_database(data)
    with database.read() as session:
        assert session.scalar(text("SELECT version_num FROM alembic_version")) == "9999"


def test_a_text_file_as_database_is_refused_and_left_alone(data: Path) -> None:
    data.mkdir()
    file = data / "facereward.db"
    file.write_text("my notes, which are no database at all\n" * 50)
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"facereward\.db is not a database of ours"):
        open_database(data)
    assert file.read_bytes() == before


def test_a_file_as_data_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot make the data folder .*file.* Name another with --data"):
        open_database(tmp_path / "file")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "--db does not work here"),
        ("nobackend://host/name", "--db does not work here"),
        ("postgresql+psycopg://me:secret@host:port/name", "--db does not work here"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/name", r"Cannot open .*me:\*\*\*@127.0.0.1:1/name"),
        ("postgresql+psycopg://me@127.0.0.1:1/name?password=secret&sslpassword=secret", r"password=\*\*\*"),
        ("postgresql+psycopg://me:x@secret@host/name", "Write those of a password as %40"),
        ("postgresql+psycopg://me:x@host:secret/name", "not written as a URL"),
        ("postgresql+nodriver://me:secret@host/name", "no driver 'postgresql.nodriver'"),
        ("sqlite:////no/such/folder/file.db", "Cannot open the database sqlite:////no/such/folder/file.db"),
        ("sqlite://", "would be forgotten"),
        ("sqlite:///:memory:", "would be forgotten"),
    ],
)
def test_a_wrong_url_is_one_line_without_its_password(data: Path, url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        open_database(data, url)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_another_database_than_the_folders_own(data: Path, tmp_path: Path) -> None:
    database = open_database(data, f"sqlite:///{tmp_path / 'other.db'}")
    database.close()
    assert (tmp_path / "other.db").exists()
    assert list(data.iterdir()) == []
    assert default_url(data) == f"sqlite:///{data}/facereward.db"


def test_a_commit_is_on_the_disk_and_keys_are_checked(database: Database) -> None:
    with database.engine.connect() as connection:
        assert connection.scalar(text("PRAGMA synchronous")) == 2  # FULL
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
    with pytest.raises(IntegrityError, match="FOREIGN KEY"), database.write() as session:
        session.execute(
            text("INSERT INTO method (name, settings, run_id, created_at) VALUES ('m', '{}', 7, '2026-01-01')")
        )


def _add_and_fail(session: Session) -> None:
    add_method(session, "thrown away")
    raise UserError("too late")


def test_a_write_is_committed_whole_or_not_at_all(database: Database) -> None:
    with database.write() as session:
        kept = add_method(session, "kept")
    assert kept.name == "kept"  # readable after the session ended
    with pytest.raises(UserError), database.write() as session:
        _add_and_fail(session)
    with database.read() as session:
        add_method(session, "never meant")
    assert fetch(database, select(Method.name)) == ["kept"]


def test_a_write_that_reads_first_waits_its_turn(database: Database) -> None:
    """Two sessions that each read a number and write it back plus one must not both read the same number."""
    with database.write() as session:
        add_method(session, "counter", {"value": 0})

    def count_up() -> None:
        for _ in range(10):
            with database.write() as session:
                counter = session.scalars(select(Method)).one()
                counter.settings = {"value": counter.settings["value"] + 1}

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert session.scalars(select(Method)).one().settings == {"value": 40}


def test_the_copy_that_tests_begin_with_is_what_migrating_makes(database: Database, tmp_path: Path) -> None:
    migrated = open_database(tmp_path / "migrated")
    schemas = []
    for opened in (database, migrated):
        with opened.read() as session:
            rows = session.execute(text("SELECT type, name, sql FROM sqlite_master ORDER BY name")).all()
        # A table that a migration copied has its constraints in any order.
        schemas.append([(kind, name, sorted((sql or "").replace(",", "").split("\n"))) for kind, name, sql in rows])
    assert len(schemas[0]) > 40
    assert schemas[0] == schemas[1]
    migrated.close()

"""`python -m db backup` while people judge, and `restore`, on SQLite and PostgreSQL."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import Engine, select, text, update

from db.__main__ import main
from db.backup import back_up, restore
from db.engine import default_url, make_engine, migrate, read_revision
from db.errors import UserError
from db.images import image_path
from db.models import Base, Choice, Judgment, MetricValue, Pair, Person, Picked, Role, Shortlist, Side, Split
from db.records import add_candidate, add_method, add_source
from db.session import Database, open_database
from tests.making import add_image_row

WRITERS = 3
BACKUPS = 3


@pytest.fixture
def filled(any_database: Database) -> Database:
    """A pair, three people, one judgment, and values that databases store in different ways."""
    with any_database.write() as session:
        source = add_source(session, "façade 1", Split.train)
        method = add_method(session, "m", {"scale": 2.5, "names": ["ä", None]})
        images = [add_image_row(session, str(n)) for n in range(2)]
        sides = [add_candidate(session, source, method, image, seed=n) for n, image in enumerate(images)]
        session.flush()
        pair = Pair(key="f" * 32, source_id=source.id, a_id=sides[0].id, b_id=sides[1].id, shuffle_key=7)
        session.add_all([pair, *(Person(name=f"p{n}", public_id=f"p{n}", role=Role.annotator) for n in range(WRITERS))])
        values = {"sum": 0.1 + 0.2, "none": None, "tiny": 1e-300, "third": 1 / 3}
        session.add_all(
            MetricValue(image_id=1, metric=name, version="1", value=value) for name, value in values.items()
        )
        session.flush()
        session.add(Shortlist(picked=Picked.uncertain, place=0, pair_id=pair.id))
        session.add(make_judgment("first", 1, 200_000))
    return any_database


def make_judgment(uuid: str, person_id: int, repeat_no: int) -> Judgment:
    fields = {"pair_id": 1, "person_id": person_id, "repeat_no": repeat_no, "choice": Choice.a, "shown_left": Side.b}
    return Judgment(uuid=uuid, reasons=["sharper"], seconds=1.5, **fields)


def read_rows(engine: Engine) -> dict[str, list[str]]:
    """Every row of every table, in an order that does not depend on the database."""
    with engine.connect() as connection:
        return {
            table.name: sorted(repr(tuple(row)) for row in connection.execute(select(table)))
            for table in Base.metadata.sorted_tables
        }


def read_uuids(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {uuid for (uuid,) in connection.execute("SELECT uuid FROM judgment")}


def read_counted(path: Path) -> tuple[int, int]:
    """(answers of the pair as its row counts them, as there are)."""
    with closing(sqlite3.connect(path)) as connection:
        row: tuple[int, int] = connection.execute(
            "SELECT (SELECT judgment_count FROM pair WHERE id = 1), count(*) - 1 FROM judgment"
        ).fetchone()
        return row


def test_a_backup_has_every_answer_that_was_acknowledged_before_it_began(
    filled: Database, database_url: str | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each answer is two rows that change together; the last backup goes into the other kind of database."""
    acknowledged: list[str] = []
    stop = threading.Event()

    def answer(person_id: int) -> None:
        for number in range(100_000):
            if stop.is_set():
                return
            uuid = f"{person_id}-{number}"
            with filled.write() as session:
                session.execute(update(Pair).values(judgment_count=Pair.judgment_count + 1))
                session.add(make_judgment(uuid, person_id, number))
            acknowledged.append(uuid)

    writers = [threading.Thread(target=answer, args=(n + 1,)) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        for number in range(BACKUPS):
            before = list(acknowledged)
            path = back_up(filled.engine, tmp_path / f"{number}.db").path
            assert set(before) <= read_uuids(path)
            counted, there = read_counted(path)
            assert counted == there >= len(before), "no answer is half in it"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        stop.set()
        for writer in writers:
            writer.join(60)
    assert len(acknowledged) > len(before) > 0, "people judged while it was made"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "data") == [
        f"{n}.db" for n in range(BACKUPS)
    ]
    other = None if database_url else request.getfixturevalue("postgres_url")
    assert restore(path, tmp_path / "other", other)["judgment"] == there + 1
    restored, kept = open_database(tmp_path / "other", other), make_engine(f"sqlite:///{path}")
    assert read_rows(restored.engine) == read_rows(kept)
    restored.close()
    kept.dispose()


def test_what_is_restored_has_the_same_rows(filled: Database, tmp_path: Path) -> None:
    with filled.engine.begin() as connection:  # somebody else's
        connection.execute(text("CREATE TABLE of_others (x INTEGER)"))
    path = tmp_path / "backup.db"
    made = back_up(filled.engine, path)
    assert (made.rows["judgment"], made.rows["person"], made.rows["metric_value"]) == (1, WRITERS, 4)
    assert restore(path, tmp_path / "other") == made.rows
    restored = open_database(tmp_path / "other")
    assert read_rows(restored.engine) == read_rows(filled.engine)
    restored.close()


def test_a_restored_postgresql_goes_on_with_numbers_of_its_own(
    database: Database, postgres_url: str, tmp_path: Path
) -> None:
    with database.write() as session:
        for name in ("a", "b", "c"):
            add_method(session, name)
    path = back_up(database.engine, tmp_path / "backup.db").path
    restore(path, tmp_path / "other", postgres_url)
    restored = open_database(tmp_path / "other", postgres_url)
    assert read_rows(restored.engine) == read_rows(database.engine)
    with restored.write() as session:
        method = add_method(session, "d")
        session.flush()
        assert method.id == 4
    restored.close()
    with pytest.raises(UserError, match="is not empty and is left as it is"):
        restore(path, tmp_path / "other", postgres_url)


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_an_older_database_is_backed_up_before_it_is_migrated(
    data: Path, database_url: str | None, revision: str, tmp_path: Path
) -> None:
    data.mkdir()
    engine = make_engine(database_url or default_url(data))
    migrate(engine, revision)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO method (name, settings, created_at) VALUES ('m', '{}', '2026-01-01')"))
    engine.dispose()
    open_database(data, database_url).close()
    (kept,) = (data / "backups").iterdir()
    old = make_engine(f"sqlite:///{kept}")
    with old.connect() as connection:
        assert read_revision(connection) == revision
    old.dispose()
    restore(kept, tmp_path / "other")
    restored = open_database(tmp_path / "other")
    with restored.read() as session:
        assert session.execute(text("SELECT name FROM method")).all() == [("m",)]
    restored.close()
    open_database(data, database_url).close()
    assert len(list((data / "backups").iterdir())) == 1, "nothing to migrate, nothing to keep"


def test_a_new_data_folder_gets_no_backup(database: Database, data: Path) -> None:
    assert not (data / "backups").exists()


def test_nothing_is_replaced_and_nothing_half_written_is_left(
    database: Database, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = back_up(database.engine, tmp_path / "backup.db").path
    with pytest.raises(UserError, match=r"backup\.db exists and is left as it is"):
        back_up(database.engine, path)
    with pytest.raises(UserError, match=r"facereward\.db exists and is left as it is; stop the app and move it away"):
        restore(path, data)
    (tmp_path / "cut.db").write_bytes(path.read_bytes()[:30_000])
    (tmp_path / "text.db").write_text("no database")
    sqlite3.connect(tmp_path / "foreign.db").execute("CREATE TABLE t (x)")
    for name in ("cut.db", "text.db", "foreign.db", "absent.db"):
        with pytest.raises(UserError, match=name):
            restore(tmp_path / name, tmp_path / "other")
        assert not list((tmp_path / "other").glob("*")), name
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000))
    with pytest.raises(UserError, match=r"needs 0\.0 GB and .* has 0\.0 GB free; name a file on another disk"):
        back_up(database.engine, tmp_path / "more" / "full.db")
    assert not list((tmp_path / "more").iterdir())


def test_the_commands_say_what_they_wrote_and_which_images_are_missing(
    database: Database, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with database.write() as session:
        for n in range(2):
            add_image_row(session, str(n) * 64)
    (tmp_path / "backups").mkdir()
    assert main(["backup", str(tmp_path / "backups"), "--data", str(data)]) == 0
    (made,) = (tmp_path / "backups").glob("facereward-2*Z.db")
    said = capsys.readouterr().out
    assert f"{made}: 0 judgment rows, 0 pair rows, 2 image rows, 0 person rows; read back and whole." in said
    assert f"copy {data / 'images'} after the backup" in said
    there = image_path(tmp_path / "other", "0" * 64, ".png")
    there.parent.mkdir(parents=True)
    there.write_bytes(b"an image")
    assert main(["restore", str(made), "--data", str(tmp_path / "other")]) == 0
    missing = image_path(tmp_path / "other", "1" * 64, ".png")
    assert f"1 of 2 image files are missing, such as {missing}: copy them back." in capsys.readouterr().out
    stored = tmp_path / "stored"
    stored.mkdir()
    (stored / "images.toml").write_text(f'store = "file://{tmp_path / "bucket"}"')
    (tmp_path / "bucket" / "00").mkdir(parents=True)
    (tmp_path / "bucket" / "00" / there.name).write_bytes(b"1")
    assert main(["restore", str(made), "--data", str(stored)]) == 0
    said = capsys.readouterr().out
    assert f"1 of 2 image files are missing, such as file://{tmp_path / 'bucket'}/11/{missing.name}: copy them" in said
    assert main(["restore", str(made), "--data", str(tmp_path / "other")]) == 2
    assert "exists and is left as it is" in capsys.readouterr().err

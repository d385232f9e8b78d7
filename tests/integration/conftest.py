"""A PostgreSQL server for the session, databases of both kinds, commands run here, and clients of the app."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from starlette.testclient import TestClient

from annotate.judging.people import add_person
from db.models import Role
from db.session import Database, open_database
from tests.making import PASSWORD, AnnotateHere, Ended, MakeClient, make_app_without_pages, make_clients, open_fresh
from ui.context import Context

_numbers = itertools.count()


def find_postgres() -> Path | None:
    """Folder of the newest initdb and postgres: Debian keeps them out of PATH."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda folder: int(folder.parent.name))
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Path]:
    """A running server without a network port; gives the folder of its socket. Its one role is `postgres`."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("needs PostgreSQL's initdb; on Debian: apt-get install postgresql")
    # A short path (a socket's may have 107 characters) that another user may enter: no pytest temporary folder.
    folder = Path(tempfile.mkdtemp(prefix="facereward-pg-"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root.
        user = "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"
        shutil.chown(folder, user)
        as_user = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]
    initdb = [programs / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run([*as_user, *initdb, "--locale=C"], check=True, capture_output=True, cwd=folder)
    options = ["-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60"]
    log = folder / "log.txt"
    with open(log, "wb") as stream:
        server = subprocess.Popen(
            [*as_user, programs / "postgres", "-D", folder / "data", *options], stderr=stream, cwd=folder
        )
    try:
        ready = [programs / "pg_isready", "-q", "-h", folder, "-t", "1"]
        while subprocess.run(ready, check=False).returncode != 0:
            assert server.poll() is None, log.read_text()
        yield folder
    finally:
        server.send_signal(signal.SIGINT)  # its fast shutdown; SIGTERM would wait for open connections
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder)


@pytest.fixture
def postgres_url(postgres_server: Path) -> Iterator[str]:
    """URL of an empty PostgreSQL database of this test's own."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(host=str(postgres_server), user="postgres", dbname="postgres", autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield f"postgresql+psycopg://postgres@/{name}?host={postgres_server}"
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """None for the data folder's own SQLite database, then the URL of an empty PostgreSQL database."""
    return str(request.getfixturevalue("postgres_url")) if request.param == "postgresql" else None


@pytest.fixture
def any_database(data: Path, database_url: str | None) -> Iterator[Database]:
    """A fresh, migrated database: the test runs once on SQLite and once on PostgreSQL."""
    opened = open_database(data, database_url) if database_url else open_fresh(data)
    yield opened
    opened.close()


@pytest.fixture
def other_data(tmp_path: Path) -> Path:
    """The data folder of another project."""
    return tmp_path / "other"


@pytest.fixture
def other(other_data: Path) -> Iterator[Database]:
    """The fresh SQLite database of another project."""
    opened = open_fresh(other_data)
    yield opened
    opened.close()


@pytest.fixture
def annotate_here(data: Path, capsys: pytest.CaptureFixture[str]) -> AnnotateHere:
    """Runs `python -m annotate …` in this process, which is quicker; on the test's data folder unless told another."""
    from annotate.__main__ import main

    def run(*arguments: str | Path, data: Path = data) -> Ended:
        capsys.readouterr()  # what was said before
        code = main([*map(str, arguments), "--data", str(data)])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def context(database: Database, data: Path) -> Context:
    """What a page is given of the test's project, without --auth."""
    return Context(database=database, data=data)


@pytest.fixture
def people(database: Database) -> None:
    """Ada, an admin, and ben, an annotator, who sign in with PASSWORD."""
    with database.write() as session:
        add_person(session, "ada", Role.admin, PASSWORD)
        add_person(session, "ben", Role.annotator, PASSWORD)


@pytest.fixture
def client(people: None, database: Database, data: Path) -> MakeClient:
    """Makes clients of one app with --auth, signed in as ada or ben; without the Gradio pages, slow to build."""
    return make_clients(make_app_without_pages(Context(database=database, data=data, auth=True)))


@pytest.fixture
def paged_client(people: None, database: Database, data: Path) -> MakeClient:
    """As `client`, with the Gradio pages."""
    from ui.server import make_app  # here: most tests need no app

    return make_clients(make_app(Context(database=database, data=data, auth=True)))


@pytest.fixture
def ada(client: MakeClient) -> TestClient:
    """The admin's browser."""
    return client("ada")


@pytest.fixture
def ben(client: MakeClient) -> TestClient:
    """The annotator's browser."""
    return client("ben")

"""The database's password: not on command lines, and not where programs that we start keep their environment."""

from __future__ import annotations

import argparse
import os

import pytest

from db.command import add_database_options, hidden_secrets
from db.engine import has_password

URL = "postgresql+psycopg://me:secret@host/name"


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_database_options(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("words", [("--db", URL), (f"--db={URL}",), ("--db", f"{URL}?sslpassword=secret")])
def test_a_password_on_a_command_line_is_warned_of(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert str(parse(*words).db).startswith(URL)
    said = capsys.readouterr().err
    assert "FACEREWARD_DB" in said
    assert "secret" not in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://me@host/name", "sqlite:////data/faces.db", "nonsense", "postgresql://me@host:port/x"]
)
def test_other_urls_are_taken_without_a_word(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse("--db", url).db == url
    assert capsys.readouterr().err == ""


def test_a_password_in_the_environment_is_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FACEREWARD_DB", URL)
    assert parse().db == URL
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("url", "has"),
    [(URL, True), ("postgresql://me@host/x?password=y", True), ("postgresql://me@host/x?host=/run", False)],
)
def test_where_a_password_may_be(url: str, has: bool) -> None:
    assert has_password(url) is has


def test_secrets_are_hidden_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEREWARD_DB", URL)
    monkeypatch.setenv("PGPASSWORD", "secret")
    with hidden_secrets():
        assert not {"FACEREWARD_DB", "PGPASSWORD"} & set(os.environ)
    assert (os.environ["FACEREWARD_DB"], os.environ["PGPASSWORD"]) == (URL, "secret")

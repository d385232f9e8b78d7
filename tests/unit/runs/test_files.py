"""A full disk leaves files as they were and is one line that says where, how much is left and how much is needed."""

from __future__ import annotations

import errno
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from db.errors import UserError
from runs import store
from runs.command_line import run_command
from runs.files import append_line, write_text_whole
from runs.space import explain_full_disk, is_disk_full
from runs.store import open_run
from tests.making import mount_disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    with mount_disk(tmp_path / "disk", "64k") as disk:
        yield disk


def test_a_line_is_there_whole_or_not_at_all(small_disk: Path) -> None:
    file = small_disk / "progress.jsonl"
    append_line(file, json.dumps({"done": 1}))
    before = file.read_bytes()
    with pytest.raises(UserError) as full:
        append_line(file, "x" * 100_000)
    assert str(full.value).startswith(f"{small_disk}: the disk is full: ")
    assert "KiB are free, about 98 KiB are needed. Free some disk space; then run the same command again." in str(
        full.value
    )
    assert file.read_bytes() == before


def test_a_file_keeps_what_it_held_and_nothing_else_stays(small_disk: Path) -> None:
    file = small_disk / "result.json"
    write_text_whole(file, "before")
    with pytest.raises(UserError, match="the disk is full"):
        write_text_whole(file, "x" * 100_000)
    assert [path.name for path in small_disk.iterdir()] == ["result.json"]
    assert file.read_text() == "before"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:858] . failed writing file data/1: file write failed"),
        RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("1000 requested and 24 written"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_it_is_known_in_the_words_of_every_writer(error: Exception, tmp_path: Path) -> None:
    assert is_disk_full(error)
    said = pytest.raises(UserError, match=r"new: the disk is full: .* are free\. Free some disk space; then do it\.")
    with said, explain_full_disk(tmp_path / "not" / "there" / "new", "do it"):
        raise error


def test_other_errors_stay_themselves(tmp_path: Path) -> None:
    for error in (OSError(errno.EACCES, "Permission denied"), RuntimeError("shapes differ")):
        with pytest.raises(type(error)), explain_full_disk(tmp_path, "do it"):
            raise error


def test_no_command_ends_with_a_traceback_of_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)

    def fill() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "table.csv"))

    assert run_command(fill) == 2
    assert said.getvalue().startswith(f"error: {tmp_path / 'table.csv'}: the disk is full: ")
    assert said.getvalue().count("\n") == 1


def test_where_the_database_is_on_the_full_disk_too_the_first_reason_is_told(
    database, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("database or disk is full"))

    monkeypatch.setattr(store, "end_run", refuse)
    said = pytest.raises(UserError, match="the checkpoint")
    with caplog.at_level(logging.WARNING), said, open_run(database, data, "refl train", {}):
        raise UserError("the checkpoint")
    assert "disk is full" in caplog.text


def test_ctrl_c_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def press() -> None:
        raise KeyboardInterrupt

    assert run_command(press) == 130
    assert capsys.readouterr().err == "stopped\n"

"""What pages put on a command line: a value that begins with a dash stays a value."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ui.autolabel.page
import ui.pages.data
import ui.pages.export
import ui.pages.report
import ui.pairing
from annotate.__main__ import add_export_command, add_import_command, add_pair_command, add_rank_command
from annotate.labeler.command import add_fit_command, add_label_command
from annotate.labeler.settings import FitSettings
from db.session import Database
from ui.autolabel.refit import to_flags
from ui.context import Context

NASTY = ["--skip-bad", "-x", "--db=sqlite:///x", "=", "a b", "ä"]


def parse(add_command: Callable[[Any], None], words: list[str]) -> argparse.Namespace:
    commands = argparse.ArgumentParser(exit_on_error=False).add_subparsers()
    add_command(commands)
    (parser,) = commands.choices.values()
    return parser.parse_args(words)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of the runs that pages started, instead of starting them."""
    started: list[list[str]] = []

    def launch(_database: Any, _data: Any, _kind: str, arguments: list[str], *_more: Any, **_kwargs: Any) -> int:
        started.append(arguments)
        return 1

    for page in (ui.autolabel.page, ui.pages.data, ui.pairing, ui.pages.export, ui.pages.report):
        monkeypatch.setattr(page, "launch", launch)
    return started


def test_names_that_look_like_options_stay_names(
    database: Database, data: Path, tmp_path: Path, launched: list[list[str]]
) -> None:
    context = Context(database=database, data=data)
    ui.pages.export.start_export(
        context, {"methods": NASTY, "people": NASTY, "exclude_people": NASTY, "splits": ["val", "test"], "name": "-n"}
    )
    read = parse(add_export_command, launched.pop())
    assert (read.methods, read.people, read.exclude_people, read.name) == (NASTY, NASTY, NASTY, "-n")
    assert (read.splits, read.skip_bad) == (["val", "test"], False)
    ui.autolabel.page.start_label(context, 7, 0.9, ["train"], NASTY, dry_run=True)
    read = parse(add_label_command, launched.pop())
    assert (read.methods, read.splits, read.dry_run) == (NASTY, ["train"], True)
    for name in NASTY:
        ui.pairing.start_pairing(context, ui.pairing.AGAINST, None, name)
        assert parse(add_pair_command, launched.pop()).against == name
    (tmp_path / "-in").mkdir()
    ui.pages.data.start_import(context, str(tmp_path / "-in"), skip_bad=False, strip_suffixes=["--skip-bad"])
    read = parse(add_import_command, launched.pop())
    assert (read.path, read.strip_suffix, read.skip_bad) == (tmp_path / "-in", ["--skip-bad"], False)
    ui.pages.report.start_report(context, "test", True)
    assert parse(add_rank_command, launched.pop()).split == "test"


def test_every_option_is_one_word() -> None:
    assert all(flag.startswith("--") for flag in to_flags(FitSettings()))
    read = parse(add_fit_command, to_flags(FitSettings()))
    assert {name: str(getattr(read, name)) for name in FitSettings.model_fields} == {
        name: str(value) for name, value in FitSettings().model_dump().items()
    }

"""What pages put on a command line: a value that begins with a dash stays a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import runs.launch
import ui.autolabel.page
import ui.pages.data
import ui.pages.export
import ui.pages.report
import ui.pairing
from annotate.exchange.command import EXPORT
from annotate.ingest.command import IMPORT
from annotate.judging.command import PAIR
from annotate.labeler.command import FIT, LABEL
from annotate.labeler.settings import FitSettings
from annotate.report.command import RANK
from db.session import Database
from runs.options import read_words
from ui.context import Context

NASTY = ["--skip-bad", "-x", "--db=sqlite:///x", "=", "a b", "ä"]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of the runs that pages started, instead of starting them."""
    started: list[list[str]] = []

    def launch(_database: Any, _data: Any, _kind: str, arguments: list[str], **_how: Any) -> int:
        started.append(arguments)
        return 1

    monkeypatch.setattr(runs.launch, "launch", launch)
    return started


def test_names_that_look_like_options_stay_names(
    database: Database, data: Path, tmp_path: Path, launched: list[list[str]]
) -> None:
    context = Context(database=database, data=data)
    ui.pages.export.start_export(
        context, {"methods": NASTY, "people": NASTY, "exclude_people": NASTY, "splits": ["val", "test"], "name": "-n"}
    )
    read = read_words(EXPORT, launched.pop())
    assert (read.methods, read.people, read.exclude_people, read.name) == (NASTY, NASTY, NASTY, "-n")
    assert (read.splits, read.skip_bad) == (["val", "test"], False)
    ui.autolabel.page.start_label(context, 7, 0.9, ["train"], NASTY, dry_run=True)
    read = read_words(LABEL, launched.pop())
    assert (read.methods, read.splits, read.dry_run) == (NASTY, ["train"], True)
    for name in NASTY:
        ui.pairing.start_pairing(context, ui.pairing.AGAINST, None, name)
        assert read_words(PAIR, launched.pop()).against == name
    (tmp_path / "-in").mkdir()
    ui.pages.data.start_import(context, str(tmp_path / "-in"), skip_bad=False, strip_suffixes=["--skip-bad"])
    read = read_words(IMPORT, launched.pop())
    assert (read.path, read.strip_suffix, read.skip_bad) == (tmp_path / "-in", ["--skip-bad"], False)
    ui.pages.report.start_report(context, "test", True)
    assert read_words(RANK, launched.pop()).split == "test"


def test_every_option_is_one_word() -> None:
    settings = FitSettings(metrics="--x", folds=3, quick=True)
    words = FIT.words(settings)
    assert all(word.startswith("--") for word in words)
    assert read_words(FIT, words) == settings

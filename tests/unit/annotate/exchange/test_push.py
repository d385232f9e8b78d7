"""A dataset is pushed only where its people agreed, and what is wrong is said before anything is sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from annotate.__main__ import main
from annotate.exchange.export import export_dataset
from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person
from dataset.options import ExportOptions
from db.models import Pair
from db.project import ProjectSettings, save_settings
from db.session import open_database
from tests.making import add_candidates, judge


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Path]:
    """`export(consent_to_publish=True)`: the folder of a project's one label."""

    def make(**settings: object) -> Path:
        database = open_database(tmp_path)
        try:
            with database.write() as session:
                save_settings(session, settings)
                person = add_person(session, "ada")
                add_candidates(session, "photo", ["m1", "m2"], files=tmp_path)
                make_pairs(session, ProjectSettings())
                judge(session, person.id, session.scalars(select(Pair)).one().id, "a")
            export_dataset(database, tmp_path, tmp_path / "dataset", ExportOptions())
        finally:
            database.close()
        return tmp_path / "dataset"

    return make


def run(folder: Path, *words: str) -> int:
    return main(["push", str(folder), *words, f"--data={folder.parent}"])


def test_without_consent_nothing_is_pushed(export: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = export()
    assert not (folder / "consent.json").exists()
    assert run(folder, "--to=org/name", "--licence=mit") == 2
    said = capsys.readouterr().err
    assert "without the consent of its people" in said
    assert "--consent-to-publish" in said


def test_with_consent_it_asks_for_a_name_and_a_token(
    export: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pushed: list[tuple[Path, str, str]] = []

    def send(folder: Path, repository: str, kind: str, **_: object) -> str:
        pushed.append((folder, repository, kind))
        return "0" * 40

    monkeypatch.setattr("runs.publishing.push_folder", send)
    folder = export(consent_to_publish=True)
    assert "consent.json" in (folder / "SHA256SUMS").read_text()
    for name in ("no name", "../up", "org/name@main", "org"):
        assert run(folder, f"--to={name}", "--licence=mit") == 2
        assert "--push: " in capsys.readouterr().err
    assert run(folder.parent, "--to=org/name") == 2
    assert "is not a dataset that" in capsys.readouterr().err
    assert run(folder, "--to=org/name") == 2
    assert "states the licence of" in capsys.readouterr().err
    assert not pushed
    assert run(folder, "--to=org/name", "--licence=mit") == 0
    assert pushed == [(folder, "org/name", "dataset")]
    assert capsys.readouterr().out == f"pushed: hf:org/name@{'0' * 40}\n"

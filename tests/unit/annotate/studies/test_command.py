"""`annotate study` from the settings file of docs/studies.md to the forgetting, in one project."""

from __future__ import annotations

import csv
import io
import re
import tomllib
from pathlib import Path

import pytest
from sqlalchemy import select, text

from annotate.__main__ import main
from annotate.judging.pairs import make_pairs
from annotate.studies.create import get_study
from annotate.studies.forget import find_left
from annotate.studies.settings import load_study_settings
from annotate.studies.way import end
from db.models import Pair, Split
from db.project import ProjectSettings
from db.studies import Outcome, StudyState
from tests.doc_blocks import read_blocks
from tests.making import ROOT, add_candidates, read_lines
from tests.unit.annotate.studies.conftest import come

PERSON, SUBMISSION = "5f0c0ffee0c0ffee0c0ffee1", "65c0ffee0c0ffee0c0ffee02"


def example() -> str:
    """The first settings file of the documentation."""
    return next(block.text for block in read_blocks(ROOT / "docs" / "studies.md") if block.language == "toml")


@pytest.fixture
def project(database, data, tmp_path) -> Path:
    """60 photos of the test split, eight gold pairs; gives the example's file with the key of one of these."""
    with database.write() as session:
        for number in range(60):
            add_candidates(session, f"face{number}", ["m0", "m1"], Split.test)
        make_pairs(session, ProjectSettings())
        gold = session.scalars(select(Pair).order_by(Pair.key).limit(12)).all()
        for pair in gold:
            pair.gold_answer = "a"
        key = gold[0].key
    file = tmp_path / "study.toml"
    file.write_text(example().replace("0" * 32, key))
    return file


@pytest.fixture
def run(data, capsys):
    """Types one command; gives what it printed."""

    def run(*words: str, code: int = 0) -> str:
        said = main(["study", *map(str, words), "--data", str(data)])
        printed = capsys.readouterr()
        assert said == code, printed.err
        return printed.out if code == 0 else printed.err

    return run


def test_the_settings_file_of_the_documentation_makes_a_study(database, project, run):
    said = run("create", "faces", "--from", project)
    assert "No answer to a pair was timed in this project yet" in said
    assert "72.00 GBP in all" in said
    assert re.search(r"/study/\S+\?PROLIFIC_PID=\{\{%PROLIFIC_PID%\}\}&", said)
    with database.read() as session:
        settings = load_study_settings(get_study(session, "faces"))
    given = tomllib.loads(project.read_text())
    dumped = settings.model_dump(mode="json")
    assert {name: dumped[name] for name in given if name != "endings"} == {
        name: value for name, value in given.items() if name != "endings"
    }
    assert settings.endings[Outcome.timed_out].code == "T1AB2CD3"
    assert "announced 9.00" in run("cost", "faces")
    assert "72.00 GBP in all" in run("cost", "--from", project)
    run("set", "faces", "places=30", "title=A better face")
    assert "0 of 30 places taken" in run("list")


def test_a_study_is_opened_paid_exported_and_forgotten(database, data, project, run, tmp_path):
    run("create", "faces", "--from", project)
    assert run("open", "faces") == "faces: open\n"
    with database.write() as session:
        study = get_study(session, "faces")
        assert study.state is StudyState.open
        participant = come(session, study, PERSON)
        participant.active_seconds = 600  # 1.20 for ten minutes where 9.00 an hour was announced
        end(session, participant, Outcome.done, "All answered.")
        session.execute(text("UPDATE panel_entry SET submission = :one"), {"one": SUBMISSION})
    said = run("show", "faces")
    assert "places: 59 of 60 left" in said
    assert "below the announced rate, with what is lacking: 1 (0.30)" in said
    assert "1 participants lifted to the announced rate, 0.30 in all" in run("pay", "faces", "--top-up")
    assert run("bonus", "faces", "1", "--cents", "25", "--reason", "Careful") == "participant 1: 0.25 GBP\n"
    assert run("bonus", "faces").splitlines()[1:] == [f"{SUBMISSION},0.55"]
    rows = list(csv.DictReader(io.StringIO(run("ledger", "faces"))))
    assert [(row["participant"], row["kind"], row["amount"]) for row in rows] == [
        ("1", "base", "1.20"),
        ("1", "bonus", "0.30"),
        ("1", "bonus", "0.25"),
    ]
    run("export", "faces", "--out", tmp_path / "out", "--jsonl", "--panel-ids")
    assert [row["panel_person"] for row in read_lines(tmp_path / "out" / "participants.jsonl")] == [PERSON]
    run("export", "faces", "--out", tmp_path / "plain")
    assert PERSON not in "".join(file.read_text() for file in (tmp_path / "plain").iterdir())
    assert "already" in run("export", "faces", "--out", tmp_path / "plain", code=2)
    assert find_left(database, [PERSON, SUBMISSION]) == ["panel_entry.panel_person", "panel_entry.submission"]
    assert "are not marked paid" in run("forget", "faces", "--all-ids", code=2)
    assert "3 lines marked as paid" in run("pay", "faces", "--paid")
    said = run("forget", "faces", "--all-ids")
    assert said == "1 panel id deleted, and looked for in every table of the database: none is left.\n"
    for file in data.glob("facereward.db*"):
        assert PERSON.encode() not in file.read_bytes(), f"{file.name} still has the id"
        assert SUBMISSION.encode() not in file.read_bytes()
    assert "Careful" in run("ledger", "faces")


def test_a_copy_of_an_id_is_found_wherever_it_stands(database, project, run):
    run("create", "faces", "--from", project)
    with database.write() as session:
        session.execute(
            text("INSERT INTO study_event (study_id, kind, detail, created_at) VALUES (1, 'x', :detail, '2026-01-01')"),
            {"detail": f'{{"who": "{PERSON}", "short": "12"}}'},
        )
    assert find_left(database, ["other-id-of-nobody", PERSON]) == ["study_event.detail"]
    assert find_left(database, ["12"]) == ["study_event.detail"]
    assert find_left(database, ["2", "0%0__0"]) == [], "part of another value, and no pattern"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show"], "needs the name of a study"),
        (["list", "faces"], "takes no name"),
        (["open", "faces", "3"], "takes nothing after the name"),
        (["open", "faces", "--paid"], "--paid is of study pay"),
        (["open", "nobody"], "no study called 'nobody'"),
        (["create", "faces", "places"], "'places' is not FIELD=VALUE"),
        (["create", "faces", "plces=3"], "plces"),
        (["forget", "faces"], "study forget NAME NUMBER"),
        (["forget", "faces", "one"], "one participant by number"),
        (["bonus", "faces", "1"], "needs --cents and --reason"),
        (["export", "faces"], "needs --out FOLDER"),
    ],
)
def test_what_cannot_be_done_is_said(database, run, words, said):
    assert said in run(*words, code=2)

"""`annotate people`, `project` and gold imports as a person types them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import event, func, select

from annotate.judging.people import check_link_token, check_password
from db.models import Image, Pair, Person, Role
from db.project import ProjectSettings, load_settings
from db.session import Database, open_database
from tests.making import AnnotateHere, fetch, run_annotate, write_photo


def test_people_from_first_to_last(database: Database, annotate_here: AnnotateHere) -> None:
    people = partial(annotate_here, "people")
    assert people("add", "ann", "--role", "admin") == (0, "ann added as admin\n", "")
    assert people("add", "bob") == (0, "bob added as annotator\n", "")
    assert people("add", "robot", "--simulated")[0] == 0
    code, _, error = people("add", "bob")
    assert (code, error) == (2, "error: There is already a person called 'bob'; choose another name.\n")
    link = people("link", "bob", "--base-url", "https://faces.example/")[1].strip()
    assert link.startswith("https://faces.example/enter/")
    assert people("link", "robot")[1].startswith("http://127.0.0.1:7860/enter/")
    assert people("disable", "robot") == (0, "robot disabled.\n", "")
    assert people("disable", "ann")[2] == "error: 'ann' is the only admin; add another before disabling this one.\n"
    assert people("list")[1].splitlines() == [
        "ann\tadmin\t0 judgments\tno password or link\tactive",
        "bob\tannotator\t0 judgments\tlink\tactive",
        "robot\tannotator\t0 judgments\tlink\tdisabled",
    ]
    assert people("enable", "robot") == (0, "robot enabled\n", "")
    assert people("list")[1].splitlines()[2] == "robot\tannotator\t0 judgments\tlink\tsimulated"
    assert people("add", "bob", "--discard")[2].startswith("error: --discard goes with disable")
    assert people("link", "zoe")[0] == people("enable", "zoe")[0] == people("discard", "zoe")[0] == 2
    assert people("add")[2] == "error: people add needs a name.\n"
    assert people("list", "ann")[2] == "error: people list takes no name.\n"
    with database.read() as session:
        entered = check_link_token(session, link.rpartition("/")[2])
        assert entered is not None
        assert (entered.name, entered.role) == ("bob", Role.annotator)
        assert session.scalars(select(Person.simulated).where(Person.name == "robot")).one()


def test_password_is_read_from_standard_input(annotate_here: AnnotateHere, data: Path, database: Database) -> None:
    assert annotate_here("people", "add", "ann").returncode == 0
    short = run_annotate(data, "people", "password", "ann", typed="short\n")
    assert (short.returncode, short.stderr.count("\n")) == (2, 1)
    result = run_annotate(data, "people", "password", "ann", typed="correct horse\n")
    assert (result.returncode, result.stdout) == (0, "password set\n")
    with database.read() as session:
        assert check_password(session, "ann", "correct horse") is not None
        assert check_password(session, "ann", "short") is None


def test_project_shown_can_be_set(annotate_here: AnnotateHere, tmp_path: Path, database: Database) -> None:
    result = annotate_here(
        "project", "set", "title=2024", "judgments_per_pair=2", "reasons=eyes,skin", "gold_share=0.1"
    )
    assert (result.returncode, result.stderr) == (0, "")
    with database.read() as session:
        settings = load_settings(session)
    assert settings == ProjectSettings(title="2024", judgments_per_pair=2, reasons=["eyes", "skin"], gold_share=0.1)
    shown = tmp_path / "project.toml"
    shown.write_text(annotate_here("project", "show").stdout, encoding="utf-8")
    other = tmp_path / "other"
    assert annotate_here("project", "set", "title=Changed", "--from", shown, data=other).returncode == 0
    assert annotate_here("project", "show", data=other).stdout == shown.read_text(encoding="utf-8").replace(
        '"2024"', '"Changed"'
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["set", "judgments_per_pair=0"], "judgments_per_pair: Input should be greater than or equal to 1, got 0"),
        (["set", "colour=red"], "colour: Extra inputs are not permitted, got 'red'"),
        (["set", "title"], "'title' is not FIELD=VALUE."),
        (["set"], "project show takes no settings"),
        (["show", "title=x"], "project show takes no settings"),
        (["set", "--from", "absent.toml"], "absent.toml: cannot be read (No such file or directory)."),
    ],
)
def test_wrong_settings(database: Database, annotate_here: AnnotateHere, arguments: list[str], message: str) -> None:
    refused = annotate_here("project", *arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {message}")
    with database.read() as session:
        assert load_settings(session) == ProjectSettings()


def test_gold_file_is_known_by_its_columns(
    database: Database, restored_folder: Path, annotate_here: AnnotateHere
) -> None:
    assert annotate_here("import", restored_folder).returncode == 0
    gold = restored_folder / "known.csv"
    gold.write_text("answer,source,method_a,method_b\na,face0,gfpgan,bicubic\ntie,face1,gfpgan,bicubic\n")
    assert annotate_here("import", gold)[:2] == (0, "2 gold pairs added\n")
    assert len(fetch(database, select(Pair).where(Pair.gold_answer.is_not(None)))) == 2
    gold.write_text("answer,source,method_a,method_b\na,face2,gfpgan,bicubic\na,face9,gfpgan,bicubic\n")
    refused = annotate_here("import", gold)
    assert refused.returncode == 2
    assert "known.csv, line 3: there is no source called 'face9'" in refused.stderr
    assert len(fetch(database, select(Pair))) == 2, "also line 2 was not added"


def test_a_full_disk_is_one_line_and_nothing_half_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, annotate_here: AnnotateHere
) -> None:
    """SQLite's own limit stands for the disk's: no page may be added to the file."""
    folder = tmp_path / "photos"
    for number in range(60):  # more rows than a page holds
        write_photo(folder / "lq" / f"{number}.png", number, (8, 8))
    with open_database(data).read() as session:
        pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar_one()

    def open_full(where: Path, url: str | None) -> Database:
        opened = open_database(where, url)
        opened.close()  # so that every connection from now on is a new one
        event.listen(opened.engine, "connect", lambda raw, _: raw.execute(f"PRAGMA max_page_count={pages}"))
        return opened

    with monkeypatch.context() as patched:
        patched.setattr("runs.store.open_database", open_full)
        code, _, said = annotate_here("import", folder)
    assert code == 2
    assert "error: The database failed: database or disk is full." in said
    assert "Traceback" not in said
    with open_database(data).read() as session:
        assert session.scalar(select(func.count()).select_from(Image)) == 0
    assert annotate_here("import", folder).returncode == 0

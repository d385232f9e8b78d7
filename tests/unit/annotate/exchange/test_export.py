"""Which labels and judgments an export takes, worked out by hand; nothing that a person's name is in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.exchange.export import export_dataset, load_judgments, load_rows
from annotate.judging.judgments import undo_judgment
from annotate.judging.labels import resolve_labels
from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person
from dataset.options import ExportOptions
from db.errors import UserError
from db.images import image_path
from db.models import Label, Method, Origin, Pair, Person, Split
from db.project import ProjectSettings, question_key, save_settings
from db.session import Database
from licences.terms import COMMERCIAL_VARIABLE, Licensed
from runs.licences import read_recorded, write_recorded
from runs.store import insert_run, run_folder
from tests.making import add_candidates, add_face, add_photos, fetch, read_lines
from tests.making import judge as judge_pair

JUDGED = {
    "plain": [("ada", "a")],
    "outvoted": [("ada", "a"), ("ben", "a"), ("eve", "b")],
    "tied": [("ada", "tie")],
    "split": [("ada", "a"), ("ben", "b")],
    "by eve": [("eve", "b")],
    "by robot": [("robot", "a")],
    "skipped": [("ada", "skip")],
    "undone": [],
    "gold": [("ada", "a")],
    "machine": [],
    "both": [("ben", "b")],
}
SVM = {"machine": 0.8, "both": 0.9, "gold": 0.7}


@pytest.fixture
def judge(session: Session) -> Callable[..., str]:
    """`judge("ada", pair, "a", 1)`: a judgment by a person, the number being its repeat; returns its uuid."""

    def record(name: str, pair: Pair, choice: str, repeat_no: int = 0) -> str:
        person = session.scalars(select(Person).where(Person.name == name)).one()
        uuid = str(UUID(int=(pair.shuffle_key * 100 + person.id) * 10 + repeat_no))
        return judge_pair(session, person.id, pair.id, choice, uuid=uuid, repeat_no=repeat_no, seconds=1.5).uuid

    return record


@pytest.fixture
def pairs(session: Session, settings: ProjectSettings, judge: Callable[..., str]) -> dict[str, Pair]:
    """A pair a source, judged as JUDGED says; 'plain' with a repeat, 'undone' taken back, SVM labels on some."""
    for name in ("ada", "ben", "eve"):
        add_person(session, name)
    add_person(session, "robot", simulated=True)
    for place, name in enumerate(JUDGED):
        add_candidates(
            session, name, ["m1", "m2" if place % 2 else "m3"], (Split.train, Split.val, Split.test)[place % 3]
        )
    make_pairs(session, settings)
    found = {pair.source.key: pair for pair in session.scalars(select(Pair))}
    for name, votes in JUDGED.items():
        for person, choice in votes:
            judge(person, found[name], choice)
    judge("ada", found["plain"], "b", 1)
    ben = session.scalars(select(Person).where(Person.name == "ben")).one()
    undo_judgment(session, ben.id, judge("ben", found["undone"], "a"), settings)
    found["gold"].gold_answer = "a"
    session.add_all(Label(pair_id=found[n].id, origin=Origin.svm, made_by="labeler 1", p_a=p) for n, p in SVM.items())
    session.flush()
    return found


def sources(session: Session, **options: object) -> list[str]:
    """The sources that an export would take, labels resolved as export resolves them but for the people."""
    return [row["source"] for row in load_rows(session, ExportOptions.model_validate(options))[0]]


def test_rows_hold_what_the_judgments_say(session: Session, pairs: dict[str, Pair]) -> None:
    resolve_labels(session)
    rows, dropped = load_rows(session, ExportOptions())
    told = {row["source"]: (row["p_a"], row["tie"], row["origin"], row["agreement"]) for row in rows}
    assert told == {
        "plain": (1.0, False, "human", 1.0),
        "outvoted": (pytest.approx(2 / 3), False, "human", pytest.approx(2 / 3)),
        "tied": (0.5, True, "human", 1.0),
        "split": (0.5, True, "human", 0.5),
        "by eve": (0.0, False, "human", 1.0),
        "gold": (0.7, False, "svm", None),
        "machine": (0.8, False, "svm", None),
        "both": (0.0, False, "human", 1.0),
    }
    assert dropped == {"people": 0, "origin": 1, "splits": 0, "methods": 0, "min_agreement": 0, "ties": 0}
    assert [row["source"] for row in rows] == sorted(told)
    row = next(row for row in rows if row["source"] == "split")
    pair = pairs["split"]
    assert row["pair"] == pair.key
    assert (row["sha256_a"], row["sha256_b"]) == (pair.a.image.sha256, pair.b.image.sha256)
    assert row["image_a"] == f"images/{pair.a.image.sha256}.png"
    assert (row["lq"], row["hq"], row["sha256_lq"], row["sha256_hq"], row["caption"]) == (None,) * 5
    assert (row["method_a"], row["method_b"]) == (pair.a.method.name, pair.b.method.name)
    assert (row["group"], row["weight"], row["made_by"], len(row["judgments"])) == ("split", 1.0, "majority", 2)


@pytest.mark.parametrize(
    ("options", "expected", "reason"),
    [
        ({"origin": "svm"}, ["both", "gold", "machine"], {"origin": 6}),
        ({"origin": "human"}, ["both", "by eve", "outvoted", "plain", "split", "tied"], {"origin": 3}),
        (
            {"min_agreement": 0.6},
            ["both", "by eve", "gold", "machine", "outvoted", "plain", "tied"],
            {"min_agreement": 1},
        ),
        ({"min_agreement": 1}, ["both", "by eve", "gold", "machine", "plain", "tied"], {"min_agreement": 2}),
        ({"ties": "drop"}, ["both", "by eve", "gold", "machine", "outvoted", "plain"], {"ties": 2}),
        ({"ties": "soft"}, ["both", "by eve", "gold", "machine", "outvoted", "plain", "split", "tied"], {}),
        ({"splits": ["test"]}, ["gold", "tied"], {"splits": 6}),
        ({"splits": ["train", "val"]}, ["both", "by eve", "machine", "outvoted", "plain", "split"], {"splits": 2}),
        ({"methods": ["m1", "m3"]}, ["both", "by eve", "gold", "plain", "tied"], {"methods": 3}),
        ({"methods": ["m1"]}, [], {"methods": 8}),
    ],
)
def test_filters(
    session: Session, pairs: dict[str, Pair], options: dict[str, object], expected: list[str], reason: dict[str, int]
) -> None:
    resolve_labels(session)
    rows, dropped = load_rows(session, ExportOptions.model_validate(options))
    assert [row["source"] for row in rows] == expected
    found = {name: count for name, count in dropped.items() if count}
    assert found == ({"origin": 1} | reason)


def test_stored_labels_of_other_people_do_not_count(session: Session, pairs: dict[str, Pair]) -> None:
    """Labels of everyone, the robot too; only those made of nobody else's judgments than the people asked for."""
    resolve_labels(session, include_simulated=True)
    machine = ["gold", "machine"]
    with_robot = sources(session, include_simulated=True)
    assert with_robot == sorted([*machine, "plain", "outvoted", "tied", "split", "by eve", "by robot", "both"])
    assert sources(session) == [name for name in with_robot if name != "by robot"]
    assert sources(session, exclude_people=["eve"]) == sorted([*machine, "plain", "tied", "split", "both"])
    assert sources(session, people=["ada"], origin="human") == ["plain", "tied"]
    assert sources(session, people=["ada", "ben"], exclude_people=["ben"], origin="human") == ["plain", "tied"]
    assert sources(session, people=["robot"], include_simulated=True, origin="human") == ["by robot"]
    # Where the human label is not of the people asked for, the machine's stands in its place.
    both = [row for row in load_rows(session, ExportOptions(people=["ada"]))[0] if row["source"] == "both"]
    assert [(row["origin"], row["p_a"]) for row in both] == [("svm", 0.9)]


def test_an_imported_label_is_nobodys_in_particular(session: Session, pairs: dict[str, Pair]) -> None:
    session.add(Label(pair_id=pairs["skipped"].id, origin=Origin.human, made_by="imported:hpdv2", p_a=1.0))
    session.flush()
    resolve_labels(session)
    assert "skipped" in sources(session)
    assert "skipped" in sources(session, exclude_people=["eve"])
    assert "skipped" not in sources(session, people=["ada", "ben", "eve"])


def test_judgments_are_all_of_the_pairs_by_people_who_count(session: Session, pairs: dict[str, Pair]) -> None:
    def told(**values: object) -> list[tuple[object, ...]]:
        options = ExportOptions.model_validate(values)
        public = {person.public_id: person.name for person in session.scalars(select(Person))}
        found = load_judgments(session, load_rows(session, options)[0], options)
        of = {pair.key: name for name, pair in pairs.items()}
        assert [row["uuid"] for row in found] == [
            row["uuid"] for row in sorted(found, key=lambda row: (row["created_at"], row["uuid"]))
        ]
        return sorted(
            (of[row["pair"]], public[row["person"]], row["choice"], row["repeat_no"], row["gold"]) for row in found
        )

    resolve_labels(session, include_simulated=True)
    plain = [("plain", "ada", "a", 0, None), ("plain", "ada", "b", 1, None)]
    assert told(people=["ada"], origin="human") == [*plain, ("tied", "ada", "tie", 0, None)]
    assert told(splits=["test"]) == [("gold", "ada", "a", 0, "a"), ("tied", "ada", "tie", 0, None)]
    assert ("by robot", "robot", "a", 0, None) in told(include_simulated=True)
    assert not any("robot" in row for row in told())


def test_a_judgment_row(session: Session, pairs: dict[str, Pair], judge: Callable[..., str]) -> None:
    resolve_labels(session)
    judge("ben", pairs["tied"], "skip")
    ben = session.scalars(select(Person).where(Person.name == "ben")).one()
    options = ExportOptions(splits=[Split.test], origin="human")
    rows = load_judgments(session, load_rows(session, options)[0], options)
    (row,) = [row for row in rows if row["choice"] == "skip"]
    assert row == {
        "uuid": row["uuid"],
        "pair": pairs["tied"].key,
        "task": None,
        "person": ben.public_id,
        "simulated": False,
        "choice": "skip",
        "ranking": None,
        "asked": "pair",
        "skip_reason": "both bad",
        "reasons": [],
        "shown_left": "a",
        "places": None,
        "picked": "random",
        "view_mode": "fit",
        "seconds": 1.5,
        "server_seconds": None,
        "created_at": row["created_at"],
        "superseded_at": None,
        "repeat_no": 0,
        "gold": None,
        "question_version": question_key(ProjectSettings()),
    }
    assert row["created_at"].endswith("+00:00")


@pytest.mark.parametrize(
    "options",
    [
        {"format": "xml"},
        {"min_agreement": 1.5},
        {"min_agreement": -0.1},
        {"splits": ["training"]},
        {"origin": "people"},
        {"ties": "half"},
        {"name": ""},
        {"surprise": 1},
    ],
)
def test_unknown_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ExportOptions.model_validate(options)


def test_every_option_says_what_it_is() -> None:
    assert all(field.description for field in ExportOptions.model_fields.values())


@pytest.fixture
def exportable(database: Database, data: Path, tmp_path: Path) -> Database:
    """One pair with its files, judged a by Ada Lovelace and by a robot."""
    with database.write() as session:
        add_face(session, "face", ["m|0", "m|1"], None, *add_photos(session, data, tmp_path, range(2)))
        make_pairs(session, ProjectSettings())
        pair = session.scalars(select(Pair)).one()
        for number, (name, simulated) in enumerate([("Ada Lovelace", False), ("R. Daneel", True)]):
            person = add_person(session, name, simulated=simulated)
            judge_pair(session, person.id, pair.id, uuid=str(UUID(int=number)))
    return database


def test_no_name_of_a_person_is_in_the_dataset(exportable: Database, data: Path, tmp_path: Path) -> None:
    options = ExportOptions(people=["Ada Lovelace", "R. Daneel"], exclude_people=["R. Daneel"])
    export_dataset(exportable, data, tmp_path / "out", options)
    ada, robot = fetch(exportable, select(Person.public_id).order_by(Person.name))
    texts = {path.name: path.read_text() for path in (tmp_path / "out").glob("*[!t]") if path.is_file()}
    tables = {"judgments.jsonl", "pairs.jsonl", "questions.jsonl"}
    assert set(texts) == {"README.md", "SHA256SUMS", "licences.json", *tables}
    assert not any(word in text for text in texts.values() for word in ("Ada", "Lovelace", "Daneel"))
    shown = json.loads(texts["README.md"].partition("```json\n")[2].partition("```")[0])
    assert (shown["people"], shown["exclude_people"]) == (sorted([ada, robot]), [robot])


def test_a_dataset_keeps_the_licences_of_its_photos_and_restorers(
    exportable: Database, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = Licensed("weights", "code<b>former", "NTU S-Lab License 1.0: non-commercial")
    with exportable.write() as session:
        save_settings(session, {"data_licence": "CC-BY-4.0"})
        run = insert_run(session, data, "refl restore", {})
        session.scalars(select(Method).where(Method.name == "m|0")).one().run_id = run.id
    write_recorded(run_folder(data, run.id), [strict])
    monkeypatch.setenv(COMMERCIAL_VARIABLE, "1")
    with pytest.raises(UserError, match="Commercial use is forbidden by the licence of code<b>former"):
        export_dataset(exportable, data, tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv(COMMERCIAL_VARIABLE, "0")
    export_dataset(exportable, data, tmp_path / "out", ExportOptions())
    assert read_recorded(tmp_path / "out") == [strict, Licensed("data", "the project's photos", "CC-BY-4.0")]
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'license: "CC-BY-4.0"' in card
    assert "- code&#60;b&#62;former (weights): NTU S-Lab License 1.0: non-commercial. **non-commercial**" in card


def test_every_judgment_names_the_question_that_it_answered(exportable: Database, data: Path, tmp_path: Path) -> None:
    with exportable.write() as session:
        save_settings(session, {"question": "أيهما أفضل؟", "reasons": ["eyes"]})
        ben = add_person(session, "ben")
        pair = session.scalars(select(Pair)).one()
        judge_pair(session, ben.id, pair.id, "b")
        judge_pair(session, ben.id, pair.id, "b", repeat_no=1, question="")
    export_dataset(exportable, data, tmp_path / "out", ExportOptions())
    judgments, questions = (read_lines(tmp_path / "out" / f"{name}.jsonl") for name in ("judgments", "questions"))
    old, new = question_key(ProjectSettings()), question_key(ProjectSettings(question="أيهما أفضل؟", reasons=["eyes"]))
    assert [row["question_version"] for row in judgments] == [old, new, None]
    assert [row["question_version"] for row in questions] == [old, new]
    assert (questions[1]["question"], questions[1]["reasons"]) == ("أيهما أفضل؟", ["eyes"])
    assert questions[0]["guidelines"] == ProjectSettings().guidelines
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"- `{new}`" in card
    assert "1 judgments: أيهما أفضل؟" in card
    assert "- not recorded, 1 judgments" in card


def test_the_card_says_what_is_in_it(exportable: Database, data: Path, tmp_path: Path) -> None:
    options = ExportOptions(name="Faces: “best”", licence="cc-by-4.0", include_simulated=True, min_agreement=0.5)
    counts = export_dataset(exportable, data, tmp_path / "out", options)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    front = card.split("---\n")[1].splitlines()
    assert front[:2] == ['license: "cc-by-4.0"', 'pretty_name: "Faces: \\u201cbest\\u201d"']
    assert "**1 of the 2 judgments were made by programs, not people**" in card
    assert "1 by majority with simulated annotators" in card
    assert "by 1 people and 1 simulated annotators" in card
    assert "| train | 1 |" in card
    assert "| human | 1 |" in card
    assert "| m&#124;0 | 1 |" in card
    assert '"min_agreement": 0.5' in card
    assert (counts["rows"], counts["judgments"], counts["images"]) == (1, 2, 2)
    export_dataset(exportable, data, tmp_path / "plain", ExportOptions())
    assert "programs" not in (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")


def test_progress_reaches_its_end(exportable: Database, data: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    export_dataset(exportable, data, tmp_path / "out", ExportOptions(), lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]


def test_the_folder_obeys_the_umask(exportable: Database, data: Path, tmp_path: Path) -> None:
    for mask, mode in ((0o077, 0o700), (0o002, 0o775)):
        before = os.umask(mask)
        try:
            export_dataset(exportable, data, tmp_path / f"{mask}", ExportOptions())
        finally:
            os.umask(before)
        assert (tmp_path / f"{mask}").stat().st_mode & 0o777 == mode


def test_an_empty_folder_is_filled_and_anything_else_refused(exportable: Database, data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    export_dataset(exportable, data, tmp_path / "empty", ExportOptions())
    assert (tmp_path / "empty" / "pairs.jsonl").exists()
    (tmp_path / "file").write_text("mine")
    for taken in ("empty", "file"):
        with pytest.raises(UserError, match="is there already"):
            export_dataset(exportable, data, tmp_path / taken, ExportOptions())
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(UserError, match="file/out: cannot be written"):
        export_dataset(exportable, data, tmp_path / "file" / "out", ExportOptions())


@pytest.mark.parametrize("form", ["jsonl", "pickapic"])
def test_a_damaged_image_is_never_exported(exportable: Database, data: Path, tmp_path: Path, form: str) -> None:
    with exportable.read() as session:
        image = session.scalars(select(Pair)).one().a.image
        image_path(data, image.sha256, image.suffix).write_bytes(b"something else")
    with pytest.raises(UserError, match="is not the file that was imported"):
        export_dataset(exportable, data, tmp_path / "out", ExportOptions.model_validate({"format": form}))
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_a_refused_export_leaves_the_labels_as_they_were(exportable: Database, data: Path, tmp_path: Path) -> None:
    export_dataset(exportable, data, tmp_path / "out", ExportOptions())
    with pytest.raises(UserError, match=r"No label to export \(there is none\)"):
        export_dataset(exportable, data, tmp_path / "none", ExportOptions(exclude_people=["Ada Lovelace"]))
    assert [label.superseded_at for label in fetch(exportable, select(Label))] == [None]

"""Answers about several candidates, out and back: our own folder whole, foreign formats as they can say them."""

from __future__ import annotations

import json
import random
import uuid
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sqlalchemy import select

from annotate.exchange.export import export_dataset
from annotate.exchange.read_back import import_dataset
from annotate.exchange.read_hpdv2 import import_hpdv2
from annotate.judging.judgments import Answer, record_judgment
from annotate.judging.people import add_person
from annotate.judging.tasks import make_tasks
from dataset.options import ExportOptions
from dataset.tasks import ranks_of
from db.errors import UserError
from db.models import Asked, Choice, Pair, Split, Task
from db.project import load_settings
from db.session import Database, open_database
from tests.making import add_face, add_photos, dump_rows, judge, read_files, read_lines

METHODS = ("m1", "m2", "m3", "m4")
SPLITS = (Split.train, Split.test, Split.val, Split.train)
RANKINGS = (("c>?", Asked.best), ("c>a>?", Asked.order), ("a=b>c>d", Asked.order), ("b>?>d", Asked.best_worst))


@pytest.fixture
def judged(database: Database, data: Path, tmp_path: Path) -> Database:
    """Four photos of four candidates, a task each; two people answer each, one pair is judged alone as well."""
    with database.write() as session:
        for number, split in enumerate(SPLITS):
            lq, *restored = add_photos(session, data, tmp_path, range(10 * number, 10 * number + 5))
            add_face(session, f"face{number}", METHODS, lq, *restored, split=split, group=f"person{number}")
        make_tasks(session, load_settings(session), 4)
        people = [add_person(session, name) for name in ("ada", "ben")]
        session.flush()
        for number, task in enumerate(session.scalars(select(Task).order_by(Task.source_id))):
            for place, person in enumerate(people):
                ranking, asked = RANKINGS[(number + place) % len(RANKINGS)]
                for repeat_no in range(2 - place):
                    key = str(uuid.UUID(int=1000 + 100 * number + 10 * place + repeat_no))
                    shown = {"task_id": task.id, "ranking": ranking, "places": "dbca", "asked": asked}
                    record_judgment(session, person.id, Answer(key, None, repeat_no, None, None, 2.5, **shown))
        carl = add_person(session, "carl")
        session.flush()
        judge(session, carl.id, session.scalars(select(Pair.id).order_by(Pair.key)).all()[0], Choice.a)
        shown = {"task_id": task.id, "places": "abcd", "asked": Asked.best, "skip_reason": "both bad"}
        record_judgment(session, carl.id, Answer(str(uuid.UUID(int=1)), None, 0, None, Choice.skip, 1.0, **shown))
    return database


def export(database: Database, data: Path, out: Path, **options: object) -> dict[str, object]:
    return export_dataset(database, data, out, ExportOptions.model_validate(options))


def test_our_folder_holds_tasks_whole_and_comes_back_to_the_byte(judged: Database, data: Path, tmp_path: Path) -> None:
    export(judged, data, tmp_path / "out")
    tasks = {row["task"]: row for row in read_lines(tmp_path / "out" / "tasks.jsonl")}
    assert [len(row["candidates"]) for row in tasks.values()] == [4] * 4
    judgments = read_lines(tmp_path / "out" / "judgments.jsonl")
    assert len(judgments) == 4 * 3 + 2
    of_tasks = [row for row in judgments if row["task"]]
    assert {row["ranking"] for row in of_tasks} == {ranking for ranking, _ in RANKINGS} | {None}
    assert {row["places"] for row in of_tasks} == {"dbca", "abcd"}
    assert {row["asked"] for row in judgments} == {"pair", "best", "best_worst", "order"}
    rows = read_lines(tmp_path / "out" / "pairs.jsonl")
    assert {task for row in rows for task in row["tasks"]} == set(tasks)
    assert all(0 < row["weight"] <= 1 for row in rows)

    with closing(open_database(tmp_path / "copy")) as other:
        added = import_dataset(other, tmp_path / "copy", tmp_path / "out")
        assert (added["tasks"], added["judgments"]) == (4, 14)
        assert not any(import_dataset(other, tmp_path / "copy", tmp_path / "out").values())
        again = export(other, tmp_path / "copy", tmp_path / "again")
        assert read_files(tmp_path / "out") == read_files(tmp_path / "again")
        assert again["rows"] == len(rows)
        for name in ("task", "task_candidate"):
            assert len(dump_rows(other)[name]) == len(dump_rows(judged)[name])
        with other.read() as session:
            counts = [task.judgment_count for task in session.scalars(select(Task))]
            assert counts == [
                2,
                2,
                2,
                3,
            ]  # a skip is an answer


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (
            "judgments.jsonl",
            lambda row: row.update(ranking="e>?") if row["ranking"] else None,
            "are not tiers of the letters abcd",
        ),
        ("judgments.jsonl", lambda row: row.update(places="abc") if row["task"] else None, "a ranking of 3|3 places"),
        ("judgments.jsonl", lambda row: row.update(pair="0" * 32) if row["task"] else None, "of a pair or of a task"),
        ("pairs.jsonl", lambda row: row.update(tasks=[]), "names other tasks than its judgments answered"),
        ("tasks.jsonl", lambda row: row["candidates"].reverse(), "not in the order of their keys"),
        ("tasks.jsonl", lambda row: row["candidates"].pop(), "is not the task of its source"),
        ("tasks.jsonl", lambda row: row.update(source="other"), "order of their keys|is not the task"),
    ],
)
def test_damaged_tasks_are_refused_whole(judged, data, tmp_path, file, change, said) -> None:  # type: ignore[no-untyped-def]
    export(judged, data, tmp_path / "out")
    path = tmp_path / "out" / file
    rows = read_lines(path)
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "out" / "SHA256SUMS").unlink()
    with closing(open_database(tmp_path / "copy")) as other:
        with pytest.raises(UserError, match=said):
            import_dataset(other, tmp_path / "copy", tmp_path / "out")
        with other.read() as session:
            assert session.scalars(select(Pair)).all() == []


def test_ranks_tie_what_is_tied_and_what_is_not_told_apart() -> None:
    assert ranks_of("c>a>?", 4) == [2, 3, 1, 3]
    assert ranks_of("a=b>c>d", 4) == [1, 1, 2, 3]
    assert ranks_of("b>?>d", 4) == [2, 1, 2, 3]
    assert ranks_of("b>?", 3) == [2, 1, 2]


def test_imagereward_has_an_item_an_answer(judged: Database, data: Path, tmp_path: Path) -> None:
    export(judged, data, tmp_path / "out", format="imagereward")
    files = [json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("train", "valid", "test")]
    items = [item for file in files for item in file]
    of_tasks = [item for item in items if item["task"]]
    assert len(of_tasks) == 8  # a live answer each, no repeat, no skip
    assert sorted(map(sorted, (item["ranking"] for item in of_tasks))) == sorted(
        [sorted(ranks_of(ranking, 4)) for ranking, _ in RANKINGS] * 2
    )
    assert all(item["generations"] == sorted(item["generations"]) for item in of_tasks)
    assert len([item for item in items if not item["task"]]) <= 1  # the pair that was judged alone, if no tie


def test_derived_pairs_name_their_tasks_in_foreign_formats(judged: Database, data: Path, tmp_path: Path) -> None:
    export(judged, data, tmp_path / "ours")
    tasks = {row["pair"]: row["tasks"] for row in read_lines(tmp_path / "ours" / "pairs.jsonl")}
    for form in ("pickapic", "diffusion-dpo"):
        export(judged, data, tmp_path / form, format=form)
        rows = [row for path in (tmp_path / form / "data").iterdir() for row in pq.read_table(path).to_pylist()]
        assert {task for row in rows for task in row["tasks"] or []} == {task for row in tasks.values() for task in row}
    export(judged, data, tmp_path / "hpdv2", format="hpdv2")
    items = json.loads((tmp_path / "hpdv2" / "train.json").read_text())
    assert all(len(item["tasks"]) == 1 for item in items)
    (test,) = {item["tasks"][0] for item in json.loads((tmp_path / "hpdv2" / "test.json").read_text())}
    assert test in {task for row in tasks.values() for task in row}
    with closing(open_database(tmp_path / "copy")) as other:
        added = import_hpdv2(other, tmp_path / "copy", tmp_path / "hpdv2" / "train.json")
        assert added["labels"] == len(items)


def test_a_coin_scores_one_half_on_the_test_file_of_hpdv2(judged: Database, data: Path, tmp_path: Path) -> None:
    """HPSv2 counts a pair as wrong where model and people disagree, so a tie would be right whatever the model says."""
    export(judged, data, tmp_path / "hpdv2", format="hpdv2")
    items = json.loads((tmp_path / "hpdv2" / "test.json").read_text())
    rng = random.Random(0)
    scores = [float(rng.random() < 0.5) if len(set(item["rank"])) == 2 else 1.0 for item in items for _ in range(2000)]
    assert sum(scores) / len(scores) == pytest.approx(0.5, abs=0.02)

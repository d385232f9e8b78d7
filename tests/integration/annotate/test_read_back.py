"""What is read back is what was written, on SQLite and PostgreSQL, whatever was filtered; contradictions refuse it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PilImage
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from annotate.exchange.export import export_dataset
from annotate.exchange.read_back import import_dataset
from annotate.exchange.read_hpdv2 import import_hpdv2
from annotate.ingest.check_images import check_stored_images
from annotate.judging.judgments import undo_judgment
from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person
from dataset.files import SCORE_COLUMNS
from dataset.options import ExportOptions
from db.errors import UserError
from db.images import add_image, probe_image
from db.models import Judgment, Label, MetricValue, Origin, Pair, Person, Picked, Question, Side, Source, Split
from db.project import ProjectSettings, load_settings, save_settings
from db.records import add_candidate, add_method, add_metric_value, add_source
from db.session import Database, open_database
from tests.making import (
    add_face,
    add_photos,
    dump_rows,
    fetch,
    judge,
    read_files,
    read_lines,
    stored_names,
    write_photo,
)

METHODS = ("bicubic", "gfpgan", "codeformer", "diffbir")


def judge_as(session: Session, person: Person, pair: Pair, choice: str, repeat_no: int = 0) -> Judgment:
    """A judgment with all that one may hold, each part following from what it is of."""
    number = (pair.shuffle_key * 100 + person.id) * 10 + repeat_no
    return judge(
        session,
        person.id,
        pair.id,
        choice,
        lambda _, claimed: claimed + 1 / 3 if number % 3 else None,
        uuid=str(UUID(int=number)),
        repeat_no=repeat_no,
        shown_left=Side.b if repeat_no else Side.a,
        seconds=number % 97 / 7,
        skip_reason="“both” bad\n" if choice == "skip" else None,
        reasons=["eyes", "hår"] if choice == "a" else [],
        view_mode="fit+flicker",
        picked=list(Picked)[(pair.shuffle_key + person.id) % len(Picked)],
    )


@pytest.fixture
def judged(database: Database, data: Path, tmp_path: Path) -> Database:
    """5 sources x 4 methods, 30 pairs, judged at random by three people and a robot; SVM labels, gold, scores."""
    rng = random.Random(3)
    with database.write() as session:
        for number in range(5):
            end, split = (("png", Split.train), ("jpg", Split.test), ("webp", Split.val))[number % 3]
            lq, hq, *restored = add_photos(session, data, tmp_path, range(10 * number, 10 * number + 6), end=end)
            about = {"group": f"g{number // 2 * 3 + number % 3}", "lq": lq if number else None, "hq": hq}
            source = add_source(session, f"face {number}", split, **about)
            source.caption = None if number == 0 else f'“{number}”\u2028 "quoted"\nin two lines'
            for seed, (name, image) in enumerate(zip(METHODS, restored, strict=True)):
                add_candidate(session, source, add_method(session, name), image, seed)
                add_metric_value(session, image, "musiq", "1", value=rng.random() * 100, raw_value=rng.random())
                add_metric_value(session, image, "lpips", "0.1", value=-0.1, raw_value=0.1, reference=hq.sha256)
            add_metric_value(session, hq, "musiq", "1", value=float("nan"), raw_value=None)
        make_pairs(session, load_settings(session))
        people = [add_person(session, name) for name in ("ada", "ben", "eve")]
        robot = add_person(session, "robot", simulated=True)
        pairs = session.scalars(select(Pair).order_by(Pair.key)).all()
        pairs[20].gold_answer = "b"
        for pair in pairs[:26]:
            for person in (*people, robot):
                if rng.random() < 0.6:
                    made = judge_as(session, person, pair, rng.choice(["a", "a", "b", "tie", "skip"]))
                    if rng.random() < 0.15:
                        undo_judgment(session, person.id, made.uuid, load_settings(session))
                    elif rng.random() < 0.3:
                        judge_as(session, person, pair, rng.choice(["a", "b"]), 1)
        # Out of the order of their ids, as after an import: nothing may hang on that order.
        for judgment in session.scalars(select(Judgment)):
            judgment.created_at -= timedelta(seconds=rng.randrange(100_000))
        session.add_all(
            Label(pair_id=pair.id, origin=Origin.svm, made_by="labeler 1", p_a=rng.random(), weight=0.5)
            for pair in pairs[18:]
        )
    return database


def export(database: Database, data: Path, out: Path, **options: object) -> dict[str, object]:
    return export_dataset(database, data, out, ExportOptions.model_validate(options))


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the card, which tells the filters and what they left out, and the sums, which sum it too."""
    return read_files(folder, "README.md", "SHA256SUMS")


@pytest.mark.parametrize("resolve", ["majority", "dawid-skene"])
def test_the_round_trip_is_exact_on_both_databases(
    judged: Database, data: Path, database_url: str | None, tmp_path: Path, resolve: str
) -> None:
    counts = export(judged, data, tmp_path / "first", resolve=resolve, include_simulated=True)
    assert (counts["people"], counts["simulated_annotators"]) == (3, 1)
    assert set(counts["origins"]) == {"human", "svm"}  # type: ignore[call-overload]
    other_data = tmp_path / "other"
    other = open_database(other_data, database_url)
    added = import_dataset(other, other_data, tmp_path / "first")
    assert (added["pairs"], added["people"]) == (counts["rows"], 4)
    assert import_dataset(other, other_data, tmp_path / "first") == dict.fromkeys(added, 0)
    export(other, other_data, tmp_path / "second", resolve=resolve, include_simulated=True)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    other.close()


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({"people": ["ada", "eve"]}, {}),
        ({"exclude_people": ["ada"]}, {}),
        ({"origin": "svm"}, {"origin": "svm"}),
        ({"origin": "human", "ties": "drop"}, {}),
        ({"min_agreement": 0.6, "splits": ["train"], "methods": list(METHODS[:3])}, {}),
        ({"resolve": "dawid-skene", "splits": ["test", "val"]}, {"resolve": "keep"}),
        ({"resolve": "dawid-skene", "people": ["ada", "ben"], "include_simulated": True}, {"resolve": "keep"}),
    ],
)
def test_a_filtered_dataset_comes_back_exactly(
    judged: Database,
    data: Path,
    other: Database,
    other_data: Path,
    tmp_path: Path,
    options: dict[str, object],
    again: dict[str, object],
) -> None:
    assert export(judged, data, tmp_path / "first", **options)["rows"]
    import_dataset(other, other_data, tmp_path / "first")
    export(other, other_data, tmp_path / "second", **again)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_what_comes_back_is_in_the_tables(
    judged: Database, data: Path, other: Database, other_data: Path, tmp_path: Path
) -> None:
    export(judged, data, tmp_path / "out", include_simulated=True)
    import_dataset(other, other_data, tmp_path / "out")
    with judged.read() as session, other.read() as back:
        people = {person.public_id: person for person in session.scalars(select(Person))}
        for person in back.scalars(select(Person)):
            assert person.name == f"imported-{person.public_id}"
            assert person.simulated == people[person.public_id].simulated
            assert (person.password_hash, person.link_hash) == (None, None)
        exported = {pair.key: pair for pair in back.scalars(select(Pair))}
        for pair in session.scalars(select(Pair)):
            if pair.key in exported:
                copy = exported[pair.key]
                assert (copy.gold_answer, copy.judgment_count) == (pair.gold_answer, pair.judgment_count)
                assert (copy.shuffle_key, copy.judgments_wanted) == (pair.shuffle_key, pair.judgments_wanted)
                assert copy.reserved is pair.reserved
                assert copy.source.split is pair.source.split
        assert "b" in {pair.gold_answer for pair in exported.values()}
        for label in back.scalars(select(Label).where(Label.superseded_at.is_(None))):
            original = session.scalars(
                select(Label)
                .join(Pair)
                .where(Pair.key == label.pair.key, Label.origin == label.origin, Label.superseded_at.is_(None))
            ).one()
            assert sorted(j.uuid for j in label.judgments) == sorted(j.uuid for j in original.judgments)


def test_why_a_pair_was_shown_comes_back_and_is_random_where_not_told(
    judged: Database, data: Path, other: Database, other_data: Path, tmp_path: Path
) -> None:
    export(judged, data, tmp_path / "out", include_simulated=True)
    import_dataset(other, other_data, tmp_path / "out")
    picked = select(Judgment.uuid, Judgment.picked)
    with judged.read() as session, other.read() as back:
        told = {row.uuid: row.picked for row in back.execute(picked)}
        assert told.items() <= {row.uuid: row.picked for row in session.execute(picked)}.items()
        assert set(told.values()) == set(Picked)
    change_lines("judgments.jsonl", lambda rows: [row.pop("picked") for row in rows])(tmp_path / "out")
    older = open_database(tmp_path / "older")
    import_dataset(older, tmp_path / "older", tmp_path / "out")
    assert set(fetch(older, select(Judgment.picked))) == {Picked.random}
    older.close()


def test_the_question_comes_back_and_is_not_recorded_where_not_told(
    judged: Database, data: Path, other: Database, other_data: Path, tmp_path: Path
) -> None:
    with judged.write() as session:
        save_settings(session, {"question": "Which is sharper?"})
        person, pair = add_person(session, "late"), session.scalars(select(Pair).order_by(Pair.key)).first()
        assert pair is not None
        judge_as(session, person, pair, "a")
    export(judged, data, tmp_path / "out")
    with other.write() as session:
        save_settings(session, {"question": "Of this folder?"})
    import_dataset(other, other_data, tmp_path / "out")
    export(other, other_data, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    told = select(Judgment.uuid, Question.question).join(Question, Question.id == Judgment.question_id)
    with judged.read() as session, other.read() as back:
        here = dict(session.execute(told).all())
        assert dict(back.execute(told).all()).items() <= here.items()
        assert set(here.values()) == {ProjectSettings().question, "Which is sharper?"}
        assert load_settings(back).question == "Of this folder?"
    older = ("question_version", "server_seconds")
    change_lines("judgments.jsonl", lambda rows: [row.pop(name) for row in rows for name in older])(tmp_path / "out")
    (tmp_path / "out" / "questions.jsonl").unlink()
    assert set(import_dataset(other, other_data, tmp_path / "out").values()) == {0}, "what is known stays"
    empty = open_database(tmp_path / "empty")
    import_dataset(empty, tmp_path / "empty", tmp_path / "out")
    assert set(fetch(empty, select(Judgment.question_id))) == {None}
    empty.close()


def write_scores(folder: Path, rows: list[dict[str, object]], columns: tuple[str, ...] = SCORE_COLUMNS) -> None:
    types = {"value": pa.float64(), "raw_value": pa.float64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in columns])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "scores.parquet")


def change_scores(change: Callable[[list[dict[str, object]]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        rows = pq.read_table(folder / "scores.parquet").to_pylist()
        change(rows)
        write_scores(folder, rows)
        (folder / "SHA256SUMS").unlink()

    return apply


def change_lines(name: str, change: Callable[[list[dict[str, object]]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        rows = read_lines(folder / name)
        change(rows)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / "SHA256SUMS").unlink()

    return apply


def pairs(**values: object) -> Callable[[Path], None]:
    return change_lines("pairs.jsonl", lambda rows: rows[1].update(values))


def judgments(**values: object) -> Callable[[Path], None]:
    return change_lines("judgments.jsonl", lambda rows: rows[1].update(values))


def edit_a_line(folder: Path) -> None:
    path = folder / "judgments.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"seconds": ', b'"seconds": 1', 1))


def swap_image_for_link(folder: Path) -> None:
    image = next((folder / "images").iterdir())
    outside = image.rename(folder.parent / image.name)
    image.symlink_to(outside)


def rename_image(folder: Path) -> None:
    image = next((folder / "images").glob("*.png"))
    image.rename(image.with_suffix(".jpg"))
    path = folder / "pairs.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace(image.name, f"{image.stem}.jpg"), encoding="utf-8")
    (folder / "SHA256SUMS").unlink()


def double(rows: list[dict[str, object]]) -> None:
    rows.append(rows[0])


def make_live_twice(rows: list[dict[str, object]]) -> None:
    rows.append(rows[0] | {"uuid": str(UUID(int=5)), "superseded_at": None})
    rows[0]["superseded_at"] = None


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (edit_a_line, "judgments.jsonl is not the file that SHA256SUMS names"),
        (lambda folder: (folder / "scores.parquet").unlink(), "scores.parquet is missing"),
        (lambda folder: write_scores(folder, [], SCORE_COLUMNS[:-1]), "has the columns"),
        (change_scores(double), "a second value"),
        (change_scores(lambda rows: rows[0].update(sha256="0" * 64)), "row 1: a value of the image"),
        (change_scores(lambda rows: rows[0].update(value=float("inf"))), "row 1: value"),
        (swap_image_for_link, "lies outside"),
        (rename_image, "is not the file that the dataset names"),
        (pairs(p_a=float("nan")), "line 2"),
        (pairs(p_a="0.5"), "line 2: p_a"),
        (pairs(tie=None), "line 2: tie"),
        (pairs(p_a=0.25, tie=True), "line 2: tie is True, but p_a is 0.25"),
        (pairs(split="training"), "line 2: split"),
        (pairs(group="another"), "line 2: source"),
        (pairs(seed_a=2**31), "line 2: seed_a"),
        (pairs(source=""), "line 2: source"),
        (pairs(caption="\x00"), "line 2: caption"),
        (pairs(sha256_lq="0" * 64, lq=None), "line 2: lq and sha256_lq"),
        (change_lines("pairs.jsonl", double), "a second"),
        (judgments(choice="c"), "line 2: choice"),
        (judgments(choice="skip", skip_reason=None), "line 2: choice is skip"),
        (judgments(created_at="2026-01-01T00:00:00"), "line 2: created_at"),
        (judgments(pair="0" * 32), "which pairs.jsonl lacks"),
        (judgments(seconds=-1.0), "line 2: seconds"),
        (judgments(uuid="one"), "line 2: uuid"),
        (change_lines("judgments.jsonl", double), "is there twice"),
        (judgments(question_version="0" * 16), "answers the question 0000000000000000, which questions.jsonl lacks"),
        (change_lines("questions.jsonl", lambda rows: rows[0].update(question="Else?")), "is not the version of these"),
        (change_lines("judgments.jsonl", make_live_twice), "second live one"),
    ],
)
def test_what_is_not_as_it_should_be_is_refused_whole(
    judged: Database,
    data: Path,
    other: Database,
    other_data: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    told: str,
) -> None:
    export(judged, data, tmp_path / "out", people=["ada"])
    damage(tmp_path / "out")
    before = dump_rows(other)
    with pytest.raises(UserError) as refused:
        import_dataset(other, other_data, tmp_path / "out")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert dump_rows(other) == before
    assert stored_names(other_data) == []


def set_first(model: type[object], **values: object) -> Callable[[Session], object]:
    def apply(session: Session) -> object:
        first = session.scalar(select(func.min(model.id)))  # type: ignore[attr-defined]
        return session.execute(update(model).where(model.id == first).values(**values))  # type: ignore[attr-defined]

    return apply


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (set_first(MetricValue, value=7.5), "is 7.5 here"),
        (set_first(Judgment, seconds=1234.5), "with another seconds"),
        (set_first(Judgment, view_mode="1:1"), "with another view_mode"),
        (set_first(Label, weight=0.125), "import into an empty data folder"),
        (set_first(Person, simulated=True), "is simulated here"),
        (set_first(Source, split=Split.val), "a split never changes"),
        (lambda session: session.execute(update(Source).values(caption="another")), "with the caption 'another'"),
        (lambda session: session.execute(update(Pair).values(gold_answer="tie")), "has the known answer tie here"),
    ],
)
def test_what_the_database_says_otherwise_refuses_the_import(
    judged: Database,
    data: Path,
    other: Database,
    other_data: Path,
    tmp_path: Path,
    change: Callable[[Session], object],
    told: str,
) -> None:
    export(judged, data, tmp_path / "out", people=["ada"], origin="human")
    import_dataset(other, other_data, tmp_path / "out")
    with other.write() as session:
        change(session)
    before, files = dump_rows(other), stored_names(other_data)
    with pytest.raises(UserError, match=told):
        import_dataset(other, other_data, tmp_path / "out")
    assert (dump_rows(other), stored_names(other_data)) == (before, files)


def test_photos_that_are_there_are_joined_not_doubled(
    judged: Database, data: Path, other: Database, other_data: Path, tmp_path: Path
) -> None:
    """Into the database that it came from, and into one with some of its photos."""
    export(judged, data, tmp_path / "out", resolve="majority")
    before = dump_rows(judged)
    assert set(import_dataset(judged, data, tmp_path / "out").values()) == {0}
    assert dump_rows(judged) == before
    export(judged, data, tmp_path / "part", splits=["train"], people=["ben"])
    part = import_dataset(other, other_data, tmp_path / "part")
    with other.write() as session:
        session.execute(update(Label).values(superseded_at=func.now()))
    rest = import_dataset(other, other_data, tmp_path / "out")
    with judged.read() as session:
        sources = session.scalar(select(func.count(func.distinct(Pair.source_id))))
    assert part["sources"] + rest["sources"] == sources


def hpdv2_round_trip(start: Path, tmp_path: Path, **options: object) -> tuple[bytes, bytes]:
    other_data = tmp_path / "hpdv2-data"
    other = open_database(other_data)
    added = import_hpdv2(other, other_data, start)
    assert import_hpdv2(other, other_data, start) == dict.fromkeys(added, 0)
    export(other, other_data, tmp_path / "hpdv2-back", format="hpdv2", **options)
    other.close()
    return start.read_bytes(), (tmp_path / "hpdv2-back" / start.name).read_bytes()


@pytest.mark.parametrize("name", ["train.json", "val.json"])
@pytest.mark.parametrize("ties", ["keep", "soft", "drop"])
def test_our_hpdv2_comes_back_exactly(judged: Database, data: Path, tmp_path: Path, ties: str, name: str) -> None:
    """SVM labels and Dawid-Skene give probabilities with all their digits."""
    export(judged, data, tmp_path / "out", format="hpdv2", ties=ties, resolve="dawid-skene")
    first, second = hpdv2_round_trip(tmp_path / "out" / name, tmp_path, ties=ties)
    assert first == second
    assert len(json.loads(first)) >= 4


def test_hpdv2_with_the_same_two_images_twice(tmp_path: Path) -> None:
    """Two raters of one pair, or two methods with one output: each row stays a pair of its own."""
    paths = [write_photo(tmp_path / "in" / f"{number}.png", number) for number in range(3)]
    probes = sorted((probe_image(path).sha256, path) for path in paths)
    for sha256, path in probes:
        (tmp_path / "in" / "images").mkdir(exist_ok=True)
        path.rename(tmp_path / "in" / "images" / f"{sha256}.png")
    names = [f"images/{sha256}.png" for sha256, _ in probes]
    rows = [
        {"prompt": "", "file_path": [names[0], names[1]], "human_preference": [0, 1]},
        {"prompt": "", "file_path": [names[0], names[1]], "human_preference": [0, 1]},
        {"prompt": "", "file_path": [names[0], names[1]], "human_preference": [0.5, 0.5]},
        {"prompt": "", "file_path": [names[0], names[1]], "human_preference": [1, 0]},
        {"prompt": "", "file_path": [names[1], names[2]], "human_preference": [1, 0]},
        {"prompt": "another", "file_path": [names[0], names[1]], "human_preference": [1, 0]},
    ]
    start = tmp_path / "in" / "train.json"
    start.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    first, second = hpdv2_round_trip(start, tmp_path)
    assert json.loads(second) == rows
    assert first == second
    opened = open_database(tmp_path / "hpdv2-data")
    with opened.read() as session:
        told = session.execute(select(Source.caption, Source.split).order_by(Source.caption)).all()
        assert [tuple(row) for row in told] == [("", Split.train), ("another", Split.train)]
        assert session.scalar(select(func.count()).select_from(Judgment)) == 0
    opened.close()


def test_hpdv2s_own_test_json(database: Database, data: Path, tmp_path: Path) -> None:
    """A ranking of four images, two of them equally good, is six pairs; the images lie in test/ as HPDv2 has them."""
    names = [f"{number}.png" for number in range(4)]
    for number, name in enumerate(names):
        write_photo(tmp_path / "in" / "test" / name, number)
    ranking = {
        "prompt": "a face",
        "image_path": names,
        "rank": [2, 0, 1, 1],
        "raw_annotations": [{"rank": [2, 0, 1, 1], "user_hash": "x"}, {"rank": [0, 1, 2, 3], "user_hash": "y"}],
        "user_hash": "z",
    }
    (tmp_path / "in" / "test.json").write_text(json.dumps([ranking]), encoding="utf-8-sig")
    added = import_hpdv2(database, data, tmp_path / "in" / "test.json")
    assert (added["sources"], added["candidates"], added["pairs"], added["labels"]) == (1, 4, 6, 6)
    of_hash = {probe_image(tmp_path / "in" / "test" / name).sha256: number for number, name in enumerate(names)}
    with database.read() as session:
        assert session.scalars(select(Source.split)).one() is Split.test
        found = {}
        for label in session.scalars(select(Label)):
            a, b = (of_hash[side.image.sha256] for side in (label.pair.a, label.pair.b))
            found[min(a, b), max(a, b)] = (label.p_a if a < b else 1 - label.p_a, label.agreement)
    assert found == dict.fromkeys([(0, 1), (0, 2), (0, 3)], (0.0, 0.5)) | {
        **dict.fromkeys([(1, 2), (1, 3)], (1.0, 1.0)),
        (2, 3): (0.5, 0.5),
    }


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"prompt": "p", "image_path": ["a.png", "b.png"], "rank": [0, 1, 2]}, "a rank of 3 for 2 images"),
        ({"prompt": "p", "image_path": ["a.png"], "rank": [0]}, "item 0: .*image_path"),
        ({"prompt": "\ud83d", "file_path": ["a.png", "b.png"], "human_preference": [1, 0]}, "item 0: prompt"),
        ({"source": "x", "lq": "a.png"}, "a manifest has a row per line"),
    ],
)
def test_bad_json_lists(database: Database, data: Path, tmp_path: Path, item: dict[str, object], message: str) -> None:
    (tmp_path / "test.json").write_text(json.dumps([item]))
    with pytest.raises(UserError, match=message):
        import_hpdv2(database, data, tmp_path / "test.json")


def test_hpdv2_of_another_name_is_split_as_photos_are(database: Database, data: Path, tmp_path: Path) -> None:
    rows = []
    for number in range(0, 60, 2):
        write_photo(tmp_path / "in" / f"{number}.png", number)
        write_photo(tmp_path / "in" / f"{number + 1}.png", number + 1)
        rows.append({"prompt": "p", "file_path": [f"{number}.png", f"{number + 1}.png"], "human_preference": [1, 0]})
    (tmp_path / "in" / "hpd.json").write_text(json.dumps(rows), encoding="utf-8")
    import_hpdv2(database, data, tmp_path / "in" / "hpd.json")
    splits = fetch(database, select(Source.split))
    assert len(splits) == 30
    assert set(splits) == set(Split)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": 3, "file_path": ["0.png", "1.png"], "human_preference": [1, 0]}, "item 0: prompt"),
        ({"prompt": "p", "file_path": ["0.png", "1.png"], "human_preference": [1, 0], "id": 1}, "item 0: id"),
        ({"prompt": "p", "file_path": ["0.png", "../1.png"], "human_preference": [1, 0]}, "lies outside"),
        ({"prompt": "p", "file_path": ["0.png", "1.png"], "human_preference": [-1, 2]}, "one above 0"),
        ({"prompt": "p", "file_path": ["0.png", "1.png"], "human_preference": [float("nan"), 1]}, "human_preference.0"),
    ],
)
def test_hpdv2_that_is_not_so_is_refused(
    database: Database, data: Path, tmp_path: Path, row: object, told: str
) -> None:
    for number in range(2):
        write_photo(tmp_path / "in" / f"{number}.png", number)
        write_photo(tmp_path / f"{number}.png", number)
    (tmp_path / "in" / "train.json").write_text(json.dumps([row]), encoding="utf-8")
    before = dump_rows(database)
    with pytest.raises(UserError) as refused:
        import_hpdv2(database, data, tmp_path / "in" / "train.json")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert (dump_rows(database), stored_names(data)) == (before, [])


def test_settings_of_the_new_project_hold(
    judged: Database, data: Path, other: Database, other_data: Path, tmp_path: Path
) -> None:
    """How often pairs are judged is the importing project's affair; the split is the dataset's."""
    export(judged, data, tmp_path / "out")
    with other.write() as session:
        settings: ProjectSettings = save_settings(session, {"judgments_per_pair": 4, "judgments_per_test_pair": 5})
    import_dataset(other, other_data, tmp_path / "out")
    with other.read() as session:
        found = {(pair.source.split is Split.test, pair.judgments_wanted) for pair in session.scalars(select(Pair))}
    assert found == {(True, settings.judgments_per_test_pair), (False, settings.judgments_per_pair)}


def test_a_dataset_that_holds_metadata_is_stored_without_it_and_known_again(
    database: Database, data: Path, other: Database, other_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier version exported it; the project that it came from may be mended since, or not."""
    with monkeypatch.context() as earlier, database.write() as session:
        earlier.setattr("pixels.read.strip_metadata", lambda content: (content, []))
        images = []
        for number in range(3):
            path = write_photo(tmp_path / f"{number}.jpg", number)
            PilImage.open(path).save(path, comment=b"Jane Doe")
            images.append(add_image(session, data, probe_image(path), path))
        hq, *restored = images
        add_face(session, "face", METHODS[:2], None, *restored, hq=hq)
        for image in restored:
            add_metric_value(session, image, "lpips", "0.1", value=-0.1, raw_value=0.1, reference=hq.sha256)
        make_pairs(session, load_settings(session))
        judge_as(session, add_person(session, "ada"), session.scalars(select(Pair)).one(), "a")
        names = [image.sha256 for image in images]
    with monkeypatch.context() as earlier:
        earlier.setattr("dataset.files.strip_metadata", lambda content: (content, []))
        export(database, data, tmp_path / "first")
    assert sorted(path.stem for path in (tmp_path / "first" / "images").iterdir()) == sorted(names)
    added = import_dataset(other, other_data, tmp_path / "first")
    assert (added["images"], added["pairs"], added["judgments"], added["scores"]) == (3, 1, 1, 2)
    assert not any(b"Jane" in path.read_bytes() for path in (other_data / "images").rglob("*.jpg"))
    for base, folder in ((other, other_data), (database, data)):
        assert set(import_dataset(base, folder, tmp_path / "first").values()) == {0}
        assert len(stored_names(folder)) == 3
    export(other, other_data, tmp_path / "second")
    check_stored_images(database, data, mend=True)
    assert set(import_dataset(database, data, tmp_path / "first").values()) == {0}
    export(database, data, tmp_path / "third")
    assert contents(tmp_path / "second") == contents(tmp_path / "third")

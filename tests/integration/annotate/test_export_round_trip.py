"""Datasets out and back: the same bytes each time, exact round trips, damaged folders refused whole."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotate.exchange.export import export_dataset
from annotate.exchange.read_back import import_dataset
from annotate.exchange.read_hpdv2 import import_hpdv2
from annotate.judging.judgments import undo_judgment
from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person
from dataset.options import ExportOptions
from db.errors import UserError
from db.images import image_path
from db.models import Choice, Image, Judgment, Label, Pair, Person, Run, RunState, Side, Source, Split
from db.project import load_settings, save_settings
from db.records import add_metric_value
from db.session import Database, open_database
from tests.making import (
    AnnotateHere,
    add_candidates,
    add_face,
    add_photos,
    dump_rows,
    fetch,
    judge,
    read_files,
    read_lines,
    write_photo,
)

SPLITS = (Split.train, Split.val, Split.test, Split.train)
METHODS = ("bicubic", "gfpgan", "codeformer")


def judge_as(session: Session, person: Person, pair: Pair, choice: str, *, repeat_no: int = 0) -> Judgment:
    """A judgment whose uuid follows from what it is of."""
    number = pair.id * 1000 + person.id * 100 + repeat_no * 10
    fields = {"uuid": str(uuid.UUID(int=number)), "repeat_no": repeat_no, "shown_left": Side.b if repeat_no else Side.a}
    return judge(session, person.id, pair.id, choice, reasons=["eyes"] if choice == "a" else [], **fields)


@pytest.fixture
def judged(database: Database, data: Path, tmp_path: Path) -> Database:
    """Four sources in all splits with three methods each, 12 pairs; every kind of judgment there is."""
    with database.write() as session:
        for number, split in enumerate(SPLITS):
            lq, hq, *restored = add_photos(session, data, tmp_path, range(10 * number, 10 * number + 5))
            about = {"split": split, "group": f"person{number}", "hq": hq}
            about["caption"] = None if number == 0 else f"portrait “{number}”\nin two lines"
            add_face(session, f"face{number}", METHODS, lq, *restored, **about)
            for image in restored:
                add_metric_value(session, image, "sharpness", "1", value=number / 3, raw_value=-number / 3)
        make_pairs(session, load_settings(session))
        ada, ben = add_person(session, "ada"), add_person(session, "ben")
        robot = add_person(session, "robot", simulated=True)
        pairs = session.scalars(select(Pair).order_by(Pair.key)).all()
        for place, pair in enumerate(pairs[:9]):
            judge_as(session, ada, pair, ("a", "b", "tie")[place % 3])
        judge_as(session, ben, pairs[0], "b")
        judge_as(session, ben, pairs[1], "b")
        judge_as(session, ada, pairs[0], "a", repeat_no=1)
        judge_as(session, ada, pairs[9], "skip")
        undone = judge_as(session, ben, pairs[2], "a")
        undo_judgment(session, ben.id, undone.uuid, load_settings(session))
        judge_as(session, robot, pairs[10], "a")
        pairs[11].gold_answer = "a"
        judge_as(session, ada, pairs[11], "a")
    return database


def export(database: Database, data: Path, out: Path, **options: object) -> dict[str, object]:
    return export_dataset(database, data, out, ExportOptions.model_validate(options))


def test_labels_are_of_people_and_of_pairs_that_count(judged: Database, data: Path, tmp_path: Path) -> None:
    counts = export(judged, data, tmp_path / "out")
    rows = read_lines(tmp_path / "out" / "pairs.jsonl")
    # 12 pairs less the skipped one, the gold one and the one that only a simulated annotator judged.
    assert counts["rows"] == len(rows) == 9
    assert {row["made_by"] for row in rows} == {"majority"}
    keys = fetch(judged, select(Pair.key).order_by(Pair.key))
    by_key = {row["pair"]: row for row in rows}
    assert [by_key[key]["p_a"] for key in keys[:9]] == [0.5, 0.0, 0.5, 1.0, 0.0, 0.5, 1.0, 0.0, 0.5]
    assert (by_key[keys[0]]["agreement"], by_key[keys[1]]["agreement"]) == (0.5, 1.0)
    assert len(by_key[keys[0]]["judgments"]) == 2  # type: ignore[arg-type]
    judgments = read_lines(tmp_path / "out" / "judgments.jsonl")
    assert len(judgments) == 9 + 2 + 1 + 1
    assert sum(row["superseded_at"] is not None for row in judgments) == 1
    assert sum(row["repeat_no"] == 1 for row in judgments) == 1


def test_simulated_labels_say_so_everywhere(judged: Database, data: Path, tmp_path: Path) -> None:
    counts = export(judged, data, tmp_path / "out", include_simulated=True)
    assert counts["rows"] == 10
    assert {row["made_by"] for row in read_lines(tmp_path / "out" / "pairs.jsonl")} == {
        "majority with simulated annotators"
    }
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "10 by majority with simulated annotators" in card
    assert "1 simulated annotators" in card


def test_people_that_the_screening_flags_are_left_out_by_rule_and_named_on_the_card(
    judged: Database, data: Path, tmp_path: Path
) -> None:
    with judged.write() as session:
        for number in range(30):
            add_candidates(session, f"more{number}", ["m1", "m2"], files=data)
        make_pairs(session, load_settings(session))
        lefty = add_person(session, "lefty")
        public = lefty.public_id
        for pair in session.scalars(select(Pair).join(Source).where(Source.key.startswith("more"))).all():
            judge(session, lefty.id, pair.id, "a")
    whole, kept = (export(judged, data, tmp_path / str(flag), exclude_flagged=flag) for flag in (False, True))
    assert (whole["rows"] - kept["rows"], "screened" in whole) == (30, False)
    assert list(kept["screened"]["people"]) == [public]  # type: ignore[index]
    card = (tmp_path / "True" / "README.md").read_text(encoding="utf-8")
    assert f"- `{public}`: mostly answers left: 30 of 30; one key again and again: 30 answers" in card
    assert "Left out by screening, 1 people. Each person's answers were tested against" in card
    assert f'"exclude_people": [\n    "{public}"' in card
    assert "lefty" not in card
    assert public not in {row["person"] for row in read_lines(tmp_path / "True" / "judgments.jsonl")}
    assert "Left out by screening" not in (tmp_path / "False" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"splits": ["test"]}, None),
        ({"methods": ["bicubic", "gfpgan"]}, None),
        ({"min_agreement": 0.6}, 8),
        ({"ties": "drop"}, 5),
        ({"people": ["ben"]}, 2),
        ({"exclude_people": ["ada"]}, 2),
        ({"resolve": "dawid-skene"}, 9),
    ],
)
def test_filters(
    judged: Database, data: Path, tmp_path: Path, options: dict[str, object], expected: int | None
) -> None:
    export(judged, data, tmp_path / "out", **options)
    rows = read_lines(tmp_path / "out" / "pairs.jsonl")
    if "splits" in options:
        assert {row["split"] for row in rows} == {"test"}
    if "methods" in options:
        assert {row[side] for row in rows for side in ("method_a", "method_b")} == {"bicubic", "gfpgan"}
    assert expected is None or len(rows) == expected


def test_same_database_same_bytes(judged: Database, data: Path, tmp_path: Path) -> None:
    for name in ("jsonl", "hpdv2", "pickapic", "trl", "parquet", "imagefolder", "imagereward", "diffusion-dpo"):
        export(judged, data, tmp_path / f"{name}-1", format=name)
        export(judged, data, tmp_path / f"{name}-2", format=name)
        assert read_files(tmp_path / f"{name}-1") == read_files(tmp_path / f"{name}-2"), name


def test_checksums_name_every_file(judged: Database, data: Path, tmp_path: Path) -> None:
    export(judged, data, tmp_path / "out")
    files = read_files(tmp_path / "out")
    listed = dict(reversed(line.split("  ")) for line in files.pop("SHA256SUMS").decode().splitlines())
    assert listed == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    for name, content in files.items():
        if name.startswith("images/"):
            assert hashlib.sha256(content).hexdigest() in name


@pytest.mark.parametrize("resolve", ["majority", "dawid-skene"])
def test_our_dataset_comes_back_exactly(
    judged: Database, data: Path, other: Database, other_data: Path, tmp_path: Path, resolve: str
) -> None:
    export(judged, data, tmp_path / "first", resolve=resolve)
    added = import_dataset(other, other_data, tmp_path / "first")
    assert (added["pairs"], added["labels"], added["judgments"]) == (9, 9, 13)
    assert import_dataset(other, other_data, tmp_path / "first") == dict.fromkeys(added, 0)
    export(other, other_data, tmp_path / "second", resolve=resolve)
    assert read_files(tmp_path / "first") == read_files(tmp_path / "second")
    with other.read() as session:
        for pair in session.scalars(select(Pair)):
            live = select(func.count()).where(
                Judgment.pair_id == pair.id, Judgment.superseded_at.is_(None), Judgment.repeat_no == 0
            )
            assert pair.judgment_count == session.scalar(live)
        assert {source.key: source.split for source in session.scalars(select(Source))} == {
            f"face{number}": split for number, split in enumerate(SPLITS)
        }


def test_hpdv2_comes_back_exactly(judged: Database, data: Path, tmp_path: Path) -> None:
    for ties in ("keep", "soft"):
        export(judged, data, tmp_path / f"first-{ties}", format="hpdv2", ties=ties)
        other_data = tmp_path / f"other-{ties}"
        other = open_database(other_data)
        import_hpdv2(other, other_data, tmp_path / f"first-{ties}" / "train.json")
        export(other, other_data, tmp_path / f"second-{ties}", format="hpdv2", ties=ties)
        first, second = ((tmp_path / f"{which}-{ties}" / "train.json").read_bytes() for which in ("first", "second"))
        assert first == second
        assert {label.made_by for label in fetch(other, select(Label))} == {"imported:hpdv2"}
        other.close()


def damage_hash(folder: Path) -> None:
    image = next((folder / "images").glob("*.png"))
    image.write_bytes(next(path for path in (folder / "images").glob("*.png") if path != image).read_bytes())


def remove_image(folder: Path) -> None:
    next((folder / "images").glob("*.png")).unlink()


def change_pairs(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        rows = read_lines(folder / "pairs.jsonl")
        change(rows[2])
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / "SHA256SUMS").unlink()

    return apply


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (damage_hash, "is not the file that the dataset names"),
        (remove_image, "cannot be read"),
        (change_pairs(lambda row: row.update(p_a=1.5)), "line 3: p_a"),
        (change_pairs(lambda row: row.update(surprise=1)), "line 3: surprise"),
        (change_pairs(lambda row: row.pop("split")), "line 3: split"),
        (change_pairs(lambda row: row.update(image_a="../../secret.png")), "line 3: '../../secret.png' is not"),
        (change_pairs(lambda row: row.update(method_a="another")), "is not the pair of its source"),
        (change_pairs(lambda row: row.update(judgments=["nobody"])), "line 3: judgments.0"),
        (change_pairs(lambda row: row.update(judgments=[str(uuid.UUID(int=1))])), "line 3: pair"),
        (lambda folder: (folder / "pairs.jsonl").write_text("{broken\n"), "line 1"),
        (lambda folder: (folder / "judgments.jsonl").unlink(), "missing"),
        (lambda folder: (folder / "scores.parquet").write_bytes(b"no parquet"), "not a Parquet file"),
    ],
)
def test_damaged_datasets_are_refused_whole(
    judged: Database,
    data: Path,
    other: Database,
    other_data: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    told: str,
    annotate_here: AnnotateHere,
) -> None:
    export(judged, data, tmp_path / "out")
    damage(tmp_path / "out")
    before = dump_rows(other)
    code, _, error = annotate_here("import", tmp_path / "out", data=other_data)
    assert code == 2
    assert told in error
    assert error.count("\n") == 1
    assert dump_rows(other) == before


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "not a list of pairs"),
        ("{}", "not a list of pairs"),
        ("nonsense", "as JSON"),
        ('[{"prompt": "p", "file_path": ["a.png"], "human_preference": [1, 0]}]', "item 0: file_path"),
        ('[{"prompt": "p", "file_path": ["a.png", "b.png"], "human_preference": [0, 0]}]', "one above 0"),
        ('[{"prompt": "p", "file_path": ["a.png", "a.png"], "human_preference": [1, 0]}]', "same image"),
        ('[{"prompt": "p", "file_path": ["a.png", "c.png"], "human_preference": [1, 0]}]', "cannot be read"),
    ],
)
def test_malformed_hpdv2_is_refused_whole(
    database: Database, tmp_path: Path, content: str, told: str, annotate_here: AnnotateHere
) -> None:
    write_photo(tmp_path / "in" / "a.png", 1)
    write_photo(tmp_path / "in" / "b.png", 2)
    (tmp_path / "in" / "train.json").write_text(content, encoding="utf-8")
    before = dump_rows(database)
    refused = annotate_here("import", tmp_path / "in" / "train.json")
    assert refused.returncode == 2
    assert told in refused.stderr
    assert dump_rows(database) == before


def test_importing_what_contradicts_the_database_is_refused(judged: Database, data: Path, tmp_path: Path) -> None:
    export(judged, data, tmp_path / "out")
    change_pairs(lambda row: row.update(p_a=0.9, tie=False))(tmp_path / "out")
    before = dump_rows(judged)
    with pytest.raises(UserError, match="import into an empty data folder"):
        import_dataset(judged, data, tmp_path / "out")
    assert dump_rows(judged) == before


def test_refused_exports_leave_nothing_behind(judged: Database, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No label to export"):
        export(judged, data, tmp_path / "out", min_agreement=1.0, people=["robot"])
    with pytest.raises(UserError, match="no method called"):
        export(judged, data, tmp_path / "out", methods=["nobody's"])
    with pytest.raises(UserError, match="no person called"):
        export(judged, data, tmp_path / "out", people=["nobody"])
    with judged.read() as session:
        first = session.scalars(select(Image)).first()
        assert first is not None
    shutil.rmtree(data / "images")
    with pytest.raises(UserError, match="cannot be read"):
        export(judged, data, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


@pytest.mark.parametrize("form", ["jsonl", "imagefolder", "trl"])
def test_pairs_of_damaged_images_are_left_out_where_that_is_asked_for(
    judged: Database, data: Path, tmp_path: Path, form: str
) -> None:
    whole = export(judged, data, tmp_path / "whole", format=form)
    with judged.read() as session:
        pair = session.scalars(select(Pair).join(Label).where(Label.superseded_at.is_(None)).order_by(Pair.id)).first()
        assert pair is not None
        bad, lq = pair.a.image, pair.source.lq
        shown = {bad.id} | ({lq.id} if lq else set())
        paths = [image_path(data, image.sha256, image.suffix) for image in (bad, lq) if image is not None]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-9])
    assert shown
    with pytest.raises(UserError) as refused:
        export(judged, data, tmp_path / "out", format=form)
    for path in paths:
        assert f"{path} is not the file that was imported; import its original again." in str(refused.value)
    assert "--skip-bad leaves those pairs out" in str(refused.value)
    assert not (tmp_path / "out").exists()
    counts = export(judged, data, tmp_path / "out", format=form, skip_bad=True)
    left_out = counts["dropped"]["damaged images"]
    assert left_out > 0
    assert counts["rows"] == whole["rows"] - left_out
    assert f"damaged images {left_out}" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for path in paths:
        assert not any(path.stem in file.name for file in (tmp_path / "out").rglob("*"))
    shutil.rmtree(data / "images")
    with pytest.raises(UserError, match="cannot be read"):
        export(judged, data, tmp_path / "none", format=form, skip_bad=True)


def test_an_export_never_overwrites(judged: Database, data: Path, tmp_path: Path) -> None:
    export(judged, data, tmp_path / "out")
    before = read_files(tmp_path / "out")
    with pytest.raises(UserError, match="is there already"):
        export(judged, data, tmp_path / "out", ties="drop")
    assert read_files(tmp_path / "out") == before


def test_undoing_a_judgment_withdraws_its_label(judged: Database, data: Path, tmp_path: Path) -> None:
    export(judged, data, tmp_path / "first")
    with judged.write() as session:
        save_settings(session, {})
        ada = session.scalars(select(Person).where(Person.name == "ada")).one()
        lone = session.scalars(
            select(Judgment)
            .where(Judgment.person_id == ada.id, Judgment.choice == Choice.b)
            .order_by(Judgment.id.desc())
        ).first()
        assert lone is not None
        undo_judgment(session, ada.id, lone.uuid, load_settings(session))
    export(judged, data, tmp_path / "second")
    first, second = (read_lines(tmp_path / name / "pairs.jsonl") for name in ("first", "second"))
    assert len(second) == len(first) - 1


def test_the_command_says_what_it_wrote_and_where(
    judged: Database, data: Path, tmp_path: Path, annotate_here: AnnotateHere
) -> None:
    code, told, error = annotate_here("export")
    assert (code, error) == (0, "")
    with judged.read() as session:
        run = session.scalars(select(Run)).one()
        assert (run.kind, run.state, run.config["format"]) == ("annotate export", RunState.finished, "jsonl")
    folder = data / "runs" / str(run.id)
    rows = read_lines(folder / "dataset" / "pairs.jsonl")
    by_split = [f"{split} {sum(row['split'] == split for row in rows)}" for split in ("test", "train", "val")]
    assert told == f"9 labelled pairs ({', '.join(by_split)}) as jsonl; left out: none\nin {folder / 'dataset'}\n"
    assert json.loads((folder / "result.json").read_text())["rows"] == 9
    assert read_lines(folder / "progress.jsonl")[-1]["done"] == len(list((folder / "dataset" / "images").iterdir()))

    out = tmp_path / "deep" / "out"
    options = ["--format", "diffusion-dpo", "--min-agreement", "0.6", "--exclude-people", "ben", "--ties", "soft"]
    options += ["--splits", "train", "val"]
    options += ["--methods", *METHODS, "--resolve", "dawid-skene", "--name", "faces"]
    code, told, _ = annotate_here("export", "--out", out, *options, "--licence", "cc0-1.0", "--origin", "human")
    assert code == 0
    assert "diffusion-dpo has no ties; 2 were left out" in told
    assert told.endswith(f"in {out}\n")
    assert 'license: "cc0-1.0"' in (out / "README.md").read_text(encoding="utf-8")

    for counts in ("4 sources added, 11 candidates added", "0 sources added, 0 candidates added"):
        done = annotate_here("import", folder / "dataset", data=tmp_path / "other")
        assert done.returncode == 0
        assert done.stdout.startswith(counts)

    for wrong, reason in (
        (["--out", str(out)], f"error: {out} is there already"),
        (["--min-agreement", "2"], "error: --min-agreement: Give 1 or less, got '2'"),
        (["--splits", "training"], "error: --splits: Choose among train, val, test, got 'training'"),
        (["--people", "zoe"], "error: There is no person called 'zoe'."),
    ):
        code, told, error = annotate_here("export", *wrong)
        assert (code, told, error.count("\n")) == (2, "", 1)
        assert error.startswith(reason)

"""Folders, manifests and gold files: what is planned, refused, stored once, and put together again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from PIL import Image as PilImage
from sqlalchemy import func, select

from annotate.ingest.image_files import open_pool
from annotate.ingest.layout import read_folder
from annotate.ingest.manifest import read_manifest
from annotate.ingest.store import ImportRefused, ImportReport, count_ignored, describe_counts, import_folder
from annotate.judging.gold import import_gold
from annotate.judging.pairs import make_pairs
from dataset.tables import parse_seed, read_columns, read_table
from db.errors import UserError
from db.images import image_path, probe_image
from db.models import Candidate, Image, Method, Pair, Source
from db.project import ProjectSettings, save_settings
from db.records import candidate_key, draw_split
from db.session import Database, open_database
from runs.tables import write_table
from tests.making import dump_rows, fetch, stored_names, write_photo


def write_manifest(folder: Path, text: str, name: str = "photos.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- the folder -----------------------------------------------------------------------------------


def test_folder_comes_in_whole(database: Database, data: Path, restored_folder: Path) -> None:
    report = import_folder(database, data, restored_folder)
    assert (report.sources_added, report.methods_added, report.candidates_added, report.images_added) == (4, 3, 11, 19)
    assert report.bytes_added == sum(path.stat().st_size for path in restored_folder.rglob("*.png"))
    with database.read() as session:
        source = session.scalars(select(Source).where(Source.key == "face2")).one()
        assert source.caption == "portrait number 2"
        assert source.group == "face2"
        assert source.lq is not None
        assert source.hq is not None
        assert source.lq.sha256 == probe_image(restored_folder / "lq" / "face2.png").sha256
        candidate = session.scalars(
            select(Candidate).join(Method).where(Method.name == "gfpgan", Candidate.source == source)
        ).one()
        stored = image_path(data, candidate.image.sha256, candidate.image.suffix)
        assert stored.read_bytes() == (restored_folder / "gfpgan" / "face2.png").read_bytes()


def test_importing_again_adds_nothing(database: Database, data: Path, restored_folder: Path) -> None:
    PilImage.new("RGBA", (20, 20), (9, 9, 9, 128)).save(restored_folder / "gfpgan" / "face0.png")  # is converted
    first = import_folder(database, data, restored_folder)
    assert first.converted == [("gfpgan/face0.png", "alpha laid over white")]
    before = dump_rows(database), stored_names(data)
    again = import_folder(database, data, restored_folder)
    assert (dump_rows(database), stored_names(data)) == before
    assert again == ImportReport(sources_existing=4, candidates_existing=11)


def test_a_new_method_joins_what_is_there(database: Database, data: Path, restored_folder: Path) -> None:
    import_folder(database, data, restored_folder)
    write_photo(restored_folder / "later" / "face1.png", 77)
    report = import_folder(database, data, restored_folder)
    assert (report.candidates_added, report.methods_added, report.images_added, report.sources_added) == (1, 1, 1, 0)


def test_suffixes_may_differ_and_be_in_capitals(database: Database, data: Path, tmp_path: Path) -> None:
    write_photo(tmp_path / "set" / "LQ" / "one.JPG", 1)
    write_photo(tmp_path / "set" / "m" / "one.webp", 2)
    write_photo(tmp_path / "set" / "n" / "one.Jpeg", 3)
    assert import_folder(database, data, tmp_path / "set").candidates_added == 2


def test_one_file_under_two_names_is_stored_once(database: Database, data: Path, restored_folder: Path) -> None:
    (restored_folder / "gfpgan" / "face1.png").write_bytes((restored_folder / "bicubic" / "face0.png").read_bytes())
    report = import_folder(database, data, restored_folder)
    assert (report.images_added, report.candidates_added) == (18, 11)
    assert len(stored_names(data)) == 18


def test_hidden_and_nested_entries_are_not_read(restored_folder: Path) -> None:
    write_photo(restored_folder / "lq" / ".face9.png", 1)
    write_photo(restored_folder / "__MACOSX" / "face0.png", 1)
    write_photo(restored_folder / ".cache" / "face0.png", 1)
    write_photo(restored_folder / "gfpgan" / "faces" / "face0.png", 1)
    (restored_folder / "README.md").write_text("hello")
    (restored_folder / "gfpgan" / "log.csv").write_text("1,2")
    plan = read_folder(restored_folder)
    assert sorted(plan.sources) == ["face0", "face1", "face2", "face3"]
    assert {method for source in plan.sources.values() for method, _ in source.candidates} == {
        "bicubic",
        "gfpgan",
        "codeformer",
    }
    assert sorted(plan.ignored) == [
        (".cache/face0.png", "hidden, or left by a system"),
        ("README.md", "lies beside the folders"),
        ("__MACOSX/face0.png", "hidden, or left by a system"),
        ("gfpgan/faces/face0.png", "a folder inside a folder is not read"),
        ("gfpgan/log.csv", "not an image"),
        ("lq/.face9.png", "hidden, or left by a system"),
    ]
    assert count_ignored(plan.ignored) == [
        ("hidden", "hidden, or left by a system", 3),
        (".md", "lies beside the folders", 1),
        (".png", "a folder inside a folder is not read", 1),
        (".csv", "not an image", 1),
    ]
    assert plan.refused == []


def test_caption_beside_hq_where_lq_has_none(restored_folder: Path) -> None:
    (restored_folder / "lq" / "face0.txt").unlink()
    (restored_folder / "hq" / "face0.txt").write_bytes("\ufeffa café \n".encode())
    (restored_folder / "hq" / "face1.txt").write_text("not this one")
    plan = read_folder(restored_folder)
    assert (plan.sources["face0"].caption, plan.sources["face1"].caption) == ("a café", "portrait number 1")


def test_folder_without_lq_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "gfpgan").mkdir()
    with pytest.raises(UserError, match=r"no folder called lq \(found: gfpgan\)"):
        read_folder(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        read_folder(tmp_path / "absent")
    (tmp_path / "lq").mkdir()
    with pytest.raises(UserError, match="holds no PNG"):
        read_folder(tmp_path)


# --- unfit files ----------------------------------------------------------------------------------


def test_refusal_leaves_nothing(database: Database, data: Path, restored_folder: Path) -> None:
    before = dump_rows(database)
    (restored_folder / "gfpgan" / "face1.png").write_text("no image")
    with pytest.raises(
        ImportRefused, match=r"^gfpgan/face1.png: not a PNG, JPEG or WebP image. Nothing was imported"
    ) as caught:
        import_folder(database, data, restored_folder)
    assert caught.value.refused == [("gfpgan/face1.png", "not a PNG, JPEG or WebP image")]
    assert dump_rows(database) == before
    assert stored_names(data) == []


def test_refusal_names_ten_and_counts_all(database: Database, data: Path, restored_folder: Path) -> None:
    for number in range(12):
        (restored_folder / "gfpgan" / f"bad{number:02}.png").write_text("no image")
    with pytest.raises(ImportRefused) as caught:
        import_folder(database, data, restored_folder)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("12 files are unfit and nothing was imported; --skip-bad")
    assert lines[1] == "  gfpgan/bad00.png: no lq image of that name"
    assert len(lines) == 12
    assert lines[-1] == "  and 2 more"


def test_skipping_drops_the_candidate_the_hq_or_the_source(
    database: Database, data: Path, restored_folder: Path
) -> None:
    for name in ("lq/face0.png", "hq/face1.png", "gfpgan/face2.png"):
        (restored_folder / name).write_bytes(b"")
    report = import_folder(database, data, restored_folder, on_bad="skip")
    assert sorted(report.refused) == [
        ("gfpgan/face2.png", "empty file"),
        ("hq/face1.png", "empty file"),
        ("lq/face0.png", "empty file (its 4 other images are left out with it)"),
    ]
    assert (report.sources_added, report.candidates_added) == (3, 7)  # 11, less 3 of face0 and 1 of face2
    assert len(stored_names(data)) == report.images_added == 3 + 2 + 7
    with database.read() as session:
        assert session.scalars(select(Source.hq_image_id).where(Source.key == "face1")).one() is None


def test_two_files_of_one_name_are_both_refused(restored_folder: Path) -> None:
    write_photo(restored_folder / "lq" / "face0.jpg", 1)
    write_photo(restored_folder / "gfpgan" / "face1.webp", 1)
    plan = read_folder(restored_folder)
    assert [name for name, _ in plan.refused] == [
        "lq/face0.jpg",
        "lq/face0.png",
        "gfpgan/face1.png",
        "gfpgan/face1.webp",
    ]
    assert plan.refused[0][1] == "two files of one name in this folder: face0.jpg, face0.png"
    assert "face0" not in plan.sources
    assert ("gfpgan", 0) not in plan.sources["face1"].candidates


def test_other_formats_and_captions_that_are_no_text_are_refused(restored_folder: Path) -> None:
    (restored_folder / "gfpgan" / "face0.tiff").write_bytes(b"II*")
    (restored_folder / "lq" / "face1.txt").write_bytes("ein Gesicht, fröhlich".encode("latin-1"))
    (restored_folder / "lq" / "face2.txt").write_text("x" * 10_001)
    plan = read_folder(restored_folder)
    assert sorted(plan.refused) == [
        ("gfpgan/face0.tiff", "not a PNG, JPEG or WebP image"),
        ("lq/face1.txt", "not UTF-8 text (byte 0xf6, 'ö' in Windows-1252); save it as UTF-8"),
        ("lq/face2.txt", "a caption above 10,000 characters"),
    ]


def test_names_that_cannot_be_shown_are_refused(restored_folder: Path) -> None:
    os.rename(restored_folder / "lq" / "face0.png", os.fsencode(restored_folder / "lq") + b"/fa\xffce.png")
    os.rename(restored_folder / "lq" / "face1.png", restored_folder / "lq" / "fa\nce.png")
    plan = read_folder(restored_folder)
    unprintable = [name for name, why in plan.refused if "cannot be shown" in why]
    assert len(unprintable) == 2
    assert "\n" not in str(ImportRefused([(unprintable[0], "x")]))


def test_a_source_stored_with_another_image_is_refused_whole(
    database: Database, data: Path, restored_folder: Path
) -> None:
    import_folder(database, data, restored_folder)
    before = dump_rows(database), stored_names(data)
    write_photo(restored_folder / "gfpgan" / "face1.png", 4321)
    write_photo(restored_folder / "another" / "face0.png", 4322)
    with pytest.raises(UserError, match="'face1' is already stored with another image by method 'gfpgan', seed 0"):
        import_folder(database, data, restored_folder)
    assert (dump_rows(database), stored_names(data)) == before, "also the new files are gone again"
    write_photo(restored_folder / "lq" / "face2.png", 4323)
    with pytest.raises(UserError, match="'face2' is already stored with another lq image"):
        import_folder(database, data, restored_folder)
    assert (dump_rows(database), stored_names(data)) == before


def test_file_that_changes_between_the_two_readings_is_refused(
    database: Database, data: Path, restored_folder: Path
) -> None:
    total = 2 * 19

    def change(done: int, of: int) -> None:
        assert of == total
        if done == total // 2:
            write_photo(restored_folder / "gfpgan" / "face1.png", 4321)

    before = dump_rows(database)
    with pytest.raises(UserError, match=r"face1.png: changed while it was being imported"):
        import_folder(database, data, restored_folder, progress=change)
    assert dump_rows(database) == before
    assert stored_names(data) == []


def test_image_left_by_a_killed_import_is_used(database: Database, data: Path, restored_folder: Path) -> None:
    probe = probe_image(restored_folder / "lq" / "face0.png")
    orphan = image_path(data, probe.sha256, probe.suffix)
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes((restored_folder / "lq" / "face0.png").read_bytes())
    assert import_folder(database, data, restored_folder).images_added == 19


def test_workers_give_what_one_process_gives(tmp_path: Path, restored_folder: Path) -> None:
    dumps, steps = [], []
    for workers in (1, 2):
        data = tmp_path / f"data{workers}"
        opened = open_database(data)
        import_folder(opened, data, restored_folder, workers=workers, progress=lambda *step: steps.append(step))
        assert steps.pop() == (38, 38)
        dumps.append([fetch(opened, select(Image.sha256).order_by(Image.id)), len(stored_names(data))])
        opened.close()
    assert dumps[0] == dumps[1]
    with pytest.raises(UserError, match="0 workers"):
        import_folder(opened, data, restored_folder, workers=0)


# --- manifests ------------------------------------------------------------------------------------

HEADER = "source,lq,hq,method,restored,seed,caption,person\n"


def test_csv_and_jsonl_manifests_say_the_same(restored_folder: Path) -> None:
    rows = [
        ["ann-1", "lq/face0.png", "hq/face0.png", "gfpgan", "gfpgan/face0.png", "7", 'smiles, "broadly"', "ann"],
        ["ann-1", "", "", "bicubic", "bicubic/face0.png", "", "", ""],
        ["ann-2", "lq/face1.png", "", "", "", "", "", "ann"],
    ]
    quoted = "\n".join(",".join('"' + value.replace('"', '""') + '"' for value in row) for row in rows)
    csv_path = write_manifest(restored_folder, "\ufeff" + HEADER + quoted + "\n\n")
    names = HEADER.strip().split(",")
    objects = [{name: value for name, value in zip(names, row, strict=True) if value} for row in rows]
    objects[0]["seed"] = 7  # type: ignore[assignment]
    jsonl_path = write_manifest(restored_folder, "\n".join(json.dumps(row) for row in objects), "photos.jsonl")
    from_csv, from_jsonl = read_manifest(csv_path), read_manifest(jsonl_path)
    assert from_csv == from_jsonl
    source = from_csv.sources["ann-1"]
    assert (source.lq, source.group, source.caption) == ("lq/face0.png", "ann", 'smiles, "broadly"')
    assert source.candidates == {("gfpgan", 7): "gfpgan/face0.png", ("bicubic", 0): "bicubic/face0.png"}


def test_person_keeps_photos_in_one_split(database: Database, data: Path, restored_folder: Path) -> None:
    with database.write() as session:
        save_settings(session, {"test_share": 0.3, "val_share": 0.3, "seed": 5})
    rows = "".join(f"face{number},lq/face{number}.png,person{number % 2}\n" for number in range(4))
    import_folder(database, data, write_manifest(restored_folder, "source,lq,person\n" + rows))
    with database.read() as session:
        for source in session.scalars(select(Source)):
            assert source.group == f"person{int(source.key[-1]) % 2}"
            assert source.split is draw_split(source.group, 5, 0.3, 0.3)


def test_manifest_may_add_to_a_stored_source(database: Database, data: Path, restored_folder: Path) -> None:
    import_folder(database, data, restored_folder)
    write_photo(restored_folder / "later" / "a.png", 78)
    path = write_manifest(restored_folder, "source,method,restored\nface3,later,later/a.png\n")
    report = import_folder(database, data, path)
    assert (report.sources_existing, report.candidates_added) == (1, 1)
    path = write_manifest(restored_folder, "source,method,restored\nunknown,later,later/a.png\n")
    with pytest.raises(ImportRefused, match=r"later/a.png: no lq image of that name"):
        import_folder(database, data, path)


def test_manifest_completes_a_stored_source(database: Database, data: Path, restored_folder: Path) -> None:
    import_folder(database, data, write_manifest(restored_folder, "source,lq\nx,lq/face0.png\n"))
    import_folder(database, data, write_manifest(restored_folder, "source,hq,caption\nx,hq/face0.png,a face\n"))
    with database.read() as session:
        source = session.scalars(select(Source)).one()
        assert source.caption == "a face"
        assert source.hq is not None
    with pytest.raises(UserError, match="stored with the caption 'a face', not 'another'"):
        import_folder(database, data, write_manifest(restored_folder, "source,lq,caption\nx,lq/face0.png,another\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source,lq,quality\nx,lq/a.png,3\n", "photos.csv, line 2: unknown column 'quality'. Known: source, lq"),
        ("lq\nlq/a.png\n", "line 2: no column 'source'"),
        ("source,lq\n,lq/a.png\n", "line 2: source is empty"),
        ("source,lq\nx,lq/a.png,more\n", r"line 2: 3 values for 2 columns \(source, lq\)"),
        ("source,source\nx,y\n", "line 1: a column is named twice"),
        ("source,lq\nx,../secret.png\n", "line 2: '../secret.png' leaves the manifest's folder"),
        ("source,lq\nx,/etc/passwd\n", "line 2: '/etc/passwd' leaves the manifest's folder"),
        ("source,lq\nx,lq/../../secret.png\n", "leaves the manifest's folder"),
        (
            "source,lq\nx,lq/a.png\nx,lq/b.png\n",
            "line 3: source 'x' has lq 'lq/b.png' here and 'lq/a.png' in an earlier row",
        ),
        ("source,lq,person\nx,lq/a.png,ann\nx,,bob\n", "line 3: source 'x' has person 'bob' here and 'ann'"),
        ("source,method\nx,gfpgan\n", "line 2: method and restored come together"),
        ("source,method,restored\nx,m,a.png\nx,m,b.png\n", "line 3: source 'x' by method 'm', seed 0, is 'b.png' here"),
        ("source,method,restored,seed\nx,m,a.png,-1\n", "line 2: seed '-1' is not a whole number"),
        ("source,lq\nx,\0\n", "line 2: "),
        ("source,lq\n", "has no rows"),
        ("", "has no rows"),
        ('source,lq\n"x,lq/a.png\n', "not CSV"),
    ],
)
def test_bad_manifest_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_manifest(write_manifest(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", "line 1: no column 'source'"),
        ('{"source": "x"}\n[1]\n', "line 2: expected an object"),
        ('{"source": "x"}\n{"source": \n', "line 2: not JSON"),
        ('{"source": 1.5}\n', "line 1: source is 1.5; expected text"),
        ('{"source": true}\n', "line 1: source is True; expected text"),
    ],
)
def test_bad_jsonl_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_manifest(write_manifest(tmp_path, text, "photos.jsonl"))


def test_names_of_a_table_that_a_report_made_safe_are_read_as_they_were(restored_folder: Path) -> None:
    names = ["-tiny", "=best", "gfpgan"]
    rows = {"source": ["x"] * 3, "method": names, "restored": ["gfpgan/face0.png"] * 3, "seed": [0, 1, 2]}
    write_table(restored_folder / "made.csv", pd.DataFrame(rows))
    plan = read_manifest(restored_folder / "made.csv")
    assert [method for method, _ in plan.sources["x"].candidates] == names


def test_a_row_said_twice_and_an_absolute_path_inside_are_fine(restored_folder: Path) -> None:
    inside = restored_folder.absolute() / "lq" / "face0.png"
    plan = read_manifest(write_manifest(restored_folder, f"source,lq\nx,{inside}\nx,lq/face0.png\n"))
    assert plan.sources["x"].lq == "lq/face0.png"


def test_missing_and_unreadable_files_of_a_manifest(database: Database, data: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    path = write_manifest(tmp_path, "source,lq\nx,absent.png\ny,pipe.png\n")
    with pytest.raises(ImportRefused) as caught:
        import_folder(database, data, path)
    assert caught.value.refused == [
        ("absent.png", "cannot be read (No such file or directory)"),
        ("pipe.png", "not a file"),
    ]
    latin = tmp_path / "latin.csv"
    latin.write_bytes("source\ncafé\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_manifest(latin)


def test_columns_of_a_table(tmp_path: Path) -> None:
    assert read_columns(write_manifest(tmp_path, "source,answer\nx,a\n")) == ["source", "answer"]
    assert read_columns(write_manifest(tmp_path, "")) == []
    assert list(read_table(write_manifest(tmp_path, "source,lq\n x , y \n"), ("source", "lq"), ("source",))) == [
        (2, {"source": "x", "lq": "y"})
    ]
    assert (parse_seed(""), parse_seed("12")) == (0, 12)


# --- gold -----------------------------------------------------------------------------------------

GOLD = "source,method_a,method_b,answer\n"


def gold_answer_for(database: Database, source: str, method: str) -> tuple[str | None, bool]:
    """(the stored answer, whether that method is the pair's a) of the only gold pair."""
    with database.read() as session:
        pair = session.scalars(select(Pair).where(Pair.gold_answer.is_not(None))).one()
        assert pair.source.key == source
        # a is the one with the smaller key, whatever the file's order was
        assert candidate_key(source, pair.a.method.name, 0) < candidate_key(source, pair.b.method.name, 0)
        return pair.gold_answer, pair.a.method.name == method


@pytest.mark.parametrize("order", [("gfpgan", "bicubic", "a"), ("bicubic", "gfpgan", "b")])
def test_gold_answer_follows_the_pair_whichever_way_it_is_written(
    database: Database, data: Path, restored_folder: Path, order: tuple[str, str, str]
) -> None:
    import_folder(database, data, restored_folder)
    path = write_manifest(restored_folder, GOLD + f"face0,{','.join(order)}\n", "gold.csv")
    with database.write() as session:
        report = import_gold(session, path)
        assert (report.added, report.marked, report.existing) == (1, 0, 0)
    answer, gfpgan_is_a = gold_answer_for(database, "face0", "gfpgan")
    assert answer == ("a" if gfpgan_is_a else "b"), "gfpgan is better either way"
    with database.write() as session:
        assert import_gold(session, path).existing == 1
        make_pairs(session, ProjectSettings())
        assert session.scalar(select(func.count()).select_from(Pair)) == 3 * 3 + 1, "the gold pair is one of them"


def test_gold_marks_a_pair_that_is_there(database: Database, data: Path, restored_folder: Path) -> None:
    import_folder(database, data, restored_folder)
    with database.write() as session:
        make_pairs(session, ProjectSettings())
    path = write_manifest(
        restored_folder,
        json.dumps({"source": "face0", "method_a": "gfpgan", "method_b": "bicubic", "answer": "tie"}),
        "gold.jsonl",
    )
    with database.write() as session:
        report = import_gold(session, path)
    assert (report.added, report.marked) == (0, 1)
    assert gold_answer_for(database, "face0", "gfpgan")[0] == "tie"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("face0,gfpgan,bicubic,left", "line 2: answer 'left' is not one of a, b, tie"),
        ("nobody,gfpgan,bicubic,a", "line 2: there is no source called 'nobody'"),
        ("face3,gfpgan,codeformer,a", "line 2: source 'face3' has no image by method 'codeformer', seed 0"),
        ("face0,gfpgan,gfpgan,a", "line 2: both sides are the same"),
        (
            "face0,gfpgan,bicubic,a\nface0,gfpgan,bicubic,b",
            "line 3: this pair is already stored with another known answer",
        ),
        ("face0,gfpgan,bicubic,", "line 2: answer is empty"),
    ],
)
def test_bad_gold_file_names_the_line(
    database: Database, data: Path, restored_folder: Path, row: str, message: str
) -> None:
    import_folder(database, data, restored_folder)
    before = dump_rows(database)
    with pytest.raises(UserError, match=message), database.write() as session:
        import_gold(session, write_manifest(restored_folder, GOLD + row + "\n", "gold.csv"))
    assert dump_rows(database) == before


# --- the report -----------------------------------------------------------------------------------


def test_report_as_json_is_bounded() -> None:
    report = ImportReport(sources_added=2, bytes_added=3 * 2**20, refused=[(f"{n}.png", "empty") for n in range(1_500)])
    values = json.loads(json.dumps(report.to_result()))
    assert (len(values["refused"]), values["refused_count"], values["converted_count"]) == (1000, 1500, 0)
    assert describe_counts(values) == (
        "2 sources added, 0 methods added, 0 candidates added, 0 images added, 3.0 MiB added, 1,500 refused"
    )


def test_big_import_crosses_batches(database: Database, data: Path, tmp_path: Path) -> None:
    for number in range(1_101):
        write_photo(tmp_path / "many" / "lq" / f"{number}.png", number % 600, (4, 4))
    report = import_folder(database, data, tmp_path / "many", workers=1)
    assert (report.sources_added, report.images_added) == (1_101, 600)
    assert import_folder(database, data, tmp_path / "many", workers=1).sources_existing == 1_101


def test_no_more_workers_are_started_than_the_memory_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "annotate.ingest.image_files.psutil.virtual_memory", lambda: SimpleNamespace(available=64 * 2**30)
    )
    monkeypatch.setattr("annotate.ingest.image_files.CGROUP", tmp_path)
    with open_pool(2, 10) as pool:
        assert pool is not None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{2**30}\n")
    with open_pool(2, 10) as pool:
        assert pool is not None
    (tmp_path / "memory.max").write_text(f"{3 * 2**30}\n")
    with open_pool(2, 10) as pool:
        assert pool is None, "a container of 3 GiB, one of them taken, holds one"

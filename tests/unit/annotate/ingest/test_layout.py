"""Names in folders: which files are images, which output belongs to which photo, and what is left over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy import select

from annotate.ingest.layout import Plan, read_folder
from annotate.ingest.store import ImportRefused, differ_in_aspect, import_folder
from db.errors import UserError
from db.models import Candidate, Method, Source
from db.records import add_method, add_source
from db.session import Database
from tests.making import fetch, write_photo


def make(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        write_photo(folder / name.replace(name.rpartition(".")[2], "png"), seed).rename(folder / name)
    return folder


def candidates(plan: Plan) -> dict[str, list[str]]:
    return {key: sorted(source.candidates.values()) for key, source in plan.sources.items()}


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "pjpeg", "pjp", "Jpeg", "jif"])
def test_jpeg_by_its_other_names(database: Database, data: Path, tmp_path: Path, suffix) -> None:
    write_photo(tmp_path / "set" / "lq" / "0.png", 1)
    write_photo(tmp_path / "set" / "m" / "0.jpg", 2).rename(tmp_path / "set" / "m" / f"0.{suffix}")
    assert import_folder(database, data, tmp_path / "set").candidates_added == 1


@pytest.mark.parametrize("suffix", ["tif", "BMP", "heic", "avif", "gif", "jxl", "ppm", "dng", "psd"])
def test_other_images_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    write_photo(tmp_path / "lq" / "0.png", 1)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / f"0.{suffix}").write_bytes(b"1")
    assert read_folder(tmp_path).refused == [(f"m/0.{suffix}", "not a PNG, JPEG or WebP image")]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (["m/0.npy", "m/1.npy"], "holds no PNG, JPEG or WebP image, but 2 .npy"),
        (["m/restored_faces/0.png"], "holds no image itself, but m/restored_faces/ does; move the images up into m/"),
        (["m/0"], "holds no PNG, JPEG or WebP image, but 1 no suffix"),
    ],
)
def test_a_method_folder_without_images_is_refused(
    database: Database, data: Path, tmp_path: Path, files: list[str], why: str
) -> None:
    write_photo(tmp_path / "set" / "lq" / "0.png", 1)
    for name in files:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"1")
    with pytest.raises(ImportRefused, match="Nothing was imported") as caught:
        import_folder(database, data, tmp_path / "set")
    assert caught.value.refused == [("m/", why)]
    report = import_folder(database, data, tmp_path / "set", on_bad="skip")
    assert (report.sources_added, report.refused) == (1, [("m/", why)])


def test_hidden_folders_are_no_methods(tmp_path: Path) -> None:
    names = [".ipynb_checkpoints/0-checkpoint.png", "@eaDir/0.png", "$RECYCLE.BIN/0.png", "m/._0.png", "m/Thumbs.db"]
    make(tmp_path, "lq/0.png", "m/0.png", *names[:3])
    for name in names[3:]:
        (tmp_path / name).write_bytes(b"1")
    plan = read_folder(tmp_path)
    assert candidates(plan) == {"0": ["m/0.png"]}
    assert plan.refused == []
    assert sorted(name for name, _ in plan.ignored) == sorted(names)


def test_captions_without_a_photo_and_by_the_files_name(tmp_path: Path) -> None:
    make(tmp_path, "lq/0.png", "lq/1.jpg", "hq/1.png")
    for name in ("lq/0.png.txt", "lq/2.txt", "hq/1.txt", "lq/1.TXT", "lq/README.txt"):
        (tmp_path / name).write_text(name)
    plan = read_folder(tmp_path)
    assert {key: source.caption for key, source in plan.sources.items()} == {"0": "lq/0.png.txt", "1": "lq/1.TXT"}
    assert sorted(plan.ignored) == [
        ("hq/1.txt", "the caption is lq/1.TXT"),
        ("lq/2.txt", "a caption without a photo of that name"),
        ("lq/README.txt", "a caption without a photo of that name"),
    ]


# --- accents --------------------------------------------------------------------------------------

NFC, NFD = "\xe9", "e\u0301"


def test_accents_written_either_way_are_one_name(database: Database, data: Path, tmp_path: Path) -> None:
    make(tmp_path / "set", f"lq/{NFC}.png", f"{NFD}/{NFD}.png", f"hq/{NFD}.png")
    (tmp_path / "set" / "lq" / f"{NFD}.txt").write_text("a caption")
    import_folder(database, data, tmp_path / "set")
    with database.read() as session:
        source = session.scalars(select(Source)).one()
        assert (source.key, source.caption, source.hq_image_id is not None) == (NFC, "a caption", True)
        assert session.scalars(select(Method.name)).one() == NFC


def test_names_that_were_stored_unnormalised_are_found(database: Database, data: Path, tmp_path: Path) -> None:
    with database.write() as session:
        add_source(session, NFD, "train")
        add_method(session, f"m{NFD}")
    make(tmp_path / "set", f"lq/{NFC}.png", f"m{NFC}/{NFC}.png")
    report = import_folder(database, data, tmp_path / "set")
    assert (report.sources_added, report.sources_existing, report.methods_added) == (0, 1, 0)
    assert import_folder(database, data, tmp_path / "set").candidates_existing == 1


def test_two_files_or_folders_that_are_one_name(tmp_path: Path) -> None:
    make(tmp_path / "a", f"lq/{NFC}.png", f"lq/{NFD}.png", "lq/0.png")
    assert [why for _, why in read_folder(tmp_path / "a").refused] == [
        f"two files of one name in this folder: {NFD}.png, {NFC}.png"
    ] * 2
    make(tmp_path / "b", "lq/0.png", f"{NFC}/0.png", f"{NFD}/0.png")
    with pytest.raises(UserError, match="two folders whose names are the same"):
        read_folder(tmp_path / "b")


# --- endings and letter case ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "endings"),
    [
        (["lq/01.png", "lq/02.png", "m/01_out.png", "m/02_out.png"], ["_out"]),
        (["lq/01.png", "m/01_restored_faces.png", "n/01-v2.png"], ["_restored_faces", "-v2"]),
        (["lq/01.png", "lq/01 (1).png", "m/01 (1)_out.png", "m/01_out.png"], ["_out"]),
        (["lq/01.png", "lq/02.png", "m/01x4.png", "m/02x4.png"], ["x4"]),
        (["lq/01_lq.png", "lq/02_lq.png", "m/01.png", "m/02.png"], ["_lq"]),
        (["lq/01.png", "m/01.restored.png"], [".restored"]),
        (["lq/a.png", "hq/a_gt.png", "m/a.png"], ["_gt"]),
    ],
)
def test_the_ending_is_named_and_taking_it_off_works(
    database: Database, data: Path, tmp_path: Path, files: list[str], endings: list[str]
) -> None:
    folder = make(tmp_path / "set", *files)
    with pytest.raises(ImportRefused) as caught:
        import_folder(database, data, folder)
    for ending in endings:
        assert f"--strip-suffix={ending}" in str(caught.value)
    report = import_folder(database, data, folder, strip_suffixes=endings)
    assert report.candidates_added == sum(not name.startswith(("lq", "hq")) for name in files)
    assert report.sources_added == sum(name.startswith("lq") for name in files)


@pytest.mark.parametrize("files", [["lq/1.png", "m/10.png"], ["lq/ann.png", "m/anna.png"], ["lq/1.png", "m/2_out.png"]])
def test_another_photo_is_no_ending(database: Database, data: Path, tmp_path: Path, files: list[str]) -> None:
    with pytest.raises(ImportRefused) as caught:
        import_folder(database, data, make(tmp_path / "set", *files))
    assert "--strip-suffix" not in str(caught.value)


def test_an_ending_that_a_photo_has_itself_stays(tmp_path: Path) -> None:
    make(tmp_path, "lq/a.png", "lq/a_out.png", "m/a_out.png", "n/a_out_out.png")
    plan = read_folder(tmp_path, strip_suffixes=["_out"])
    assert candidates(plan) == {"a": [], "a_out": ["m/a_out.png", "n/a_out_out.png"]}


def test_endings_that_lead_to_one_name_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "lq/a.png", "m/a_00.png", "m/a_01.png")
    plan = read_folder(tmp_path, strip_suffixes=["_00", "_01"])
    assert [name for name, why in plan.refused if "two files of one name" in why] == ["m/a_00.png", "m/a_01.png"]


def test_letter_case(database: Database, data: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "set", "lq/Face.png", "m/face.png", "n/FACE_out.png")
    with pytest.raises(ImportRefused, match=r"m/face.png: differs only in case from lq/Face.png"):
        import_folder(database, data, folder)
    assert import_folder(database, data, folder, ignore_case=True, strip_suffixes=["_out"]).candidates_added == 2
    two = make(tmp_path / "two", "lq/A.png", "lq/a.png", "m/a.png", "n/A.png")
    assert candidates(read_folder(two, ignore_case=True)) == {"A": ["n/A.png"], "a": ["m/a.png"]}


def test_zeros_that_a_spreadsheet_dropped(database: Database, data: Path, tmp_path: Path):
    folder = make(tmp_path / "set", "lq/0012.png", "m/0012.png")
    (folder / "people.csv").write_text("source,person\n12,ann\n")
    with pytest.raises(ImportRefused, match=r"but there is lq/0012.png: a spreadsheet may have dropped the zeros"):
        import_folder(database, data, folder)


# --- aspect ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        ((512, 512), (512, 512), False),
        ((512, 512), (512, 640), True),
        ((128, 128), (512, 512), False),
        ((125, 83), (500, 332), False),
        ((125, 83), (250, 165), False),  # half a pixel of the smaller, rounded
        ((512, 512), (512, 511), True),
        ((640, 480), (480, 640), True),
    ],
)
def test_differ_in_aspect(first: tuple[int, int], second: tuple[int, int], differ: bool) -> None:
    assert differ_in_aspect(first, second) is differ_in_aspect(second, first) is differ


def test_photos_whose_images_differ_in_aspect_are_named(database: Database, data: Path, tmp_path: Path) -> None:
    for key in ("one", "two"):
        write_photo(tmp_path / "set" / "lq" / f"{key}.png", 1, (16, 16))
        write_photo(tmp_path / "set" / "square" / f"{key}.png", 2, (64, 64))
    write_photo(tmp_path / "set" / "padded" / "two.png", 3, (64, 80))
    named = [("two", "lq 16 x 16, padded 64 x 80, square 64 x 64")]
    assert import_folder(database, data, tmp_path / "set").differ_in_aspect == named
    assert import_folder(database, data, tmp_path / "set").differ_in_aspect == []
    write_photo(tmp_path / "set" / "tall" / "one.png", 4, (64, 65))
    (found,) = import_folder(database, data, tmp_path / "set").differ_in_aspect
    assert found[0] == "one"
    assert len(fetch(database, select(Candidate))) == 4


def test_endings_of_photos_and_outputs_are_told_together(database: Database, data: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "set", "lq/a_lq.png", "lq/b_lq.png", "m/a_sr.png", "m/b_sr.png", "hq/a_hq.png")
    with pytest.raises(ImportRefused, match="--strip-suffix=_lq --strip-suffix=_hq --strip-suffix=_sr"):
        import_folder(database, data, folder)
    assert import_folder(database, data, folder, strip_suffixes=["_lq", "_hq", "_sr"]).candidates_added == 2


def test_a_beginning_of_all_outputs_is_told(database: Database, data: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "set", "lq/a.png", "lq/b.png", "m/out_a.png", "m/out_b.png")
    with pytest.raises(ImportRefused, match="Names in m begin with 'out_': take that off"):
        import_folder(database, data, folder)


def test_a_file_that_a_manifest_calls_in_another_case_is_told(database: Database, data: Path, tmp_path: Path) -> None:
    make(tmp_path, "In/a.PNG")
    (tmp_path / "t.csv").write_text("source,lq\na,in/A.png\n")
    with pytest.raises(ImportRefused, match=r"in/A.png: is not there, but In/a.PNG is: the case of letters counts"):
        import_folder(database, data, tmp_path / "t.csv")


def test_a_spreadsheet_beside_lq_is_not_lost(tmp_path: Path) -> None:
    make(tmp_path, "lq/a.png", "people.xlsx")
    [(name, why)] = read_folder(tmp_path).refused
    assert name == "people.xlsx"
    assert "save it as CSV" in why


def test_names_of_other_scripts_and_spaces_around_methods(tmp_path: Path) -> None:
    plan = read_folder(make(tmp_path, "lq/علی\u200cرضا.png", "m /علی\u200cرضا.png"))
    assert [list(source.candidates) for source in plan.sources.values()] == [[("m", 0)]]
    assert not plan.refused


def test_captions_that_are_no_files_of_their_own_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for name in "abc":
        write_photo(folder / "lq" / f"{name}.png", ord(name))
    (tmp_path / "secret").write_text("hunter2")
    (folder / "lq" / "a.txt").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "lq" / "b.txt")
    (folder / "lq" / "c.txt").symlink_to("/dev/zero")
    plan = read_folder(folder)
    assert dict(plan.refused) == {
        "lq/a.txt": "a link; put the caption there itself",
        "lq/b.txt": "cannot be read (not a file)",
        "lq/c.txt": "a link; put the caption there itself",
    }
    assert [source.caption for source in plan.sources.values()] == [None] * 3

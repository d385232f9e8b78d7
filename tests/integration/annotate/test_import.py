"""`annotate import` as a process: real faces, files of every bad kind, and being killed in the middle."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import time
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image as PilImage
from sqlalchemy import func, select, update

from annotate.ingest.command import mend
from annotate.ingest.store import ImportReport, import_folder
from annotate.judging.gold import import_gold
from annotate.judging.pairs import make_pairs
from db.errors import UserError
from db.images import image_path, open_rgb
from db.models import Base, Candidate, Image, Method, Pair, Run, RunState, Source, Split
from db.project import load_settings
from db.session import Database, open_database
from runs.store import reap_lost
from tests.making import (
    ROOT,
    AnnotateHere,
    annotate_command,
    count_rows,
    dump_rows,
    fetch,
    run_annotate,
    stored_names,
    write_photo,
)
from tests.watching import LIMIT_SECONDS
from ui.pages.data import counts_html


def dump(data: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(open_database(data)) as database:
        return dump_rows(database)


def count(data: Path, *tables: type[Base]) -> list[int]:
    with closing(open_database(data)) as database:
        return count_rows(database, *tables)


# --- real faces -----------------------------------------------------------------------------------


def test_shared_faces_make_486_pairs_and_come_in_once(
    annotate_here: AnnotateHere, data: Path, shared_faces: Path
) -> None:
    first = annotate_here("import", shared_faces / "restored")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("85 sources added, 14 methods added, 281 candidates added, 370 images added")
    paired = annotate_here("pair")
    assert paired.stdout == (
        "486 pairs added, 0 were there; 52 sources have pairs, 33 have no two candidates to compare\n"
    )
    assert count(data, Source, Method, Candidate, Image, Pair) == [85, 14, 281, 370, 486]
    before = dump(data), stored_names(data)
    again = annotate_here("import", shared_faces / "restored")
    assert again.stdout.startswith("0 sources added, 85 sources existing, 0 methods added, 0 candidates added")
    assert annotate_here("pair").stdout.startswith("0 pairs added, 486 were there")
    assert (dump(data), stored_names(data)) == before
    database = open_database(data)
    with database.read() as session:
        assert session.scalar(select(func.count()).where(Source.hq_image_id.is_not(None))) == 4
        assert session.scalar(select(func.count()).where(Image.conversion.is_not(None))) == 0
    database.close()


def test_restarting_with_workers_stores_the_same(
    annotate_here: AnnotateHere, data: Path, tmp_path: Path, shared_faces: Path
) -> None:
    faces = shared_faces / "restored"
    assert run_annotate(data, "import", faces, "--workers", "2").returncode == 0
    assert annotate_here("import", faces, "--workers", "1", data=tmp_path / "other").returncode == 0
    assert stored_names(data) == stored_names(tmp_path / "other")


# --- bad input ------------------------------------------------------------------------------------


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    packed = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def whole_png() -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    PilImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def corrupt_png() -> bytes:
    content = bytearray(whole_png())
    content[200:240] = bytes(40)
    return bytes(content)


def animated_webp() -> bytes:
    buffer = io.BytesIO()
    frames = [PilImage.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


BAD_FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "corrupt": ("bad.png", corrupt_png, "corrupt or truncated"),
    "truncated": ("bad.png", lambda: whole_png()[:3_000], "corrupt or truncated"),
    "bomb": ("bad.png", lambda: png_claiming(60_000, 60_000), "pixels"),
    "large": ("bad.png", lambda: png_claiming(9_000, 9_000), "9000 x 9000 pixels, above the limit"),
    "text": ("bad.png", lambda: b"I am no image", "not a PNG, JPEG or WebP image"),
    "empty": ("bad.jpg", lambda: b"", "empty file"),
    "animated": ("bad.webp", animated_webp, "animated (2 frames)"),
    "gif": ("bad.gif", lambda: b"GIF89a", "not a PNG, JPEG or WebP image"),
    "unmatched": ("nobody.png", whole_png, "no lq image of that name"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_unfit_file_gives_one_line_and_changes_nothing(
    data: Path, annotate_here: AnnotateHere, restored_folder: Path, kind: str
) -> None:
    annotate_here("import", restored_folder)
    before, files = dump(data), stored_names(data)
    name, make, why = BAD_FILES[kind]
    if kind not in ("unmatched", "gif"):
        (restored_folder / "lq" / "bad.png").write_bytes(whole_png())
    (restored_folder / "gfpgan" / name).write_bytes(make())
    refused = annotate_here("import", restored_folder)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert refused.stderr.startswith(f"error: gfpgan/{name}: ")
    assert why in refused.stderr
    assert "--skip-bad" in refused.stderr
    assert (dump(data), stored_names(data)) == (before, files)
    skipped = annotate_here("import", restored_folder, "--skip-bad")
    assert skipped.returncode == 0, skipped.stderr
    assert f"refused: gfpgan/{name}: " in skipped.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(data: Path, annotate_here: AnnotateHere, restored_folder: Path) -> None:
    (restored_folder / "gfpgan" / "face0.png").chmod(0)
    refused = annotate_here("import", restored_folder)
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: gfpgan/face0.png: cannot be read (Permission denied). Nothing was imported; mend or remove it, or "
        "leave it out with --skip-bad.\n",
    )
    assert count(data, Source, Image) == [0, 0]


def test_two_files_of_one_stem(data: Path, annotate_here: AnnotateHere, restored_folder: Path) -> None:
    write_photo(restored_folder / "lq" / "face0.webp", 5)
    refused = annotate_here("import", restored_folder)
    assert refused.returncode == 2
    assert "lq/face0.png: two files of one name in this folder: face0.png, face0.webp" in refused.stderr
    assert count(data, Source, Image) == [0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lq,method\nlq/face0.png,m\n", "error: photos.csv, line 2: no column 'source'. Needed: source.\n"),
        ("source,lq\nx,../outside.png\n", "error: photos.csv, line 2: '../outside.png' leaves the manifest's folder"),
        ("source,lq\nx,lq/face0.png\nx,lq/face1.png\n", "error: photos.csv, line 3: source 'x' has lq 'lq/face1.png'"),
    ],
)
def test_bad_manifest(data: Path, annotate_here: AnnotateHere, restored_folder: Path, text: str, message: str) -> None:
    before = dump(data)
    (restored_folder / "photos.csv").write_text(text)
    refused = annotate_here("import", restored_folder / "photos.csv")
    assert refused.returncode == 2
    assert refused.stderr.startswith(message)
    assert len(refused.stderr.splitlines()) == 1
    assert dump(data) == before


@pytest.mark.parametrize("path", ["absent", "notes.docx"])
def test_path_that_is_nothing_to_import(data: Path, annotate_here: AnnotateHere, tmp_path: Path, path: str) -> None:
    (tmp_path / "notes.docx").write_text("x")
    refused = annotate_here("import", tmp_path / path)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1


# --- what is converted ----------------------------------------------------------------------------


def test_files_that_programs_read_differently_are_stored_as_plain_png(
    data: Path, annotate_here: AnnotateHere, tmp_path: Path
) -> None:
    folder = tmp_path / "set" / "lq"
    folder.mkdir(parents=True)
    PilImage.fromarray(np.full((4, 6), 32_896, np.uint16)).save(folder / "deep.png")
    PilImage.new("RGBA", (6, 4), (255, 0, 0, 0)).save(folder / "clear.png")
    PilImage.new("RGB", (6, 4), "blue").quantize(4).save(folder / "palette.png")
    PilImage.new("CMYK", (6, 4), (0, 0, 0, 255)).save(folder / "print.jpg")
    rotated = PilImage.new("RGB", (6, 4), "green")
    exif = rotated.getexif()
    exif[0x0112] = 6
    rotated.save(folder / "turned.jpg", exif=exif)
    result = annotate_here("import", tmp_path / "set")
    assert result.returncode == 0, result.stderr
    wanted = {
        "deep": ((6, 4), (128, 128, 128), "16 bits reduced to 8"),
        "clear": ((6, 4), (255, 255, 255), "alpha laid over white"),
        "palette": ((6, 4), (0, 0, 255), "P converted to RGB"),
        "print": ((6, 4), (0, 0, 0), "CMYK converted to RGB"),
        "turned": ((4, 6), (0, 128, 0), "EXIF orientation 6 applied"),
    }
    database = open_database(data)
    with database.read() as session:
        for key, (size, colour, why) in wanted.items():
            image = session.scalars(
                select(Image).join(Source, Source.lq_image_id == Image.id).where(Source.key == key)
            ).one()
            stored = open_rgb(data, image)
            assert (stored.size, image.suffix, image.conversion) == (size, ".png", why)
            assert np.abs(np.asarray(stored).reshape(-1, 3).astype(int) - colour).max() <= 2
            assert f"converted: lq/{key}" in result.stdout
    database.close()
    again = annotate_here("import", tmp_path / "set")
    assert again.stdout.startswith("0 sources added, 5 sources existing")
    assert len(stored_names(data)) == 5


# --- zips -----------------------------------------------------------------------------------------


def test_zip_is_imported_and_nothing_of_it_stays(
    data: Path, annotate_here: AnnotateHere, restored_folder: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for path in restored_folder.rglob("*.*"):
            archive.write(path, Path("faces") / path.relative_to(restored_folder))
    result = annotate_here("import", tmp_path / "faces.zip")
    assert result.returncode == 0, result.stderr
    assert count(data, Source, Candidate) == [4, 11]
    assert list((data / "uploads").iterdir()) == []
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../lq/a.png", whole_png())
    refused = annotate_here("import", tmp_path / "evil.zip")
    assert refused.returncode == 2
    assert "leads out of its folder" in refused.stderr


# --- being stopped --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 different photos, enough for an import to be caught in the middle."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(500):
        write_photo(folder / "lq" / f"{number}.png", number, (64, 64))
        write_photo(folder / "m" / f"{number}.png", 10_000 + number, (64, 64))
    return folder


def has_begun(data: Path, stage: str) -> bool:
    """Whether the import is at it: the first files checked, or some of them stored."""
    if stage == "storing":
        return len(stored_names(data)) > 100
    return any(file.read_text() for file in (data / "runs").glob("*/progress.jsonl"))


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        *(("storing", number) for number in (signal.SIGKILL, signal.SIGTERM)),
        ("checking", signal.SIGKILL),
        pytest.param("checking", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_import_ended_in_the_middle_leaves_no_rows(
    annotate_here: AnnotateHere, data: Path, many_photos: Path, number: signal.Signals, stage: str
) -> None:
    process = subprocess.Popen(annotate_command(data, "import", many_photos, "--workers", "2"), cwd=ROOT)
    while not has_begun(data, stage):
        assert process.poll() is None, "it ended before it could be caught"
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.wait(LIMIT_SECONDS)
    _, alive = psutil.wait_procs(workers, timeout=LIMIT_SECONDS)
    assert alive == [], "its workers end with it"
    assert count(data, Source, Method, Candidate, Image) == [0, 0, 0, 0]
    database = open_database(data)
    reap_lost(database, data)
    (state,) = fetch(database, select(Run.state))
    assert state is (RunState.lost if number is signal.SIGKILL else RunState.stopped)
    if number is signal.SIGTERM:
        assert stored_names(data) == []
    database.close()
    result = annotate_here("import", many_photos)
    assert result.returncode == 0, result.stderr
    assert count(data, Source, Method, Candidate, Image) == [500, 1, 500, 1_000]
    assert len([name for name in stored_names(data) if name.endswith(".png")]) == 1_000


def test_two_imports_at_once_store_each_photo_once(data: Path, many_photos: Path, database: Database) -> None:
    started = [
        subprocess.Popen(annotate_command(data, "import", many_photos), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ended = [(process.communicate()[1], process.returncode) for process in started]
    assert [code for _, code in ended] == [0, 0], ended
    assert count(data, Source, Method, Candidate, Image) == [500, 1, 500, 1_000]
    assert len(stored_names(data)) == 1_000


# --- both databases -------------------------------------------------------------------------------


def test_import_again_conflict_and_gold_on_both_databases(
    any_database: Database, data: Path, restored_folder: Path
) -> None:
    assert import_folder(any_database, data, restored_folder).candidates_added == 11
    again = import_folder(any_database, data, restored_folder)
    assert again == ImportReport(sources_existing=4, candidates_existing=11)
    gold = restored_folder / "gold.csv"
    gold.write_text("source,method_a,method_b,answer\nface0,gfpgan,bicubic,a\n")
    with any_database.write() as session:
        assert import_gold(session, gold).added == 1
    with any_database.read() as session:
        assert '<td>gold (answer known)</td><td class="n">1</td>' in counts_html(session)
    write_photo(restored_folder / "lq" / "face9.png", 99)
    write_photo(restored_folder / "gfpgan" / "face1.png", 4321)
    files = stored_names(data)
    with pytest.raises(UserError, match="is already stored with another image by method 'gfpgan'"):
        import_folder(any_database, data, restored_folder)
    assert count_rows(any_database, Source) == [4]
    assert stored_names(data) == files


def test_groups_and_equal_pixels_on_both_databases(any_database: Database, data: Path, restored_folder: Path) -> None:
    """A photo under two names is in one group, and two methods' equal outputs leave the queue."""
    with PilImage.open(restored_folder / "lq" / "face0.png") as photo:
        photo.save(restored_folder / "lq" / "face1.png", compress_level=0)
    with PilImage.open(restored_folder / "gfpgan" / "face2.png") as photo:
        photo.save(restored_folder / "bicubic" / "face2.png", compress_level=0)
    report = import_folder(any_database, data, restored_folder)
    assert [key for key, _ in report.share_a_picture] == ["face1"]
    with any_database.write() as session:
        make_pairs(session, load_settings(session))
        session.execute(update(Source).where(Source.key == "face1").values(split=Split.test, group="face1"))
    joined, aside = mend(any_database, data, dry_run=True)
    assert ([source.key for source in joined], [pair.source for pair in aside]) == (["face1"], ["face2"])
    assert mend(any_database, data, dry_run=False) == (joined, aside)
    assert mend(any_database, data, dry_run=False) == ([], [])
    with any_database.read() as session:
        assert session.scalar(select(func.count()).where(Pair.queue_level.is_not(None))) == 9


def test_imports_at_once_on_both_databases(any_database: Database, data: Path, restored_folder: Path) -> None:
    """Each comes in, or is told to try again; nothing is stored twice, and no image lacks its file."""

    def run(_: int) -> str:
        try:
            import_folder(any_database, data, restored_folder)
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(run, range(4)))
    assert "" in said
    assert {text for text in said if text} <= {"Another import added some of the same photos meanwhile; import again."}
    with any_database.read() as session:
        assert session.scalar(select(func.count()).select_from(Candidate)) == 11
        images = session.scalars(select(Image)).all()
        assert len(images) == 19
        assert all(image_path(data, image.sha256, image.suffix).exists() for image in images)


@pytest.mark.parametrize("damage", ["missing", "cut", "one bit"])
def test_importing_again_puts_damaged_files_right(
    annotate_here: AnnotateHere, data: Path, tmp_path: Path, damage: str
) -> None:
    for method in ("lq", "a", "b"):
        write_photo(tmp_path / "set" / method / "face.png", len(method) + ord(method[0]))
    assert annotate_here("import", tmp_path / "set").returncode == 0
    before, files = dump(data), {path: path.read_bytes() for path in (data / "images").rglob("*.png")}
    for path, content in files.items():
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(content[:50] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    assert annotate_here("import", tmp_path / "set").returncode == 0
    assert {path: path.read_bytes() for path in (data / "images").rglob("*.png")} == files
    assert dump(data) == before

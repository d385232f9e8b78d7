"""Images in an object store: a folder that fsspec opens as one."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

import db.image_store
from db.__main__ import main
from db.candidates import find_missing
from db.errors import UnavailableError, UserError
from db.image_store import STORE_FILE, StoreAwayError, object_name, open_store
from db.image_sync import find_absent, list_named
from db.images import (
    DamagedImage,
    Probe,
    add_image,
    fetch_image,
    fetch_images,
    image_path,
    probe_image,
    read_stored,
    write_image,
)
from db.session import Database
from db.waiting import wait_at_most
from tests.making import ROOT, add_face, add_photos, write_photo

OURS = ("pixels", "db", "metrics", "runs", "dataset", "training", "annotate", "reward", "refl", "ui")
NAMES_ONLY = {
    "annotate/ingest/check_images.py": "fetches all before",
    "annotate/ingest/damage.py": "names them",
    "annotate/ingest/image_files.py": "looks for what is here, and removes it",
    "annotate/judging/remove_method.py": "removes them here",
    "annotate/measure/worker.py": "fetches a batch before",
    "dataset/files.py": "names them",
    "db/candidates.py": "fetches a page before",
    "db/image_sync.py": "names them",
    "db/images.py": "fetches them",
    "refl/restore/rows.py": "fetches a page before",
    "ui/label/stored_images.py": "knows what is here",
}
"""Modules that ask where the file of an image would be, and why they need not fetch it."""


@pytest.fixture
def bucket(data: Path, tmp_path: Path) -> Path:
    """The folder that is the object store of the data folder."""
    name_store(data, f'store = "file://{tmp_path / "bucket"}"')
    return tmp_path / "bucket"


def name_store(data: Path, text: str) -> None:
    data.mkdir(exist_ok=True)
    (data / STORE_FILE).write_text(text)


def store_photo(data: Path, tmp_path: Path, seed: int = 1) -> tuple[Probe, Path, bytes]:
    """(probe, path in the data folder, bytes) of a photo that was written."""
    photo = write_photo(tmp_path / f"{seed}.png", seed)
    probe = probe_image(photo)
    write_image(data, probe, photo)
    return probe, image_path(data, probe.sha256, probe.suffix), photo.read_bytes()


def test_an_image_is_in_the_store_and_the_folder_is_a_cache_of_it(data: Path, bucket: Path, tmp_path: Path) -> None:
    probe, here, content = store_photo(data, tmp_path)
    there = bucket / object_name(probe.sha256, probe.suffix)
    assert there.read_bytes() == here.read_bytes() == content
    assert not write_image(data, probe, content), "both are there"
    here.unlink()
    assert fetch_image(data, probe.sha256, probe.suffix) == here
    assert here.read_bytes() == content
    there.unlink()
    assert read_stored(data, probe.sha256, probe.suffix) == content, "what is here is not asked for"
    write_image(data, probe, content)
    assert there.read_bytes() == content, "adding an image again puts it into the store again"


def test_many_are_fetched_and_those_that_are_nowhere_have_no_file(
    data: Path, bucket: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = [store_photo(data, tmp_path, seed) for seed in range(20)]
    for _, here, _ in photos:
        here.unlink()
    (bucket / object_name(photos[3][0].sha256, ".png")).unlink()
    paths = fetch_images(data, [(probe.sha256, probe.suffix) for probe, *_ in photos])
    assert paths == [here for _, here, _ in photos]
    assert [path.exists() for path in paths] == [number != 3 for number in range(20)]
    assert f"{photos[3][1]} cannot be read (No such file or directory), and file://{bucket} lacks it" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"cut", None])
def test_a_damaged_file_is_fetched_anew_and_a_damaged_object_is_never_kept(
    data: Path, bucket: Path, tmp_path: Path, damage: bytes | None
) -> None:
    probe, here, content = store_photo(data, tmp_path)
    there = bucket / object_name(probe.sha256, probe.suffix)
    if damage is None:
        here.unlink()
    else:
        here.write_bytes(damage)
    assert read_stored(data, probe.sha256, probe.suffix) == content
    assert here.read_bytes() == content
    here.unlink()
    there.write_bytes(bytes([*content[:-1], content[-1] ^ 1]))
    with pytest.raises(DamagedImage, match=rf"and file://{bucket} holds other bytes; import its original again"):
        read_stored(data, probe.sha256, probe.suffix)
    assert not here.exists()
    there.write_bytes(content[:-1])  # half uploaded
    write_image(data, probe, content)
    assert there.read_bytes() == content


def test_half_an_upload_is_an_error_and_nothing_is_kept_here(
    data: Path, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = LocalFileSystem.pipe_file
    monkeypatch.setattr(LocalFileSystem, "pipe_file", lambda self, place, content: whole(self, place, content[:100]))
    with pytest.raises(StoreAwayError, match=r"100 of \d+ bytes arrived; run again"):
        store_photo(data, tmp_path)
    assert not list((data / "images").rglob("*.png"))
    monkeypatch.undo()
    _, here, content = store_photo(data, tmp_path)
    assert here.read_bytes() == content


def test_a_store_that_is_away_is_no_damage(
    data: Path, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, here, _ = store_photo(data, tmp_path)
    here.unlink()
    bucket.rename(tmp_path / "unmounted")
    with pytest.raises(StoreAwayError, match=r"There is nothing at file://.*Is it mounted"):
        read_stored(data, probe.sha256, probe.suffix)
    (tmp_path / "unmounted").rename(bucket)

    def refuse(*_: object) -> bytes:
        raise ConnectionRefusedError("no route")

    monkeypatch.setattr(LocalFileSystem, "cat_file", refuse)
    with pytest.raises(UserError, match=r"does not answer \(ConnectionRefusedError: no route\)") as caught:
        read_stored(data, probe.sha256, probe.suffix)
    assert isinstance(caught.value, UnavailableError), "a request gets 503, and is sent again"
    with pytest.raises(StoreAwayError):
        fetch_images(data, [(probe.sha256, probe.suffix)])
    hangs, asked = threading.Event(), []
    monkeypatch.setattr(LocalFileSystem, "cat_file", lambda *_: asked.append(1) or hangs.wait(20))
    monkeypatch.setattr(db.image_store, "_AWAY", {})
    began = time.monotonic()
    with wait_at_most(0.05):
        with pytest.raises(StoreAwayError, match="TimeoutError"):
            read_stored(data, probe.sha256, probe.suffix)
        with pytest.raises(StoreAwayError, match="did not answer just before"):
            read_stored(data, probe.sha256, probe.suffix)
    assert time.monotonic() - began < 5
    assert len(asked) == 1, "the second is told at once"
    hangs.set()
    monkeypatch.undo()
    assert read_stored(data, probe.sha256, probe.suffix), "a command tries whatever was before"
    here.unlink()
    with wait_at_most(5):
        assert read_stored(data, probe.sha256, probe.suffix), "and a request from then on"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("store = 1", "store: Input should be a valid string, got 1"),
        ('store = "/mnt/images"', "store: String should match pattern"),
        ("sture = 's3://b'", "store: Field required"),
        ("store = 's3://b'\nserve = 'direct'", "serve: Input should be 'app' or 'redirect'"),
        ("store = ", "is not TOML"),
        ("store = 'nosuch://b'", r"nosuch://b cannot be opened \(Protocol not known: nosuch\)"),
        ("store = 's3://b/p'", "s3:// needs s3fs, which is not installed: pip install s3fs"),
    ],
)
def test_what_names_no_store_is_refused_in_one_line(
    data: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    name_store(data, text)
    with pytest.raises(UserError, match=rf"images\.toml.*{said}") as caught:
        open_store(data)
    assert "\n" not in str(caught.value)


def test_only_a_store_with_signed_addresses_can_be_redirected_to(data: Path, bucket: Path) -> None:
    with (data / STORE_FILE).open("a") as file:
        file.write("\nserve = 'redirect'")
    store = open_store(data)
    assert store is not None
    with pytest.raises(UserError, match=r"has no signed addresses for serve = 'redirect' in images\.toml"):
        store.find_origin()


def test_push_uploads_what_the_store_lacks_and_check_finds_what_is_not_whole(
    database: Database, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [write_photo(tmp_path / f"{seed}.png", seed) for seed in range(4)]
    with database.write() as session:
        rows = [add_image(session, data, probe_image(photo), photo) for photo in photos]
        names = [object_name(row.sha256, row.suffix) for row in rows]
    assert main(["images", "push", "--data", str(data)]) == 2
    assert "the images are files in" in capsys.readouterr().err
    bucket = tmp_path / "bucket"
    name_store(data, f'store = "file://{bucket}"')
    assert main(["images", "push", "--data", str(data)]) == 0
    assert "4 images uploaded and read back, 4 of 4 there." in capsys.readouterr().out
    assert main(["images", "check", "--data", str(data)]) == 0
    assert "4 of 4 images are whole." in capsys.readouterr().out
    (bucket / names[0]).unlink()
    (bucket / names[1]).write_bytes(photos[1].read_bytes()[:-1])
    (bucket / names[2]).write_bytes(bytes(len(photos[2].read_bytes())))
    assert find_absent(data, list_named(database)) == [f"file://{bucket}/{name}" for name in names[:2]]
    (bucket / "mine.txt").write_text("other people's")
    assert main(["images", "check", "--data", str(data)]) == 2
    said = capsys.readouterr()
    assert "1 of 4 images are whole." in said.out
    assert f"{names[0]} is not there" in said.err
    assert f"{names[2]} is not the file that was imported" in said.err
    assert main(["images", "push", "--data", str(data)]) == 0
    assert "2 images uploaded and read back, 4 of 4 there." in capsys.readouterr().out
    assert [(bucket / name).read_bytes() for name in names[:2]] == [photo.read_bytes() for photo in photos[:2]]
    assert (bucket / "mine.txt").exists()
    (bucket / names[3]).unlink()
    (data / "images" / names[3]).write_bytes(b"cut")
    assert main(["images", "push", "--data", str(data)]) == 2
    assert f"{names[3]} is missing or damaged, and not whole in" in capsys.readouterr().err
    assert not (bucket / names[3]).exists()


def test_what_an_earlier_version_stored_with_metadata_is_not_pushed(
    database: Database, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = write_photo(tmp_path / "1.png", 1)
    content = photo.read_bytes() + b"Jane Doe"
    with database.write() as session:
        image = add_image(session, data, probe_image(photo), photo)
        image.sha256, image.size_bytes = hashlib.sha256(content).hexdigest(), len(content)
        here = image_path(data, image.sha256, image.suffix)
        here.parent.mkdir(exist_ok=True)
        here.write_bytes(content)
    name_store(data, f'store = "file://{tmp_path / "bucket"}"')
    assert main(["images", "push", "--data", str(data)]) == 2
    said = capsys.readouterr()
    assert "0 images uploaded and read back, 0 of 1 there." in said.out
    assert "holds metadata" in said.err
    assert not (tmp_path / "bucket").exists()


def test_whoever_reads_an_image_fetches_it() -> None:
    files = [file for package in OURS for file in (ROOT / package).rglob("*.py")]
    asking = {str(file.relative_to(ROOT)) for file in files if "image_path(" in file.read_text(encoding="utf-8")}
    assert asking == NAMES_ONLY.keys(), "fetch_image gives the path of a file that is there"


def test_pages_of_candidates_are_fetched_unless_they_are_counted(
    database: Database, data: Path, bucket: Path, tmp_path: Path
) -> None:
    with database.write() as session:
        lq, *restored = add_photos(session, data, tmp_path, range(3))
        add_face(session, "face", ("m1", "m2"), lq, *restored)
    for file in (data / "images").rglob("*.png"):
        file.unlink()
    counted = list(find_missing(database, data, "sharpness", "1", "lq", fetch=False))
    assert not any(one.path.exists() for one in counted)
    read = list(find_missing(database, data, "sharpness", "1", "lq"))
    assert read == counted
    assert len(read) == 2
    for one in read:
        assert one.path.read_bytes()
        assert one.input
        assert one.input.read_bytes()

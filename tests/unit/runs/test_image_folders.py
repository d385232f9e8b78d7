"""Which files of a folder are images, what is passed over and said, and the texts beside them."""

from __future__ import annotations

import logging
import os
import unicodedata
from pathlib import Path

import pytest

from db.errors import UserError
from runs.image_folders import clean_path, describe_kind, list_images, name_forms, normalize_name, read_caption


def names(folder: Path, *, recursive: bool = True) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in list_images(folder, recursive=recursive)]


def test_images_by_name_with_all_that_jpeg_is_called(tmp_path: Path) -> None:
    for number, suffix in enumerate(("png", "JPG", "jfif", "jpe", "pjpeg", "webp", "JPEG")):
        (tmp_path / f"{number}.{suffix}").touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.png").touch()
    assert names(tmp_path, recursive=False) == sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert names(tmp_path)[-1] == "deep/a.png"


def test_other_types_are_named_and_hidden_ones_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "a.txt", "b.tif", "c.tif", "d.bmp", "e.txt", "no_suffix"):
        (tmp_path / name).touch()
    for name in (".ipynb_checkpoints/a.png", "__MACOSX/._a.png", ".git/x.png", "@eaDir/a.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    with caplog.at_level(logging.WARNING):
        assert names(tmp_path) == ["a.png"]
    (said,) = caplog.messages
    assert "passed over 2 .tif, 1 .bmp, 1 .txt, 1 no suffix (b.tif, c.tif, d.bmp, e.txt, no_suffix)" in said
    assert "PNG, JPEG and WebP" in said


def test_nothing_is_said_where_nothing_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "a.txt", "._a.png"):
        (tmp_path / name).touch()
    assert names(tmp_path) == ["a.png"]
    assert caplog.messages == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match="closed: cannot be read"):
        list_images(tmp_path, recursive=True)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_text(" fröhlich\r\n", encoding=encoding)
    assert read_caption(tmp_path / "a.jfif") == "fröhlich"
    (tmp_path / "a.txt").write_text("", encoding=encoding)
    assert read_caption(tmp_path / "a.jfif") is None
    assert read_caption(tmp_path / "b.png") is None


def test_a_caption_in_another_encoding_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("fröhlich".encode("latin-1"))
    with pytest.raises(UserError, match=r"a.txt: not UTF-8 text \(byte 0xf6, 'ö' in Windows-1252\); save it as UTF-8"):
        read_caption(tmp_path / "a.png")


@pytest.mark.parametrize(
    "text",
    ["/a b/c", '"/a b/c"', "'/a b/c'", "“/a b/c”", " /a b/c\n", '" /a b/c "', "file:///a%20b/c", '"file:///a b/c"'],
)
def test_paths_as_people_paste_them(text: str) -> None:
    assert clean_path(text) == Path("/a b/c")


@pytest.mark.parametrize("text", ["it's", '"', "a'b'"])
def test_quotes_of_a_name_stay(text: str) -> None:
    assert clean_path(text) == Path(text)


def test_names_and_kinds() -> None:
    assert normalize_name("e\u0301") == "\xe9"
    assert name_forms("e\u0301") == ("\xe9", "e\u0301")
    mixed = "\xe9e\u0301"
    assert name_forms(mixed) == ("\xe9\xe9", unicodedata.normalize("NFD", mixed), mixed)
    assert [describe_kind(name) for name in ("a/b.TIF", "a/b", ".git/x.png", "a/._b.png")] == [
        ".tif",
        "no suffix",
        "hidden",
        "hidden",
    ]


def test_a_caption_that_is_no_file_or_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    folder, blobs = tmp_path / "in", tmp_path / "blobs"
    folder.mkdir()
    blobs.mkdir()
    (blobs / "1").write_text("a caption")
    (blobs / "2").write_bytes(b"an image")
    (folder / "a.txt").symlink_to(blobs / "1")
    with pytest.raises(UserError, match=r"a\.txt: a link that leads out of its folder"):
        read_caption(folder / "a.png")
    (folder / "a.png").symlink_to(blobs / "2")
    assert read_caption(folder / "a.png") == "a caption"  # as a download's cache has both
    os.mkfifo(folder / "b.txt")
    with pytest.raises(UserError, match=r"b\.txt: not a file"):
        read_caption(folder / "b.png")
    assert read_caption(folder / "c.png") is None

"""Uploaded zips: what is found in them, and what they must not do."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from annotate.ingest.archive import PREFIX, extract_zip, find_import, list_outside, unpacked
from annotate.ingest.layout import read_folder
from db.errors import UserError
from tests.making import write_photo


def make_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_folder_inside_a_folder_is_found_and_goes_away(data: Path, tmp_path: Path) -> None:
    names = {"set/lq/a.png": b"1", "set/gfpgan/a.png": b"2", "__MACOSX/set/lq/._a.png": b"3", ".DS_Store": b"4"}
    with unpacked(data, make_zip(tmp_path / "a.zip", names)) as found:
        assert found.name == "set"
        assert (found / "gfpgan" / "a.png").read_bytes() == b"2"
        assert data in found.parents
    assert list((data / "uploads").iterdir()) == []


def test_goes_away_when_the_import_fails(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bad"), unpacked(data, make_zip(tmp_path / "a.zip", {"lq/a.png": b"1"})):
        raise UserError("bad")
    assert list((data / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["lq/a.png", "notes.csv"], "."),
        (["top/photos.csv", "top/a.png"], "top/photos.csv"),
        (["pairs.jsonl", "images/a.png"], "."),
        (["hpd/train.json", "hpd/a.png"], "hpd/train.json"),
        (["one/a.png", "two/a.png"], "."),
    ],
)
def test_find_import(tmp_path: Path, files: list[str], found: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_import(tmp_path) == tmp_path / found


@pytest.mark.parametrize("name", ["../evil.png", "lq/../../evil.png", "/tmp/evil.png", "..\\evil.png", "C:\\evil.png"])
def test_entry_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="leads out of its folder"):
        extract_zip(make_zip(tmp_path / "a.zip", {name: b"1"}), tmp_path / "in")
    assert [path.name for path in tmp_path.rglob("evil*")] == []


def test_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("lq/a.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=", a link; pack the file itself"):
        extract_zip(tmp_path / "a.zip", tmp_path / "in")


def test_bombs_are_refused_by_what_comes_out(tmp_path: Path) -> None:
    bomb = make_zip(tmp_path / "a.zip", {f"lq/{n}.png": bytes(3_000_000) for n in range(3)})
    assert bomb.stat().st_size < 30_000
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=r"'lq/1.png' is too large when unpacked"):
        extract_zip(bomb, tmp_path / "in", max_total_bytes=5_000_000)
    (tmp_path / "in2").mkdir()
    with pytest.raises(UserError, match="holds 3 files, above the limit of 2"):
        extract_zip(bomb, tmp_path / "in2", max_entries=2)


def test_bombs_are_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    into = tmp_path / "in"
    into.mkdir()
    bomb = make_zip(tmp_path / "bomb.zip", {f"lq/{n}.png": bytes(30_000_000) for n in range(3)})
    with pytest.raises(UserError, match=r"bomb\.zip unpacks to 1,0\d\d times its size"):
        extract_zip(bomb, into)
    photos = make_zip(tmp_path / "photos.zip", {"lq/1.png": b"x" * 1000})
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**30))
        with pytest.raises(UserError, match=r"photos\.zip is too large when unpacked: 1,024.0 MiB are free, about"):
            extract_zip(photos, into)
    deep = make_zip(tmp_path / "deep.zip", {"a/" * 5_000 + "1.png": b"x"})
    with pytest.raises(UserError, match=r"deep\.zip holds folders more than 16 deep"):
        extract_zip(deep, into)
    assert list(into.iterdir()) == []
    extract_zip(photos, into)


def test_no_zip_and_broken_zip(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    photo = write_photo(tmp_path / "a.png", 1)
    with pytest.raises(UserError, match="is not a whole zip file"):
        extract_zip(photo, tmp_path / "in")
    whole = make_zip(tmp_path / "a.zip", {"lq/a.png": os.urandom(5_000)})
    content = bytearray(whole.read_bytes())
    content[2_000] ^= 0xFF
    whole.write_bytes(content)
    with pytest.raises(UserError, match="is not a whole zip file"):
        extract_zip(whole, tmp_path / "in")
    with pytest.raises(UserError, match="No such file"):
        extract_zip(tmp_path / "absent.zip", tmp_path / "in")


def test_leftovers_of_killed_imports_are_cleared(data: Path, tmp_path: Path) -> None:
    old, fresh = data / "uploads" / f"{PREFIX}old", data / "uploads" / f"{PREFIX}fresh"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    with unpacked(data, make_zip(tmp_path / "a.zip", {"lq/a.png": b"1"})):
        assert not old.exists()
        assert fresh.exists()


# --- as common packers write them -----------------------------------------------------------------


def entry(name: str, **fields: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def unpack(tmp_path: Path, entries: list[tuple[zipfile.ZipInfo, bytes]], patch: Callable[[bytes], bytes] = bytes):
    """The files of a zip of these entries, its bytes changed by `patch` before it is unpacked."""
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        warnings.simplefilter("ignore")  # of doubled names
        for info, content in entries:
            archive.writestr(info, content)
    (tmp_path / "a.zip").write_bytes(patch((tmp_path / "a.zip").read_bytes()))
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    extract_zip(tmp_path / "a.zip", folder)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def renamed(raw: bytes) -> Callable[[bytes], bytes]:
    """Puts these bytes where the zip has a name of as many N, and takes the mark of UTF-8 away: it had none."""
    return lambda content: content.replace(b"N" * len(raw), raw)


@pytest.mark.parametrize("name", ["photo e\u0301", "写真", "фото", "\U0001f600"])
def test_names_in_utf8_without_the_mark(tmp_path: Path, name: str) -> None:
    raw = name.encode()
    assert unpack(tmp_path, [(entry("lq/" + "N" * len(raw)), b"1")], renamed(raw)) == {f"lq/{name}": b"1"}


@pytest.mark.parametrize(
    ("name", "page"), [("写真", "cp932"), ("照片", "cp936"), ("фото", "cp866"), ("é", "cp850"), ("사진", "cp949")]
)
def test_names_in_an_old_code_page_are_shown_and_refused(tmp_path: Path, name: str, page: str) -> None:
    raw = name.encode(page)
    with pytest.raises(UserError, match="old code page") as caught:
        unpack(tmp_path, [(entry("lq/" + "N" * len(raw)), b"1")], renamed(raw))
    assert f"{f'lq/{name}'!r} in {page}" in str(caught.value)
    assert "import the folder" in str(caught.value)
    assert list((tmp_path / "in").iterdir()) == []


def test_the_unicode_name_beside_an_old_one(tmp_path: Path) -> None:
    raw = "写真".encode("cp932")
    body = b"\x01" + struct.pack("<L", zlib.crc32(b"lq/" + raw)) + "lq/写真".encode()
    info = entry("lq/" + "N" * len(raw))
    info.extra = struct.pack("<HH", 0x7075, len(body)) + body
    assert unpack(tmp_path, [(info, b"1")], renamed(raw)) == {"lq/写真": b"1"}


def test_a_name_that_is_not_the_utf8_it_says(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="says that its names are UTF-8, and they are not"):
        unpack(tmp_path, [(entry("lq/é.png"), b"1")], lambda content: content.replace("é".encode(), b"\xff\xff"))


def test_folders_by_backslashes_and_attributes(tmp_path: Path) -> None:
    entries = [
        (entry("set\\lq\\", create_system=0), b""),
        (entry("set\\lq\\0.png", create_system=0), b"1"),
        (entry("set/m", create_system=0, external_attr=0x10), b""),
        (entry("set/n", external_attr=(stat.S_IFDIR | 0o755) << 16), b""),
        (entry("set/m/0.png"), b"2"),
    ]
    assert unpack(tmp_path, entries) == {"set/lq/0.png": b"1", "set/m/0.png": b"2"}


@pytest.mark.parametrize("folder", ["run 12:30", "a: first", "12:30"])
def test_colons_in_names(tmp_path: Path, folder: str) -> None:
    assert unpack(tmp_path, [(entry(f"{folder}/lq/1:2.png"), b"1")]) == {f"{folder}/lq/1:2.png": b"1"}


def test_an_entry_that_is_there_twice(tmp_path: Path) -> None:
    assert unpack(tmp_path, [(entry("lq/0.png"), b"1"), (entry("./lq/0.png"), b"1")]) == {"lq/0.png": b"1"}
    (tmp_path / "two").mkdir()
    with pytest.raises(UserError, match=r"'lq/0.png' twice, with different content; unpack it, keep the one"):
        unpack(tmp_path / "two", [(entry("lq/0.png"), b"1"), (entry("lq\\0.png"), b"2")])
    assert list((tmp_path / "two" / "in").iterdir()) == []
    (tmp_path / "three").mkdir()
    with pytest.raises(UserError, match=r"'lq' twice, as a file and a folder"):
        unpack(tmp_path / "three", [(entry("lq"), b"1"), (entry("lq/0.png"), b"2")])


@pytest.mark.parametrize(
    ("method", "name"), [(9, "Deflate64"), (93, "Zstandard"), (98, "PPMd"), (6, "Implode"), (77, "method 77")]
)
def test_other_compressions_are_named_before_anything_is_written(tmp_path: Path, method: int, name: str) -> None:
    def patch(content: bytes) -> bytes:
        changed = bytearray(content)
        place = content.rindex(b"PK\x01\x02")  # the last entry of the directory
        changed[place + 10 : place + 12] = struct.pack("<H", method)
        return bytes(changed)

    entries = [(entry("lq/0.png"), b"1"), (entry("lq/1.png"), b"2")]
    with pytest.raises(UserError, match=f"'lq/1.png' packed with {name}.*unpack it and import the folder"):
        unpack(tmp_path, entries, patch)
    assert list((tmp_path / "in").iterdir()) == []


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_are_read(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("lq/0.png", b"1" * 1_000)
    (tmp_path / "in").mkdir()
    extract_zip(tmp_path / "a.zip", tmp_path / "in")
    assert (tmp_path / "in" / "lq" / "0.png").read_bytes() == b"1" * 1_000


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"Rar!\x1a\x07", "a RAR archive; unpack it"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
        (b"<!doc", "a web page; get the file itself"),
        (b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull`"),
        (b"PK\x03\x04", "the beginning of one, its end is missing; copy or download it again"),
    ],
)
def test_what_is_no_zip_is_named(tmp_path: Path, start: bytes, name: str) -> None:
    (tmp_path / "a.zip").write_bytes(start + bytes(100))
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=f"a.zip is not a zip file but {name}"):
        extract_zip(tmp_path / "a.zip", tmp_path / "in")


def test_a_name_too_long_for_the_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.zip holds a name that is too long for this disk, 'xxxxx.*; shorten it"):
        unpack(tmp_path, [(entry("lq/" + "x" * 300 + ".png"), b"1")])


def test_messages_name_the_zip_and_not_where_it_was_unpacked(data: Path, tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "faces.zip", {"a/lq/0.png": b"1", "b/lq/0.png": b"1"})
    with pytest.raises(UserError, match=r"^faces.zip has no folder called lq"), unpacked(data, archive) as found:
        read_folder(found)


def test_the_manifest_is_told_from_other_tables(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(b"1")
    (tmp_path / "scores.csv").write_text("image,psnr\n0,30\n")
    (tmp_path / "faces.csv").write_text("Source;LQ\n0;in/0.png\n")
    assert find_import(tmp_path) == tmp_path / "faces.csv"


def test_files_beside_the_folder_that_is_imported_are_listed(data: Path, tmp_path: Path) -> None:
    names = {"set/lq/a.png": b"1", "__MACOSX/set/lq/._a.png": b"3", "readme.txt": b"4"}
    with unpacked(data, make_zip(tmp_path / "a.zip", names)) as found:
        assert list_outside(found) == ["__MACOSX/set/lq/._a.png", "readme.txt"]
    assert list_outside(tmp_path) == []


def test_hpdv2_files_are_imported_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "test.json").touch()
    assert find_import(tmp_path) == tmp_path / "test.json"
    (tmp_path / "train.json").touch()
    with pytest.raises(UserError, match=r"train.json and test.json; unpack it and import one after the other"):
        find_import(tmp_path)

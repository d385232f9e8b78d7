"""Uploaded zips: what is found in them, and what they must not do."""

from __future__ import annotations

import os
import stat
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from annotate.archive import PREFIX, extract_zip, find_import, unpacked
from db.errors import UserError


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
    with pytest.raises(UserError, match="is a link"):
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


def test_no_zip_and_broken_zip(tmp_path: Path, make_photo: Callable[..., Path]) -> None:
    (tmp_path / "in").mkdir()
    photo = make_photo(tmp_path / "a.png", 1)
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

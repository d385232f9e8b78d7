"""The manifest of published files; finding, downloading and checking one; the weights command."""

from __future__ import annotations

import hashlib

import pytest

import refl.published.manifest
import refl.published.weights
import refl.restorers.command
from db.errors import UserError
from refl.published.manifest import read_manifest
from refl.published.weights import find_any, find_file
from refl.restorers.command import WEIGHTS, run_weights
from reward.model.manifest import WeightsEntry
from runs.options import Place, read_words

CONTENT = b"\x80weight"
ENTRY = WeightsEntry(
    file="w.pth",
    description="test weights",
    hub=["org/repository/w.pth"],
    page="https://example.org/w",
    licence="CC0",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size_bytes=len(CONTENT),
)


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> dict[str, WeightsEntry]:
    """A manifest of `w` and `other`, offline; may be changed."""
    manifest = {"w": ENTRY, "other": ENTRY.model_copy(update={"file": "other.pth", "sha256": "", "size_bytes": 0})}
    for module in (refl.published.weights, refl.restorers.command):
        monkeypatch.setattr(module, "read_manifest", lambda *_: manifest)
    monkeypatch.setattr(refl.published.weights, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(refl.published.manifest, "try_to_load_from_cache", lambda *_, **__: None)
    return manifest


def run(*arguments: str) -> None:
    run_weights(read_words(WEIGHTS, arguments), Place())


def test_the_manifest_says_of_every_file_where_and_under_what_terms():
    manifest = read_manifest()
    assert {"sd-2.1-base", "sd-2.1-zsnr", "diffbir-v1-face", "diffbir-v2.1", "diffbir-swinir-face"} <= set(manifest)
    assert {"diffbir-refl", "osediff-face", "gfpgan-v1.4", "restoreformer", "codeformer", "vgg16"} <= set(manifest)
    for entry in manifest.values():
        assert entry.page.startswith("https://")
        assert entry.licence
        assert all(len(place.removeprefix("spaces/").split("/")) >= 3 for place in entry.hub)
        assert all(url.startswith("https://") and url.endswith(entry.file) for url in entry.url)
        assert entry.hub or entry.url or "drive.google.com" in entry.page
    assert len({entry.file for entry in manifest.values()}) == len(manifest)


def test_a_file_in_the_folder_is_found_and_known_by_its_checksum(entries, tmp_path):
    (tmp_path / "w.pth").write_bytes(CONTENT)
    assert find_file("w", tmp_path) == refl.published.weights.FoundFile(tmp_path / "w.pth", ENTRY.sha256)


def test_an_unknown_checksum_is_computed(entries, tmp_path):
    (tmp_path / "other.pth").write_bytes(b"\x80whatever")
    assert find_file("other", tmp_path).sha256 == hashlib.sha256(b"\x80whatever").hexdigest()


def test_a_path_needs_no_manifest(entries, tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"mine")
    found = find_file(tmp_path / "mine.pth", tmp_path / "elsewhere")
    assert found.sha256 == hashlib.sha256(b"mine").hexdigest()


def test_the_first_that_is_here_is_taken(entries, tmp_path):
    (tmp_path / "other.pth").write_bytes(b"\x80whatever")
    assert find_any(["w", "other"], tmp_path).path.name == "other.pth"


def test_of_files_that_are_not_here_one_of_known_checksum_is_got(entries, tmp_path):
    with pytest.raises(UserError, match=r"^w\.pth is not here"):
        find_any(["other", "w"], tmp_path)


@pytest.mark.parametrize(("content", "said"), [(b"\x80weighs", "SHA-256 is"), (b"\x80weig", "5 bytes, not the 7")])
def test_another_content_is_refused(entries, tmp_path, content, said):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=said):
        find_file("w", tmp_path)


def test_offline_a_missing_file_says_where_it_is_and_where_it_belongs(entries, tmp_path):
    with pytest.raises(UserError) as caught:
        find_file("w", tmp_path)
    said = str(caught.value)
    for part in ("w.pth", "HF_HUB_OFFLINE is set", "https://example.org/w", str(tmp_path), "--weights", "CC0"):
        assert part in said


def test_a_name_that_is_none_lists_the_names(entries, tmp_path):
    with pytest.raises(UserError, match="The names: w, other"):
        find_file("v", tmp_path)


def test_a_url_is_downloaded_whole(entries, tmp_path, monkeypatch):
    monkeypatch.setattr(refl.published.weights, "HF_HUB_OFFLINE", False)
    (tmp_path / "mirror").write_bytes(CONTENT)
    entries["w"] = ENTRY.model_copy(update={"hub": [], "url": [(tmp_path / "mirror").as_uri()]})
    found = find_file("w", tmp_path / "weights")
    assert found.path.read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["w.pth"]


def test_the_next_mirror_is_tried_and_the_last_failure_is_told(entries, tmp_path, monkeypatch):
    monkeypatch.setattr(refl.published.weights, "HF_HUB_OFFLINE", False)
    gone, mirror = (tmp_path / "gone").as_uri(), tmp_path / "mirror"
    entries["w"] = ENTRY.model_copy(update={"hub": [], "url": [gone]})
    with pytest.raises(UserError, match=r"w\.pth is not here .*gone.*[Nn]o such file"):
        find_file("w", tmp_path / "weights")
    mirror.write_bytes(CONTENT)
    entries["w"] = ENTRY.model_copy(update={"hub": [], "url": [gone, mirror.as_uri()]})
    assert find_file("w", tmp_path / "weights").path.is_file()


def test_a_bad_file_of_the_cache_is_removed_and_got_anew(entries, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr("metrics.download.constants.HF_HUB_CACHE", str(cache))
    cached = cache / "models--a--b" / "w.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"\x80other!")
    monkeypatch.setattr(
        refl.published.manifest, "try_to_load_from_cache", lambda *_, **__: str(cached) if cached.exists() else None
    )
    with pytest.raises(UserError, match="SHA-256 is"):  # offline it stays
        find_file("w", tmp_path / "weights")
    assert cached.exists()
    monkeypatch.setattr(refl.published.weights, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        refl.published.weights, "fetch", lambda *_, **__: (_ for _ in ()).throw(UserError("Missing (gone). Get it"))
    )
    (tmp_path / "mirror").write_bytes(CONTENT)
    entries["w"] = ENTRY.model_copy(update={"url": [(tmp_path / "mirror").as_uri()]})
    assert find_file("w", tmp_path / "weights").path == tmp_path / "weights" / "w.pth"
    assert not cached.exists()


def test_list_says_what_is_here(entries, tmp_path, capsys):
    (tmp_path / "other.pth").write_bytes(b"\x80whatever")
    run("list", "--weights", str(tmp_path))
    said = capsys.readouterr().out
    assert "w  w.pth  0 MB  not here" in said
    assert f"here: {tmp_path / 'other.pth'}" in said
    assert "licence: CC0" in said
    assert "org/repository/w.pth" in said


def test_check_tells_good_from_wrong_from_absent(entries, tmp_path, capsys):
    (tmp_path / "w.pth").write_bytes(CONTENT)
    run("check", "--weights", str(tmp_path))
    said = capsys.readouterr().out
    assert "(as published)" in said
    assert "other: not here" in said
    (tmp_path / "w.pth").write_bytes(b"\x80weighs")
    with pytest.raises(UserError, match="SHA-256 is"):
        run("check", "--weights", str(tmp_path))
    assert "w: WRONG" in capsys.readouterr().out


def test_fetch_needs_names_and_names_must_be_known(entries, tmp_path, capsys):
    with pytest.raises(UserError, match="Name what to fetch"):
        run("fetch")
    with pytest.raises(UserError, match="The names: w, other"):
        run("fetch", "v")
    (tmp_path / "w.pth").write_bytes(CONTENT)
    run("fetch", "w", "--weights", str(tmp_path))
    assert capsys.readouterr().out.strip() == f"w: {tmp_path / 'w.pth'}"


def test_the_shipped_manifest_lists(capsys):
    run("list", "--weights", "nowhere")
    assert "lxq007/DiffBIR-v2/v1_face.pth" in capsys.readouterr().out


def test_a_folder_has_a_manifest_of_its_own(tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setattr(refl.published.weights, "HF_HUB_OFFLINE", True)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    entry = (
        f'file = "mirror.ckpt"\ndescription = "ours"\npage = "https://x.org"\nlicence = "CC0"\nsha256 = "{sha256}"\n'
    )
    (tmp_path / "weights.toml").write_text(
        f'["sd-2.1-base"]\n{entry}[lab]\n{entry}url = ["https://x.org/mirror.ckpt"]\n'
    )
    (tmp_path / "mirror.ckpt").write_bytes(CONTENT)
    with caplog.at_level("INFO", logger="refl.published.weights"):
        for name in ("sd-2.1-base", "lab"):
            assert find_file(name, tmp_path).path == tmp_path / "mirror.ckpt"
    assert "not by FaceReward's" in caplog.text
    assert "lab" not in read_manifest()
    run("list", "--weights", str(tmp_path))
    assert "lab  mirror.ckpt" in capsys.readouterr().out
    (tmp_path / "mirror.ckpt").write_bytes(b"\x80weighs")
    with pytest.raises(UserError, match="SHA-256 is"):
        find_file("lab", tmp_path)

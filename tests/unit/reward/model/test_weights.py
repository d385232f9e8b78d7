"""Weights are found on the machine, in the hub's cache, or the person is told where to get them. Offline."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import reward.model.weights
from db.errors import UserError
from reward.model.config import load_model_config
from reward.model.manifest import WeightsEntry, read_manifest
from reward.model.weights import check_file, find_weights


class Hub:
    """Stands for the Hugging Face hub: what is cached, what can be downloaded, what was asked."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.cached: set[str] = set()
        self.online: set[str] = set()
        self.downloaded: list[str] = []

    def download(self, repo_id: str, filename: str, *, repo_type: str, local_files_only: bool) -> str:
        place = f"{'spaces/' if repo_type == 'space' else ''}{repo_id}/{filename}"
        if place not in self.cached and (local_files_only or place not in self.online):
            raise FileNotFoundError(f"no {place}\nand more")
        if place not in self.cached:
            self.downloaded.append(place)
        path = self.folder / Path(filename).name
        path.write_bytes(b"\x80" + place.encode())
        return str(path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    found = Hub(tmp_path)
    monkeypatch.setattr(reward.model.weights, "hf_hub_download", found.download)
    monkeypatch.setattr(reward.model.weights, "HF_HUB_OFFLINE", False)
    return found


def config(weights, **changes):
    return load_model_config("vit-h-14", weights=weights, **changes)


def test_the_manifest_has_the_published_models():
    manifest = read_manifest()
    assert {"face-reward-model", "hps-v2", "hps-v2.1"} <= set(manifest)
    for entry in manifest.values():
        assert entry.licence
        assert entry.page.startswith("https://")
        assert all(place.endswith(f"/{entry.file}") for place in entry.hub)


def test_a_file_is_itself(hub, tmp_path):
    path = tmp_path / "FaceRewardModel.pth"
    path.write_bytes(b"")
    assert find_weights(config(str(path))) == path


def test_the_cache_comes_before_a_download(hub):
    hub.cached = {"spaces/xswu/HPSv2/HPS_v2_compressed.pt"}
    hub.online = {"xswu/HPSv2/HPS_v2_compressed.pt"}
    assert find_weights(config("hps-v2")).read_bytes() == b"\x80spaces/xswu/HPSv2/HPS_v2_compressed.pt"
    assert hub.downloaded == []


def test_the_next_mirror_is_tried(hub):
    hub.online = {"spaces/xswu/HPSv2/HPS_v2_compressed.pt"}
    assert find_weights(config("hps-v2")).name == "HPS_v2_compressed.pt"
    assert hub.downloaded == ["spaces/xswu/HPSv2/HPS_v2_compressed.pt"]


def test_nothing_is_downloaded_offline(hub, monkeypatch):
    monkeypatch.setattr(reward.model.weights, "HF_HUB_OFFLINE", True)
    hub.online = {"xswu/HPSv2/HPS_v2.1_compressed.pt"}
    with pytest.raises(UserError) as error:
        find_weights(config("hps-v2.1"))
    assert hub.downloaded == []
    for part in ("HF_HUB_OFFLINE", "HPS_v2.1_compressed.pt", "Apache-2.0", "https://huggingface.co/xswu/HPSv2", "path"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_failed_download_says_why_in_one_line(hub):
    with pytest.raises(
        UserError, match=r"no wubin1928/BFR_RL/FaceRewardModel\.pth\)\. Get FaceRewardModel\.pth.*drive"
    ):
        find_weights(config("face-reward-model"))


def test_a_bad_file_leaves_the_cache_and_the_next_mirror_is_tried(hub, monkeypatch, caplog):
    monkeypatch.setattr("metrics.download.constants.HF_HUB_CACHE", str(hub.folder))
    entry = read_manifest()["hps-v2"].model_copy(
        update={"size_bytes": 1 + len("spaces/xswu/HPSv2/HPS_v2_compressed.pt")}
    )
    monkeypatch.setattr(reward.model.weights, "read_manifest", lambda *_: {"hps-v2": entry})
    hub.online = set(entry.hub)
    with caplog.at_level("WARNING"):
        assert find_weights(config("hps-v2")).read_bytes().endswith(b"spaces/xswu/HPSv2/HPS_v2_compressed.pt")
    assert hub.downloaded == entry.hub
    assert "taken out of the Hugging Face cache" in caplog.text
    entry = entry.model_copy(update={"size_bytes": 7})
    monkeypatch.setattr(reward.model.weights, "read_manifest", lambda *_: {"hps-v2": entry})
    with pytest.raises(
        UserError, match=r"xswu/HPSv2/HPS\S+: 32 bytes came, not the 7 .*; spaces/xswu.*: 39 bytes came"
    ):
        find_weights(config("hps-v2"))
    assert not (hub.folder / "HPS_v2_compressed.pt").exists()


def test_a_hub_file_is_named_by_its_place(hub):
    hub.online = {"org/repo/folder/model.safetensors"}
    assert find_weights(config("org/repo/folder/model.safetensors")).name == "model.safetensors"


@pytest.mark.parametrize("preset", ["vit-h-14", "vit-l-14", "vit-b-32"])
def test_each_presets_tag_is_one_of_its_architecture(hub, preset):
    shipped = load_model_config(preset)
    with pytest.raises(UserError, match="Weights are missing"):  # and not: there are no such weights
        find_weights(shipped)
    hub.online = {"laion/CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin"}
    assert preset != "vit-h-14" or find_weights(shipped).name == "open_clip_pytorch_model.bin"


def test_an_unknown_name_lists_what_there_is(hub):
    with pytest.raises(UserError, match=r"no weights 'hps-v3'.*hps-v2\.1.*laion2b_s32b_b79k"):
        find_weights(config("hps-v3"))


def test_a_tag_of_the_other_gelu_is_refused(hub):
    with pytest.raises(UserError, match="set architecture to ViT-L-14-quickgelu"):
        find_weights(config("openai", architecture="ViT-L-14"))


def test_a_tag_trained_with_another_normalisation_is_refused(hub):
    with pytest.raises(UserError, match=r"trained with mean \(0\.5, 0\.5, 0\.5\)"):
        find_weights(config("laion2b_s32b_b82k", architecture="ViT-L-14"))


def test_another_files_checksum_or_size_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(b"\x80bc")
    right = hashlib.sha256(b"\x80bc").hexdigest()
    known = {"file": "w.pth", "description": "", "hub": [], "page": "", "licence": ""}
    check_file(path, WeightsEntry(**known, sha256=right, size_bytes=3))
    check_file(path, WeightsEntry(**known))
    with pytest.raises(UserError, match="3 bytes, not the 4"):
        check_file(path, WeightsEntry(**known, size_bytes=4))
    with pytest.raises(UserError, match="SHA-256"):
        check_file(path, WeightsEntry(**known, sha256="0" * 64))

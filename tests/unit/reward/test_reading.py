"""Weight files are read a tensor at a time: in the wanted dtype, without the file beside it, checked beforehand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import reward.model.checkpoint
import reward.model.weights
import training.weights
from db.errors import UserError
from reward.model.checkpoint import build_model, load_model, save_model
from reward.model.config import load_model_config
from reward.model.manifest import read_manifest
from reward.model.weights_folder import WEIGHTS_FOLDER
from reward.score.scorer import find_scorer, load_scorer
from training.weights import map_weights, read_weights

ENTRY = """
[{name}]
file = "mine.pth"
description = "ours"
page = "https://example.org"
licence = "CC0"
sha256 = "{sha256}"
"""
MIB = 2**20


def write(path: Path, state, **save):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path, **save)
    return path


def peak_bytes() -> int:
    """Of this process's memory since the last `forget_peak`."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("needs /proc/self/clear_refs, which this system has not")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_file_is_not_in_memory_beside_what_is_read(tmp_path, monkeypatch, name, dtype):
    monkeypatch.setattr(training.weights, "MAPPED_BYTES", 8 * MIB)
    # tensors so large that each has memory of its own, which goes back to the system with it
    path = write(tmp_path / name, {f"w{number}": torch.ones(10 * MIB) for number in range(4)})  # 160 MiB
    forget_peak()
    before = peak_bytes()
    state = read_weights(path, dtype)
    taken = sum(value.nbytes for value in state.values())
    assert taken == 160 * MIB * dtype.itemsize // 4
    assert peak_bytes() - before < taken + 90 * MIB  # the whole file beside it would be 160


@pytest.mark.parametrize(("name", "save"), [("w.safetensors", {}), ("w.pth", {}), ("w.bin", {"legacy": True})])
def test_numbers_are_the_files_however_often_it_is_opened(tmp_path, monkeypatch, name, save):
    options = {"_use_new_zipfile_serialization": False} if save else {}
    state = {f"w{number}": torch.randn(50) for number in range(9)} | {"n": torch.arange(3)}
    path = write(tmp_path / name, state, **options)
    monkeypatch.setattr(training.weights, "MAPPED_BYTES", 300)
    for dtype in (torch.float32, torch.bfloat16):
        read = read_weights(path, dtype)
        assert list(read) == list(map_weights(path))
        for key, value in state.items():
            expected = value.to(dtype) if value.is_floating_point() else value
            assert torch.equal(read[key], expected)
            assert read[key].dtype == expected.dtype
    chosen = read_weights(path, choose=lambda found: {key[1:]: found[key] for key in ("w7", "w2")})
    assert {key: value.tolist() for key, value in chosen.items()} == {k: state[f"w{k}"].tolist() for k in ("7", "2")}


@pytest.mark.parametrize("text_mode", ["caption", "learned"])
def test_a_model_in_bfloat16_is_the_float32_one_cast(make_model, make_config, tmp_path, text_mode):
    model = make_model(text_mode=text_mode)
    save_model(model, tmp_path)
    half = load_model(tmp_path, torch.bfloat16)
    for name, value in load_model(tmp_path).state_dict().items():
        assert torch.equal(half.state_dict()[name], value.bfloat16())
    write(tmp_path / "w.pth", model.clip.state_dict())
    config = make_config(text_mode=text_mode, weights=str(tmp_path / "w.pth"))
    built = build_model(config, torch.bfloat16)
    assert {p.dtype for p in built.parameters()} == {torch.bfloat16}
    assert built(torch.rand(2, 3, 32, 32), ["a face", None]).isfinite().all()
    assert {p.dtype for p in build_model(make_config(), torch.bfloat16).parameters()} == {torch.bfloat16}


def test_what_does_not_fit_is_told_before_it_is_read(make_model, tmp_path, monkeypatch):
    save_model(make_model(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write(tmp_path / "model.safetensors", {"visual.proj": torch.zeros(1)})
    monkeypatch.setattr(reward.model.checkpoint, "read_weights", lambda *_: pytest.fail("it was read"))
    with pytest.raises(UserError, match=r"visual\.proj is \[1\]|is missing"):
        load_model(tmp_path)


def test_a_scorer_in_bfloat16_has_a_version_of_its_own(make_model, tmp_path):
    save_model(make_model(), tmp_path / "mine")
    single, half = (load_scorer(str(tmp_path / "mine"), "cpu", dtype) for dtype in (torch.float32, torch.bfloat16))
    assert single.version != half.version
    assert find_scorer(f"a={tmp_path / 'mine'}").metric == "reward-a"


def test_the_folders_manifest_adds_and_replaces(tmp_path, monkeypatch):
    monkeypatch.setattr(reward.model.weights, "HF_HUB_OFFLINE", True)
    folder = tmp_path / WEIGHTS_FOLDER
    folder.mkdir()
    for name in ("mine", "face-reward-model"):
        with open(folder / "weights.toml", "a") as stream:
            stream.write(ENTRY.format(name=name, sha256="0" * 64))
        config = load_model_config("vit-h-14", weights=name)
        with pytest.raises(UserError, match=rf"put it into {re.escape(str(folder))}, or anywhere and give its path"):
            reward.model.weights.find_weights(config, folder=folder)
        write(folder / "mine.pth", {})
        assert reward.model.weights.locate_weights(config, folder=folder) == folder / "mine.pth"
        assert find_scorer(name, folder).name == name
        with pytest.raises(UserError, match="SHA-256 is"):
            reward.model.weights.find_weights(config, folder=folder)
        (folder / "mine.pth").unlink()
    assert "mine" in read_manifest(folder)
    assert "mine" not in read_manifest()


@pytest.mark.parametrize(("text", "said"), [("[a]\nfile = 3", "a?file"), ("[a", "not TOML")])
def test_a_folders_manifest_that_is_none_is_named(tmp_path, text, said):
    (tmp_path / "weights.toml").write_text(text)
    with pytest.raises(UserError, match=rf"weights\.toml: .*{said}"):
        read_manifest(tmp_path)

"""Restorers by their names, and the folders that training writes."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: `make install`")

import torch

from refl.restorers.load import load_restorer, method_name
from refl.weights_command import export_file
from runs import UserError


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("tiny", "tiny"),
        ("diffbir-v2.1", "diffbir-v2.1"),
        ("diffbir-v1:diffbir-refl", "diffbir-v1-diffbir-refl"),
        ("diffbir-v1:/models/my tuned.pth", "diffbir-v1-my-tuned"),
        ("osediff", "osediff"),
        ("osediff:osediff-general", "osediff-osediff-general"),
        ("feedforward:gfpgan-v1.4", "gfpgan-v1.4"),
        ("feedforward:weights/GFPGANv1.4.pth", "GFPGANv1.4"),
    ],
)
def test_a_method_is_called_by_what_made_it(asked, name):
    assert method_name(asked) == name


def test_a_folder_of_training_gives_its_name(tmp_path):
    (tmp_path / "run 7" / "step-500").mkdir(parents=True)
    (tmp_path / "run 7" / "step-500" / "trained.json").write_text("{}")
    assert method_name(str(tmp_path / "run 7" / "step-500")) == "run-7-step-500"


@pytest.mark.parametrize("asked", ["gfpgan", "feedforward", "feedforward:", "tiny:x", "diffbir-v3", ""])
def test_an_unknown_name_lists_the_known_ones(asked, tmp_path):
    for call in (method_name, lambda name: load_restorer(name, weights_dir=tmp_path)):
        with pytest.raises(UserError, match=r"tiny, diffbir-v1, diffbir-v2\.1, osediff"):
            call(asked)


def test_a_missing_weight_file_is_named_with_its_page(weights_dir, tmp_path):
    with pytest.raises(UserError, match=r"v2-1_512-ema-pruned\.\w+ is not here \(HF_HUB_OFFLINE.*https://huggingface"):
        load_restorer("diffbir-v1", weights_dir=tmp_path)
    with pytest.raises(UserError, match="published weights of that name"):
        load_restorer("feedforward:nowhere.pth", weights_dir=weights_dir)


@pytest.mark.parametrize("kind", ["control", "lora"])
def test_a_tuned_diffbir_comes_back_from_its_folder(weights_dir, tmp_path, faces, kind):
    restorer = load_restorer("diffbir-v1", weights_dir=weights_dir, steps=2)
    lq = faces(1)
    plain = restorer.restore(lq, [1])
    restorer.set_trainable(kind, rank=2)
    with torch.no_grad():
        for parameter in restorer.trainable_parameters():
            parameter.add_(0.02)
    tuned = restorer.restore(lq, [1])
    restorer.save_trained(tmp_path / kind)
    loaded = load_restorer(str(tmp_path / kind), weights_dir=weights_dir, steps=2)
    assert torch.equal(loaded.restore(lq, [1]), tuned)
    assert not torch.equal(tuned, plain)
    assert loaded.settings["restorer"] == "diffbir-v1"
    assert "trained.safetensors" in loaded.settings["weights"]
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_tuned_control_net_is_exported_as_diffbir_loads_it(weights_dir, tmp_path, faces, capsys):
    restorer = load_restorer("diffbir-v1", weights_dir=weights_dir, steps=2)
    restorer.set_trainable("control")
    with torch.no_grad():
        for parameter in restorer.trainable_parameters():
            parameter.add_(0.02)
    restorer.save_trained(tmp_path / "tuned")
    export_file([str(tmp_path / "tuned"), str(tmp_path / "out" / "control.pth")])
    published = torch.load(weights_dir / "v1_face.pth")
    exported = torch.load(tmp_path / "out" / "control.pth")
    assert f"{len(published)} tensors" in capsys.readouterr().out
    assert {key: value.shape for key, value in exported.items()} == {k: v.shape for k, v in published.items()}
    assert all(torch.equal(value, published[key] + 0.02) for key, value in exported.items())
    again = load_restorer(f"diffbir-v1:{tmp_path / 'out' / 'control.pth'}", weights_dir=weights_dir, steps=2)
    assert torch.equal(again.restore(faces(1), [1]), restorer.restore(faces(1), [1]))


def test_adapters_are_no_control_net_to_export(weights_dir, tmp_path):
    restorer = load_restorer("diffbir-v1", weights_dir=weights_dir)
    restorer.set_trainable("lora", rank=1)
    restorer.save_trained(tmp_path)
    with pytest.raises(UserError, match="LoRA adapters"):
        export_file([str(tmp_path), str(tmp_path / "control.pth")])
    with pytest.raises(UserError, match="weights export FOLDER FILE"):
        export_file([str(tmp_path)])


def test_a_tuned_folder_in_bfloat16(weights_dir, tmp_path, faces):
    restorer = load_restorer("diffbir-v1", weights_dir=weights_dir, steps=2)
    restorer.set_trainable("lora", rank=2)
    restorer.save_trained(tmp_path)
    loaded = load_restorer(str(tmp_path), weights_dir=weights_dir, steps=2, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.unet.parameters()} == {torch.bfloat16}
    assert loaded.restore(faces(1), [1]).isfinite().all()

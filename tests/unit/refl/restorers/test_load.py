"""Restorers by their names, and the folders that training writes."""

from __future__ import annotations

import pytest
import torch

import refl.restorers.diffbir
from db.errors import UserError
from refl.restore.methods import LoadOptions, check_methods, name_methods
from refl.restorers.command import export_file
from refl.restorers.load import ADAPTERS, get_restorer_files, load_restorer, method_name


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
        ("onnx:gfpgan-v1.4-onnx", "gfpgan-v1.4-onnx"),
        ("onnx:weights/GFPGANv1.4.onnx", "GFPGANv1.4-onnx"),
        ("onnx:GFPGANv1.4.fp16.onnx", "GFPGANv1.4.fp16-onnx"),
    ],
)
def test_a_method_is_called_by_what_made_it(asked, name):
    assert method_name(asked) == name


def test_a_folder_of_training_gives_its_name(tmp_path):
    (tmp_path / "run 7" / "step-500").mkdir(parents=True)
    (tmp_path / "run 7" / "step-500" / "trained.json").write_text("{}")
    assert method_name(str(tmp_path / "run 7" / "step-500")) == "run-7-step-500"


@pytest.mark.parametrize(
    "asked", ["gfpgan", "feedforward", "feedforward:", "onnx", "onnx:", "tiny:x", "diffbir-v3", ""]
)
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
    export_file([str(tmp_path / "tuned"), str(tmp_path / "out" / "control.pth")], weights_dir)
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
        export_file([str(tmp_path), str(tmp_path / "control.pth")], weights_dir)
    with pytest.raises(UserError, match="weights export FOLDER FILE"):
        export_file([str(tmp_path)], weights_dir)


def test_a_tuned_folder_in_bfloat16(weights_dir, tmp_path, faces):
    restorer = load_restorer("diffbir-v1", weights_dir=weights_dir, steps=2)
    restorer.set_trainable("lora", rank=2)
    restorer.save_trained(tmp_path)
    loaded = load_restorer(str(tmp_path), weights_dir=weights_dir, steps=2, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.unet.parameters()} == {torch.bfloat16}
    assert loaded.restore(faces(1), [1]).isfinite().all()


def tune(restorer, folder):
    """Adapters with numbers that bfloat16 has not."""
    restorer.set_trainable("lora", rank=2)
    with torch.no_grad():
        for parameter in restorer.trainable_parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    restorer.save_trained(folder)


@pytest.mark.parametrize("asked", ["diffbir-v1", "diffbir-v2.1", "osediff"])
def test_loading_in_bfloat16_is_loading_in_float32_and_casting(weights_dir, asked):
    single, half = (load_restorer(asked, weights_dir=weights_dir, dtype=d) for d in (torch.float32, torch.bfloat16))
    stage1 = {f"stage1.{name}" for name, _ in getattr(single, "stage1", torch.nn.Module()).named_parameters()}
    for name, value in single.named_parameters():
        expected = value if name in stage1 else value.bfloat16()
        assert torch.equal(half.get_parameter(name), expected), name
        assert half.get_parameter(name).dtype == expected.dtype


def test_a_part_that_is_trained_stays_float32(weights_dir):
    single = load_restorer("diffbir-v1", weights_dir=weights_dir)
    mixed = load_restorer("diffbir-v1", weights_dir=weights_dir, dtype=torch.bfloat16, keep_float32=("control",))
    assert {name: next(part.parameters()).dtype for name, part in mixed.named_children()} == {
        "unet": torch.bfloat16,
        "vae": torch.bfloat16,
        "text": torch.bfloat16,
        "control": torch.float32,
        "stage1": torch.float32,
    }
    assert all(torch.equal(value, single.control.get_parameter(n)) for n, value in mixed.control.named_parameters())


@pytest.mark.parametrize("asked", ["diffbir-v1", "osediff"])
def test_a_tuned_folders_adapters_are_as_stored_where_asked(weights_dir, tmp_path, faces, asked):
    tune(load_restorer(asked, weights_dir=weights_dir), tmp_path)
    single = load_restorer(str(tmp_path), weights_dir=weights_dir)
    arguments = {"weights_dir": weights_dir, "dtype": torch.bfloat16}
    kept = load_restorer(str(tmp_path), keep_float32=(ADAPTERS,), **arguments)
    rounded = dict(load_restorer(str(tmp_path), **arguments).named_parameters())
    adapters = 0
    for name, value in kept.named_parameters():
        stored = single.get_parameter(name)
        if ".lora_" in name:
            adapters += 1
            assert value.dtype == torch.float32
            assert torch.equal(value, stored)
            assert torch.equal(rounded[name], stored.bfloat16())
        elif not name.startswith("stage1."):
            assert value.dtype == torch.bfloat16
    assert adapters > 10
    assert kept.restore(faces(1), [1]).isfinite().all()


def test_all_missing_files_are_named_before_any_is_read(weights_dir, tmp_path, monkeypatch):
    (tmp_path / "v1_face.pth").symlink_to(weights_dir / "v1_face.pth")
    monkeypatch.setattr(refl.restorers.diffbir, "find_any", lambda *_: pytest.fail("a file was read"))
    with pytest.raises(UserError, match=r"^2 weight files are missing") as caught:
        load_restorer("diffbir-v1", weights_dir=tmp_path)
    said = str(caught.value)
    for part in ("v2-1_512-ema-pruned.safetensors is not here", "face_swinir_v1.ckpt is not here", "--weights"):
        assert part in said
    assert "v1_face" not in said
    with pytest.raises(UserError, match=r"^4 weight files are missing") as caught:
        get_restorer_files(["diffbir-v1", "osediff", "tiny", "feedforward:gfpgan-v1.4"], tmp_path)
    assert str(caught.value).count("v2-1_512-ema-pruned.safetensors is not here") == 1
    get_restorer_files(["diffbir-v1", "osediff", "tiny"], weights_dir)


def test_what_a_restoring_lacks_is_told_before_a_restorer_is_loaded(weights_dir, tmp_path):
    options = LoadOptions(device="cpu", weights=tmp_path)
    with pytest.raises(UserError, match=r"^3 weight files .*RealESRGAN_x2plus\.pth is not here"):
        check_methods(name_methods(["osediff"]), options, ["realesrgan-x2"])
    tune(load_restorer("diffbir-v1", weights_dir=weights_dir), tmp_path / "tuned")
    strong = LoadOptions(device="cpu", weights=weights_dir, strength=0.5)
    check_methods(name_methods([str(tmp_path / "tuned")]), strong)
    with pytest.raises(UserError, match="tuned by LoRA; diffbir-v1 is none"):
        check_methods(name_methods([str(tmp_path / "tuned"), "diffbir-v1"]), strong)
    (tmp_path / "tuned" / "trained.safetensors").unlink()
    with pytest.raises(UserError, match=r"trained\.safetensors"):
        check_methods(name_methods([str(tmp_path / "tuned")]), strong)


def test_a_part_that_does_not_fit_is_told_before_another_is_read(weights_dir, tmp_path, monkeypatch):
    for path in weights_dir.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "v1_face.pth").unlink()
    torch.save(
        {k: v for k, v in torch.load(weights_dir / "v1_face.pth").items() if "zero_convs.3" not in k},
        tmp_path / "v1_face.pth",
    )
    monkeypatch.setattr(refl.restorers.diffbir, "read_weights", lambda *_: pytest.fail("it was read"))
    with pytest.raises(UserError, match=r"v1_face\.pth: not the weights of .*zero_convs\.3\.0\.\w+ is missing"):
        load_restorer("diffbir-v1", weights_dir=tmp_path)

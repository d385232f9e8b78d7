"""What was trained: adapters that start without effect, their strength, and the folder that holds them alone."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from db.errors import UserError

LQ = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def train_a_little(restorer, size: float = 0.3) -> None:
    """Move every trained number."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in restorer.trainable_parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def test_fresh_adapters_change_nothing_and_are_all_that_is_trained(make_micro):
    restorer = make_micro()
    before = restorer.restore(LQ, [0])
    restorer.set_trainable("lora", rank=2)
    assert torch.equal(restorer.restore(LQ, [0]), before)
    named = [name for name, parameter in restorer.named_parameters() if parameter.requires_grad]
    assert named
    assert all(".lora_" in name and name.startswith(("unet.", "control.")) for name in named)
    layer = restorer.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q
    assert layer.lora_A["default"].weight.shape == (2, 8)
    assert layer.scaling["default"] == 1


def test_an_adapter_adds_its_product(make_micro):
    restorer = make_micro()
    restorer.set_trainable("lora", rank=2)
    train_a_little(restorer)
    layer = restorer.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q
    x = torch.randn(3, 8)
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert_close(layer(x), x @ (layer.base_layer.weight + product).T, rtol=1e-4, atol=1e-5)
    restorer.set_lora_strength(0.25)
    assert_close(layer(x), x @ (layer.base_layer.weight + 0.25 * product).T, rtol=1e-4, atol=1e-5)


def test_strength_goes_from_the_untrained_restorer_to_the_trained_one(make_micro):
    restorer = make_micro()
    before = restorer.restore(LQ, [0])
    restorer.set_trainable("lora", rank=2)
    train_a_little(restorer)
    trained = restorer.restore(LQ, [0])
    assert not torch.allclose(trained, before, atol=1e-3)
    restorer.set_lora_strength(0.0)
    assert torch.equal(restorer.restore(LQ, [0]), before)
    assert restorer.settings["lora_strength"] == 0.0
    restorer.set_lora_strength(1.0)
    assert torch.equal(restorer.restore(LQ, [0]), trained)


@pytest.mark.parametrize("kind", ["control", "lora"])
def test_what_was_trained_comes_back_and_nothing_else_is_kept(make_micro, tmp_path, kind):
    restorer = make_micro()
    restorer.set_trainable(kind, rank=2)
    train_a_little(restorer)
    trained = restorer.restore(LQ, [0])
    restorer.save_trained(tmp_path / "tuned")
    kept = sum(parameter.numel() for parameter in restorer.trainable_parameters())
    saved = load_file(tmp_path / "tuned" / "trained.safetensors")
    assert sum(value.numel() for value in saved.values()) == kept
    assert sorted(path.name for path in (tmp_path / "tuned").iterdir()) == ["trained.json", "trained.safetensors"]
    record = json.loads((tmp_path / "tuned" / "trained.json").read_text())
    assert (record["restorer"], record["kind"], record["rank"]) == ("tiny", kind, 2 if kind == "lora" else 0)
    fresh = make_micro()
    assert not torch.allclose(fresh.restore(LQ, [0]), trained, atol=1e-3)
    fresh.load_trained(tmp_path / "tuned")
    assert torch.equal(fresh.restore(LQ, [0]), trained)
    assert fresh.settings != make_micro().settings
    fresh.load_trained(tmp_path / "tuned")  # once more, over the adapters that are there
    assert torch.equal(fresh.restore(LQ, [0]), trained)


def test_a_folder_of_another_restorer_or_with_another_key_is_refused(make_micro, tmp_path):
    restorer = make_micro()
    restorer.set_trainable("control")
    restorer.save_trained(tmp_path)
    path = tmp_path / "trained.safetensors"
    state = load_file(path)
    for name, changed, message in [
        ("unknown", {**state, "control.x": torch.zeros(1)}, "control.x is unknown"),
        ("missing", dict(list(state.items())[1:]), f"{next(iter(state))} is missing"),
        ("shape", {**state, next(iter(state)): torch.zeros(1)}, f"{next(iter(state))} is \\[1\\], not"),
    ]:
        save_file(changed, path)
        with pytest.raises(UserError, match=message):
            make_micro().load_trained(tmp_path)
        assert name
    path.write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="is a text"):
        make_micro().load_trained(tmp_path)
    other = make_micro()
    other.base = "diffbir-v1"
    with pytest.raises(UserError, match="was trained on the restorer 'tiny', not on 'diffbir-v1'"):
        other.load_trained(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "Give a folder"), ("{", "not JSON"), ("[]", "lacks restorer"), ('{"restorer": "tiny"}', "lacks")],
)
def test_a_folder_without_a_record_is_refused(make_micro, tmp_path, text, message):
    if text is not None:
        (tmp_path / "trained.json").write_text(text)
    with pytest.raises(UserError, match=message):
        make_micro().load_trained(tmp_path)


def test_what_makes_no_sense_is_refused(make_micro, tmp_path):
    restorer = make_micro()
    with pytest.raises(ValueError, match="nothing was made trainable"):
        restorer.save_trained(tmp_path)
    with pytest.raises(ValueError, match="no LoRA"):
        restorer.set_lora_strength(0.5)
    with pytest.raises(ValueError, match="rank"):
        restorer.set_trainable("lora", rank=0)
    restorer.set_trainable("lora", rank=2)
    with pytest.raises(ValueError, match="already"):
        restorer.set_trainable("lora", rank=4)

"""Checkpoints come back bit-equal, and whatever is wrong with one is named."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from db.errors import UserError
from reward.model.checkpoint import build_model, load_model, read_architecture, save_model

IMAGES = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
CAPTIONS = ["an old man", None]


@pytest.mark.parametrize("text_mode", ["caption", "fixed", "learned"])
def test_a_checkpoint_comes_back_bit_equal(make_model, tmp_path, text_mode):
    model = make_model(text_mode=text_mode, interpolation="bilinear", antialias=False)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.01)
    save_model(model, tmp_path / "checkpoint")
    (tmp_path / "small.json").unlink()  # a checkpoint needs nothing beside it
    again = load_model(tmp_path / "checkpoint")
    assert again.config == model.config
    ours, theirs = model.state_dict(), again.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in again.parameters()]
    assert torch.equal(model(IMAGES, CAPTIONS), again(IMAGES, CAPTIONS))


def test_loaded_weights_do_not_follow_the_file(make_model, tmp_path):
    model = make_model()
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    model.clip.visual.proj.data.zero_()
    save_model(model, tmp_path)
    assert again.clip.visual.proj.abs().sum() > 0


def save_pth(path, state, wrapped=True):
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    return str(path)


@pytest.mark.parametrize("wrapped", [True, False])
def test_starting_weights_of_the_published_form(make_model, make_config, tmp_path, wrapped):
    model = make_model()
    state = {name: value.half() for name, value in model.clip.state_dict().items()}
    started = build_model(make_config(weights=save_pth(tmp_path / "FaceRewardModel.pth", state, wrapped)))
    for name, value in started.clip.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].float())
    torch.testing.assert_close(started(IMAGES, CAPTIONS), model(IMAGES, CAPTIONS), atol=1e-3, rtol=0)


def test_a_learned_prompt_starts_at_the_loaded_towers_sentence(make_model, make_config, tmp_path):
    model = make_model(text_mode="fixed")
    path = save_pth(tmp_path / "w.pth", model.clip.state_dict())
    started = build_model(make_config(text_mode="learned", weights=path))
    torch.testing.assert_close(started(IMAGES, CAPTIONS), model(IMAGES, CAPTIONS), atol=1e-6, rtol=0)


def test_every_wrong_key_is_named(make_model, make_config, tmp_path):
    state = dict(make_model().clip.state_dict())
    state["module.visual.proj"] = state.pop("visual.proj")
    state["ln_final.weight"] = torch.zeros(17)
    with pytest.raises(UserError) as error:
        build_model(make_config(weights=save_pth(tmp_path / "w.pth", state)))
    for part in (
        "module.visual.proj is unknown",
        "visual.proj is missing",
        "ln_final.weight is [17], not [16]",
        "w.pth",
    ):
        assert part in str(error.value)


def test_a_published_file_is_taken_as_the_papers_model(make_model, tmp_path):
    save_pth(tmp_path / "FaceRewardModel.pth", make_model().clip.state_dict())
    with pytest.raises(UserError, match=r"FaceRewardModel\.pth: not the weights.* is missing.*and \d+ more"):
        load_model(tmp_path / "FaceRewardModel.pth")


@pytest.mark.parametrize("change", ["unknown", "missing", "prompt_vector"])
def test_a_changed_checkpoint_is_refused(make_model, tmp_path, change):
    save_model(make_model(text_mode="learned"), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    if change == "unknown":
        state["attn_mask"] = torch.zeros(77, 77)
    else:
        del state["prompt_vector" if change == "prompt_vector" else "logit_scale"]
    save_file(state, tmp_path / "model.safetensors")
    message = {"unknown": "attn_mask is unknown", "missing": "logit_scale is missing"}
    with pytest.raises(UserError, match=message.get(change, "prompt_vector is missing")):
        load_model(tmp_path)


class Harmful:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return (print, ("harm done",))


def test_code_in_a_checkpoint_is_not_run(make_config, tmp_path, capsys):
    torch.save({"state_dict": {}, "extra": Harmful()}, tmp_path / "w.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Harmful(), protocol=2))
    for name in ("w.pth", "plain.pth"):
        with pytest.raises(UserError, match=r"not loaded since (they|it) could run code"):
            build_model(make_config(weights=str(tmp_path / name)))
    assert "harm" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content"),
    [("w.safetensors", b"no weights"), ("w.pth", b""), ("w.pt", b"PK\x03\x04 damaged"), ("w.bin", b"no weights")],
)
def test_a_damaged_file_is_named(make_config, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        build_model(make_config(weights=str(tmp_path / name)))


def test_a_table_of_something_else_is_refused(make_config, tmp_path):
    torch.save({"state_dict": {"a": 3}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no tensors by name, but a table of state_dict"):
        build_model(make_config(weights=str(tmp_path / "w.pth")))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, r"config\.json: cannot be read"),
        ("config.json", "{", r"config\.json: not JSON"),
        ("config.json", '{"architecture": "tiny"}', r"config\.json: unlocked_image_groups: This is needed"),
        ("architecture.json", '{"embed_dim": 4}', r"lacks vision_cfg, text_cfg"),
        ("model.safetensors", None, r"model\.safetensors: cannot be read"),
    ],
)
def test_a_broken_checkpoint_says_which_file(make_model, tmp_path, file, content, message):
    save_model(make_model(), tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("ViT-Q-1", "There is no architecture 'ViT-Q-1'"),
        ("RN50", "its image tower is not a vision transformer"),
        ("ViT-B-16-SigLIP", "only plain CLIPs"),
        ("convnext_base", "vision_cfg.timm_model_name"),
        ("nowhere.json", "nowhere.json: cannot be read"),
    ],
)
def test_architectures_that_cannot_be_trained_are_refused(make_config, architecture, message):
    with pytest.raises(UserError, match=message):
        build_model(make_config(architecture=architecture))


def test_the_image_size_must_be_whole_patches(make_config):
    with pytest.raises(UserError, match=r"image_size_px is 40, not a multiple of .* patch, 16"):
        build_model(make_config(image_size_px=40))


def test_the_image_size_of_the_config_is_the_towers(make_config):
    assert read_architecture(make_config(image_size_px=64))["vision_cfg"]["image_size"] == 64
    model = build_model(make_config(image_size_px=64))
    assert model.encode_images(IMAGES).shape == (2, 16)


def test_the_same_seed_draws_the_same_weights(make_model):
    first, second = make_model().state_dict(), make_model().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_config_and_architecture_are_readable_json(make_model, tmp_path):
    save_model(make_model(), tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.*")) == [
        "architecture.json",
        "config.json",
        "model.safetensors",
        "small.json",
    ]
    assert json.loads((tmp_path / "config.json").read_text())["unlocked_image_groups"] == 3

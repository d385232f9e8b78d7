"""OSEDiff: its groups of adapters, their merging and its one step against formulas written here; its published file."""

from __future__ import annotations

import copy
import math

import pytest

pytest.importorskip("peft", reason="needs peft: `make install`")

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from db.errors import UserError
from refl.restorers.load import load_restorer
from refl.restorers.one_step import OneStepSettings
from refl.restorers.osediff import OSEDiff
from refl.restorers.osediff_lora import (
    add_adapters,
    group_layers,
    list_encoder_layers,
    load_published_adapters,
    merge_lora,
)
from training.weights import read_checkpoint

HALF_BOUNDS = {torch.bfloat16: 0.02, torch.float16: 0.004}
"""Largest mean difference of pixels in [0, 1] from float32."""
ALIKE = 2e-4
"""Of a pixel in [0, 1] between an image restored alone and in a batch; 2.8e-5 was seen on torch 2.8."""


@pytest.fixture(scope="module")
def published(weights_dir):
    """The restorer of the small published files, adapters merged."""
    return load_restorer("osediff", weights_dir=weights_dir)


@pytest.fixture
def restorer(published):
    """A copy that may be changed."""
    return copy.deepcopy(published)


@pytest.fixture(scope="module")
def content(weights_dir):
    """What the published file holds."""
    return read_checkpoint(weights_dir / "osediff_face.pkl")


@pytest.fixture(scope="module")
def unmerged(weights_dir, published, content):
    """The same restorer with its adapters beside the weights."""
    from refl.published.convert import load_published, split_checkpoint
    from refl.published.shapes import make_unet, make_vae, read_unet_shape
    from training.weights import read_weights

    path = weights_dir / "v2-1_512-ema-pruned.ckpt"
    parts = split_checkpoint(read_weights(path), path)
    unet, vae = make_unet(read_unet_shape(parts.unet, path)), make_vae(parts.vae, path)
    load_published(unet, parts.unet, path)
    load_published(vae, parts.vae, path)
    load_published_adapters(unet, vae, content, path)
    return OSEDiff(unet, vae, published.text, OneStepSettings()).eval()


def group_as_published(unet) -> dict[str, list[str]]:
    """The rule of the published code: by parameter names and patterns."""
    patterns = "to_k to_q to_v to_out.0 conv conv1 conv2 conv_in conv_shortcut conv_out proj_out proj_in ff.net.2"
    groups: dict[str, list[str]] = {"default_encoder": [], "default_decoder": [], "default_others": []}
    for name, _ in unet.named_parameters():
        if "bias" in name or "norm" in name or not any(p in name for p in [*patterns.split(), "ff.net.0.proj"]):
            continue
        if "down_blocks" in name or "conv_in" in name:
            group = "default_encoder"
        elif "up_blocks" in name or "conv_out" in name:
            group = "default_decoder"
        else:
            group = "default_others"
        groups[group].append(name.replace(".weight", ""))
    return groups


def test_full_size_groups_are_the_published_ones():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        )
    ours, theirs = group_layers(unet), group_as_published(unet)
    assert {group: sorted(names) for group, names in ours.items()} == {g: sorted(n) for g, n in theirs.items()}
    assert all(len(names) == len(set(names)) for names in ours.values())
    assert "mid_block.attentions.0.transformer_blocks.0.ff.net.2" in ours["default_others"]
    assert not any(name.startswith("time_emb") for names in ours.values() for name in names)


def test_the_autoencoders_group_is_its_encoder(published):
    layers = list_encoder_layers(published.vae)
    assert "quant_conv" in layers
    assert "encoder.mid_block.attentions.0.to_out.0" in layers
    assert "encoder.down_blocks.0.downsamplers.0.conv" in layers
    assert not [name for name in layers if "decoder" in name or "post_quant" in name or "norm" in name]


def test_every_layer_has_the_adapter_of_its_group_alone_and_it_counts(unmerged):
    groups = {name: adapter for adapter, names in group_as_published(unmerged.unet).items() for name in names}
    layers = {name: layer for name, layer in unmerged.unet.named_modules() if hasattr(layer, "lora_A")}
    assert len(layers) > 20
    for name, layer in layers.items():
        (adapter,) = layer.lora_A
        assert layer.active_adapters == [adapter]
        expected = "encoder" if "down_blocks" in name or "conv_in" in name else "decoder"
        expected = expected if "mid_block" not in name else "others"
        assert adapter == f"default_{expected}", (name, groups.get(name))


def test_a_merged_linear_layer_is_the_formula():
    part = nn.Sequential(nn.Linear(5, 7))
    plain, bias = part[0].weight.detach().clone(), part[0].bias.detach().clone()
    add_adapters(part, {"default_encoder": ["0"]}, rank=2, alpha=8)
    a, b = part[0].lora_A["default_encoder"].weight, part[0].lora_B["default_encoder"].weight
    nn.init.normal_(b)
    expected = plain + 8 / 2 * b.detach() @ a.detach()
    merge_lora(part)
    assert type(part[0]) is nn.Linear
    torch.testing.assert_close(part[0].weight, expected)
    assert torch.equal(part[0].bias, bias)


def test_a_merged_convolution_is_the_formula():
    part = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1))
    image = torch.randn(2, 3, 8, 8)
    plain = part(image).detach()
    add_adapters(part, {"default_others": ["0"]}, rank=2, alpha=8)
    assert torch.equal(part(image), plain)  # fresh adapters change nothing
    down, up = part[0].lora_A["default_others"].weight, part[0].lora_B["default_others"].weight
    nn.init.normal_(up)
    through = nn.functional.conv2d(nn.functional.conv2d(image, down, padding=1), up)
    expected = plain + 8 / 2 * through.detach()
    torch.testing.assert_close(part(image), expected, atol=1e-5, rtol=1e-5)
    merge_lora(part)
    assert type(part[0]) is nn.Conv2d
    torch.testing.assert_close(part(image), expected, atol=1e-5, rtol=1e-5)


def test_merged_restores_as_unmerged(published, unmerged, faces):
    lq = faces(2)
    assert (published.restore(lq, [0, 0]) - unmerged.restore(lq, [0, 0])).abs().max() < 1e-4
    assert not [name for name, _ in published.named_parameters() if "lora" in name]


def test_the_published_numbers_are_the_adapters(unmerged, content):
    state = unmerged.unet.state_dict()
    assert all(torch.equal(state[name], value) for name, value in content["state_dict_unet"].items())
    vae = unmerged.vae.state_dict()
    assert all(torch.equal(vae[name], value) for name, value in content["state_dict_vae"].items())


def test_one_step_is_the_formula(published, faces):
    """z0 = (z - sqrt(1 - a) eps(z, 999)) / sqrt(a), a the product of 1 - beta over all 1000 timesteps."""
    roots = [math.sqrt(0.00085) + i / 999 * (math.sqrt(0.012) - math.sqrt(0.00085)) for i in range(1000)]
    alpha = math.prod(1 - root**2 for root in roots)
    lq = faces(1)
    with torch.no_grad():
        z = published.vae.encode(lq * 2 - 1).latent_dist.mean * 0.18215
        embedding = published.text([""])
        eps = published.unet(z, torch.tensor([999]), embedding).sample
        x0 = (z - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)
        expected = (published.vae.decode(x0 / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(published.restore(lq, [0]), expected, atol=1e-4, rtol=1e-3)


def test_a_seed_changes_nothing_and_a_batch_is_its_images(published, faces):
    lq = faces(4)
    together = published.restore(lq, [1, 2, 3, 4])
    alone = torch.cat([published.restore(lq[i : i + 1], [99]) for i in range(4)])
    assert (together - alone).abs().max() < ALIKE
    assert not published.is_random
    assert published.default_steps == 1


@pytest.mark.parametrize("dtype", HALF_BOUNDS)
def test_half_precision_is_close_to_float32(published, weights_dir, faces, dtype):
    half = load_restorer("osediff", weights_dir=weights_dir, dtype=dtype)
    lq = faces(2)
    assert (half.restore(lq, [0, 0]) - published.restore(lq, [0, 0])).abs().mean() < HALF_BOUNDS[dtype]


def test_its_settings_name_the_files(published):
    assert set(published.settings["weights"]) == {"v2-1_512-ema-pruned.ckpt", "osediff_face.pkl"}
    assert published.settings["restorer"] == "osediff"
    assert published.settings["color_fix"] == "none"


def test_more_steps_are_refused(published, weights_dir, faces):
    with pytest.raises(ValueError, match="one step, not 5"):
        published.restore(faces(1), [0], steps=5)
    with pytest.raises(UserError, match="one step, not 5"):
        load_restorer("osediff", weights_dir=weights_dir, steps=5)


def test_training_reaches_fresh_adapters_alone(restorer, faces):
    lq = faces(1)
    before = restorer.restore(lq, [0])
    restorer.set_trainable("lora", rank=3)
    assert (restorer.restore(lq, [0]) - before).abs().max() < 1e-6
    names = [name for name, parameter in restorer.named_parameters() if parameter.requires_grad]
    assert names
    assert all(".lora_" in name for name in names)
    assert len(restorer.trainable_parameters()) == len(names)
    (restorer(lq) - 0.5).square().mean().backward()
    reached = {
        name.split(".lora_")[0] for name, p in restorer.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert any(name.startswith("vae.encoder") for name in reached)
    assert any(name.startswith("unet.up_blocks") for name in reached)


def test_what_was_trained_goes_to_a_folder_and_back_with_a_strength(restorer, published, weights_dir, tmp_path, faces):
    lq = faces(1)
    restorer.set_trainable("lora", rank=2)
    for name, parameter in restorer.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.05)
    tuned = restorer.restore(lq, [0])
    restorer.save_trained(tmp_path / "tuned")
    loaded = load_restorer(str(tmp_path / "tuned"), weights_dir=weights_dir)
    assert torch.equal(loaded.restore(lq, [0]), tuned)
    assert "trained.safetensors" in loaded.settings["weights"]
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    loaded.set_lora_strength(0)
    plain = published.restore(lq, [0])
    assert (loaded.restore(lq, [0]) - plain).abs().max() < 1e-5
    loaded.set_lora_strength(0.5)
    layer = loaded.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    half = 0.5 * layer.lora_B["default_others"].weight @ layer.lora_A["default_others"].weight
    x = torch.randn(3, half.shape[1])
    torch.testing.assert_close(layer(x), x @ (layer.base_layer.weight + half).T, atol=1e-5, rtol=1e-5)
    loaded.set_lora_strength(1)
    assert torch.equal(loaded.restore(lq, [0]), tuned)


def test_there_is_no_control_net_to_train(restorer):
    with pytest.raises(ValueError, match="no control"):
        restorer.set_trainable("control")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("rank_vae"), "it lacks rank_vae"),
        (lambda c: c["unet_lora_others_modules"].append("mid_block.resnets.7.conv1"), "no layer mid_block.resnets.7"),
        (lambda c: c["state_dict_unet"].pop("conv_in.base_layer.bias"), "conv_in.base_layer.bias is missing"),
        (lambda c: c["state_dict_vae"].update({"encoder.x.lora_A": torch.ones(1)}), "encoder.x.lora_A is unknown"),
        (lambda c: c.update(rank_unet=3), r"lora_A.default_encoder.weight is \[2"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(published, content, change, said, tmp_path):
    changed = copy.deepcopy(content)
    change(changed)
    unet, vae = copy.deepcopy(published.unet), copy.deepcopy(published.vae)
    with pytest.raises(UserError, match=said):
        load_published_adapters(unet, vae, changed, tmp_path / "osediff.pkl")


class Malice:
    """Would write a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"rank_unet": Malice(str(tmp_path / "ran"))}, tmp_path / "osediff.pkl")
    with pytest.raises(UserError, match="could run code"):
        read_checkpoint(tmp_path / "osediff.pkl")
    assert not (tmp_path / "ran").exists()

"""Key tables against the published names and shapes, both directions; what does not fit is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from db.errors import UserError
from refl.published.control import init_from_unet
from refl.published.convert import export_control, load_published, make_key_table, select_control, split_checkpoint
from refl.published.shapes import UNetShape, make_control, make_text_encoder, make_unet, make_vae, read_unet_shape

GOLDEN = Path(__file__).resolve().parents[5] / "shared" / "golden"
SMALL = UNetShape(
    widths=(32, 64, 64), layers_per_block=1, heads=(1, 1, 1), attended=(True, False, True), depth=2, context_width=16
)


@pytest.fixture(scope="module")
def published():
    """Every key and shape of the published files."""
    if not GOLDEN.is_dir():
        pytest.skip("needs ../shared/golden, which is not beside this checkout")
    return json.loads((GOLDEN / "published_shapes.json").read_text())


@pytest.fixture(scope="module")
def full_size(published):
    """The full-size models on the meta device, filled from tensors of the published names and shapes; and these."""
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in published["v2-1_512-ema-pruned.ckpt"].items()}
        control_state = {key: torch.empty(shape) for key, shape in published["v1_face.pth"].items()}
        parts = split_checkpoint(state, "sd.ckpt")
        shape = read_unet_shape(control_state, "v1_face.pth")
        models = {
            "unet": make_unet(read_unet_shape(parts.unet, "sd.ckpt")),
            "vae": make_vae(parts.vae, "sd.ckpt"),
            "text": make_text_encoder(parts.text, "sd.ckpt"),
            "control": make_control(shape, shape.in_channels),
        }
    states = {"unet": parts.unet, "vae": parts.vae, "text": parts.text, "control": control_state}
    for name, model in models.items():
        load_published(model, states[name], name)
    return models, states


def test_every_published_key_has_a_place_and_every_parameter_is_filled(published, full_size):
    models, states = full_size
    counts = {"unet": 686, "vae": 248, "text": 294, "control": 324}
    for name, model in models.items():
        table = make_key_table(model)
        assert len(table) == counts[name] == len(states[name])
        assert sorted(table.values()) == sorted(states[name])
        assert set(dict(model.named_parameters())) <= set(table)
    assert sum(counts.values()) - 324 == len(published["v2-1_512-ema-pruned.ckpt"])


def test_full_size_models_have_the_published_numbers_of_parameters(full_size):
    millions = {name: sum(p.numel() for p in model.parameters()) / 1e6 for name, model in full_size[0].items()}
    assert millions == pytest.approx({"unet": 865.9, "vae": 83.7, "text": 354.0, "control": 363.15}, abs=0.05)


def test_full_size_architecture_is_stable_diffusion_2(full_size):
    config = full_size[0]["unet"].config
    assert config.block_out_channels == (320, 640, 1280, 1280)
    assert config.attention_head_dim == (5, 10, 20, 20)  # numbers of heads
    assert config.cross_attention_dim == 1024
    assert config.down_block_types == (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    assert full_size[0]["control"].config.in_channels == 8
    assert full_size[0]["vae"].config.block_out_channels == (128, 256, 512, 512)
    assert full_size[0]["text"].model.transformer.resblocks[0].attn.num_heads == 16


def test_key_tables_are_those_traced_through_the_original(full_size):
    keymap = json.loads((GOLDEN / "keymap.json").read_text())
    for ours, theirs in (("unet", "unet"), ("control", "controlnet"), ("vae", "vae")):
        assert make_key_table(full_size[0][ours]) == keymap[theirs]


def test_the_exported_full_size_control_net_is_what_diffbir_loads_strictly(published, full_size):
    exported = export_control(full_size[0]["control"])
    assert {key: list(value.shape) for key, value in exported.items()} == published["v1_face.pth"]


def test_the_published_stage_1_fills_swinir(published):
    from refl.restorers.diffbir import load_stage1

    state = {
        key: torch.zeros(shape, dtype=torch.int64 if key.endswith("_index") else torch.float32)
        for key, shape in published["face_swinir_v1.ckpt"].items()
    }
    model = load_stage1(state, "face_swinir_v1.ckpt")
    ours = {key.replace("conv_first.", "conv_first.1."): list(v.shape) for key, v in model.state_dict().items()}
    assert ours == published["face_swinir_v1.ckpt"]
    assert not model.training


def make_small_control():
    torch.manual_seed(0)
    control = make_control(SMALL, 8)
    for parameter in control.parameters():
        torch.nn.init.normal_(parameter)
    return control


@pytest.mark.parametrize("prefix", ["", "control_model.", "module.", "controlnet."])
def test_a_control_net_goes_out_and_back_bit_for_bit(prefix):
    control, other = make_small_control(), make_control(SMALL, 8)
    exported = {f"{prefix}{key}": value for key, value in export_control(control).items()}
    load_published(other, select_control(exported, "tuned.pth"), "tuned.pth")
    state = control.state_dict()
    assert list(other.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


def test_an_older_diffbir_checkpoint_gives_its_control_net():
    exported = export_control(make_small_control())
    whole = {f"control_model.{key}": value for key, value in exported.items()}
    whole |= {"model.diffusion_model.out.2.bias": torch.zeros(4), "preprocess_model.conv_last.bias": torch.zeros(3)}
    assert set(select_control(whole, "whole.ckpt")) == set(exported)


def test_the_control_net_of_a_denoiser_has_its_layout():
    unet, control = make_unet(SMALL), make_control(SMALL, 8)
    init_from_unet(control, unet)
    state = unet.state_dict()
    published = {name: state[key] for key, name in make_key_table(unet).items()}
    shared = [key for key in export_control(control) if key in published]
    exported = export_control(control)
    zero_convolutions = 1 + 3 + 2 + 1  # after conv_in, three blocks, two downsamplings, the middle
    assert len(shared) == len(exported) - 2 * zero_convolutions
    assert all(torch.equal(exported[key], published[key]) for key in shared if key != "input_blocks.0.0.weight")
    assert torch.equal(exported["input_blocks.0.0.weight"][:, :4], published["input_blocks.0.0.weight"])
    assert not exported["input_blocks.0.0.weight"][:, 4:].any()


def test_a_shape_is_read_from_the_tensors():
    exported = export_control(make_control(SMALL, 8))
    read = read_unet_shape(exported, "c.pth", head_width=64)
    assert read == UNetShape(**{**SMALL.__dict__, "in_channels": 8})


def test_a_denoiser_of_another_depth_goes_out_and_back():
    unet, other = make_unet(SMALL), make_unet(SMALL)
    state = unet.state_dict()
    load_published(other, {name: state[key] for key, name in make_key_table(unet).items()}, "unet")
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda state: state.update({"input_blocks.99.0.weight": torch.zeros(1)}),
            "input_blocks.99.0.weight is unknown",
        ),
        (lambda state: state.pop("time_embed.0.bias"), "time_embed.0.bias is missing"),
        (lambda state: state.update({"zero_convs.0.0.bias": torch.zeros(5)}), "zero_convs.0.0.bias is [5], not [32]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, said):
    control = make_small_control()
    state = export_control(control)
    change(state)
    with pytest.raises(UserError) as caught:
        load_published(control, state, Path("v1_face.pth"))
    assert said in str(caught.value)
    assert str(caught.value).startswith("v1_face.pth: ")


def test_of_many_faults_the_first_few_are_named():
    with pytest.raises(UserError, match=r"and \d+ more") as caught:
        load_published(make_small_control(), {}, "empty.pth")
    assert len(str(caught.value)) < 500


def test_a_checkpoint_is_parted_and_its_extras_are_counted():
    state = {
        "model.diffusion_model.out.0.weight": torch.ones(1),
        "first_stage_model.quant_conv.bias": torch.ones(1),
        "cond_stage_model.model.ln_final.bias": torch.ones(1),
        "cond_stage_model.model.attn_mask": torch.ones(1),
    }
    extras = ["betas", "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"]
    extras += [
        "alphas_cumprod_prev",
        "posterior_mean_coef1",
        "model_ema.num_updates",
        "model_ema.diffusion_modelout0bias",
    ]
    parts = split_checkpoint(state | {key: torch.ones(1) for key in extras}, "sd.ckpt")
    assert set(parts.unet) == {"out.0.weight"}
    assert set(parts.vae) == {"quant_conv.bias"}
    assert set(parts.text) == {"ln_final.bias"}
    assert parts.extra == len(extras) + 1


def test_an_unknown_entry_of_a_checkpoint_is_named():
    with pytest.raises(UserError, match=r"lora_te\.q is unknown.*first_stage_model\.\* is missing"):
        split_checkpoint({"model.diffusion_model.out.0.weight": torch.ones(1), "lora_te.q": torch.ones(1)}, "sd.ckpt")


def test_a_file_of_another_kind_is_refused():
    with pytest.raises(UserError, match=r"x\.ckpt: not the weights of a Stable Diffusion denoiser"):
        read_unet_shape({"layer.weight": torch.ones(2, 2)}, "x.ckpt")
    with pytest.raises(UserError, match="autoencoder"):
        make_vae({"layer.weight": torch.ones(2, 2)}, "x.ckpt")
    with pytest.raises(UserError, match="text encoder"):
        make_text_encoder({"layer.weight": torch.ones(2, 2)}, "x.ckpt")

"""The rehearsal's files have the published keys and shapes and load by the published names; its harness watches."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("diffusers", reason="needs diffusers: `make install`")
pytest.importorskip("spandrel", reason="needs spandrel: `make install`")
pytest.importorskip("peft", reason="needs peft: `make install`")

import torch
from diffusers import AutoencoderKL

import experiments.rehearse
import refl.published.weights
from db.errors import UserError
from experiments.published_files import (
    CONTROL,
    PUBLISHED_SHAPES,
    REWARD,
    STABLE_DIFFUSION,
    SWINIR,
    draw_adapters,
    draw_state,
    draw_swinir,
    read_shapes,
    write_files,
)
from experiments.rehearsal_inputs import write_dataset, write_faces
from experiments.rehearse import Step, find_fault, format_row, list_steps, main, run_steps
from experiments.watched_process import watch
from refl.published.convert import TEXT, UNET, VAE, make_key_table
from refl.published.shapes import UNetShape, make_control, make_unet
from refl.published.text_encoder import TextEncoder
from refl.restorers.load import load_restorer
from refl.restorers.osediff_lora import TARGET_ENDS
from refl.tune.data import find_faces
from reward.data import load_dataset
from reward.model.checkpoint import read_architecture
from reward.model.config import load_model_config
from reward.model.model import RewardModel
from training.weights import map_weights

SMALL = UNetShape((64, 128), 1, (1, 2), (True, False), 1, 32)


@pytest.fixture(scope="module")
def published():
    if not PUBLISHED_SHAPES.is_file():
        pytest.skip("needs ../shared/golden/published_shapes.json, which is not beside this checkout")
    return read_shapes()


def shapes_of(state):
    return {key: tuple(value.shape) for key, value in state.items()}


def name_published(model, prefix: str = ""):
    table = make_key_table(model)
    return {f"{prefix}{table[key]}": tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def small_shapes():
    """Keys and shapes of small models in the published layouts."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
        )
        base = name_published(make_unet(SMALL), UNET) | name_published(vae, VAE)
        base |= name_published(TextEncoder(77, 49408, 32, 1, 3, 32), TEXT)
        config = load_model_config("tiny")
        reward = RewardModel(config, read_architecture(config)).clip
        control = name_published(make_control(SMALL, 8))
    from spandrel.architectures.SwinIR import SwinIR

    swinir = SwinIR(img_size=64, embed_dim=30, depths=[2], num_heads=[2], window_size=8, mlp_ratio=2.0, upscale=8,
                    upsampler="nearest+conv", start_unshuffle=8)  # fmt: skip
    stage1 = {key.replace("conv_first.", "conv_first.1."): tuple(v.shape) for key, v in swinir.state_dict().items()}
    return {STABLE_DIFFUSION: base, CONTROL: control, SWINIR: stage1, REWARD: shapes_of(reward.state_dict())}


def test_keys_and_shapes_are_the_published_ones(published):
    for file in (STABLE_DIFFUSION, CONTROL, REWARD):
        assert shapes_of(draw_state(published[file], seed=0, device="meta")) == published[file]
    stage1 = draw_swinir(published[SWINIR], seed=0)
    assert shapes_of(stage1) == published[SWINIR]
    assert stage1["layers.0.residual_group.blocks.0.attn.relative_position_index"].dtype == torch.int64
    assert set(stage1["layers.0.residual_group.blocks.1.attn_mask"].unique().tolist()) == {-100.0, 0.0}


def test_adapters_lie_on_every_layer_of_the_published_denoiser(published):
    content = draw_adapters(published[STABLE_DIFFUSION], seed=0, device="meta")
    assert (content["rank_unet"], content["rank_vae"]) == (4, 4)
    layers = [name for key in content if key.startswith("unet_lora") for name in content[key]]
    assert len(layers) == len(set(layers)) > 200
    assert any(name.endswith(TARGET_ENDS[0]) for name in layers)
    down = content["state_dict_unet"][
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.default_encoder.weight"
    ]
    assert down.shape == (4, 320)
    assert "conv_in.base_layer.weight" in content["state_dict_unet"]


def test_numbers_keep_the_size_of_what_goes_through(small_shapes):
    state = draw_state(small_shapes[STABLE_DIFFUSION], seed=1)
    name = f"{UNET}input_blocks.1.0.in_layers.2.weight"
    assert state[name].std() * prod(state[name].shape[1:]) ** 0.5 == pytest.approx(1, abs=0.05)
    assert torch.equal(state[f"{UNET}out.0.weight"], torch.ones(64))
    assert not state[f"{UNET}out.2.bias"].any()
    again = draw_state(small_shapes[STABLE_DIFFUSION], seed=1)
    assert all(torch.equal(again[key], value) for key, value in state.items())
    zero = draw_state(small_shapes[CONTROL], seed=1)["zero_convs.0.0.weight"]
    assert 0 < zero.std() * zero.shape[1] ** 0.5 < 0.2


@pytest.fixture(scope="module")
def folder(small_shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsal")
    write_files(folder, small_shapes)
    return folder


def test_files_load_by_the_published_names_and_are_checked(folder, small_shapes, monkeypatch):
    monkeypatch.setattr(refl.published.weights, "HF_HUB_OFFLINE", True)
    for asked in ("diffbir-v1", "diffbir-v2.1", "osediff"):
        restorer = load_restorer(asked, weights_dir=folder, dtype=torch.bfloat16)
        restored = restorer.restore(torch.rand(1, 3, 64, 64), [0], 1 if asked == "osediff" else 2)
        assert restored.isfinite().all()
        assert restored.std() > 0
    assert shapes_of(map_weights(folder / REWARD)) == small_shapes[REWARD]
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix != ".toml"}
    write_files(folder, small_shapes)  # what is there stays
    assert written == {name: (folder / name).stat().st_mtime_ns for name in written}
    assert "RANDOM NUMBERS" in (folder / "weights.toml").read_text()


def test_without_the_list_of_shapes_it_says_so(tmp_path, capsys):
    assert main(["--folder", str(tmp_path), "--shapes", str(tmp_path / "none.json")]) == 2
    assert "none.json is not there" in capsys.readouterr().err
    (tmp_path / "some.json").write_text('{"v1_face.pth": {}}')
    with pytest.raises(UserError, match=r"lacks v2-1_512-ema-pruned\.ckpt, face_swinir"):
        read_shapes(tmp_path / "some.json")


def test_inputs_are_faces_with_captions_and_labels(tmp_path):
    write_faces(tmp_path / "faces", 3, 0, size_px=64)
    write_dataset(tmp_path / "dataset", size_px=64)
    assert [bool(face.caption) for face in find_faces(tmp_path / "faces")] == [True] * 3
    pairs = load_dataset(tmp_path / "dataset")
    assert {row.split for row in pairs.rows} == {"train", "val", "test"}
    assert {row.p_a for row in pairs.rows} == {0.0, 1.0}


def test_a_process_is_watched_with_its_children(tmp_path):
    child = "x = bytearray(80 * 2**20); import time; time.sleep(0.6)"
    code = f"import subprocess, sys; open('{tmp_path}/w', 'wb').write(bytes(5 * 2**20)); "
    code += f"subprocess.run([sys.executable, '-c', '''{child}''']); print('done')"
    took = watch([sys.executable, "-c", code], tmp_path / "log.txt")
    assert took.exit_code == 0
    assert took.peak_bytes > 80 * 2**20
    assert (tmp_path / "log.txt").read_text() == "done\n"


def test_a_step_may_be_killed_at_a_word_and_must_be(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments.rehearse, "LIMIT_SECONDS", 60)
    (tmp_path / "sleeper.py").write_text("import time\nprint('step 1 of 2', flush=True)\ntime.sleep(60)")
    (tmp_path / "quick.py").write_text("print('step 2 of 2')")
    (tmp_path / "wrong.py").write_text("import sys\nprint('why')\nsys.exit(2)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    steps = [
        Step(name, (name,), kill_at) for name, kill_at in (("sleeper", "step 1"), ("quick", "step 1"), ("wrong", ""))
    ]
    killed, ended, failed = run_steps(tmp_path, steps)
    assert (killed.took.exit_code, killed.fault) == (-9, "")
    assert ended.fault == "ended before 'step 1': step 2 of 2"
    assert failed.fault == "exit 2: why"
    assert format_row(killed).endswith("| pass |")


def test_restored_images_of_one_colour_fail(tmp_path):
    write_faces(tmp_path / "restored", 1, 0, size_px=8)
    step, output = Step("restore", ("x",), images="restored"), tmp_path / "log.txt"
    output.write_text("")
    took = watch([sys.executable, "-c", ""], output)
    assert find_fault(step, took, tmp_path, output) == ""
    from PIL import Image as PilImage

    PilImage.new("RGB", (8, 8)).save(tmp_path / "restored" / "black.png")
    assert find_fault(step, took, tmp_path, output) == "of one colour: black.png"
    assert find_fault(Step("restore", ("x",), images="none"), took, tmp_path, output) == "no image in none"


def test_every_step_is_a_command_that_there_is():
    from refl.__main__ import main as refl_main
    from reward.__main__ import main as reward_main

    for step in list_steps(Path("/rehearsal")):
        with pytest.raises(SystemExit) as ended:
            {"refl": refl_main, "reward": reward_main}[step.words[0]]([step.words[1], "--help"])
        assert ended.value.code == 0

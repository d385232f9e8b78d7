"""`python -m refl pretrain`: settings from preset, file and flags, a run with progress, the same command again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("diffusers", reason="needs diffusers: `make install`")

from refl.__main__ import main
from refl.restorers.tiny import load_tiny
from runs.hold import hold_folder

MICRO = """
[model]
image_size_px = 16
stage1_channels = [4, 4, 8]
vae_channels = [4, 4, 8]
latent_channels = 3
unet_channels = [8, 8, 8]
norm_groups = 4
vae_norm_groups = 2
prompt_tokens = 2
prompt_channels = 8
steps = 4

[train]
stage1_steps = 2
vae_steps = 2
diffusion_steps = 2
batch_size = 2
diffusion_batch_size = 2
small_variants = 1
blur_kernel_px = 5
held_out_share = 0.3
precision = "fp32"
device = "cpu"
"""


@pytest.fixture
def faces(tmp_path) -> Path:
    """Twelve pictures."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        PilImage.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def run(data: Path, *words: str) -> int:
    return main(["pretrain", "--data", str(data), *words])


def test_a_run_trains_and_the_same_command_is_done_at_once(data, faces, tmp_path, capsys):
    config = tmp_path / "micro.toml"
    config.write_text(MICRO)
    command = ["--config", str(config), "--faces", str(faces), "--data-terms", "Made by a test."]
    assert run(data, *command) == 0
    (out,) = (data / "restorers").iterdir()
    assert out.name.startswith("micro-")
    assert capsys.readouterr().out.strip() == f"the restorer is {out}"
    restorer = load_tiny(out)
    assert restorer.image_size_px == 16
    assert "Made by a test." in (out / "README.md").read_text()
    record = json.loads((out / "training.json").read_text())
    assert record["step"] == 2
    assert sum(record["faces"].values()) == 12
    lines = [json.loads(line) for line in (data / "runs" / "1" / "progress.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["done"], line["total"]) for line in lines] == [
        (phase, 2, 2) for phase in ("stage1", "vae", "diffusion")
    ]
    before = (out / "model.safetensors").read_bytes()
    assert run(data, *command) == 0
    assert (out / "model.safetensors").read_bytes() == before
    assert not (data / "runs" / "2" / "progress.jsonl").exists()
    assert run(data, *command, "--eta", "0.5") == 0  # other settings, another folder
    assert len(list((data / "restorers").iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "tiny"], "No faces are named. Give --faces DIR"),
        (["--preset", "tiny", "--faces", "absent"], "no such folder"),
        (
            ["--preset", "tiny", "--faces", "FACES", "--batch-size", "many"],
            "--batch-size: Give a whole number, got 'many'",
        ),
        (["--preset", "tiny", "--faces", "FACES", "--crop-scale", "1", "0.5"], "crop_scale: the low end comes first"),
        (["--config", "absent.toml", "--faces", "FACES"], "There is no preset 'absent.toml'. Name one of tiny"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(data, faces, capsys, words, message):
    assert run(data, *[str(faces) if word == "FACES" else word for word in words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model", "not TOML"),
        ("[model]\n", "has no table [train]"),
        (MICRO + "\n[other]\n", "'other' is unknown"),
        (MICRO + "batch = 3\n", "batch: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_file_is_named(data, faces, tmp_path, capsys, text, message):
    config = tmp_path / "wrong.toml"
    config.write_text(text)
    assert run(data, "--config", str(config), "--faces", str(faces)) == 2
    error = capsys.readouterr().err
    assert str(config) in error
    assert message in error


def test_every_setting_has_a_flag_and_a_unit(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    said = capsys.readouterr().out
    for flag in ("--diffusion-steps", "--blur-sigma-px", "--checkpoint-every-seconds", "--latent-channels", "--phase"):
        assert flag in said


def test_two_runs_never_share_a_phase(data, faces, tmp_path, capsys):
    config, out = tmp_path / "micro.toml", tmp_path / "out"
    config.write_text(MICRO)
    command = ["--config", str(config), "--faces", str(faces), "--out", str(out)]
    with hold_folder(out / "stage1"):
        assert run(data, *command) == 2
        assert f"error: Another run writes into {out / 'stage1'} (process " in capsys.readouterr().err
        assert run(data, *command, "--phase", "vae") == 0  # may be trained beside the first
        assert run(data, *command, "--phase", "diffusion") == 2  # reads what is being written
        assert f"Another run writes into {out / 'stage1'}" in capsys.readouterr().err
    assert not (out / "stage1" / "last").exists()


def test_a_setting_that_a_newer_version_adds_or_drops_strands_no_training(data, faces, tmp_path, capsys):
    config, out = tmp_path / "micro.toml", tmp_path / "out"
    config.write_text(MICRO)
    command = ["--config", str(config), "--faces", str(faces), "--out", str(out), "--phase", "stage1"]
    assert run(data, *command) == 0
    path = out / "stage1" / "last" / "training.json"
    record = json.loads(path.read_text())
    del record["train"]["weight_decay"], record["model"]["layers"]
    record["train"]["of_long_ago"] = 3
    path.write_text(json.dumps(record))
    assert run(data, *command, "--stage1-steps", "3") == 0
    assert run(data, *command, "--stage1-steps", "3", "--weight-decay", "0.5") == 2
    assert "was trained with weight_decay" in capsys.readouterr().err

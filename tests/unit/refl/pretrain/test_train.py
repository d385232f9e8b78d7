"""Pretraining on a few small faces: data, the exact continuation, the folder that it leaves, and its errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from safetensors.torch import load_file

from db.errors import UserError
from refl.pretrain.config import PretrainConfig
from refl.pretrain.data import cut_square, load_faces, make_batch, make_pairs, read_ahead, scale_degradation
from refl.pretrain.phases import Training, diffusion_loss
from refl.pretrain.train import compute_learning_rate, pretrain
from refl.restorers.tiny import load_tiny, make_tiny, read_tiny_config
from runs.store import RunStopped


def make_config(**fields: object) -> PretrainConfig:
    defaults = {
        "stage1_steps": 3,
        "vae_steps": 3,
        "diffusion_steps": 4,
        "batch_size": 4,
        "diffusion_batch_size": 4,
        "large_share": 0.4,
        "warmup_steps": 2,
        "small_variants": 2,
        "blur_kernel_px": 5,
        "held_out_share": 0.3,
        "validate_faces": 3,
        "log_every_steps": 2,
        "validate_every_steps": 2,
        "precision": "fp32",
        "device": "cpu",
    }
    return PretrainConfig(**{**defaults, **fields})


def make_faces(folder: Path) -> Path:
    """Twelve smooth pictures of several sizes and shapes, some in a folder below."""
    (folder / "more").mkdir(parents=True)
    for number in range(12):
        rng = np.random.default_rng(number)
        small = PilImage.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        name = f"face{number}.png" if number < 8 else f"more/face{number}.jpg"
        small.resize((40 + number, 36), PilImage.Resampling.BICUBIC).save(folder / name)
    return folder


@pytest.fixture
def faces_folder(tmp_path) -> Path:
    return make_faces(tmp_path / "faces")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, micro) -> Path:
    """What a training of all phases leaves that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train(make_faces(folder / "faces"), folder / "out", micro, make_config())
    return folder / "out"


def train(folder: Path, out: Path, model, config, progress=lambda *_: None, only=None) -> dict:
    trained, held_out, digest = load_faces([folder], model.image_size_px, config)
    return pretrain(trained, held_out, digest, model, config, out, progress, only)


def test_faces_are_split_by_name_and_the_hash_is_of_names_and_contents(faces_folder):
    trained, held_out, digest = load_faces([faces_folder], 16, make_config())
    assert sorted(trained.names + held_out.names) == sorted(
        [f"face{n}.png" for n in range(8)] + [f"more/face{n}.jpg" for n in range(8, 12)]
    )
    assert trained.images.shape[1:] == (38, 38, 3)  # twice 16 over the smallest crop, 0.85
    assert load_faces([faces_folder], 16, make_config())[2] == digest
    (faces_folder / held_out.names[0]).rename(faces_folder / "another.png")
    assert load_faces([faces_folder], 16, make_config())[2] != digest


def test_the_middle_square_is_cut():
    image = np.zeros((4, 8, 3), dtype=np.uint8)
    image[:, 2:6] = 255
    assert cut_square(image, 4).min() == 255
    assert cut_square(image.transpose(1, 0, 2), 2).shape == (2, 2, 3)


def test_a_batch_is_a_function_of_its_step_in_threads_too(faces_folder):
    faces, _, _ = load_faces([faces_folder], 16, make_config())
    config = make_config(workers=2)
    ahead = list(read_ahead(faces, 16, config, range(3, 9), 0))
    sizes = set()
    for step, (batch, seed) in zip(range(3, 9), ahead, strict=True):
        again, same_seed = make_batch(faces, 16, config, step, 0)
        assert np.array_equal(batch.hq, again.hq)
        assert np.array_equal(batch.lq, again.lq)
        assert seed == same_seed
        assert not np.array_equal(batch.hq, batch.lq)
        sizes.add(batch.hq.shape)
    assert sizes == {(4, 16, 16, 3), (1, 32, 32, 3)}
    assert not np.array_equal(ahead[0][0].hq, make_batch(faces, 16, config, 3, 1)[0].hq)  # another phase


def test_what_a_face_loses_is_the_same_at_both_sizes(faces_folder):
    small, large = (scale_degradation(make_config(), scale) for scale in (1, 2))
    assert large.blur_sigma_px == (0.4, 4.0)
    assert large.downsample_factor == (1.0, 8.0)
    assert (small.blur_kernel_px, large.blur_kernel_px) == (5, 11)
    assert large.noise_std == small.noise_std
    faces, _, _ = load_faces([faces_folder], 16, make_config())
    assert np.array_equal(make_pairs(faces, 16, make_config()).lq, make_pairs(faces, 16, make_config()).lq)


def test_the_rate_rises_stays_and_falls():
    config = make_config(warmup_steps=3, decay_share=0.5)
    rates = [compute_learning_rate(step, 8, 1.0, config) for step in range(8)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25])


class StopAfter:
    """A progress function that asks the training to stop, as SIGTERM does, once a phase has come this far."""

    def __init__(self, phase: str, step: int) -> None:
        self.phase, self.step = phase, step

    def __call__(self, phase: str, done: int, *_: object) -> None:
        if (phase, done) == (self.phase, self.step):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("phase", "step"), [("stage1", 2), ("vae", 2), ("diffusion", 2)])
def test_a_stopped_training_continues_bit_by_bit(faces_folder, tmp_path, micro, whole, phase, step):
    assert threading.current_thread() is threading.main_thread()
    config = make_config()
    with pytest.raises(RunStopped):
        train(faces_folder, tmp_path / "parts", micro, config, StopAfter(phase, step))
    stopped = torch.load(tmp_path / "parts" / phase / "last" / "state.pt", weights_only=True)
    assert stopped["step"] == step + 1
    train(faces_folder, tmp_path / "parts", micro, config)
    assert_same_weights(whole, tmp_path / "parts")
    ends = [torch.load(n / "diffusion" / "last" / "state.pt", weights_only=True) for n in (whole, tmp_path / "parts")]
    assert all(torch.equal(*both) for both in zip(*(end["weights"] for end in ends), strict=True))


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_phases_can_be_trained_apart_and_give_the_same(faces_folder, tmp_path, micro, whole):
    config = make_config()
    with pytest.raises(UserError, match=r"stage1: 0 of 3 steps\. Train this phase first"):
        train(faces_folder, tmp_path / "apart", micro, config, only="diffusion")
    for phase in ("vae", "stage1", "diffusion"):
        assert list(train(faces_folder, tmp_path / "apart", micro, config, only=phase)) == [phase]
    assert_same_weights(whole, tmp_path / "apart")


def test_the_folder_is_a_restorer_whose_latents_have_unit_variance(faces_folder, tmp_path, micro):
    told = []
    measured = train(faces_folder, tmp_path / "out", micro, make_config(), lambda *line: told.append(line))
    assert list(measured) == ["stage1", "vae", "diffusion"]
    restorer = load_tiny(tmp_path / "out")
    assert restorer.restore(torch.rand(1, 3, 32, 48), [0]).shape == (1, 3, 32, 48)
    assert restorer.settings["weights"].keys() == {"model.safetensors"}
    kept = torch.load(tmp_path / "out" / "diffusion" / "latents" / "state.pt", weights_only=True)
    assert kept["small"][:, 0].float().std() == pytest.approx(1, abs=0.02)
    assert read_tiny_config(tmp_path / "out").scaling_factor == kept["scaling_factor"] != 1
    assert [(phase, done) for phase, done, _, _ in told] == [
        *(("stage1", done) for done in (2, 3)),
        *(("vae", done) for done in (2, 3)),
        *(("diffusion", done) for done in (2, 4)),
    ]
    assert told[-1][3].keys() >= {"loss", "val/psnr", "val/ssim", "val/gmsd_lq"}


def test_the_third_phases_loss_is_the_weighted_squared_error(faces_folder, tmp_path, micro):
    """Of a denoiser that always says 0: min(SNR, cap) / (SNR + 1) times the mean of v²."""
    config = make_config(large_share=0.0, trained_fraction=0.5)
    restorer = make_tiny(micro)
    with torch.no_grad():
        restorer.unet.conv_out.weight.zero_()
        restorer.unet.conv_out.bias.zero_()
    latents = torch.randn(5, 2, 3, 4, 4)
    training = Training(
        restorer, micro, config, None, None, {}, tmp_path, torch.device("cpu"), print, {}, {1: latents.half()}
    )
    rng = np.random.default_rng([config.seed, 2, 11])  # as the step draws
    rng.random()
    chosen, timesteps = rng.integers(0, 5, 4), rng.integers(0, 500, 4)
    noise = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
    expected = 0.0
    for place, timestep, eps in zip(chosen, timesteps, noise, strict=True):
        alpha = float(restorer.alphas[timestep])
        v = alpha**0.5 * eps - (1 - alpha) ** 0.5 * latents[place, 0].half().float()
        snr = alpha / (1 - alpha)
        expected += min(snr, 5.0) / (snr + 1) * float((v**2).mean()) / 4
    assert float(diffusion_loss(training, None, 11).detach()) == pytest.approx(expected, rel=1e-4)


def test_other_settings_or_faces_do_not_continue(faces_folder, tmp_path, micro):
    train(faces_folder, tmp_path / "out", micro, make_config(), only="vae")
    train(faces_folder, tmp_path / "out", micro, make_config(vae_steps=4, log_every_steps=1), only="vae")
    train(faces_folder, tmp_path / "third", micro, make_config())
    with pytest.raises(UserError, match=r"latents of .*'vae': 3.* now .*'vae': 4.* Move this folder away"):
        train(faces_folder, tmp_path / "third", micro, make_config(vae_steps=4))
    with pytest.raises(UserError, match=r"trained with kl_weight 0.0002, not 0.1\. Give the same settings"):
        train(faces_folder, tmp_path / "out", micro, make_config(kl_weight=0.1), only="vae")
    path = tmp_path / "out" / "vae" / "last" / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"state\.pt: cannot be read"):
        train(faces_folder, tmp_path / "out", micro, make_config(), only="vae")
    (faces_folder / "face0.png").unlink()
    with pytest.raises(UserError, match="trained on other faces"):
        train(faces_folder, tmp_path / "out", micro, make_config(), only="vae")


def test_faces_that_cannot_be_trained_on_are_named(faces_folder, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_faces([tmp_path / "absent"], 16, make_config())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no PNG, JPEG or WebP"):
        load_faces([tmp_path / "empty"], 16, make_config())
    with pytest.raises(UserError, match="12 faces with held_out_share 1e-06 leave none to measure on"):
        load_faces([faces_folder], 16, make_config(held_out_share=1e-6))
    (faces_folder / "more" / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.jpg"):
        load_faces([faces_folder], 16, make_config())


def test_no_gpu_is_an_error_only_where_one_is_asked_for(faces_folder, tmp_path, micro, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU that torch can use"):
        train(faces_folder, tmp_path / "out", micro, make_config(device="cuda"))


def test_a_training_of_version_0_1_is_continued(faces_folder, tmp_path, micro, whole):
    """It had a phase's record inside state.pt, and the latents in a file of their own."""
    out = tmp_path / "out"
    with pytest.raises(RunStopped):
        train(faces_folder, out, micro, make_config(), StopAfter("diffusion", 2))
    for phase in ("stage1", "vae", "diffusion"):
        last = out / phase / "last"
        state = torch.load(last / "state.pt", weights_only=True)
        record = json.loads((last / "training.json").read_text())
        del record["step"]
        torch.save({**state, "record": json.dumps(record)}, out / phase / "state.pt")
        shutil.rmtree(last)
    (out / "diffusion" / "latents" / "state.pt").rename(out / "diffusion" / "latents.pt")
    shutil.rmtree(out / "diffusion" / "latents")
    told = []
    train(faces_folder, out, micro, make_config(), lambda *line: told.append(line[:2]))
    assert told == [("diffusion", 4)]
    assert_same_weights(whole, out)
    assert not list(out.rglob("latents.pt"))
    assert {file.parent.name for file in out.rglob("state.pt")} == {"last", "latents"}


def test_a_kill_between_the_renames_of_a_checkpoint_loses_nothing(faces_folder, tmp_path, micro, whole):
    out = tmp_path / "out"
    with pytest.raises(RunStopped):
        train(faces_folder, out, micro, make_config(), StopAfter("vae", 2))
    for phase in ("stage1", "vae"):
        (out / phase / "last").rename(out / phase / "last.old")
    told = []
    train(faces_folder, out, micro, make_config(), lambda *line: told.append(line[:2]))
    assert told[0] == ("diffusion", 2)
    assert_same_weights(whole, out)


def test_damaged_latents_are_named(faces_folder, tmp_path, micro):
    train(faces_folder, tmp_path / "out", micro, make_config())
    path = tmp_path / "out" / "diffusion" / "latents" / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"latents/state\.pt: cannot be read .* move the folder away"):
        train(faces_folder, tmp_path / "out", micro, make_config())

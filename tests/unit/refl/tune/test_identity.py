"""The identity term: where it looks, that it tells persons apart, and that it is trained, counted and said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import metrics.face_network
import refl.tune.setup
from metrics.face_network import FaceNetwork, find_face_file
from metrics.lists import MetricError
from refl.__main__ import main
from refl.faces.align import TEMPLATE
from refl.restorers.diffusion import DiffusionRestorer
from refl.tune.ablate import list_variants
from refl.tune.command import TRAIN, list_used
from refl.tune.config import load_refl_config
from refl.tune.data import Face
from refl.tune.identity import IdentityLoss, compute_identity_loss, crop_chips, load_identity
from refl.tune.memory import build_training, name_parts
from refl.tune.setup import list_optimized
from reward.model.checkpoint import read_architecture
from reward.model.config import load_model_config
from runs.options import read_words
from tests.unit.refl.tune.test_refl_train import Brightness, make_config, make_material, run
from training.without_memory import count_fake_training

DLIB_MEAN_FACE = np.array(
    [[0.22699, 0.21599], [0.75484, 0.21599], [0.49013, 0.51563], [0.25415, 0.78023], [0.72610, 0.78023]]
)
"""The five points of the template in dlib's mean face, over its side without the padding of a quarter each way."""


@pytest.fixture(scope="module")
def identity() -> IdentityLoss:
    try:
        find_face_file()
    except MetricError as error:
        pytest.skip(str(error))
    return load_identity("cpu")


@pytest.mark.parametrize("size_px", [64, 512, 1024])
def test_the_templates_points_fall_where_dlib_has_them(size_px: int) -> None:
    along = torch.arange(size_px, dtype=torch.float32)
    ramps = torch.stack([along.expand(size_px, size_px), along[:, None].expand(size_px, size_px)])
    chip = crop_chips(torch.cat([ramps, ramps[:1]])[None])[0]  # each pixel of it says where it comes from
    points = (TEMPLATE + 0.5) * size_px / 512 - 0.5
    for point, mean in zip(points, (DLIB_MEAN_FACE + 0.25) / 1.5 * 150, strict=True):
        column, row = mean.round().astype(int)
        came_from = np.array([float(chip[0, row, column]), float(chip[1, row, column])])
        off_px = np.abs(came_from - point) * 512 / size_px
        assert off_px.max() < 4.5  # a fit of five points, and half a pixel of the chip


def test_a_fine_pattern_is_averaged_and_not_sampled() -> None:
    board = torch.from_numpy(np.indices((512, 512)).sum(axis=0) % 2).float().expand(1, 3, 512, 512)
    assert (crop_chips(board) - 0.5).abs().max() < 0.05


def test_the_same_person_is_nearer_than_another(identity: IdentityLoss, shared_faces: Path) -> None:
    files = sorted((shared_faces / "gt" / "london512").glob("*_neutral.jpg"))[:6]
    both = [
        [cv2.imread(str(f), cv2.IMREAD_COLOR_RGB) for f in (file, Path(str(file).replace("neutral", "smiling")))]
        for file in files
    ]
    first, second = (
        torch.from_numpy(np.stack(one)).permute(0, 3, 1, 2).float() / 255 for one in zip(*both, strict=True)
    )
    with torch.no_grad():
        far = torch.stack([identity(first, second.roll(shift, 0)) for shift in range(6)])
    assert float(far[0].max()) < 0.36 < float(far[1:].mean())
    assert float(far[0].max()) < float(far[1:].min())


def make_face(size_px: int = 96) -> Tensor:
    """(1, 3, S, S) a smooth picture in [0, 1]."""
    small = np.random.default_rng(1).random((6, 6, 3), dtype=np.float32)
    return torch.from_numpy(cv2.resize(small, (size_px, size_px))).permute(2, 0, 1)[None]


def test_its_gradient_is_finite_and_leads_to_the_other_picture(identity: IdentityLoss) -> None:
    other = make_face()
    same = other.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(identity(same, other).sum(), same)
    assert torch.equal(gradient, torch.zeros_like(gradient))  # where a plain distance would have none
    image = other.flip(3).requires_grad_()
    before = identity(image, other.requires_grad_())
    gradient, none = torch.autograd.grad(before.sum(), [image, other], allow_unused=True)
    assert none is None
    assert torch.isfinite(gradient).all()
    after = identity(image - 0.01 * gradient / gradient.norm(), other)
    assert float(after.detach()) < float(before.detach())


def test_it_computes_in_float32_under_autocast_and_from_bfloat16(identity: IdentityLoss) -> None:
    image, other = make_face().flip(2).bfloat16(), make_face().bfloat16()
    plain = identity(image.float(), other.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = identity(image, other)
    assert found.dtype == torch.float32
    assert torch.equal(found, plain)


@pytest.mark.parametrize("to", ["hq", "input"])
def test_it_is_trained_and_compares_with_what_was_asked(
    micro_restorer: DiffusionRestorer, faces: list[Face], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    seen: list[Tensor] = []

    def stand_in(_device: object) -> Callable[[Tensor, Tensor], Tensor]:
        def compute(restored: Tensor, other: Tensor) -> Tensor:
            seen.append(other)
            return restored.square().mean(dim=(1, 2, 3))

        return compute

    monkeypatch.setattr(refl.tune.setup, "load_identity", stand_in)
    config = make_config(loss={"identity_weight": 2.0, "identity_to": to}, train={"max_steps": 1, "batch_size": 6})
    _, lines = run(micro_restorer, Brightness(), faces, config, tmp_path / "out")
    assert lines[0]["loss"] == pytest.approx(lines[0]["loss/reward"] + lines[0]["loss/identity"])
    assert lines[0]["gradient_norm/identity"] > 0
    sharp = torch.stack(
        [
            torch.from_numpy(
                cv2.resize(cv2.imread(str(f.path), cv2.IMREAD_COLOR_RGB), (16, 16), interpolation=cv2.INTER_AREA)
            )
            for f in faces[:6]
        ]
    )
    off = (seen[0].mean(dim=(1, 2, 3)).sort().values - (sharp.float() / 255).mean(dim=(1, 2, 3)).sort().values).abs()
    assert (float(off.max()) < 1e-5) == (to == "hq")


def test_the_networks_own_gradient_reaches_what_is_trained(
    micro_restorer: DiffusionRestorer, faces: list[Face], tmp_path: Path, identity: IdentityLoss
) -> None:
    del identity  # skips where the weights are not here
    config = make_config(loss={"reward_weight": 0, "identity_weight": 1.0}, train={"max_steps": 1, "batch_size": 2})
    _, lines = run(micro_restorer, Brightness(), faces, config, tmp_path / "out")
    assert lines[0]["loss"] == lines[0]["loss/identity"] > 0
    assert lines[0]["gradient_norm"] == pytest.approx(lines[0]["gradient_norm/identity"], rel=1e-3)
    assert lines[0]["gradient_norm"] > 0


def test_at_weight_0_nothing_is_loaded(
    micro_restorer: DiffusionRestorer, faces: list[Face], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics.face_network, "PACKAGE", "no-such-package")
    _, lines = run(micro_restorer, Brightness(), faces, make_config(train={"max_steps": 1}), tmp_path / "out")
    assert "loss/identity" not in lines[0]


def test_without_the_package_training_ends_with_one_line_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics.face_network, "PACKAGE", "no-such-package")
    words = ["train", "--preset=tiny-refl", "--restorer=tiny", "--reward=no-such-reward", "--identity-weight=1"]
    assert main([*words, f"--data={tmp_path}"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "The identity term cannot be computed." in last
    assert "pip install no-such-package. Or set identity_weight to 0." in last


def test_its_memory_is_counted() -> None:
    """Of the term alone: a whole step's count takes seconds."""
    reward = load_model_config("tiny")
    config = load_refl_config("tiny-refl", {"loss": {"identity_weight": 1.0}})
    with count_fake_training("cpu") as count:
        training = build_training(config, "tiny", reward, read_architecture(reward), "cpu")
        name_parts(count, training)
        assert training.identity is not None
        with count.phase("step"):
            faces = torch.zeros(2, 4, 3, 128, 128).unbind()
            training.identity(faces[0].requires_grad_(), faces[1]).sum().backward()
    phase = count.phases["step"]
    weights = 4 * sum(parameter.numel() for parameter in FaceNetwork().parameters())
    assert phase.at_peak["face network"] == pytest.approx(weights, rel=2e-3)  # blocks of 512 bytes
    assert phase.at_peak["activations"] > 4 * 4 * 32 * 72 * 72  # the first convolution's of four faces


def test_ablation_has_a_variant_without_it_where_it_is_on() -> None:
    names = [
        [
            variant.name
            for variant in list_variants(load_refl_config("paper", {"loss": {"identity_weight": weight}}), False)
        ]
        for weight in (0.0, 0.5)
    ]
    assert set(names[1]) - set(names[0]) == {"no identity term"}


def test_a_run_records_the_licence_of_its_weights() -> None:
    words = ["--preset=tiny-refl", "--restorer=tiny", "--reward=tiny", "--perceptual=gmsd"]
    assert list_used(read_words(TRAIN, words)) == []
    used = list_used(read_words(TRAIN, [*words, "--identity-weight=0.1"]))
    assert used == [{"kind": "face network", "value": "dlib"}]
    from pathlib import Path as AnyPath

    from runs.licences import find_licences

    found = find_licences(used, AnyPath())
    assert ("dlib_face_recognition_resnet_model_v1.dat", "CC0-1.0") in {(one.name, one.licence) for one in found}


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_the_monitor_does_not_judge_by_what_the_term_optimises(
    micro_restorer: DiffusionRestorer, faces: list[Face], weight: float
) -> None:
    material = make_material(micro_restorer, Brightness(), faces)
    optimized = list_optimized(material, make_config(loss={"identity_weight": weight}))
    assert ("identity" in optimized) == bool(weight)


def test_compute_takes_any_network() -> None:
    """Hand-worked: a network that sums the pixels of two flat pictures, 0.1 apart."""

    class Sum(torch.nn.Module):
        def forward(self, chips: Tensor) -> Tensor:
            return chips.sum(dim=(1, 2, 3))[:, None]

    pictures = [torch.full((2, 3, 32, 32), value) for value in (0.5, 0.4)]
    expected = (0.1 * 3 * 150 * 150) ** 2
    assert compute_identity_loss(Sum(), *pictures).tolist() == pytest.approx([expected] * 2, rel=1e-3)

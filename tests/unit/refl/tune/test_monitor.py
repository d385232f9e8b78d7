"""The hacking monitor: its own judges, checks that compare with the first, processes that share them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image as PilImage
from torch import Tensor, nn

import refl.tune.monitor
from refl.tune.config import load_refl_config
from refl.tune.detectors import compute_contrast, compute_high_frequency, compute_saturation
from refl.tune.monitor import (
    Monitor,
    choose_judges,
    judge,
    to_bytes,
)
from refl.tune.setup import list_optimized
from refl.tune.training import Material
from reward.model.reward_set import RewardSet
from reward.model.set_config import Member, SetConfig
from tests.forked import run_two
from tests.unit.refl.conftest import make_micro_restorer

JUDGES = ["psnr", "saturation", "contrast"]


def make_monitor(faces: int = 3, judges_needed: int = 2, batch_size: int = 2) -> Monitor:
    generator = torch.Generator().manual_seed(0)
    hq = torch.rand(faces, 3, 32, 32, generator=generator)
    return Monitor(hq * 0.5, hq, list(range(faces)), JUDGES, judges_needed, batch_size)


def mean_reward(images: Tensor, _places: Sequence[int]) -> Tensor:
    return images.mean(dim=(1, 2, 3))


def inverse_reward(images: Tensor, _places: Sequence[int]) -> Tensor:
    return -images.mean(dim=(1, 2, 3))


def make_restore(factor: float) -> Callable[[Tensor, Sequence[int]], Tensor]:
    """A restorer that gives the ground truth times a factor."""

    def restore(lq: Tensor, _seeds: Sequence[int]) -> Tensor:
        return lq * 2 * factor

    return restore


def test_own_judges_are_zero_for_the_ground_truth_and_fall_with_saturation_contrast_and_grids() -> None:
    torch.manual_seed(0)
    hq = torch.rand(2, 3, 16, 16) * 0.5 + 0.25
    names = ["saturation", "contrast", "high_frequency"]
    assert all(np.allclose(values, 0, atol=1e-6) for values in judge(names, hq, hq).values())
    gray = hq.mean(dim=1, keepdim=True)
    vivid = gray + 1.5 * (hq - gray)  # each pixel's largest minus smallest channel grows by one half, the luma stays
    assert judge(names, vivid, hq)["saturation"] == pytest.approx(-np.log(1.5), abs=1e-5)
    assert judge(names, vivid, hq)["contrast"] == pytest.approx(0, abs=1e-5)
    assert compute_saturation(vivid) == pytest.approx(1.5 * compute_saturation(hq), rel=1e-5)
    assert judge(names, 0.5 + 0.8 * (hq - 0.5), hq)["contrast"] == pytest.approx(np.log(0.8), abs=1e-5)
    checkerboard = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8)
    flat = torch.full((1, 3, 16, 16), 0.5)
    assert compute_contrast(flat + 0.1 * checkerboard) == pytest.approx(0.1, rel=1e-4)
    # all its power, 0.01 a pixel, is at half a cycle a pixel
    assert compute_high_frequency(flat + 0.1 * checkerboard) == pytest.approx(0.01, rel=1e-3)
    assert compute_high_frequency(flat) < 1e-7


def test_what_is_optimised_is_no_judge_and_a_spare_of_its_family_takes_its_place() -> None:
    images = to_bytes(torch.rand(2, 3, 64, 64))

    def judges(*optimized: str) -> list[str]:
        found = choose_judges(optimized, images)
        assert not set(found) & set(optimized)
        return found

    assert judges()[:3] == judges("lpips")[:3] == ["psnr", "ssim", "gmsd"]
    assert judges("gmsd")[:3] == ["psnr", "ssim", "fsim"]
    assert judges("ssim", "psnr")[:3] == ["gmsd", "fsim", "vif"]
    assert judges("ms_ssim", "psnr", "gmsd")[:2] == ["fsim", "vif"]  # whoever optimises MS-SSIM optimises SSIM
    assert judges()[-5:] == ["saturation", "contrast", "high_frequency", "grid", "texture"]
    assert judges("identity", "saturation")[-4:] == ["contrast", "high_frequency", "grid", "texture"]


def test_the_members_of_a_reward_set_and_the_perceptual_term_are_optimised() -> None:
    members = tuple(Member(name=name, metric=name, center=0, scale=1) for name in ("psnr", "ssim"))
    numbers = dict.fromkeys(("spread_weight", "unit", "logit_scale", "held_out_spread"), 1.0)
    reward = RewardSet(SetConfig(members=members, images=2, dataset="", **numbers), {})
    material = Material(make_micro_restorer(), reward, [], [])
    config = load_refl_config("tiny-refl")
    assert list_optimized(material, config) == {"gmsd", "psnr", "ssim"}
    without = load_refl_config("tiny-refl", {"loss": {"perceptual_weight": 0, "reward_weight": 0}})
    assert list_optimized(material, without) == set()
    assert list_optimized(replace(material, reward=nn.Identity()), config) == {"gmsd"}


def test_looks_compare_with_the_first_and_rescore_it_by_the_live_model(tmp_path: Path) -> None:
    monitor, accelerator = make_monitor(), Accelerator(cpu=True)
    asked: list[list[int]] = []
    drift = 0.0

    def live(images: Tensor, places: Sequence[int]) -> Tensor:  # its scores drift without any change of the images
        asked.append(list(places))
        return images.mean(dim=(1, 2, 3)) + drift

    rewards = {"live": live, "frozen": mean_reward}
    means, verdict, _ = monitor.check(0, make_restore(1.0), rewards, accelerator)
    assert verdict is None
    assert set(means) == {"live", "frozen", *JUDGES}
    assert asked == [[0, 1], [2]]  # at most batch_size at a time
    drift = 5.0
    _, verdict, _ = monitor.check(10, make_restore(1.0), rewards, accelerator)
    assert verdict is not None
    assert verdict.changes["live"] == (0.0, 0.0)
    _, verdict, restored = monitor.check(20, make_restore(0.8), rewards, accelerator)
    assert verdict is not None
    assert verdict.changes["live"][0] < 0
    assert [row["step"] for row in monitor.history] == [0, 10, 20]
    assert restored.dtype == torch.uint8
    monitor.write_grid(tmp_path / "grids" / "20.png", restored)
    with PilImage.open(tmp_path / "grids" / "20.png") as grid:
        assert grid.size == (3 * 32, 4 * 32)  # a column a face; lq, first, now, hq
        third = np.asarray(grid)[64:96, :32]
    assert np.array_equal(third, to_bytes(monitor.hq[:1] * 0.8)[0])


def test_the_second_suspicious_look_in_a_row_is_hacking_also_after_a_kill(tmp_path: Path) -> None:
    rewards, accelerator = {"live": inverse_reward, "frozen": inverse_reward}, Accelerator(cpu=True)
    monitor = make_monitor()
    monitor.check(0, make_restore(1.0), rewards, accelerator)
    # darker: the reward rises, PSNR, contrast and saturation fall
    _, verdict, _ = monitor.check(1, make_restore(0.6), rewards, accelerator)
    assert verdict is not None
    assert verdict.suspicious
    assert not verdict.hacking
    torch.save(monitor.state_dict(), tmp_path / "monitor.pt")
    continued = make_monitor()
    continued.load_state_dict(torch.load(tmp_path / "monitor.pt", weights_only=True))
    for one in (monitor, continued):
        _, verdict, _ = one.check(2, make_restore(0.6), rewards, accelerator)
        assert verdict is not None
        assert verdict.hacking
    assert continued.history == monitor.history
    assert [bool(row["verdict"] and row["verdict"]["hacking"]) for row in monitor.history] == [False, False, True]
    _, verdict, _ = monitor.check(3, make_restore(1.0), rewards, accelerator)
    assert verdict is not None
    assert not verdict.suspicious
    _, verdict, _ = monitor.check(4, make_restore(0.6), rewards, accelerator)
    assert verdict is not None
    assert not verdict.hacking  # a good check between breaks the row


def test_two_faces_are_enough_and_a_monitor_without_looks_has_no_state() -> None:
    monitor, rewards = make_monitor(faces=2, batch_size=16), {"live": inverse_reward, "frozen": inverse_reward}
    assert monitor.state_dict() is None
    for step in range(3):
        _, verdict, _ = monitor.check(step, make_restore(1 - 0.2 * step), rewards, Accelerator(cpu=True))
    assert verdict is not None
    assert set(verdict.changes) == {"live", "frozen", "reward_gap", *JUDGES}


def test_noise_in_the_weights_is_not_called_hacking() -> None:
    restorer, accelerator = make_micro_restorer(), Accelerator(cpu=True)
    generator = torch.Generator().manual_seed(0)
    hq = torch.rand(6, 3, 16, 16, generator=generator)
    monitor = Monitor(hq * 0.9, hq, list(range(6)), JUDGES, judges_needed=2)
    rewards = {"live": inverse_reward, "frozen": inverse_reward}
    weights = list(restorer.control.parameters())
    kept = [weight.clone() for weight in weights]
    monitor.check(0, restorer.restore, rewards, accelerator)
    for step in range(1, 25):
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value + 1e-3 * value.abs().mean() * torch.randn(value.shape, generator=generator))
        _, verdict, _ = monitor.check(step, restorer.restore, rewards, accelerator)
        assert verdict is not None
        assert not verdict.suspicious


def look_together(folder: Path) -> None:
    accelerator, monitor = Accelerator(cpu=True), make_monitor(faces=3, batch_size=1)
    rewards = {"live": inverse_reward, "frozen": mean_reward}
    for step, factor in enumerate([1.0, 0.6, 0.6]):
        restored = monitor.check(step, make_restore(factor), rewards, accelerator)[2]
    found = {"monitor": monitor.state_dict(), "restored": restored}
    torch.save(found, folder / f"{accelerator.process_index}.pt")


def test_two_processes_share_a_look_and_both_hold_what_one_sees(tmp_path: Path) -> None:
    run_two(tmp_path / "log", look_together, tmp_path)
    monitor, rewards = make_monitor(faces=3), {"live": inverse_reward, "frozen": mean_reward}
    for step, factor in enumerate([1.0, 0.6, 0.6]):
        _, verdict, restored = monitor.check(step, make_restore(factor), rewards, Accelerator(cpu=True))
    assert verdict is not None
    assert verdict.hacking
    alone = monitor.state_dict()
    assert alone is not None
    for process in range(2):
        found = torch.load(tmp_path / f"{process}.pt", weights_only=True)
        assert found["monitor"]["history"] == alone["history"]
        assert torch.equal(found["restored"], restored)
        assert torch.equal(found["monitor"]["first_restored"], alone["first_restored"])
        for part in ("rewards", "judges"):
            assert all(torch.equal(found["monitor"][part][name], values) for name, values in alone[part].items())


def test_judges_compute_in_float32_whatever_surrounds_them() -> None:
    torch.manual_seed(0)
    hq, restored = torch.rand(2, 2, 3, 64, 64)
    names = ["psnr", "ssim", "gmsd", "saturation", "contrast", "high_frequency"]
    plain = judge(names, restored, hq)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(np.array_equal(values, plain[name]) for name, values in judge(names, restored, hq).items())
        half = judge(["saturation", "contrast"], restored.bfloat16(), hq.bfloat16())
    assert all(values.dtype == np.float64 for values in half.values())


def test_a_judge_without_a_number_is_said_and_has_no_vote(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rewards, accelerator = {"live": inverse_reward, "frozen": inverse_reward}, Accelerator(cpu=True)
    monitor = make_monitor(judges_needed=2)
    real = refl.tune.monitor.judge

    def judge_some(names: Sequence[str], restored: Tensor, hq: Tensor) -> dict[str, np.ndarray]:
        found = real(names, restored, hq)
        return {**found, "psnr": np.full(len(restored), np.nan)}

    monkeypatch.setattr(refl.tune.monitor, "judge", judge_some)
    means, _, _ = monitor.check(0, make_restore(1.0), rewards, accelerator)
    assert "psnr" not in means
    assert "step 0: psnr gave no number for 3 of 3 held-out faces" in caplog.text
    assert "saturation gave" not in caplog.text
    _, verdict, _ = monitor.check(1, make_restore(0.6), rewards, accelerator)
    assert verdict is not None
    assert verdict.families == ["spectrum_and_colour"]
    assert verdict.suspicious  # of two families one has no number: the other is enough


def test_a_judge_that_could_not_be_had_at_the_first_look_is_asked_when_it_can() -> None:
    rewards, accelerator = {"live": mean_reward, "frozen": mean_reward}, Accelerator(cpu=True)
    monitor = make_monitor()
    monitor.check(0, make_restore(0.9), rewards, accelerator)
    state = monitor.state_dict()
    assert state is not None
    wanted = state["judges"].pop("contrast")
    state["judges"]["gone"] = wanted
    again = make_monitor()
    again.load_state_dict(state)
    assert again.first is not None
    assert list(again.first.judges) == JUDGES
    assert np.array_equal(again.first.judges["contrast"], wanted.numpy())

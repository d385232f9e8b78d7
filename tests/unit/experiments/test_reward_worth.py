"""Check the parts of the experiment on a reward's worth: taste, SIMULATED answers, first weights, arms, judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.reward_worth import (
    Settings,
    learn,
    make_set,
    measure_reward,
    measure_spread,
    open_study,
    run_seed,
    run_volume,
    score,
)
from experiments.worth_data import FaceSet, Sizes, answer, sharpen
from experiments.worth_first import PATCH_PX, SIZE, whiten
from experiments.worth_tables import compare, print_changes, print_curves, print_win_rates, read_results
from experiments.worth_taste import Taste, blur
from refl.tune.data import Face

TINY = Settings(
    sizes=Sizes(train=70, val=3, test=8),
    answers=60,
    val_answers=20,
    constructed=30,
    members=2,
    reward_steps=4,
    refl_steps=2,
)


def make_images(count: int, seed: int = 0) -> Tensor:
    """Smooth random pictures with some grain, (N, 3, 64, 64) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic")
    return (images + 0.03 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


@pytest.fixture(scope="module")
def taste() -> Taste:
    return Taste(make_images(80))


def test_the_truth_is_liked_best_and_another_person_least(taste: Taste) -> None:
    hq = make_images(6, seed=1)
    own, smooth, noisy = taste(hq, hq), taste(blur(hq, 1.0), hq), taste(hq + 0.05 * torch.randn(hq.shape), hq)
    assert torch.allclose(own, torch.full_like(own, 2.0), atol=1e-4)
    assert bool((smooth < own - 0.3).all())
    assert bool((noisy < own - 0.3).all())
    assert bool((taste(hq.roll(1, dims=0), hq) < smooth).all())


def test_taste_is_not_the_holding_terms(taste: Taste) -> None:
    """Grain of the right energy in the wrong place: the annotator likes it, distances to the truth do not."""
    hq = make_images(6, seed=1)
    smooth = blur(hq, 1.0)
    grained = smooth + 0.03 * torch.randn(hq.shape, generator=torch.Generator().manual_seed(2))
    assert bool((taste(grained, hq) > taste(smooth, hq)).all())
    assert bool(((grained - hq).square().mean(dim=(1, 2, 3)) > (smooth - hq).square().mean(dim=(1, 2, 3))).all())


def test_taste_has_a_gradient(taste: Taste) -> None:
    hq = make_images(2, seed=1)
    images = blur(hq, 1.0).requires_grad_(True)
    taste(images, hq).sum().backward()
    assert images.grad is not None
    step = images.detach() + 0.3 * images.grad / images.grad.abs().max() / 255
    assert bool((taste(step, hq) > taste(images, hq)).all())


def test_sharpen_changes_nothing_at_0_and_the_energy_to_both_sides() -> None:
    images = 0.25 + 0.5 * make_images(2)
    assert torch.equal(sharpen(images, torch.zeros(2)), images)
    less, more = (sharpen(images, torch.full((2,), amount)).std() for amount in (-0.8, 1.0))
    assert less < images.std() < more


def test_answers_are_the_tastes_but_for_the_lots(taste: Taste, tmp_path: Path) -> None:
    hq = make_images(40, seed=1)
    faces = FaceSet([Face(f"face{at}", tmp_path / f"{at}.png", None) for at in range(40)], hq, blur(hq, 2.0), tmp_path)
    candidates = {"a": blur(hq, 0.5), "b": blur(hq, 1.0), "c": blur(hq, 1.5)}
    asked = {noise: answer(faces, candidates, taste, 120, 0, "train", noise) for noise in (0.0, 0.5)}
    right = {
        noise: np.mean([(row.p_a == 1) == (str(row.method_a) < str(row.method_b)) for row in rows])
        for noise, rows in asked.items()
    }
    assert right[0.0] == 1  # the more blurred the less liked
    assert 0.6 < right[0.5] < 0.9  # half by lot: three quarters right
    assert {row.made_by for row in asked[0.5]} == {"SIMULATED annotator"}


def test_the_stem_whitens_patches() -> None:
    pixels = make_images(60)
    filters = whiten(pixels, 96)
    assert filters.shape == (96, 3, PATCH_PX, PATCH_PX)
    found = torch.nn.functional.conv2d(pixels, filters, stride=PATCH_PX // 2).transpose(0, 1).flatten(1)
    assert found.std(dim=1)[:8].numpy() == pytest.approx(SIZE, rel=0.15)


def test_the_judge_takes_the_better_and_shares_draws() -> None:
    result = {"arms": {"one": {"taste": [1.0, 2.0, 3.0]}, "other": {"taste": [0.5, 2.0, 4.0]}}}
    assert compare(result, "one", "other").tolist() == [1, 0.5, 0]


@pytest.mark.slow
def test_the_whole_study_runs_and_prints_its_tables(
    shared_faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shared_faces.is_dir()
    study = open_study(tmp_path, 0, TINY)
    seeds = {split: {face.path.stem for face in faces.faces} for split, faces in study.sets.items()}
    assert not seeds["test"] & (seeds["train"] | seeds["val"])
    run_seed(study, ("holding", "blind", "seeing", "heads", "set", "oracle"))
    run_volume(study, [30])
    blind, seeing = learn(study, "blind"), learn(study, "seeing")
    faces = study.sets["test"]
    own, wrong = faces.lq, faces.lq.roll(1, dims=0)
    assert torch.equal(score(blind, faces.hq, own), score(blind, faces.hq, wrong))
    assert not torch.equal(score(seeing, faces.hq, own), score(seeing, faces.hq, wrong))
    assert measure_spread(study, make_set(study, {"seeing": seeing})) > 0
    measure_reward(study, "again", seeing)
    again, before = (study.results["reward"][name]["test"]["all"] for name in ("again", "seeing-60"))
    assert again == before
    kept = (tmp_path / "seed0" / "results.json").stat().st_mtime_ns
    run_seed(open_study(tmp_path, 0, TINY), ("holding", "oracle"))
    assert (tmp_path / "seed0" / "results.json").stat().st_mtime_ns == kept  # what is there is not made again
    results = read_results(tmp_path)
    print_win_rates(results)
    print_changes(results)
    print_curves(results)
    assert "| set over base, wanted 0.65 |" in capsys.readouterr().out

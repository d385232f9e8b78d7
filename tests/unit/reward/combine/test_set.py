"""Check reward sets: made by the command, read strictly, low where members disagree, usable wherever a model is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from db.errors import UserError
from db.records import SIMULATED
from licences.terms import Terms
from reward.__main__ import main
from reward.combine.combine import Found, choose_rows
from reward.combine.command import SET, SetOptions
from reward.data import load_dataset, to_tensor
from reward.model.checkpoint import save_model
from reward.model.model import RewardModel
from reward.model.reward_set import RewardSet, compute_reward_version, compute_spread, find_reward, load_reward, measure
from reward.model.set_config import read_set
from reward.score.scorer import load_scorer, score_apart
from runs.licences import find_licences
from tests.unit.reward.model.test_input import draw_images, shake_heads


@pytest.fixture
def see_input(tmp_path: Path) -> Callable[[dict[str, Any]], None]:
    """Let the first image of a row be its input photo."""

    def change(row: dict[str, Any]) -> None:
        row |= {"lq": row["image_a"], "sha256_lq": row["sha256_a"], "hq": row["image_b"], "sha256_hq": row["sha256_b"]}

    return change


@pytest.fixture
def made(
    make_model: Callable[..., RewardModel], make_dataset: Callable[..., Path], see_input: Any, tmp_path: Path
) -> Path:
    """The folder of a set: a seeing model of two members, a blind model, and PSNR against the input."""
    save_model(shake_heads(make_model(text_mode="input", members=2)), tmp_path / "seeing")
    save_model(make_model(text_mode="learned"), tmp_path / "blind")
    dataset = make_dataset(change=see_input)
    asked = ["--model", str(tmp_path / "seeing"), "--model", f"old={tmp_path / 'blind'}", "--metric", "psnr"]
    out = tmp_path / "set"
    words = ["set", *asked, "--reference", "lq", "--dataset", str(dataset), "--out", str(out), "--device", "cpu"]
    assert main([*words, "--data", str(tmp_path / "data")]) == 0
    return out


def load(folder: Path) -> RewardSet:
    reward = load_reward(str(folder))
    assert isinstance(reward, RewardSet)
    return reward.eval()


def test_members_are_in_one_scale_on_the_held_out_images(made: Path, tmp_path: Path) -> None:
    reward, config = load(made), read_set(made)
    assert reward.names == ["seeing-1", "seeing-2", "old", "psnr"]
    assert (config.needs_input, config.input_photo, config.images) == (True, "lq", 16)
    rows = [json.loads(line) for line in (tmp_path / "dataset" / "pairs.jsonl").read_text().splitlines()]
    found = []
    for row in (row for row in rows if row["split"] == "val"):
        lq = to_tensor(tmp_path / "dataset" / row["lq"])[None] / 255
        for side in ("a", "b"):
            image = to_tensor(tmp_path / "dataset" / row[f"image_{side}"])[None] / 255
            found.append(reward.compute_members(image, [None], lq)[:, 0])
    values = torch.stack(found, dim=1).detach()
    assert torch.allclose(values.mean(dim=1), torch.zeros(4), atol=1e-4)
    assert torch.allclose(values.std(dim=1, correction=0), torch.ones(4), atol=1e-3)
    assert compute_spread(values).mean() == pytest.approx(config.held_out_spread, rel=1e-3)


def test_reward_is_the_mean_less_the_spread(made: Path) -> None:
    reward, images, inputs = load(made), draw_images(), draw_images(seed=1)
    members = reward.compute_members(images, [None] * 3, inputs)
    expected = reward.config.unit * (members.mean(dim=0) - members.std(dim=0, correction=0))
    assert torch.allclose(reward(images, [None] * 3, inputs), expected, atol=1e-4)


def test_gradient_is_finite_where_members_agree_wholly() -> None:
    members = torch.ones(3, 2, requires_grad=True)
    compute_spread(members).sum().backward()
    assert members.grad is not None
    assert members.grad.isfinite().all()


def test_gradient_reaches_the_pixels_through_every_member(made: Path) -> None:
    reward = load(made)
    for place in range(len(reward.names)):
        images = draw_images().requires_grad_()
        reward.compute_members(images, [None] * 3, draw_images(seed=1))[place].sum().backward()
        assert images.grad is not None
        assert images.grad.isfinite().all()
        assert images.grad.abs().max() > 0


@pytest.mark.parametrize("metric", ["psnr", "ssim", "gmsd"])
def test_metrics_are_float32_higher_better_and_take_inputs_of_another_size(metric: str) -> None:
    images = draw_images(count=2)
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    same, worse = measure(metric, images, images), measure(metric, blurred, images)
    assert same.dtype == torch.float32
    assert (same > worse).all()
    assert measure(metric, images, draw_images(count=2, size_px=48)).shape == (2,)


@pytest.mark.parametrize("metric", ["psnr", "ssim", "gmsd"])
def test_metrics_have_a_gradient_whose_step_makes_them_better(metric: str) -> None:
    images = torch.nn.functional.avg_pool2d(seen := draw_images(count=2), 3, 1, 1).requires_grad_()
    before = measure(metric, images, seen)
    before.sum().backward()
    assert images.grad is not None
    after = measure(metric, (images + 0.01 * images.grad / images.grad.abs().amax()).detach(), seen)
    assert (after > before).all()
    with FakeTensorMode(allow_non_fake_inputs=True):  # as memory is counted
        assert measure(metric, torch.empty(2, 3, 32, 32), torch.empty(2, 3, 32, 32)).shape == (2,)


def test_scorer_takes_it_with_images_of_all_sizes(made: Path) -> None:
    scorer = load_scorer(f"all={made}", "cpu")
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (40, 24), (32, 32)]
    images, inputs = ([rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes] for _ in range(2))
    rewards, spread = score_apart(scorer, images, [None] * 3, inputs)
    alone = [score_apart(scorer, [image], [None], [seen])[0][0] for image, seen in zip(images, inputs, strict=True)]
    assert np.allclose(rewards, alone, atol=1e-5)
    assert spread.shape == (3,)
    assert (spread > 0).all()
    assert scorer.metric == "reward-all"


def test_version_follows_members_and_how_they_are_combined(made: Path) -> None:
    reward = load(made)
    other = RewardSet(reward.config.model_copy(update={"spread_weight": 0.5}), {})
    assert compute_reward_version(reward) == compute_reward_version(load(made))
    assert compute_reward_version(reward) != compute_reward_version(other)


def test_another_model_in_a_members_place_is_refused(
    made: Path, make_model: Callable[..., RewardModel], tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "blind")
    model = make_model(text_mode="learned")
    with torch.no_grad():
        model.clip.visual.proj.add_(0.1)
    save_model(model, tmp_path / "blind")
    with pytest.raises(UserError, match=r"was made of .*blind when that was reward [0-9a-f]+; now it is .*reward set"):
        load_reward(str(made))


def test_member_that_went_away_or_lost_a_head_is_named_before_anything_is_loaded(
    made: Path, make_model: Callable[..., RewardModel], tmp_path: Path
) -> None:
    save_model(make_model(text_mode="input"), tmp_path / "seeing")
    with pytest.raises(UserError, match=r"set: seeing-2 is head 1 of .*which has fewer\. Make the set again"):
        find_reward(str(made))
    shutil.rmtree(tmp_path / "seeing")
    with pytest.raises(UserError, match=r"set: its member seeing-1 cannot be had\. There is no scorer .*back into"):
        find_reward(str(made))


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "Invalid JSON"), ("{}", "members: Field required"), ("\xff", "reward set")],
)
def test_damaged_file_is_one_line(made: Path, text: str, said: str) -> None:
    (made / "set.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=said):
        find_reward(str(made))


CANNOT = pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "No member is named"),
        (["--model", "{blind}"], "two members or more"),
        (["--metric", "psnr", "--metric", "ssim"], "a model and two members"),
        (["--model", "{blind}", "--model", "{blind}"], "Two members are called blind"),
        (["--model", "{blind}", "--metric", "psnr", "--metric", "psnr"], "named twice"),
        (["--model", "{blind}", "--metric", "psnr", "--spread-weight", "inf"], "--spread-weight"),
        (["--model", "{blind}", "--metric", "niqe_skvideo"], "niqe_skvideo has no gradient"),
        (["--model", "{blind}", "--metric", "prettiness"], "no metric 'prettiness'"),
        (["--model", "{seeing}", "--metric", "psnr"], r"seeing lq, psnr hq"),
        (["--model", "{seeing}", "--metric", "psnr", "--reference", "lq"], "all 8 pairs lack it"),
    ],
)


def test_labels_of_simulated_annotators_are_called_so(
    make_model: Callable[..., RewardModel],
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(shake_heads(make_model(text_mode="learned", members=2)), tmp_path / "two")
    for made_by in ("majority", f"majority{SIMULATED}"):
        dataset = make_dataset(name=made_by, change=lambda row, made_by=made_by: row.update(made_by=made_by))
        words = ["set", "--model", str(tmp_path / "two"), "--dataset", str(dataset), "--device", "cpu"]
        assert main([*words, "--data", str(tmp_path / "data"), "--out", str(tmp_path / f"{made_by} set")]) == 0
        said = capsys.readouterr().out
        assert ("on 8 labels, 8 of SIMULATED annotators" in said) == made_by.endswith(SIMULATED)
        assert ("on 8 labels by people" in said) != made_by.endswith(SIMULATED)


@CANNOT
def test_what_cannot_be_a_set_is_one_line_and_nothing_is_written(
    words: list[str],
    said: str,
    make_model: Callable[..., RewardModel],
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(make_model(text_mode="input"), tmp_path / "seeing")
    save_model(make_model(text_mode="learned"), tmp_path / "blind")
    places = {name: str(tmp_path / name) for name in ("seeing", "blind")}
    asked = [word.format(**places) for word in words]
    code = main(
        ["set", *asked, "--dataset", str(make_dataset()), "--out", str(tmp_path / "set"), "--data", str(tmp_path / "d")]
    )
    assert code != 0
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "set").exists()


def test_path_with_an_equals_sign_is_made_absolute_behind_a_name(
    make_dataset: Callable[..., Path], see_input: Any, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(make_model(text_mode="learned"), tmp_path / "lr=2 e")
    monkeypatch.chdir(tmp_path)
    dataset = make_dataset(change=see_input)
    words = ["set", "--model", "mine=lr=2 e", "--metric", "psnr", "--reference", "lq", "--dataset", str(dataset)]
    assert main([*words, "--out", "made", "--device", "cpu", "--data", "data"]) == 0
    mine = read_set(tmp_path / "made").members[0]
    assert (mine.name, mine.model) == ("mine", str(tmp_path / "lr=2 e"))
    assert (tmp_path / "made" / "licences.json").is_file()


def test_licences_of_metrics_are_among_those_of_a_set(tmp_path: Path) -> None:
    used = SET.uses(SetOptions(model=["tiny"], metric=["psnr", "nlpd"], dataset=tmp_path))
    assert {one["value"] for one in used} == {"psnr", "nlpd"}
    found = find_licences(used, tmp_path)
    assert [one.name.partition(" ")[0] for one in found if one.terms is Terms.non_commercial] == ["pyiqa"]


def test_set_does_not_stand_in_for_what_lies_in_its_folder(
    make_dataset: Callable[..., Path], make_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(make_model(text_mode="learned"), blind := tmp_path / "blind")
    words = ["set", "--model", str(blind), "--metric", "psnr", "--reference", "lq", "--dataset", str(make_dataset())]
    for out, said in ((blind, "holds architecture.json"), (blind / "config.json", "is a file")):
        assert main([*words, "--out", str(out), "--data", str(tmp_path / "data")]) == 2
        assert said in capsys.readouterr().err
    assert not (blind / "set.json").exists()


def test_planted_faults_have_no_part_in_the_scales(make_dataset: Callable[..., Path]) -> None:
    def mark(row: dict[str, Any]) -> None:
        row["origin"] = "constructed" if row["pair"].endswith("-1") else "human"

    found = Found({}, ("psnr",), needs_input=False, input_photo="lq", text_mode="fixed", prompt="")
    chosen = choose_rows(load_dataset(make_dataset(6, change=mark)), "train", found, use_prompt=False)
    assert [row.pair for row in chosen.rows] == ["000-0", "001-0", "002-0", "003-0"]

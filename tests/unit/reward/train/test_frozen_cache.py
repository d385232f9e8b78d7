"""Activations kept on disk: the same losses, computed once, and never those of other weights or images."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from db.errors import UserError
from reward.data import Pairs, check_pairs, load_dataset
from reward.model.model import RewardModel
from reward.train.frozen_cache import CachedPairs, cache_frozen, make_room, reserve_room
from reward.train.train import train
from tests.unit.reward.train.test_train import make_train_config

LEARNED = {"text_mode": "learned", "unlocked_image_groups": 2, "unlocked_text_blocks": 0}


@pytest.fixture
def pairs(make_dataset: Callable[..., Path]) -> Pairs:
    return load_dataset(make_dataset(6))


@pytest.fixture
def fill(pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CachedPairs]:
    """`fill(model)`: the cache of these pairs; counts the batches that the frozen blocks saw in `fill.batches`."""

    def run(model: RewardModel, of: Pairs = pairs) -> CachedPairs:
        run.batches = -1  # the first looks at the shape
        encode = model.encode_frozen

        def counting(images: torch.Tensor) -> torch.Tensor:
            run.batches += 1
            return encode(images)

        with monkeypatch.context() as patch:
            patch.setattr(model, "encode_frozen", counting)
            folder, one = tmp_path / "frozen", Accelerator(cpu=True)
            cache = cache_frozen(model, of, check_pairs(of), folder, one, batch_images=4, workers=0)
        return CachedPairs(of, cache)

    return run


def test_the_losses_are_those_of_the_plain_loop(
    make_dataset: Callable[..., Path], make_config: Callable[..., object], tmp_path: Path
) -> None:
    pairs, losses = load_dataset(make_dataset()), {}
    for cached in (False, True):
        told: list[float] = []
        config = make_train_config(cache_frozen=cached, log_every_steps=1, validate_every_steps=2)
        train(
            pairs,
            make_config(**LEARNED),
            config,
            tmp_path / str(cached),
            lambda _done, _total, values, told=told: told.extend(values[name] for name in values if "loss" in name),
        )
        losses[cached] = told
    assert len(losses[True]) == 6 + 3  # of training and of validation
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


def test_it_holds_what_the_model_gives_and_is_computed_once(
    fill: Callable[..., CachedPairs], pairs: Pairs, make_model: Callable[..., RewardModel]
) -> None:
    model = make_model(**LEARNED)
    cached = fill(model)
    assert fill.batches == 5  # 18 images, 4 at a time
    image = torch.from_numpy(_read(pairs.rows[3].image_b)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        torch.testing.assert_close(cached[3][1], model.encode_frozen(image)[0])
    fill(model)
    assert fill.batches == 0


def _read(path: Path) -> object:
    from training.images import read_image

    return read_image(path)


@pytest.mark.parametrize("change", ["frozen weight", "trained weight", "interpolation", "images", "file", "record"])
def test_it_is_computed_anew_where_something_changed(
    fill: Callable[..., CachedPairs], pairs: Pairs, make_model: Callable[..., RewardModel], tmp_path: Path, change: str
) -> None:
    fill(make_model(**LEARNED))
    model = make_model(**LEARNED, interpolation="bilinear" if change == "interpolation" else "bicubic")
    frozen = {"frozen weight": model.clip.visual.conv1.weight, "trained weight": model.clip.visual.proj}
    if change in frozen:
        frozen[change].data[0, 0] += 0.01
    if change in ("file", "record"):
        name = {"file": "activations.bin", "record": "frozen.json"}[change]
        (tmp_path / "frozen" / name).unlink()
    cached = fill(model, Pairs(pairs.path, pairs.rows[2:]) if change == "images" else pairs)
    assert (fill.batches > 0) == (change != "trained weight")
    image = torch.from_numpy(_read(cached.rows[0].image_a)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        torch.testing.assert_close(cached[0][0], model.encode_frozen(image)[0])


def test_a_disk_without_room_is_one_line_and_leaves_no_cache(
    fill: Callable[..., CachedPairs],
    make_model: Callable[..., RewardModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=2**30))
    with pytest.raises(UserError) as error:
        make_room(tmp_path / "frozen", 5 * 2**30)
    for part in (str(tmp_path / "frozen"), "need 5.0 GiB, the disk has 1.0", "--out", "cache_frozen to false"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=100))
    with pytest.raises(UserError, match="the disk has"):
        fill(make_model(**LEARNED))
    assert list((tmp_path / "frozen").iterdir()) == []


def test_the_room_is_taken_before_anything_is_computed(tmp_path: Path) -> None:
    reserve_room(tmp_path / "whole", 1_000_000)
    found = (tmp_path / "whole").stat()
    assert found.st_size == 1_000_000
    assert found.st_blocks * 512 >= 1_000_000  # a file with holes would end its writer where the disk is full by then
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # stands for a full disk
    try:
        with pytest.raises(UserError, match="Name an --out on a larger disk, or set cache_frozen to false"):
            reserve_room(tmp_path / "more", 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "more").exists()

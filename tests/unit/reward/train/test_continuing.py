"""A stopped training of a reward model goes on by a newer version, and finds its folder again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from db.errors import UserError
from reward.model.config import ModelConfig
from reward.train.command import TRAIN
from reward.train.config import RewardTrainConfig
from reward.train.setup import check_same
from runs.options import read_words
from training.settings import MayChange, check_settings, choose_folder


class Newer(BaseModel):
    """Settings of a version that knows more."""

    learning_rate: float = 0.1
    range: tuple[float, float] = (0.0, 1.0)
    added: int = 3
    workers: Annotated[int, MayChange()] = 1


def test_a_setting_that_a_newer_version_adds_must_be_as_by_default() -> None:
    before = {"learning_rate": 0.1, "taken_away": True, "workers": 2}
    check_settings(before, Newer(), Path("last"))
    with pytest.raises(UserError, match=r"^last was trained with added 3, not 4\. Give the same settings"):
        check_settings(before, Newer(added=4), Path("last"))
    check_settings(before, Newer(added=4), Path("last"), unread={"added"})
    check_settings(before, Newer(workers=9), Path("last"))
    with pytest.raises(UserError, match=r"with range \[0\.0, 1\.0\], not \[0\.0, 2\.0\]"):
        check_settings(before, Newer(range=(0, 2)), Path("last"))


def test_a_reward_training_of_an_older_version_is_the_same() -> None:
    model, config = (
        ModelConfig(architecture="tiny", unlocked_image_groups=1, unlocked_text_blocks=0),
        RewardTrainConfig(max_steps=3, warmup_steps=1),
    )
    record: dict[str, Any] = {"model": model.model_dump(mode="json"), "train": config.model_dump(mode="json")}
    record |= {"dataset": "d", "dataset_sha256": "1"}
    for name in ("optimizer", "label_share"):
        del record["train"][name]
    check_same(record, {"dataset": "d", "dataset_sha256": "1"}, model, config, Path("last"))
    with pytest.raises(UserError, match=r"with label_share 1\.0, not 0\.5"):
        check_same(record, record, model, config.model_copy(update={"label_share": 0.5}), Path("last"))
    with pytest.raises(UserError, match="with max_steps 3, not 4"):
        check_same(record, record, model, config.model_copy(update={"max_steps": 4}), Path("last"))


def test_two_paths_of_one_file_are_one_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "micro.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    now = ModelConfig(architecture=str(tmp_path / "micro.json"), unlocked_image_groups=1, unlocked_text_blocks=0)
    before = {**now.model_dump(mode="json"), "architecture": "micro.json"}
    check_settings(before, now, Path("last"))


def test_the_folder_of_a_training_has_a_name_that_a_new_setting_does_not_change(tmp_path: Path) -> None:
    def name(config: BaseModel) -> Callable[[bool], list[Any]]:
        return lambda short: ["data", config.model_dump(mode="json", exclude_defaults=short)]

    class Older(BaseModel):
        learning_rate: float = 0.1
        range: tuple[float, float] = (0.0, 1.0)

    folder = choose_folder(tmp_path, "tiny", name(Older(learning_rate=0.2)))
    assert choose_folder(tmp_path, "tiny", name(Newer(learning_rate=0.2))) == folder
    assert choose_folder(tmp_path, "tiny", name(Newer(learning_rate=0.2, added=4))) != folder
    # what this version named by all settings is found
    from hashlib import sha256

    text = json.dumps(["data", Older().model_dump(mode="json")], sort_keys=True)
    named = tmp_path / f"tiny-{sha256(text.encode()).hexdigest()[:8]}"
    assert choose_folder(tmp_path, "tiny", name(Older())) != named
    named.mkdir()
    assert choose_folder(tmp_path, "tiny", name(Older())) == named


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ([], "tiny-8acad606"),
        (["--tracker=wandb", "--keep-every-steps=3"], "tiny-8acad606"),
        (["--workers=9", "--max-steps=7", "--warmup-steps=2", "--micro-batch-size=3"], "tiny-ef1a20f4"),
        (["--ema-decay=0.5", "--unlocked-text-blocks=1", "--gradient-checkpointing", "--seed=4"], "tiny-f9b34952"),
    ],
)
def test_the_folders_of_older_trainings_are_found_again(words: list[str], folder: str, tmp_path: Path) -> None:
    """As version 0.1 named them."""
    options = TRAIN.settle(read_words(TRAIN, ["--preset=tiny", "--dataset=/d", *words]), tmp_path)
    assert options.out == tmp_path / "rewards" / folder

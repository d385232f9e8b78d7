"""Training at its edges: label weights, soft labels and ties, the average, a finished or damaged checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from db.errors import UserError
from reward.data import Pairs, load_dataset
from reward.model.checkpoint import build_model
from reward.model.config import ModelConfig
from reward.train.pairs import summarize
from reward.train.setup import choose_pairs
from reward.train.train import sum_up, train
from tests.unit.reward.evaluate.test_compare import make_pair
from tests.unit.reward.model.test_checkpoint import Harmful
from tests.unit.reward.train.test_train import largest_difference, make_train_config, relative_difference, weights_of
from training.state import load_state


@pytest.fixture
def learned(make_config: Callable[..., ModelConfig]) -> ModelConfig:
    """The small model, its last blocks trained, against a learned prompt."""
    return make_config(text_mode="learned", unlocked_image_groups=2, unlocked_text_blocks=0)


@pytest.fixture
def pairs(make_dataset: Callable[..., Path]) -> Pairs:
    return load_dataset(make_dataset(12))


def test_a_broken_image_is_named_before_anything_is_trained(pairs: Pairs, learned: ModelConfig, tmp_path: Path) -> None:
    held_out = next(row for row in pairs.rows if row.split == "val")
    held_out.image_b.write_bytes(held_out.image_b.read_bytes()[:200])
    with pytest.raises(UserError, match=held_out.image_b.name):
        train(pairs, learned, make_train_config(), tmp_path / "out", pytest.fail)
    assert not (tmp_path / "out").exists()


def test_human_and_svm_labels_are_weighed_apart(
    make_dataset: Callable[..., Path], learned: ModelConfig, tmp_path: Path
) -> None:
    """A weight of one half is as labels that weigh one half; of people's labels it leaves the SVM's alone."""

    def make(factor_human: float, factor_svm: float, name: str) -> Pairs:
        def change(row: dict[str, Any]) -> None:
            by_svm = row["split"] == "train" and row["pair"].endswith("1")
            row.update(origin="svm" if by_svm else "human", weight=factor_svm if by_svm else factor_human)

        return load_dataset(make_dataset(12, name, change))

    config = make_train_config(max_steps=2, warmup_steps=1, validate_every_steps=0)
    for name, weights in (("svm", (1.0, 0.5)), ("human", (0.25, 1.0))):
        train(make(*weights, f"{name} rows"), learned, config, tmp_path / f"{name} by rows")
        flags = config.model_copy(update={f"{name}_weight": min(weights)})
        train(make(1.0, 1.0, f"{name} flags"), learned, flags, tmp_path / f"{name} by flags")
        assert largest_difference(tmp_path / f"{name} by rows" / "last", tmp_path / f"{name} by flags" / "last") == 0
    ends = (tmp_path / f"{name} by flags" / "last" for name in ("svm", "human"))
    assert relative_difference(*ends, learned) > 1e-3


def test_ties_and_soft_labels_count_where_they_should() -> None:
    """Pairs by hand: sure of a, a tie, 0.25 for a; the cosines prefer a, b, a."""
    losses, cosines = torch.tensor([0.5, 0.75, 1.0]), torch.tensor([[0.5, 0.25, 0.75], [0.25, 0.5, 0.5]])
    # chosen: a's 0.5 and b's 0.5, rejected: b's 0.25 and a's 0.75; of the two the first is right
    assert sum_up(losses, cosines, torch.tensor([1.0, 0.5, 0.25])).tolist() == [2.25, 3, 2, 1.0, 1.0, 1.0]
    rows = tuple(make_pair(number, p_a) for number, p_a in enumerate((1.0, 0.5, 0.25)))
    found = summarize(Pairs(Path(), rows), np.array([2.0, -1.0, 1.0]), losses.double().numpy())
    assert found["accuracy"] == pytest.approx((1.0 + 0.25) / 2)
    assert found["n"] == 2
    assert found["loss"] == pytest.approx(0.75)


def test_soft_labels_are_learned_as_probabilities(pairs: Pairs, learned: ModelConfig, tmp_path: Path) -> None:
    """Labels of 0.75 are fitted best by a margin of log 3: the loss ends near the entropy, and below a coin's."""
    soft = Pairs(pairs.path, tuple(replace(row, p_a=0.25 + 0.5 * row.p_a) for row in pairs.rows))
    told: list[dict[str, float]] = []
    config = make_train_config(max_steps=30, learning_rate=3e-3, validate_every_steps=0, log_every_steps=10)
    train(soft, learned, config, tmp_path / "out", lambda _done, _total, values: told.append(values))
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert entropy < told[-1]["loss"] < np.log(2) - 0.05
    assert told[-1]["rewards/accuracies"] > 0.9


def test_the_average_of_the_weights_is_the_one_by_hand(pairs: Pairs, learned: ModelConfig, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []
    torch.manual_seed(0)
    average = {name.removeprefix("clip."): value for name, value in build_model(learned).state_dict().items()}

    def look(_done: int, _total: int, _values: dict[str, float]) -> None:
        seen.append(weights_of(out / "last"))

    config = make_train_config(max_steps=4, ema_decay=0.75, validate_every_steps=0, checkpoint_every_steps=1)
    train(pairs, learned, config.model_copy(update={"log_every_steps": 1}), out, look)
    assert len(seen) == 4
    for weights in seen:
        average = {name: 0.75 * average[name] + 0.25 * weights[name] for name in weights}
    best = weights_of(out / "best")
    for name, value in average.items():
        torch.testing.assert_close(best[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert largest_difference(out / "best", out / "last") > 1e-4


def test_a_learned_prompt_is_trained_and_the_text_tower_rests(
    pairs: Pairs, learned: ModelConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    start = {name.removeprefix("clip."): value for name, value in build_model(learned).state_dict().items()}
    train(pairs, learned, make_train_config(max_steps=3, validate_every_steps=0), tmp_path / "out")
    moved = {name for name, value in weights_of(tmp_path / "out" / "last").items() if not value.equal(start[name])}
    assert {"prompt_vector", "visual.proj"} <= moved
    assert all(name.startswith("visual.") or name in ("prompt_vector", "logit_scale") for name in moved)


def test_a_finished_training_says_so_and_stays_as_it_is(
    pairs: Pairs, learned: ModelConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, out = make_train_config(max_steps=3), tmp_path / "out"
    first = train(pairs, learned, config, out)
    before = {file: file.read_bytes() for file in out.rglob("*.*") if file.is_file()}
    caplog.set_level(logging.INFO, "reward")
    again = train(pairs, learned, config, out, pytest.fail)
    assert f"{out} is finished: its 3 steps are done, nothing is left to train" in caplog.messages
    assert (again["step"], again["best"]) == (3, first["best"])
    assert {file: file.read_bytes() for file in out.rglob("*.*") if file.is_file()} == before


def test_a_damaged_last_checkpoint_is_named(pairs: Pairs, learned: ModelConfig, tmp_path: Path) -> None:
    config, out = make_train_config(max_steps=3, validate_every_steps=0), tmp_path / "out"
    train(pairs, learned, config, out)
    for file, content, said in (
        ("training.json", b"{", "is not a checkpoint to continue from"),
        ("state.pt", b"", r"state\.pt: cannot be read"),
        ("state.pt", None, r"state\.pt: cannot be read"),
        ("model.safetensors", b"", r"model\.safetensors: is empty"),
    ):
        whole = (out / "last" / file).read_bytes()
        (out / "last" / file).unlink()
        if content is not None:
            (out / "last" / file).write_bytes(content)
        with pytest.raises(UserError, match=said) as error:
            train(pairs, learned, config, out)
        assert "\n" not in str(error.value)
        (out / "last" / file).write_bytes(whole)


def test_code_in_a_state_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"step": 3, "optimizer": Harmful()}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="holds Python objects that could run code, so it is not loaded"):
        load_state(tmp_path)
    assert "harm" not in capsys.readouterr().out


def test_a_kill_between_the_renames_loses_nothing(pairs: Pairs, learned: ModelConfig, tmp_path: Path) -> None:
    config, out = make_train_config(max_steps=3, validate_every_steps=0), tmp_path / "out"
    train(pairs, learned, config, out)
    whole = weights_of(out / "last")
    (out / "last").rename(out / "last.old")
    assert train(pairs, learned, config, out)["step"] == 3
    assert all(value.equal(whole[name]) for name, value in weights_of(out / "last").items())


def test_tensorboard_is_told_the_settings_and_the_progress(pairs: Pairs, learned: ModelConfig, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "out"
    train(pairs, learned, make_train_config(max_steps=3, tracker="tensorboard"), out)
    events = accumulator.EventAccumulator(str(out / "facereward")).Reload()
    assert {"loss", "rewards/accuracies", "val/accuracy", "learning_rate"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [2, 3]
    settings = next((out / "facereward").rglob("hparams.yml")).read_text()
    assert "learning_rate: 0.001" in settings
    assert json.dumps(learned.prompt)[1:-1] in settings


def test_a_share_of_the_labels_is_whole_photos_and_grows(pairs: Pairs, make_config: Callable[..., ModelConfig]) -> None:
    """A smaller share is a part of a larger one, a photo is in it with all its pairs, and what is held out stays."""
    config = make_config(text_mode="fixed", prompt="p")
    found = {share: choose_pairs(pairs, config, make_train_config(label_share=share)) for share in (0.3, 0.7, 1.0)}
    sources = {share: {row.source for row in train_pairs.rows} for share, (train_pairs, _) in found.items()}
    assert sources[0.3] <= sources[0.7] <= sources[1.0]
    assert len(sources[0.3]) < len(sources[1.0])
    for share, (train_pairs, held_out) in found.items():
        of_these = [row for row in pairs.select("train").rows if row.source in sources[share]]
        assert list(train_pairs.rows) == of_these
        assert held_out == found[1.0][1]

"""dpo, gdpo and grpo hold what ReFL holds: exact batches, exact continuation, cost, and nothing else moves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from safetensors.torch import load_file
from torch import Tensor, nn

from dataset.labelled import LabelledPair
from db.errors import UserError
from refl.tune.config import ReflConfig
from refl.tune.data import Face
from refl.tune.train import train
from refl.tune.training import Material
from reward.data import Pairs
from tests.gradients import difference, record_gradients
from tests.unit.refl.conftest import make_micro_osediff, make_micro_restorer
from tests.unit.refl.tune.test_refl_train import Brightness, make_config

LORA = {"trainable": "lora", "lora_rank": 2}
MANY: dict[str, Any] = {"trajectory": {"eta": (1.0, 1.0)}}
ONE: dict[str, Any] = {"train": {**LORA, "image_size_px": 32}}
KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, dict[str, Any]]]] = {
    "dpo": (make_micro_restorer, {}, MANY),
    "dpo, lora": (make_micro_restorer, {}, {**MANY, "train": LORA}),
    "dpo, one step": (make_micro_osediff, {}, ONE),
    "gdpo": (make_micro_restorer, {"group_size": 3}, MANY),
    "gdpo, lora, ends": (make_micro_restorer, {"group_size": 4, "group_ends": 1}, {**MANY, "train": LORA}),
    "gdpo, one step": (make_micro_osediff, {"group_size": 3}, ONE),
    "grpo": (make_micro_restorer, {"group_size": 3, "gradient_steps": 1}, MANY),
    "grpo, lora, divergence": (
        make_micro_restorer,
        {"group_size": 2, "kl_weight": 0.1, "updates": 2},
        {**MANY, "train": LORA},
    ),
}
QUICK = ("dpo", "gdpo, one step", "grpo, lora, divergence")
kinds = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow) for kind in KINDS]
)
COSTED = ("dpo", "dpo, one step", "gdpo, lora, ends", "gdpo, one step", "grpo, lora, divergence")
every_cost = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in COSTED else pytest.mark.slow) for kind in KINDS]
)
MAX_DIFFERENCE = {"micro_batch_size": 1e-3, "rollout_batch_size": 5e-3}
"""Of one step's gradients between a batch and its parts; a part that is lost is above 0.1. beta multiplies what
rounding changes of an error, by 1.9e-4 at most. Images sampled in other batches are rewarded in 8 bits, where rounding
may fall either way, and a group's rewards are divided by their spread: 1.5e-3 at most."""


def make_pairs(folder: Path) -> Pairs:
    """Six labelled pairs of photos of their own, four of them to learn from: one is a tie, one half sure."""
    folder.mkdir(exist_ok=True)
    rows = []
    for place, p_a in enumerate([1.0, 0.0, 0.5, 0.8, 1.0, 1.0]):
        files = []
        for name, level in (("a", 60 + 9 * place), ("b", 200 - 5 * place), ("lq", 120 + place)):
            files.append(folder / f"{place}{name}.png")
            if not files[-1].exists():
                noise = (
                    np.random.default_rng([place, level]).normal(128, 80, (4, 4)).clip(0, 255)
                )  # Pillow's has no seed
                grey = PilImage.fromarray(((noise + level) // 2).astype(np.uint8))
                grey.convert("RGB").resize((24, 24)).save(files[-1])
        fields: dict[str, Any] = dict.fromkeys(LabelledPair.__dataclass_fields__)
        fields |= {"pair": str(place), "image_a": files[0], "image_b": files[1], "lq": files[2], "p_a": p_a}
        fields |= {"weight": 1.0 + place, "origin": "human", "made_by": "people", "judgments": ()}
        fields |= {"source": str(place), "group": str(place), "split": "val" if place > 3 else "train"}
        rows.append(LabelledPair(**fields))
    return Pairs(folder, tuple(rows))


def configure(kind: str, **changes: dict[str, Any]) -> ReflConfig:
    """Of a kind: one step of four pairs or faces; `changes` are tables over it."""
    _, algorithm, tables = KINDS[kind]
    merged = {name: {**tables.get(name, {}), **changes.get(name, {})} for name in {*tables, *changes}}
    merged["algorithm"] = {"algorithm": kind.split(",")[0], **algorithm, **changes.get("algorithm", {})}
    return make_config(**merged)


def make_material(kind: str, faces: list[Face], folder: Path, reward: nn.Module | None = None) -> Material:
    pairs = make_pairs(folder / "pairs") if kind.startswith("dpo") else None
    return Material(
        KINDS[kind][0](),
        None if pairs else (reward or Brightness()),
        [] if pairs else faces[:6],
        faces[6:],
        pairs=pairs,
    )


def run(
    kind: str, faces: list[Face], folder: Path, out: str = "out", **changes: dict[str, Any]
) -> tuple[Material, list[dict[str, float]]]:
    """The material afterwards, and the progress values of each step."""
    material, lines = make_material(kind, faces, folder), []
    train(material, configure(kind, **changes), folder / out, lambda _d, _t, values: lines.append(values))
    return material, lines


@kinds
def test_micro_batches_add_up_to_the_batch(faces: list[Face], tmp_path: Path, kind: str) -> None:
    def find_gradients(**fields: int) -> list[Tensor]:
        found: list[list[Tensor]] = []
        with record_gradients(found.append):
            sizes = {"micro_batch_size": 4, "rollout_batch_size": 4, "max_steps": 1, **fields}
            run(kind, faces, tmp_path, f"out{len(list(tmp_path.iterdir()))}", train=sizes)
        return found[0]

    whole = find_gradients()
    assert any(bool(gradient.any()) for gradient in whole)
    for field, limit in MAX_DIFFERENCE.items():
        for size in (1, 3) if field == "micro_batch_size" or not kind.startswith("dpo") else ():
            assert difference(whole, find_gradients(**{field: size})) < limit, (field, size)


@kinds
def test_killed_and_continued_it_has_the_weights_and_the_cost_of_never_having_stopped(
    faces: list[Face], tmp_path: Path, kind: str
) -> None:
    class Killed(Exception):
        pass

    def die(done: int, _total: int, _values: dict[str, float]) -> None:
        if done == 2:
            raise Killed

    fields = {"max_steps": 3, "checkpoint_every_steps": 1, "ema_decay": 0.5, "log_every_steps": 2}
    changes: dict[str, dict[str, Any]] = {"train": fields}
    if not kind.startswith("dpo"):
        changes["algorithm"] = {"hard_share": 0.7}
    _, whole = run(kind, faces, tmp_path, "whole", **changes)
    with pytest.raises(Killed):
        train(make_material(kind, faces, tmp_path), configure(kind, **changes), tmp_path / "parts", die)
    _, parts = run(kind, faces, tmp_path, "parts", **changes)
    for name in ("last", "tuned"):
        one, other = (load_file(tmp_path / out / name / "trained.safetensors") for out in ("whole", "parts"))
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name
    same = {name: value for name, value in whole[-1].items() if "seconds" not in name}
    assert {name: parts[-1][name] for name in same} == same


@kinds
def test_in_bfloat16_every_trained_tensor_moves_and_nothing_else_does(
    faces: list[Face], tmp_path: Path, kind: str
) -> None:
    restorer = KINDS[kind][0]()
    before = {name: value.bfloat16() for name, value in restorer.state_dict().items()}
    fields = {"mixed_precision": "bf16", "max_steps": 10, "weight_decay": 0, "image_size_px": 32, "batch_size": 2}
    material, _ = run(kind, faces, tmp_path, train=fields)
    trained = load_file(tmp_path / "out" / "tuned" / "trained.safetensors")
    start = make_material(kind, faces, tmp_path).restorer
    with torch.random.fork_rng():
        torch.manual_seed(configure(kind).train.seed)
        start.set_trainable(configure(kind, train=fields).train.trainable, 2)
    first = {
        f"{part}.{name}": value for part, module in start.named_children() for name, value in module.named_parameters()
    }
    still = [name for name, value in trained.items() if torch.equal(value, first[name])]
    assert trained
    assert not still
    after = material.restorer.state_dict()
    prefix = "control." if kind in ("dpo", "gdpo", "grpo") else "lora_"
    others = {name.replace("base_layer.", ""): value for name, value in after.items() if prefix not in name}
    assert others
    for name, value in others.items():
        if name in before and not name.startswith(("stage1", "text")):
            assert torch.equal(value, before[name]), name


EVALUATIONS = {
    "dpo": 2 * (3 + 1),
    "dpo, lora": 2 * (3 + 1),
    "dpo, one step": 3 + 1,
    "gdpo": 3 * (2 + 3 + 1),
    "gdpo, lora, ends": 4 * 2 + 2 * (3 + 1),
    "gdpo, one step": 3 + 3 + 1,
    "grpo": 3 * (2 + 3),
    "grpo, lora, divergence": 2 * (2 + 2 * (3 + 1)),
}
"""Of a pair or photo: the images sampled in two steps, then with gradient (three each), then before training."""


@every_cost
def test_the_cost_is_counted_and_a_budget_ends_training(faces: list[Face], tmp_path: Path, kind: str) -> None:
    each = 2 * EVALUATIONS[kind]
    fields = {"max_steps": 100, "checkpoint_every_steps": 100, "batch_size": 2}
    _, lines = run(kind, faces, tmp_path, train=fields, algorithm={"budget": each + 1})
    assert [line["evaluations"] for line in lines] == [each, 2 * each]
    record = json.loads((tmp_path / "out" / "last" / "training.json").read_text())
    assert record["step"] == 2
    _, again = run(kind, faces, tmp_path, train=fields, algorithm={"budget": each + 1})
    assert again == []


def test_what_is_told_at_the_start_is_as_by_hand(faces: list[Face], tmp_path: Path) -> None:
    weights, little = [1.0, 2.0, 3.0, 4.0], {"beta": 5.0}  # at 5,000 beta makes 1e-7 of an error 2.5e-4 nats
    _, (line, *_) = run("dpo", faces, tmp_path, "dpo", algorithm=little, train={"max_steps": 1})
    assert line["loss/dpo"] == pytest.approx(sum(weights) / 4 * 0.693147, rel=1e-4)
    assert line["rewards/margins"] == pytest.approx(0, abs=1e-3)
    _, (line, *_) = run("gdpo", faces, tmp_path, "gdpo", algorithm=little, train={"max_steps": 1})
    assert line["loss/gdpo"] == pytest.approx(0.693147, rel=1e-4)
    assert line["group_spread"] > 0
    _, (line, *_) = run(
        "grpo, lora, divergence", faces, tmp_path, "grpo", algorithm={"updates": 1}, train={"max_steps": 1}
    )
    assert line["ratio"] == pytest.approx(1, abs=1e-5)
    assert line["divergence"] == pytest.approx(0, abs=1e-9)
    assert line["loss/grpo"] == pytest.approx(0, abs=1e-5)  # advantages sum to 0
    assert line["clipped"] == 0


def test_dpo_prefers_the_winner_afterwards(faces: list[Face], tmp_path: Path) -> None:
    fields = {"max_steps": 16, "learning_rate": 1e-2, "log_every_steps": 1}
    algorithm = {"ties": "drop", "beta": 200.0, "noise_window": (450, 450)}
    _, lines = run("dpo, lora", faces, tmp_path, train=fields, algorithm=algorithm)
    assert mean(line["rewards/margins"] for line in lines[8:]) > 0.5  # from 0
    assert mean(line["rewards/accuracies"] for line in lines[8:]) > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gdpo, lora, ends", "gdpo, one step", "grpo"])
def test_a_reward_without_gradient_rises(faces: list[Face], tmp_path: Path, kind: str) -> None:
    class Darkness(nn.Module):
        """As a judge: no gradient comes of it, which a model that needed one would show."""

        def forward(self, images: Tensor, _captions: Sequence[str | None]) -> Tensor:
            assert not images.requires_grad
            return -images.mean(dim=(1, 2, 3))

    lines: list[dict[str, float]] = []
    fields = {"max_steps": 30, "learning_rate": 3e-3, "batch_size": 6, "max_gradient_norm": 0.0}
    config = configure(kind, train=fields, algorithm={"group_size": 6})
    material = make_material(kind, faces, tmp_path, Darkness())
    train(material, config, tmp_path / "out", lambda *told: lines.append(told[2]))
    first, last = (sum(line["reward"] for line in some) / 5 for some in (lines[:5], lines[-5:]))
    assert last > first


def test_only_the_hard_faces_are_trained_on(faces: list[Face], tmp_path: Path) -> None:
    _, lines = run("gdpo", faces, tmp_path, algorithm={"hard_share": 0.5}, train={"max_steps": 2, "batch_size": 3})
    found = json.loads((tmp_path / "out" / "hard.json").read_text())
    worst = sorted(range(6), key=lambda place: found["rewards"][place])[:3]
    assert found["faces"] == sorted(worst)
    assert found["evaluations"] == 6 * 2
    assert [line["evaluations"] for line in lines] == [12 + 3 * 18, 12 + 6 * 18]


def test_hard_faces_are_chosen_and_paid_for_anew_until_there_is_a_checkpoint(faces: list[Face], tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def die(_done: int, _total: int, _values: dict[str, float]) -> None:
        raise Killed

    changes: dict[str, dict[str, Any]] = {"algorithm": {"hard_share": 0.5}, "train": {"max_steps": 2, "batch_size": 3}}
    changes["train"]["checkpoint_every_steps"] = 10
    _, whole = run("gdpo", faces, tmp_path, "whole", **changes)
    with pytest.raises(Killed):
        train(make_material("gdpo", faces, tmp_path), configure("gdpo", **changes), tmp_path / "parts", die)
    _, parts = run("gdpo", faces, tmp_path, "parts", **changes)
    assert parts[-1]["evaluations"] == whole[-1]["evaluations"] == 12 + 6 * 18

    others = tmp_path / "others"
    with pytest.raises(Killed):
        train(make_material("gdpo", faces, tmp_path), configure("gdpo", **changes), others, die)
    fewer = replace(make_material("gdpo", faces, tmp_path), faces=faces[:2])
    train(fewer, configure("gdpo", **changes), others, lambda _d, _t, _v: None)
    assert len(json.loads((others / "hard.json").read_text())["rewards"]) == 2


@pytest.mark.parametrize("method", ["refl", "dpo"])
def test_what_does_not_choose_hard_faces_refuses_to(method: str) -> None:
    with pytest.raises(ValueError, match="set hard_share to 1"):
        make_config(algorithm={"algorithm": method, "hard_share": 0.5})


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("gdpo", {"algorithm": {"hard_share": 0.5, "budget": 3}}, "took 12 network evaluations, and budget ends"),
        ("gdpo, one step", {"algorithm": {"group_noise": 0}}, "would be alike. Set group_noise"),
        ("dpo", {"algorithm": {"svm_weight": 0}, "pairs": {"origin": "svm"}}, "nothing to learn from"),
        ("dpo", {"pairs": {"lq": None}}, "4 of 4 pairs lack the photo"),
        ("grpo", {"restorer": make_micro_osediff}, "takes one step without noise. Take gdpo"),
        ("grpo", {"algorithm": {"gradient_steps": 3}}, "gradient_steps is 3, but only 2 denoising steps"),
        ("gdpo", {"reward": float("nan")}, r"The reward of .*\.png.* is not a number"),
    ],
)
def test_errors_say_what_is_wrong_before_anything_is_written(
    faces: list[Face], tmp_path: Path, kind: str, changes: dict[str, Any], said: str
) -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor, _captions: Sequence[str | None]) -> Tensor:
            return torch.full((len(images),), changes["reward"])

    material = make_material(kind, faces, tmp_path, Constant() if "reward" in changes else None)
    if "pairs" in changes:
        assert material.pairs is not None
        rows = tuple(replace(row, **changes["pairs"]) for row in material.pairs.rows)
        material = replace(material, pairs=replace(material.pairs, rows=rows))
    if "restorer" in changes:
        material = replace(material, restorer=changes["restorer"]())
    with pytest.raises(UserError, match=said):
        train(
            material, configure(kind, algorithm=changes.get("algorithm", {}), train={"max_steps": 1}), tmp_path / "out"
        )
    assert not (tmp_path / "out" / "last").exists()


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"algorithm": {"algorithm": "dpo"}, "live_reward": {"reward_every_steps": 10}}, "set reward_every_steps to 0"),
        ({"algorithm": {"algorithm": "grpo"}, "trajectory": {"eta": (0.0, 1.0)}}, "set eta to 1 1"),
        ({"algorithm": {"algorithm": "gdpo", "group_ends": 4}}, "half of group_size or less"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tables: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_config(**tables)

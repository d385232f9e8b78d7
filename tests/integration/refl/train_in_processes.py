"""ReFL trainings that `test_processes` runs in one process and in two.

Writes OUT/results.pt: for each scenario the first step's gradients and what came out, whether all trained tensors were
the same on all processes after every step, and how the training ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from PIL import Image as PilImage
from torch import Tensor

import refl.tune.monitor
from dataset.labelled import LabelledPair
from refl.tune.data import find_faces
from refl.tune.train import train
from refl.tune.training import Material
from reward.data import Pairs
from reward.model.checkpoint import compute_version, load_model
from runs.store import RunStopped
from tests.gradients import record_gradients
from tests.unit.refl.conftest import make_micro_osediff, make_micro_restorer
from tests.unit.refl.tune.test_refl_train import make_config
from training.precision import TrainedWeights

LOSS = {"reward_weight": 1.0, "structure_weight": 0.1, "regularizer_weight": 0.1, "perceptual": "gmsd"}
LEARNS = {"reward_every_steps": 1, "reward_learning_rate": 1e-3}
STEPS = {"max_steps": 5, "monitor_every_steps": 2, "monitor_faces": 3, "checkpoint_every_steps": 3, "batch_size": 4}
OSEDIFF = {"gradient_window": (0, 0)}
LORA = {"trainable": "lora", "lora_rank": 2}
SCENARIOS: dict[str, dict[str, dict[str, Any]]] = {
    "periods": {"train": {"keep_every_steps": 2, "ema_decay": 0.5}},
    "dataset": {"live_reward": {"replay_pairs": 2, "max_accuracy_loss": 0.01}},
    "nine faces": {"train": {"batch_size": 4, "micro_batch_size": 1}},
    "stop": {"train": {"on_hacking": "stop"}},
    "roll back": {"train": {"on_hacking": "roll_back"}},
    "brake": {"train": {"on_hacking": "brake", "brake_backs_max": 2, "ema_decay": 0.5}},
    "lora": {"train": LORA},
    "osediff": {"trajectory": OSEDIFF, "train": {**LORA, "image_size_px": 32}},
    "dpo": {"algorithm": {"algorithm": "dpo", "svm_weight": 0.5}, "live_reward": {"reward_every_steps": 0}},
    "gdpo": {"algorithm": {"algorithm": "gdpo", "group_size": 3, "hard_share": 0.5}, "train": {"batch_size": 3}},
    "grpo": {
        "algorithm": {"algorithm": "grpo", "group_size": 2, "updates": 2, "kl_weight": 0.1},
        "trajectory": {"eta": (1.0, 1.0)},
        "train": {**LORA, "batch_size": 3},
    },
    "bf16": {"train": {"mixed_precision": "bf16", "gradient_checkpointing": True}},
    "signal": {},
    "SIGUSR1": {},
    "killed": {},
}


class Killed(Exception):
    """Stands for `kill -9`: nothing is written any more."""


def main(folder: Path, out: Path) -> None:
    """Run every scenario."""
    results = {name: run_scenario(name, folder, out / name) for name in SCENARIOS}
    if os.environ.get("RANK", "0") == "0":
        torch.save(results, out / "results.pt")


def run_scenario(name: str, folder: Path, out: Path) -> dict[str, Any]:
    tables = SCENARIOS[name]
    config = make_config(
        **{
            "loss": LOSS,
            **tables,
            "live_reward": {**LEARNS, **tables.get("live_reward", {})},
            "train": {**STEPS, **tables.get("train", {})},
        }
    )
    seen: dict[str, Any] = {"gradients": [], "hashes": []}

    def keep(gradients: list[Tensor]) -> None:
        if len(seen["gradients"]) < 2:  # of the restorer and the reward model at the first step; of two steps of dpo
            seen["gradients"].append(gradients)

    signals = {"signal": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}
    act = die if name == "killed" else partial(send_signal, signals[name]) if name in signals else None
    with (
        record_gradients(keep),
        watch_steps(seen["hashes"], act),
        pretend_hacking(name in ("stop", "roll back", "brake")),
    ):
        ended = run_once(name, folder, out, config)
    result = {"gradients": seen["gradients"], "ended": [ended], "same": all_same(seen["hashes"])}
    if act:
        result["ended"].append(run_once(name, folder, out, config))
    return result


def run_once(name: str, folder: Path, out: Path, config: Any) -> str:
    """How the training ended: 'step 5', 'stopped', 'killed'."""
    faces = find_faces(folder / "faces")
    reward = load_model(folder / "reward")
    restorer = make_micro_osediff() if name == "osediff" else make_micro_restorer()
    material = Material(
        restorer,
        reward,
        faces,
        faces[:3],
        pairs=read_pairs(folder) if name in ("dataset", "dpo") else None,
        names={"reward": str(folder / "reward")},
        reward_version=compute_version(reward),
    )
    try:
        return f"step {train(material, config, out)['step']}"
    except RunStopped:
        return "stopped"
    except Killed:
        return "killed"


def read_pairs(folder: Path) -> Pairs:
    """Eight labelled pairs, half of them held out: the darker image wins."""
    rows = []
    for place in range(8):
        files = []
        for side, level in (("a", 60 + place), ("b", 200 - place)):
            files.append(folder / f"{place}{side}.png")
            if os.environ.get("RANK", "0") == "0" and not files[-1].exists():
                PilImage.new("RGB", (16, 16), (level, level, level)).save(files[-1])
        fields: dict[str, Any] = dict.fromkeys(LabelledPair.__dataclass_fields__)
        fields |= {"pair": str(place), "image_a": files[0], "image_b": files[1], "p_a": 1.0, "weight": 1.0}
        fields |= {"origin": "human", "made_by": "people", "source": str(place), "group": str(place), "lq": files[0]}
        rows.append(LabelledPair(**{**fields, "split": "val" if place % 2 else "train"}))
    return Pairs(folder, tuple(rows))


@contextmanager
def watch_steps(hashes: list[str], act: Callable[[int], None] | None) -> Iterator[None]:
    """Note a hash of all trained tensors after every optimizer step, then do something to the training."""
    step = TrainedWeights.step
    count = 0

    def take(weights: TrainedWeights, *arguments: Any) -> float:
        nonlocal count
        norm = step(weights, *arguments)
        digest = hashlib.sha256()
        for tensor in [*weights.masters, *weights.working]:
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        hashes.append(digest.hexdigest())
        count += 1
        if act:
            act(count)
        return norm

    TrainedWeights.step = take  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrainedWeights.step = step  # type: ignore[method-assign]


def send_signal(number: int, count: int) -> None:
    """To the last process alone, in its fourth optimizer step: the second training step."""
    last = int(os.environ.get("WORLD_SIZE", "1")) - 1
    if count == 4 and int(os.environ.get("RANK", "0")) == last:
        os.kill(os.getpid(), number)


def die(count: int) -> None:
    if count == 8:  # the restorer's and the reward's step of the fourth training step; the checkpoint is of the third
        raise Killed


@contextmanager
def pretend_hacking(really: bool) -> Iterator[None]:
    """Let every check but the first say hacking."""
    compare = refl.tune.monitor.compare

    def say(*arguments: Any, **more: Any) -> Any:
        verdict = compare(*arguments, **more)
        return replace(verdict, suspicious=True, hacking=True)

    if really:
        refl.tune.monitor.compare = say
    try:
        yield
    finally:
        refl.tune.monitor.compare = compare


def all_same(hashes: list[str]) -> bool:
    """Whether all processes had the same tensors after every step."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    return len(set(gather_object([json.dumps(hashes)]))) == 1

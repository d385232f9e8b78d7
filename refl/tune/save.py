"""Save a ReFL training: `last/` to continue from, `tuned/` to use, copies of every nth step in `steps/`.

Only what was trained is written, and the same numbers once: where `tuned/` or a copy holds what `last/` holds, its
files are links to those of `last/`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from refl.tune.setup import REWARD_FOLDER, Training
from reward.model.checkpoint import save_changes
from training.state import STEPS_FOLDER, keep_step, read_record, save_checkpoint


def first_hacking(training: Training) -> int | None:
    """The step at which the monitor first saw hacking."""
    history = training.monitor.history if training.monitor else []
    return next((row["step"] for row in history if row["verdict"] and row["verdict"]["hacking"]), None)


def rolls_back(training: Training) -> bool:
    """Whether `tuned/` is written at checks that are not suspicious, instead of with every checkpoint."""
    return training.monitor is not None and training.config.train.on_hacking == "roll_back"


def save_last(training: Training, out: Path) -> None:
    """Write `last/`, all that an exact continuation needs, and `tuned/`, unless hacking is to be rolled back."""
    sums = training.accelerator.reduce(training.sums, "sum")
    training.sums.zero_()
    if training.accelerator.is_main_process:
        training.sums.copy_(sums)
        state = {
            "step": training.step,
            "weights": training.weights.state_dict(),
            "live": training.live.state_dict(),
            "sums": training.sums.cpu(),
            "monitor": training.monitor.state_dict() if training.monitor else None,
        }
        save_checkpoint(out / "last", partial(_write_trained, training), _describe(training), state)
        if not rolls_back(training):
            save_checkpoint(out / "tuned", _choose_writer(training, out), _describe(training))
    training.accelerator.wait_for_everyone()


def save_tuned(training: Training, out: Path) -> None:
    """Write `tuned/` alone."""
    if training.accelerator.is_main_process:
        save_checkpoint(out / "tuned", partial(_write_used, training), _describe(training))
    training.accelerator.wait_for_everyone()


def keep_copy(training: Training, out: Path) -> None:
    """Write `steps/NNNNNN`, as usable as `tuned/`; also while hacking, so the start can be found later."""
    if training.accelerator.is_main_process:
        keep_max = training.config.train.keep_steps_max
        keep_step(out, training.step, keep_max, _choose_writer(training, out), _describe(training))
    training.accelerator.wait_for_everyone()


def _describe(training: Training) -> dict[str, object]:
    return {**training.record, "step": training.step, "hacking": first_hacking(training)}


def _write_trained(training: Training, folder: Path) -> None:
    """The weights as they are trained."""
    training.restorer.save_trained(folder, training.weights.values())
    _write_reward(training, folder)


def _write_used(training: Training, folder: Path) -> None:
    """The weights as they are used: the running average where there is one."""
    training.restorer.save_trained(folder, training.weights.best_values())
    _write_reward(training, folder)


def _write_reward(training: Training, folder: Path) -> None:
    live = training.live
    if live.weights:
        save_changes(live.learner, live.weights.values(), training.record["reward_base"], folder / REWARD_FOLDER)


def _choose_writer(training: Training, out: Path) -> Callable[[Path], None]:
    """Choose how to write this step's used weights: as links where files of this step hold the same numbers."""
    used = out / (f"{STEPS_FOLDER}/{training.step:06d}" if training.weights.averages else "last")
    is_written = used.exists() and read_record(used)["step"] == training.step
    return partial(_link, used) if is_written else partial(_write_used, training)


def _link(source: Path, folder: Path) -> None:
    """Give the weight files of one folder a second name in another; copy them where the disk knows no links."""
    for file in (
        path for path in source.rglob("*") if path.is_file() and path.name not in ("state.pt", "training.json")
    ):
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target)
        except OSError:
            shutil.copyfile(file, target)

"""Save a ReFL training: `last/` to continue from, `tuned/` to use, copies of every nth step in `steps/`.

Under the brake `good/` is what `last/` was at the last good check, to go back to, and `tuned/` is of that check too.

Only what was trained is written, and the same numbers once: where `tuned/` or a copy holds what `last/` holds, its
files are links to those of `last/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from db.errors import UserError
from refl.tune.brake import describe_checks, find_good_step
from refl.tune.setup import REWARD_FOLDER, load_learned
from refl.tune.training import Training
from reward.model.checkpoint import save_changes
from runs.files import link_or_copy, write_text_whole
from training.state import STEPS_FOLDER, keep_step, load_state, read_record, save_checkpoint


def first_hacking(training: Training) -> int | None:
    """The step at which the monitor first saw hacking."""
    return next((row["step"] for row in training.checks if row["verdict"] and row["verdict"]["hacking"]), None)


def rolls_back(training: Training) -> bool:
    """Whether `tuned/` is written at checks that are not suspicious, instead of with every checkpoint."""
    return training.monitor is not None and training.config.train.on_hacking in ("roll_back", "brake")


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
            "evaluations": training.evaluations.total,
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


def save_good(training: Training, out: Path) -> None:
    """Let `good/` be what `last/`, written at this step, is now, and write `tuned/` of it. A collective."""
    if training.accelerator.is_main_process:
        write = partial(_link, out / "last", but=("training.json",))
        save_checkpoint(out / "good", write, _describe(training))
        save_checkpoint(out / "tuned", _choose_writer(training, out), _describe(training))
    training.accelerator.wait_for_everyone()


def mend_good(training: Training, out: Path) -> None:
    """Finish what a kill between the writing of `last/` and that of `good/` and `tuned/` left undone. A collective.

    Raises:
        UserError: the checkpoint to go back to is not there, or is of another step.
    """
    good_step = find_good_step(training.checks)
    if good_step is None:
        return
    found = {name: _read_step(out / name) for name in ("good", "tuned")}
    training.accelerator.wait_for_everyone()  # all have read before one writes
    if training.step == good_step and set(found.values()) != {good_step}:
        save_good(training, out)
    elif found["good"] != good_step:
        seen = "missing" if found["good"] is None else f"of step {found['good']:,}"
        raise UserError(
            f"{out / 'good'} is {seen}, but the brake has to go back to step {good_step:,} where it must. Put it back "
            "as it was beside last/, or begin anew in another --out."
        )


def go_back(training: Training, out: Path) -> None:
    """Make all that is trained what it was at the last good check: weights, moments, averages, the live reward.

    The step and the monitor's history stay. Every process reads the same files.
    """
    good, weights, live = out / "good", training.weights, training.live
    state = load_state(good)
    with weights.in_masters():
        training.restorer.load_trained(good)
    weights.load_state_dict(state["weights"])
    if live.weights:
        with live.weights.in_masters():
            load_learned(live.learner, good / REWARD_FOLDER)
    live.load_state_dict(state["live"])
    training.accelerator.wait_for_everyone()


def write_checks(training: Training, out: Path) -> None:
    """Write `checks.json` for the run's page: what the monitor saw and what was done, a row a check."""
    found = {"checks": describe_checks(training.checks)}
    write_text_whole(out / "checks.json", json.dumps(found, indent=1) + "\n")


def _read_step(folder: Path) -> int | None:
    """The step of a checkpoint; None where there is none."""
    return int(read_record(folder)["step"]) if folder.is_dir() else None


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


def _link(source: Path, folder: Path, but: Sequence[str] = ("state.pt", "training.json")) -> None:
    """Give the files of one folder, but these, a second name in another; copy them where the disk knows no links."""
    for file in (path for path in source.rglob("*") if path.is_file() and path.name not in but):
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(file, target)

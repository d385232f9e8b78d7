"""Save and load the checkpoints of a training: `last/`, to continue from exactly, and `best/`, to use.

Where copies are asked for, `steps/NNNNNN` holds those that stay. All are checkpoint folders as `load_model` reads them,
with `training.json` beside: which settings, dataset and code they are of, the step, and what was measured. `last/`
holds `state.pt` as well: the optimizer, the scaler, the average of the weights and the random numbers' states. The
order of the pairs and the learning rate follow from the step.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from db.errors import UserError
from runs.space import explain_full_disk

STEPS_FOLDER = "steps"
"""Of a training's folder: the copies that stay."""


def save_checkpoint(
    folder: Path, write: Callable[[Path], None] | None, record: dict[str, Any], state: dict[str, Any] | None = None
) -> None:
    """Write a checkpoint beside and let it take the folder's place: it is there whole, or the one before is.

    Args:
        write: writes the weights into the folder that it is given, which is there; None where the state has them.
        record: JSON values for `training.json`.
        state: tensors, numbers and text in dicts, lists and tuples, for `state.pt`.
    Raises:
        UserError: it cannot be written; the one before is still there, and nothing of this one.
    """
    beside = folder.with_name(f"{folder.name}.part")
    then = "run the same command again; it continues from the checkpoint before"
    try:
        with explain_full_disk(folder, then, lambda: count_needed(folder, beside, state)):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            if write is not None:
                write(beside)
            if state is not None:
                torch.save(state, beside / "state.pt")
            (beside / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            for file in (path for path in beside.rglob("*") if path.is_file()):
                with open(file, "rb") as stream:
                    os.fsync(stream.fileno())
            _take_place(beside, folder)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"{folder}: the checkpoint cannot be written ({error}); mend that, then {then}.") from error
        raise


def count_needed(folder: Path, beside: Path, state: Any) -> int:
    """Bytes that a checkpoint takes: of the one before, or of what is written of this one and its state."""
    return max(measure_folder(folder), measure_folder(beside) + count_bytes(state))


def measure_folder(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def count_bytes(state: Any) -> int:
    """Bytes of the tensors of a nested state."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(count_bytes(value) for value in values)


def _take_place(beside: Path, folder: Path) -> None:
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        beside.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def keep_step(out: Path, step: int, keep_max: int, write: Callable[[Path], None], record: dict[str, Any]) -> None:
    """Write the copy `out/steps/NNNNNN` that stays beside last/, then remove the oldest ones over `keep_max`.

    Args:
        keep_max: how many stay; 0 for all.
        write, record: see `save_checkpoint`.
    Raises:
        UserError: it cannot be written; what was there before still is.
    """
    save_checkpoint(out / STEPS_FOLDER / f"{step:06d}", write, record)
    kept = sorted((path for path in (out / STEPS_FOLDER).iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
    for folder in kept[:-keep_max] if keep_max else []:
        shutil.rmtree(folder)


def find_last(out: Path) -> Path | None:
    """The newest whole `last/` of an output folder; None where training has not begun."""
    folder, old = out / "last", out / "last.old"
    if not folder.exists() and old.exists():  # killed between the two renames
        old.rename(folder)
    return folder if folder.exists() else None


def find_checkpoint(accelerator: Accelerator, out: Path, check: Callable[[dict[str, Any], Path], None]) -> Path | None:
    """The `last/` to continue; None where training begins. A collective.

    Args:
        check: called with its record and folder; raises where it is of another training.
    Raises:
        UserError: it is of another training, or damaged.
    """
    if accelerator.is_main_process:
        find_last(out)  # finish a rename that a kill interrupted, before other processes read
    accelerator.wait_for_everyone()
    last = find_last(out)
    if last:
        check(read_record(last), last)
    return last


def read_record(folder: Path) -> dict[str, Any]:
    """The `training.json` of a checkpoint.

    Raises:
        UserError: missing or damaged.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: is not a checkpoint to continue from ({error}). Move it away, or name another --out."
        ) from error
    return record


def load_state(folder: Path) -> dict[str, Any]:
    """The `state.pt` of a checkpoint; nothing but tensors and plain values is unpickled.

    Raises:
        UserError: missing, damaged, or it holds other things.
    """
    file, why = folder / "state.pt", "no checkpoint can be continued without it; move the folder away, or name an --out"
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{file}: holds Python objects that could run code, so it is not loaded; {why}.") from error
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{file}: cannot be read ({str(error).partition(chr(10))[0]}); {why}.") from error
    for part in (state, state.get("live", {})):
        if "weights" not in part and "optimizer" in part:
            part["weights"] = _read_older(part)
    return state


def _read_older(part: dict[str, Any]) -> dict[str, Any] | None:
    """Read the weights for `TrainedWeights.load_state_dict` from a state of earlier versions."""
    optimizer = part["optimizer"]
    others = {"averages": part.get("averages", []), "scaler": part.get("scaler")}
    return optimizer and {"optimizer": optimizer, **others}


def get_random_states() -> dict[str, Any]:
    """The states of this process's random generators, in types that `load_state` reads."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_states(states: Sequence[dict[str, Any]], process: int) -> None:
    """Continue this process's random numbers; a process that was not there before keeps those of its seed."""
    if process >= len(states):
        return
    state = states[process]
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])

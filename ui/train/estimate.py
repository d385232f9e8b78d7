"""Estimate a run's time and GPU memory from earlier runs of its kind."""

from __future__ import annotations

import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import Run, RunState
from runs.files import read_last_objects
from runs.store import run_folder

TAIL_BYTES = 262_144
MAX_RUNS = 30
DECISIVE: dict[str, tuple[str, ...]] = {
    "reward train": ("model.architecture", "model.image_size_px", "train.batch_size", "train.cache_frozen"),
    "refl train": (
        *("restorer", "train.batch_size", "train.image_size_px", "trajectory.steps", "trajectory.unroll"),
        *("algorithm.algorithm", "algorithm.group_size"),
    ),
}
"""By kind, what decides how long a step takes; runs that have it in common tell more than the others."""
USUAL = {"algorithm.algorithm": "refl", "algorithm.group_size": 6}
"""Of runs from before there was a choice."""
ENDED = (RunState.finished, RunState.stopped)


def estimate(session: Session, data: Path, kind: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """What earlier runs say of one with this config; None where there are none.

    Returns:
        run: which one; alike: whether it had the same of what decides the speed; seconds, of all, where steps are
        known; seconds_a_step; gpu_gib, the most that was taken; took_seconds and done, of that run.
    """
    steps = _steps_of(kind, config)
    ended = (
        select(Run).where(Run.kind == kind, Run.state.in_(ENDED), Run.started_at.is_not(None)).order_by(Run.id.desc())
    )
    found: dict[str, Any] | None = None
    for run in session.scalars(ended.limit(MAX_RUNS)):
        seen = _look_back(data, run)
        if seen is None or (steps and "seconds_a_step" not in seen):
            continue
        alike = all(
            _get(run.config, name, USUAL.get(name)) == _get(config, name, USUAL.get(name))
            for name in DECISIVE.get(kind, ())
        )
        if found is None or (alike and not found["alike"]):
            found = {"run": run.id, "alike": alike, **seen}
        if found["alike"]:
            break
    if found and steps and "seconds_a_step" in found:
        found["seconds"] = found["seconds_a_step"] * steps
    return found


def _steps_of(kind: str, config: dict[str, Any]) -> int | None:
    return _get(config, "train.max_steps") if kind in DECISIVE else None


def _get(values: dict[str, Any], name: str, usual: Any = None) -> Any:
    """`_get({"train": {"seed": 1}}, "train.seed")`"""
    found: Any = values
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return usual if found is None else found


def _look_back(data: Path, run: Run) -> dict[str, Any] | None:
    """What a run's last progress lines tell; None where it took no time that is known."""
    lines = [
        line
        for line in read_last_objects(run_folder(data, run.id) / "progress.jsonl", TAIL_BYTES)
        if all(isinstance(line.get(name), int | float) for name in ("time", "done"))
    ]
    seen: dict[str, Any] = {}
    pace = [
        (after["time"] - before["time"]) / (after["done"] - before["done"])
        for before, after in pairwise(lines)
        if after["done"] > before["done"]
    ]
    if pace:
        usual = statistics.median(pace)
        # a pause between a stop and its continuation is no step
        seen["seconds_a_step"] = statistics.fmean(value for value in pace if value <= 20 * usual)
    memory = [line["gpu_gib"] for line in lines if isinstance(line.get("gpu_gib"), int | float)]
    if memory:
        seen["gpu_gib"] = max(memory)
    if run.ended_at and run.started_at:
        seen["took_seconds"] = (run.ended_at - run.started_at).total_seconds()
        seen["done"] = lines[-1]["done"] if lines else None
    return seen or None

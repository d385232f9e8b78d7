"""Run an evaluation from its plan to its report: restore all, then measure all, one model in memory at a time.

Images and values are kept as they come, in the folder of the report: ended at any time, the same goes on after them and
ends with the same tables.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from refl.evaluate.compare import (
    choose_metrics,
    measure_quality,
    measure_reward,
    name_columns,
    summarize,
    tabulate,
    write_grid,
)
from refl.evaluate.faces import FaceSet
from refl.evaluate.fid import compare_by_fid
from refl.evaluate.plan import Plan
from refl.evaluate.report import write_report
from refl.evaluate.restored import Restored, read_seconds, restore_set, to_file_name
from refl.evaluate.values import Measured, open_measured
from refl.restore.methods import AskedMethod, load_method
from reward.score.scorer import load_scorer
from runs.files import write_text_whole
from runs.hold import hold_folder
from runs.space import explain_full_disk
from runs.store import RunStopped, code_version, without_nan
from runs.tables import write_table

log = logging.getLogger(__name__)

Done = Callable[[int], None]


def evaluate(
    plan: Plan,
    out: Path,
    asked: dict[str, Any],
    progress: Callable[[int, int], None],
    stop_asked: Callable[[], int] = lambda: 0,
) -> pd.DataFrame:
    """Restore and measure everything, write the report; returns its summary table.

    Args:
        asked: what was asked for, for the report.
        progress: called with (images restored and measured, total) after each batch.
        stop_asked: asked after each batch for the number of the signal to end by; 0 for none.
    Raises:
        UserError: a model cannot be loaded, or is too large for the memory, or another evaluation writes into `out`.
        RunStopped: a signal came; what is restored and measured is kept.
    """
    images = 0

    def done(more: int) -> None:
        nonlocal images
        images += more
        progress(images, plan.total)
        if stop := stop_asked():
            log.info("stopped; all so far is in %s, and the same command goes on", out)
            raise RunStopped(128 + stop)

    with hold_folder(out), explain_full_disk(out, "run the same command again; what is measured is kept"):
        restored: dict[str, list[Restored]] = {faces.name: [] for faces in plan.sets}
        for method in plan.methods:
            for name, made in restore_by(method, plan, out, done).items():
                restored[name] += made
            free_memory()
        return measure_and_report(plan, restored, out, asked, done)


def restore_by(asked: AskedMethod, plan: Plan, out: Path, done: Done) -> dict[str, list[Restored]]:
    """Set -> what a method made of it. The restorer is loaded even where all is there: to see that it is the same."""
    method = replace(load_method(asked, plan.options), name=asked.name)
    return {faces.name: restore_set(method, faces, plan.seeds, out, plan.batch_size, done) for faces in plan.sets}


def free_memory() -> None:
    """Before the next model takes as much again."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_and_report(
    plan: Plan, restored: dict[str, list[Restored]], out: Path, asked: dict[str, Any], done: Done
) -> pd.DataFrame:
    """Metrics, then one reward model after the other, then FID; then the tables."""
    device, measured = plan.options.device, open_measured(out / "measured.jsonl")
    metrics: dict[str, list[str]] = {}
    left_out: dict[str, str] = {}
    for faces in plan.sets:
        metrics[faces.name], missing = choose_metrics(faces.has_truth, device)
        left_out |= missing
        measure_quality(restored[faces.name], metrics[faces.name], measured, plan.batch_size, device, done)
    everything = [one for made in restored.values() for one in made]
    versions = {}
    for name, what in plan.rewards.items():
        versions[name] = reward_all(what, everything, plan, measured, done)
        free_memory()
    values, tables = [], []
    for faces in plan.sets:
        of_set = restored[faces.name]
        by_fid, why = compare_by_fid(of_set, plan.base, measured, plan.batch_size, device, done)
        left_out |= {"fid": why} if why else {}
        columns = name_columns(metrics[faces.name], versions, faces.has_truth)
        values.append(tabulate(of_set, columns, measured))
        tables += [summarize(values[-1], plan.base), *([by_fid] if len(by_fid) else [])]
        write_grid(out / f"{faces.name}.png", of_set)
    summary = pd.concat(tables, ignore_index=True)
    write_table(out / "values.csv", pd.concat(values, ignore_index=True))
    write_results(plan, summary, left_out, out, asked)
    return summary


def reward_all(what: str, everything: list[Restored], plan: Plan, measured: Measured, done: Done) -> str:
    """Rewards of all images by one model, which is gone when this returns; gives its version."""
    scorer = load_scorer(what, plan.options.device, weights_dir=plan.options.weights)
    measure_reward(scorer, everything, measured, plan.batch_size, done)
    return scorer.version


def write_results(
    plan: Plan, summary: pd.DataFrame, left_out: dict[str, str], out: Path, asked: dict[str, Any]
) -> None:
    """summary.csv, report.md and summary.json."""
    write_table(out / "summary.csv", summary)
    record: dict[str, Any] = {"asked": asked, "base": plan.base, "left_out": left_out, "notes": list(plan.notes)}
    record["code_version"] = code_version()
    record["seconds_an_image"] = {
        f"{faces.name} {method.name}": seconds_of(faces, method, out) for faces in plan.sets for method in plan.methods
    }
    record["faces"] = {faces.name: faces.names for faces in plan.sets}
    write_report(out, summary, record)
    text = json.dumps(without_nan(record), indent=2, ensure_ascii=False)
    write_text_whole(out / "summary.json", text + "\n")


def seconds_of(faces: FaceSet, method: AskedMethod, out: Path) -> float:
    """Seconds that a method took for an image of a set; NaN where that was not noted."""
    return read_seconds(out / "restored" / faces.name / to_file_name(method.name))

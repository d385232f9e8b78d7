"""Compute what the table of runs shows of each: progress, time left, and the one number that counts.

All of it comes from the end of the progress lines and the few files of a result, each read again only when it changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from db.models import Run
from runs.file_cache import read_file, read_json, read_number, read_part
from runs.files import read_last_objects
from runs.series import PART_NAMES
from runs.store import artifact_of, run_folder
from runs.tables import read_table

RATE_LINES = 20


@dataclass(frozen=True)
class Tail:
    """The end of the progress lines."""

    done: float | None = None
    total: float | None = None
    part: str | None = None
    """The stage or phase whose steps these are."""
    seconds_left: float | None = None
    """By the rate of the last lines."""
    values: dict[str, float] = field(default_factory=dict)
    """The last number of each name."""


def parse_tail(path: Path) -> Tail:
    """Read the last lines of a progress file."""
    lines = [line for line in read_last_objects(path) if isinstance(line.get("done"), int | float)]
    if not lines:
        return Tail()
    values = {name: value for line in lines for name, value in line.items() if isinstance(value, int | float)}
    last = lines[-1]
    total = last.get("total") if isinstance(last.get("total"), int | float) else None
    part = next((str(last[name]) for name in PART_NAMES if last.get(name)), None)
    return Tail(last["done"], total, part, _seconds_left(lines, total), values)


def _seconds_left(lines: list[dict[str, Any]], total: float | None) -> float | None:
    """Estimate the time left from the pace of the last lines of the same part, which a run has not gone back from."""
    steady = [lines[-1]]
    for line in reversed(lines[-RATE_LINES:-1]):
        same = all(line.get(name) == lines[-1].get(name) for name in PART_NAMES)
        if not same or line["done"] >= steady[-1]["done"] or not isinstance(line.get("time"), int | float):
            break
        steady.append(line)
    seconds = steady[0].get("time", 0) - steady[-1].get("time", 0)
    steps = steady[0]["done"] - steady[-1]["done"]
    if total is None or steps <= 0 or seconds <= 0:
        return None
    return float((total - steady[0]["done"]) * seconds / steps)


def read_tail(data: Path, run_id: int) -> Tail:
    """The end of a run's progress lines."""
    return read_file(run_folder(data, run_id) / "progress.jsonl", parse_tail) or Tail()


LIVE_FIGURES = {
    "reward train": (("val/accuracy", "accuracy"), ("loss", "loss")),
    "refl train": (
        ("held_out/frozen", "held-out reward"),
        ("held_out/live", "held-out reward"),
        ("reward", "reward"),
        ("rewards/accuracies", "accuracy"),
        ("loss", "loss"),
    ),
    "refl pretrain": (("val/psnr", "PSNR"), ("loss", "loss")),
    "annotate measure": (("images_per_second", "images/s"),),
}
"""Kind -> names in progress lines and what they are called, the one that counts first."""
COUNTS = {
    "annotate import": ("images_added", "images"),
    "annotate pair": ("added", "pairs"),
    "annotate measure": ("values", "values"),
    "annotate label": ("labelled", "labels"),
    "annotate export": ("rows", "rows"),
    "reward construct": ("rows", "pairs added"),
    "refl restore": ("restored", "faces"),
    "reward score": ("scored", "images"),
}
"""Kind -> the number of result.json that counts, and what it is a number of."""


def key_figure(data: Path, run: Run, tail: Tail) -> dict[str, str] | None:
    """The one number of a run: `value` as text and `name`, what it is."""
    folder = run_folder(data, run.id)
    result = read_json(folder / "result.json")
    if run.kind in COUNTS and isinstance(result.get(COUNTS[run.kind][0]), int):
        name, words = COUNTS[run.kind]
        return _figure(words, f"{result[name]:,}")
    if run.kind == "reward train" and isinstance(result.get("best"), dict):
        return _figure("best accuracy", _short(result["best"].get("accuracy")))
    if run.kind == "annotate fit":
        return _figure("accuracy", _short(read_part(read_json(folder / "summary.json"), "accuracy").get("accuracy")))
    artifact = artifact_of(data, run)
    if run.kind == "reward evaluate" and artifact:
        rows = read_json(artifact / "summary.json").get("scorers")
        known = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        best = max(known, key=lambda row: read_number(row, "accuracy") or 0.0, default=None)
        return _figure(str(best.get("scorer")), _short(best.get("accuracy"))) if best else None
    if run.kind == "refl evaluate" and artifact:
        row = read_file(artifact / "summary.csv", _parse_change)
        return _figure(f"{row['metric']}, {row['method']}", f"{float(row['change']):+.3g}") if row else None
    for name, words in LIVE_FIGURES.get(run.kind, ()):
        if name in tail.values:
            return _figure(words, _short(tail.values[name]))
    return None


def _parse_change(path: Path) -> dict[str, str] | None:
    """The first metric's change by the last method that was held against the base."""
    rows = [row for row in read_table(path) if row["change"]]
    return next((row for row in reversed(rows) if row["metric"] == rows[0]["metric"]), None)


def _figure(name: str, value: str | None) -> dict[str, str] | None:
    return {"name": name, "value": value} if value else None


def _short(value: Any) -> str | None:
    return f"{value:.4g}" if isinstance(value, int | float) and value == value else None

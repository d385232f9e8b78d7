"""Compute the missing metric values: `python -m annotate measure`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field

from annotate.measure.run import MAX_NAMED, MeasureReport, measure_missing
from db.errors import UserError
from metrics.lists import MetricError, list_names, load_metric_list
from runs.options import Command, Flag, Input, Options, Place
from runs.progress import show_progress
from runs.store import record


class MeasureOptions(Options):
    """What is measured, and where it computes."""

    metrics: Annotated[str, Input("metrics", "Metric list"), Flag(metavar="LIST")] = Field(
        "offline", min_length=1, description=f"{', '.join(list_names())}, or a TOML file of your own"
    )
    device: Annotated[str, Flag(terminal_only=True)] = Field(
        "auto", description="auto, cpu, cuda (every GPU) or cuda:1"
    )
    workers: int | None = Field(None, ge=1, le=1024, description="Processes (default: one per core, or two per GPU)")
    batch_size: int | None = Field(
        None, ge=1, le=10_000, description="Images stored together (default: 8, or 32 on a GPU)"
    )
    ray: Annotated[str | None, Flag(metavar="ADDRESS", alone="local", terminal_only=True)] = Field(
        None,
        description="Measure on a Ray cluster whose machines all see the data folder (without ADDRESS: start one here)",
    )


def settle_measure(options: MeasureOptions, _data: Path) -> MeasureOptions:
    """Check that the metric list can be read.

    Raises:
        UserError: it cannot.
    """
    try:
        load_metric_list(options.metrics)
    except MetricError as error:
        raise UserError(str(error)) from error
    return options


def run_measure(options: MeasureOptions, place: Place) -> None:
    """Measure what is missing and say what was done."""
    start = time.monotonic()
    metric_list = load_metric_list(options.metrics)
    with record(MEASURE, options, place) as (database, run), show_progress(run, "measuring", "images") as show:

        def progress(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - start, 1e-3)
            left = round((total - done) / rate) if done else None
            show(done, total, images_per_second=round(rate, 2), seconds_left=left)

        report = measure_missing(
            database,
            place.data,
            metric_list,
            device=options.device,
            workers=options.workers,
            batch_size=options.batch_size,
            progress=progress,
            ray_address=options.ray,
        )
        run.write_result(asdict(report))
    print_report(report, time.monotonic() - start)


def print_report(report: MeasureReport, seconds: float) -> None:
    """What was measured in one line, then what failed, could not be read or was left out."""
    rate = f" ({report.images / seconds:.1f} images/s)" if report.images else ""
    print(f"{report.values:,} values of {report.images:,} images measured in {seconds:.0f} s{rate}")
    for name, reason in report.skipped.items():
        print(f"left out: {name}: {reason}")
    for reason, count in list(report.failures.items())[:MAX_NAMED]:
        print(f"failed: {reason} ({count:,} {'image' if count == 1 else 'images'})")
    for name, reason in report.unreadable:
        print(f"unreadable: {name}: {reason}")
    if report.unreadable_count > len(report.unreadable):
        print(f"unreadable: {report.unreadable_count - len(report.unreadable):,} more")
    if report.unreadable_count:
        print("nothing is stored of unreadable images: put the files back and measure again")


MEASURE = Command(
    "annotate measure",
    "measure the restored images",
    MeasureOptions,
    run_measure,
    "Measures what is missing and nothing twice; ended at any time, the same command goes on.",
    settle_measure,
)

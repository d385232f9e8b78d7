"""`python -m annotate measure`: fill in the metric values that are not measured yet."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from annotate.measure.run import MAX_NAMED, MeasureReport, measure_missing
from db.errors import UserError
from db.session import Database
from metrics.lists import MetricError, list_names, load_metric_list
from runs.store import open_run

PROGRESS_SECONDS = 1.0


def add_measure_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`measure`: metric values of every restored image."""
    parser = commands.add_parser(
        "measure",
        help="measure the restored images",
        description="Measures what is missing and nothing twice; ended at any time, the same command goes on.",
    )
    parser.add_argument(
        "--metrics",
        default="offline",
        metavar="LIST",
        help=f"{', '.join(list_names())}, or a TOML file of your own (default: offline)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (every GPU), cuda:1 (default: auto)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core, or two a GPU)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images stored together (default: 8, 32 on a GPU)")
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="measure on a Ray cluster whose machines all see the data folder (without ADDRESS: start one here)",
    )
    parser.set_defaults(command=run_measure)


def run_measure(database: Database, args: argparse.Namespace) -> None:
    """Measure what is missing and say what was done."""
    try:
        metric_list = load_metric_list(args.metrics)
    except MetricError as error:
        raise UserError(str(error)) from error
    config = {
        "metrics": args.metrics,
        "list": metric_list.model_dump(),
        "device": args.device,
        "workers": args.workers,
        "batch_size": args.batch_size,
        "ray": args.ray,
    }
    start, last = time.monotonic(), 0.0
    with (
        open_run(database, args.data, "annotate measure", config, args.run) as run,
        tqdm(desc="measuring", unit=" images", disable=not sys.stderr.isatty()) as bar,
    ):

        def progress(done: int, total: int) -> None:
            nonlocal last
            bar.total = total
            bar.update(done - bar.n)
            if time.monotonic() - last >= PROGRESS_SECONDS or done == total:
                last = time.monotonic()
                rate = done / max(last - start, 1e-3)
                left = (total - done) / rate if done else None
                run.progress(done, total, images_per_second=round(rate, 2), seconds_left=left and round(left))

        report = measure_missing(
            database,
            Path(args.data),
            metric_list,
            device=args.device,
            workers=args.workers,
            batch_size=args.batch_size,
            progress=progress,
            ray_address=args.ray,
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

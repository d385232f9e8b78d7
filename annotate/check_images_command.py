"""`python -m annotate check-images`: stored images that a browser and a metric read differently, and their mend."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict

from tqdm import tqdm

from annotate.check_images import CheckReport, check_stored_images
from db.session import Database
from runs.store import open_run

PROGRESS_SECONDS = 1.0
MAX_PRINTED = 20


def add_check_images_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`check-images`: what earlier versions stored and everybody should see alike."""
    parser = commands.add_parser(
        "check-images",
        help="find stored images that people and metrics see differently",
        description="Earlier versions stored PNG files with gAMA, cHRM or cICP and some colour profiles as they came: "
        "a browser applies them, metrics did not. Without --mend nothing is changed.",
    )
    parser.add_argument("--mend", action="store_true", help="store them as people saw them, remove their values")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read files (default: one a core)")
    parser.set_defaults(command=run_check_images)


def run_check_images(database: Database, args: argparse.Namespace) -> None:
    """Check, mend where that is asked for, and say what was found."""
    config = {"mend": args.mend, "workers": args.workers}
    with (
        open_run(database, args.data, "annotate check-images", config, args.run) as run,
        tqdm(desc="reading", unit=" images", disable=not sys.stderr.isatty()) as bar,
    ):
        last = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal last
            bar.total = total
            bar.update(done - bar.n)
            if time.monotonic() - last >= PROGRESS_SECONDS or done == total:
                last = time.monotonic()
                run.progress(done, total)

        report = check_stored_images(database, args.data, mend=args.mend, workers=args.workers, progress=progress)
        run.write_result(asdict(report))
    print_report(report, args.mend)


def print_report(report: CheckReport, mend: bool) -> None:
    """How many images are affected, which, and what to do."""
    print(f"{report.images:,} images read, {len(report.affected):,} are seen differently by people and metrics")
    for kind, found in (("affected", report.affected), ("unreadable", report.unreadable)):
        for sha256, why in found[:MAX_PRINTED]:
            print(f"{kind}: {sha256}: {why}")
        if len(found) > MAX_PRINTED:
            print(f"{kind}: {len(found) - MAX_PRINTED:,} more; see the run's result.json")
    if not report.affected:
        return
    if not mend:
        print(f"{report.values:,} values were computed from other pixels than people saw; --mend removes them")
        return
    print(
        f"{report.mended:,} images are stored as people saw them, {report.values:,} values of other pixels removed. "
        "Next: python -m annotate measure, python -m reward score; then fit, export and train anew what was made of "
        "the old values. Judgments stay."
    )

"""`python -m annotate check`: stored images that are damaged or not as they should be stored, and their mend."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict

from tqdm import tqdm

from annotate.ingest.check_images import CheckReport, check_stored_images
from annotate.ingest.damage import Damage, describe_damage
from annotate.ingest.store import shown
from db.errors import UserError
from db.session import Database
from runs.store import open_run

PROGRESS_SECONDS = 1.0
MAX_PRINTED = 20


def add_check_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`check`: every stored image, read and compared with its name."""
    parser = commands.add_parser(
        "check",
        aliases=["check-images"],
        help="find stored images that are damaged, hold metadata, or are seen differently by people and metrics",
        description="Reads every stored image. Of one that is missing, cut off or changed it says what depends on it; "
        "importing its original again repairs it. Earlier versions stored files as they came, with their metadata, and "
        "with gAMA, cHRM, cICP or a colour profile, which a browser applies and metrics did not. Without --mend "
        "nothing is changed. Exits with 2 where an image is damaged.",
    )
    parser.add_argument(
        "--mend",
        action="store_true",
        help="take metadata out, which changes no pixel; store what was seen differently as people saw it, and remove "
        "its values",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read files (default: one a core)")
    parser.set_defaults(command=run_check)


def run_check(database: Database, args: argparse.Namespace) -> None:
    """Check, mend where that is asked for, and say what was found.

    Raises:
        UserError: an image is damaged; all of them were named before.
    """
    config = {"mend": args.mend, "workers": args.workers}
    with (
        open_run(database, args.data, "annotate check", config, args.run) as run,
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
        with database.read() as session:
            damaged = describe_damage(session, args.data, report.damaged)
        run.write_result({**asdict(report), "damaged": [asdict(one) for one in damaged]})
    print_report(report, damaged, args.mend)
    if damaged:
        raise UserError(
            f"{len(damaged):,} of {report.images:,} stored images are damaged. Import their originals again, which "
            "puts the files back; export the rest with --skip-bad."
        )


def print_report(report: CheckReport, damaged: list[Damage], mend: bool) -> None:
    """How many images are not as they should be, which, and what to do."""
    print(
        f"{report.images:,} images read, {len(report.affected):,} are seen differently by people and metrics, "
        f"{len(report.with_metadata):,} hold metadata, {len(damaged):,} are damaged"
    )
    lines = [f"affected: {sha256}: {why}" for sha256, why in report.affected[:MAX_PRINTED]]
    lines += [f"with metadata: {sha256}: {why}" for sha256, why in report.with_metadata[:MAX_PRINTED]]
    lines += [line for one in damaged[:MAX_PRINTED] for line in one.describe()]
    for line in lines:
        print(shown(line))
    more = sum(max(0, len(found) - MAX_PRINTED) for found in (report.affected, report.with_metadata, damaged))
    if more:
        print(f"{more:,} more; see the run's result.json")
    if report.with_metadata:
        print("the metadata is taken out, no value changes" if mend else "--mend takes the metadata out")
    if report.affected and not mend:
        print(f"{report.values:,} values were computed from other pixels than people saw; --mend removes them")
    elif report.affected:
        print(
            f"{len(report.affected):,} images are stored as people saw them, {report.values:,} values of other pixels "
            "removed. Next: python -m annotate measure, python -m reward score; then fit, export and train anew what "
            "was made of the old values. Judgments stay."
        )

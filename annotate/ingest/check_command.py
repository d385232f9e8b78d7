"""Check stored images and mend them: `python -m annotate check`."""

from __future__ import annotations

from dataclasses import asdict

from pydantic import Field

from annotate.ingest.check_images import CheckReport, check_stored_images
from annotate.ingest.damage import Damage, describe_damage
from annotate.ingest.store import shown
from db.errors import UserError
from runs.options import Command, Options, Place
from runs.progress import show_progress
from runs.store import record

MAX_PRINTED = 20


class CheckOptions(Options):
    """Whether to mend."""

    mend: bool = Field(
        False,
        description="Take metadata out, which changes no pixel; store what was seen differently as people saw it, and "
        "remove its values",
    )
    workers: int | None = Field(None, ge=1, le=1024, description="Processes that read files (default: one per core)")


def run_check(options: CheckOptions, place: Place) -> None:
    """Check, mend where that is asked for, and say what was found.

    Raises:
        UserError: an image is damaged; all of them were named before.
    """
    with record(CHECK, options, place) as (database, run), show_progress(run, "reading", "images") as show:
        report = check_stored_images(database, place.data, mend=options.mend, workers=options.workers, progress=show)
        with database.read() as session:
            damaged = describe_damage(session, place.data, report.damaged)
        run.write_result({**asdict(report), "damaged": [asdict(one) for one in damaged]})
    print_report(report, damaged, options.mend)
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


CHECK = Command(
    "annotate check",
    "find stored images that are damaged, hold metadata, or are seen differently by people and metrics",
    CheckOptions,
    run_check,
    "Reads every stored image. Of one that is missing, cut off or changed it says what depends on it; importing its "
    "original again repairs it. Earlier versions stored files as they came, with their metadata, and with gAMA, cHRM, "
    "cICP or a colour profile, which a browser applies and metrics did not. Without --mend nothing is changed. Exits "
    "with 2 where an image is damaged.",
    aliases=("check-images",),
)

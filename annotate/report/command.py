"""Rank the methods from the judgments: `python -m annotate rank`."""

from __future__ import annotations

from annotate.report.options import RankOptions
from runs.options import Command, Place
from runs.store import record


def run_rank(options: RankOptions, place: Place) -> None:
    """Write the report and print the ranking."""
    from annotate.report.write import format_summary, write_report  # here: the other commands plot nothing

    with record(RANK, options, place) as (database, run):
        out = options.out or run.folder
        with database.read() as session:
            summary = write_report(session, out, options, run.progress)
        run.write_result({"out": str(out), **summary})
    print(format_summary(summary))
    print(f"tables and pictures: {out}")


RANK = Command(
    "annotate rank", "rank the methods from the judgments; agreement, side bias, pictures", RankOptions, run_rank
)

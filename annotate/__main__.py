"""The command line of annotate: `python -m annotate import | pair | people | project | rank | export`."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path

from annotate.pairs import make_pairs
from annotate.project import load_settings
from db.errors import UserError
from db.models import Split
from db.session import Database, open_database
from runs.store import open_run


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """--data, --db and --run, as every command takes them."""
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder (default: ./data)")
    parser.add_argument(
        "--db",
        default=os.environ.get("FACEREWARD_DB"),
        help="database URL (default: SQLite in the data folder, or the environment's FACEREWARD_DB)",
    )
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)  # given by runs.launch


def add_pair_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`pair`: make pairs of the candidates of each source."""
    parser = commands.add_parser("pair", help="make pairs of the candidates of each source")
    parser.add_argument("--per-source", type=int, metavar="K", help="K random pairs a source (default: all)")
    parser.add_argument("--against", metavar="METHOD", help="only pairs with a candidate of this method")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choice (default: 0)")
    parser.set_defaults(command=run_pair)


def run_pair(database: Database, args: argparse.Namespace) -> None:
    """Make pairs and say how many."""
    config = {"per_source": args.per_source, "against": args.against, "seed": args.seed}
    with open_run(database, args.data, "annotate pair", config, args.run) as run:
        with database.write() as session:
            report = make_pairs(session, load_settings(session), **config)
        run.write_result(vars(report))
    print(
        f"{report.added} pairs added, {report.existing} were there; {report.sources_with_pairs} sources have pairs, "
        f"{report.sources_without_pairs} have no two candidates to compare"
        + (f"; {report.identical} pairs of identical files left out" if report.identical else "")
    )


def add_rank_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`rank`: methods ranked from the judgments, with the tables and pictures of the Report page."""
    parser = commands.add_parser("rank", help="rank the methods from the judgments; agreement, side bias, pictures")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (default: the run's folder)")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples, 0 for none (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the resampling (default: 0)")
    parser.add_argument("--split", choices=[split.value for split in Split], help="only pairs of this split")
    parser.add_argument("--people", nargs="+", default=[], metavar="NAME", help="only judgments of these people")
    parser.add_argument("--include-simulated", action="store_true", help="count simulated annotators too")
    parser.set_defaults(command=run_rank)


def run_rank(database: Database, args: argparse.Namespace) -> None:
    """Write the report and print the ranking."""
    from annotate.report import ReportOptions, format_summary, write_report  # here: the other commands plot nothing

    options = ReportOptions(
        n_resamples=args.resamples,
        seed=args.seed,
        split=Split(args.split) if args.split else None,
        people=tuple(args.people),
        include_simulated=args.include_simulated,
    )
    config = {**asdict(options), "out": str(args.out) if args.out else None}
    with open_run(database, args.data, "annotate rank", config, args.run) as run:
        out = args.out or run.folder
        with database.read() as session:
            summary = write_report(session, out, options, run.progress)
        run.write_result({"out": str(out), **summary})
    print(format_summary(summary))
    print(f"tables and pictures: {out}")


def main(argv: list[str] | None = None) -> int:
    """Run one command; a UserError becomes one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m annotate", description="From photos to a labelled dataset.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_pair_command(commands)
    add_rank_command(commands)
    for command in commands.choices.values():
        add_common_options(command)
    args = parser.parse_args(argv)
    try:
        database = open_database(args.data, args.db)
        args.command(database, args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

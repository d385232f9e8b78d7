"""The command line of annotate: `python -m annotate import | pair | mend | people | project | …`."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import time
import tomllib
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from sqlalchemy.orm import Session
from tqdm import tqdm

from annotate.exchange.export import export_dataset
from annotate.ingest.archive import list_outside, unpacked
from annotate.ingest.check_command import add_check_command
from annotate.ingest.equal_pixels import EqualPair, hash_candidates, set_aside_equal_pairs
from annotate.ingest.groups import Joined, input_images, join_groups
from annotate.ingest.store import ImportRefused, ImportReport, describe_counts, import_folder, shown
from annotate.judging.discard import describe_discard, describe_restore, discard_answers, list_people, restore_answers
from annotate.judging.gold import import_gold
from annotate.judging.pairs import make_pairs
from annotate.judging.people import (
    add_person,
    count_answers,
    describe_ways,
    disable_person,
    enable_person,
    end_sessions,
    find_doubles,
    get_person,
    make_link_token,
    read_lifetime,
    set_password,
)
from annotate.labeler.command import add_fit_command, add_label_command
from annotate.measure.command import add_measure_command
from dataset.options import ExportOptions
from dataset.tables import TABLE_SUFFIXES, read_columns
from db.errors import UserError
from db.models import Role, Split
from db.pixel_hashes import hash_pixels
from db.project import ProjectSettings, load_settings, save_settings
from db.records import describe_discarded
from db.session import Database, open_database
from runs.command import add_common_options, run_command
from runs.image_folders import clean_path
from runs.store import RunLog, open_run

PEOPLE_ACTIONS = ("add", "list", "link", "password", "sign-out", "disable", "enable", "discard", "restore")
PROGRESS_SECONDS = 1.0
MAX_PRINTED = 20


def add_import_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`import`: photos and restored images from a folder, a manifest or a zip; gold pairs; datasets."""
    parser = commands.add_parser(
        "import",
        help="import photos and restored images",
        description="PATH is a folder with lq/, optionally hq/, and one folder a method; a CSV or JSONL manifest; "
        "a CSV or JSONL file of gold pairs (columns source, method_a, method_b, answer); a dataset folder as `export` "
        "writes it; an HPDv2 train.json or test.json; or a zip of one of these.",
    )
    parser.add_argument("path", type=clean_path, metavar="PATH")
    parser.add_argument("--skip-bad", action="store_true", help="leave unfit files out instead of refusing the import")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that check files (default: one a core)")
    parser.add_argument(
        "--strip-suffix",
        action="append",
        default=[],
        metavar="TEXT",
        help="take this ending off the names of outputs, such as _out; may be given several times",
    )
    parser.add_argument("--ignore-case", action="store_true", help="names that differ only in case are one")
    parser.set_defaults(command=run_import)


def run_import(database: Database, args: argparse.Namespace) -> None:
    """Import and say what came in."""
    path: Path = args.path.expanduser().absolute()
    config = {"path": str(path), "skip_bad": args.skip_bad, "workers": args.workers}
    config |= {"strip_suffix": args.strip_suffix, "ignore_case": args.ignore_case}
    with open_run(database, args.data, "annotate import", config, args.run) as run:
        is_zip = path.suffix.lower() == ".zip" and not path.is_dir()
        with unpacked(args.data, path) if is_zip else nullcontext(path) as found:
            values = import_path(database, args, found, run)
        run.write_result(values)
    print_import(values)


def import_path(database: Database, args: argparse.Namespace, path: Path, run: RunLog) -> dict[str, Any]:
    """Import whatever the path is; returns what was done, as JSON values."""
    suffix = "" if path.is_dir() else path.suffix.lower()
    if (path / "pairs.jsonl").exists() or suffix == ".json":
        from annotate.exchange.read_back import import_dataset  # here: the other imports read no datasets
        from annotate.exchange.read_hpdv2 import import_hpdv2

        read_back = import_dataset if path.is_dir() else import_hpdv2
        values = {f"{name}_added": count for name, count in read_back(database, args.data, path).items()}
        # A dataset's splits hold as they are written; that they part a photo is said.
        apart, equal = mend(database, args.data, dry_run=True)
        return values | {"photos_to_mend": len(apart), "pairs_to_mend": len(equal)}
    if suffix in TABLE_SUFFIXES and "answer" in read_columns(path):
        pixels = hash_candidates(database, args.data)
        with database.write() as session:
            return {f"gold_pairs_{name}": count for name, count in asdict(import_gold(session, path, pixels)).items()}
    if path.is_file() and suffix not in TABLE_SUFFIXES:
        raise UserError(describe_other_file(path))
    with tqdm(desc="checking and storing", unit=" steps", disable=not sys.stderr.isatty()) as bar:
        last = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal last
            bar.total = total
            bar.update(done - bar.n)
            if time.monotonic() - last >= PROGRESS_SECONDS or done == total:
                last = time.monotonic()
                run.progress(done, total)

        try:
            report = import_folder(
                database,
                args.data,
                path,
                on_bad="skip" if args.skip_bad else "refuse",
                progress=progress,
                workers=args.workers,
                strip_suffixes=args.strip_suffix,
                ignore_case=args.ignore_case,
            )
        except ImportRefused as error:
            # All of them, for the page.
            run.write_result(ImportReport(refused=error.refused, advice=error.advice).to_result())
            raise
    report.ignored += [(name, "outside of the folder that is imported") for name in list_outside(path)]
    return report.to_result()


def describe_other_file(path: Path) -> str:
    """What to do with a file that is none of those that are imported."""
    if path.suffix.lower() in (".xlsx", ".xls", ".ods", ".numbers", ".parquet"):
        return f"{path} is a spreadsheet; save it as CSV (in Excel: CSV UTF-8) and import that."
    if path.suffix.lower() in (".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst"):
        return f"{path} is an archive, but no zip; unpack it and import the folder."
    return f"{path} is no folder, no .csv, .tsv or .jsonl file, and no zip."


def print_import(values: dict[str, Any]) -> None:
    """The counts in one line, then what was converted, refused, ignored by kind, and what else there is to know."""
    print(describe_counts(values))
    if values.get("photos_to_mend") or values.get("pairs_to_mend"):
        print("photos that share a picture are in several groups, or pairs are of equal pictures: see annotate mend")
    for suffix, why, count in values.get("ignored_kinds", []):
        print(f"ignored: {count:,} {suffix}: {why}")
    for kind in ("converted", "refused", "ignored", "differ_in_aspect", "share_a_picture"):
        words = kind.replace("_", " ")
        for name, why in values.get(kind, [])[:MAX_PRINTED]:
            print(f"{words}: {shown(name)}: {why}")
        if len(values.get(kind, [])) > MAX_PRINTED:
            print(f"{words}: {values[f'{kind}_count'] - MAX_PRINTED:,} more; see the run's result.json")


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
        pixels = hash_candidates(database, args.data)
        with database.write() as session:
            report = make_pairs(session, load_settings(session), **config, pixels=pixels)
            report.set_aside = len(set_aside_equal_pairs(session, pixels))
        run.write_result(vars(report))
    print(
        f"{report.added} pairs added, {report.existing} were there; {report.sources_with_pairs} sources have pairs, "
        f"{report.sources_without_pairs} have no two candidates to compare"
        + (f"; {report.identical} pairs of the same pixels left out" if report.identical else "")
        + (f"; {report.set_aside} that were there not asked any more" if report.set_aside else "")
    )


def add_mend_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`mend`: what older versions let into the database: a photo in two splits, pairs of the same picture."""
    parser = commands.add_parser(
        "mend",
        help="put photos that share a picture into one split, and ask no pair of equal pictures any more",
        description="Photos imported under several names by older versions can lie in several splits: they are put "
        "into that of the training where any of them is in it, else into val. Judgments and labels stay.",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    parser.set_defaults(command=run_mend)


def mend(database: Database, data: Path, *, dry_run: bool) -> tuple[list[Joined], list[EqualPair]]:
    """Join the groups of photos that share a picture and ask no pair of equal pictures any more; or find which."""
    with database.read() as session:
        inputs = input_images(session)
    pixels, candidates = hash_pixels(data, inputs), hash_candidates(database, data)
    with database.write() as session:
        joined = join_groups(session, load_settings(session), pixels)
        aside = set_aside_equal_pairs(session, candidates)
        if dry_run:
            session.rollback()
    return joined, aside


def run_mend(database: Database, args: argparse.Namespace) -> None:
    """Mend the database, or say what would be mended."""
    config = {"dry_run": args.dry_run}
    with open_run(database, args.data, "annotate mend", config, args.run) as run:
        joined, aside = mend(database, args.data, dry_run=args.dry_run)
        moved = sum(source.split is not source.split_before for source in joined)
        lines = [f"{shown(source.key)}: {source.describe()}" for source in joined]
        lines += [f"{shown(pair.source)}: {pair.describe()}" for pair in aside]
        counts = {"sources_joined": len(joined), "sources_moved": moved, "pairs_set_aside": len(aside)}
        run.write_result({**counts, "dry_run": args.dry_run, "changes": lines})
    for line in lines:
        print(line)
    would = "would be " if args.dry_run else ""
    print(
        f"{len(joined):,} photos {would}joined to the group of another, {moved:,} of them moved to another split; "
        f"{len(aside):,} pairs of equal pictures {would}asked no more"
    )
    if moved and not args.dry_run:
        print("what was trained and evaluated before saw the old splits: evaluate it again")


def add_people_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`people`: who may judge and who administers."""
    parser = commands.add_parser(
        "people",
        help="who judges: add, list, link, password, sign-out, disable, enable, discard, restore",
        description="`disable` bars a person from signing in, `enable` lets them in again. `discard` takes their "
        "answers out of all that is made of judgments and gives their pairs back to the others; `restore` undoes it.",
    )
    parser.add_argument("action", choices=PEOPLE_ACTIONS)
    parser.add_argument("name", nargs="?", metavar="NAME", help="the person; not for list")
    parser.add_argument("--role", choices=[role.value for role in Role], default="annotator", help="of a new person")
    parser.add_argument("--simulated", action="store_true", help="the new annotator is a program")
    parser.add_argument("--discard", action="store_true", help="with disable: discard their answers too")
    parser.add_argument(
        "--base-url",
        default="http://127.0.0.1:7860",
        metavar="URL",
        help="the server's address as that person reaches it, put before the link (default: %(default)s)",
    )
    parser.add_argument("--expires", default="", metavar="TIME", help="of a link: 30m, 12h, 7d, 2w (default: never)")
    parser.add_argument("--once", action="store_true", help="the link is gone once somebody has entered by it")
    parser.set_defaults(command=run_people)


def run_people(database: Database, args: argparse.Namespace) -> None:
    """One change to the people, or the list of them. A password is asked for, or read from standard input."""
    if (args.name is None) != (args.action == "list"):
        raise UserError("people list takes no name." if args.name else f"people {args.action} needs a name.")
    if args.action != "link" and (args.once or args.expires):
        raise UserError(f"--once and --expires are of people link, not of people {args.action}.")
    if args.action == "list":
        print_people(database)
        return
    if args.discard and args.action != "disable":
        raise UserError(f"--discard goes with disable; people discard {args.name} takes the answers out alone.")
    lifetime = read_lifetime(args.expires)
    password = read_password() if args.action == "password" else ""
    with database.write() as session:
        told = change_person(session, args, password, lifetime)
    print(told)


def change_person(session: Session, args: argparse.Namespace, password: str, lifetime: timedelta | None) -> str:
    """One change to one person; what to say of it."""
    name: str = args.name
    if args.action == "add":
        add_person(session, name, Role(args.role), simulated=args.simulated)
        return f"{name} added as {args.role}"
    if args.action == "link":
        token = make_link_token(get_person(session, name), lifetime, once=args.once)
        return f"{args.base_url.rstrip('/')}/enter/{token}"
    if args.action == "password":
        set_password(get_person(session, name), password)
        return "password set"
    if args.action == "sign-out":
        end_sessions(get_person(session, name))
        return f"{name} signed out everywhere"
    if args.action == "enable":
        return f"{enable_person(session, name).name} enabled"
    if args.action == "restore":
        return describe_restore(name, restore_answers(session, name))
    if args.action == "discard":
        return describe_discard(name, discard_answers(session, name))
    person = disable_person(session, name)
    if args.discard:
        return f"{name} disabled. {describe_discard(name, discard_answers(session, name))}"
    answers = count_answers(session, person)
    offer = f"; their answers still count, {answers:,} in all: people discard {name} takes them out" if answers else ""
    return f"{name} disabled{offer}"


def read_password() -> str:
    """A password typed twice unseen, or the first line of standard input; never an option, which others could see."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise UserError("The two passwords differ; nothing was changed.")
    return password


def print_people(database: Database) -> None:
    """A line a person: name, role, live judgments, ways to sign in, state; separated by tabs."""
    with database.read() as session:
        for person, judgments, discarded, _ in list_people(session):
            ways = describe_ways(person)
            state = "disabled" if person.disabled_at else "simulated" if person.simulated else "active"
            signs_in = " and ".join(ways) or "no password or link"
            answers = f"{judgments or 0} judgments" + (f" ({discarded} discarded)" if discarded else "")
            print("\t".join([person.name, person.role.value, answers, signs_in, state]))
        for line in find_doubles(session):
            print(line, file=sys.stderr)


def add_project_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`project`: the question, the guidelines, how often pairs are judged."""
    parser = commands.add_parser(
        "project",
        help="show or set the project's settings",
        description="`project show > project.toml`, edit it, `project set --from project.toml`; or "
        "`project set judgments_per_pair=2 reasons=eyes,skin`.",
    )
    parser.add_argument("action", choices=["show", "set"])
    parser.add_argument("changes", nargs="*", metavar="FIELD=VALUE", help="JSON, plain text, or words between commas")
    parser.add_argument("--from", dest="file", type=Path, metavar="FILE", help="settings from a TOML file, set first")
    parser.set_defaults(command=run_project)


def run_project(database: Database, args: argparse.Namespace) -> None:
    """Change settings, or show all of them as TOML."""
    if (args.action == "show") == bool(args.changes or args.file):
        raise UserError("project show takes no settings; project set takes FIELD=VALUE or --from FILE.")
    if args.action == "set":
        changes = load_changes(args.file) if args.file else {}
        changes |= dict(parse_change(text) for text in args.changes)
        with database.write() as session:
            save_settings(session, changes)
        print(f"set: {', '.join(changes)}")
        return
    with database.read() as session:
        settings = load_settings(session).model_dump()
    for name, value in settings.items():
        # A JSON value of these types is a TOML value too.
        print(f"# {ProjectSettings.model_fields[name].description}\n{name} = {json.dumps(value, ensure_ascii=False)}")


def load_changes(file: Path) -> dict[str, object]:
    """Settings from a TOML file."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not TOML ({error}).") from error


def parse_change(text: str) -> tuple[str, object]:
    """FIELD=VALUE: text as it stands, words between commas for a list, else JSON."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{text!r} is not FIELD=VALUE.")
    kind = type(ProjectSettings().model_dump().get(name))
    if kind is str:
        return name, value
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value.split(",") if kind is list else value


def add_rank_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`rank`: methods ranked from the judgments, with the tables and pictures of the Report page."""
    parser = commands.add_parser("rank", help="rank the methods from the judgments; agreement, side bias, pictures")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (default: the run's folder)")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples, 0 for none (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the resampling (default: 0)")
    parser.add_argument("--split", choices=[split.value for split in Split], help="only pairs of this split")
    parser.add_argument(
        "--people", action="extend", nargs="+", default=[], metavar="NAME", help="only judgments of these people"
    )
    parser.add_argument("--include-simulated", action="store_true", help="count simulated annotators too")
    parser.set_defaults(command=run_rank)


def run_rank(database: Database, args: argparse.Namespace) -> None:
    """Write the report and print the ranking."""
    from annotate.report.write import (  # here: the other commands plot nothing
        ReportOptions,
        format_summary,
        write_report,
    )

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


def add_export_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`export`: a dataset folder of the labels, in our own or another format."""
    parser = commands.add_parser("export", help="write the labels as a dataset that other tools read")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder (default: in the run's folder)")
    for name, field in ExportOptions.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        words = f"{field.description} (default: {field.default!r})".replace("%", "%%")
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else None
        if field.annotation is bool:
            parser.add_argument(flag, action="store_true", help=field.description)
        elif get_origin(field.annotation) is list:
            # extend, so that --methods=NAME can be given several times: a name may begin with a dash.
            parser.add_argument(flag, action="extend", nargs="+", default=[], metavar="NAME", help=field.description)
        else:
            parser.add_argument(flag, default=field.default, choices=choices, help=words)
    parser.set_defaults(command=run_export)


def run_export(database: Database, args: argparse.Namespace) -> None:
    """Write the dataset and say what is in it."""
    try:
        options = ExportOptions.model_validate({name: getattr(args, name) for name in ExportOptions.model_fields})
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(
            f"--{str(fault['loc'][0]).replace('_', '-')}: {fault['msg']}, got {fault['input']!r}"
        ) from error
    config = {**options.model_dump(mode="json"), "out": str(args.out) if args.out else None}
    last = 0.0
    with open_run(database, args.data, "annotate export", config, args.run) as run:
        out = args.out or run.folder / "dataset"

        def progress(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= PROGRESS_SECONDS or done == total:
                last = time.monotonic()
                run.progress(done, total)

        counts = export_dataset(database, args.data, out, options, progress)
        run.write_result({"out": str(out), **counts})
    splits = ", ".join(f"{split} {count}" for split, count in counts["splits"].items())
    dropped = ", ".join(f"{count} by {name}" for name, count in counts["dropped"].items() if count)
    print(f"{counts['rows']} labelled pairs ({splits}) as {options.format}; left out: {dropped or 'none'}")
    if counts.get("ties_left_out"):
        print(f"{counts['ties_left_out']} of them are ties, which {options.format} cannot say: left out")
    if discarded := describe_discarded(**counts["discarded"]):
        print(discarded)
    print(f"in {out}")


def main(argv: list[str] | None = None) -> int:
    """Run one command; a UserError, or a disk or database that fails, becomes one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m annotate", description="From photos to a labelled dataset.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_import_command(commands)
    add_pair_command(commands)
    add_mend_command(commands)
    add_people_command(commands)
    add_project_command(commands)
    add_measure_command(commands)
    add_check_command(commands)
    add_fit_command(commands)
    add_label_command(commands)
    add_rank_command(commands)
    add_export_command(commands)
    for command in dict.fromkeys(commands.choices.values()):  # one of two names is there twice
        add_common_options(command)
    args = parser.parse_args(argv)
    return run_command(lambda: args.command(open_database(args.data, args.db), args))


if __name__ == "__main__":
    sys.exit(main())

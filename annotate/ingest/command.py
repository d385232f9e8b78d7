"""Import photos, restored images, gold pairs and datasets: `python -m annotate import`; and `annotate mend`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from annotate.ingest.archive import list_outside, unpacked
from annotate.ingest.equal_pixels import EqualPair, hash_candidates, set_aside_equal_pairs
from annotate.ingest.groups import Joined, input_images, join_groups
from annotate.ingest.store import ImportRefused, ImportReport, describe_counts, import_folder, shown
from annotate.judging.gold import import_gold
from dataset.tables import TABLE_SUFFIXES, read_columns
from db.errors import UserError
from db.pixel_hashes import hash_pixels
from db.project import load_settings
from db.session import Database
from runs.image_folders import clean_path
from runs.options import Command, Flag, Input, Options, Place
from runs.progress import show_progress
from runs.store import RunLog, record

MAX_PRINTED = 20


class ImportOptions(Options):
    """What is imported, and what of it may be unfit."""

    path: Annotated[Path, Input("photos", "Folder, file or zip"), Flag(positional=True, metavar="PATH")] = Field(
        description="A folder, a manifest, gold pairs, a dataset, or a zip of one of these"
    )
    skip_bad: bool = Field(False, description="Leave unfit files out instead of refusing the import")
    workers: int | None = Field(None, ge=1, le=1024, description="Processes that check files (default: one per core)")
    strip_suffix: Annotated[list[str], Flag(repeated=True, metavar="TEXT")] = Field(
        [], description="Take this ending off the names of outputs, such as _out; may be given several times"
    )
    ignore_case: bool = Field(False, description="Names that differ only in case are one")


def settle_import(options: ImportOptions, _data: Path) -> ImportOptions:
    """Make the path absolute, as the run records it."""
    return options.model_copy(update={"path": clean_path(str(options.path)).expanduser().absolute()})


def run_import(options: ImportOptions, place: Place) -> None:
    """Import and say what came in."""
    path = options.path
    with record(IMPORT, options, place) as (database, run):
        is_zip = path.suffix.lower() == ".zip" and not path.is_dir()
        with unpacked(place.data, path) if is_zip else nullcontext(path) as found:
            values = import_path(database, place.data, options, found, run)
        run.write_result(values)
    print_import(values)


def import_path(database: Database, data: Path, options: ImportOptions, path: Path, run: RunLog) -> dict[str, Any]:
    """Import whatever the path is; returns what was done, as JSON values."""
    suffix = "" if path.is_dir() else path.suffix.lower()
    if (path / "pairs.jsonl").exists() or suffix == ".json":
        from annotate.exchange.read_back import import_dataset  # here: the other imports read no datasets
        from annotate.exchange.read_hpdv2 import import_hpdv2

        read_back = import_dataset if path.is_dir() else import_hpdv2
        values = {f"{name}_added": count for name, count in read_back(database, data, path).items()}
        # A dataset's splits hold as they are written; that they part a photo is said.
        apart, equal = mend(database, data, dry_run=True)
        return values | {"photos_to_mend": len(apart), "pairs_to_mend": len(equal)}
    if suffix in TABLE_SUFFIXES and "answer" in read_columns(path):
        pixels = hash_candidates(database, data)
        with database.write() as session:
            return {f"gold_pairs_{name}": count for name, count in asdict(import_gold(session, path, pixels)).items()}
    if path.is_file() and suffix not in TABLE_SUFFIXES:
        raise UserError(describe_other_file(path))
    with show_progress(run, "checking and storing") as show:
        try:
            report = import_folder(
                database,
                data,
                path,
                on_bad="skip" if options.skip_bad else "refuse",
                progress=show,
                workers=options.workers,
                strip_suffixes=options.strip_suffix,
                ignore_case=options.ignore_case,
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


class MendOptions(Options):
    """Whether to change anything."""

    dry_run: bool = Field(False, description="Say what would change, and change nothing")


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


def run_mend(options: MendOptions, place: Place) -> None:
    """Mend the database, or say what would be mended."""
    with record(MEND, options, place) as (database, run):
        joined, aside = mend(database, place.data, dry_run=options.dry_run)
        moved = sum(source.split is not source.split_before for source in joined)
        lines = [f"{shown(source.key)}: {source.describe()}" for source in joined]
        lines += [f"{shown(pair.source)}: {pair.describe()}" for pair in aside]
        counts = {"sources_joined": len(joined), "sources_moved": moved, "pairs_set_aside": len(aside)}
        run.write_result({**counts, "dry_run": options.dry_run, "changes": lines})
    for line in lines:
        print(line)
    would = "would be " if options.dry_run else ""
    print(
        f"{len(joined):,} photos {would}joined to the group of another, {moved:,} of them moved to another split; "
        f"{len(aside):,} pairs of equal pictures {would}asked no more"
    )
    if moved and not options.dry_run:
        print("what was trained and evaluated before saw the old splits: evaluate it again")


IMPORT = Command(
    "annotate import",
    "import photos and restored images",
    ImportOptions,
    run_import,
    "PATH is a folder with lq/, optionally hq/, and one folder a method; a CSV or JSONL manifest; a CSV or JSONL file "
    "of gold pairs (columns source, method_a, method_b, answer) or gold tasks (source, methods, answer); a dataset "
    "folder as `export` writes it; an HPDv2 train.json or test.json; or a zip of one of these.",
    settle_import,
)
MEND = Command(
    "annotate mend",
    "put photos that share a picture into one split, and ask no pair of equal pictures any more",
    MendOptions,
    run_mend,
    "Photos imported under several names by older versions can lie in several splits: they are put into that of the "
    "training where any of them is in it, else into val. Judgments and labels stay.",
)

"""Write the labels as a dataset folder: `python -m annotate export`."""

from __future__ import annotations

from pathlib import Path

from dataset.options import ExportOptions
from db.records import describe_discarded
from runs.files import check_new_folder
from runs.options import Command, Place
from runs.progress import show_progress
from runs.store import record


def settle_export(options: ExportOptions, _data: Path) -> ExportOptions:
    """Check that the folder is new.

    Raises:
        UserError: it is there already.
    """
    if options.out:
        check_new_folder(options.out)
    return options


def run_export(options: ExportOptions, place: Place) -> None:
    """Write the dataset and say what is in it."""
    from annotate.exchange.export import export_dataset  # here: the other commands load no pandas

    with record(EXPORT, options, place) as (database, run), show_progress(run, "copying", "images") as show:
        out = options.out or run.folder / "dataset"
        counts = export_dataset(database, place.data, out, options, show, run.add_licences)
        run.write_result({"out": str(out), **counts})
    splits = ", ".join(f"{split} {count}" for split, count in counts["splits"].items())
    dropped = ", ".join(f"{count} by {name}" for name, count in counts["dropped"].items() if count)
    print(f"{counts['rows']} labelled pairs ({splits}) as {options.format}; left out: {dropped or 'none'}")
    if counts.get("ties_left_out"):
        print(f"{options.format} has no ties; {counts['ties_left_out']} were left out")
    if discarded := describe_discarded(**counts["discarded"]):
        print(discarded)
    if "screened" in counts:
        print(f"people left out by screening: {len(counts['screened']['people'])}; the card says who and why")
    print(f"in {out}")


EXPORT = Command(
    "annotate export",
    "write the labels as a dataset that other tools read",
    ExportOptions,
    run_export,
    settle=settle_export,
)

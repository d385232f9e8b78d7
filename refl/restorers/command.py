"""List, download and check published files, and export what was tuned: `python -m refl weights`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from db.errors import UserError
from refl.published.manifest import find_here, read_manifest
from reward.model.manifest import WeightsEntry
from reward.model.weights_folder import WeightsFolder, choose_weights_folder
from runs.finding import Finding
from runs.options import Command, Flag, Options, Place


class WeightsOptions(Options):
    """What is done with which files."""

    action: Annotated[Literal["list", "fetch", "check", "export"], Flag(positional=True)] = Field(
        description="What to do"
    )
    names: Annotated[list[str], Flag(positional=True, metavar="NAME")] = Field(
        [], description="As `list` shows them; check: all where none is given. export: FOLDER FILE"
    )
    weights: WeightsFolder = None


def run_weights(options: WeightsOptions, place: Place) -> None:
    """Do the action with the named files."""
    names, folder = options.names, choose_weights_folder(options.weights, place.data)
    if options.action == "export":
        export_file(names, folder)
        return
    manifest = read_manifest(folder)
    unknown = [name for name in names if name not in manifest]
    if unknown:
        raise UserError(f"There are no weights {unknown[0]!r}. The names: {', '.join(manifest)}.")
    chosen = {name: manifest[name] for name in names or manifest}
    if options.action == "fetch":
        if not names:
            raise UserError("Name what to fetch, as `python -m refl weights list` shows it.")
        lines = fetch_files(chosen, folder)
    elif options.action == "check":
        lines = check_files(chosen, folder)
    else:
        lines = list_files(chosen, folder)
    for line in lines:
        print(line)


def export_file(names: list[str], weights: Path) -> None:
    """Write what a training left as its restorer's authors' own code loads it.

    Raises:
        UserError: two paths were not given, or the folder holds what no published form is of.
    """
    if len(names) != 2:
        raise UserError("Give the folder that a training wrote and the file to write: weights export FOLDER FILE.")
    from refl.restorers.export import export_trained

    count, form = export_trained(Path(names[0]), Path(names[1]), weights)
    print(f"{names[1]}: {count} tensors in {form}")


def list_files(chosen: dict[str, WeightsEntry], folder: Path) -> Iterator[str]:
    """What they are, and whether they are here."""
    for name, entry in chosen.items():
        path = find_here(entry, folder)
        size = say_size(path.stat().st_size if path else entry.size_bytes)
        yield f"{name}  {entry.file}  {size}  {'here: ' + str(path) if path else 'not here'}"
        yield f"    {entry.description}"
        yield f"    licence: {entry.licence}"
        yield f"    from: {', '.join([*entry.hub, *entry.url]) or entry.page}"


def say_size(size_bytes: int) -> str:
    """'5,214 MB'; empty where it is not known."""
    return f"{size_bytes / 1e6:,.0f} MB" if size_bytes else ""


def find_weights(place: Place) -> list[Finding]:
    """Which published files are here, and how the others are got; a file of another size than published is a fault."""
    folder, findings = choose_weights_folder(None, place.data), []
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return [Finding("fault", "weights", str(error))]
    for title, entry in manifest.items():
        path, name = find_here(entry, folder), f"weights {title}"
        licence = f"licence: {entry.licence}"
        if path is None:
            fetch = f"python -m refl weights fetch {title}"
            todo = fetch if entry.hub or entry.url else f"get it from {entry.page} and put it into {folder}"
            seen = f"not here, {say_size(entry.size_bytes) or 'of unknown size'}; {licence}"
            findings.append(Finding("note", name, seen, todo))
        elif entry.size_bytes and path.stat().st_size != entry.size_bytes:
            seen = f"{path} has {path.stat().st_size:,} bytes, not the {entry.size_bytes:,} that were published"
            findings.append(Finding("fault", name, seen, f"delete it, then: python -m refl weights fetch {title}"))
        else:
            findings.append(Finding("ok", name, f"{path}, {say_size(path.stat().st_size)}; {licence}"))
    return findings


def fetch_files(chosen: dict[str, WeightsEntry], folder: Path) -> Iterator[str]:
    """Download what is not here, and check it."""
    from refl.published.weights import find_file  # here: it loads torch, which --help need not wait for

    for name in chosen:
        found = find_file(name, folder)
        yield f"{name}: {found.path}"


def check_files(chosen: dict[str, WeightsEntry], folder: Path) -> Iterator[str]:
    """Check those that are here.

    Raises:
        UserError: one or more are not what they should be; each is named.
    """
    from refl.published.weights import identify

    faults = []
    for name, entry in chosen.items():
        path = find_here(entry, folder)
        if path is None:
            yield f"{name}: not here"
            continue
        try:
            found = identify(path, entry)
        except UserError as error:
            faults.append(str(error))
            yield f"{name}: WRONG"
            continue
        known = "as published" if entry.sha256 else "its published checksum is not known to us"
        yield f"{name}: {path}, SHA-256 {found.sha256} ({known})"
    if faults:
        raise UserError(" ".join(faults))


WEIGHTS = Command(
    "refl weights",
    "list, download or check published weight files; export what was tuned",
    WeightsOptions,
    run_weights,
    "Published weight files: which there are and under which licence, from which mirror to get them. With "
    "HF_HUB_OFFLINE=1 nothing is downloaded. `export FOLDER FILE` writes what a training left in FOLDER as its "
    "authors' own code loads it: a ControlNet of DiffBIR, or adapters of a one-step restorer.",
    check=find_weights,
)

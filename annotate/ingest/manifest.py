"""Read manifests, tables with one row per candidate, into a plan of what to import.

Columns: `source` (its name), `lq`, `hq`, `method`, `restored`, `seed`, `caption`, `person`. Only `source` is needed in
every row; `method` and `restored` come together. Paths are relative to the manifest's folder and stay inside it.
`person` names who is in the photo: all photos of one person get the same split.

Tables are read as people's programs write them: CSV with commas, semicolons, tabs or bars, in UTF-8 or UTF-16, with
capitals in the header, empty rows, empty columns at the end, and pandas' column of row numbers; or JSON lines.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path

from annotate.ingest.layout import Plan, PlannedSource, check_caption
from dataset.tables import TABLE_SUFFIXES, Row, parse_seed, read_columns, read_table
from db.errors import UserError
from runs.image_folders import (
    is_image_name,
    is_system_entry,
    name_forms,
)

COLUMNS = ("source", "lq", "hq", "method", "restored", "seed", "caption", "person")


def read_manifest(path: Path) -> Plan:
    """The plan of a manifest; images that lie beside those that it names are its ignored ones.

    Raises:
        UserError: unreadable, an unknown or missing column, a value that cannot be, a path that leaves the manifest's
            folder, two rows that contradict each other, or no row; the message names the line.
    """
    plan = Plan(path.parent)
    for line, row in read_table(path, COLUMNS, required=("source",)):
        try:
            _plan_row(plan, row)
        except UserError as error:
            raise UserError(f"{path.name}, line {line}: {error}") from error
    if not plan.sources:
        raise UserError(f"{path} {_describe_no_rows(path)}")
    _note_others(plan)
    return plan


def _note_others(plan: Plan) -> None:
    """Count the images that lie in the folders of the manifest's files and that it does not name."""
    named = {os.path.normpath(name) for source in plan.sources.values() for name in source.files()}
    for folder in sorted({os.path.dirname(name) for name in named}):
        try:
            entries = sorted(os.listdir(plan.root / folder))
        except OSError:
            continue  # its files are missing then, which is said of each
        for entry in entries:
            name = os.path.join(folder, entry)
            if name not in named and is_image_name(entry) and not is_system_entry(entry):
                plan.ignored.append((name, "not named in the manifest"))


def _describe_no_rows(path: Path) -> str:
    """Explain what a file without rows is, and what to do."""
    with open(path, "rb") as stream:
        start = stream.read(200)
    if start.startswith(b"PK"):
        return "is a spreadsheet or a zip, whatever its name; save it as CSV (in Excel: CSV UTF-8)."
    line = start.decode("utf-8-sig", "replace").strip().partition("\n")[0][:80]
    seen = f"below its first line {line!r}" if line.isprintable() and line else "at all"
    return f"has no rows {seen}. The first line names the columns ({', '.join(COLUMNS)}), the others are a row each."


def find_manifest(folder: Path) -> Path | None:
    """The manifest that lies beside the folders lq/ and so on: the table with a column `source`, but no gold pairs.

    Raises:
        UserError: there are several, one cannot be read, or it lies where it is not read: in lq/ or hq/, or as a list.
    """
    found = _find_tables(folder)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{folder} has several tables that could be its manifest: {names}. Keep one beside lq/.")
    for place in (path for path in folder.iterdir() if path.name.lower() in ("lq", "hq")):
        if inside := _find_tables(place):
            raise UserError(f"{inside[0]} is a manifest; move it up beside {place.name}/, with paths from there on.")
    for path in folder.glob("*.json"):
        with suppress(OSError, ValueError, RecursionError):
            rows = json.loads(path.read_bytes())
            if isinstance(rows, list) and rows and isinstance(rows[0], dict) and "source" in rows[0]:
                raise UserError(
                    f"{path} is a manifest as one list; save it with a row per line as .jsonl (pandas: "
                    "to_json(orient='records', lines=True)), or as .csv."
                )
    return found[0] if found else None


def _find_tables(folder: Path) -> list[Path]:
    """The manifests that lie in a folder."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in TABLE_SUFFIXES and path.is_file() and not is_system_entry(path.name):
            columns = read_columns(path)
            if "source" in columns and "answer" not in columns:
                found.append(path)
    return found


def add_manifest(plan: Plan, path: Path) -> None:
    """Let the manifest beside lq/ say what it knows of the folder's photos; where both speak, they must agree.

    A file that the manifest gives to a source, a method or a seed is no longer what its own name says.

    Raises:
        UserError: as `read_manifest`, or the manifest contradicts the folder.
    """
    told = read_manifest(path)
    plan.ignored = [entry for entry in plan.ignored if entry[0] != path.name]
    named = {os.path.normpath(name): key for key, source in told.sources.items() for name in source.files()}
    for key, source in list(plan.sources.items()):
        # A photo that the manifest calls otherwise takes its images along.
        if source.lq in named and named[source.lq] != key and key not in told.sources:
            del plan.sources[key]
            other = plan.sources.setdefault(named[source.lq], PlannedSource(named[source.lq]))
            other.lq, other.hq, other.caption = source.lq, source.hq, source.caption
            other.candidates |= source.candidates
    for key, source in list(plan.sources.items()):
        source.candidates = {slot: name for slot, name in source.candidates.items() if name not in named}
        if not any(source.files()) and key not in told.sources:
            del plan.sources[key]
    for key, source in told.sources.items():
        stem = os.path.splitext(key)[0]
        if key not in plan.sources and is_image_name(key) and stem in plan.sources:
            key = stem  # a photo called by its file's name
        there = plan.sources.setdefault(key, PlannedSource(key))
        for name in ("lq", "hq", "caption", "group"):
            value, known = getattr(source, name), getattr(there, name)
            if value is not None and known not in (None, value):
                raise UserError(
                    f"{path.name}: source {key!r} has {name} {value!r} there, but {known!r} in the folder. Mend one "
                    "of them, or move the manifest away."
                )
            setattr(there, name, known if value is None else value)
        there.candidates |= source.candidates


def _plan_row(plan: Plan, row: Row) -> None:
    key = row["source"]
    source = plan.sources.setdefault(key, PlannedSource(key))
    why = check_caption(row.get("caption", ""))
    if why:
        raise UserError(f"source {key!r} has {why}.")
    for column, name in (("lq", "lq"), ("hq", "hq"), ("caption", "caption"), ("person", "group")):
        value: str | None = row.get(column)
        if not value:
            continue
        if column in ("lq", "hq"):
            value = _inside(plan.root, value)
        earlier = getattr(source, name)
        if earlier not in (None, value):
            raise UserError(f"source {key!r} has {column} {value!r} here and {earlier!r} in an earlier row.")
        setattr(source, name, value)
    if bool(row.get("method")) != bool(row.get("restored")):
        raise UserError("method and restored come together; one of them is empty.")
    if row.get("method"):
        slot, file = (row["method"], parse_seed(row.get("seed", ""))), _inside(plan.root, row["restored"])
        if source.candidates.setdefault(slot, file) != file:
            raise UserError(
                f"source {key!r} by method {slot[0]!r}, seed {slot[1]}, is {file!r} here and "
                f"{source.candidates[slot]!r} in an earlier row; give them different seeds."
            )


def _inside(root: Path, value: str) -> str:
    """A path relative to the root, whichever way it was written: absolute, in quotes, with backslashes."""
    top = os.path.abspath(root)
    for text in dict.fromkeys((value, value.strip("\"'"), value.strip("\"'").replace("\\", "/"))):
        for form in name_forms(text):
            relative = os.path.relpath(os.path.join(top, form), top)
            if relative == os.pardir or relative.startswith(os.pardir + os.sep):
                raise UserError(f"{value!r} leaves the manifest's folder; move the file, or the manifest above it.")
            if os.path.lexists(os.path.join(top, relative)):
                return relative
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", value):
        raise UserError(f"{value!r} is an address; download the file and name it from the manifest's folder on.")
    if re.match(r"[A-Za-z]:[\\/]", value.strip("\"'")):
        short = "/".join(re.split(r"[\\/]", value)[-2:])
        raise UserError(
            f"{value!r} is a path of another computer; name the file from the manifest's folder on, such as {short!r}."
        )
    return os.path.relpath(os.path.join(top, value), top)

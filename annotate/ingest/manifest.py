"""Manifests: a table with one row a candidate, read into a plan; and the reading of such tables.

Columns: `source` (its name), `lq`, `hq`, `method`, `restored`, `seed`, `caption`, `person`. Only `source` is needed in
every row; `method` and `restored` come together. Paths are relative to the manifest's folder and stay inside it.
`person` names who is in the photo: all photos of one person get the same split.

Tables are read as people's programs write them: CSV with commas, semicolons, tabs or bars, in UTF-8 or UTF-16, with
capitals in the header, empty rows, empty columns at the end, and pandas' column of row numbers; or JSON lines.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from annotate.ingest.layout import Plan, PlannedSource, check_caption
from db.errors import UserError
from runs.image_folders import (
    describe_fault,
    find_encoding,
    is_image_name,
    is_shown,
    is_system_entry,
    name_forms,
    normalize_name,
)
from runs.tables import restore_cell

COLUMNS = ("source", "lq", "hq", "method", "restored", "seed", "caption", "person")
JSON_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", *JSON_SUFFIXES)
DELIMITERS = ",;\t|"
MAX_SEED = 2**31 - 1
SEED = re.compile(r"([0-9]+)(?:[.,]0*)?")
"""A whole number, also as spreadsheets write a column that has empty cells: 1.0, or 1,0."""
EXCEL_DELIMITER = re.compile(r'\ufeff?"?sep=(.?)"?[,;\t]*', re.IGNORECASE)
"""A first line that Excel reads and writes; other programs put quotes around it, or their own delimiters behind."""
NO_VALUE = ("nan", "<na>", "na", "n/a", "#n/a", "none", "null")
"""What pandas, R, databases and spreadsheets write for an empty number."""
ROW_NUMBERS = re.compile(r"|index|level_0|unnamed: 0[.0-9]*")
"""What pandas calls its columns of row numbers; it makes another each time that it reads and writes a table."""

Row = dict[str, str]


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
    """What a file is in which no row was found, with what to do."""
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
                    f"{path} is a manifest as one list; save it with a row a line as .jsonl (pandas: "
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


def parse_seed(text: str) -> int:
    """A seed column's value, 0 where it is empty."""
    if not text or text.lower() in NO_VALUE:
        return 0
    found = SEED.fullmatch(text)
    if found is None or int(found[1]) > MAX_SEED:
        raise UserError(f"seed {text!r} is not a whole number from 0 to {MAX_SEED}.")
    return int(found[1])


def read_columns(path: Path) -> list[str]:
    """The columns of a table: the header of a CSV file, the keys of the first line of a JSONL file."""
    return next((list(row) for _, row in _read_rows(path)), [])


def read_table(path: Path, columns: tuple[str, ...], required: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    """(line number, row) of a CSV or JSONL file; values without space around them, empty ones as ''.

    Names are in the normal form NFC, as `runs.image_folders.normalize_name` makes them.

    Args:
        columns: all that a row may have.
        required: those that every row has, not empty.
    Raises:
        UserError: not such a table; the message names the line.
    """
    for line, row in _read_rows(path):
        where = f"{path.name}, line {line}"
        unknown = [repr(name) for name in row if name not in columns]
        if unknown:
            raise UserError(f"{where}: unknown column {', '.join(unknown)}. Known: {', '.join(columns)}.")
        for name in required:
            if name not in row:
                raise UserError(f"{where}: no column {name!r}. Needed: {', '.join(required)}.")
            if not row[name]:
                raise UserError(f"{where}: {name} is empty.")
        for name, value in row.items():
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise UserError(
                    f"{where}: {name} {value!r} has half a character (a lone surrogate); write the text anew, in UTF-8."
                )
            if name != "caption" and not is_shown(value):
                raise UserError(f"{where}: {name} {value!r} has characters that cannot be shown.")
        yield line, {name: value if name == "caption" else normalize_name(value) for name, value in row.items()}


def _read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    read = _read_jsonl if path.suffix.lower() in JSON_SUFFIXES else _read_csv
    try:
        with open(path, "rb") as start:
            encoding = find_encoding(start.read(4))
        with open(path, encoding=encoding, newline="") as stream:
            yield from read(path, stream)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text ({describe_fault(error)}); save it as UTF-8 (Excel: CSV UTF-8)."
        ) from error


def _read_csv(path: Path, stream: TextIO) -> Iterator[tuple[int, Row]]:
    start, line, delimiter = 0, "", ""
    while not line.strip(DELIMITERS + '" \r\n'):  # empty rows before the header
        start, line = start + 1, stream.readline()
        if not line:
            return
        if told := EXCEL_DELIMITER.fullmatch(line.rstrip("\r\n")):
            line, delimiter = "", told[1]
    line = line.removeprefix("\ufeff")  # where two programs put one
    delimiter = delimiter or _find_delimiter(line)
    reader = csv.reader(_chain(line, stream), delimiter=delimiter, strict=True)
    try:
        header = [name.strip().lower() for name in next(reader)]
        named = [name for name in header if name]
        if len(set(named)) < len(named):
            raise UserError(f"{path.name}, line {start}: a column is named twice: {', '.join(named)}.")
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            number = start - 1 + reader.line_num
            while len(values) > len(header) and not values[-1].strip():
                values.pop()
            if len(values) != len(header):
                raise UserError(
                    f"{path.name}, line {number}: {len(values)} values for {len(header)} columns "
                    f"({', '.join(header)}); put a value that has a {delimiter!r} in quotes."
                )
            # names may come from a table of our reports
            row = {name: restore_cell(value.strip()) for name, value in zip(header, values, strict=True) if name}
            _drop_row_numbers(row, header, values)
            nameless = [value for name, value in zip(header, values, strict=True) if not name and value.strip()]
            if nameless and not (header[0] == "" and nameless == [values[0]] and values[0].strip().isdecimal()):
                raise UserError(f"{path.name}, line {number}: {nameless[0]!r} stands in a column without a name.")
            yield number, row
    except csv.Error as error:
        raise UserError(f"{path.name}, line {start - 1 + reader.line_num}: not CSV ({error}).") from error


def _chain(line: str, stream: TextIO) -> Iterator[str]:
    yield line
    yield from stream


def _drop_row_numbers(row: Row, header: list[str], values: list[str]) -> None:
    """Leave out pandas' row numbers, the first columns."""
    for name, value in zip(header, values, strict=True):
        if not ROW_NUMBERS.fullmatch(name) or not value.strip().isdecimal():
            return
        row.pop(name, None)


def _find_delimiter(header: str) -> str:
    """What parts the columns: of the usual characters the one that the header has most of, outside quotes."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max(DELIMITERS, key=bare.count)


def _read_jsonl(path: Path, stream: TextIO) -> Iterator[tuple[int, Row]]:
    for line, text in enumerate(stream, start=1):
        if not text.strip():
            continue
        where = f"{path.name}, line {line}"
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}).") from error
        if not isinstance(values, dict):
            raise UserError(f"{where}: expected an object with the columns as keys.")
        row: Row = {}
        for name, value in values.items():
            column = name.strip().lower()
            if column in row:
                raise UserError(f"{where}: a column is named twice: {column}.")
            row[column] = _as_text(value, f"{where}: {name}")
        yield line, row


def _as_text(value: object, where: str) -> str:
    """A JSON value as a CSV cell would have it; pandas writes whole numbers of a column with gaps as 1.0."""
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        if value.is_integer():
            return str(int(value))
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise UserError(f"{where} is {value!r}; expected text or a whole number.")
    return "" if value is None else str(value).strip()

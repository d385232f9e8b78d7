"""Manifests: a CSV or JSONL file with one row a candidate, read into a plan; and the reading of such tables.

Columns: `source` (its name), `lq`, `hq`, `method`, `restored`, `seed`, `caption`, `person`. Only `source` is needed in
every row; `method` and `restored` come together. Paths are relative to the manifest's folder and stay inside it.
`person` names who is in the photo: all photos of one person get the same split.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

from annotate.layout import Plan, PlannedSource, check_caption
from db.errors import UserError
from runs.tables import restore_cell

COLUMNS = ("source", "lq", "hq", "method", "restored", "seed", "caption", "person")
TABLE_SUFFIXES = (".csv", ".jsonl")
MAX_SEED = 2**31 - 1

Row = dict[str, str]


def read_manifest(path: Path) -> Plan:
    """The plan of a manifest.

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
        raise UserError(f"{path} has no rows.")
    return plan


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
    """A path relative to the root, whichever way it was written."""
    top = os.path.abspath(root)
    relative = os.path.relpath(os.path.join(top, value), top)
    if relative == os.pardir or relative.startswith(os.pardir + os.sep):
        raise UserError(f"{value!r} leaves the manifest's folder; move the file, or the manifest above it.")
    return relative


def parse_seed(text: str) -> int:
    """A seed column's value, 0 where it is empty."""
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or int(text) > MAX_SEED:
        raise UserError(f"seed {text!r} is not a whole number from 0 to {MAX_SEED}.")
    return int(text)


def read_columns(path: Path) -> list[str]:
    """The columns of a table: the header of a CSV file, the keys of the first line of a JSONL file."""
    return next((list(row) for _, row in _read_rows(path)), [])


def read_table(path: Path, columns: tuple[str, ...], required: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    """(line number, row) of a CSV or JSONL file; values without space around them, empty ones as ''.

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
            if name != "caption" and not value.isprintable():
                raise UserError(f"{where}: {name} {value!r} has characters that cannot be shown.")
        yield line, row


def _read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    read = _read_jsonl if path.suffix.lower() == ".jsonl" else _read_csv
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            yield from read(path, stream)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8.") from error


def _read_csv(path: Path, stream: Iterator[str]) -> Iterator[tuple[int, Row]]:
    reader = csv.reader(stream, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) < len(header):
            raise UserError(f"{path.name}, line 1: a column is named twice: {', '.join(header)}.")
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise UserError(
                    f"{path.name}, line {reader.line_num}: {len(values)} values for {len(header)} columns "
                    f"({', '.join(header)}); put a value that has a comma in quotes."
                )
            cells = (restore_cell(value.strip()) for value in values)  # names may come from a table of our reports
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path.name}, line {reader.line_num}: not CSV ({error}).") from error


def _read_jsonl(path: Path, stream: Iterator[str]) -> Iterator[tuple[int, Row]]:
    for line, text in enumerate(stream, start=1):
        if not text.strip():
            continue
        where = f"{path.name}, line {line}"
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error}).") from error
        if not isinstance(values, dict):
            raise UserError(f"{where}: expected an object with the columns as keys.")
        row = {}
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, str | int | None):
                raise UserError(f"{where}: {name} is {value!r}; expected text or a whole number.")
            row[name] = "" if value is None else str(value).strip()
        yield line, row

"""Read the tables that people's programs write: CSV in its dialects and encodings, and JSON lines.

CSV has commas, semicolons, tabs or bars, in UTF-8 or UTF-16, with capitals in the header, empty rows, empty columns at
the end, and pandas' column of row numbers.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from db.errors import UserError
from db.records import MAX_SEED
from runs.image_folders import (
    describe_fault,
    find_encoding,
    is_shown,
    normalize_name,
)
from runs.tables import restore_cell

JSON_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", *JSON_SUFFIXES)
DELIMITERS = ",;\t|"
SEED = re.compile(r"([0-9]+)(?:[.,]0*)?")
"""A whole number, also as spreadsheets write a column that has empty cells: 1.0, or 1,0."""
EXCEL_DELIMITER = re.compile(r'\ufeff?"?sep=(.?)"?[,;\t]*', re.IGNORECASE)
"""A first line that Excel reads and writes; other programs put quotes around it, or their own delimiters behind."""
NO_VALUE = ("nan", "<na>", "na", "n/a", "#n/a", "none", "null")
"""Spellings of an empty number in pandas, R, databases and spreadsheets."""
ROW_NUMBERS = re.compile(r"|index|level_0|unnamed: 0[.0-9]*")
"""Name of pandas' columns of row numbers; it makes another each time that it reads and writes a table."""
Row = dict[str, str]


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
    for line, values in _read_rows(path):
        where = f"{path.name}, line {line}"
        unknown = [repr(name) for name in values if name not in columns]
        if unknown:
            raise UserError(f"{where}: unknown column {', '.join(unknown)}. Known: {', '.join(columns)}.")
        row = {name: _as_text(value, f"{where}: {name}") for name, value in values.items()}
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


def _read_rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    """(line number, row) of a table; the values of JSON lines are what they are there."""
    read: Callable[[Path, TextIO], Iterator[tuple[int, Mapping[str, object]]]]
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
    """Find the delimiter: of the usual characters the one that the header has most of, outside quotes."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max(DELIMITERS, key=bare.count)


def _read_jsonl(path: Path, stream: TextIO) -> Iterator[tuple[int, Mapping[str, object]]]:
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
        row: dict[str, object] = {}
        for name, value in values.items():
            column = name.strip().lower()
            if column in row:
                raise UserError(f"{where}: a column is named twice: {column}.")
            row[column] = value
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

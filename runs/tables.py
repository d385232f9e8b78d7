"""Write tables of a run as CSV files that a spreadsheet opens without running a name as a formula; read them back.

A spreadsheet takes a cell that begins with =, +, -, @, a tab or a line break for a formula, so such text gets an
apostrophe before it; numbers stay numbers. The byte-order mark tells Excel that the file is UTF-8.
Source: OWASP, CSV Injection.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
"""Text that gets an apostrophe; apostrophes before it too, so that exactly one is taken off again."""


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all, without its index, numbers to six digits.

    Raises:
        UserError: the disk is full.
    """
    import pandas as pd

    columns = [_defuse_column(table.iloc[:, place]) for place in range(table.shape[1])]
    safe = pd.concat(columns, axis=1) if columns else table
    # CRLF, as the format wants it (RFC 4180): with it a lone carriage return in a cell is quoted too.
    header = [defuse_cell(name) for name in table.columns]
    text = safe.to_csv(index=False, header=header, float_format="%.6g", lineterminator="\r\n")
    write_whole(path, text.encode("utf-8-sig"))


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, all values as text, as they were before `write_table` made them safe."""
    with open(path, encoding="utf-8-sig", newline="") as stream:
        return [
            {restore_cell(name): restore_cell(value) for name, value in row.items()} for row in csv.DictReader(stream)
        ]


def defuse_cell(value: Any) -> Any:
    """A value as it may stand in a spreadsheet's cell."""
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def restore_cell(text: str) -> str:
    """Undo `defuse_cell`."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def _defuse_column(column: pd.Series[Any]) -> pd.Series[Any]:
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return column
    return column.astype(object).map(defuse_cell, na_action="ignore")

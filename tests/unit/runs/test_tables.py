"""What a report's CSV holds: no formula, a mark for Excel, numbers as numbers, and the same values when read back."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest

from runs.tables import read_table, restore_cell, write_table

NAMES = [
    "=HYPERLINK(1)",
    "+1",
    "-tiny",
    "@x",
    "\ttab",
    "\rreturn",
    "\nline",
    "＝wide",
    "'=quoted once",
    "''=twice",
    "'plain apostrophe",
    "method ü, “b”",
    'a "quoted"\r\nname',
    "gfpgan",
    "12",
]


def test_no_cell_and_no_column_name_is_a_formula_and_all_come_back(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "method": NAMES,
            "=SUM(A1)": NAMES[::-1],
            "kind": pd.Categorical(["-a", "b", "-a"] * 5),
            "mixed": ["-b", -1.5, None] * 5,
            "score": [-0.123456789 * place for place in range(15)],
            "count": range(-5, 10),
            "right": [True, False, True] * 5,
        }
    )
    write_table(tmp_path / "table.csv", table)
    content = (tmp_path / "table.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    with open(tmp_path / "table.csv", encoding="utf-8-sig", newline="") as stream:
        header, *rows = csv.reader(stream)
    assert not [cell for cell in [*header, *(row[0] for row in rows)] if cell[0] in "=+-@\t\r\n＝"]
    assert [row[4] for row in rows][:2] == ["-0", "-0.123457"]  # numbers are numbers
    back = read_table(tmp_path / "table.csv")
    assert [row["method"] for row in back] == NAMES
    assert [row["=SUM(A1)"] for row in back] == NAMES[::-1]
    assert [row["kind"] for row in back] == ["-a", "b", "-a"] * 5
    assert [row["mixed"] for row in back] == ["-b", "-1.5", ""] * 5
    assert [int(row["count"]) for row in back] == list(range(-5, 10))
    assert [row["right"] for row in back][:2] == ["True", "False"]


def test_a_table_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("pair,p_a\nabc,-0.5\n", encoding="utf-8")
    assert read_table(tmp_path / "old.csv") == [{"pair": "abc", "p_a": "-0.5"}]


def test_an_empty_table_has_its_header(tmp_path: Path) -> None:
    write_table(tmp_path / "table.csv", pd.DataFrame(columns=["method", "score"]))
    assert (tmp_path / "table.csv").read_bytes() == b"\xef\xbb\xbfmethod,score\r\n"


@pytest.mark.parametrize("text", ["'", "", "'a", "it's", "'’=", "0"])
def test_what_was_never_made_safe_stays(text: str) -> None:
    assert restore_cell(text) == text

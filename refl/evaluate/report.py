"""Write the report of `refl evaluate` as Markdown: a table per set in the paper's form, changes in parentheses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from runs.files import write_text_whole

DIGITS = 4
NO_VALUE = "–"


def write_report(out: Path, summary: pd.DataFrame, record: dict[str, Any]) -> None:
    """report.md beside the CSV files and the grids.

    Args:
        summary: as `evaluate.summarize` gives it.
        record: base, left_out, notes, seconds_an_image, faces, code_version, asked.
    """
    lines = [
        "# Restorers side by side",
        "",
        f"Base: **{record['base']}**. Every value is turned so that higher is better. In brackets the 95 % interval "
        "from resampling images; in parentheses the change over the base, paired by image, **bold** where its interval "
        "excludes 0.",
    ]
    for note in record["notes"]:
        lines += ["", f"Note: {note}"]
    for name, table in summary.groupby("set", sort=False):
        count = len(record["faces"][name])
        lines += ["", f"## {name}: {count} faces", "", *format_table(table), ""]
        for key, seconds in record["seconds_an_image"].items():
            if key.startswith(f"{name} ") and pd.notna(seconds):
                lines.append(f"- {key.removeprefix(f'{name} ')}: {seconds:.3f} s per image")
        lines += ["", f"The first faces by name, unselected; rows: input, {', '.join(table['method'].unique())}"]
        lines[-1] += ", ground truth:" if (table["metric"] == "psnr").any() else ":"
        lines += ["", f"![{name}]({name}.png)"]
    if record["left_out"]:
        lines += ["", "## Left out", ""]
        lines += [f"- {metric}: {reason}" for metric, reason in record["left_out"].items()]
    lines += ["", f"Code {record['code_version']}; every value is in values.csv, the means in summary.csv."]
    write_text_whole(out / "report.md", "\n".join(lines) + "\n")


def format_table(table: pd.DataFrame) -> list[str]:
    """A row per metric, a column per method."""
    methods = list(table["method"].unique())
    cells = {(row["metric"], row["method"]): format_cell(row) for row in table.to_dict("records")}
    lines = ["| | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for metric in table["metric"].unique():
        row = [cells.get((metric, method), NO_VALUE) for method in methods]
        lines.append(f"| {metric} | " + " | ".join(row) + " |")
    return lines


def format_cell(row: dict[Any, Any]) -> str:
    """'24.1 [23.8, 24.4] (**+0.3**)'."""
    text = f"{row['mean']:.{DIGITS}g}"
    if pd.notna(row["low"]):
        text += f" [{row['low']:.{DIGITS}g}, {row['high']:.{DIGITS}g}]"
    if pd.notna(row["change"]):
        change = f"{row['change']:+.2g}"
        sure = pd.notna(row["change_low"]) and (row["change_low"] > 0 or row["change_high"] < 0)
        text += f" (**{change}**)" if sure else f" ({change})"
    return text

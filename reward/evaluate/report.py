"""Write the report on scorers: tables as CSV, pictures as PNG and SVG, key numbers as JSON, all of it as report.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from db.errors import UserError
from metrics.votes import MIN_SOURCES
from reward.evaluate import plots
from reward.evaluate.answers import Answers
from reward.evaluate.compare import (
    Labels,
    calibrate_scorers,
    compare_by,
    compare_by_margin,
    compare_scorers,
    compare_ties,
    describe_people,
    name_agreement,
    name_method_pairs,
)
from reward.evaluate.rankings import MIN_RANKED, compare_rankings
from reward.evaluate.robustness import SHUFFLED
from runs.files import write_text_whole
from runs.pictures import mark_simulated, save_figure
from runs.space import explain_full_disk
from runs.store import without_nan
from runs.tables import write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIMULATED_NOTE = "Includes SIMULATED annotators; says nothing about real people."
HEADINGS = {
    "accuracy": "Accuracy",
    "calibration": "Calibration",
    "conditions": "By agreement of people, and by margin",
    "method_pairs": "By pair of methods",
    "rankings": "How the methods rank",
    "constructed": "Pairs whose answer is known",
    "robustness": "Robustness",
}


def measure(
    scorers: Sequence[Answers], labels: Labels, votes: pd.DataFrame, seed: int = 0
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """All tables but robustness, by the names of their CSV files, and what people reach.

    Tables by method are left out where the dataset does not say which method made an image.
    """
    curves, errors = calibrate_scorers(scorers, labels, seed)
    table = compare_scorers(scorers, labels, seed)
    for more in (errors, compare_ties(scorers, labels)):
        table = table.merge(more, on="scorer", how="left")
    tables = {
        "calibration": curves,
        "agreement": compare_by(scorers, labels, name_agreement(labels), "agreement", seed),
        "margin": compare_by_margin(scorers, labels, seed),
    }
    if all(row.method_a and row.method_b for row in labels.pairs):
        tables["method_pairs"] = compare_by(scorers, labels, name_method_pairs(labels), "methods", seed)
        tables["methods"], correlations = compare_rankings(scorers, labels, votes, seed)
        table = table.merge(correlations, on="scorer", how="left")
    return {"scorers": table, **tables}, describe_people(labels, votes, seed)


def choose_shown(scorers: pd.DataFrame) -> list[str]:
    """Names of the scorers that are drawn as lines: what is not a metric, then the best metrics."""
    order = scorers.assign(metric=scorers["kind"] == "metric").sort_values(
        ["metric", "accuracy"], ascending=[True, False], kind="stable"
    )
    return [str(name) for name in order["scorer"].head(plots.MAX_LINES)]


def draw(tables: dict[str, pd.DataFrame], summary: dict[str, Any]) -> dict[str, Figure]:
    """The pictures by name."""
    shown = choose_shown(tables["scorers"])
    figures = {"accuracy": plots.plot_accuracy(tables["scorers"], summary["people"]["ceiling"])}
    if len(tables["calibration"]):
        figures["calibration"] = plots.plot_calibration(tables["calibration"], shown)
    figures["conditions"] = plots.plot_conditions(tables["agreement"], tables["margin"], shown)
    if "methods" in tables:
        figures["method_pairs"] = plots.plot_method_pairs(tables["method_pairs"], shown)
        figures["rankings"] = plots.plot_rankings(tables["methods"], shown)
    if "robustness" in tables:
        figures["robustness"] = plots.plot_robustness(tables["robustness"], shown)
    if summary["simulated"]:
        for figure in figures.values():
            mark_simulated(figure)
    return figures


def write_report(out: Path, tables: dict[str, pd.DataFrame], summary: dict[str, Any]) -> None:
    """Write all files; summary.json is the last, so that a folder with one holds a whole report.

    Args:
        summary: JSON values; see `reward.evaluate.command.run_evaluate`.
    Raises:
        UserError: the folder cannot be written.
    """
    try:
        with explain_full_disk(out, "run the same command again"):
            out.mkdir(parents=True, exist_ok=True)
            (out / "summary.json").unlink(missing_ok=True)
            figures = draw(tables, summary)
            for name, figure in figures.items():
                save_figure(figure, out, name)
            for name, table in tables.items():
                write_table(out / f"{name}.csv", table)
            write_text_whole(out / "report.md", write_markdown(tables, summary, list(figures)))
            text = json.dumps(without_nan(summary), indent=2, ensure_ascii=False)
            write_text_whole(out / "summary.json", text + "\n")
    except OSError as error:
        raise UserError(
            f"Cannot write the report to {out}: {error.strerror}. Name another folder with --out."
        ) from error


def write_markdown(tables: dict[str, pd.DataFrame], summary: dict[str, Any], pictures: Sequence[str]) -> str:
    """The report as Markdown, with its pictures."""
    people, labels = summary["people"], summary["labels"]
    lines = [
        f"# Scorers against people: {summary['dataset']}, split {summary['split']}",
        "",
        *([f"**{SIMULATED_NOTE}**", ""] if summary["simulated"] else []),
        f"{labels['n']:,} labels of {labels['sources']:,} photos, {labels['ties']:,} of them ties, made of "
        f"{labels['answers']:,} answers by {labels['people']:,} people"
        + (f" and {labels['simulated']:,} simulated annotators" if labels["simulated"] else "")
        + ". Accuracy is the share of people's answers that a scorer's equals, ties left out; brackets are 95 % "
        "intervals from resampling photos.",
        "",
        f"- **Human ceiling** {show_interval(people['ceiling'])}: how often one person's answer is that of most "
        f"others, of {people['ceiling']['n']:,} answers; {show_interval(people['ceiling_with_ties'])} with ties as "
        "answers, as the Report page has it.",
        f"- **Always with the majority** {show_interval(people['majority'])}: no scorer can pass this.",
        *(f"- {note}" for note in summary["notes"]),
        "",
    ]
    parts: dict[str, Callable[[], list[str]]] = {
        "accuracy": lambda: describe_scorers(tables["scorers"]),
        "calibration": lambda: ["Curves: calibration.csv. Metrics give no probabilities.", ""],
        "conditions": lambda: ["Numbers: agreement.csv, margin.csv.", ""],
        "method_pairs": lambda: ["Numbers with intervals: method_pairs.csv.", ""],
        "rankings": lambda: describe_rankings(tables["scorers"]),
        "robustness": lambda: describe_robustness(tables["robustness"]),
    }
    for name in pictures:
        lines += [f"## {HEADINGS[name]}", "", f"![{HEADINGS[name]}]({name}.png)", "", *parts[name]()]
    if "constructed" in tables:
        lines += [f"## {HEADINGS['constructed']}", "", *describe_constructed(tables["constructed"])]
    lines += [
        "## How it was made",
        "",
        "```json",
        json.dumps(summary["made_by"], indent=2, ensure_ascii=False),
        "```",
        "",
    ]
    return "\n".join(lines)


def describe_scorers(table: pd.DataFrame) -> list[str]:
    """The table of scorers, the best first, and what its columns mean."""
    best = table.sort_values("accuracy", ascending=False, kind="stable")
    first = table["scorer"].iloc[0]
    rows = [
        [
            row["scorer"],
            row["kind"],
            show_interval(row, "accuracy"),
            f"{row['n']:,}" + (f" ({row['unanswered']:,} unanswered)" if row["unanswered"] else ""),
            show_interval(row, "first_ahead", "first_ahead_low", "first_ahead_high"),
            show_interval(row, "a_share", "a_share_low", "a_share_high"),
            show_number(row["calibration_error"]),
            show_number(row["brier"]),
            show_number(row["tie_auc"]),
        ]
        for row in best.to_dict("records")
    ]
    head = [
        "scorer",
        "kind",
        "accuracy",
        "pairs",
        f"{first} is ahead by",
        "prefers a",
        "calibration error",
        "Brier",
        "ties",
    ]
    return [
        *format_table(head, rows),
        "Which image is a is drawn by a hash, so a share for a other than one half is a bias. *Ties* is the "
        "probability that a scorer's margin is larger on a pair that people decided than on one they called a tie; 0.5 "
        "knows nothing of ties.",
        "",
    ]


def describe_rankings(table: pd.DataFrame) -> list[str]:
    """Rank correlations of the methods' Bradley-Terry scores with people's, the best first."""
    best = table.sort_values("spearman", ascending=False, kind="stable")
    rows = [
        [
            row["scorer"],
            str(row["methods"]),
            *(show_interval(row, name, f"{name}_low", f"{name}_high") for name in ("spearman", "kendall")),
        ]
        for row in best.to_dict("records")
    ]
    said = (
        "Both by Bradley-Terry, of people's answers and of the scorer's to the same pairs: methods.csv has the scores."
    )
    if table["spearman_low"].isna().any():
        said += f" Below {MIN_RANKED} methods there is no correlation, below {MIN_SOURCES} photos no interval."
    return [*format_table(["scorer", "methods", "Spearman", "Kendall"], rows), said, ""]


def describe_constructed(table: pd.DataFrame) -> list[str]:
    """How often each reward model prefers the honest image of constructed pairs, by kind."""
    scorers = list(dict.fromkeys(table["scorer"]))
    rows = []
    for kind, group in table.groupby("kind", sort=False):
        of_scorer = {row["scorer"]: row for row in group.to_dict("records")}
        shown = [show_interval(of_scorer[name], "accuracy") if name in of_scorer else "–" for name in scorers]
        rows.append([str(kind), f"{int(group['n'].max()):,}", *shown])
    return [
        *format_table(["kind", "pairs", *scorers], rows),
        "Made by a program (`reward construct`), judged by nobody: none of them counts in any other number here.",
        "",
    ]


def describe_robustness(table: pd.DataFrame) -> list[str]:
    """Describe how answers change when images change."""
    rows = [
        [
            row["scorer"],
            row["condition"],
            show_interval(row, "same"),
            show_number(row["accuracy"]),
            f"{row['change']:.1%}",
        ]
        for row in table.to_dict("records")
    ]
    return [
        *format_table(["scorer", "images", "same preference", "accuracy", "mean change of the margin"], rows),
        f"On {int(table['n'].max()):,} pairs, both images of a pair changed alike. With *{SHUFFLED}* the images stay, "
        "and beside each pair stands the photo of another person: what a reward loses there it had from the photo that "
        "was restored. One that sees no photo answers the same, and so does one that looks past it.",
        "",
    ]


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, its lines."""
    cells = [[str(cell).replace("|", "&#124;") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], f"|{'---|' * len(head)}", *lines[1:], ""]


def show_number(value: float) -> str:
    """A number, or a dash where it is not known."""
    return "–" if value != value else f"{value:.3f}"


def show_interval(row: dict[Any, Any], value: str = "value", low: str = "low", high: str = "high") -> str:
    """'0.712 [0.650, 0.770]', 'not known' where there is too little."""
    if row[value] != row[value]:
        return "not known"
    return f"{row[value]:.3f}" + (f" [{row[low]:.3f}, {row[high]:.3f}]" if row[low] == row[low] else "")

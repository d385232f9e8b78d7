"""Render the results of a fit and a labelling as HTML: key numbers, verdict, plots, files, from their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runs.file_cache import read_json, read_part
from runs.store import run_folder
from ui.html import DAMAGED, render

PICTURES = (
    ("methods", "Accuracy of the SVM, of each metric alone, of other classifiers and of people"),
    ("importance", "Accuracy lost without each metric"),
    ("coverage", "Accuracy of the labels by share of the pairs that are labelled"),
    ("learning_curve", "Accuracy by the number of labels trained on"),
    ("calibration", "Accuracy by the confidence that the SVM gives"),
)
NO_FIT = '<p class="fr-note">No SVM is trained yet.</p>'
NEEDED = {"labeler", "n_train", "simulated", "target"}
"""Of a fit's key numbers: without them, it is damaged or not of this program."""
TABLES = ("methods", "coverage", "calibration", "importance", "learning_curve", "judged")


def read_summary(data: Path, run_id: int | None) -> dict[str, Any] | None:
    """The key numbers of a fit; None where it left no whole report."""
    found = read_json(run_folder(data, run_id or 0) / "summary.json")
    is_whole = found.keys() >= NEEDED and {"threshold", "target_accuracy"} <= read_part(found, "target").keys()
    return found if is_whole else None


def is_simulated(data: Path, labeler: str) -> bool:
    """Whether a labeler (svm-<run>-<hash>) learned from simulated annotators."""
    number = labeler.split("-")[1] if labeler.startswith("svm-") else ""
    summary = read_summary(data, int(number)) if number.isdigit() else None
    return bool(summary and summary["simulated"])


def report_html(data: Path, run_id: int | None) -> str:
    """The whole report of a fit."""
    summary = read_summary(data, run_id)
    if summary is None or run_id is None:
        return NO_FIT
    folder = run_folder(data, run_id)
    try:
        return render(
            "autolabel/report.html",
            summary=summary,
            folder=folder,
            tables=[name for name in TABLES if (folder / f"{name}.csv").exists()],
            pictures={name: words for name, words in PICTURES if (folder / f"{name}.svg").exists()},
            whole=all((folder / f"{name}.svg").exists() for name, _ in PICTURES),
        )
    except DAMAGED:
        return render("note.html", text=f"The report of run {run_id} is damaged or of another version: train again.")


def label_sentence(result: dict[str, Any]) -> str:
    """Describe what labelling did or would do, without the full stop."""
    return render("autolabel/label_sentence.html", result=result)


def label_numbers_html(data: Path, result: dict[str, Any]) -> str:
    """The numbers of a labelling; what concerns labels that were there before only where there were some."""
    if result["threshold"] is None:
        return ""
    return render("autolabel/label_numbers.html", result=result, simulated=is_simulated(data, result["labeler"]))

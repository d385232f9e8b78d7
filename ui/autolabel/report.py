"""Render the results of a fit and a labelling as HTML: key numbers, verdict, plots, files, from their folders."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from runs.store import run_folder
from ui.html import download_html, picture_html, table_html

PICTURES = (
    ("methods", "Accuracy of the SVM, of each metric alone, of other classifiers and of people"),
    ("importance", "Accuracy lost without each metric"),
    ("coverage", "Accuracy of the labels by share of the pairs that are labelled"),
    ("learning_curve", "Accuracy by the number of labels trained on"),
    ("calibration", "Accuracy by the confidence that the SVM gives"),
)
NO_FIT = '<p class="fr-note">No SVM is trained yet.</p>'
QUICK = "This fit was a quick one: without the other classifiers, importance and learning curve."
TABLES = ("methods", "coverage", "calibration", "importance", "learning_curve", "judged")


def simulated_html() -> str:
    """The red line wherever figures show that simulated annotators made."""
    return (
        '<p class="fr-simulated" role="note">Simulated annotators are among the judgments that this SVM learned from: '
        "these figures say nothing about real people.</p>"
    )


def read_summary(data: Path, run_id: int | None) -> dict[str, Any] | None:
    """The key numbers of a fit; None where it left no whole report."""
    file = run_folder(data, run_id or 0) / "summary.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


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
    names = [name for name in TABLES if (folder / f"{name}.csv").exists()]
    pictures = [(name, words) for name, words in PICTURES if (folder / f"{name}.svg").exists()]
    whole = len(pictures) == len(PICTURES)
    return "".join(
        [
            simulated_html() if summary["simulated"] else "",
            f'<p class="fr-verdict"><strong>{escape(summary["verdict"])}</strong></p>',
            f"<p>{_target_sentence(summary['target'])}</p>",
            "".join(f'<p class="fr-note">{escape(note)}</p>' for note in summary["notes"]),
            _numbers_html(summary),
            '<div class="fr-plots">',
            *(picture_html(folder, name, words) for name, words in pictures),
            "</div>",
            "" if whole else f'<p class="fr-note">{QUICK}</p>',
            "<p>Files: ",
            " · ".join(download_html(folder / f"{name}.csv", "text/csv") for name in names),
            "<br>",
            " · ".join(download_html(folder / f"{name}.png", "image/png") for name, _ in pictures),
            f'</p><p class="fr-note">All of it lies in {escape(str(folder))}.</p>',
        ]
    )


def _target_sentence(target: dict[str, Any]) -> str:
    wanted = f"At the target accuracy of {target['target_accuracy']:.0%}"
    if target["threshold"] is None:
        return f"{wanted} it would label nothing: it reaches it at no coverage. Lower the target, or judge more pairs."
    return (
        f"{wanted} it would label the surest {target['coverage']:.0%} of the pairs; on photos not seen, "
        f"{_interval(target)} of those labels are what people answered."
    )


def _numbers_html(summary: dict[str, Any]) -> str:
    people, test = summary["people"], summary["test"]
    raters = f"{people['n_people']} {'person' if people['n_people'] == 1 else 'people'}"
    raters += f" and {people['n_simulated']} simulated" if people["n_simulated"] else ""
    kernel = f"{summary['kernel']}, C {summary['c']:g}" + (
        f", gamma {summary['gamma']:.3g}" if summary["kernel"] == "rbf" else ""
    )
    rows = [
        [
            "accuracy on photos not seen",
            _interval(summary["accuracy"]),
            f"share of people's answers; cross-validated, {summary['n_measured']:,} labels picked at random, no ties",
        ],
        ["on the test split", _interval(test), f"scored once; {test['n']:,} labels"],
        [
            "human ceiling",
            _interval(people["ceiling"], "value"),
            f"one person's answer against that of most others; {people['ceiling']['n'] or 0:,} answers of {raters}",
        ],
        [
            "same answer when shown again",
            _interval(people["repeats"], "value"),
            f"people with themselves; {people['repeats']['n']:,} repeats",
        ],
        [
            "calibration error",
            f"{summary['calibration_error']:.3f}",
            "mean distance of confidence and accuracy; 0 is best",
        ],
        ["Brier score", f"{summary['brier']:.3f}", "0 is best, 0.25 a coin"],
        [
            "trained on",
            f"{summary['n_train']:,} labels",
            f"of {summary['n_sources']:,} photos of the train split, {summary['n_ties']:,} of them ties",
        ],
        [
            "model",
            escape(kernel),
            f"{escape(summary['labeler'])}; {len(summary['columns'])} columns of list {escape(summary['metric_list'])}",
        ],
    ]
    return table_html(["", "value (95 % interval)", ""], rows, numeric={1})


def _interval(values: dict[str, Any], name: str = "accuracy") -> str:
    """'71.2% (65.0 … 77.0)', or that there is not enough data."""
    if values.get(name) is None:
        return '<small class="fr-note">not enough data</small>'
    low, high = values.get("low"), values.get("high")
    interval = f" ({100 * low:.1f} … {100 * high:.1f})" if low is not None and high is not None else ""
    return f"{values[name]:.1%}{interval}"


def label_sentence(result: dict[str, Any]) -> str:
    """Describe what labelling did or would do, without the full stop."""
    would = "would be" if result["dry_run"] else "are"
    labeler, target = escape(result["labeler"]), f"target accuracy {result['target_accuracy']:.0%}"
    if result["threshold"] is None:
        return (
            f"<strong>{labeler} reaches the {target} at no coverage</strong> on photos it has not seen, so nothing "
            f"{'would be' if result['dry_run'] else 'was'} labelled. Choose a lower target, or judge more pairs and "
            "train again"
        )
    preview = "preview, nothing is changed: " if result["dry_run"] else ""
    return (
        f"{preview}<strong>{result['labelled']:,} of {result['pairs']:,} unjudged pairs {would} labelled</strong> by "
        f"{labeler} at {target}, those of which it is at least {result['threshold']:.1%} sure"
    )


def label_numbers_html(data: Path, result: dict[str, Any]) -> str:
    """The numbers of a labelling; what concerns labels that were there before only where there were some."""
    if result["threshold"] is None:
        return ""
    rows = [
        ["coverage", f"{result['coverage']:.1%}", "share of the measured pairs that is labelled"],
        ["expected coverage", f"{result['expected_coverage']:.1%}", "what the photos not seen let expect"],
        ["not sure enough", f"{result['abstained']:,}", "the SVM abstains"],
        ["not measured", f"{result['unmeasured']:,}", "a metric value is missing"],
        ["new labels", f"{result['added']:,}", "on pairs that had none"],
        ["flipped", f"{result['flipped']:,}", "labels of an earlier SVM that preferred the other image"],
    ]
    before = [
        ["renewed", result["changed"], "labels of an earlier SVM that preferred the same image"],
        ["withdrawn", result["withdrawn"], "labels that are taken away, since this SVM abstains"],
        ["as before", result["unchanged"], "labels of this very SVM"],
    ]
    rows += [[name, f"{number:,}", words] for name, number, words in before if number]
    simulated = simulated_html() if is_simulated(data, result["labeler"]) else ""
    return simulated + table_html(["", "preview" if result["dry_run"] else "result", ""], rows, numeric={1})

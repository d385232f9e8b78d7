"""Fit a labeler to the judgments in the database, and write it with its report into the folder of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.judging.labels import compute_majority, compute_weights, load_votes, select_pairs_of_tasks
from annotate.labeler import plots, report
from annotate.labeler.file import save_labeler
from annotate.labeler.settings import SVM, FitSettings
from annotate.labeler.svm import (
    Array,
    Labeler,
    Training,
    check_training,
    compute_p_a,
    fit_labeler,
    split_folds,
)
from annotate.labeler.threshold import choose_threshold, compute_likeness, compute_lower_bound
from annotate.measure.vectors import choose_columns, load_differences
from annotate.report.agreement import compute_agreement, compute_people, count_people
from annotate.report.rank import load_judgments, select_votes
from db.errors import UserError
from db.models import Judgment, Label, Origin, Pair, Picked, Source, Split
from db.session import Database
from metrics.accuracy import bootstrap_share, compute_calibration, compute_credit
from metrics.lists import Column, MetricError, MetricList, columns, load_metric_list
from runs.pictures import mark_simulated, save_figure
from runs.store import code_version, without_nan
from runs.tables import write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 8


@dataclass(frozen=True)
class Labelled:
    """Pairs with a human label, in the order of their keys.

    table: per pair pair_id, pair (key), source, group (person in the photo, else the source), split, p_a, weight,
    random (whether its first judgment's pair was picked at random, so that it may measure accuracy), judgments (ids).
    differences: (n, d) metric values of a minus b.
    """

    table: pd.DataFrame
    differences: Array

    def part(self, chosen: Array) -> Labelled:
        """The rows of a mask."""
        return Labelled(self.table[chosen].reset_index(drop=True), self.differences[chosen])

    def training(self) -> Training:
        """The same as the labeler takes it."""
        p_a, weight = (self.table[name].to_numpy(dtype=float) for name in ("p_a", "weight"))
        sources, groups = (self.table[name].to_numpy(dtype=str) for name in ("source", "group"))
        return Training(self.differences, p_a, weight, sources, groups)


def fit(
    database: Database,
    folder: Path,
    run_id: int,
    settings: FitSettings,
    on_step: Callable[[int, int], None],
) -> tuple[Labeler, Training, dict[str, Any]]:
    """Fit a labeler on the human labels of the train split and write it with its report to `folder`.

    Leaves `labeler.json`, `summary.json`, and as CSV: methods, coverage, calibration, importance, learning_curve,
    judged (every judged pair with a prediction by a model that did not see its photo).

    Args:
        on_step: called with (done, total) in steps.
    Returns:
        the labeler, what it was trained on, the contents of summary.json.
    Raises:
        UserError: unknown metric list, nothing measured, or too few labels.
    """
    try:
        metric_list = load_metric_list(settings.metrics)
        wanted = columns(metric_list)
    except MetricError as error:
        raise UserError(str(error)) from error
    with database.read() as session:
        labelled = load_labelled(session, wanted, include_simulated=settings.include_simulated)
        people = describe_people(session, include_simulated=settings.include_simulated)
    on_step(1, STEPS)
    kept, labelled, notes = settle_columns(labelled, wanted, metric_list)
    splits = labelled.table["split"].to_numpy()
    train, test = labelled.part(splits == Split.train), labelled.part(splits == Split.test)
    training = train.training()
    check_training(training)
    if len(np.unique(training.groups)) == 1:
        notes.append("All photos are of one person: measured on other photos of theirs; nothing is known of others.")
    labeler = fit_labeler(training, settings, tuple(kept))
    on_step(2, STEPS)
    names = [column.name for column in kept]
    held_out = report.predict_held_out(training, names, settings)
    on_step(5, STEPS)
    measured = train.table["random"].to_numpy() & (training.p_a != 0.5)
    if not measured.any():
        raise UserError(
            "None of the labels is of a pair that was picked at random, so accuracy cannot be measured. "
            "Raise random_share in the project's settings and judge some more pairs."
        )
    tables, summary = measure(held_out, training, measured, names, settings)
    if not settings.quick:
        tables["importance"] = report.compute_importance(held_out, training, measured, names, settings.seed)
        on_step(6, STEPS)
        tables["learning_curve"] = report.compute_learning_curve(training, labeler, measured, settings)
        summary["learning"] = report.describe_learning(tables["learning_curve"])
    on_step(7, STEPS)
    chosen = {
        "confidence": np.maximum(held_out.p_a, 1 - held_out.p_a)[measured],
        "right": compute_credit(held_out.p_a - 0.5, training.p_a)[measured],
        "weight": training.weight[measured],
        "group": np.unique(training.clusters[measured], return_inverse=True)[1],
    }
    tables["judged"] = list_judged(labelled, train, held_out.p_a, labeler)
    simulated = settings.include_simulated and people["n_simulated"] > 0
    provenance = {
        "run": run_id,
        "simulated": simulated,
        "settings": settings.model_dump(),
        "metric_list": {"name": metric_list.name, "version": metric_list.version},
        "code_version": code_version(),
        "trained_on": trace(database, train, training, settings),
    }
    summary |= {
        "metric_list": f"{metric_list.name} {metric_list.version}",
        "columns": names,
        "kernel": labeler.kernel,
        "c": labeler.c,
        "gamma": labeler.gamma,
        "notes": notes,
        "n_train": len(train.table),
        "n_sources": int(train.table["source"].nunique()),
        "n_ties": int((training.p_a == 0.5).sum()),
        "n_measured": int(measured.sum()),
        "simulated": simulated,
        "people": people,
        "test": score_test(test, labeler),
        "n_groups": len(np.unique(training.groups)),
        "target": describe_target(chosen, settings.target_accuracy, settings.confidence),
    }
    try:
        summary["labeler"] = save_labeler(folder, run_id, labeler, chosen, provenance)
        write_report(folder, tables, summary)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); free some disk space.") from error
    on_step(STEPS, STEPS)
    return labeler, training, summary


def load_labelled(session: Session, wanted: list[Column], *, include_simulated: bool) -> Labelled:
    """All pairs with a human label, with their differences in the wanted columns.

    A label is the share of the votes for a (ties one half), or an imported label, which has no votes of ours. Nothing
    is written: how judgments become stored labels stays what the last export chose.
    """
    votes = load_votes(session, include_simulated=include_simulated)
    p_a, weights = compute_majority(votes), compute_weights(votes)
    imported = session.execute(
        select(Label.pair_id, Label.p_a, Label.weight).where(
            Label.origin == Origin.human, Label.superseded_at.is_(None), Label.made_by.startswith("imported:")
        )
    ).all()
    by_pair = {pair_id: sorted(group) for pair_id, group in votes.groupby("pair_id")["judgment_id"]}
    rows = {pair_id: (float(p_a[pair_id]), float(weights[pair_id]), numbers) for pair_id, numbers in by_pair.items()}
    rows |= {pair_id: (value, weight, []) for pair_id, value, weight in imported}
    live = select(Judgment.id, Judgment.picked).where(Judgment.superseded_at.is_(None))
    picked = {row.id: row.picked for row in session.execute(live)}
    pairs = session.execute(
        select(Pair.id, Pair.key, Source.key, Source.group, Source.split)
        .join(Source, Source.id == Pair.source_id)
        .where(
            Pair.id.in_(select(Label.pair_id).where(Label.made_by.startswith("imported:")))
            | (Pair.judgment_count > 0)
            | Pair.id.in_(select_pairs_of_tasks().with_only_columns(Pair.id))
        )
    )
    found = sorted(
        (key, pair_id, source, group, split.value, *rows[pair_id])
        for pair_id, key, source, group, split in pairs
        if pair_id in rows
    )
    names = ["pair", "pair_id", "source", "group", "split", "p_a", "weight", "judgments"]
    table = pd.DataFrame(found, columns=names)
    table["random"] = [not numbers or picked[numbers[0]] is Picked.random for numbers in table["judgments"]]
    return Labelled(table, load_differences(session, wanted, table["pair_id"].tolist()))


def settle_columns(
    labelled: Labelled, wanted: list[Column], metric_list: MetricList
) -> tuple[list[Column], Labelled, list[str]]:
    """(the columns that nearly all labelled pairs have, the pairs that have all of them, what was left out and why).

    Raises:
        UserError: no label, or no column is measured.
    """
    if labelled.table.empty:
        raise UserError("No pair has a human label yet; judge some pairs first.")
    train = (labelled.table["split"] == Split.train).to_numpy()
    kept = choose_columns(labelled.differences[train if train.any() else slice(None)])
    if len(kept) == 0:
        raise UserError(
            f"No metric of the list {metric_list.name!r} is measured for the judged pairs' images; "
            f"run `python -m annotate measure --metrics {metric_list.name}` first."
        )
    complete = np.asarray(np.isfinite(labelled.differences[:, kept]).all(axis=1))
    notes = []
    left_out = [wanted[at].name for at in range(len(wanted)) if at not in set(kept.tolist())]
    if left_out:
        notes.append(f"Not used, since too few images have them: {', '.join(left_out)}.")
    if not complete.all():
        notes.append(f"{int((~complete).sum())} judged pairs lack a value and were left out.")
    part = labelled.part(complete)
    return [wanted[at] for at in kept], Labelled(part.table, part.differences[:, kept]), notes


def measure(
    held_out: report.HeldOut, training: Training, measured: Array, names: list[str], settings: FitSettings
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables of accuracy, coverage and calibration on the labels that may measure them, and their key numbers."""
    data, p_a = training.part(measured), held_out.p_a[measured]
    margins = {name: margin[measured] for name, margin in held_out.margins.items()}
    methods = report.compare_methods(margins, data, settings.seed)
    calibration, error, brier = compute_calibration(p_a, data.p_a, data.weight, data.clusters, settings.seed)
    tables = {
        "methods": methods,
        "coverage": report.compute_coverage(p_a, data, settings.seed),
        "calibration": calibration,
    }
    svm = methods[methods["method"] == SVM].iloc[0]
    summary = {
        "accuracy": {name: float(svm[name]) for name in ("accuracy", "low", "high")},
        "calibration_error": error,
        "brier": brier,
        "verdict": report.describe_against_best(methods, names),
    }
    return tables, summary


def describe_people(session: Session, *, include_simulated: bool) -> dict[str, Any]:
    """Report who judged, and the human ceiling: how often one answer is that of most others, or one's own again."""
    judgments = load_judgments(session, include_simulated=include_simulated)
    votes = select_votes(judgments)
    agreement = {row["measure"]: row for row in compute_agreement(votes).to_dict("records")}["human ceiling"]
    each = compute_people(count_people(judgments, votes))
    real = each[~each["simulated"].astype(bool)]
    repeats = int(real["repeats"].sum())
    consistent = real["consistency"].fillna(0).mul(real["repeats"]).sum() / repeats if repeats else float("nan")
    return {
        "n_people": len(real),
        "n_simulated": int(each["simulated"].sum()),
        "ceiling": {name: agreement[name] for name in ("value", "low", "high", "n")},
        "repeats": {"value": float(consistent), "n": repeats},
    }


def list_judged(labelled: Labelled, train: Labelled, held_out_p_a: Array, labeler: Labeler) -> pd.DataFrame:
    """Every judged pair with people's answer and the machine's: pair, source, split, human_p_a, machine_p_a.

    For the train split the machine's answer is a held-out one; the others it never saw.
    """
    machine = pd.Series(compute_p_a(labeler, labelled.differences), index=labelled.table["pair"])
    machine[train.table["pair"]] = held_out_p_a
    return pd.DataFrame(
        {
            "pair": labelled.table["pair"],
            "source": labelled.table["source"],
            "split": labelled.table["split"],
            "human_p_a": labelled.table["p_a"],
            "machine_p_a": machine.to_numpy(),
        }
    )


def score_test(test: Labelled, labeler: Labeler) -> dict[str, Any]:
    """Accuracy of the final labeler on the test split, which nothing before looked at."""
    counted = (test.table["p_a"] != 0.5) & test.table["random"]
    data = test.part(np.asarray(counted, dtype=bool)).training()
    credit = compute_credit(compute_p_a(labeler, data.differences) - 0.5, data.p_a)
    accuracy, low, high = bootstrap_share(credit, data.weight, data.clusters)
    return {"accuracy": accuracy, "low": low, "high": high, "n": len(data)}


def describe_target(chosen: dict[str, Array], target: float, confidence: float) -> dict[str, Any]:
    """Report what labelling at the target would give: threshold, coverage, accuracy with its interval and lower bound.

    Args:
        chosen: the held-out answers, as `labeler.json` keeps them.
    """
    certainty, right, weight, group = (chosen[name] for name in ("confidence", "right", "weight", "group"))
    threshold = choose_threshold(certainty, right, weight, group, target, confidence)
    asked = {"target_accuracy": target, "confidence": confidence, "threshold": threshold}
    asked |= {"n_answers": len(right), "n_groups": len(np.unique(group))}
    if threshold is None:
        return asked | {"coverage": 0.0}
    sure = certainty >= threshold
    accuracy, low, high = bootstrap_share(right[sure], weight[sure], group[sure])
    likeness = compute_likeness(right - certainty, group)
    bound = compute_lower_bound(right[sure], weight[sure], group[sure], likeness, confidence)
    return asked | {"coverage": float(sure.mean()), "accuracy": accuracy, "low": low, "high": high, "bound": bound}


def trace(database: Database, train: Labelled, training: Training, settings: FitSettings) -> list[list[Any]]:
    """List the training labels, a row per label: pair key, p_a, weight, fold, uuids of its judgments."""
    fold = np.zeros(len(training), dtype=int)
    for number, (_, held_out) in enumerate(split_folds(training, settings.folds, settings.seed)):
        fold[held_out] = number
    with database.read() as session:
        uuids = {row.id: row.uuid for row in session.execute(select(Judgment.id, Judgment.uuid))}
    table = train.table
    return [
        [pair, p_a, weight, int(number), [uuids[judgment] for judgment in judgments]]
        for pair, p_a, weight, number, judgments in zip(
            table["pair"], table["p_a"], table["weight"], fold, table["judgments"], strict=True
        )
    ]


def draw(tables: dict[str, pd.DataFrame], summary: dict[str, Any]) -> dict[str, Figure]:
    """The report's pictures by name."""
    ceiling = summary["people"]["ceiling"]
    figures = {
        "methods": plots.plot_methods(tables["methods"], ceiling),
        "coverage": plots.plot_coverage(tables["coverage"], summary["target"], ceiling),
        "calibration": plots.plot_calibration(tables["calibration"], summary["calibration_error"]),
    }
    if "importance" in tables:
        figures["importance"] = plots.plot_importance(tables["importance"])
        figures["learning_curve"] = plots.plot_learning_curve(tables["learning_curve"], ceiling)
    if summary["simulated"]:
        for figure in figures.values():
            mark_simulated(figure)
    return figures


def write_report(folder: Path, tables: dict[str, pd.DataFrame], summary: dict[str, Any]) -> None:
    """The pictures, the tables as CSV, then summary.json: a folder with a summary is a whole report."""
    for name, figure in draw(tables, summary).items():
        save_figure(figure, folder, name)
    for name, table in tables.items():
        write_table(folder / f"{name}.csv", table)
    text = json.dumps(without_nan(summary), indent=2, ensure_ascii=False)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")

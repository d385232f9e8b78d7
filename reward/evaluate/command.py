"""Report on reward models, stored metrics and any file of answers: `python -m reward evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from db.errors import UserError
from reward.model.weights_folder import choose_weights_folder
from reward.score.command import ScoringOptions
from runs.hold import hold_folder
from runs.options import Command, Flag, Input, Output, Place
from runs.store import code_version, record

if TYPE_CHECKING:
    import pandas as pd

    from dataset.labelled import LabelledPair
    from reward.evaluate.answers import Answers
    from reward.evaluate.compare import Labels
    from reward.score.scorer import FoundScorer

log = logging.getLogger(__name__)


class EvaluateOptions(ScoringOptions):
    """Which scorers are held against which labels, and where the report goes."""

    dataset: Annotated[Path, Input("dataset", "Dataset"), Flag(positional=True, metavar="DATASET")] = Field(
        description="Folder that `annotate export` wrote, or HPDv2's"
    )
    scorer: Annotated[list[str], Input("reward", "Reward models"), Flag(repeated=True, metavar="[NAME=]MODEL")] = Field(
        [],
        description="A checkpoint folder, a training's folder, a weight file, a name of reward/model/weights.toml "
        "(hps-v2.1) or a preset (vit-l-14: the CLIP that training would start from); repeatable",
    )
    pair_scores: Annotated[
        list[str], Input("pair scores", "Answers of others"), Flag(repeated=True, metavar="[NAME=]FILE")
    ] = Field(
        [],
        description="CSV with the columns pair and p_a (or machine_p_a: judged.csv of `annotate fit`); repeatable",
    )
    no_metrics: bool = Field(False, description="Leave the dataset's stored metric values out")
    split: Literal["test", "val", "train"] = Field("test", description="Which labels to measure on")
    include_simulated: bool = Field(False, description="Measure on programs' answers too; marked so")
    robustness_pairs: int = Field(
        100, ge=0, description="Pairs that reward models see changed in nine ways; 0 for none"
    )
    seed: int = Field(0, ge=0, description="Seed of the bootstrap")
    out: Annotated[Path | None, Output("Folder of the report")] = Field(
        None, description="Folder of the report (default: the run's)"
    )


def settle_evaluate(options: EvaluateOptions, _data: Path) -> EvaluateOptions:
    """Make the dataset's path absolute, as the run records it."""
    return options.model_copy(update={"dataset": options.dataset.expanduser().absolute()})


def run_evaluate(options: EvaluateOptions, place: Place) -> None:
    """Evaluate as a run, write the report, and refresh the card of every checkpoint."""
    with record(EVALUATE, options, place) as (_, run):
        out = options.out or run.folder
        summary = evaluate(options, choose_weights_folder(options.weights, place.data), out, run.progress)
        run.write_result({"out": str(out)})
    print(format_summary(summary))
    print(f"report: {out / 'report.md'}")


def evaluate(
    options: EvaluateOptions, weights: Path, out: Path, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Ask every scorer, measure, write the report; returns the contents of its summary.json.

    Args:
        weights: the folder of published weight files.
        progress: called with (scorers asked, scorers in all).
    Raises:
        UserError: an option, the dataset, a scorer or its answers are not as they should be; nothing is written then.
    """
    import numpy as np
    import pandas as pd  # here: these load torch, which --help and a wrong flag need not wait for

    from db.records import SIMULATED
    from metrics.votes import explain_connection
    from reward.data import load_dataset
    from reward.evaluate.answers import answer_by_file, answer_by_metrics
    from reward.evaluate.compare import Labels, compare_by
    from reward.evaluate.people import choose_labels, read_judgments
    from reward.evaluate.rankings import join_votes
    from reward.evaluate.report import measure, write_report
    from reward.model.card import write_card
    from reward.model.set_config import find_set
    from training.device import choose_device

    device = choose_device(options.device)
    pairs = load_dataset(options.dataset)
    judgments = read_judgments(pairs.path)
    labels, votes, notes = choose_labels(pairs, options.split, judgments, include_simulated=options.include_simulated)
    others = [answer_by_file(asked, labels.pairs) for asked in options.pair_scores]
    others += [] if options.no_metrics else answer_by_metrics(pairs.path, labels.pairs)
    constructed = pairs.select(options.split, "constructed").rows
    made = Labels(tuple(replace(row, p_a=round(row.p_a)) for row in constructed), np.zeros(len(constructed)))
    found = find_scorers((*labels.pairs, *made.pairs), options, weights)
    check_names([*(one.name for one in found), *(one.name for one in others)], pairs.path)
    models = ask_models(labels, made, options, weights, device, progress)
    notes += [model.note for model in models if model.note]
    answers = [model.answers for model in models] + others
    tables, people = measure(answers, labels, votes, options.seed)
    notes += explain_connection(join_votes(labels, votes))
    if made.pairs and models:
        kinds = [row.made_by for row in made.pairs]
        found_made = [model.of_constructed for model in models if model.of_constructed]
        tables["constructed"] = compare_by(found_made, made, kinds, "kind", options.seed)
    if options.robustness_pairs and models:
        tables["robustness"] = pd.concat([model.robustness for model in models], ignore_index=True)
    if options.split != "test":
        notes.append(f"Split {options.split} is not held out: models were trained on it or chosen by it.")
    summary = {
        "dataset": pairs.path.resolve().name,
        "split": options.split,
        "labels": describe_labels(labels, votes),
        "simulated": any(row.made_by.endswith(SIMULATED) for row in labels.pairs),
        "people": people,
        "scorers": tables["scorers"].to_dict("records"),
        "versions": {model.answers.name: model.version for model in models},
        "notes": notes,
        "made_by": {**EVALUATE.config(options), "labels_sha256": pairs.fingerprint, "code_version": code_version()},
    }
    with hold_folder(out):
        write_report(out, tables, summary)
    for model in models:
        if model.checkpoint and find_set(str(model.checkpoint)) is None:  # a set has no card
            write_card(model.checkpoint, summarize_for_card(summary, model.answers.name))
    return summary


@dataclass(frozen=True)
class Asked:
    """What a reward model answered; the model itself is gone, so that the next one has its memory."""

    answers: Answers
    of_constructed: Answers | None
    """To the pairs whose answer is known by construction."""
    robustness: pd.DataFrame | None
    version: str
    checkpoint: Path | None
    note: str | None
    """Where its prompt stood in for captions."""


def find_scorers(pairs: Sequence[LabelledPair], options: EvaluateOptions, weights: Path) -> list[FoundScorer]:
    """Every reward model, its weights here and captions and photos there where it wants them; no weights are read.

    Raises:
        UserError: one is not there, or wants captions where there are none, or a photo that a pair lacks.
    """
    from reward.score.scorer import check_scorer_captions, check_scorer_inputs, choose_photo, find_scorer

    found = [find_scorer(asked, weights) for asked in options.scorer]
    without = sum(not row.caption for row in pairs)
    for one in found:
        if photo := choose_photo(one):
            lacking = [row.source for row in pairs if getattr(row, photo) is None]
            instead = f"Import the photos with {photo} and export the dataset again."
            first = f"photo {lacking[0]!r}" if lacking else None
            check_scorer_inputs(one, len(lacking), len(pairs), "pairs", instead, first)
        check_scorer_captions(one, without, len(pairs), "pairs", use_prompt=options.use_prompt)
    return found


def ask_models(
    labels: Labels,
    made: Labels,
    options: EvaluateOptions,
    weights: Path,
    device: str,
    progress: Callable[[int, int], None],
) -> list[Asked]:
    """Every reward model's answers; `progress` is called with (models asked, models in all)."""
    models = []
    for done, asked in enumerate(options.scorer, 1):
        models.append(ask_model(asked, labels, made, options, weights, device))
        progress(done, len(options.scorer))
    return models


def ask_model(asked: str, labels: Labels, made: Labels, options: EvaluateOptions, weights: Path, device: str) -> Asked:
    """Load a reward model and ask it, of constructed pairs too where there are any."""
    from reward.evaluate.answers import answer_by_model
    from reward.evaluate.robustness import measure_robustness
    from reward.score.scorer import check_scorer_captions, load_scorer

    scorer = load_scorer(asked, device, weights_dir=weights)
    without = sum(not row.caption for row in labels.pairs)
    note = check_scorer_captions(scorer, without, len(labels.pairs), "pairs", use_prompt=options.use_prompt)
    log.info("%s answers %s pairs on %s", scorer.name, f"{len(labels.pairs):,}", device)
    answers = answer_by_model(scorer, labels.pairs, options.batch_size)
    robustness = None
    if options.robustness_pairs:
        robustness = measure_robustness(scorer, labels, options.robustness_pairs, options.batch_size, options.seed)
    of_constructed = answer_by_model(scorer, made.pairs, options.batch_size) if made.pairs else None
    return Asked(
        answers, of_constructed, robustness, scorer.version, scorer.path, f"{scorer.name}: {note}" if note else None
    )


def check_names(names: list[str], dataset: Path) -> None:
    """That there are scorers, each with a name of its own."""
    if not names:
        raise UserError(
            f"There is nothing to evaluate: no --scorer, no --pair-scores, and {dataset} has no metric values of these "
            "pairs. Name a scorer, or run `python -m annotate measure` and export again."
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"Two scorers are called {twice[0]}; name one of them otherwise: --scorer NAME=…")


def describe_labels(labels: Labels, votes: pd.DataFrame) -> dict[str, int]:
    """How many labels of how many photos, ties among them, and the answers that they were made of, by whom."""
    return {
        "n": len(labels.pairs),
        "sources": len(set(labels.sources)),
        "ties": int((~labels.decided).sum()),
        "answers": len(votes),
        "people": int(votes.loc[~votes["simulated"], "person"].nunique()),
        "simulated": int(votes.loc[votes["simulated"], "person"].nunique()),
    }


def summarize_for_card(summary: dict[str, Any], name: str) -> dict[str, Any]:
    """What a checkpoint's card says of an evaluation."""
    row = next(row for row in summary["scorers"] if row["scorer"] == name)
    return {
        "dataset": summary["dataset"],
        "split": summary["split"],
        "simulated": summary["simulated"],
        "accuracy": {"value": row["accuracy"], "low": row["low"], "high": row["high"], "n": row["n"]},
        "ceiling": summary["people"]["ceiling"],
        "calibration_error": row["calibration_error"],
        "spearman": row.get("spearman"),
        "version": summary["versions"][name],
        "code_version": summary["made_by"]["code_version"],
    }


def format_summary(summary: dict[str, Any]) -> str:
    """The key numbers for a terminal, the best scorer first."""
    from reward.evaluate.report import SIMULATED_NOTE, show_interval

    labels, people = summary["labels"], summary["people"]
    width = max(len(row["scorer"]) for row in summary["scorers"])
    best = sorted(summary["scorers"], key=lambda row: -row["accuracy"])
    return "\n".join(
        [
            *([SIMULATED_NOTE] if summary["simulated"] else []),
            f"split {summary['split']}: {labels['n']:,} labels of {labels['sources']:,} photos, {labels['ties']} ties",
            *(f"{row['scorer']:<{width}}  {show_interval(row, 'accuracy')}  ({row['n']:,} pairs)" for row in best),
            f"{'human ceiling':<{width}}  {show_interval(people['ceiling'])}  ({people['ceiling']['n']:,} answers)",
            *(f"note: {note}" for note in summary["notes"]),
        ]
    )


EVALUATE = Command(
    "reward evaluate",
    "hold reward models, metrics and other scorers against people's held-out labels",
    EvaluateOptions,
    run_evaluate,
    "Writes report.md with its pictures and tables. Every metric that the dataset has values of is a scorer too. "
    "LAION-Aesthetics is pyiqa's metric laion_aes: name it in a metric list of your own, run `python -m annotate "
    "measure --metrics FILE`, then export.",
    settle_evaluate,
)

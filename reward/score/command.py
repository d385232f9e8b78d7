"""Score images into a file, the project's candidates into its database: `python -m reward score`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from db.errors import UserError
from db.session import Database, open_database
from reward.model.weights_folder import WeightsFolder, choose_weights_folder
from runs.options import Command, Flag, Input, Options, Output, Place
from runs.progress import Show, show_progress
from runs.store import RunLog, record

if TYPE_CHECKING:
    from reward.score.files_and_rows import ImageItem, ScoreReport
    from reward.score.scorer import FoundScorer, Scorer

REWARDS = Path("rewards.jsonl")


class ScoringOptions(Options):
    """What every command that runs a reward model takes."""

    use_prompt: bool = Field(
        False,
        description="Compare with the model's own prompt even where not one image has a caption; for single images "
        "that lack one it always stands in",
    )
    batch_size: int = Field(32, ge=1, description="Images at a time")
    device: Annotated[str, Flag(terminal_only=True)] = Field("auto", description="auto, cpu, cuda or cuda:1")
    weights: WeightsFolder = None


class ScoreOptions(ScoringOptions):
    """Which images a reward model scores, and where their rewards go."""

    places: Annotated[list[Path], Input("photos", "Images"), Flag(positional=True, metavar="PLACE")] = Field(
        [], description="Images, folders of them, dataset folders, or a data folder"
    )
    scorer: Annotated[str, Input("reward", "Reward model"), Flag(metavar="[NAME=]MODEL")] = Field(
        min_length=1,
        description="A checkpoint folder, a training's folder, a weight file, a name of reward/model/weights.toml, or "
        "a preset",
    )
    inputs: Annotated[Path | None, Input("faces", "Photos that were restored"), Flag(metavar="DIR")] = Field(
        None,
        description="Folder of the photos that images were made of, by the same names, for a reward that sees both; "
        "a dataset and the project have their own",
    )
    out: Annotated[Path | None, Output("File of the rewards"), Flag(metavar="FILE")] = Field(
        None, description=f"JSON lines that rewards of files are appended to (default: {REWARDS})"
    )


def settle_score(options: ScoreOptions, data: Path) -> ScoreOptions:
    """Name the file of rewards.

    Raises:
        UserError: one is named for candidates, whose rewards go into their database, or photos, which they have.
    """
    if find_data_folder(options, data) is None:
        return options.model_copy(update={"out": options.out or REWARDS})
    if options.inputs:
        raise UserError("--inputs is for files; the project's candidates have the photos they were imported with.")
    if options.out:
        raise UserError("--out is for rewards of files; those of the project's candidates go into its database.")
    return options


def run_score(options: ScoreOptions, place: Place) -> None:
    """Score whatever the places are, and say what was done."""
    from reward.score.files_and_rows import find_images
    from reward.score.scorer import choose_photo, find_scorer, load_scorer
    from training.device import choose_device  # here: these load torch, which --help need not wait for

    data, device = find_data_folder(options, place.data), choose_device(options.device)
    weights = choose_weights_folder(options.weights, place.data)
    found = find_scorer(options.scorer, weights)
    items = find_images(options.places, choose_photo(found), options.inputs) if data is None else []
    if data is None:
        check_files(found, items, options)
    else:
        check_project(found, replace(place, data=data), options)
    scorer = load_scorer(options.scorer, device, weights_dir=weights)
    start = time.monotonic()
    opened: AbstractContextManager[tuple[Database | None, RunLog | None]] = nullcontext((None, None))
    if data is not None or place.run is not None:  # rewards of files make no run, but may be one that was started
        opened = record(SCORE, options, replace(place, data=data or place.data))
    with opened as (database, run), show_progress(run, "scoring", "images") as show:
        if data is None or database is None:
            report = write_rewards(scorer, items, options, show)
        else:
            report = store_rewards(scorer, database, data, options, show)
        if run:
            run.write_result({**asdict(report), "metric": scorer.metric, "version": scorer.version})
    print_report(report, scorer, time.monotonic() - start)


def check_files(found: FoundScorer, items: Sequence[ImageItem], options: ScoreOptions) -> None:
    """What scoring files would find amiss, before a model is loaded: captions, photos, and the file that is written."""
    from reward.score.files_and_rows import check_item_inputs, read_done
    from reward.score.scorer import check_scorer_captions

    if options.inputs and not found.config.needs_input:
        raise UserError(f"--inputs is for a reward that sees the restored photo; {found.name} sees the image alone.")
    check_item_inputs(found, items)
    without = sum(not item.caption for item in items)
    check_scorer_captions(found, without, len(items), "images", use_prompt=options.use_prompt)
    read_done(options.out or REWARDS, "")


def check_project(found: FoundScorer, place: Place, options: ScoreOptions) -> None:
    """The same of the project's candidates; which of them have a reward already is known by the loaded model alone."""
    from reward.score.files_and_rows import check_candidates

    database = open_database(place.data, place.db)
    try:
        check_candidates(found, database, place.data, use_prompt=options.use_prompt)
    finally:
        database.close()


def find_data_folder(options: ScoreOptions, data: Path) -> Path | None:
    """The data folder whose candidates are asked for; None where files are."""
    if not options.places:
        return data
    if len(options.places) == 1 and (options.places[0] / "facereward.db").is_file():
        return options.places[0]
    return None


def write_rewards(scorer: Scorer, items: list[ImageItem], options: ScoreOptions, show: Show) -> ScoreReport:
    """Score files."""
    from reward.score.files_and_rows import score_files

    out = options.out or REWARDS
    report = score_files(scorer, items, out, options.batch_size, use_prompt=options.use_prompt, progress=show)
    print(f"rewards: {out}")
    return report


def store_rewards(scorer: Scorer, database: Database, data: Path, options: ScoreOptions, show: Show) -> ScoreReport:
    """Score candidates."""
    from reward.score.files_and_rows import score_candidates

    return score_candidates(scorer, database, data, options.batch_size, use_prompt=options.use_prompt, progress=show)


def print_report(report: ScoreReport, scorer: Scorer, seconds: float) -> None:
    """What was scored, under which name, and what could not be read."""
    rate = f" ({report.scored / seconds:.1f} images/s)" if report.scored else ""
    print(f"{report.scored:,} images scored in {seconds:.0f} s{rate}, {report.already:,} had a reward already")
    print(f'metric "{scorer.metric}", version "{scorer.version}"')
    if report.spread is not None:
        print(f"mean spread over its members {report.spread:.4f}, stored with each reward")
    if report.note:
        print(f"note: {report.note}")
    for fault in report.unreadable:
        print(f"unreadable: {fault}")
    if report.unreadable_count > len(report.unreadable):
        print(f"unreadable: {report.unreadable_count - len(report.unreadable):,} more")


SCORE = Command(
    "reward score",
    "write the rewards of images, or store those of the project's candidates",
    ScoreOptions,
    run_score,
    "Without PLACE, or with a data folder, all candidates of the project are scored and stored like metric values. "
    "Ended at any time, the same command goes on; what has a reward is not scored again.",
    settle_score,
)

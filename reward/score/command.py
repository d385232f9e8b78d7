"""`python -m reward score`: rewards of images into a file, of the project's candidates into its database."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from db.errors import UserError
from reward.model.weights_folder import add_weights_flag, choose_weights_folder
from runs.store import open_run

if TYPE_CHECKING:
    from reward.score.scorer import FoundScorer

if TYPE_CHECKING:
    from reward.score.files_and_rows import ImageItem, ScoreReport
    from reward.score.scorer import FoundScorer, Scorer

PROGRESS_SECONDS = 1.0
REWARDS = Path("rewards.jsonl")


def add_score_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`score`: rewards of images, folders, or all candidates of the project."""
    parser = commands.add_parser(
        "score",
        help="write the rewards of images, or store those of the project's candidates",
        description="Without PLACE, or with a data folder, all candidates of the project are scored and stored like "
        "metric values. Ended at any time, the same command goes on; what has a reward is not scored again.",
    )
    parser.add_argument(
        "places",
        nargs="*",
        type=Path,
        metavar="PLACE",
        help="images, folders of them, dataset folders, or a data folder",
    )
    parser.add_argument(
        "--scorer",
        required=True,
        metavar="[NAME=]MODEL",
        help="a checkpoint folder, a training's folder, a weight file, a name of reward/model/weights.toml, or a "
        "preset",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON lines that rewards of files are appended to (default: rewards.jsonl)",
    )
    add_scoring_options(parser)
    parser.set_defaults(command=run_score)


def run_score(args: argparse.Namespace) -> None:
    """Score whatever the places are, and say what was done."""
    from reward.score.files_and_rows import find_images
    from reward.score.scorer import find_scorer, load_scorer
    from training.device import choose_device  # here: these load torch, which --help need not wait for

    if args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}; give 1 or more.")
    data, device, weights = find_data_folder(args), choose_device(args.device), choose_weights_folder(args)
    if data and args.out:
        raise UserError("--out is for rewards of files; those of the project's candidates go into its database.")
    found = find_scorer(args.scorer, weights)
    items = [] if data else find_images(args.places)
    if data:
        check_project(found, data, args)
    else:
        check_files(found, items, args)
    scorer = load_scorer(args.scorer, device, weights_dir=weights)
    start = time.monotonic()
    with tqdm(desc="scoring", unit=" images", disable=not sys.stderr.isatty()) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = store_rewards(scorer, data, args, show) if data else write_rewards(scorer, items, args, show)
    print_report(report, scorer, time.monotonic() - start)


def check_files(found: FoundScorer, items: Sequence[ImageItem], args: argparse.Namespace) -> None:
    """What scoring files would find amiss, before a model is loaded: captions, and the file that is written."""
    from reward.score.files_and_rows import read_done
    from reward.score.scorer import check_scorer_captions

    without = sum(not item.caption for item in items)
    check_scorer_captions(found, without, len(items), "images", use_prompt=args.use_prompt)
    read_done(args.out or REWARDS, "")


def check_project(found: FoundScorer, data: Path, args: argparse.Namespace) -> None:
    """The same of the project's candidates; which of them have a reward already is known by the loaded model alone."""
    from db.session import open_database
    from reward.score.files_and_rows import check_candidates

    database = open_database(data, args.db)
    try:
        check_candidates(found, database, data, use_prompt=args.use_prompt)
    finally:
        database.close()


def find_data_folder(args: argparse.Namespace) -> Path | None:
    """The data folder whose candidates are asked for; None where files are."""
    if not args.places:
        return Path(args.data)
    if len(args.places) == 1 and (args.places[0] / "facereward.db").is_file():
        return Path(args.places[0])
    return None


def write_rewards(
    scorer: Scorer, items: list[ImageItem], args: argparse.Namespace, show: Callable[[int, int], None]
) -> ScoreReport:
    """Score files."""
    from reward.score.files_and_rows import score_files

    out = args.out or REWARDS
    report = score_files(scorer, items, out, args.batch_size, use_prompt=args.use_prompt, progress=show)
    print(f"rewards: {out}")
    return report


def store_rewards(
    scorer: Scorer, data: Path, args: argparse.Namespace, show: Callable[[int, int], None]
) -> ScoreReport:
    """Score candidates, as a run."""
    from db.session import open_database
    from reward.score.files_and_rows import score_candidates

    config = {"scorer": args.scorer, "metric": scorer.metric, "version": scorer.version, "use_prompt": args.use_prompt}
    database, last = open_database(data, args.db), 0.0
    try:
        with open_run(database, data, "reward score", config, args.run) as run:

            def progress(done: int, total: int) -> None:
                nonlocal last
                show(done, total)
                if time.monotonic() - last >= PROGRESS_SECONDS or done == total:
                    last = time.monotonic()
                    run.progress(done, total)

            report = score_candidates(
                scorer, database, data, args.batch_size, use_prompt=args.use_prompt, progress=progress
            )
            run.write_result({**asdict(report), "metric": scorer.metric, "version": scorer.version})
    finally:
        database.close()
    return report


def print_report(report: ScoreReport, scorer: Scorer, seconds: float) -> None:
    """What was scored, under which name, and what could not be read."""
    rate = f" ({report.scored / seconds:.1f} images/s)" if report.scored else ""
    print(f"{report.scored:,} images scored in {seconds:.0f} s{rate}, {report.already:,} had a reward already")
    print(f'metric "{scorer.metric}", version "{scorer.version}"')
    if report.note:
        print(f"note: {report.note}")
    for fault in report.unreadable:
        print(f"unreadable: {fault}")
    if report.unreadable_count > len(report.unreadable):
        print(f"unreadable: {report.unreadable_count - len(report.unreadable):,} more")


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """What every command that runs a reward model takes."""
    parser.add_argument(
        "--use-prompt",
        action="store_true",
        help="compare with the model's own prompt even where not one image has a caption; for single images that lack "
        "one it always stands in",
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    add_weights_flag(parser)

"""Run the published method at full size on this machine, as commands that a person types, with random weights.

    python -m experiments.rehearse --folder DIR

Writes weight files in the published formats (some 16 GB), made-up faces and labels, runs every step in a process of
its own and prints what each took. Nothing is learned and nothing is restored: it shows that full-size files load, that
steps fit the memory, that what is killed goes on, and that numbers stay finite. It takes 24 GiB of memory, 50 GB of
disk and half an hour on two cores; it is not part of the tests.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PilImage

from db.errors import UserError
from experiments.published_files import PUBLISHED_SHAPES, read_shapes, write_files
from experiments.rehearsal_inputs import write_dataset, write_faces
from experiments.watched_process import Watched, watch

log = logging.getLogger(__name__)

GIB = 2**30
LIMIT_SECONDS = 2 * 60 * 60
"""Of one step."""
OUTPUTS = ("data", "train", "reward", "restored-diffbir-v1", "restored-diffbir-v2.1", "restored-osediff", "report")
"""Folders that steps write and would go on from."""
FACES = {"faces": (4, 0), "held-out": (2, 100), "test": (2, 200)}
"""Folder -> how many faces, the first one's seed."""


@dataclass(frozen=True)
class Step:
    """One command."""

    name: str
    words: tuple[str, ...]
    """Behind `python -m`."""
    kill_at: str = ""
    """Text in its output at which it is killed."""
    images: str = ""
    """Folder, inside the rehearsal's, whose images are looked at afterwards."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a step."""

    step: Step
    took: Watched
    fault: str
    """Empty where it passed."""


def list_steps(folder: Path) -> list[Step]:
    """All steps in their order; later ones take what earlier ones wrote into the folder."""
    weights, train, reward = folder / "weights", folder / "train", folder / "reward"
    shared = ("--data", str(folder / "data"), "--weights", str(weights))
    face_reward = str(weights / "FaceRewardModel.pth")
    restore = (*shared, "--aligned", "--dtype", "bfloat16", "--batch-size", "1")
    tune = f"refl train --preset paper-24gb --restorer diffbir-v1 --reward {face_reward} --faces {folder / 'faces'}"
    tune += f" --held-out {folder / 'held-out'} --out {train} --max-steps 2 --batch-size 1 --steps 2 --perceptual gmsd"
    # a look restores by all of the restorer's steps, 50: ten minutes on two cores
    tune += " --monitor-every-steps 0 --reward-every-steps 1 --checkpoint-every-steps 1 --log-every-steps 1"
    tune += " --workers 0"  # on a CPU a forked worker keeps a copy of every weight that training changes
    teach = f"reward train --preset vit-h-14 --dataset {folder / 'dataset'} --out {reward} --weights {face_reward}"
    teach += " --max-steps 2 --warmup-steps 0 --batch-size 2 --micro-batch-size 1 --log-every-steps 1 --workers 1"
    compare = f"refl evaluate --method diffbir-v1 --method {train / 'tuned'} --faces {folder / 'test'} --steps 2"
    compare += f" --dtype bfloat16 --reward frozen={face_reward} --out {folder / 'report'}"
    score = (
        f"reward score {folder / 'faces'} --scorer face-reward-model --batch-size 2 --out {folder / 'rewards.jsonl'}"
    )
    judge = f"reward evaluate {folder / 'dataset'} --scorer face-reward-model --scorer trained={reward} --no-metrics"
    judge += f" --robustness-pairs 0 --batch-size 2 --out {folder / 'reward-report'}"

    def make_restore(method: str, *more: str) -> Step:
        out = f"restored-{method}"
        words = (
            "refl",
            "restore",
            str(folder / "test"),
            "--method",
            method,
            "--out",
            str(folder / out),
            *more,
            *restore,
        )
        return Step(f"restore {method}", words, images=out)

    return [
        make_restore("diffbir-v1", "--steps", "2"),
        make_restore("diffbir-v2.1", "--steps", "2"),
        make_restore("osediff"),
        Step("refl train, killed after a step", (*tune.split(), *shared), kill_at="step 1 of 2"),
        Step("refl train, continued", (*tune.split(), *shared)),
        Step(
            "weights export", ("refl", "weights", "export", str(train / "tuned"), str(folder / "control.pth"), *shared)
        ),
        Step("refl evaluate", (*compare.split(), *shared)),
        Step("reward train", (*teach.split(), "--data", str(folder / "data"))),
        Step("reward score", (*score.split(), *shared)),
        Step("reward evaluate", (*judge.split(), *shared)),
    ]


def run_steps(folder: Path, steps: Iterable[Step]) -> list[Outcome]:
    """Run them one after another, each of them whatever became of the others."""
    outcomes = []
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    for step in steps:
        log.info("%s: python -m %s", step.name, " ".join(step.words))
        output = folder / "logs" / f"{step.name.replace(' ', '-').replace(',', '')}.txt"
        took = watch([sys.executable, "-m", *step.words], output, kill_at=step.kill_at, limit_s=LIMIT_SECONDS)
        outcomes.append(Outcome(step, took, find_fault(step, took, folder, output)))
        log.info("%s", format_row(outcomes[-1]))
    return outcomes


def find_fault(step: Step, took: Watched, folder: Path, output: Path) -> str:
    """Describe what is wrong with the end of a step; empty for nothing."""
    last = (output.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
    if step.kill_at:
        return "" if took.was_killed else f"ended before {step.kill_at!r}: {last}"
    if took.exit_code:
        return f"exit {took.exit_code}: {last}"
    images = sorted((folder / step.images).rglob("*.png")) if step.images else []
    if step.images and not images:
        return f"no image in {step.images}"
    flat = [path.name for path in images if np.ptp(np.asarray(PilImage.open(path))) == 0]  # what is not finite is black
    return f"of one colour: {', '.join(flat)}" if flat else ""


def format_table(outcomes: Sequence[Outcome]) -> str:
    """Markdown, a row per step."""
    head = ["| step | seconds | peak GiB | GiB written | |", "|---|---|---|---|---|"]
    return "\n".join([*head, *map(format_row, outcomes)])


def format_row(outcome: Outcome) -> str:
    """One step's row."""
    took = outcome.took
    numbers = f"{took.seconds:,.0f} | {took.peak_bytes / GIB:.1f} | {took.written_bytes / GIB:.1f}"
    return f"| {outcome.step.name} | {numbers} | {outcome.fault or 'pass'} |"


def prepare(folder: Path, shapes: Path) -> None:
    """Write what the steps take, as far as it is not there."""
    write_files(folder / "weights", read_shapes(shapes))
    for name, (count, first_seed) in FACES.items():
        write_faces(folder / name, count, first_seed)
    write_dataset(folder / "dataset")


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0 where every step passed, 1 where one did not, 2 where nothing can be run."""
    parser = argparse.ArgumentParser(prog="python -m experiments.rehearse", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="for all of it, some 50 GB")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="only these steps")
    parser.add_argument("--fresh", action="store_true", help="delete what earlier steps wrote there, not the weights")
    parser.add_argument("--shapes", type=Path, default=PUBLISHED_SHAPES, metavar="FILE", help="keys and shapes")
    args = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = args.folder.expanduser().absolute()
    steps = list_steps(folder)
    try:
        if unknown := set(args.only or []) - {step.name for step in steps}:
            raise UserError(f"There is no step {sorted(unknown)[0]!r}. Name: {', '.join(step.name for step in steps)}.")
        if args.fresh:
            for name in OUTPUTS:
                shutil.rmtree(folder / name, ignore_errors=True)
        prepare(folder, args.shapes)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    outcomes = run_steps(folder, [step for step in steps if not args.only or step.name in args.only])
    table = format_table(outcomes)
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return int(any(outcome.fault for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())

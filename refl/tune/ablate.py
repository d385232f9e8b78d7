"""Run ReFL trainings side by side, each without one part, and print one table: `python -m refl ablate`.

Every variant is a `python -m refl train` (and, where the reward model itself differs, a `python -m reward train` before
it) that a person could type; those that are finished are not run again. At the end one `python -m refl evaluate`
compares all of them with the base.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from db.command import DATABASE_VARIABLE
from db.errors import UserError
from refl.tune.config import ReflConfig, load_refl_config, preset_names
from reward.model.weights_folder import add_weights_flag
from runs.hold import hold_folder
from runs.own_command import drop_common
from runs.store import open_database_run

log = logging.getLogger(__name__)

REWARD_FACTORS = (0.3, 3.0, 10.0)
"""Of the sweep over the reward's weight."""
LABEL_SHARES = (0.1, 0.3)
"""Of the labels that the reward model learns from; the whole is the full variant."""


@dataclass(frozen=True)
class Variant:
    """One training."""

    name: str
    refl: tuple[str, ...] = ()
    """Flags over the preset's settings."""
    reward: tuple[str, ...] | None = None
    """Flags of a reward model trained for it alone; None takes the shared one."""


def list_variants(config: ReflConfig, with_labels: bool) -> list[Variant]:
    """All variants of a preset, the full one first; those whose part the preset lacks are left out.

    Args:
        with_labels: whether reward models can be trained on fewer, and on people's labels alone.
    """
    weight = config.loss.reward_weight
    variants = [Variant("full"), Variant("no reward", ("--reward-weight=0",))]
    if config.loss.structure_weight:
        variants.append(Variant("no structure", ("--structure-weight=0",)))
    if config.loss.perceptual_weight:
        variants.append(Variant("no perceptual", ("--perceptual-weight=0",)))
    if config.loss.regularizer_weight:
        variants.append(Variant("no regularizer", ("--regularizer-weight=0",)))
    if config.live_reward.reward_every_steps:
        variants.append(Variant("static reward", ("--reward-every-steps=0",)))
    variants += [
        Variant(f"reward x {factor:g}", (f"--reward-weight={factor * weight:g}",)) for factor in REWARD_FACTORS
    ]
    if with_labels:
        variants += [Variant(f"{share:.0%} of labels", reward=(f"--label-share={share:g}",)) for share in LABEL_SHARES]
        variants.append(Variant("human labels only", reward=("--svm-weight=0",)))
    return variants


def add_ablate_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`ablate`: all variants of a preset."""
    parser = commands.add_parser(
        "ablate",
        help="train a preset with each of its parts left out, and compare",
        description="The same command again goes on after what is finished.",
    )
    parser.add_argument("preset", help=f"{', '.join(preset_names())}, or a config file")
    parser.add_argument("--restorer", required=True, help="what is tuned, as of `refl train`")
    parser.add_argument("--reward", required=True, help="the shared reward model, as of `refl train`")
    parser.add_argument("--faces", type=Path, metavar="DIR", help="faces to train on, as of `refl train`")
    parser.add_argument("--test-faces", type=Path, metavar="DIR", help="faces to evaluate on (default: the test split)")
    parser.add_argument(
        "--dataset", type=Path, metavar="DIR", help="labelled pairs; with --reward-preset also variants of the labels"
    )
    parser.add_argument(
        "--reward-preset", metavar="PRESET", help="how reward models for variants of labels are trained"
    )
    add_weights_flag(parser)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these variants, beside the full one")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of all of it")
    parser.add_argument(
        "--with",
        dest="flags",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="FLAG",
        help="all that follows goes to every `refl train`: --with --max-steps 200",
    )
    parser.set_defaults(command=run_ablate)


def run_ablate(args: argparse.Namespace) -> None:
    """Run what is not finished, then evaluate all."""
    variants = list_variants(load_refl_config(args.preset), bool(args.dataset and args.reward_preset))
    names = [variant.name for variant in variants]
    unknown = sorted(set(args.only or []) - set(names))
    if unknown:
        raise UserError(f"There is no variant {unknown[0]!r}. Name one of {', '.join(names)}.")
    chosen = [variant for variant in variants if not args.only or variant.name in (*args.only, "full")]
    out = args.out.expanduser().absolute()
    config = {
        "preset": args.preset,
        "variants": [variant.name for variant in chosen],
        "flags": drop_common(args.flags),
        "out": str(out),
    }
    with open_database_run(args.data, args.db, "refl ablate", config, args.run) as run, hold_folder(out):
        for done, variant in enumerate(chosen):
            run.progress(done, len(chosen) + 1)
            train_variant(variant, args, out)
        run.progress(len(chosen), len(chosen) + 1)
        evaluate_variants([folder_of(out, variant) for variant in chosen], args, out)
        run.write_result({"out": str(out)})
    print(f"report: {out / 'report' / 'report.md'}")


def folder_of(out: Path, variant: Variant) -> Path:
    """Return the folder in which a variant is trained."""
    return out / variant.name.replace("%", " percent").replace(" ", "-")


def train_variant(variant: Variant, args: argparse.Namespace, out: Path) -> None:
    """Train a variant to its end, its own reward model first; at once where it is finished."""
    folder, reward = folder_of(out, variant), args.reward
    shared = f"--data={args.data}"
    if variant.reward is not None:
        reward = str(folder / "reward-model" / "best")
        command = ["reward", "train", f"--preset={args.reward_preset}", f"--dataset={args.dataset}"]
        run_module([*command, f"--out={folder / 'reward-model'}", *variant.reward, shared], args.db)
    what = [f"--restorer={args.restorer}", f"--reward={reward}", f"--out={folder}"]
    what += [f"--{name}={getattr(args, name)}" for name in ("faces", "dataset") if getattr(args, name)]
    what += [f"--weights={args.weights}"] if args.weights else []
    preset = f"--preset={args.preset}" if args.preset in preset_names() else f"--config={args.preset}"
    run_module(["refl", "train", preset, *what, *drop_common(args.flags), *variant.refl, shared], args.db)


def evaluate_variants(folders: list[Path], args: argparse.Namespace, out: Path) -> None:
    """One report on the base and every variant; their rewards by the shared model, which none of them trained."""
    methods = [f"--method={folder / 'tuned'}" for folder in folders]
    what = [f"--method={args.restorer}", *methods, f"--reward=frozen={args.reward}", f"--out={out / 'report'}"]
    what += [f"--weights={args.weights}"] if args.weights else []
    if args.test_faces:
        what.append(f"--faces={args.test_faces}")
    degradation = read_degradation(folders[0], out)
    shared = f"--data={args.data}"
    # after hours of training a report must come out; it says where the prompt stands in for captions
    run_module(["refl", "evaluate", *what, f"--degradation={degradation}", "--use-prompt", shared], args.db)


def read_degradation(folder: Path, out: Path) -> Path:
    """A config file with the degradation that the trainings had, whose flags may have changed the preset's."""
    record = json.loads((folder / "last" / "training.json").read_text(encoding="utf-8"))
    path = out / "config.json"
    path.write_text(json.dumps(record["config"], indent=2) + "\n", encoding="utf-8")
    return path


def run_module(command: list[str], url: str | None) -> None:
    """Run one of our commands in a process of its own, its output to this terminal.

    Args:
        url: the database's; it may hold a password, so it goes into the environment.
    Raises:
        UserError: it failed; its own last line says why.
    """
    log.info("python -m %s", " ".join(command))
    environment = {**os.environ, DATABASE_VARIABLE: url} if url else None
    done = subprocess.run([sys.executable, "-m", *command], env=environment)
    if done.returncode:
        raise UserError(f"`python -m {command[0]} {command[1]}` ended with {done.returncode}; see above. Run again.")

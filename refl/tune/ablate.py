"""Train a preset with each part of ReFL left out, and by each other method: `python -m refl ablate`.

Other methods end where they have cost as many network evaluations as the preset itself. Every variant is a `python -m
refl train` (and, where the reward model itself differs, a `python -m reward train` before it) that a person could type;
those that are finished are not run again. At the end one `python -m refl evaluate` compares all of them with the base.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from db.command import DATABASE_VARIABLE
from db.errors import UserError
from refl.restorers.record import takes_many_steps
from refl.tune.config import SAMPLING, ReflConfig, load_refl_config, preset_names
from refl.tune.judge_names import is_judge
from reward.model.weights_folder import WeightsFolder
from runs.files import write_text_whole
from runs.hold import hold_folder
from runs.options import Command, Flag, Input, Options, Output, Place, make_absolute
from runs.own_command import drop_common
from runs.store import record
from runs.tables import write_table

log = logging.getLogger(__name__)

FULL = "full"
REWARD_FACTORS = (0.3, 3.0, 10.0)
"""Of the sweep over the reward's weight."""
LABEL_SHARES = (0.1, 0.3)
"""Of the labels that the reward model learns from; the whole is the full variant."""


OTHER_METHOD = ("--reward-every-steps=0", "--eta", "1", "1")
"""Of those beside refl: a reward that stays as it is, and samplers with noise, which make groups differ."""


@dataclass(frozen=True)
class Variant:
    """One training."""

    name: str
    refl: tuple[str, ...] = ()
    """Flags over the preset's settings."""
    reward: tuple[str, ...] | None = None
    """Flags of a reward model trained for it alone; None takes the shared one."""
    costs_as_full: bool = False
    """Whether it ends where it has cost as much as the full variant, however many steps that takes."""


def list_variants(
    config: ReflConfig, with_labels: bool, *, with_pairs: bool = False, many_steps: bool = True
) -> list[Variant]:
    """All variants of a preset, the full one first; those whose part the preset lacks are left out.

    Args:
        with_labels: whether reward models can be trained on fewer, and on people's labels alone.
        with_pairs: whether there are labelled pairs, from which dpo learns.
        many_steps: whether the restorer takes many, as grpo needs.
    """
    parts = list_parts(config, with_labels) if config.method == "refl" else []
    left_out = {"refl", config.method, *(() if with_pairs else ("dpo",)), *(() if many_steps else ("grpo",))}
    methods = [
        Variant(name, ("--algorithm", name, *OTHER_METHOD), costs_as_full=True)
        for name in ("dpo", *SAMPLING)
        if name not in left_out
    ]
    return [Variant(FULL), *methods, *parts]


def list_parts(config: ReflConfig, with_labels: bool) -> list[Variant]:
    """The variants of a preset of refl itself; see `list_variants`."""
    weight = config.loss.reward_weight
    variants = [Variant("no reward", ("--reward-weight=0",))]
    if config.loss.structure_weight:
        variants.append(Variant("no structure", ("--structure-weight=0",)))
    if config.loss.perceptual_weight:
        variants.append(Variant("no perceptual", ("--perceptual-weight=0",)))
    if config.loss.identity_weight:
        variants.append(Variant("no identity term", ("--identity-weight=0",)))
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


class AblateOptions(Options):
    """What is ablated, on which faces, and where to."""

    preset: Annotated[str, Flag(positional=True, metavar="PRESET")] = Field(
        description=f"{', '.join(preset_names())}, or a config file"
    )
    restorer: Annotated[str, Input("restorer")] = Field(min_length=1, description="What is tuned, as of `refl train`")
    reward: Annotated[str, Input("reward", "Reward model"), Flag(metavar="MODEL")] = Field(
        min_length=1, description="The shared reward model, as of `refl train`"
    )
    faces: Annotated[Path | None, Input("faces")] = Field(None, description="Faces to train on, as of `refl train`")
    test_faces: Annotated[Path | None, Input("faces", "Test faces")] = Field(
        None, description="Faces to evaluate on (default: the test split)"
    )
    dataset: Annotated[Path | None, Input("dataset")] = Field(
        None, description="Labelled pairs, for the variant dpo; with --reward-preset also variants of the labels"
    )
    reward_preset: Annotated[str | None, Flag(metavar="PRESET")] = Field(
        None, description="How reward models for variants of labels are trained"
    )
    only: list[str] = Field([], description="Only these variants, beside the full one (default: all)")
    out: Annotated[Path, Output()] = Field(description="Folder of all of it")
    weights: WeightsFolder = None
    flags: Annotated[list[str], Flag(name="with", rest=True, metavar="FLAG")] = Field(
        [], description="All that follows goes to every `refl train`: --with --max-steps 200"
    )


def settle_ablate(options: AblateOptions, _data: Path) -> AblateOptions:
    """Make paths absolute.

    Raises:
        UserError: there is no such preset or variant.
    """
    choose_variants(options)
    return make_absolute(options.model_copy(update={"flags": drop_common(options.flags)}))


def choose_variants(options: AblateOptions) -> list[Variant]:
    """The full variant and those that are asked for, all where none are named.

    Raises:
        UserError: there is no such preset or variant.
    """
    variants = list_variants(
        load_refl_config(options.preset),
        bool(options.dataset and options.reward_preset),
        with_pairs=bool(options.dataset),
        many_steps=takes_many_steps(options.restorer),
    )
    names = [variant.name for variant in variants]
    unknown = sorted(set(options.only) - set(names))
    if unknown:
        raise UserError(f"There is no variant {unknown[0]!r}. Name one of {', '.join(names)}.")
    return [variant for variant in variants if not options.only or variant.name in (*options.only, FULL)]


def run_ablate(options: AblateOptions, place: Place) -> None:
    """Run what is not finished, then evaluate all."""
    chosen, out = choose_variants(options), options.out
    with record(ABLATE, options, place) as (_, run), hold_folder(out):
        for done, variant in enumerate(chosen):
            run.progress(done, len(chosen) + 1)
            train_variant(variant, options, place)
        run.progress(len(chosen), len(chosen) + 1)
        folders = [folder_of(out, variant) for variant in chosen]
        evaluate_variants(folders, options, place)
        write_costs([read_cost(folder) for folder in folders], out / "report")
        run.write_result({"out": str(out)})
    print(f"report: {out / 'report' / 'report.md'}")


def folder_of(out: Path, variant: Variant) -> Path:
    """Return the folder in which a variant is trained."""
    return out / variant.name.replace("%", " percent").replace(" ", "-")


def train_variant(variant: Variant, options: AblateOptions, place: Place) -> None:
    """Train a variant to its end, its own reward model first; at once where it is finished."""
    folder, reward = folder_of(options.out, variant), options.reward
    shared = f"--data={place.data}"
    if variant.reward is not None:
        reward = str(folder / "reward-model" / "best")
        command = ["reward", "train", f"--preset={options.reward_preset}", f"--dataset={options.dataset}"]
        run_module([*command, f"--out={folder / 'reward-model'}", *variant.reward, shared], place.db)
    what = [f"--restorer={options.restorer}", f"--reward={reward}", f"--out={folder}"]
    what += [f"--{name}={value}" for name in ("faces", "dataset", "weights") if (value := getattr(options, name))]
    preset = f"--preset={options.preset}" if options.preset in preset_names() else f"--config={options.preset}"
    flags = [*options.flags, *variant.refl]
    if variant.costs_as_full:
        spent = choose_budget(options.out)
        flags += [f"--budget={spent}", f"--max-steps={spent}"]  # a step costs one at least
    run_module(["refl", "train", preset, *what, *flags, shared], place.db)


def evaluate_variants(folders: list[Path], options: AblateOptions, place: Place) -> None:
    """One report on the base and every variant; their rewards by the shared model, which none of them trained."""
    methods = [f"--method={folder / 'tuned'}" for folder in folders]
    what = [f"--method={options.restorer}", *methods]
    what += [] if is_judge(options.reward) else [f"--reward=frozen={options.reward}"]
    what += [f"--out={options.out / 'report'}", f"--degradation={read_degradation(folders[0], options.out)}"]
    what += [f"--weights={options.weights}"] if options.weights else []
    what += [f"--faces={options.test_faces}"] if options.test_faces else []
    # after hours of training a report must come out; it says where the prompt stands in for captions
    run_module(["refl", "evaluate", *what, "--use-prompt", f"--data={place.data}"], place.db)


def read_cost(folder: Path) -> dict[str, Any]:
    """What a finished training cost, a value of each column of `write_costs`; None where an earlier version made it."""
    record = json.loads((folder / "last" / "training.json").read_text(encoding="utf-8"))
    return {
        "variant": folder.name,
        "algorithm": record["config"].get("algorithm", {}).get("algorithm", "refl"),
        "steps": record["step"],
        "network evaluations": record.get("evaluations") or None,
        "seconds": record.get("seconds") or None,
        "hacking": record["hacking"],
    }


def choose_budget(out: Path) -> int:
    """The network evaluations that the full variant has cost.

    Raises:
        UserError: an earlier version trained it, which did not count.
    """
    spent: int | None = read_cost(out / FULL)["network evaluations"]
    if spent is None:
        raise UserError(
            f"{out / FULL} was trained by a version that did not count network evaluations, so that no other method "
            "can be given as many. Name another --out, or leave the methods out by --only."
        )
    return spent


def write_costs(costs: list[dict[str, Any]], report: Path) -> None:
    """costs.csv beside the report, and the same as a table at its end."""
    import pandas as pd

    write_table(report / "costs.csv", pd.DataFrame(costs))
    lines = ["", "## What training cost", "", f"| {' | '.join(costs[0])} |", "|---" * len(costs[0]) + "|"]
    for cost in costs:
        seen = "–" if cost["hacking"] is None else f"from step {cost['hacking']:,}"
        counts = [
            "–" if cost[name] is None else f"{cost[name]:,.0f}" for name in ("steps", "network evaluations", "seconds")
        ]
        lines.append(f"| {' | '.join([cost['variant'], cost['algorithm'], *counts, seen])} |")
    lines += [
        "",
        "Evaluations are images through the denoiser, threefold where a gradient goes back through it; seconds are of "
        "the steps, with the monitor's checks. The rows are in costs.csv.",
    ]
    path = report / "report.md"
    write_text_whole(path, path.read_text(encoding="utf-8") + "\n".join(lines) + "\n")


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


ABLATE = Command(
    "refl ablate",
    "train a preset with each of its parts left out and by each other algorithm, and compare",
    AblateOptions,
    run_ablate,
    "The same command again goes on after what is finished.",
    settle_ablate,
)

"""The kinds of run that can be started from a page: their presets, inputs and fields, from the commands themselves."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

import annotate.__main__
import annotate.labeler.command
import annotate.measure.command
import refl.evaluate.command
import refl.pretrain.command
import refl.pretrain.config
import refl.restore.command
import refl.tune.command
import refl.tune.config
import reward.evaluate.command
import reward.model.config
import reward.score.command
import reward.train.command
from annotate.labeler.settings import FitSettings
from dataset.options import ExportOptions
from ui.train import commands as train_commands
from ui.train import inputs as train_inputs
from ui.train.options import (
    EvaluateOptions,
    LabelOptions,
    MeasureOptions,
    PairOptions,
    RestoreOptions,
    RewardEvaluateOptions,
    ScoreOptions,
)


@dataclass(frozen=True)
class Input:
    """What a run is made from or writes, beside its settings."""

    name: str
    """As argparse calls it."""
    label: str
    description: str
    check: train_inputs.Check
    flag: str = ""
    """Empty for the command's words without a flag."""
    choices: str = ""
    """Which of `train_inputs.list_choices` are offered."""
    required: bool = False
    many: Literal["no", "repeated", "together"] = "no"
    """Whether several may be given: each with the flag before it, or all behind one."""
    folded: bool = False
    default: str = ""
    """What the command takes where nothing is given; looked at as if it were."""
    named: bool = False
    """Whether NAME= has to stand before it; the page finds a name where none does."""


@dataclass(frozen=True)
class Kind:
    """A command that can be started."""

    name: str
    """As `runs` calls it: module and subcommand."""
    title: str
    about: str
    add_command: Callable[[Any], None]
    """Adds its parser, by which every started command line is checked."""
    tables: Mapping[str, type[BaseModel]]
    describe: Callable[[argparse.Namespace], dict[str, Any]]
    """The run's config; raises UserError where the command would refuse."""
    inputs: tuple[Input, ...] = ()
    shown: frozenset[str] = field(default_factory=frozenset)
    """Names of fields that are seen at once; the others are folded."""
    presets: Callable[[], list[str]] | None = None
    load: Callable[[str], train_commands.Tables] | None = None
    """Reads a preset or a file; raises UserError."""
    has_off: bool = False
    """Whether switches can be turned off by `--no-NAME`: where a preset may turn them on."""
    needs_device: bool = True
    """Whether it is worth waiting for a free GPU."""
    trains: bool = False
    """Whether several processes can share it."""


OUT = Input("out", "Folder of the result", "Empty: named after the settings", train_inputs.check_out, "--out")
REWARD = Input("reward", "Reward model", "What is to rise", train_inputs.check_reward, "--reward", "rewards", True)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "annotate measure",
            "Measure the restored images",
            "Fills in the metric values that are not stored yet; the SVM learns from them.",
            annotate.measure.command.add_measure_command,
            {"options": MeasureOptions},
            train_commands.describe_measure,
            (
                Input(
                    "metrics",
                    "Metric list",
                    "A list that ships, or a TOML file; empty: offline",
                    train_inputs.check_metrics,
                    "--metrics",
                    "metrics",
                ),
            ),
        ),
        Kind(
            "annotate fit",
            "Fit the SVM labeler",
            "Learns from people's judgments which of two images they would choose, from metric values alone.",
            annotate.labeler.command.add_fit_command,
            {"options": FitSettings},
            train_commands.describe_fit,
            shown=frozenset({"metrics", "kernel", "target_accuracy", "include_simulated", "quick"}),
            needs_device=False,
        ),
        Kind(
            "annotate label",
            "Label the unjudged pairs",
            "The SVM labels the pairs of which it is sure enough; a person's judgment always wins.",
            annotate.labeler.command.add_label_command,
            {"options": LabelOptions},
            train_commands.describe_label,
            (
                Input(
                    "labeler",
                    "Labeler",
                    "Which fit labels; empty: the latest",
                    train_inputs.check_labeler,
                    "--labeler",
                    "labelers",
                    default=train_inputs.LATEST,
                ),
            ),
            shown=frozenset({"target_accuracy", "splits", "dry_run"}),
            needs_device=False,
        ),
        Kind(
            "annotate export",
            "Export a dataset",
            "Writes the labels and their images as a folder, from which a reward model is trained.",
            annotate.__main__.add_export_command,
            {"options": ExportOptions},
            train_commands.describe_export,
            (Input("out", "New folder", "Empty: in the run's folder", train_inputs.check_out, "--out"),),
            shown=frozenset({"format", "origin", "ties", "resolve", "include_simulated"}),
            needs_device=False,
        ),
        Kind(
            "annotate pair",
            "Make pairs to judge",
            "Pairs the restored images of each photo, so that people can judge them on the Label page.",
            annotate.__main__.add_pair_command,
            {"options": PairOptions},
            train_commands.describe_pair,
            shown=frozenset({"per_source", "against"}),
            needs_device=False,
        ),
        Kind(
            "reward train",
            "Train a reward model",
            "Learns from labelled pairs to give the image that people prefer the higher reward.",
            reward.train.command.add_train_command,
            reward.train.command.CONFIGS,
            train_commands.describe_reward,
            (
                Input(
                    "dataset",
                    "Dataset",
                    "A folder that `annotate export` wrote, or HPDv2's",
                    train_inputs.check_dataset,
                    "--dataset",
                    "datasets",
                    True,
                ),
                OUT,
            ),
            frozenset({"max_steps", "batch_size", "learning_rate", "validate_every_steps", "seed"}),
            reward.model.config.preset_names,
            train_commands.load_reward,
            has_off=True,
            trains=True,
        ),
        Kind(
            "reward score",
            "Score the restored images",
            "Stores the reward of every restored image of the project, like a metric value.",
            reward.score.command.add_score_command,
            {"options": ScoreOptions},
            train_commands.describe_score,
            (
                Input(
                    "scorer",
                    "Reward model",
                    "Who scores; NAME= before it names it in tables",
                    train_inputs.check_reward,
                    "--scorer",
                    "rewards",
                    True,
                ),
            ),
        ),
        Kind(
            "reward evaluate",
            "Evaluate reward models",
            "Holds reward models, metrics and other scorers against people's held-out labels, in one report.",
            reward.evaluate.command.add_evaluate_command,
            {"options": RewardEvaluateOptions},
            train_commands.describe_reward_evaluate,
            (
                Input(
                    "dataset",
                    "Dataset",
                    "A folder that `annotate export` wrote, or HPDv2's",
                    train_inputs.check_dataset,
                    choices="datasets",
                    required=True,
                ),
                Input(
                    "scorer",
                    "Reward models",
                    "NAME= before one names it in tables",
                    train_inputs.check_reward,
                    "--scorer",
                    "rewards",
                    many="repeated",
                ),
                Input("out", "Folder of the report", "Empty: the run's", train_inputs.check_out, "--out", folded=True),
            ),
            frozenset({"split", "include_simulated", "robustness_pairs"}),
        ),
        Kind(
            "refl pretrain",
            "Pretrain a tiny restorer",
            "Learns to restore small faces from nothing but a folder of sharp ones.",
            refl.pretrain.command.add_pretrain_command,
            refl.pretrain.command.CONFIGS,
            train_commands.describe_pretrain,
            (
                Input(
                    "faces",
                    "Faces",
                    "Folders of face images of any size, with those below",
                    train_inputs.check_folder,
                    "--faces",
                    "faces",
                    True,
                    "together",
                ),
                Input(
                    "phase",
                    "Phase",
                    "Train this one alone; empty: all in turn",
                    train_inputs.check_phase,
                    "--phase",
                    "phases",
                    folded=True,
                ),
                OUT,
            ),
            frozenset({"stage1_steps", "vae_steps", "diffusion_steps", "batch_size", "image_size_px", "seed"}),
            refl.pretrain.config.preset_names,
            train_commands.load_pretrain,
            has_off=True,
        ),
        Kind(
            "refl train",
            "Tune a restorer by the reward (ReFL)",
            "Trains a restorer with the gradient of a reward model, held by structure and independent judges.",
            refl.tune.command.add_train_command,
            refl.tune.command.TABLES,
            train_commands.describe_refl,
            (
                Input(
                    "restorer",
                    "Restorer",
                    "What is tuned",
                    train_inputs.check_tunable,
                    "--restorer",
                    "restorers",
                    True,
                ),
                REWARD,
                Input(
                    "faces",
                    "Faces",
                    "Sharp, aligned faces; empty: the ground truths of the project's photos",
                    train_inputs.check_folder,
                    "--faces",
                    "faces",
                ),
                Input(
                    "held_out",
                    "Held-out faces",
                    "For the monitor; empty: a tenth of the faces, or the project's split val",
                    train_inputs.check_folder,
                    "--held-out",
                    "faces",
                    folded=True,
                ),
                Input(
                    "dataset",
                    "Dataset",
                    "Labelled pairs to replay, and human ones to measure the reward on",
                    train_inputs.check_dataset,
                    "--dataset",
                    "datasets",
                    folded=True,
                ),
                OUT,
            ),
            frozenset({"max_steps", "batch_size", "learning_rate", "reward_weight", "monitor_every_steps"}),
            refl.tune.config.preset_names,
            train_commands.load_refl,
            has_off=True,
            trains=True,
        ),
        Kind(
            "refl restore",
            "Restore photos",
            "Makes restored images of the project's photos, or of others, as candidates to pair and judge.",
            refl.restore.command.add_restore_command,
            {"options": RestoreOptions},
            train_commands.describe_restore,
            (
                Input(
                    "inputs",
                    "Photos",
                    "Photos and folders of them; empty: the project's",
                    train_inputs.check_path,
                    many="together",
                ),
                Input(
                    "method",
                    "Restorers",
                    "NAME= before one names its images",
                    train_inputs.check_restorer,
                    "--method",
                    "restorers",
                    True,
                    "repeated",
                ),
                Input("out", "Folder of files", "Empty: no files", train_inputs.check_out, "--out", folded=True),
            ),
            frozenset({"seeds", "split", "steps", "strength"}),
        ),
        Kind(
            "refl evaluate",
            "Evaluate restorers",
            "Holds tuned restorers against the one they began as, on held-out faces, in one report.",
            refl.evaluate.command.add_evaluate_command,
            {"options": EvaluateOptions},
            train_commands.describe_evaluate,
            (
                Input(
                    "method",
                    "Restorers",
                    "The first is what the others are held against",
                    train_inputs.check_restorer,
                    "--method",
                    "restorers",
                    True,
                    "repeated",
                ),
                Input(
                    "reward",
                    "Reward models",
                    "NAME= before one names its column",
                    train_inputs.check_reward,
                    "--reward",
                    "rewards",
                    many="repeated",
                    named=True,
                ),
                Input(
                    "faces",
                    "Faces",
                    "Sharp ones; empty: the project's split test",
                    train_inputs.check_folder,
                    "--faces",
                    "faces",
                ),
                Input(
                    "wild",
                    "Wild faces",
                    "Low-quality aligned ones without ground truth",
                    train_inputs.check_folder,
                    "--wild",
                    "faces",
                    folded=True,
                ),
                Input(
                    "degradation",
                    "Degradation",
                    "How sharp faces are spoilt: as in this preset, or file; empty: as published",
                    train_inputs.check_degradation,
                    "--degradation",
                    "degradations",
                    folded=True,
                ),
                Input(
                    "out",
                    "Folder of the report",
                    "Empty: in the project's evaluations, by what is asked for",
                    train_inputs.check_out,
                    "--out",
                    folded=True,
                ),
            ),
            frozenset({"seeds", "steps", "limit"}),
        ),
    )
}

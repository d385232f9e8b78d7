"""What the commands make of a command line: their parsers, presets, and the config of the run that they would be."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel

import annotate.labeler.command
import refl.evaluate.command
import refl.pretrain.command
import refl.pretrain.config
import refl.restore.command
import refl.tune.command
import refl.tune.config
import reward.evaluate.command
import reward.model.config
import reward.train.command
import reward.train.config
from dataset.options import ExportOptions
from db.errors import UserError
from db.models import Run
from runs.process import command_of

Tables = dict[str, BaseModel]
"""Name of a table -> its values."""


def say_command(data: Path, run: Run) -> str:
    """What a person would type for a run, as a shell reads it; with the data folder, where it is not the usual one."""
    where = [] if data.resolve() == Path("data").resolve() else [f"--data={data}"]
    return shlex.join([*command_of(run), *where])


class _Parser(argparse.ArgumentParser):
    """Says what is wrong by an error, where argparse's would end the program."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parse_words(
    add_command: Callable[[Any], None], subcommand: str, words: list[str], data: Path
) -> argparse.Namespace:
    """What the command would read of these words.

    Args:
        add_command: adds the command's parser to its package's.
        words: without --data, --db and --run, which all commands share.
    Raises:
        UserError: it would refuse them.
    """
    commands = _Parser().add_subparsers(parser_class=_Parser)
    add_command(commands)
    parser: argparse.ArgumentParser = commands.choices[subcommand]
    return parser.parse_args(words, argparse.Namespace(data=data, db=None, run=None))


def load_reward(name: str) -> Tables:
    settings = reward.train.config.read_settings(name)
    return {
        "model": reward.model.config.check_model_config(settings["model"], name),
        "train": reward.train.config.check_train_config(settings["train"], name),
    }


def load_pretrain(name: str) -> Tables:
    model, train = refl.pretrain.config.check_pretrain_config(refl.pretrain.config.read_settings(name), name)
    return {"model": model, "train": train}


def load_refl(name: str) -> Tables:
    config = refl.tune.config.load_refl_config(name)
    return {table: getattr(config, table) for table in refl.tune.command.TABLES}


def describe_measure(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("metrics", "device", "workers", "batch_size", "ray")}


def describe_fit(args: argparse.Namespace) -> dict[str, Any]:
    return annotate.labeler.command.read_settings(args).model_dump()


def describe_label(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("labeler", "target_accuracy", "splits", "methods", "dry_run")}


def describe_export(args: argparse.Namespace) -> dict[str, Any]:
    options = ExportOptions.model_validate({name: getattr(args, name) for name in ExportOptions.model_fields})
    if args.out and args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise UserError(f"--out: {args.out} is there already; name a new folder.")
    return {**options.model_dump(mode="json"), "out": str(args.out) if args.out else None}


def describe_pair(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("per_source", "against", "seed")}


def describe_reward_evaluate(args: argparse.Namespace) -> dict[str, Any]:
    config = {name: getattr(args, name) for name in reward.evaluate.command.COMMAND_FIELDS}
    out = str(args.out) if args.out else None
    return {**config, "dataset": str(args.dataset.expanduser().absolute()), "out": out}


def describe_score(args: argparse.Namespace) -> dict[str, Any]:
    return {"scorer": args.scorer, "use_prompt": args.use_prompt}


def describe_restore(args: argparse.Namespace) -> dict[str, Any]:
    refl.restore.command.check_arguments(args)
    config = {"methods": args.method, "seeds": args.seeds, "steps": args.steps, "split": args.split}
    config |= {"inputs": [str(path) for path in args.inputs], "sources": len(args.source), "aligned": args.aligned}
    return config | {"out": str(args.out) if args.out else None}


def describe_evaluate(args: argparse.Namespace) -> dict[str, Any]:
    refl.evaluate.command.check_arguments(args)
    return refl.evaluate.command.describe_run(args)


def describe_reward(args: argparse.Namespace) -> dict[str, Any]:
    return reward.train.command.describe_run(*reward.train.command.read_config(args))


def describe_pretrain(args: argparse.Namespace) -> dict[str, Any]:
    described = refl.pretrain.command.describe_run(*refl.pretrain.command.read_config(args))
    return {**described, "phase": args.phase}


def describe_refl(args: argparse.Namespace) -> dict[str, Any]:
    return refl.tune.command.describe_run(args, refl.tune.command.read_config(args))

"""`python -m reward train`: a run, its settings from a preset or a file, single ones by flags."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from db.errors import UserError
from reward.model.config import ModelConfig, check_model_config, preset_names
from reward.train.config import UNCHANGING, TrainConfig, check_train_config, read_settings
from runs.hold import hold_folder
from runs.store import open_database_run

log = logging.getLogger(__name__)

CONFIGS: dict[str, type[BaseModel]] = {"model": ModelConfig, "train": TrainConfig}


def add_train_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`train`: a flag for every field of the model and of its training."""
    parser = commands.add_parser(
        "train",
        help="train a reward model on a dataset folder",
        description="Settings are those of a preset or a file; each can be replaced by its flag. The same command "
        "again continues a training that was stopped. On several GPUs or hosts: accelerate launch -m reward train …",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--preset", choices=preset_names(), help="settings that ship with the project")
    where.add_argument("--config", metavar="FILE", help="settings from a TOML file like a preset, or a config.json")
    parser.add_argument("--dataset", type=Path, metavar="DIR", help="folder that `annotate export` wrote, or HPDv2's")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the checkpoints last/ and best/ (default: in DATA/rewards, named after settings and dataset)",
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="print by part what each GPU will need, counted without data, weights or a GPU, and end",
    )
    for table, fields in CONFIGS.items():
        group = parser.add_argument_group(f"settings: {table}")
        for name, field in fields.model_fields.items():
            add_flag(group, name, field.annotation, str(field.description))
    parser.set_defaults(command=run_train)


def add_flag(group: argparse._ArgumentGroup, name: str, kind: Any, description: str) -> None:
    """A flag for one field; without it the value is None, which leaves the preset's."""
    flag, words = f"--{name.replace('_', '-')}", description.replace("%", "%%")
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=words)
    elif get_origin(kind) is Literal:
        group.add_argument(flag, choices=get_args(kind), help=words)
    elif get_origin(kind) is tuple:
        group.add_argument(flag, nargs=len(get_args(kind)), metavar="X", help=words)
    else:
        group.add_argument(flag, metavar="X", help=words)


def read_tables(args: argparse.Namespace) -> tuple[dict[str, Any], ModelConfig, TrainConfig]:
    """(all of the preset or file with the flags over it, its model, its training).

    Raises:
        UserError: there is no such preset or file, or a value is not allowed.
    """
    name = args.preset or args.config
    settings = read_settings(name)
    for table, fields in CONFIGS.items():
        given = {field: getattr(args, field) for field in fields.model_fields}
        settings[table] |= {field: value for field, value in given.items() if value is not None}
    return settings, check_model_config(settings["model"], name), check_train_config(settings["train"], name)


def read_config(args: argparse.Namespace) -> tuple[Path, Path, ModelConfig, TrainConfig]:
    """(dataset, out, model, training) of the preset or file with the flags over it.

    Raises:
        UserError: no dataset is named, or a value is not allowed.
    """
    settings, model, config = read_tables(args)
    dataset = args.dataset or settings.get("dataset")
    if not dataset:
        raise UserError("No dataset is named. Give --dataset DIR, a folder that `python -m annotate export` wrote.")
    dataset = Path(dataset).expanduser().absolute()

    def list_deciding(short: bool) -> list[Any]:
        trained = config.model_dump(mode="json", include=UNCHANGING, exclude_defaults=short)
        return [str(dataset), model.model_dump(mode="json", exclude_defaults=short), trained]

    out = args.out or settings.get("out")
    out = out or choose_folder(args.data / "rewards", Path(args.preset or args.config).stem, list_deciding)
    return dataset, Path(out).expanduser().absolute(), model, config


def choose_folder(parent: Path, stem: str, list_deciding: Callable[[bool], list[Any]]) -> Path:
    """'parent/tiny-3f2a9c1b': the same for the same command, so that it finds its checkpoints again.

    Args:
        list_deciding: all that decides the training, as JSON values, told whether to leave out what is as by default:
            then a setting that a newer version adds changes no name. Older versions left out nothing; a folder of
            theirs is taken where there is one.
    """
    texts = [json.dumps(list_deciding(short), sort_keys=True) for short in (False, True)]
    older, folder = (parent / f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}" for text in texts)
    return older if older.is_dir() else folder


def describe_run(dataset: Path, out: Path, model: ModelConfig, config: TrainConfig) -> dict[str, Any]:
    """What the run is of, as JSON values: what `read_config` gave."""
    return {
        "model": model.model_dump(mode="json"),
        "train": config.model_dump(mode="json"),
        "dataset": str(dataset),
        "out": str(out),
    }


def run_train(args: argparse.Namespace) -> None:
    """Train as a run, or count its memory; of several processes only the first has the run."""
    first = os.environ.get("RANK", "0") == "0"
    if args.memory:
        _, model, config = read_tables(args)
        if first:
            print_memory(model, config)
        return
    import torch  # here: these load torch, which --help and a wrong flag need not wait for

    from reward.data import load_dataset
    from reward.model.card import write_card
    from reward.train.train import train
    from training.processes import leave_processes

    dataset, out, model, config = read_config(args)
    resolved = describe_run(dataset, out, model, config)
    if first and torch.cuda.is_available():
        print_memory(model, config)
    opened = open_database_run(args.data, args.db, "reward train", resolved, args.run) if first else nullcontext()
    with opened as run:

        def progress(done: int, total: int, values: dict[str, float]) -> None:
            if run:
                run.progress(done, total, **values)
            log.info(format_progress(done, total, values))

        pairs = load_dataset(dataset)
        log.info("training in %s", out)
        with hold_folder(out) if first else nullcontext():  # of several processes the first one holds it for all
            result = train(pairs, model, config, out, progress)
            leave_processes()
            if first:
                write_card(out / "best")
        if run:
            run.write_result({"out": str(out), **result})
            print(format_result(result, out))


def print_memory(model: ModelConfig, config: TrainConfig) -> None:
    """What training will need, by part; and, where there is a GPU that has less left, what to change."""
    import torch  # here: these load torch, which --help and a wrong flag need not wait for

    from reward.model.checkpoint import read_architecture
    from reward.train.memory import count_training, describe_lack
    from training.memory import describe_memory

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    count = count_training(model, read_architecture(model), config, processes)
    print(describe_memory(count.phases), flush=True)
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        lack = describe_lack(count.peak_bytes, free, config, processes)
        if lack:
            print(lack, flush=True)


def format_progress(done: int, total: int, values: dict[str, float]) -> str:
    """A progress line for a terminal: the step, then name and value."""
    names = [name for name in values if name not in ("val/n", "val/low", "val/high")]
    shown = [f"{name.rpartition('/')[2] if not name.startswith('val/') else name} {values[name]:.4g}" for name in names]
    return f"step {done:,} of {total:,}: {', '.join(shown)}"


def format_result(result: dict[str, Any], out: Path) -> str:
    """What training found, for a terminal."""
    best = result["best"]
    if best is None:
        return f"{result['step']:,} steps, unmeasured; the model is {out / 'best'}"
    interval = f" [{best['low']:.3f}, {best['high']:.3f}]" if "low" in best else ""
    return (
        f"{result['step']:,} steps; best after {best['step']:,}: accuracy {best['accuracy']:.3f}{interval} on "
        f"{best['n']:,} held-out human labels, loss {best['loss']:.4f}, calibration error "
        f"{best['calibration_error']:.3f}\nthe model is {out / 'best'}"
    )

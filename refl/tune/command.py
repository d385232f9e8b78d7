"""`python -m refl train`: fine-tune a restorer with a reward, as a run; settings from a preset, a file, or by flags."""

from __future__ import annotations

import argparse
import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from db.errors import UserError
from db.models import Split
from db.session import open_database
from refl.faces.degrade import DegradationSettings
from refl.tune.config import (
    MAY_CHANGE,
    LiveRewardConfig,
    LossConfig,
    ReflConfig,
    TrainConfig,
    TrajectoryConfig,
    load_refl_config,
    preset_names,
)
from reward.model.weights_folder import add_weights_flag, choose_weights_folder
from reward.train.command import add_flag, choose_folder, format_progress
from runs.hold import hold_folder
from runs.store import open_database_run

if TYPE_CHECKING:
    from refl.tune.data import Face
    from training.accounting import Phase

log = logging.getLogger(__name__)

TABLES: dict[str, type[BaseModel]] = {
    "trajectory": TrajectoryConfig,
    "loss": LossConfig,
    "live_reward": LiveRewardConfig,
    "train": TrainConfig,
    "degradation": DegradationSettings,
}
HELD_OUT_SHARE = 0.1
SMALL_PRESETS = ("paper-24gb", "lora-16gb")
"""For cards that the asked settings do not fit, the larger first."""


def add_train_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`train`: a flag for every setting."""
    parser = commands.add_parser(
        "train",
        help="fine-tune a restorer with the gradient of a reward (ReFL)",
        description="Settings are those of a preset or a file; each can be replaced by its flag. The same command "
        "again continues a training that was stopped. On several GPUs or hosts: accelerate launch -m refl train …",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--preset", choices=preset_names(), help="settings that ship with the project")
    where.add_argument("--config", metavar="FILE", help="settings from a TOML file like a preset, or a config.json")
    parser.add_argument("--restorer", required=True, help="what is tuned: tiny, diffbir-v1, …, or a folder of one")
    parser.add_argument(
        "--reward", required=True, metavar="MODEL", help="the reward model: a checkpoint folder, or a name or file"
    )
    parser.add_argument(
        "--faces",
        type=Path,
        metavar="DIR",
        help="sharp, aligned faces to train on, NAME.txt beside as captions; a folder below is one person; a tenth of "
        "the people is held out (default: the ground truths of the project's sources, by their split)",
    )
    parser.add_argument("--held-out", type=Path, metavar="DIR", help="faces for the monitor instead of that tenth")
    parser.add_argument(
        "--dataset", type=Path, metavar="DIR", help="labelled pairs to replay, and human ones to measure the reward on"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the checkpoints last/ and tuned/ (default: in DATA/restorers)",
    )
    add_weights_flag(parser)
    parser.add_argument(
        "--memory",
        action="store_true",
        help="say how much memory each process will need, by part, and end; on a GPU it is said at every start",
    )
    for table, fields in TABLES.items():
        group = parser.add_argument_group(f"settings: {table}")
        for name, field in fields.model_fields.items():
            add_flag(group, name, field.annotation, str(field.description))
    parser.set_defaults(command=run_train)


def read_config(args: argparse.Namespace) -> ReflConfig:
    """The preset or file with the flags over it.

    Raises:
        UserError: no such preset or file, or a value is not allowed.
    """
    changes = {}
    for table, fields in TABLES.items():
        given = {name: getattr(args, name) for name in fields.model_fields}
        changes[table] = {name: value for name, value in given.items() if value is not None}
    return load_refl_config(args.preset or args.config, changes)


def choose_out(args: argparse.Namespace, config: ReflConfig) -> Path:
    """The folder of a training that names none, such as 'data/restorers/tiny-paper-3f2a9c1b'."""
    asked = [str(value) for value in (args.restorer, args.reward, args.faces, args.held_out, args.dataset)]

    def list_deciding(short: bool) -> list[Any]:
        settings = {
            table: getattr(config, table).model_dump(mode="json", exclude=MAY_CHANGE, exclude_defaults=short)
            for table in TABLES
        }
        return [asked, settings]

    stem = f"{Path(args.restorer).name}-{Path(args.preset or args.config).stem}"
    return choose_folder(args.data / "restorers", stem, list_deciding)


def describe_run(args: argparse.Namespace, config: ReflConfig) -> dict[str, Any]:
    """What the run is of, as JSON values: its settings, from what it learns, and the folder that it writes."""
    asked = {name: getattr(args, name) for name in ("restorer", "reward", "faces", "held_out", "dataset")}
    out = args.out or choose_out(args, config)
    return {
        **config.model_dump(mode="json"),
        **{name: None if value is None else str(value) for name, value in asked.items()},
        "out": str(out.expanduser().absolute()),
    }


def choose_faces(args: argparse.Namespace, config: ReflConfig) -> tuple[list[Face], list[Face]]:
    """(faces to train on, faces held out), from folders or from the project by its stored split.

    Of a folder a tenth of the people is held out, see `split_faces`.
    """
    from refl.tune.data import find_faces, load_faces, split_faces

    if args.faces is None:
        database = open_database(args.data, args.db)
        try:
            found = {split: load_faces(database, args.data, split) for split in (Split.train, Split.val)}
        finally:
            database.close()
        return found[Split.train], find_faces(args.held_out) if args.held_out else found[Split.val]
    faces = find_faces(args.faces)
    if args.held_out:
        return faces, find_faces(args.held_out)
    return split_faces(faces, config.train.seed, HELD_OUT_SHARE)


def run_train(args: argparse.Namespace) -> None:
    """Train as a run; of several processes only the first has the run."""
    config = read_config(args)
    if args.memory:
        from training.memory import describe_memory

        print(describe_memory(count_memory(args, config)))
        return
    resolved = describe_run(args, config)
    out = Path(resolved["out"])
    first = os.environ.get("RANK", "0") == "0"
    opened = open_database_run(args.data, args.db, "refl train", resolved, args.run) if first else nullcontext()
    with opened as run:

        def progress(done: int, total: int, values: dict[str, float]) -> None:
            if run:
                run.progress(done, total, **values)
            log.info(format_progress(done, total, values))

        log.info("training in %s", out)
        with hold_folder(out) if first else nullcontext():  # of several processes the first one holds it for all
            result = tune(args, config, out, progress)
        if run:
            run.write_result({"out": str(out), **result})
            print(format_result(result, out))


def count_memory(args: argparse.Namespace, config: ReflConfig) -> dict[str, Phase]:
    """How much memory each process will need, of each phase of its training by part."""
    from refl.tune.memory import count_training
    from reward.model.checkpoint import read_shape
    from reward.score.scorer import split_name

    reward, architecture = read_shape(split_name(args.reward)[1], choose_weights_folder(args))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return count_training(config, args.restorer, reward, architecture, processes).phases


def say_memory(args: argparse.Namespace, config: ReflConfig, card_gib: float) -> None:
    """Log how much memory each process will need, and which preset fits where the card has less.

    Args:
        card_gib: memory of the card.
    """
    from training.memory import CUDA_GIB, describe_memory, find_peak

    phases = count_memory(args, config)
    log.info("memory of each process\n%s", describe_memory(phases))
    needed = find_peak(phases) + CUDA_GIB
    if needed <= card_gib:
        return
    names = ("osediff-24gb",) if args.restorer.startswith("osediff") else SMALL_PRESETS
    fitting = [name for name in names if find_peak(count_memory(args, load_refl_config(name))) + CUDA_GIB <= card_gib]
    advice = f"the preset {fitting[0]} fits" if fitting else "lower image_size_px or train a smaller reward model"
    log.warning("this needs about %.1f GiB, and the card has %.1f: %s", needed, card_gib, advice)


def tune(args: argparse.Namespace, config: ReflConfig, out: Path, progress: Any) -> dict[str, Any]:
    """Load what is asked for and train."""
    import torch  # here: --help need not wait for these

    from refl.restorers.feedforward import FeedForwardRestorer
    from refl.restorers.load import ADAPTERS, get_restorer_files, load_restorer
    from refl.tune.data import leave_out_held_out
    from refl.tune.setup import Material, check_face_captions
    from refl.tune.train import train
    from reward.data import load_dataset
    from reward.score.scorer import find_scorer, load_scorer
    from training.precision import DTYPES
    from training.processes import leave_processes

    if args.restorer.startswith("feedforward"):
        raise UserError(f"{args.restorer} has no noise to learn from; tune tiny, diffbir-v1, diffbir-v2.1 or osediff.")
    weights_dir = choose_weights_folder(args)
    found = find_scorer(args.reward, weights_dir)
    faces, held_out = choose_faces(args, config)
    pairs = load_dataset(args.dataset) if args.dataset else None
    if pairs:
        faces = leave_out_held_out(faces, pairs, out / "checked.json")
    check_face_captions(found.config, faces, use_prompt=config.loss.use_prompt)
    get_restorer_files([args.restorer], weights_dir)
    if torch.cuda.is_available() and os.environ.get("RANK", "0") == "0":
        say_memory(args, config, torch.cuda.get_device_properties(0).total_memory / 2**30)
    dtype = DTYPES[config.train.mixed_precision]
    restorer = load_restorer(
        args.restorer, weights_dir=weights_dir, dtype=dtype, keep_float32=("control", "text", ADAPTERS)
    )
    assert not isinstance(restorer, FeedForwardRestorer)
    scorer = load_scorer(args.reward, "cpu", weights_dir=weights_dir)
    material = Material(
        restorer=restorer,
        reward=scorer.model,
        faces=faces,
        held_out=held_out,
        pairs=pairs,
        names={"restorer": args.restorer, "reward": args.reward, "dataset": str(args.dataset or "")},
        reward_version=scorer.version,
    )
    result = train(material, config, out, progress)
    leave_processes()
    return result


def format_result(result: dict[str, Any], out: Path) -> str:
    """What training found, for a terminal."""
    said = f"{result['step']:,} steps; the restorer is {out / 'tuned'}"
    if result["hacking"] is not None:
        said += f"\nthe monitor saw hacking at step {result['hacking']:,}: look at {out / 'grids'}"
    return said

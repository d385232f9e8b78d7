"""Train a reward model as a run, with a preset, a file or flags: `python -m reward train`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dataset.photos import count_photos
from db.errors import UserError
from reward.model.config import SHIPPED, ModelConfig, preset_names
from reward.model.inputs import check_inputs
from reward.train.config import RewardTrainConfig
from runs.licences import write_recorded
from runs.options import Command, Flag, Input, Options, Output, Place, Presets
from runs.presets import read_tables
from training.run import hold_training, is_first, record_training
from training.settings import choose_folder, dump_deciding

MEMORY_GIB = {"tiny": 0.5, "vit-b-32": 2.1, "vit-l-14": 4.6, "vit-h-14": 10.3}
"""What `--memory` counts for each preset on one GPU."""


class TrainOptions(Options):
    """What a reward model is trained on, where it goes, and all settings of the model and of its training."""

    preset: str = Field(min_length=1, description="Settings that ship with the project, or a file of them")
    dataset: Annotated[Path | None, Input("dataset", "Dataset", needed=True)] = Field(
        None, description="Folder that `annotate export` wrote, or HPDv2's"
    )
    out: Annotated[Path | None, Output("Folder of the model")] = Field(
        None,
        description="Folder of the checkpoints last/ and best/ (default: in DATA/rewards, named after settings and "
        "dataset)",
    )
    memory: Annotated[bool, Flag(terminal_only=True)] = Field(
        False,
        exclude=True,  # it makes no run
        description="Print by part what each GPU will need, counted without data, weights or a GPU, and end",
    )
    model: ModelConfig
    train: RewardTrainConfig


def load_preset(name_or_path: str, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The tables of a preset, a TOML file or a config.json, and the options that it names; see `read_tables`."""
    return read_tables(name_or_path, SHIPPED, TrainOptions, changes)


def settle_train(options: TrainOptions, data: Path) -> TrainOptions:
    """Make the dataset's path absolute, and choose the folder where none is named.

    Raises:
        UserError: no dataset is named, or its pairs lack the photo that the model is to see.
    """
    if options.memory:
        return options
    if options.dataset is None:
        raise UserError("No dataset is named. Give --dataset DIR, a folder that `python -m annotate export` wrote.")
    dataset = options.dataset.expanduser().absolute()
    check_photos(dataset, options.model, options.train)

    def dump(short: bool) -> list[Any]:
        return [str(dataset), dump_deciding(options.model, short), dump_deciding(options.train, short)]

    out = options.out or choose_folder(data / "rewards", Path(options.preset).stem, dump)
    return options.model_copy(update={"dataset": dataset, "out": out.expanduser().absolute()})


def check_photos(dataset: Path, model: ModelConfig, config: RewardTrainConfig) -> None:
    """Say at once, on the page too, what training would say when it has read the dataset.

    Raises:
        UserError: pairs to train on, or people's held-out ones, lack the photo that the model sees beside each image.
    """
    if not model.needs_input:
        return
    trained = {("train", origin) for origin, weight in config.origin_weights.items() if weight > 0}
    lacking, total = count_photos(dataset, model.input_photo, trained | {("val", "human")})
    instead = f"{dataset}: import the photos with {model.input_photo} and export again, or choose a text_mode without "
    check_inputs(model, lacking, total, "pairs", instead=f"{instead}input.")


def run_train(options: TrainOptions, place: Place) -> None:
    """Train as a run, or count its memory; of several processes only the first has the run."""
    model, config, dataset, out = options.model, options.train, options.dataset, options.out
    if dataset is None or out is None:  # --memory
        if is_first():
            print_memory(model, config)
        return
    import torch  # here: these load torch, which --help and a wrong flag need not wait for

    from reward.data import load_dataset
    from reward.model.card import write_card
    from reward.train.train import train
    from training.processes import leave_processes

    if is_first() and torch.cuda.is_available():
        print_memory(model, config)
    with record_training(TRAIN, options, place) as (run, progress):
        pairs = load_dataset(dataset)
        with hold_training(out):
            result = train(pairs, model, config, out, progress)
            leave_processes()
            if run:
                write_recorded(out / "best", run.licences)
                write_card(out / "best")
        if run:
            run.write_result({"out": str(out), **result})
            print(format_result(result, out))


def print_memory(model: ModelConfig, config: RewardTrainConfig) -> None:
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


TRAIN = Command(
    "reward train",
    "train a reward model on a dataset folder",
    TrainOptions,
    run_train,
    "Settings are those of a preset or a file; each can be replaced by its flag. The same command again continues a "
    "training that was stopped. On several GPUs or hosts: accelerate launch -m reward train …",
    settle_train,
    Presets(preset_names, load_preset, MEMORY_GIB),
    trains=True,
)

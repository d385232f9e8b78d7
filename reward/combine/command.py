"""Make a reward set of models and metrics: `python -m reward set`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from db.errors import UserError
from reward.model.set_config import FILE
from reward.model.weights_folder import WeightsFolder, choose_weights_folder
from runs import licences
from runs.options import Command, Flag, Input, Options, Output, Place, make_absolute, without_name
from runs.store import record
from training.settings import choose_folder


class SetOptions(Options):
    """What a reward set is made of, and on which images its members are brought to one scale."""

    model: Annotated[list[str], Input("reward", "Reward models"), Flag(repeated=True, metavar="[NAME=]MODEL")] = Field(
        [],
        description="A member: a reward model as `reward score` takes it; each of its own members is one; repeatable",
    )
    metric: Annotated[list[str], Flag(repeated=True, metavar="METRIC")] = Field(
        [], description="A member: psnr, ssim, gmsd or a metric of pyiqa's that has a gradient; repeatable"
    )
    dataset: Annotated[Path, Input("dataset", "Dataset")] = Field(
        description="Dataset whose images of --split the scales are measured on"
    )
    split: Literal["val", "test", "train"] = Field("val", description="Which images; trained ones would flatter")
    spread_weight: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="Spreads over members that the reward is lowered by; 0 for the plain mean",
    )
    reference: Literal["hq", "lq"] = Field("hq", description="Photo that metrics which compare are given")
    use_prompt: bool = Field(False, description="Compare with the models' own prompts where there are no captions")
    out: Annotated[Path | None, Output("Folder of the set")] = Field(
        None, description="Folder of the set (default: in DATA/rewards, named by what it is made of)"
    )
    device: Annotated[str, Flag(terminal_only=True)] = Field("auto", description="auto, cpu, cuda or cuda:1")
    weights: WeightsFolder = None


def settle_set(options: SetOptions, data: Path) -> SetOptions:
    """Choose the folder where none is named, and make paths absolute: the set is read from anywhere.

    Raises:
        UserError: no member is named.
    """
    if not options.model and not options.metric:
        raise UserError("No member is named. Give --model and --metric, two members or more.")
    options = make_absolute(options.model_copy(update={"model": [_make_absolute(one) for one in options.model]}))

    def dump(_short: bool) -> list[Any]:
        return [options.model, options.metric, str(options.dataset), options.split, options.spread_weight]

    out = options.out or choose_folder(data / "rewards", "set", dump)
    return options.model_copy(update={"out": out.expanduser().absolute()})


def _make_absolute(asked: str) -> str:
    """[NAME=]MODEL with a path made absolute, where it is one that is there."""
    what = without_name(asked)
    path = Path(what).expanduser()
    return f"{asked.removesuffix(what)}{path.absolute()}" if path.exists() else asked


def check_out(out: Path) -> None:
    """Check that the folder can be a set's: in another thing's folder `set.json` would stand in for that thing.

    Raises:
        UserError: it is a file, or a folder of something else.
    """
    own = tuple(f"{start}{name}" for start in ("", ".") for name in (FILE, licences.FILE))  # with a dot: unfinished
    strangers = sorted(name for name in os.listdir(out) if not name.startswith(own)) if out.is_dir() else []
    if strangers or (out.exists() and not out.is_dir()):
        said = f"is there and holds {strangers[0]}, so it is no set's folder" if strangers else "is a file"
        raise UserError(f"{out} {said}. Name another --out.")


def run_set(options: SetOptions, place: Place) -> None:
    """Measure the members, write the set, and say how each answers."""
    from reward.combine.combine import check_members, choose_rows, make_set, write_set
    from reward.data import check_pairs, load_dataset
    from reward.score.scorer import find_scorer
    from training.device import choose_device  # here: these load torch, which --help need not wait for

    assert options.out is not None  # settled
    check_out(options.out)
    device, weights = choose_device(options.device), choose_weights_folder(options.weights, place.data)
    found = check_members(
        [(find_scorer(asked, weights), asked) for asked in options.model], options.metric, options.reference
    )
    pairs = choose_rows(load_dataset(options.dataset), options.split, found, use_prompt=options.use_prompt)
    check_pairs(pairs)
    with record(SET, options, place) as (_, run):
        config, rows = make_set(found, pairs, options.spread_weight, device, weights, run.progress)
        write_set(config, options.out)
        run.write_result({"out": str(options.out), "members": rows, "held_out_spread": config.held_out_spread})
    print(format_members(rows))
    print(f"mean spread over members: {config.held_out_spread:.3f} of a member's spread over {config.images:,} images")
    print(f"the reward set is {options.out}")


def format_members(rows: list[dict[str, Any]]) -> str:
    """A line a member, and one for the set: how often it says what people say, on the held-out labels."""
    width = max(len(row["name"]) for row in rows)
    return "\n".join(f"{row['name']:<{width}}  {_format_accuracy(row)}" for row in rows)


def _format_accuracy(row: dict[str, Any]) -> str:
    if not row["n"]:
        return "no labels by people to measure on"
    whose = f"labels, {row['simulated']:,} of SIMULATED annotators" if row["simulated"] else "labels by people"
    return f"accuracy {row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}] on {row['n']:,} {whose}"


def list_used(options: SetOptions) -> list[dict[str, str]]:
    """What it uses besides its inputs: the metrics, some of which forbid commercial use."""
    return [{"kind": "metric", "value": metric} for metric in options.metric]


SET = Command(
    "reward set",
    "make one reward of several, which is low where they disagree",
    SetOptions,
    run_set,
    "Members are brought to one scale on held-out images; the reward is their mean less --spread-weight times their "
    "spread. The folder is named wherever a reward model is: refl train, reward score, reward evaluate.",
    settle_set,
    uses=list_used,
)

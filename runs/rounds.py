"""Plan the next round of the loop as runs that wait for one another, from the judgments to the next pairs to judge.

measure → fit → label → export → reward train → refl train → refl restore → pair. Everything that a round makes lies in
DATA/rounds/<number>: dataset, reward, restorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from db.errors import UserError
from db.session import Database
from runs.devices import is_device
from runs.launch import describe_run, enqueue, start_what_can
from runs.options import Command, Options, find_command

COMPUTING = ("annotate measure", "reward train", "refl train", "refl restore")
"""Those that wait for room on the round's device."""


class RoundSettings(Options):
    """What can be chosen of a round; every field is a flag of `python -m runs round`."""

    metrics: str = Field("offline", min_length=1, description="Metric list that is measured and learned from")
    reward_preset: str = Field("tiny", min_length=1, description="Preset of the reward model")
    refl_preset: str = Field("tiny-refl", min_length=1, description="Preset of ReFL")
    restorer: str = Field("tiny", min_length=1, description="What is tuned: a restorer, or the folder of a tuned one")
    max_reward_steps: int | None = Field(None, ge=1, description="Steps of the reward model instead of the preset's")
    max_refl_steps: int | None = Field(None, ge=1, description="Steps of ReFL instead of the preset's")
    measure_held_out: bool = Field(
        True, description="Measure on held-out photos while training; a project so small that it has none cannot"
    )
    include_simulated: bool = Field(False, description="Learn from simulated annotators too; the labels then say so")
    target_accuracy: float = Field(0.9, gt=0.5, lt=1, description="Target accuracy of machine labels")
    confidence: float = Field(0.9, gt=0.5, lt=1, description="Confidence that the machine labels keep it")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="Seeds of the restored images, a candidate each")
    device: str | None = Field(None, description="Where training, measuring and restoring wait for room: cpu, cuda:0")

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str | None) -> str | None:
        if device is not None and not is_device(device):
            raise ValueError("give cpu, cuda:0, or several GPUs as cuda:0,cuda:1")
        return device


@dataclass(frozen=True)
class PlannedRun:
    """One run of a round that has not been asked for yet."""

    command: Command[Any]
    options: Options
    words: str
    """What it does, for a person."""
    device: str | None = None
    after: list[int] = field(default_factory=list)
    """Places in the plan of the runs that have to be finished first."""

    @property
    def kind(self) -> str:
        """'reward train'"""
        return self.command.name

    @property
    def arguments(self) -> list[str]:
        """What a person would type behind it."""
        return self.command.words(self.options)

    @property
    def out(self) -> Path | None:
        """The folder that it makes."""
        return next((Path(made["value"]) for made in self.command.outputs(self.options)), None)


def next_round_no(data: Path) -> int:
    """1, or one more than the last round of the data folder."""
    numbers = [int(folder.name) for folder in (data / "rounds").glob("*") if folder.name.isdecimal()]
    return max(numbers, default=0) + 1


def plan_round(data: Path, round_no: int, settings: RoundSettings) -> list[PlannedRun]:
    """The runs of a round, in the order in which they follow one another.

    Raises:
        UserError: there is no such preset, or a command would refuse what it is to be told.
    """
    folder = data.resolve() / "rounds" / str(round_no)
    dataset, reward, restorer = (folder / name for name in ("dataset", "reward", "restorer"))
    simulated = {"include_simulated": settings.include_simulated}
    method = f"round-{round_no}"
    reward_changes: dict[str, Any] = {}
    if settings.max_reward_steps is not None:  # its warmup has to end before the training does
        reward_changes = {"max_steps": settings.max_reward_steps, "warmup_steps": settings.max_reward_steps // 20}
    refl_changes = {} if settings.max_refl_steps is None else {"max_steps": settings.max_refl_steps}
    if not settings.measure_held_out:
        reward_changes["validate_every_steps"] = refl_changes["monitor_every_steps"] = 0
    steps: list[tuple[str, dict[str, Any], str]] = [
        ("annotate measure", {"metrics": settings.metrics}, "measure the restored images that lack a value"),
        (
            "annotate fit",
            {
                "metrics": settings.metrics,
                "target_accuracy": settings.target_accuracy,
                "confidence": settings.confidence,
                **simulated,
            },
            "fit the labeler on people's judgments" + (" and simulated ones" if settings.include_simulated else ""),
        ),
        (
            "annotate label",
            {"target_accuracy": settings.target_accuracy},
            f"label unjudged pairs where the labeler reaches {settings.target_accuracy:.0%}",
        ),
        ("annotate export", {"out": dataset, **simulated}, "write all labels as a dataset"),
        (
            "reward train",
            {"preset": settings.reward_preset, "dataset": dataset, "out": reward, **reward_changes},
            f"train a reward model ({settings.reward_preset}) on it",
        ),
        (
            "refl train",
            {
                "preset": settings.refl_preset,
                "restorer": settings.restorer,
                "reward": str(reward / "best"),
                "dataset": dataset,
                "out": restorer,
                **refl_changes,
            },
            f"tune {settings.restorer} with that reward ({settings.refl_preset})",
        ),
        (
            "refl restore",
            {"methods": [f"{method}={restorer / 'tuned'}"], "seeds": list(settings.seeds)},
            f"restore the project's photos with the tuned restorer, as the method {method}",
        ),
        ("annotate pair", {}, "make pairs of the new images to judge"),
    ]
    plan = []
    for place, (name, values, words) in enumerate(steps):
        command = find_command(name)
        assert command is not None, name
        device = settings.device if name in COMPUTING else None
        try:
            options = command.make(values)
            command.settle(options, data)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        plan.append(PlannedRun(command, options, words, device, [place - 1] if place else []))
    return plan


def start_round(
    database: Database,
    data: Path,
    plan: Sequence[PlannedRun],
    *,
    url: str | None = None,
    person_id: int | None = None,
) -> list[int]:
    """Queue the runs of a plan, all or none, and return their ids.

    Raises:
        UserError: the round's folder is there already, because another one was started meanwhile.
    """
    ids: list[int] = []
    with database.write() as session:
        for one in plan:
            run = enqueue(
                session,
                data,
                one.kind,
                **describe_run(one.command, one.options, data),
                device=one.device,
                after=[ids[place] for place in one.after],
                person_id=person_id,
            )
            ids.append(run.id)
        for folder in {one.out.parent for one in plan if one.out is not None}:
            try:
                folder.mkdir(parents=True)
            except FileExistsError as error:
                raise UserError(f"{folder} is there already; plan the next round anew.") from error
    start_what_can(database, data, url)
    return ids

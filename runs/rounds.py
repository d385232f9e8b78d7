"""The next round of the loop as runs that wait for one another: from the judgments so far to the next pairs to judge.

measure → fit → label → export → reward train → refl train → refl restore → pair. Everything that a round makes lies in
DATA/rounds/<number>: dataset, reward, restorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from db.errors import UserError
from db.session import Database
from runs.devices import is_device
from runs.launch import enqueue, start_what_can


class RoundSettings(BaseModel):
    """What can be chosen of a round; every field is a flag of `python -m runs round`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reward_preset: str = Field("tiny", min_length=1, description="Preset of the reward model")
    refl_preset: str = Field("tiny-refl", min_length=1, description="Preset of ReFL")
    restorer: str = Field("tiny", min_length=1, description="What is tuned: a restorer, or the folder of a tuned one")
    max_reward_steps: int | None = Field(None, ge=1, description="Steps of the reward model instead of the preset's")
    max_refl_steps: int | None = Field(None, ge=1, description="Steps of ReFL instead of the preset's")
    measure_held_out: bool = Field(
        True, description="Measure on held-out photos while training; a project so small that it has none cannot"
    )
    include_simulated: bool = Field(False, description="Learn from simulated annotators too; the labels then say so")
    target_accuracy: float = Field(0.9, gt=0.5, lt=1, description="Accuracy that the machine labels shall have")
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

    kind: str
    arguments: list[str]
    words: str
    """What it does, for a person."""
    config: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    after: list[int] = field(default_factory=list)
    """Places in the plan of the runs that have to be finished first."""
    out: Path | None = None
    """The folder that it makes."""


def next_round_no(data: Path) -> int:
    """1, or one more than the last round of the data folder."""
    numbers = [int(folder.name) for folder in (data / "rounds").glob("*") if folder.name.isdecimal()]
    return max(numbers, default=0) + 1


def plan_round(data: Path, round_no: int, settings: RoundSettings) -> list[PlannedRun]:
    """The runs of a round, in the order in which they follow one another."""
    folder = data.resolve() / "rounds" / str(round_no)
    dataset, reward, restorer = (folder / name for name in ("dataset", "reward", "restorer"))
    simulated = ["--include-simulated"] if settings.include_simulated else []
    method = f"round-{round_no}"
    training = {"round": round_no, "dataset": str(dataset)}
    steps = [
        PlannedRun("annotate measure", [], "measure the restored images that lack a value", device=settings.device),
        PlannedRun(
            "annotate fit",
            [*_flag("target-accuracy", settings.target_accuracy), *simulated],
            "fit the labeler on people's judgments" + (" and simulated ones" if simulated else ""),
            {"target_accuracy": settings.target_accuracy, "include_simulated": settings.include_simulated},
        ),
        PlannedRun(
            "annotate label",
            _flag("target-accuracy", settings.target_accuracy),
            f"label unjudged pairs where the labeler reaches {settings.target_accuracy:.0%}",
            {"target_accuracy": settings.target_accuracy},
        ),
        PlannedRun(
            "annotate export",
            [*_flag("out", dataset), *simulated],
            "write all labels as a dataset",
            {"include_simulated": settings.include_simulated, "out": str(dataset)},
            out=dataset,
        ),
        PlannedRun(
            "reward train",
            [
                *_flag("preset", settings.reward_preset),
                *_flag("dataset", dataset),
                *_flag("out", reward),
                *_steps(settings.max_reward_steps),
                # Its warmup has to end before the training does.
                *([] if settings.max_reward_steps is None else _flag("warmup-steps", settings.max_reward_steps // 20)),
                *([] if settings.measure_held_out else _flag("validate-every-steps", 0)),
            ],
            f"train a reward model ({settings.reward_preset}) on it",
            {**training, "preset": settings.reward_preset, "out": str(reward)},
            device=settings.device,
            out=reward,
        ),
        PlannedRun(
            "refl train",
            [
                *_flag("preset", settings.refl_preset),
                *_flag("restorer", settings.restorer),
                *_flag("reward", reward / "best"),
                *_flag("dataset", dataset),
                *_flag("out", restorer),
                *_steps(settings.max_refl_steps),
                *([] if settings.measure_held_out else _flag("monitor-every-steps", 0)),
            ],
            f"tune {settings.restorer} with that reward ({settings.refl_preset})",
            {
                **training,
                "preset": settings.refl_preset,
                "restorer": settings.restorer,
                "reward": str(reward / "best"),
                "out": str(restorer),
            },
            device=settings.device,
            out=restorer,
        ),
        PlannedRun(
            "refl restore",
            [
                *_flag("method", f"{method}={restorer / 'tuned'}"),
                "--seeds",
                *(str(seed) for seed in settings.seeds),
            ],
            f"restore the project's photos with the tuned restorer, as the method {method}",
            {"methods": [f"{method}={restorer / 'tuned'}"], "seeds": list(settings.seeds)},
            device=settings.device,
        ),
        PlannedRun("annotate pair", [], "make pairs of the new images to judge"),
    ]
    return [
        PlannedRun(one.kind, one.arguments, one.words, one.config, one.device, [place - 1] if place else [], one.out)
        for place, one in enumerate(steps)
    ]


def _flag(name: str, value: object) -> list[str]:
    """An option and its value in one word, so that a value may begin with a dash."""
    return [f"--{name}={value}"]


def _steps(count: int | None) -> list[str]:
    return [] if count is None else _flag("max-steps", count)


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
                one.arguments,
                one.config,
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

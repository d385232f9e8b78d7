"""People as the reward of groups: a training that is stopped while it waits goes on as one that never was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from sqlalchemy import select

from annotate.judging.people import add_person
from db.errors import UserError
from db.images import add_image, probe_image
from db.models import Method, Split
from db.records import add_source
from db.session import Database
from refl.tune.command import TRAIN as TRAINING
from refl.tune.command import check_reward_kind
from refl.tune.config import ReflConfig
from refl.tune.data import Face, load_faces
from refl.tune.people_judge import PeopleJudge, StoppedWaiting
from refl.tune.train import train
from refl.tune.training import Material
from runs.options import read_words
from tests.making import fetch, open_fresh
from tests.unit.refl.tune.test_algorithms import KINDS, configure
from tests.unit.refl.tune.test_people_judge import answering, open_judge

TRAIN = {"max_steps": 2, "batch_size": 2, "monitor_every_steps": 0, "checkpoint_every_steps": 10, "log_every_steps": 1}


def fill(data: Path, faces: list[Face]) -> Database:
    """A project of four photos and a person."""
    database = open_fresh(data)
    with database.write() as session:
        add_person(session, "Ada")
        for face in faces[:4]:
            image = add_image(session, data, probe_image(face.path), face.path)
            add_source(session, face.path.stem, Split.train, lq=image, hq=image)
    return database


def learn(kind: str, database: Database, data: Path, config: ReflConfig, judge: PeopleJudge) -> list[dict[str, float]]:
    """What the steps told, while a person answers."""
    lines: list[dict[str, float]] = []
    faces = load_faces(database, data, Split.train)
    with answering(database, data):
        material = Material(KINDS[kind][0](), None, faces, [], judge=judge)
        result = train(material, config, data / "out", lambda _done, _total, values: lines.append(values))
    assert result["judge"] == {"name": "people", "version": judge.version}
    return lines


class Impatient(PeopleJudge):
    """Is stopped at the second step, for whose images there are not enough people."""

    def begin_step(self, accelerator: Accelerator, training: str, number: int, stop_asked: Callable[[], int]) -> None:
        super().begin_step(accelerator, training, number, (lambda: 15) if number else stop_asked)
        self.answers = 1 + number


@pytest.mark.parametrize("kind", ["grpo, lora, divergence", "gdpo, one step"])
def test_a_training_stopped_while_people_are_asked_goes_on_exactly(
    faces: list[Face], tmp_path: Path, kind: str
) -> None:
    tables: dict[str, Any] = {"train": TRAIN}
    config, found, told = configure(kind, **tables), {}, {}
    for name in ("whole", "parts"):
        data = tmp_path / name
        database = fill(data, faces)
        if name == "parts":
            judge = open_judge(data)
            with pytest.raises(StoppedWaiting):
                learn(kind, database, data, config, Impatient(**vars(judge)))
        told[name] = learn(kind, database, data, config, open_judge(data))
        found[name] = load_file(data / "out" / "last" / "trained.safetensors")
        assert fetch(database, select(Method.name)) == ["out@step-000001", "out@step-000002"]
        database.close()
    assert all(torch.equal(value, found["parts"][key]) for key, value in found["whole"].items())
    assert told["whole"][0]["group_spread"] > 0.1  # people told the images apart
    assert told["parts"][-1]["evaluations"] == told["whole"][-1]["evaluations"]
    assert len(told["parts"]) == 1


def test_people_are_not_asked_which_faces_are_hard() -> None:
    words = (
        "--preset tiny-refl --restorer tiny --reward people --algorithm gdpo --reward-every-steps 0 --hard-share 0.3"
    )
    with pytest.raises(UserError, match="Set hard_share to 1"):
        check_reward_kind(read_words(TRAINING, [*words.split(), "--hard-share=0.3"]))


def test_where_people_judge_no_hacking_can_be_braked() -> None:
    words = "--preset tiny-gdpo --restorer tiny --reward people --on-hacking brake --monitor-every-steps 5"
    with pytest.raises(UserError, match="set on_hacking to warn"):
        check_reward_kind(read_words(TRAINING, words.split()))

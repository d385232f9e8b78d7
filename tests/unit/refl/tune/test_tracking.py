"""A ReFL training gives its progress and grids to a tracking program as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from db.errors import UserError
from refl.tune.data import Face
from refl.tune.train import train
from tests.unit.refl.conftest import make_micro_restorer
from tests.unit.refl.tune.test_refl_train import Brightness, make_config, make_material

pytest.importorskip("tensorboard", reason="needs tensorboard: pip install tensorboard")


def test_tensorboard_gets_curves_and_grids(faces: list[Face], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fields = {"tracker": "tensorboard", "monitor_every_steps": 1, "monitor_faces": 2, "max_steps": 2}
    train(make_material(make_micro_restorer(), Brightness(), faces), make_config(train=fields), tmp_path / "out")
    found = EventAccumulator(str(tmp_path / "out" / "facereward"))
    found.Reload()
    assert {"loss", "reward", "held_out/frozen"} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("loss")] == [1, 2]
    assert len(found.Images("held_out")) == 3


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_loaded(faces: list[Face], tmp_path: Path) -> None:
    config = make_config(train={"tracker": "wandb"})
    with pytest.raises(UserError, match="The tracker wandb is not installed: pip install wandb"):
        train(make_material(make_micro_restorer(), Brightness(), faces), config, tmp_path / "out")

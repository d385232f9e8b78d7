"""Describe the origin of a checkpoint, and check that a training which continues one is the same."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from db.errors import UserError
from refl.restorers.content import name_changes
from refl.restorers.record import TRAINED_FILE
from refl.tune.config import ReflConfig
from refl.tune.training import Material
from reward.score.scorer import split_name
from runs.store import code_version
from training.settings import check_settings, is_same_file


def describe(material: Material, config: ReflConfig) -> dict[str, Any]:
    """Describe the origin of a checkpoint."""
    digest = hashlib.sha256()
    for face in material.faces:
        digest.update(json.dumps([face.name, face.sha256, face.caption]).encode())
    return {
        "config": config.model_dump(mode="json"),
        "names": material.names,
        "restorer": deepcopy(material.restorer.settings),  # as it is now: loading a checkpoint adds to them
        "reward_base": {"model": _locate(material.names.get("reward", "")), "version": material.reward_version},
        "faces": len(material.faces),
        "faces_sha256": digest.hexdigest(),
        "dataset_sha256": material.pairs.fingerprint if material.pairs else "",
        "perceptual": config.loss.perceptual if config.loss.perceptual_weight else None,
        "code_version": code_version(),
    }


def _locate(reward: str) -> str:
    """A reward model as `load_named` takes it from any folder."""
    what = split_name(reward)[1]
    path = Path(what).expanduser()
    return str(path.resolve()) if what and path.exists() else what


def check_same(record: dict[str, Any], now: dict[str, Any], config: ReflConfig, folder: Path) -> None:
    """Check that a checkpoint is of this restorer, this reward model, these faces and pairs and this way of training.

    All are told by their content, wherever it lies.

    Args:
        record: its `training.json`.
        now: the same of the training that is to continue it.
    Raises:
        UserError: something that decides the weights differs; named.
    """
    same = {
        "restorer": _is_same_restorer(record, now),
        "reward": _is_same_reward(record, now),
        "faces": record["faces_sha256"] == now["faces_sha256"],
        "dataset": record["dataset_sha256"] == now["dataset_sha256"]
        if "dataset_sha256" in record
        else _is_same_name(record, now, "dataset"),
    }
    for what in (name for name, is_same in same.items() if not is_same):
        was = f"{record['faces']:,} of them" if what == "faces" else record["names"].get(what) or "none"
        raise UserError(
            f"{folder} was trained with another {what} ({was}). Give the same to continue it, or another --out."
        )
    for table in ReflConfig.model_fields:
        check_settings(record["config"].get(table, {}), getattr(config, table), folder)


def _is_same_restorer(record: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether both began with the same restorer. A setting that one of the two versions does not know says nothing.

    Versions that noted no `dataset_sha256` took the checkpoint that they continued for a file of the restorer: in their
    records it is passed over, so that their folders can be continued.
    """
    before, after = deepcopy(record["restorer"]), deepcopy(now["restorer"])
    may_be_checkpoint = "dataset_sha256" not in record or TRAINED_FILE not in after["weights"]
    if may_be_checkpoint and _is_same_name(record, now, "restorer"):
        for settings in (before, after):
            settings["weights"].pop(TRAINED_FILE, None)
    known = (before.keys() & after.keys()) | {"weights"}
    return not known.intersection(name_changes(before, after))


def _is_same_reward(record: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether both began with the same reward model; by its name where one has no version of it."""
    before, after = record.get("reward_base", {}).get("version"), now["reward_base"]["version"]
    return before == after if before and after else _is_same_name(record, now, "reward")


def _is_same_name(record: dict[str, Any], now: dict[str, Any], what: str) -> bool:
    """Whether the same was asked for, by the same words or by another path of the same file."""
    before, after = (one["names"].get(what, "") for one in (record, now))
    return bool(before == after or is_same_file(before, after))

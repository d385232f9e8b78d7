"""Find the licences of what a run uses, record them with it, and refuse what forbids commercial use.

What a run used lies in `licences.json` of its folder and of the folder that it makes; a run that is made from that
folder inherits it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.errors import UserError
from db.models import Source
from db.project import load_settings
from licences.terms import NOT_STATED, Licensed, Terms, from_json, is_commercial, sort_strictest, to_json
from runs.files import write_text_whole

FILE = "licences.json"
MODULES = ("metrics.licences", "reward.model.licences", "refl.restore.licences")
"""What knows the licences of a kind of inputs, by name: runs knows no package that stands above it."""
DATA = ("photos", "faces", "dataset")
"""Kinds of inputs that are data, whose licence nobody states unless it is recorded beside them."""
LABELER = re.compile(r"svm-(\d+)-[0-9a-f]{8}\b")
"""Name of a labeler: the run that fitted it."""
LEVELS = 3
"""Folders above a path where what made it may have left its licences."""


def find_licences(inputs: Iterable[Mapping[str, str]], data: Path) -> list[Licensed]:
    """The licences of what a run is made from: what its inputs recorded, else what is known of them by name.

    Args:
        inputs: with kind and value, as `Command.inputs` gives them.
    """
    found: list[Licensed] = []
    for one in inputs:
        recorded = read_recorded(Path(one["value"])) if "/" in one["value"] else []
        found += recorded or find_known(one["kind"], one["value"], data / "weights")
    return sort_strictest(found)


def find_known(kind: str, value: str, weights: Path) -> list[Licensed]:
    """What the packages know of an input by its name; nothing of kinds that no package knows."""
    if kind in DATA:
        return [Licensed("data", Path(value).name, NOT_STATED)]
    if kind == "data terms":
        return [Licensed("data", "faces trained on", value or NOT_STATED)]
    if kind == "labeler":
        return _find_of_labeler(value, weights.parent)
    for module in MODULES:
        found: list[Licensed] | None = import_module(module).find_licences(kind, value, weights)
        if found is not None:
            return found
    return []


def _find_of_labeler(value: str, data: Path) -> list[Licensed]:
    """What the fit recorded that made a labeler, 'svm-7-3f2a9c1b', or the latest."""
    fits = [path.parent for path in (data / "runs").glob("*/labeler.json") if path.parent.name.isdecimal()]
    named = LABELER.match(value)
    found = [fit for fit in fits if not named or fit.name == named[1]]
    return read_recorded(max(found, key=lambda fit: int(fit.name))) if found else []


def list_weights(weights: Path) -> list[Licensed]:
    """Every weight file whose licence is known."""
    return [one for module in MODULES for one in import_module(module).list_weights(weights)]


def read_recorded(path: Path) -> list[Licensed]:
    """What made a file or folder has recorded beside it or a few folders above; nothing where it has not."""
    for folder in (path, *path.parents[:LEVELS]):
        try:
            return from_json((folder / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return []


def write_recorded(folder: Path, things: Iterable[Licensed]) -> None:
    """Keep the licences beside what was made, the strictest first."""
    write_text_whole(folder / FILE, to_json(things))


def of_project(session: Session) -> list[Licensed]:
    """The licence of the project's photos, as its settings say; nothing where it has none."""
    if session.scalar(select(Source.id).limit(1)) is None:
        return []
    return [Licensed("data", "the project's photos", load_settings(session).data_licence)]


def refuse_non_commercial(things: Iterable[Licensed]) -> None:
    """Refuse what forbids commercial use, where the command or the project asks for that; nothing else is looked at.

    Raises:
        UserError: something does; it is named, with what does without it.
    """
    forbidding = [one for one in sort_strictest(things) if one.terms is Terms.non_commercial]
    if not forbidding:
        return
    instead = "; ".join(dict.fromkeys(one.instead for one in forbidding if one.instead))
    raise UserError(
        f"Commercial use is forbidden by the licence of {', '.join(map(str, forbidding))}. "
        + (f"Instead: {instead}. " if instead else "")
        + "Or leave out --commercial, and `commercial` of the project's settings."
    )


def wants_commercial(session: Session) -> bool:
    """Whether what forbids commercial use is refused here: by --commercial, or by the project's settings."""
    return is_commercial() or load_settings(session).commercial

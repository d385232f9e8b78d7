"""Write a fitted labeler to one JSON file and read it back, without pickle, so that no foreign code runs.

A labeler's name, which its labels carry, ends in the hash of its file: a changed file is another labeler.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.labeler.svm import Array, Labeler
from db.errors import UserError
from db.models import Run, RunState
from db.records import SIMULATED
from metrics.lists import Column
from runs.store import run_folder

FIT = "annotate fit"
FORMAT = "facereward labeler 1"
FILE = "labeler.json"
FIELDS = ("columns", "kernel", "c", "gamma", "scale", "vectors", "coefficients", "slope")


@dataclass(frozen=True)
class StoredLabeler:
    """A labeler of a finished fit, with what is known of it."""

    name: str
    """svm-<run>-<hash of the file>"""
    run_id: int
    labeler: Labeler
    held_out: dict[str, Array]
    """confidence, right, weight, group: (n,) each, of the held-out answers; what `choose_threshold` takes.

    Files of earlier versions have no group.
    """
    provenance: dict[str, Any]

    @property
    def knows_groups(self) -> bool:
        """Whether its file says which held-out answers are of one person's photos; those of earlier fits do not."""
        return "group" in self.held_out

    @property
    def made_by(self) -> str:
        """Name of the labeler on its labels."""
        return self.name + (f" {SIMULATED}" if self.provenance["simulated"] else "")


def save_labeler(
    folder: Path, run_id: int, labeler: Labeler, held_out: dict[str, Array], provenance: dict[str, Any]
) -> str:
    """Write `labeler.json`, whole or not at all, and return the labeler's name."""
    values = {
        "format": FORMAT,
        "columns": [[c.metric, c.version, c.reference] for c in labeler.columns],
        "kernel": labeler.kernel,
        "c": labeler.c,
        "gamma": labeler.gamma,
        "scale": [None if math.isinf(scale) else scale for scale in labeler.scale.tolist()],
        "vectors": labeler.vectors.tolist(),
        "coefficients": labeler.coefficients.tolist(),
        "slope": labeler.slope,
        "held_out": {name: values.tolist() for name, values in held_out.items()},
        "provenance": provenance,
    }
    content = (json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n").encode()
    unfinished = folder / f"{FILE}.part"
    unfinished.write_bytes(content)
    unfinished.replace(folder / FILE)
    return _name(run_id, content)


def _name(run_id: int, content: bytes) -> str:
    return f"svm-{run_id}-{hashlib.sha256(content).hexdigest()[:8]}"


def load_labeler(folder: Path, run_id: int) -> StoredLabeler:
    """The labeler that a fit left in its folder.

    Raises:
        UserError: there is none, or the file is damaged or of another format.
    """
    path = folder / FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fit a labeler with `annotate fit`.") from error
    try:
        values = json.loads(content)
        if values["format"] != FORMAT:
            raise UserError(f"{path} is of format {values['format']!r}, not {FORMAT!r}; fit the labeler anew.")
        labeler = Labeler(
            columns=tuple(Column(*column) for column in values["columns"]),
            kernel=values["kernel"],
            c=float(values["c"]),
            gamma=float(values["gamma"]),
            scale=np.array([math.inf if scale is None else scale for scale in values["scale"]], dtype=float),
            vectors=np.array(values["vectors"], dtype=float).reshape(-1, len(values["columns"])),
            coefficients=np.array(values["coefficients"], dtype=float),
            slope=float(values["slope"]),
        )
        held_out = {name: np.array(column, dtype=float) for name, column in values["held_out"].items()}
        if len({len(held_out[name]) for name in ("confidence", "right", "weight", *held_out)}) != 1:
            raise ValueError("held-out answers that do not go together")
        _check(labeler)
        return StoredLabeler(_name(run_id, content), run_id, labeler, held_out, dict(values["provenance"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); fit the labeler anew.") from error


def _check(labeler: Labeler) -> None:
    if labeler.kernel not in ("linear", "rbf"):
        raise ValueError(f"unknown kernel {labeler.kernel!r}")
    if len(labeler.scale) != len(labeler.columns) or len(labeler.vectors) != len(labeler.coefficients):
        raise ValueError("lengths that do not go together")
    for array in (labeler.vectors, labeler.coefficients):
        if not np.isfinite(array).all():
            raise ValueError("numbers that are not finite")
    if not (labeler.scale > 0).all() or not labeler.slope >= 0:
        raise ValueError("a scale or slope that is not positive")


def fitted_runs(session: Session, data: Path) -> Iterator[Run]:
    """The finished fits whose labeler is there, the latest first."""
    runs = select(Run).where(Run.kind == FIT, Run.state == RunState.finished).order_by(Run.id.desc())
    for run in session.scalars(runs):
        if (run_folder(data, run.id) / FILE).exists():
            yield run


def find_labeler(session: Session, data: Path, name: str = "latest") -> StoredLabeler:
    """The labeler of that name, of that run number, or the latest one.

    Raises:
        UserError: there is no such labeler, or its file is damaged.
    """
    for run in fitted_runs(session, data):
        if name in ("latest", str(run.id)) or name.startswith(f"svm-{run.id}-"):
            found = load_labeler(run_folder(data, run.id), run.id)
            if name.startswith("svm-") and name != found.name:
                raise UserError(f"The labeler of run {run.id} is {found.name}, not {name}; its file was changed.")
            return found
    raise UserError(
        "There is no labeler yet; fit one with `python -m annotate fit`."
        if name == "latest"
        else f"There is no labeler {name!r}; give a name such as svm-12-0a1b2c3d, a run's number, or latest."
    )

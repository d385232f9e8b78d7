"""Keep measured values in a file that grows by a line per batch: a kill loses only the batch in flight."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from db.errors import UserError
from runs.files import append_line
from runs.store import iterate_lines


@dataclass
class Measured:
    """Values by what measured them, with its version, and by the image's key: see `Restored.keys`."""

    path: Path
    known: dict[str, dict[str, float]] = field(default_factory=dict)

    def find_missing(self, whats: Sequence[str], keys: Sequence[str]) -> list[str]:
        """Those that lack a value of one of the images."""
        return [what for what in whats if not all(key in self.known.get(what, {}) for key in keys)]

    def add(self, keys: Sequence[str], values: Mapping[str, npt.ArrayLike]) -> None:
        """Keep the values of a batch, on the disk first; later ones stand over earlier ones.

        Raises:
            UserError: they cannot be written.
        """
        numbers = {what: np.asarray(found, dtype=np.float64).tolist() for what, found in values.items()}
        line = json.dumps({"keys": list(keys), "values": numbers})
        try:
            append_line(self.path, line)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}).") from error
        self._add(keys, numbers)

    def _add(self, keys: Sequence[str], values: Mapping[str, Sequence[float]]) -> None:
        for what, numbers in values.items():
            self.known.setdefault(what, {}).update(zip(keys, numbers, strict=True))


def open_measured(path: Path) -> Measured:
    """Read the measured values of the file; a last line that a kill left half-written is cut off.

    Raises:
        UserError: the file is none of ours, or cannot be read.
    """
    measured = Measured(path)
    if not path.exists():
        return measured
    try:
        for line in iterate_lines(path):
            measured._add(line["keys"], line["values"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no values of an evaluation ({error}); move it away.") from error
    return measured

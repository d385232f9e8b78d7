"""Tell which settings decide what a training gives: they name its folder, and a training that is continued keeps them.

All do but those marked `MayChange`. Loads no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from db.errors import UserError


@dataclass(frozen=True)
class MayChange:
    """Mark a field that decides nothing of the trained weights, or that a training may be continued with otherwise."""


def list_deciding(settings: type[BaseModel]) -> set[str]:
    """The fields that a training must keep when it is continued."""
    return {name for name, field in settings.model_fields.items() if MayChange() not in field.metadata}


def dump_deciding(settings: BaseModel, short: bool) -> dict[str, Any]:
    """The deciding fields as JSON values; `short` leaves out those that are as by default."""
    return settings.model_dump(mode="json", include=list_deciding(type(settings)), exclude_defaults=short)


def choose_folder(parent: Path, stem: str, dump: Callable[[bool], list[Any]]) -> Path:
    """'parent/tiny-3f2a9c1b': the same for the same command, so that it finds its checkpoints again.

    Args:
        dump: all that decides the training, as JSON values, told whether to leave out what is as by default: then a
            setting that a newer version adds changes no name. Older versions left out nothing; a folder of theirs is
            taken where there is one.
    """
    texts = [json.dumps(dump(short), sort_keys=True) for short in (False, True)]
    older, folder = (parent / f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}" for text in texts)
    return older if older.is_dir() else folder


def check_settings(before: dict[str, Any], now: BaseModel, where: Path, unread: Collection[str] = ()) -> None:
    """That a checkpoint's deciding settings are those of the training that is to continue it.

    A setting that an older version did not know was trained as its default is; one that is known no more says nothing.

    Args:
        before: the checkpoint's, as JSON values.
        unread: fields that this part of a training does not look at.
    Raises:
        UserError: one differs; named.
    """
    fields, values = type(now).model_fields, now.model_dump(mode="json")
    for name in sorted(list_deciding(type(now)).difference(unread)):
        default = None if fields[name].is_required() else fields[name].get_default(call_default_factory=True)
        was = before[name] if name in before else to_jsonable_python(default)
        if was != values[name] and not is_same_file(was, values[name]):
            raise UserError(
                f"{where} was trained with {name} {was!r}, not {values[name]!r}. Give the same settings to continue "
                "it, or another --out."
            )


def is_same_file(one: object, other: object) -> bool:
    """Whether two settings are names of one file or folder, such as a relative and an absolute path of it."""
    paths = [Path(value).expanduser() for value in (one, other) if isinstance(value, str) and value]
    return len(paths) == 2 and all(path.exists() for path in paths) and paths[0].samefile(paths[1])

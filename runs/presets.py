"""Read the tables of a command's settings: a preset that ships, a TOML file like one, or the config.json of a run."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from db.errors import UserError
from runs.options import Options, make_table


def list_presets(folder: Path, table: str) -> dict[str, Path]:
    """Name -> file of the presets in a folder that have this table."""
    files = sorted(folder.glob("*.toml"), key=lambda file: file.stem)
    return {file.stem: file for file in files if f"[{table}]" in file.read_text(encoding="utf-8")}


def read_preset(name_or_path: str, shipped: Mapping[str, Path]) -> tuple[Path, dict[str, Any]]:
    """(file, values) of a preset that ships, or of a person's own TOML or JSON file.

    Raises:
        UserError: no such preset or file, or it is not TOML or JSON.
    """
    path = shipped.get(name_or_path) or Path(name_or_path).expanduser()
    if not path.is_file():
        raise UserError(
            f"There is no preset {name_or_path!r}. Name one of {', '.join(shipped)}, or a TOML or JSON file."
        )
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:  # of TOML, JSON and UTF-8 alike
        raise UserError(f"{path}: not {'JSON' if path.suffix == '.json' else 'TOML'} ({error}).") from error
    return path, values if isinstance(values, dict) else {}


def read_tables(
    name_or_path: str,
    shipped: Mapping[str, Path],
    options: type[Options],
    changes: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The tables of a preset or file with single values replaced, and the other options that the file names.

    Args:
        shipped: the presets, at least one.
        options: whose fields that are models are the tables; one without a default must be in the file.
        changes: table -> field -> value, as flags gave them.
    Raises:
        UserError: no such preset or file, not TOML or JSON, a table is missing, or a value is unknown or not allowed.
    """
    path, values = read_preset(name_or_path, shipped)
    fields, made = options.model_fields, {}
    tables = {name: info for name, info in fields.items() if _is_table(info.annotation)}
    if unknown := sorted(set(values) - set(fields)):
        others = [name for name in fields if name not in tables and name != "preset"]
        known = ", ".join([*(f"[{name}]" for name in tables), *others])
        raise UserError(f"{path}: {unknown[0]!r} is unknown; there are {known}.")
    for name, info in tables.items():
        given = values.get(name, None if info.is_required() else {})
        if not isinstance(given, dict):
            raise UserError(f"{path}: has no table [{name}]; see {next(iter(shipped.values()))} for one.")
        made[name] = make_table(info.annotation, given, f"{path}: {name}", changes.get(name))  # type: ignore[arg-type]
    named = {name: value for name, value in values.items() if name not in tables and value is not None}
    return {**named, "preset": name_or_path, **made}


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)

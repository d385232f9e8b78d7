"""Read the tables of a command's settings: a preset that ships, a TOML file like one, or the config.json of a run."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from db.errors import UserError
from runs.options import Options, describe_fault, read_setting


def list_presets(folder: Path, table: str) -> dict[str, Path]:
    """Name -> file of the presets in a folder that have this table."""
    files = sorted(folder.glob("*.toml"), key=lambda file: file.stem)
    return {file.stem: file for file in files if f"[{table}]" in file.read_text(encoding="utf-8")}


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
    fields, made = options.model_fields, {}
    tables = {name: info for name, info in fields.items() if _is_table(info.annotation)}
    if unknown := sorted(set(values) - set(fields)):
        others = [name for name in fields if name not in tables and name != "preset"]
        known = ", ".join([*(f"[{name}]" for name in tables), *others])
        raise UserError(f"{path}: {unknown[0]!r} is unknown; there are {known}.")
    for name, info in tables.items():
        given = values.get(name, None if info.is_required() else {}) if isinstance(values, dict) else None
        if not isinstance(given, dict):
            raise UserError(f"{path}: has no table [{name}]; see {next(iter(shipped.values()))} for one.")
        changed = changes.get(name, {})
        try:
            made[name] = info.annotation.model_validate({**given, **changed})  # type: ignore[union-attr]
        except ValidationError as error:
            raise UserError(_say_fault(error, name, info.annotation, changed, path)) from error
    named = {name: value for name, value in values.items() if name not in tables and value is not None}
    return {**named, "preset": name_or_path, **made}


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _say_fault(error: ValidationError, table: str, model: Any, changed: Mapping[str, Any], path: Path) -> str:
    """Where a value stands, by its flag or in the file, and what to give instead."""
    fault = error.errors()[0]
    name = str(fault["loc"][0]) if fault["loc"] else ""
    if not name:  # of several fields, which the message names
        return f"{path}: {describe_fault(fault)}"
    info = model.model_fields.get(name)
    said = describe_fault(fault, read_setting(table, name, info, has_off=False) if info else None)
    where = f"--{name.replace('_', '-')}" if name in changed else f"{path}: {table}.{name}"
    if fault["type"] == "value_error":
        return f"{where}: {str(fault['msg']).removeprefix('Value error, ').removesuffix('.')}."
    return f"{where}: {said[:-1]}, got {fault['input']!r}."

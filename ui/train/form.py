"""What a person asks for on the Train page: the form of a kind, what is wrong with it, and the command it comes to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from db.errors import UserError
from ui.train import fields as train_fields
from ui.train.commands import parse_words
from ui.train.fields import FormField, Typed, to_typed
from ui.train.inputs import Choice, without_name
from ui.train.kinds import KINDS, Input, Kind

Text = Annotated[str, StringConstraints(max_length=10_000)]
NEW = "out"
"""The input that a run like an earlier one does not share with it."""
WHOLE_FORM = ""
"""The place of an error that belongs to no field."""


class Asked(BaseModel):
    """A filled-in form. What is left out has the preset's value."""

    model_config = ConfigDict(extra="forbid")

    kind: Text
    preset: Text = ""
    inputs: dict[Text, list[Text]] = Field({}, max_length=50)
    values: dict[Text, bool | Text | list[Text]] = Field({}, max_length=500)
    device: Text = ""
    """Empty: started at once, in no queue."""
    processes: int = Field(1, ge=1, le=64)
    after: list[int] = Field([], max_length=50)


@dataclass
class Checked:
    """What came of a form."""

    errors: dict[str, str] = field(default_factory=dict)
    """Key of a field, name of an input, 'preset', 'device', …, or WHOLE_FORM -> what is wrong."""
    words: list[str] = field(default_factory=list)
    """The command's arguments; with what was typed where that is wrong."""
    changed: list[str] = field(default_factory=list)
    """Keys of the fields that differ from the preset."""
    config: dict[str, Any] = field(default_factory=dict)
    """Of the run; empty where there are errors."""


@cache
def fields_of(kind_name: str) -> dict[str, FormField]:
    """Key -> field, table by table."""
    kind = KINDS[kind_name]
    return {
        found.key: found
        for table, model in kind.tables.items()
        for found in train_fields.read_fields(table, model, has_off=kind.has_off)
    }


def read_preset(kind: Kind, preset: str) -> dict[str, Any]:
    """Key -> value of a preset or file; the defaults of a command that has no presets.

    Raises:
        UserError: there is no such preset, or the file is not one.
    """
    tables = kind.load(preset) if kind.load else {table: model() for table, model in kind.tables.items()}
    return {found.key: getattr(tables[found.table], found.name) for found in fields_of(kind.name).values()}


def read_file(asked: Asked) -> dict[str, Typed] | None:
    """The values of a person's own preset file, which the page does not have yet; None of a preset that ships."""
    kind = KINDS.get(asked.kind)
    if kind is None or not kind.presets or asked.preset in kind.presets():
        return None
    try:
        return to_page(kind, read_preset(kind, asked.preset))
    except (UserError, ValueError, OSError):  # told by `check`
        return None


def first_preset(kind: Kind) -> str:
    """What a new form begins with: the smallest, which needs no download."""
    names = kind.presets() if kind.presets else [""]
    return next((name for name in names if name.startswith("tiny")), names[0])


def describe_kind(kind: Kind, choices: Mapping[str, list[Choice]]) -> dict[str, Any]:
    """The form of a kind, with the values of each of its presets."""
    fields = fields_of(kind.name).values()
    presets = kind.presets() if kind.presets else []
    first = read_preset(kind, first_preset(kind))
    return {
        "kind": kind.name,
        "title": kind.title,
        "about": kind.about,
        "presets": {name: to_page(kind, read_preset(kind, name)) for name in presets},
        "preset": first_preset(kind),
        "inputs": [_describe_input(wanted, choices) for wanted in kind.inputs],
        "fields": [
            train_fields.describe(found, to_typed(found, first[found.key]), shown=found.name in kind.shown)
            for found in fields
        ],
        "needs_device": kind.needs_device,
        "trains": kind.trains,
    }


def to_page(kind: Kind, values: Mapping[str, Any]) -> dict[str, Typed]:
    """Values of fields as the page holds them."""
    return {key: to_typed(fields_of(kind.name)[key], value) for key, value in values.items()}


def _describe_input(wanted: Input, choices: Mapping[str, list[Choice]]) -> dict[str, Any]:
    return {
        "name": wanted.name,
        "label": wanted.label,
        "description": wanted.description,
        "required": wanted.required,
        "many": wanted.many != "no",
        "folded": wanted.folded,
        "choices": [{"value": choice.value, "words": choice.words} for choice in choices.get(wanted.choices, [])],
    }


def check(asked: Asked, data: Path, will_be: Sequence[Path] = ()) -> Checked:
    """Look at a form as the command itself would, without starting anything.

    Args:
        will_be: folders that runs make for which this one waits; they need not be there yet.
    """
    checked = Checked()
    kind = KINDS.get(asked.kind)
    if kind is None:
        checked.errors["kind"] = f"There is no kind of run {asked.kind!r}."
        return checked
    if kind.presets:
        known = asked.preset in kind.presets()
        checked.words.append(f"--preset={asked.preset}" if known else f"--config={asked.preset}")
    preset: dict[str, Any] | None = None
    try:
        train_fields.check_text(asked.preset)
        preset = read_preset(kind, asked.preset)
    except (UserError, ValueError) as error:
        checked.errors["preset"] = str(error)
    except OSError as error:
        checked.errors["preset"] = f"Cannot be read ({error.strerror})."
    _check_inputs(kind, asked, data, will_be, checked)
    _check_fields(kind, asked, preset, checked)
    if not checked.errors:
        _ask_command(kind, asked, data, checked)
    return checked


def _check_inputs(kind: Kind, asked: Asked, data: Path, will_be: Sequence[Path], checked: Checked) -> None:
    for name in set(asked.inputs) - {wanted.name for wanted in kind.inputs}:
        checked.errors[WHOLE_FORM] = f"{kind.name} takes no {name}."
    for wanted in kind.inputs:
        values = [value.strip() for value in asked.inputs.get(wanted.name, []) if value.strip()]
        if wanted.required and not values:
            checked.errors[wanted.name] = "This is needed."
        if len(values) > 1 and wanted.many == "no":
            checked.errors[wanted.name] = "Give one."
        for value in values or ([wanted.default] if wanted.default else []):
            fault = _find_fault(wanted, value, data, will_be)
            if fault:
                checked.errors[wanted.name] = fault
        words = _input_words(wanted, [_with_name(value) if wanted.named else value for value in values])
        if wanted.flag:
            checked.words += words
        else:  # before everything else: what follows a flag of many values would be taken for one of them
            checked.words[:0] = words


def _find_fault(wanted: Input, value: str, data: Path, will_be: Sequence[Path]) -> str | None:
    try:
        train_fields.check_text(value)
    except ValueError as error:
        return str(error)
    try:
        path = Path(without_name(value)).expanduser().absolute()
        if any(path == folder or folder in path.parents for folder in will_be):
            return None
        return wanted.check(value, data)
    except OSError as error:  # a name that is too long for any file, a folder that may not be entered
        return f"Cannot be opened ({error.strerror})."


def _with_name(value: str) -> str:
    """NAME=PATH, with a name from the path where there is none."""
    path = Path(value).expanduser()
    if "=" in value and not path.exists():
        return value
    names = [name for name in reversed(path.parts) if name not in ("best", "last", "tuned", "reward", "/")]
    return f"{re.sub(r'[^A-Za-z0-9_+.-]', '_', next(iter(names), 'reward'))}={value}"


def _input_words(wanted: Input, values: list[str]) -> list[str]:
    if not values:
        return []
    if wanted.many == "together" or not wanted.flag:
        # none may look like a flag; all of these are paths
        paths = [f"./{value}" if value.startswith("-") else value for value in values]
        return [wanted.flag, *paths] if wanted.flag else paths
    return [f"{wanted.flag}={value}" for value in values]


def _check_fields(kind: Kind, asked: Asked, preset: dict[str, Any] | None, checked: Checked) -> None:
    fields = fields_of(kind.name)
    values = dict(preset or {})
    for key in set(asked.values) - set(fields):
        checked.errors[WHOLE_FORM] = f"{kind.name} has no setting {key}."
    for key, found in fields.items():
        if key not in asked.values:
            continue
        typed = asked.values[key]
        before = preset[key] if preset is not None else None
        try:
            value = train_fields.parse(found, typed)
            if preset is not None and value == before:
                continue
            values[key] = value
            checked.words += train_fields.to_words(found, value)
        except ValueError as error:
            if preset is not None and typed == to_typed(found, before):
                continue  # a preset's own: not said on the command line
            checked.errors[key] = str(error)
            checked.words.append(f"{found.flag}={typed}")
        checked.changed.append(key)
    if preset is not None and not any(key in fields for key in checked.errors):
        _check_tables(kind, values, checked)


def _check_tables(kind: Kind, values: Mapping[str, Any], checked: Checked) -> None:
    """What is wrong with fields together that are right one by one."""
    fields = fields_of(kind.name).values()
    for table, model in kind.tables.items():
        try:
            model.model_validate({found.name: values[found.key] for found in fields if found.table == table})
        except ValidationError as error:
            said = train_fields.say(error.errors()[0])
            checked.errors[_place_of(kind, said)] = said


def _ask_command(kind: Kind, asked: Asked, data: Path, checked: Checked) -> None:
    """Let the command's own parser and checks read the words."""
    try:
        args = parse_words(kind.add_command, kind.name.split()[1], checked.words, data)
        checked.config = kind.describe(args)
    except UserError as error:
        # 'tiny: warmup_steps is …', '/…/paper.toml: trajectory: gradient_window ends …': where it was read helps nobody
        said = re.sub(r"^(\S*\.(toml|json)|[\w-]+): ", "", str(error).removeprefix(f"{asked.preset}: "))
        checked.errors[_place_of(kind, said)] = said


def _place_of(kind: Kind, message: str) -> str:
    """The key of the field, or the name of the input, that a message is about."""
    by_flag = {wanted.flag: wanted.name for wanted in kind.inputs if wanted.flag}
    named = next((by_flag[word] for word in re.findall(r"--[a-z][a-z-]*", message) if word in by_flag), None)
    return train_fields.find_named(list(fields_of(kind.name).values()), message) or named or WHOLE_FORM


def read_back(kind: Kind, words: Sequence[str], data: Path) -> Asked:
    """The form that would give this command line, for a run like an earlier one.

    Raises:
        UserError: the command does not take these words any more.
    """
    args = parse_words(kind.add_command, kind.name.split()[1], list(words), data)
    asked = Asked(kind=kind.name)
    if kind.presets:
        asked.preset = str(args.preset or args.config)
    for wanted in kind.inputs:
        if wanted.name != NEW:
            asked.inputs[wanted.name] = _as_texts(getattr(args, wanted.name))
    for key, found in fields_of(kind.name).items():
        given = getattr(args, found.name)
        if given is not None:
            asked.values[key] = to_typed(found, given)
    return asked


def _as_texts(given: Any) -> list[str]:
    return [str(item) for item in (given if isinstance(given, list) else [given]) if item not in (None, "")]


def from_config(kind: Kind, config: Mapping[str, Any]) -> Asked:
    """The form of a run of which only the config is known: one that was started before command lines were kept."""
    asked = Asked(kind=kind.name, preset=first_preset(kind))
    for wanted in kind.inputs:
        given = config.get("methods" if wanted.name == "method" else wanted.name)
        if wanted.name != NEW:
            asked.inputs[wanted.name] = _as_texts(None if given == "None" else given)
    for key, found in fields_of(kind.name).items():
        table = config.get(found.table, config)
        if isinstance(table, Mapping) and table.get(found.name) is not None:
            asked.values[key] = to_typed(found, table[found.name])
    return asked

"""Check a filled-in form of the Train page and make the command it stands for."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from db.errors import UserError
from db.models import Run
from runs.options import OWN, Setting, parse_words, to_words, without_name
from runs.process import command_of
from ui.train import fields as train_fields
from ui.train.fields import Typed, to_typed
from ui.train.forms import FORMS, Form
from ui.train.inputs import Choice, check_input, choices_for, is_needed

Text = Annotated[str, StringConstraints(max_length=10_000)]
NEW = "out"
"""The input that a run like an earlier one does not share with it."""
WHOLE_FORM = ""
"""The place of an error that belongs to no field."""


class Request(BaseModel):
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
class Plan:
    """What a form comes to."""

    errors: dict[str, str] = field(default_factory=dict)
    """Key of a field, name of an input, 'preset', 'device', …, or WHOLE_FORM -> what is wrong."""
    words: list[str] = field(default_factory=list)
    """The command's arguments; with what was typed where that is wrong."""
    changed: list[str] = field(default_factory=list)
    """Keys of the fields that differ from the preset."""
    config: dict[str, Any] = field(default_factory=dict)
    """Of the run; empty where there are errors."""
    options: Any = None
    """The command's, where there are no errors."""


def say_command(data: Path, run: Run) -> str:
    """What a person would type for a run, as a shell reads it; with the data folder, where it is not the usual one."""
    where = [] if data.resolve() == Path("data").resolve() else [f"--data={data}"]
    return shlex.join([*command_of(run), *where])


def list_presets(form: Form) -> list[str]:
    """The presets that ship with the command; none of one without presets."""
    return form.command.presets.names() if form.command.presets else []


def read_preset(form: Form, preset: str) -> dict[str, Any]:
    """Key -> value of a preset or file; the defaults of a command that has no presets.

    Raises:
        UserError: there is no such preset, or the file is not one.
    """
    tables = form.command.presets.load(preset, {}) if form.command.presets else {}
    return {
        key: found.default if found.table == OWN else getattr(tables[found.table], found.name)
        for key, found in form.fields.items()
    }


def read_file(request: Request) -> dict[str, Typed] | None:
    """The values of a person's own preset file, which the page does not have yet; None of a preset that ships."""
    form = FORMS.get(request.kind)
    if form is None or not form.command.presets or request.preset in list_presets(form):
        return None
    try:
        return to_page(form, read_preset(form, request.preset))
    except (UserError, ValueError, OSError):  # `check` says so
        return None


def first_preset(form: Form) -> str:
    """What a new form begins with: its own, or the smallest, which needs no download."""
    names = list_presets(form) or [""]
    return form.preset or next((name for name in names if name.startswith("tiny")), names[0])


def describe_form(form: Form, choices: Mapping[str, list[Choice]]) -> dict[str, Any]:
    """The form as the page draws it, with the values of each of its presets."""
    first = read_preset(form, first_preset(form))
    return {
        "kind": form.command.name,
        "title": form.title,
        "about": form.about,
        "presets": {name: to_page(form, read_preset(form, name)) for name in list_presets(form)},
        "preset": first_preset(form),
        "inputs": [_describe_input(form, wanted, choices) for wanted in form.inputs],
        "fields": [
            train_fields.describe(found, to_typed(found, first[key]), shown=found.name in form.shown)
            for key, found in form.fields.items()
        ],
        "needs_device": form.needs_device,
        "trains": form.command.trains,
    }


def to_page(form: Form, values: Mapping[str, Any]) -> dict[str, Typed]:
    """Values of fields as the page holds them."""
    return {key: to_typed(form.fields[key], value) for key, value in values.items()}


def _describe_input(form: Form, wanted: Setting, choices: Mapping[str, list[Choice]]) -> dict[str, Any]:
    mark = wanted.input or wanted.output
    return {
        "name": wanted.word,
        "label": (mark.label if mark else "") or wanted.name.replace("_", " ").capitalize(),
        "description": wanted.description,
        "required": is_needed(wanted),
        "many": wanted.is_many,
        "folded": not is_needed(wanted) and wanted.word not in form.shown,
        "choices": [{"value": choice.value, "words": choice.words} for choice in choices_for(wanted, choices)],
    }


def check(request: Request, data: Path, will_be: Sequence[Path] = ()) -> Plan:
    """Check a form as the command itself would, without starting anything.

    Args:
        will_be: folders that runs make for which this one waits; they need not be there yet.
    """
    plan = Plan()
    form = FORMS.get(request.kind)
    if form is None:
        plan.errors["kind"] = f"There is no kind of run {request.kind!r}."
        return plan
    given: dict[str, Any] = {}
    preset: dict[str, Any] | None = None
    if form.command.presets:
        given["preset"] = request.preset
        known = request.preset in list_presets(form)
        plan.words.append(f"--preset={request.preset}" if known else f"--config={request.preset}")
    try:
        train_fields.check_text(request.preset)
        preset = read_preset(form, request.preset)
    except (UserError, ValueError) as error:
        plan.errors["preset"] = str(error)
    except OSError as error:
        plan.errors["preset"] = f"Cannot be read ({error.strerror})."
    _check_inputs(form, request, data, will_be, plan, given)
    _check_fields(form, request, preset, plan, given)
    if not plan.errors:
        _ask_command(form, request, data, plan, given)
    return plan


def _check_inputs(
    form: Form, request: Request, data: Path, will_be: Sequence[Path], plan: Plan, given: dict[str, Any]
) -> None:
    for name in set(request.inputs) - {wanted.word for wanted in form.inputs}:
        plan.errors[WHOLE_FORM] = f"{form.command.name} takes no {name}."
    for wanted in form.inputs:
        values = [value.strip() for value in request.inputs.get(wanted.word, []) if value.strip()]
        if is_needed(wanted) and not values:
            plan.errors[wanted.word] = "This is needed."
        if len(values) > 1 and not wanted.is_many:
            plan.errors[wanted.word] = "Give one."
        usual = [str(wanted.default)] if isinstance(wanted.default, str) and wanted.default else []
        for value in values or usual:
            if fault := _find_fault(wanted, value, data, will_be):
                plan.errors[wanted.word] = fault
        if values:
            given[wanted.name] = values if wanted.is_many else values[0]
            words = to_words(wanted, given[wanted.name])
            if wanted.how.positional:
                plan.words[:0] = words
            else:
                plan.words += words


def _find_fault(wanted: Setting, value: str, data: Path, will_be: Sequence[Path]) -> str | None:
    try:
        train_fields.check_text(value)
    except ValueError as error:
        return str(error)
    try:
        path = Path(without_name(value)).expanduser().absolute()
        if any(path == folder or folder in path.parents for folder in will_be):
            return None
        return check_input(wanted, value, data)
    except OSError as error:  # a name that is too long for any file, a folder that may not be entered
        return f"Cannot be opened ({error.strerror})."


def _check_fields(
    form: Form, request: Request, preset: dict[str, Any] | None, plan: Plan, given: dict[str, Any]
) -> None:
    for key in set(request.values) - set(form.fields):
        plan.errors[WHOLE_FORM] = f"{form.command.name} has no setting {key}."
    for key, found in form.fields.items():
        if key not in request.values:
            continue
        typed = request.values[key]
        before = preset[key] if preset is not None else None
        try:
            value = train_fields.parse(found, typed)
            if preset is not None and value == before:
                continue
            given[found.name] = value
            plan.words += to_words(found, value)
        except ValueError as error:
            if preset is not None and typed == to_typed(found, before):
                continue  # a preset's own: not said on the command line
            plan.errors[key] = str(error)
            plan.words.append(f"{found.flag}={typed}")
        plan.changed.append(key)


def _ask_command(form: Form, request: Request, data: Path, plan: Plan, given: dict[str, Any]) -> None:
    """Let the command's own checks read what was given."""
    try:
        options = form.command.make(given)
        plan.words = form.command.words(options)
        plan.config = form.command.config(form.command.settle(options, data))
        plan.options = options
    except UserError as error:
        # 'tiny: warmup_steps is …', '/…/paper.toml: trajectory: gradient_window ends …': where it was read helps nobody
        said = re.sub(r"^(\S*\.(toml|json)|[\w-]+): ", "", str(error).removeprefix(f"{request.preset}: "))
        plan.errors[_place_of(form, said)] = said


def _place_of(form: Form, message: str) -> str:
    """The key of the field, or the name of the input, that a message is about."""
    by_flag = {wanted.flag: wanted.word for wanted in form.inputs if wanted.flag}
    named = next((by_flag[word] for word in re.findall(r"--[a-z][a-z-]*", message) if word in by_flag), None)
    return train_fields.find_named(list(form.fields.values()), message) or named or WHOLE_FORM


def read_back(form: Form, words: Sequence[str]) -> Request:
    """The form that would give this command line, for a run like an earlier one.

    Raises:
        UserError: the command does not take these words any more.
    """
    given = parse_words(form.command, words)
    request = Request(kind=form.command.name, preset=given.get("preset", ""))
    for wanted in form.inputs:
        if wanted.name != NEW:
            request.inputs[wanted.word] = _as_texts(given.get(wanted.name))
    for key, found in form.fields.items():
        if found.name in given:
            request.values[key] = to_typed(found, given[found.name])
    return request


def _as_texts(given: Any) -> list[str]:
    return [str(item) for item in (given if isinstance(given, list | tuple) else [given]) if item not in (None, "")]

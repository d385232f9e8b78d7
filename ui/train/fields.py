"""A config's fields as a page shows them and as a command line says them: everything from the one pydantic model."""

from __future__ import annotations

import enum
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

Typed = str | bool | list[str]
"""What somebody typed or chose: a text, a ticked box, several choices."""
FieldType = Literal["whole number", "number", "text", "switch", "choice", "choices", "numbers", "names"]
UNITS = {"px": "pixels"}
"""Last part of a name -> its unit; others, such as steps and seconds, are words already."""


@dataclass(frozen=True)
class FormField:
    """One field of a table."""

    key: str
    """'train.max_steps'"""
    table: str
    name: str
    type: FieldType
    description: str
    unit: str
    range: str
    """In words: '1 or more'."""
    choices: tuple[str, ...]
    length: int
    """Of numbers: how many; 0 for any number of them."""
    empty_is_none: bool
    """Whether an empty text means that the command is to choose."""
    has_off: bool
    """Of a switch: whether `--no-NAME` turns it off."""
    repeats: bool
    """Of several values: whether each has the flag before it."""
    adapter: TypeAdapter[Any]

    @property
    def flag(self) -> str:
        """'--max-steps'"""
        return f"--{self.name.replace('_', '-')}"


def read_fields(table: str, model: type[BaseModel], *, has_off: bool) -> list[FormField]:
    """The model's fields in their order."""
    return [_read_field(table, name, info, has_off) for name, info in model.model_fields.items()]


def _read_field(table: str, name: str, info: FieldInfo, has_off: bool) -> FormField:
    whole: Any = info.annotation
    kind, optional = _without_none(whole)
    inner = next(iter(get_args(kind)), None) if get_origin(kind) in (tuple, list) else None
    limits = list(info.metadata) + (list(_metadata_of(inner)) if inner is not None else [])
    return FormField(
        key=f"{table}.{name}",
        table=table,
        name=name,
        type=_type_of(kind),
        description=info.description or "",
        unit=UNITS.get(name.rpartition("_")[2], ""),
        range=_range_of(limits),
        choices=_choices_of(inner if get_origin(kind) is list else kind),
        length=len(get_args(kind)) if get_origin(kind) is tuple and Ellipsis not in get_args(kind) else 0,
        empty_is_none=optional,
        has_off=has_off,
        repeats=bool(isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("repeats")),
        adapter=TypeAdapter(Annotated[whole, *info.metadata] if info.metadata else whole),
    )


def _without_none(kind: Any) -> tuple[Any, bool]:
    """(the type, whether it may be None as well)."""
    if get_origin(kind) in (Union, types.UnionType):
        (kept,) = [arg for arg in get_args(kind) if arg is not type(None)]
        return kept, True
    return kind, False


def _metadata_of(kind: Any) -> Iterator[Any]:
    """The limits of `Annotated[float, Field(ge=0)]`."""
    for note in get_args(kind)[1:] if get_origin(kind) is Annotated else ():
        yield from note.metadata if isinstance(note, FieldInfo) else [note]


def _type_of(kind: Any) -> FieldType:
    if get_origin(kind) is Literal or (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        return "choice"
    if get_origin(kind) is tuple:
        return "numbers"
    if get_origin(kind) is list:
        (inner,) = get_args(kind)
        return {"choice": "choices", "text": "names"}.get(_type_of(inner), "numbers")  # type: ignore[return-value]
    if get_origin(kind) is Annotated:
        return _type_of(get_args(kind)[0])
    plain: dict[Any, FieldType] = {bool: "switch", int: "whole number", float: "number", str: "text"}
    return plain[kind]


def _choices_of(kind: Any) -> tuple[str, ...]:
    if get_origin(kind) is Literal:
        return tuple(map(str, get_args(kind)))
    return tuple(str(member.value) for member in kind) if isinstance(kind, type) and issubclass(kind, enum.Enum) else ()


def _range_of(limits: Sequence[Any]) -> str:
    low, high = "", ""
    for limit in limits:
        if isinstance(limit, Ge):
            low = f"{limit.ge:,}"
        elif isinstance(limit, Gt):
            low = f"above {limit.gt:,}"
        elif isinstance(limit, Le):
            high = f"{limit.le:,}"
        elif isinstance(limit, Lt):
            high = f"below {limit.lt:,}"
    if low and high:
        return f"{low} to {high}"
    if low:
        return low if low.startswith("above") else f"{low} or more"
    return f"up to {high}" if high and not high.startswith("below") else high


def to_typed(field: FormField, value: Any) -> Typed:
    """A value as the page holds it."""
    if field.type == "switch":
        return bool(value)
    if field.type == "choices":
        return [_to_word(item) for item in value or ()]
    if field.type in ("names", "numbers"):
        return ("\n" if field.type == "names" else " ").join(_to_word(item) for item in value or ())
    return "" if value is None else _to_word(value)


def _to_word(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def parse(field: FormField, typed: Typed) -> Any:
    """The value that was typed.

    Raises:
        ValueError: it is none of this field; says what to give.
    """
    if not isinstance(typed, {"switch": bool, "choices": list}.get(field.type, str)):
        raise ValueError(f"Not a value of type {field.type}.")
    asked: Any = typed
    if isinstance(typed, str):
        check_text(typed)
        if field.empty_is_none and not typed.strip():
            return None
        asked = {"names": typed.split("\n"), "numbers": typed.split()}.get(
            field.type, typed if field.type == "text" else typed.strip()
        )
        if field.type == "names":
            asked = [name.strip() for name in asked if name.strip()]
    try:
        return field.adapter.validate_python(asked)
    except ValidationError as error:
        raise ValueError(say(error.errors()[0], field)) from error


def check_text(text: str) -> None:
    """That a process can be given the text.

    Raises:
        ValueError: it holds NUL.
    """
    if "\0" in text:
        raise ValueError("Holds a character that no command line can carry.")


def say(fault: Mapping[str, Any], field: FormField | None = None) -> str:
    """What to give instead, of one of pydantic's errors."""
    kind, limits = fault["type"], {name: _in_words(value) for name, value in fault.get("ctx", {}).items()}
    if field and (kind in ("missing", "tuple_type") or kind.startswith("too_")):
        return f"Give {field.length or 'one or more'} numbers with spaces between."
    words = {
        "int_parsing": "Give a whole number.",
        "int_from_float": "Give a whole number.",
        "float_parsing": "Give a number.",
        "string_too_short": "This may not be empty.",
        "greater_than_equal": f"Give {limits.get('ge')} or more.",
        "greater_than": f"Give more than {limits.get('gt')}.",
        "less_than_equal": f"Give {limits.get('le')} or less.",
        "less_than": f"Give less than {limits.get('lt')}.",
        "literal_error": f"Choose one of {', '.join(field.choices) if field else limits.get('expected')}.",
        "enum": f"Choose among {', '.join(field.choices) if field else limits.get('expected')}.",
    }
    said = words.get(kind) or f"{str(fault['msg']).removeprefix('Value error, ')}."
    return said if re.match(r"[a-z]+_", said) else said[0].upper() + said[1:]


def _in_words(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def to_words(field: FormField, value: Any) -> list[str]:
    """The words by which a command line gives this value.

    A value that begins with dashes stays a value: it is written behind the flag's equals sign. Only of several, which
    follow the flag, none may look like a flag.

    Raises:
        ValueError: one of several does.
    """
    if value is None:
        return []
    if field.type == "switch":
        return [field.flag] if value else [f"--no-{field.flag[2:]}"] if field.has_off else []
    if field.type in ("names", "numbers", "choices"):
        words = [_to_word(item) for item in value]
        if field.repeats:
            return [f"{field.flag}={word}" for word in words]
        if len(words) == 1 and field.type != "numbers":
            return [f"{field.flag}={words[0]}"]
        if field.type == "names" and (flags := [word for word in words if word.startswith("-")]):
            raise ValueError(f"{flags[0]} begins with a dash; a command line takes such a name only alone.")
        return [field.flag, *words] if words else []
    return [f"{field.flag}={_to_word(value)}"]


def describe(field: FormField, typed: Typed, *, shown: bool) -> dict[str, Any]:
    """What the page is told of a field.

    Args:
        typed: the preset's value.
        shown: whether it is seen without unfolding its table.
    """
    return {
        "key": field.key,
        "table": field.table,
        "name": field.name,
        "flag": field.flag,
        "type": field.type,
        "description": field.description,
        "unit": field.unit,
        "range": field.range,
        "choices": list(field.choices),
        "optional": field.empty_is_none,
        "default": typed,
        "shown": shown,
    }


def find_named(fields: Sequence[FormField], message: str) -> str | None:
    """The key of the field that a message is about: the first that it names, by a flag or as configs do."""
    by_name = {field.name: field.key for field in reversed(fields)}
    by_flag = {field.flag: field.key for field in reversed(fields)}
    for found in re.finditer(r"--[a-z][a-z0-9-]*|[a-z][a-z0-9_]*", message):
        word = found.group()
        if word in by_flag:
            return by_flag[word]
        # a word of plain English names a field only as `name: what is wrong with it`
        if word in by_name and ("_" in word or message[found.end() :].startswith(":")):
            return by_name[word]
    return None

"""Turn the settings of a command into the fields of a form, and what was typed into values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError

from runs.options import Setting, describe_fault, to_word

Typed = str | bool | list[str]
"""What somebody typed or chose: a text, a ticked box, several choices."""
UNITS = {"px": "pixels"}
"""Last part of a name -> its unit; others, such as steps and seconds, are words already."""


def range_of(field: Setting) -> str:
    """The range of a number in words: '1 or more'."""
    low, high = "", ""
    for limit in field.limits:
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


def to_typed(field: Setting, value: Any) -> Typed:
    """A value as the page holds it."""
    if field.type == "switch":
        return bool(value)
    if field.type == "choices":
        return [to_word(item) for item in value or ()]
    if field.type in ("names", "numbers"):
        return ("\n" if field.type == "names" else " ").join(to_word(item) for item in value or ())
    return "" if value is None else to_word(value)


def parse(field: Setting, typed: Typed) -> Any:
    """The value that was typed.

    Raises:
        ValueError: it is none of this field; says what to give.
    """
    if not isinstance(typed, {"switch": bool, "choices": list}.get(field.type, str)):
        raise ValueError(f"Not a value of type {field.type}.")
    asked: Any = typed
    if isinstance(typed, str):
        check_text(typed)
        if field.optional and not typed.strip():
            return None
        asked = {"names": typed.split("\n"), "numbers": typed.split()}.get(
            field.type, typed if field.type == "text" else typed.strip()
        )
        if field.type == "names":
            asked = [name.strip() for name in asked if name.strip()]
    try:
        return field.adapter.validate_python(asked)
    except ValidationError as error:
        raise ValueError(describe_fault(error.errors()[0], field)) from error


def check_text(text: str) -> None:
    """That a process can be given the text.

    Raises:
        ValueError: it holds NUL.
    """
    if "\0" in text:
        raise ValueError("Remove control characters.")


def describe(field: Setting, typed: Typed, *, shown: bool) -> dict[str, Any]:
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
        "unit": UNITS.get(field.name.rpartition("_")[2], ""),
        "range": range_of(field),
        "choices": list(field.choices),
        "optional": field.optional,
        "default": typed,
        "shown": shown,
    }


def find_named(fields: Sequence[Setting], message: str) -> str | None:
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

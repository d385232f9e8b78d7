"""Define errors whose message is written for the person at the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """Error for a person: what is wrong, what was seen, what to do. One line and exit code 2, or a page's message."""


class UnavailableError(Exception):
    """The database is there but did not answer in time: another one writes, or it hangs. Trying again may help."""


def first_fault(error: ValidationError) -> str:
    """Say the first thing that is wrong with a value: 'p_a: Input should be …, got 1.5'."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    said = f"{where + ': ' if where else ''}{fault['msg'].removeprefix('Value error, ')}"
    return said if isinstance(fault["input"], dict) else f"{said}, got {fault['input']!r:.60}"

"""Say what `annotate study` can be told, and which of it belongs to which action."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from db.errors import UserError
from runs.options import Flag, Options

Action = Literal[
    "create", "set", "list", "show", "open", "pause", "close", "link", "cost", "pay", "bonus", "ledger", "export",
    "forget",
]  # fmt: skip
OWN_OPTIONS: dict[str, tuple[Action, ...]] = {
    "file": ("create", "set", "cost"),
    "base_url": ("create", "link"),
    "top_up": ("pay",),
    "paid": ("pay",),
    "cents": ("bonus",),
    "reason": ("bonus",),
    "out": ("bonus", "ledger", "export"),
    "jsonl": ("export",),
    "panel_ids": ("export",),
    "all_ids": ("forget",),
    "answers": ("forget",),
}
"""Option -> the actions that it is of."""


class StudyOptions(Options):
    """What is done for which study."""

    action: Annotated[Action, Flag(positional=True)] = Field(description="What to do")
    name: Annotated[str | None, Flag(positional=True, metavar="NAME")] = Field(
        None, description="The study; not for list, nor for cost with --from"
    )
    words: Annotated[list[str], Flag(positional=True, metavar="WORD")] = Field(
        [],
        description="Behind the name: FIELD=VALUE of create, set and cost; participant's number of bonus and forget",
    )
    file: Annotated[Path | None, Flag(name="from", metavar="FILE")] = Field(
        None, description="Settings from a TOML or JSON file, before those given as FIELD=VALUE"
    )
    base_url: Annotated[str, Flag(metavar="URL")] = Field(
        "http://127.0.0.1:7860", description="The server's address as participants reach it, put before the link"
    )
    top_up: bool = Field(False, description="Give who fell below the announced rate a bonus that lifts them to it")
    paid: bool = Field(False, description="Mark all that is open in the ledger as paid")
    cents: int | None = Field(None, ge=1, description="Amount of a bonus, in hundredths of the currency")
    reason: str = Field("", description="What a bonus is for")
    out: Annotated[Path | None, Flag(metavar="PATH")] = Field(
        None, description="File of a ledger or bonus list (default: printed); new folder of an export"
    )
    jsonl: bool = Field(False, description="JSON lines instead of CSV")
    panel_ids: bool = Field(False, description="The panel's ids too, in the table of participants")
    all_ids: bool = Field(False, description="The ids of all participants; all else stays")
    answers: bool = Field(False, description="Discard the participant's answers too")


def check_options(options: StudyOptions) -> None:
    """Refuse what the action does not take, or lacks.

    Raises:
        UserError: as said.
    """
    for option, actions in OWN_OPTIONS.items():
        usual = StudyOptions.model_fields[option].default
        if getattr(options, option) != usual and options.action not in actions:
            flag = "from" if option == "file" else option.replace("_", "-")
            raise UserError(f"--{flag} is of study {' and '.join(actions)}, not of study {options.action}.")
    nameless = options.action == "list" or (options.action == "cost" and options.file is not None)
    if (options.name is None) is not nameless:
        raise UserError(f"study {options.action} {'takes no name' if nameless else 'needs the name of a study'}.")
    if options.words and options.action not in ("create", "set", "cost", "bonus", "forget"):
        raise UserError(f"study {options.action} takes nothing after the name, but {options.words[0]!r} stands there.")

"""Declare `annotate prolific`: each thing done at Prolific for a study, and what it would be."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from db.errors import UserError
from runs.options import Command, Flag, Options, Place

if TYPE_CHECKING:
    from annotate.prolific.work import Work

Action = Literal[
    "create", "publish", "pause", "start", "close", "status", "submissions", "approve", "return", "screen-out", "bonus",
    "hook",
]  # fmt: skip
OWN_OPTIONS: dict[str, tuple[str, ...]] = {
    "base_url": ("create", "hook"),
    "use": ("create",),
    "participants": ("approve", "return"),
    "reason": ("return",),
    "unpaid": ("bonus", "screen-out"),
    "workspace": ("hook",),
    "new_secret": ("hook",),
}
"""Option -> the actions that it is of."""


class ProlificOptions(Options):
    """What is done for which study."""

    action: Annotated[Action, Flag(positional=True)] = Field(description="What to do")
    name: Annotated[str | None, Flag(positional=True, metavar="NAME")] = Field(
        None, description="The study; not for hook"
    )
    dry_run: bool = Field(False, description="Show what would be sent and paid; send nothing that changes anything")
    base_url: Annotated[str, Flag(metavar="URL")] = Field(
        "", description="With create and hook: https address of the app as others reach it"
    )
    use: Annotated[str, Flag(metavar="ID")] = Field(
        "", description="With create: take the study that is at Prolific already under this id"
    )
    participants: list[int] = Field([], description="With approve and return: numbers of participants")
    reason: str = Field("", description="With return: the reason, which the participant reads")
    unpaid: Annotated[str, Flag(metavar="REFERENCE")] = Field(
        "", description="With bonus and screen-out: you saw at Prolific that this claim was not paid"
    )
    workspace: Annotated[str, Flag(metavar="ID")] = Field("", description="With hook: Prolific's workspace")
    new_secret: bool = Field(
        False, description="With hook: make the secret that webhooks are signed with, and print it; an older one ends"
    )


def run_prolific(options: ProlificOptions, place: Place) -> None:
    """Do one thing at Prolific.

    Raises:
        UserError: an option of another action, no such study, or what Prolific refuses.
    """
    from annotate.prolific.hook import run_hook  # here: the other commands load no httpx
    from annotate.prolific.work import open_work

    for option, actions in OWN_OPTIONS.items():
        if getattr(options, option) and options.action not in actions:
            flag = f"--{option.replace('_', '-')}"
            raise UserError(f"{flag} is of prolific {' and '.join(actions)}, not of prolific {options.action}.")
    if options.action == "hook":
        if options.name:
            raise UserError("prolific hook takes no study: webhooks tell of all studies of a workspace.")
        run_hook(options.workspace, options.base_url, print, new_secret=options.new_secret, dry_run=options.dry_run)
        return
    if not options.name:
        raise UserError(f"prolific {options.action} needs the name of a study.")
    work = open_work(place, options.name, print, dry_run=options.dry_run)
    try:
        _find_run(options)(work)
    finally:
        work.database.close()


def _find_run(options: ProlificOptions) -> Callable[[Work], None]:
    from annotate.prolific import run_review, run_study

    runs: dict[str, Callable[[Work], None]] = {
        "create": lambda work: run_study.run_create(work, options.base_url, options.use),
        "publish": run_study.run_publish,
        "pause": lambda work: run_study.run_move(work, "PAUSE"),
        "start": lambda work: run_study.run_move(work, "START"),
        "close": lambda work: run_study.run_move(work, "STOP"),
        "status": run_study.run_status,
        "submissions": run_review.run_submissions,
        "approve": lambda work: run_review.run_approve(work, options.participants),
        "return": lambda work: run_review.run_return(work, options.participants, options.reason),
        "screen-out": lambda work: run_review.run_screen_out(work, options.unpaid),
        "bonus": lambda work: run_review.run_bonus(work, options.unpaid),
    }
    return runs[options.action]


PROLIFIC = Command(
    "annotate prolific",
    "make and run a study at Prolific, review and pay its submissions",
    ProlificOptions,
    run_prolific,
    description="Make and run a study at Prolific, review and pay its submissions. The token is read from the "
    "environment, PROLIFIC_TOKEN, and stored nowhere. With --dry-run the requests and sums are printed instead.",
)

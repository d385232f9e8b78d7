"""List the licences of code, weights and data, what needs care first: `python -m runs licences`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from db.session import open_database
from licences.packages import list_code
from licences.terms import Licensed, Terms, sort_strictest
from runs.licences import list_weights, of_project
from runs.options import Command, Options, Place

OURS = Licensed("code", "FaceReward", "Apache-2.0")


class LicencesOptions(Options):
    """What is listed."""

    kind: Literal["code", "weights", "data"] | None = Field(None, description="Only these (default: all)")
    all: bool = Field(False, description="Those that need no care, being permissive, a line each too")


def run_licences(options: LicencesOptions, place: Place) -> None:
    """Print a line of each thing, then how many need no care."""
    things = [OURS, *list_code(), *list_weights(place.data / "weights"), *list_data(place)]
    print("\n".join(format_ledger(things, options)))


def list_data(place: Place) -> list[Licensed]:
    """The project's photos, where there is a project."""
    if place.db is None and not (place.data / "facereward.db").is_file():
        return []
    database = open_database(place.data, place.db)
    try:
        with database.read() as session:
            return of_project(session)
    finally:
        database.close()


def format_ledger(things: list[Licensed], options: LicencesOptions) -> list[str]:
    """Terms, kind, name and licence of each, with tabs between; the strictest first."""
    shown = [one for one in sort_strictest(things) if options.kind in (None, one.kind)]
    careful = [one for one in shown if options.all or one.terms is not Terms.permissive]
    lines = [f"{one.terms.words}\t{one.kind}\t{one.name}\t{one.licence}" for one in careful]
    if left := len(shown) - len(careful):
        lines.append(f"{Terms.permissive.words}\t{left} more; --all lists them")
    return lines


LICENCES = Command(
    "runs licences",
    "the licences of code, weights and the project's photos, what needs care first",
    LicencesOptions,
    run_licences,
    "A line a thing: what its licence asks for, what it is, its name, its licence.",
)

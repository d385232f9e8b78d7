"""Know the panels: which parameters their links carry in, and where they take people back.

Sources: docs.prolific.com (external study URL, completion codes); the address patterns of CloudResearch Connect, SONA,
Cint and Besample are those of `docs/studies.md`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlencode

from db.errors import UserError

PanelName = Literal["plain", "prolific", "connect", "sona", "cint", "besample"]
PANEL_ID = re.compile(r"[\x21-\x7e]{1,128}")
"""What an id of a panel looks like: printable and without spaces."""


@dataclass(frozen=True)
class Panel:
    """Parameters in, and address out."""

    title: str
    person: str | None = None
    """Parameter of the link with the panel's id of the person; None where the panel has none."""
    submission: str | None = None
    """Parameter with the panel's id of this person's place in the study."""
    placeholders: Mapping[str, str] | None = None
    """Parameter -> what stands for it in the address that the panel is given."""
    address: str = ""
    """Where people go back to with their code; "" where the panel takes a code that they paste, or one's own address.
    """
    wants_code: bool = True


PANELS: dict[PanelName, Panel] = {
    "plain": Panel("A link of your own", wants_code=False),
    "prolific": Panel(
        "Prolific",
        person="PROLIFIC_PID",
        submission="SESSION_ID",
        placeholders={
            "PROLIFIC_PID": "{{%PROLIFIC_PID%}}",
            "STUDY_ID": "{{%STUDY_ID%}}",
            "SESSION_ID": "{{%SESSION_ID%}}",
        },
        address="https://app.prolific.com/submissions/complete?cc={code}",
    ),
    # Connect puts its three ids behind any address by itself.
    "connect": Panel("CloudResearch Connect", person="participantId", submission="assignmentId"),
    "sona": Panel("SONA", person="id", placeholders={"id": "%SURVEY_CODE%"}),
    "cint": Panel("Cint", person="PID", placeholders={"PID": "[%PID%]"}),
    "besample": Panel("Besample", person="response_id", placeholders={"response_id": "{{response_id}}"}),
}


@dataclass(frozen=True)
class Arrived:
    """What a link told of who comes."""

    panel_person: str | None = None
    submission: str | None = None


def read_arrival(name: PanelName, query: Mapping[str, str]) -> Arrived:
    """Who comes, by the parameters of the address.

    Raises:
        UserError: the panel's id is missing, still the placeholder of a preview, or no id at all.
    """
    panel = PANELS[name]
    if panel.person is None:
        return Arrived()
    person = query.get(panel.person, "")
    if not person:
        raise UserError(
            f"This address lacks {panel.person}, by which {panel.title} says who comes. Open the study from "
            f"{panel.title}, not by a copied address."
        )
    submission = query.get(panel.submission, "") if panel.submission else ""
    for parameter, given in ((panel.person, person), (panel.submission, submission)):
        if given and not PANEL_ID.fullmatch(given):
            raise UserError(f"{parameter} of this address is no id of {panel.title}. Open the study from there again.")
    if "{{" in person or "%" in person:
        raise UserError(
            f"{panel.person} of this address is the placeholder {person!r}, not an id: {panel.title} fills it in when "
            "somebody takes part."
        )
    return Arrived(person, submission or None)


def make_link(name: PanelName, address: str, link: str) -> str:
    """The address that the panel is given.

    Args:
        address: of the app, without a slash at its end.
        link: `Study.link`.
    """
    placeholders = PANELS[name].placeholders or {}
    query = urlencode(dict(placeholders), safe="{}%[]")
    return f"{address}/study/{link}" + (f"?{query}" if query else "")


def fill_address(template: str, code: str, arrived: Arrived) -> str:
    """An address with its {code}, {person} and {submission} filled in, each quoted."""
    filled = {"code": code, "person": arrived.panel_person or "", "submission": arrived.submission or ""}
    for name, value in filled.items():
        template = template.replace(f"{{{name}}}", quote(value, safe=""))
    return template

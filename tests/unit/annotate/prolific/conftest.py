"""Fixtures of Prolific's tests: a stand-in of its API, a study at it, and people who take part."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import annotate.prolific.client
from annotate.judging.people import add_person
from annotate.prolific.command import ProlificOptions, run_prolific
from annotate.studies.settings import StudySettings
from db.models import utc_now
from db.session import Database
from db.studies import Outcome, PanelEntry, Participant, Stage, Study, StudyState
from runs.options import Place
from tests.prolific_stand_in import ProlificStandIn, serve_stand_in

SETTINGS: dict[str, Any] = {
    "panel": "prolific",
    "title": "Which face is better?",
    "places": 50,
    "pay_cents": 150,
    "screen_out_cents": 14,
    "minutes_expected": 9.5,
    "minutes_limit": 45,
    "endings": {
        "done": {"code": "DONE1"},
        "screened_out": {"code": "SCREEN1"},
        "no_consent": {"code": "NOCONS1"},
        "over_quota": {"code": "FULL1"},
        "blocked": {"code": "STOP1"},
    },
    "prolific": {"screen_out_slots": 20},
}
ADDRESS = "https://faces.example.org"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProlificStandIn]:
    """The stand-in, which the environment names."""
    with serve_stand_in() as served:
        monkeypatch.setenv("PROLIFIC_API", served.address)
        monkeypatch.setenv("PROLIFIC_TOKEN", served.token)
        monkeypatch.setenv("PROLIFIC_WEBHOOK_SECRET", served.secret)
        yield served


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client has waited: not really."""
    waited: list[float] = []
    monkeypatch.setattr(annotate.prolific.client.time, "sleep", waited.append)
    return waited


@dataclass
class Ours:
    """A study in our database, and what is done about it."""

    api: ProlificStandIn
    database: Database
    data: Path
    read: Callable[[], str]

    def run(self, action: str, **options: Any) -> str:
        """Run `annotate prolific ACTION faces …`; what it printed."""
        name = None if action == "hook" else "faces"
        run_prolific(ProlificOptions.model_validate({"action": action, "name": name, **options}), Place(self.data))
        return self.read()

    def publish(self) -> str:
        """Make and publish it; its id at Prolific."""
        self.run("create", base_url=ADDRESS)
        self.run("publish")
        return self.study().panel_study or ""

    def study(self) -> Study:
        """The study as stored."""
        with self.database.read() as session:
            return session.query(Study).one()

    def arrive(self, person: str, outcome: Outcome | None = None, *, submission: bool = True) -> tuple[str, int]:
        """Let somebody come from Prolific, and end so; (submission, participant's number)."""
        joined = self.api.join(self.study().panel_study or "", person)
        with self.database.write() as session:
            row = Participant(study_id=1, person_id=add_person(session, f"stranger {secrets.token_hex(4)}").id)
            session.add(row)
            if outcome is not None:
                row.stage, row.outcome, row.ended_at = Stage.ended, outcome, utc_now()
            session.flush()
            entry = PanelEntry(participant_id=row.id, study_id=1, panel_person=person)
            entry.submission = joined["id"] if submission else None
            session.add(entry)
            return joined["id"], row.id

    def participant(self, number: int) -> Participant:
        """A participant as stored."""
        with self.database.read() as session:
            return session.get_one(Participant, number)


@pytest.fixture
def ours(api: ProlificStandIn, database: Database, data: Path, capsys: pytest.CaptureFixture[str]) -> Ours:
    """An open study that Prolific does not know yet."""
    return make_ours(api, database, data, lambda: capsys.readouterr().out)


def make_ours(api: ProlificStandIn, database: Database, data: Path, read: Callable[[], str], **changes: Any) -> Ours:
    """An open study of these settings."""
    settings = StudySettings.model_validate(SETTINGS | changes)
    with database.write() as session:
        study = Study(name="faces", link="l1nk", settings=settings.model_dump(mode="json"), state=StudyState.open)
        session.add(study)
    return Ours(api, database, data, read)

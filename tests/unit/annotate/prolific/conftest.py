"""Fixtures of Prolific's tests: a stand-in of its API, a study at it, and people who take part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

import annotate.prolific.client
import annotate.prolific.work
from annotate.prolific.command import ProlificOptions, run_prolific
from annotate.studies.create import get_study
from annotate.studies.panels import Arrived
from annotate.studies.settings import StudySettings
from annotate.studies.way import arrive, end
from db.session import Database
from db.studies import Outcome, Participant, Payment, PaymentKind, Stage, Study
from runs.options import Place
from tests.making import add_open_study
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
        """Let somebody come from Prolific and work, and end so; (submission, participant's number)."""
        joined = self.api.join(self.study().panel_study or "", person)
        with self.database.write() as session:
            came = arrive(session, get_study(session, "faces"), Arrived(person, joined["id"] if submission else None))
            came.stage = Stage.task
            if outcome is not None:
                end(session, came, outcome, "As the test says.")
            return joined["id"], came.id

    def participant(self, number: int) -> Participant:
        """A participant as stored."""
        with self.database.read() as session:
            return session.get_one(Participant, number)

    def paid(self) -> list[tuple[int, str, int, bool]]:
        """The ledger: (participant's number, kind, cents, whether paid)."""
        with self.database.read() as session:
            lines = session.scalars(select(Payment).order_by(Payment.id)).all()
        return [(line.participant_id, line.kind.value, line.cents, line.paid_at is not None) for line in lines]

    def owe(self, number: int, kind: PaymentKind, cents: int, reason: str) -> None:
        """Put a line into the ledger."""
        with self.database.write() as session:
            ids = {"study_id": 1, "participant_id": number}
            session.add(Payment(**ids, kind=kind, cents=cents, currency="GBP", reason=reason))

    def give_bonus(self, number: int, cents: int, reason: str = "care") -> None:
        """Put a bonus into the ledger."""
        self.owe(number, PaymentKind.bonus, cents, reason)


@pytest.fixture
def ours(
    api: ProlificStandIn,
    database: Database,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Ours:
    """An open study that Prolific does not know yet.

    Its commands use the open database: to open it anew is to look for migrations, which takes longer than they do.
    """
    monkeypatch.setattr(annotate.prolific.work, "open_database", lambda *_: Database(database.engine))
    return make_ours(api, database, data, lambda: capsys.readouterr().out)


def make_ours(api: ProlificStandIn, database: Database, data: Path, read: Callable[[], str], **changes: Any) -> Ours:
    """An open study of these settings."""
    settings = StudySettings.model_validate(SETTINGS | changes)
    with database.write() as session:
        add_open_study(session, settings)
    return Ours(api, database, data, read)

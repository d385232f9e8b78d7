"""Open the study that a command is about, and show or send what it asks of Prolific."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from annotate.prolific.calls import Call
from annotate.prolific.client import Answer, read_all_submissions, send
from annotate.prolific.review import Beside, carry_all_over, lay_beside
from annotate.studies.create import get_study
from annotate.studies.settings import StudySettings, load_study_settings
from db.errors import UserError
from db.session import Database, open_database
from db.studies import Study
from runs.options import Place


@dataclass(frozen=True)
class Work:
    """One study, and whether anything is sent."""

    database: Database
    name: str
    settings: StudySettings
    dry_run: bool
    say: Callable[[str], None]
    """Told each line that the person at the terminal reads."""

    def study(self, session: Session) -> Study:
        """The study as it is now."""
        return get_study(session, self.name)

    def panel_study(self) -> str:
        """Its id at Prolific.

        Raises:
            UserError: it has none yet.
        """
        with self.database.read() as session:
            found = self.study(session).panel_study
        if found is None:
            raise UserError(f"Study {self.name!r} is not at Prolific yet: python -m annotate prolific create NAME.")
        return found

    def ask(self, call: Call) -> Answer | None:
        """Send a request; in a dry run say it instead, and return None."""
        if self.dry_run:
            self.say(call.describe())
            return None
        return send(call)

    def review(self) -> list[Beside]:
        """Prolific's submissions beside the participants, whom they are carried over to but in a dry run."""
        listed = read_all_submissions(self.panel_study())  # before a transaction, in which others would wait for it
        if self.dry_run:
            with self.database.read() as session:
                return lay_beside(session, self.study(session), listed)
        with self.database.write() as session:
            found = lay_beside(session, self.study(session), listed)
            carry_all_over(session, found)
            return found


def open_work(place: Place, name: str, say: Callable[[str], None], *, dry_run: bool) -> Work:
    """Open a study's database; the caller closes it.

    Raises:
        UserError: no such study.
    """
    database = open_database(place.data, place.db)
    try:
        with database.read() as session:
            settings = load_study_settings(get_study(session, name))
    except UserError:
        database.close()
        raise
    return Work(database, name, settings, dry_run, say)

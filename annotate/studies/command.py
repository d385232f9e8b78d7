"""Declare `annotate study`: make, watch, pay and end studies with strangers."""

from __future__ import annotations

from annotate.studies.options import StudyOptions, check_options
from db.session import open_database
from runs.options import Command, Place


def run_study(options: StudyOptions, place: Place) -> None:
    """Do one thing to one study, or list them.

    Raises:
        UserError: an option of another action, or what the action refuses.
    """
    from annotate.studies.run_command import ACTS  # here: the other commands load no pandas

    check_options(options)
    database = open_database(place.data, place.db)
    try:
        ACTS[options.action](database, options)
    finally:
        database.close()


STUDY = Command(
    "annotate study",
    "studies with strangers: create, watch, open and close, pay, export, forget",
    StudyOptions,
    run_study,
    "`create NAME --from study.toml`, then `open`; `show` tells who stands where, `cost` what a study takes before it "
    "is opened. `pay` writes the ledger, `--top-up` lifts who fell below the announced rate, `bonus` and `ledger` "
    "print CSV. `forget NAME NUMBER` deletes who a participant is to the panel, `--all-ids` all of a study's.",
)

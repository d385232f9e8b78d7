"""End runs and remove them: `python -m runs stop` and `delete`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from db.models import Run
from db.session import open_database
from runs.delete import delete_run
from runs.options import Command, Flag, Options, Place
from runs.stop import give_up, stop
from runs.store import reap_lost

RunIds = Annotated[list[int], Flag(positional=True, metavar="RUN"), Field(description="Numbers of the runs")]


class StopOptions(Options):
    """Which runs end, and how long they may take."""

    run_ids: RunIds
    grace: Annotated[float | None, Flag(metavar="SECONDS")] = Field(
        None, ge=0, description="Then kill (default: 60 for trainings, 10 else)"
    )
    machine_is_gone: bool = Field(False, description="Call a run lost whose machine is no more")


def run_stop(options: StopOptions, place: Place) -> None:
    """Ask each for a checkpoint, wait until it ends, and say how it ended."""
    database = open_database(place.data, place.db)
    reap_lost(database, place.data)
    for run_id in options.run_ids:
        if options.machine_is_gone:
            give_up(database, run_id)
        else:
            stop(database, run_id, options.grace)
        with database.read() as session:
            print(f"run {run_id} {session.get_one(Run, run_id).state}")


class DeleteOptions(Options):
    """Which runs go, and whether what they made goes too."""

    run_ids: RunIds
    also_out: bool = Field(False, description="And what they made, where nothing else refers to it")


def run_delete(options: DeleteOptions, place: Place) -> None:
    """Remove each and say what that freed."""
    database = open_database(place.data, place.db)
    reap_lost(database, place.data)
    for run_id in options.run_ids:
        freed = delete_run(database, place.data, run_id, also_out=options.also_out)
        print(f"run {run_id} deleted, {freed / 2**20:,.1f} MiB freed")


STOP = Command("runs stop", "ask runs for a checkpoint and end them", StopOptions, run_stop)
DELETE = Command("runs delete", "remove runs and their folders", DeleteOptions, run_delete)

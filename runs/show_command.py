"""Look at runs: `python -m runs list` and `show`."""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field
from sqlalchemy import select

from db.errors import UserError
from db.models import Run, RunState, utc_now
from db.session import open_database
from runs.options import Command, Flag, Options, Place
from runs.process import command_of
from runs.store import artifact_of, read_log_tail, read_progress, reap_lost, run_folder
from runs.supervise import why_waiting


class ListOptions(Options):
    """Which runs are listed."""

    state: RunState | None = Field(None, description="Only runs of this state")
    kind: Annotated[str | None, Flag(metavar="KIND")] = Field(
        None, description="Only runs of this kind, such as 'reward train'"
    )
    limit: int = Field(20, ge=1, description="So many at most")


def run_list(options: ListOptions, place: Place) -> None:
    """Print a line of each run, the oldest first."""
    database = open_database(place.data, place.db)
    reap_lost(database, place.data)
    wanted = select(Run).order_by(Run.id.desc()).limit(options.limit)
    if options.state:
        wanted = wanted.where(Run.state == options.state)
    if options.kind:
        wanted = wanted.where(Run.kind == options.kind)
    with database.read() as session:
        for run in reversed(session.scalars(wanted).all()):
            why = why_waiting(session, place.data, run) or run.error or ""
            print("\t".join([str(run.id), run.state, run.kind, run.device or "-", _progress(place.data, run), why]))


def _progress(data: Path, run: Run) -> str:
    last = read_progress(data, run.id)
    if last is None:
        return "-"
    return f"{last.get('done', 0):,}" + (f" of {last['total']:,}" if last.get("total") else "")


class ShowOptions(Options):
    """Which run is shown."""

    run_id: Annotated[int, Flag(positional=True, metavar="RUN")] = Field(description="Number of the run")
    lines: int = Field(10, ge=0, description="Last lines of the log")


def run_show(options: ShowOptions, place: Place) -> None:
    """Print all about a run."""
    database, data = open_database(place.data, place.db), place.data
    reap_lost(database, data)
    with database.read() as session:
        run = session.get(Run, options.run_id)
        if run is None:
            raise UserError(f"There is no run {options.run_id}.")
        why = why_waiting(session, data, run)
    print(f"run {run.id}: {run.kind}, {run.state}" + (f", {why}" if why else ""))
    if run.error:
        print(f"error: {run.error}")
    times = {"asked for": run.created_at, "started": run.started_at, "ended": run.ended_at}
    print(", ".join(f"{name} {_ago(time)}" for name, time in times.items() if time))
    print(f"code {run.code_version}; {run.device or 'no device'}; {run.host or 'no machine yet'}")
    print(f"command: {shlex.join(command_of(run))}")
    print(f"folder: {run_folder(data, run.id)}")
    if out := artifact_of(data, run):
        print(f"makes: {out}")
    if last := read_progress(data, run.id):
        values = {name: value for name, value in last.items() if name not in ("time", "done", "total")}
        print(f"progress: {_progress(data, run)} {json.dumps(values)}")
    print(f"settings: {json.dumps(run.config, sort_keys=True)}")
    for line in read_log_tail(data, run.id)[-options.lines :] if options.lines else []:
        print(f"| {line}")


def _ago(time: datetime) -> str:
    seconds = (utc_now() - time).total_seconds()
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"


LIST = Command("runs list", "the latest runs, a line each", ListOptions, run_list)
SHOW = Command("runs show", "all about a run: command, progress, settings, the end of its log", ShowOptions, run_show)

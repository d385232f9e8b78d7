"""Serve the JSON and the buttons of the Runs and Models pages. Admins only; see `ui.gate.access`.

Pages ask again and again, so an answer that did not change is a 304 without a body, and of a run's series only what
came since the last answer is sent.
"""

from __future__ import annotations

import math
import os
import shlex
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.errors import UserError
from db.models import Person, Run, RunState
from runs.delete import delete_run, folder_bytes, why_kept, why_out_kept
from runs.file_cache import read_json
from runs.launch import can_continue, continue_run
from runs.lineage import load_lineage
from runs.process import command_of
from runs.series import Array, SeriesReader
from runs.stop import stop
from runs.store import LIVE_STATES, artifact_of, reap_lost, run_folder
from runs.supervise import why_waiting
from ui.context import Context
from ui.plain_pages import send_json
from ui.runs.artifacts import find_sample, list_checkpoints, list_checks, list_samples, measure_size
from ui.runs.figures import key_figure, read_tail

REAP_SECONDS = 1.0
DIGITS = 6
MAX_LISTED = 20
JSON = dict[str, Any]
RunId = Annotated[int, Field(ge=0, lt=2**63)]
Limit = Annotated[int, Query(ge=1, le=500)]
Points = Annotated[int, Query(ge=10, le=5_000)]
LogBytes = Annotated[int, Query(ge=0, le=5_000_000)]


class DeleteRequest(BaseModel):
    """Whether the folder of what the run made goes too."""

    model_config = ConfigDict(extra="forbid")

    also_out: bool = False


def run_routes(context: Context) -> APIRouter:
    """/api/runs and /api/lineage."""
    routes = APIRouter()
    database, data = context.database, context.data
    reader = SeriesReader()
    reaped_at = -REAP_SECONDS

    def reap() -> None:
        """Dead runs end also where no supervisor is at work; at most once per second, whoever asks."""
        nonlocal reaped_at
        if time.monotonic() - reaped_at >= REAP_SECONDS:
            reaped_at = time.monotonic()
            reap_lost(database, data)

    def find(session: Session, run_id: int) -> Run:
        run = session.get(Run, run_id)
        if run is None:
            raise HTTPException(404, f"There is no run {run_id}.")
        return run

    @routes.get("/api/runs")
    def table(
        request: Request, state: str = "", kind: str = "", before: RunId | None = None, limit: Limit = 50
    ) -> Response:
        reap()
        with database.read() as session:
            return send_json(request, list_runs(session, data, state, kind, before, limit))

    @routes.get("/api/runs/{run_id}")
    def details(request: Request, run_id: RunId) -> Response:
        reap()
        with database.read() as session:
            return send_json(request, describe_run(session, data, find(session, run_id)))

    @routes.get("/api/runs/{run_id}/series")
    def series(request: Request, run_id: RunId, points: Points = 400, since: str = "") -> Response:
        answer = reader.read(run_folder(data, run_id) / "progress.jsonl", points, since)
        if since == answer.version:
            return Response(status_code=304)
        shown = {name: [_round(x), _round(y)] for name, (x, y) in answer.points.items()}
        return send_json(request, {"version": answer.version, "whole": answer.whole, "series": shown})

    @routes.get("/api/runs/{run_id}/log")
    def log(request: Request, run_id: RunId, bytes: LogBytes = 20_000) -> Response:
        return send_json(request, read_log(run_folder(data, run_id) / "log.txt", bytes))

    @routes.get("/api/runs/{run_id}/samples")
    def samples(request: Request, run_id: RunId) -> Response:
        with database.read() as session:
            return send_json(request, list_samples(data, find(session, run_id)))

    @routes.get("/api/runs/{run_id}/samples/{name}")
    def sample(run_id: RunId, name: str) -> Response:
        with database.read() as session:
            path = find_sample(data, find(session, run_id), name)
        if path is None:
            raise HTTPException(404, "There is no such sample.")
        return FileResponse(path, media_type="image/png", headers={"Cache-Control": "private, no-cache"})

    @routes.get("/api/runs/{run_id}/deletion")
    def deletion(request: Request, run_id: RunId) -> Response:
        with database.read() as session:
            return send_json(request, describe_deletion(session, data, find(session, run_id)))

    @routes.post("/api/runs/{run_id}/stop")
    def stop_run(run_id: RunId) -> Response:
        return _do(lambda: stop(database, run_id))

    @routes.post("/api/runs/{run_id}/continue")
    def continue_(run_id: RunId) -> Response:
        return _do(lambda: continue_run(database, data, run_id, url=context.url))

    @routes.post("/api/runs/{run_id}/delete")
    def delete(run_id: RunId, body: DeleteRequest) -> Response:
        return _do(lambda: {"freed_bytes": delete_run(database, data, run_id, also_out=body.also_out)})

    @routes.get("/api/lineage")
    def lineage(request: Request) -> Response:
        with database.read() as session:
            return send_json(request, describe_lineage(session, data))

    return routes


def list_runs(session: Session, data: Path, state: str, kind: str, before: int | None, limit: int) -> JSON:
    """The newest runs that fit, one query for their rows.

    Args:
        state: a state, 'live' for all that go on, or empty.
        before: only runs of smaller ids: the next page.
    """
    rows = select(Run, Person.name).outerjoin(Person, Person.id == Run.person_id).order_by(Run.id.desc())
    if state == "live":
        rows = rows.where(Run.state.in_(LIVE_STATES))
    elif state in RunState.__members__:
        rows = rows.where(Run.state == RunState(state))
    elif state:
        raise HTTPException(400, f"There is no state {state!r}.")
    if kind:
        rows = rows.where(Run.kind == kind)
    if before is not None:
        rows = rows.where(Run.id < before)
    found = session.execute(rows.limit(limit + 1)).all()
    live = session.scalar(select(Run.id).where(Run.state.in_(LIVE_STATES)).limit(1)) is not None
    return {
        "runs": [describe_row(session, data, run, who) for run, who in found[:limit]],
        "more": len(found) > limit,
        "live": live,
        "kinds": list(session.scalars(select(Run.kind).distinct().order_by(Run.kind))),
    }


def describe_row(session: Session, data: Path, run: Run, who: str | None) -> JSON:
    """Return a run's row of the table."""
    tail = read_tail(data, run.id)
    live = run.state in LIVE_STATES
    return {
        "id": run.id,
        "kind": run.kind,
        "state": run.state.value,
        "who": who,
        "device": run.device,
        "host": run.host,
        "created_at": _iso(run.created_at),
        "started_at": _iso(run.started_at),
        "ended_at": _iso(run.ended_at),
        "done": tail.done,
        "total": tail.total,
        "part": tail.part,
        "seconds_left": tail.seconds_left if live else None,
        "figure": key_figure(data, run, tail),
        "error": run.error,
        "why_waiting": why_waiting(session, data, run) if run.state is RunState.queued else None,
    }


def describe_run(session: Session, data: Path, run: Run) -> JSON:
    """All that a run's page says of it but for its series, log and samples."""
    who = session.scalar(select(Person.name).where(Person.id == run.person_id)) if run.person_id else None
    folder, artifact = run_folder(data, run.id), artifact_of(data, run)
    live = run.state in LIVE_STATES
    return {
        **describe_row(session, data, run, who),
        "code_version": run.code_version,
        "config": run.config,
        "command": shlex.join(command_of(run)) if run.cwd is not None else None,
        "after": run.after,
        "launcher": run.launcher,
        "result": _shorten(read_json(folder / "result.json")),
        "folder": str(folder),
        "bytes": measure_size(folder)
        + (0 if artifact is None or _is_inside(artifact, folder) else measure_size(artifact)),
        "out": str(artifact) if artifact else None,
        "checkpoints": list_checkpoints(data, run),
        "checks": list_checks(data, run),
        "can": {
            "stop": live,
            "continue": can_continue(run),
            "clone": bool(run.arguments or run.config),
            "delete": not live,
        },
    }


def describe_deletion(session: Session, data: Path, run: Run) -> JSON:
    """Describe what deleting a run would free, its folder and, where asked, what it made; and why something stays."""
    folder, out = run_folder(data, run.id), artifact_of(data, run)
    if out is not None and (not out.exists() or _is_inside(out, folder)):
        out = None  # goes with the run's folder, or is gone
    return {
        "kept": why_kept(session, data, run),
        "folder": str(folder),
        "folder_bytes": folder_bytes(folder),
        "out": str(out) if out else None,
        "out_bytes": folder_bytes(out) if out else 0,
        "out_kept": why_out_kept(session, data, run, out) if out else None,
    }


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def describe_lineage(session: Session, data: Path) -> JSON:
    """The lineage, each node with the key figure of its run."""
    found = load_lineage(session, data)
    runs = {run.id: run for run in session.scalars(select(Run))}
    for node in found["nodes"]:
        run = runs.get(node["run"]) if node["group"] != "method" else None
        node["figure"] = key_figure(data, run, read_tail(data, run.id)) if run else None
    return found


def read_log(file: Path, most: int) -> JSON:
    """The end of what a launched run printed; `there` is false for one that was started in a terminal."""
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(max(0, size - most))
            text = stream.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return {"there": False, "text": "", "bytes": 0}
    if size > most:
        text = text.partition("\n")[2]
    return {"there": True, "text": text, "bytes": size}


def _do(action: Any) -> Response:
    """Do what a button asks for; what is refused comes as one line."""
    try:
        return JSONResponse(action() or {})
    except UserError as error:
        return JSONResponse({"error": str(error)}, status_code=409)


def _round(values: Array) -> list[float | int | None]:
    """Numbers to draw: a few digits, whole ones without a point, null where there is none."""
    return [
        None if not math.isfinite(value) else int(value) if value.is_integer() else float(f"{value:.{DIGITS}g}")
        for value in values.tolist()
    ]


def _shorten(value: Any) -> Any:
    """Long lists as the number of their items."""
    if isinstance(value, dict):
        return {key: _shorten(item) for key, item in value.items()}
    if isinstance(value, list):
        return f"{len(value):,} items" if len(value) > MAX_LISTED else [_shorten(item) for item in value]
    return value


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds") if moment else None

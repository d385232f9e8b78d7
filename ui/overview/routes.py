"""Serve what the Overview page shows. Admins only; see `ui.gate.access`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from db.models import Run, RunState
from runs.doctor import find_all
from runs.options import Place
from runs.store import reap_lost
from ui.context import Context
from ui.overview.advice import advise
from ui.overview.stages import Project, describe_stages, load_project
from ui.plain_pages import send_json
from ui.runs.routes import describe_row

MAX_ROWS = 8


def overview_routes(context: Context) -> APIRouter:
    """/api/overview."""
    routes = APIRouter()

    @routes.get("/api/overview")
    def overview(request: Request) -> Response:
        reap_lost(context.database, context.data)
        with context.database.read() as session:
            return send_json(request, describe_overview(session, context.data))

    @routes.get("/api/overview/machine")
    def machine(request: Request) -> Response:
        """What this machine has and lacks, as `python -m runs doctor` says; the network is not asked."""
        findings = find_all(Place(context.data, context.url))
        return send_json(request, {"findings": [asdict(finding) for finding in findings]})

    return routes


def describe_overview(session: Session, data: Path) -> dict[str, Any]:
    """The stages, what to do next, what runs, what failed, and what waits for a person."""
    project = load_project(session, data)
    stages = describe_stages(project, data)
    return {
        "advice": asdict(advise(project, data)),
        "stages": [asdict(stage) for stage in stages],
        "running": _rows(session, data, project.latest.live),
        "failed": _rows(session, data, find_failed(project)),
        "waiting": find_waiting(project),
    }


def find_failed(project: Project) -> list[Run]:
    """The latest run of each command, where it failed or was lost: what has been done again since is no news."""
    failed = [run for run in project.latest.runs.values() if run.state in (RunState.failed, RunState.lost)]
    return sorted(failed, key=lambda run: -run.id)


def find_waiting(project: Project) -> list[dict[str, str]]:
    """What only a person can do."""
    waiting = []
    if project.waiting:
        waiting.append({"words": f"{project.waiting:,} pairs wait for a first answer", "href": "/"})
    if project.in_part:
        waiting.append({"words": f"{project.in_part:,} pairs want more answers", "href": "/"})
    for name in project.flagged:
        waiting.append({"words": f"{name} is flagged in the report: look at the answers", "href": "/admin/people"})
    for run in project.latest.runs.values():
        if run.state is RunState.stopped:
            waiting.append(
                {
                    "words": f"Run {run.id} ({run.kind}) was stopped: continue or delete it",
                    "href": f"/admin/runs#run={run.id}",
                }
            )
    return waiting


def _rows(session: Session, data: Path, runs: list[Run]) -> list[dict[str, Any]]:
    return [describe_row(session, data, run, None) for run in runs[:MAX_ROWS]]

"""Serve the requests of the Train page: forms, errors of a filled-in one, starting it.

For admins only, which the gate (ui/gate/access.py) sees to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.errors import UserError
from db.models import Run
from runs import launch
from runs.devices import CPU, list_devices, split_devices
from runs.store import LIVE_STATES, artifact_of, run_folder
from runs.supervise import why_waiting
from ui.context import Context
from ui.gate.access import visitor_of
from ui.train import form as train_check
from ui.train.estimate import estimate
from ui.train.form import Plan, check, say_command
from ui.train.form import Request as Filled
from ui.train.forms import FORMS
from ui.train.inputs import list_choices, read_json

MAX_LIVE = 50


@dataclass(frozen=True)
class Wanted:
    """A form that was looked at, and how its run would be started."""

    checked: Plan
    notes: list[str]
    launcher: dict[str, Any]
    command: str


def train_routes(context: Context) -> APIRouter:
    """/api/train."""
    routes = APIRouter(prefix="/api/train")

    @routes.get("/kinds")
    def kinds(source: Annotated[int | None, Query(alias="from")] = None) -> dict[str, Any]:
        with context.database.read() as session:
            choices = list_choices(session, context.data)
            answer: dict[str, Any] = {
                "kinds": [train_check.describe_form(form, choices) for form in FORMS.values()],
                "devices": list_device_choices(),
                "live": list_live(session),
                "from": None,
            }
            if source is not None:
                answer["from"] = read_earlier(session, source)
        return answer

    @routes.post("/check")
    def look(body: Filled) -> dict[str, Any]:
        with context.database.read() as session:
            wanted = look_at(session, context.data, body)
            told = estimate(session, context.data, body.kind, wanted.checked.config) if wanted.checked.config else None
        return {
            "errors": wanted.checked.errors,
            "command": wanted.command,
            "changed": wanted.checked.changed,
            "notes": wanted.notes,
            "defaults": train_check.read_file(body),
            "estimate": told,
        }

    @routes.post("/start")
    def start(request: Request, body: Filled) -> Any:
        with context.database.read() as session:
            wanted = look_at(session, context.data, body)
        if wanted.checked.errors:
            return JSONResponse({"errors": wanted.checked.errors}, status_code=422)
        try:
            run_id = launch.start(
                context.database,
                context.data,
                FORMS[body.kind].command,
                wanted.checked.options,
                url=context.url,
                person_id=visitor_of(request).person_id,
                device=body.device or None,
                after=body.after,
                launcher=wanted.launcher,
            )
        except UserError as error:
            return JSONResponse({"errors": {train_check.WHOLE_FORM: str(error)}}, status_code=422)
        with context.database.read() as session:
            run = session.get_one(Run, run_id)
            return {"run": run_id, "waits": why_waiting(session, context.data, run, context.cpu_slots)}

    return routes


def list_device_choices() -> list[dict[str, str]]:
    """What can be chosen as a device: each, and all GPUs together where there are several."""
    devices = list_devices()
    cards = [device for device in devices if device != CPU]
    choices = [{"value": device, "words": device} for device in devices]
    if len(cards) > 1:
        choices.append({"value": ",".join(cards), "words": f"all {len(cards)} GPUs"})
    return choices


def list_live(session: Session) -> list[dict[str, Any]]:
    """The runs that one could wait for."""
    live = select(Run).where(Run.state.in_(LIVE_STATES)).order_by(Run.id.desc()).limit(MAX_LIVE)
    return [{"id": run.id, "kind": run.kind, "state": run.state.value} for run in session.scalars(live)]


def read_earlier(session: Session, run_id: int) -> dict[str, Any]:
    """The form of a run like an earlier one, in a folder of its own.

    Raises:
        HTTPException: there is no such run, or none of its kind can be started from the page.
    """
    run = session.get(Run, run_id)
    form = FORMS.get(run.kind) if run and run.arguments else None
    if run is None or form is None:
        raise HTTPException(404, f"There is no run {run_id} that could be started again from this page.")
    try:
        asked = train_check.read_back(form, run.arguments)
    except UserError as error:  # the command has changed since
        raise HTTPException(404, f"Run {run_id} cannot be started again from this page: {error}") from error
    asked.inputs = {name: [_from_folder(run.cwd, value) for value in given] for name, given in asked.inputs.items()}
    asked.device = run.device or ""
    asked.processes = int(run.launcher.get("processes", 1))
    return {"run": run_id, **asked.model_dump()}


def _from_folder(cwd: str | None, value: str) -> str:
    """A relative path of a run that was started in another folder, such that it is found from here."""
    path = Path(cwd or ".", value)
    return str(path.absolute()) if not Path(value).is_absolute() and path.exists() else value


def look_at(session: Session, data: Path, asked: Filled) -> Wanted:
    """All that can be said of a form before it is started."""
    waited_for = [session.get(Run, run_id) for run_id in asked.after]
    folders = [folder for run in waited_for if run for folder in _will_make(data, run)]
    checked = check(asked, data, folders)
    for run_id, run in zip(asked.after, waited_for, strict=True):
        if run is None:
            checked.errors["after"] = f"There is no run {run_id}."
    missing = [device for device in split_devices(asked.device or None) if device not in list_devices()]
    if missing:
        checked.errors["device"] = f"This machine has no {missing[0]}."
    form = FORMS.get(asked.kind)
    if asked.processes > 1 and form and not form.command.trains:
        checked.errors["processes"] = f"{form.command.name} runs as one process."
    launcher = {"processes": asked.processes, "machines": 1} if asked.processes > 1 else {}
    notes = _look_at_folder(session, data, checked)
    run = Run(kind=asked.kind, arguments=checked.words, launcher=launcher, device=asked.device or None)
    return Wanted(checked, notes, launcher, say_command(data, run))


def _will_make(data: Path, run: Run) -> list[Path]:
    """The folders that a run makes, which need not be there yet."""
    if run.kind == "annotate export" and not run.config.get("out"):
        return [(run_folder(data, run.id) / "dataset").absolute()]
    folder = artifact_of(data, run)
    return [folder.absolute()] if folder else []


def _look_at_folder(session: Session, data: Path, checked: Plan) -> list[str]:
    """Whether somebody trains where this run would: an error; whether there is a training to continue: a note."""
    out = checked.config.get("out")
    if not out:
        return []
    live = session.scalars(select(Run).where(Run.state.in_(LIVE_STATES)))
    busy = next((run.id for run in live if artifact_of(data, run) == Path(out)), None)
    if busy is not None:
        checked.errors["out"] = f"Run {busy} writes into {out} now; change a setting, or name another folder."
        return []
    record = read_json(Path(out) / "last" / "training.json")
    if "step" not in record:
        return []
    steps = checked.config.get("train", {}).get("max_steps")
    if isinstance(steps, int) and record["step"] >= steps:
        return [f"{out} holds this training, finished: the run would find nothing to do."]
    return [f"{out} holds {record['step']:,} steps of this training: it is continued."]

"""Show the next round on the Train page, all it will do, before one button starts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

import refl.tune.config
import reward.model.config
from annotate.judging.labels import select_pairs_of_tasks
from annotate.labeler.settings import MIN_ANSWERS, choose_metrics
from db.errors import UserError
from db.models import Judgment, Pair, Person, Run, Source, Split, Task
from db.records import DECIDED
from metrics.lists import list_names
from runs.devices import list_devices, split_devices
from runs.options import Setting, read_settings
from runs.rounds import PlannedRun, RoundSettings, next_round_no, plan_round, start_round
from ui.context import Context
from ui.gate.access import visitor_of
from ui.train import fields as train_fields
from ui.train import inputs as train_inputs
from ui.train.fields import Typed
from ui.train.form import WHOLE_FORM, Text, say_command

RESTORER = "restorer"
"""The setting that the page shows as an input, with the project's restorers to choose from."""
SHOWN = ("metrics", "reward_preset", "refl_preset", "device", "seeds", "include_simulated")
MIN_HELD_OUT = 2
"""Faces that ReFL's monitor needs."""


class RoundAsked(BaseModel):
    """The settings as they were typed, and which round the person was shown."""

    model_config = ConfigDict(extra="forbid")

    round: int
    values: dict[Text, bool | Text] = Field({}, max_length=50)


def round_routes(context: Context) -> APIRouter:
    """/api/train/round."""
    routes = APIRouter(prefix="/api/train")

    @routes.get("/round")
    def plan(request: Request) -> dict[str, Any]:
        """Every setting may be given by its name."""
        values: dict[str, Typed] = {
            name: value == "true" if name in fields_of() and fields_of()[name].type == "switch" else value
            for name, value in request.query_params.items()
        }
        number = next_round_no(context.data)
        with context.database.read() as session:
            usual: dict[str, Any] = {"held_out": has_held_out(session), "metrics": choose_metrics(session)}
        settings, errors = read_round(values, context.data, **usual)
        planned: list[PlannedRun] = []
        if settings is not None:
            try:
                planned = plan_round(context.data, number, settings)
            except UserError as error:
                errors[WHOLE_FORM] = str(error)
        with context.database.read() as session:
            return {
                "round": number,
                "folder": str(context.data / "rounds" / str(number)),
                **describe_form(session, context.data),
                "errors": errors,
                "notes": list_notes(session, settings) if settings else [],
                "plan": [describe_run(context.data, one) for one in planned],
            }

    @routes.post("/round")
    def start(request: Request, body: RoundAsked) -> Any:
        with context.database.read() as session:
            usual: dict[str, Any] = {"held_out": has_held_out(session), "metrics": choose_metrics(session)}
        settings, errors = read_round(body.values, context.data, **usual)
        if body.round != next_round_no(context.data):
            errors[WHOLE_FORM] = f"Round {body.round} was started meanwhile; look at the plan of the next one."
        ids: list[int] = []
        if settings is not None and not errors:
            try:
                planned = plan_round(context.data, body.round, settings)
                person_id = visitor_of(request).person_id
                ids = start_round(context.database, context.data, planned, url=context.url, person_id=person_id)
            except UserError as error:
                errors[WHOLE_FORM] = str(error)
        return JSONResponse({"errors": errors}, status_code=422) if errors else {"runs": ids}

    return routes


@cache
def fields_of() -> dict[str, Setting]:
    """Name -> field of the settings; those that name one of a few things are choices."""
    fields = {found.name: found for found in read_settings(RoundSettings, from_presets=True, table="round")}
    for name, choices in (
        ("metrics", list_names()),
        ("reward_preset", reward.model.config.preset_names()),
        ("refl_preset", refl.tune.config.preset_names()),
        ("device", list_devices()),
    ):
        fields[name] = replace(fields[name], type="choice", choices=tuple(choices))
    return fields


def describe_form(session: Session, data: Path) -> dict[str, Any]:
    """The settings as fields, and the restorer as what the project has."""
    usual: dict[str, Any] = {"metrics": choose_metrics(session), "measure_held_out": has_held_out(session)}
    defaults = RoundSettings(device=list_devices()[0], **usual)
    restorers = train_inputs.list_choices(session, data)["restorers"]
    return {
        "fields": [
            train_fields.describe(
                found, train_fields.to_typed(found, getattr(defaults, found.name)), shown=found.name in SHOWN
            )
            for found in fields_of().values()
            if found.name != RESTORER
        ],
        "restorer": {
            "name": RESTORER,
            "label": "Restorer",
            "description": fields_of()[RESTORER].description,
            "required": True,
            "many": False,
            "choices": [asdict(choice) for choice in restorers],
            "default": defaults.restorer,
        },
    }


def has_held_out(session: Session) -> bool:
    """Whether there are photos of the split val to measure on: their ground truth for ReFL, answers for the reward."""
    with_truth = select(func.count()).select_from(Source).where(Source.hq_image_id.is_not(None))
    answered = (
        select(func.count())
        .select_from(Judgment)
        .outerjoin(Pair, Pair.id == Judgment.pair_id)
        .outerjoin(Task, Task.id == Judgment.task_id)
        .join(Source, Source.id == func.coalesce(Pair.source_id, Task.source_id))
        .where(Judgment.superseded_at.is_(None), DECIDED, Source.split == Split.val)
    )
    faces = session.scalar(with_truth.where(Source.split == Split.val)) or 0
    return faces >= MIN_HELD_OUT and bool(session.scalar(answered))


def read_round(
    values: Mapping[str, Typed], data: Path, *, held_out: bool = True, metrics: str = "offline"
) -> tuple[RoundSettings | None, dict[str, str]]:
    """(the settings, None where there are errors; field -> what is wrong).

    Args:
        held_out: whether to measure on held-out photos where that is not said.
        metrics: the list where none is said.
    """
    parsed: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for name, typed in values.items():
        if name not in fields_of():
            errors[WHOLE_FORM] = f"A round has no setting {name}."
            continue
        try:
            parsed[name] = train_fields.parse(fields_of()[name], typed)
        except ValueError as error:
            errors[name] = str(error)
    parsed.setdefault("device", list_devices()[0])
    parsed.setdefault("measure_held_out", held_out)
    parsed.setdefault("metrics", metrics)
    if fault := train_inputs.check_tunable(str(parsed.get("restorer", "tiny")), data):
        errors["restorer"] = fault
    missing = [device for device in split_devices(parsed.get("device")) if device not in list_devices()]
    if missing:
        errors["device"] = f"This machine has no {missing[0]}."
    return (None if errors else RoundSettings.model_validate(parsed)), errors


def describe_run(data: Path, one: PlannedRun) -> dict[str, Any]:
    """What the page shows of a planned run."""
    return {
        "kind": one.kind,
        "words": one.words,
        "command": say_command(data, Run(kind=one.kind, arguments=one.arguments, launcher={})),
        "device": one.device,
        "after": one.after,
        "out": str(one.out) if one.out else None,
    }


def count_decided(session: Session, *, include_simulated: bool, most: int | None = None) -> int:
    """Pairs of the train split that people decided, neither tie nor skip: what a labeler learns from.

    Of a task that was decided as many as any answer to it tells of at least, one fewer than it has images.

    Args:
        most: beyond so many it need not be exact, and is found sooner.
    """

    def find(number: Any, table: type[Pair] | type[Task], of_judgment: Any) -> Any:
        found = (
            select(number)
            .join(Judgment, of_judgment == table.id)
            .join(Source, Source.id == table.source_id)
            .where(Judgment.superseded_at.is_(None), Judgment.repeat_no == 0, Source.split == Split.train, DECIDED)
        )
        if not include_simulated:
            found = found.join(Person, Person.id == Judgment.person_id).where(Person.simulated.is_(False))
        return found.distinct().limit(most).subquery()

    of_pairs = select(func.count()).select_from(find(Pair.id, Pair, Judgment.pair_id))
    tasks = find(Task.id, Task, Judgment.task_id)
    of_tasks = select(func.coalesce(func.sum(Task.size - 1), 0)).join(tasks, tasks.c.id == Task.id)
    return int(session.scalar(of_pairs) or 0) + int(session.scalar(of_tasks) or 0)


def list_notes(session: Session, settings: RoundSettings) -> list[str]:
    """What the round begins with, and what it would fail for."""
    answers = select(func.count()).select_from(Judgment).where(Judgment.superseded_at.is_(None))
    decided = count_decided(session, include_simulated=settings.include_simulated)
    of_tasks = select_pairs_of_tasks().with_only_columns(Pair.id)
    unjudged = select(func.count()).select_from(Pair).where(Pair.judgment_count == 0, Pair.id.not_in(of_tasks))
    with_truth = select(func.count()).select_from(Source).where(Source.hq_image_id.is_not(None))
    counts = [*(session.scalar(query) or 0 for query in (answers, unjudged)), decided]
    notes = [f"Judgments that it begins with: {counts[0]:,}; pairs that nobody judged: {counts[1]:,}."]
    if counts[2] < MIN_ANSWERS:
        by_whom = "were judged" if settings.include_simulated else "people judged"
        notes.append(
            f"The labeler learns from {MIN_ANSWERS} or more pairs of the split train that {by_whom} without a tie, and "
            f"there are {counts[2]}: the round would end at its second step."
        )
    if not session.scalar(with_truth.where(Source.split == Split.train)):
        notes.append(
            "ReFL needs photos of the split train with their ground truth, and there are none: the round would end at "
            "its sixth step."
        )
    if not settings.measure_held_out:
        notes.append("Nothing is measured on held-out photos while training, so the monitor cannot see hacking.")
    elif not has_held_out(session):
        notes.append(
            f"Measuring on held-out photos needs answers about the split val, and {MIN_HELD_OUT} of its photos with "
            "their ground truth, which are not there: switch it off, or the round would end at its fifth step."
        )
    return notes

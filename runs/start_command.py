"""Start and queue runs: `python -m runs start`, `continue`, `round` and `supervise`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from db.errors import UserError
from db.models import Run
from db.session import Database, open_database
from licences.terms import set_commercial
from runs.devices import list_devices
from runs.launch import continue_run, describe_run, launch
from runs.options import COMMERCIAL_FLAG, Command, Flag, Options, Place, find_command, list_commands, read_words
from runs.own_command import drop_common
from runs.process import is_waiting
from runs.rounds import RoundSettings, next_round_no, plan_round, start_round
from runs.store import reap_lost, run_folder
from runs.supervise import supervise, why_waiting

LATER = "What is queued starts as soon as it can, while the app or `python -m runs supervise` is running."


class StartOptions(Options):
    """Which command becomes a run, what it waits for, and on which processes and machines it computes."""

    words: Annotated[list[str], Flag(positional=True, metavar="-- COMMAND")] = Field(
        description="What follows `python -m`"
    )
    device: str | None = Field(
        None, description="Wait for room on this device, such as cuda:0 (default: start at once)"
    )
    after: Annotated[list[int], Flag(metavar="RUN")] = Field([], description="Wait for these to finish")
    processes: int | None = Field(None, ge=1, description="So many processes, by accelerate launch")
    machines: int | None = Field(None, ge=1, description="On so many machines: the same command on each")
    machine_rank: int | None = Field(None, ge=0, description="Which of the machines this is, from 0")
    main_process_ip: Annotated[str | None, Flag(metavar="IP")] = Field(None, description="Address of machine 0")
    main_process_port: Annotated[int | None, Flag(metavar="PORT")] = Field(
        None, ge=0, le=65_535, description="A free port of machine 0"
    )
    slurm: Annotated[list[str] | None, Flag(metavar="NAME=VALUE", alone="")] = Field(
        None,
        description="As a job of Slurm, with submitit's settings: timeout_min=600 slurm_partition=gpu gpus_per_node=1",
    )


def run_start(options: StartOptions, place: Place) -> None:
    """Start the command as a run or queue it, and say which."""
    if len(options.words) < 2:
        raise UserError("Give a package and its command, such as: python -m runs start -- annotate measure")
    names = ("processes", "machines", "machine_rank", "main_process_ip", "main_process_port")
    launcher: dict[str, Any] = {name: value for name in names if (value := getattr(options, name)) is not None}
    if launcher:
        launcher = {"processes": 1, "machines": 1, **launcher}
    if options.slurm is not None:
        launcher["slurm"] = dict(_parse_setting(setting) for setting in options.slurm)
    if COMMERCIAL_FLAG in options.words:
        set_commercial()
    kind, arguments = " ".join(options.words[:2]), drop_common(options.words[2:])
    described: dict[str, Any] = {"arguments": arguments, "config": {}}
    if command := find_command(kind):  # of somebody's own module nothing more is known
        kind, described = command.name, describe_run(command, read_words(command, arguments), place.data, arguments)
    elif known := list_commands(options.words[0]):
        raise UserError(f"There is no command {kind!r}; there are {', '.join(one.name for one in known)}.")
    database = open_database(place.data, place.db)
    run_id = launch(
        database,
        place.data,
        kind,
        **described,
        url=place.db,
        device=options.device,
        after=options.after,
        launcher=launcher,
    )
    _say_how_it_stands(database, place.data, [run_id])


def _parse_setting(setting: str) -> tuple[str, object]:
    name, equals, value = setting.partition("=")
    if not equals:
        raise UserError(f"--slurm {setting!r} is not NAME=VALUE.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _say_how_it_stands(database: Database, data: Path, run_ids: Sequence[int]) -> None:
    queued = False
    with database.read() as session:
        for run_id in run_ids:
            run = session.get_one(Run, run_id)
            how = f"started: {run_folder(data, run_id)}"
            if is_waiting(run):
                queued, how = True, f"queued, {why_waiting(session, data, run) or 'about to start'}"
            print(f"run {run_id} ({run.kind}) {how}")
    if queued:
        print(LATER)


class ContinueOptions(Options):
    """Which runs go on."""

    run_ids: Annotated[list[int], Flag(positional=True, metavar="RUN")] = Field(description="Numbers of the runs")


def run_continue(options: ContinueOptions, place: Place) -> None:
    """Queue each once more, and say how it stands."""
    database = open_database(place.data, place.db)
    reap_lost(database, place.data)
    for run_id in options.run_ids:
        continue_run(database, place.data, run_id, url=place.db)
    _say_how_it_stands(database, place.data, options.run_ids)


class RoundOptions(RoundSettings):
    """The settings of the next round, and whether it starts."""

    dry_run: bool = Field(False, description="Only say what would be started")


def run_round(options: RoundOptions, place: Place) -> None:
    """Print the plan of the next round and start it, unless it was only asked what it would be."""
    round_no = next_round_no(place.data)
    plan = plan_round(place.data, round_no, options)
    print(f"round {round_no}:")
    for number, one in enumerate(plan, 1):
        print(f"{number}. {one.words}\n   python -m {shlex.join([*one.kind.split(), *one.arguments])}")
    if not options.dry_run:
        database = open_database(place.data, place.db)
        _say_how_it_stands(database, place.data, start_round(database, place.data, plan, url=place.db))


class SuperviseOptions(Options):
    """How much runs at a time."""

    cpu_slots: int = Field(1, ge=1, description="Runs on the CPU at a time")


def run_supervise(options: SuperviseOptions, place: Place) -> None:
    """Start what is queued until Ctrl+C."""
    database = open_database(place.data, place.db)
    print(f"starting what is queued for {', '.join(list_devices())}  (stop it with Ctrl+C; runs go on)", flush=True)
    try:
        supervise(database, place.data, place.db, options.cpu_slots)
    except KeyboardInterrupt:
        print()


START = Command(
    "runs start",
    "start a command as a run that outlives this terminal, or queue it",
    StartOptions,
    run_start,
    "python -m runs start --device cuda:0 -- reward train --preset tiny --dataset DIR",
)
CONTINUE = Command("runs continue", "go on with runs that were stopped, failed or lost", ContinueOptions, run_continue)
ROUND = Command(
    "runs round", "the next round: from the judgments so far to the next pairs to judge", RoundOptions, run_round
)
SUPERVISE = Command(
    "runs supervise", "start what is queued, as the app does, until Ctrl+C", SuperviseOptions, run_supervise
)

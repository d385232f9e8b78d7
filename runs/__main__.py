"""The command line of runs: `python -m runs list | show | start | stop | continue | delete | round | supervise`."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from datetime import datetime
from pathlib import Path

from sqlalchemy import select

from db.errors import UserError
from db.models import Run, RunState, utc_now
from db.session import Database, open_database
from runs.command_line import add_common_options, run_command
from runs.delete import delete_run
from runs.devices import list_devices
from runs.launch import continue_run, launch
from runs.own_command import drop_common
from runs.process import command_of, is_waiting
from runs.round_command import add_round_command, run_round
from runs.stop import give_up, stop
from runs.store import artifact_of, read_log_tail, read_progress, reap_lost, run_folder
from runs.supervise import supervise, why_waiting

DESCRIPTION = "Start long jobs, watch them, stop and continue them: what the Train and Runs pages do."
LATER = "What is queued starts as soon as it can, while the app or `python -m runs supervise` is running."


def main(argv: list[str] | None = None) -> int:
    """Run one command; a UserError, or a database that fails, becomes one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m runs", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_list(commands)
    _add_show(commands)
    _add_start(commands)
    _add_stop(commands)
    _add_continue(commands)
    _add_delete(commands)
    add_round_command(commands).set_defaults(command=_round)
    _add_supervise(commands)
    for command in commands.choices.values():
        add_common_options(command)
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    return run_command(lambda: args.command(open_database(args.data, args.db), args))


Commands = argparse._SubParsersAction


def _add_list(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("list", help="the latest runs, a line each")
    parser.add_argument("--state", choices=[state.value for state in RunState], help="only runs of this state")
    parser.add_argument("--kind", metavar="KIND", help="only runs of this kind, such as 'reward train'")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="so many at most (default: 20)")
    parser.set_defaults(command=_list)


def _list(database: Database, args: argparse.Namespace) -> None:
    reap_lost(database, args.data)
    wanted = select(Run).order_by(Run.id.desc()).limit(args.limit)
    if args.state:
        wanted = wanted.where(Run.state == RunState(args.state))
    if args.kind:
        wanted = wanted.where(Run.kind == args.kind)
    with database.read() as session:
        for run in reversed(session.scalars(wanted).all()):
            why = why_waiting(session, args.data, run) or run.error or ""
            print("\t".join([str(run.id), run.state, run.kind, run.device or "-", _progress(args.data, run), why]))


def _progress(data: Path, run: Run) -> str:
    last = read_progress(data, run.id)
    if last is None:
        return "-"
    return f"{last.get('done', 0):,}" + (f" of {last['total']:,}" if last.get("total") else "")


def _add_show(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("show", help="all about a run: command, progress, settings, the end of its log")
    parser.add_argument("run_id", type=int, metavar="RUN")
    parser.add_argument("--lines", type=int, default=10, metavar="N", help="last lines of the log (default: 10)")
    parser.set_defaults(command=_show)


def _show(database: Database, args: argparse.Namespace) -> None:
    reap_lost(database, args.data)
    with database.read() as session:
        run = session.get(Run, args.run_id)
        if run is None:
            raise UserError(f"There is no run {args.run_id}.")
        why = why_waiting(session, args.data, run)
    print(f"run {run.id}: {run.kind}, {run.state}" + (f", {why}" if why else ""))
    if run.error:
        print(f"error: {run.error}")
    times = {"asked for": run.created_at, "started": run.started_at, "ended": run.ended_at}
    print(", ".join(f"{name} {_ago(time)}" for name, time in times.items() if time))
    print(f"code {run.code_version}; {run.device or 'no device'}; {run.host or 'no machine yet'}")
    print(f"command: {shlex.join(command_of(run))}")
    print(f"folder: {run_folder(args.data, run.id)}")
    if out := artifact_of(args.data, run):
        print(f"makes: {out}")
    if last := read_progress(args.data, run.id):
        values = {name: value for name, value in last.items() if name not in ("time", "done", "total")}
        print(f"progress: {_progress(args.data, run)} {json.dumps(values)}")
    print(f"settings: {json.dumps(run.config, sort_keys=True)}")
    for line in read_log_tail(args.data, run.id)[-args.lines :] if args.lines > 0 else []:
        print(f"| {line}")


def _ago(time: datetime) -> str:
    seconds = (utc_now() - time).total_seconds()
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"


def _add_start(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "start",
        help="start a command as a run that outlives this terminal, or queue it",
        description="python -m runs start --device cuda:0 -- reward train --preset tiny --dataset DIR",
    )
    parser.add_argument(
        "--device", help=f"wait for room on this device, here {', '.join(list_devices())} (default: start at once)"
    )
    parser.add_argument("--after", nargs="+", type=int, default=[], metavar="RUN", help="wait for these to finish")
    parser.add_argument("--processes", type=int, metavar="N", help="so many processes, by accelerate launch")
    parser.add_argument("--machines", type=int, metavar="N", help="on so many machines: the same command on each")
    parser.add_argument("--machine-rank", type=int, metavar="N", help="which of the machines this is, from 0")
    parser.add_argument("--main-process-ip", metavar="IP", help="address of machine 0")
    parser.add_argument("--main-process-port", type=int, metavar="PORT", help="a free port of machine 0")
    parser.add_argument(
        "--slurm",
        nargs="*",
        metavar="NAME=VALUE",
        help="as a job of Slurm, with submitit's settings: timeout_min=600 slurm_partition=gpu gpus_per_node=1",
    )
    parser.add_argument("words", nargs="+", metavar="-- COMMAND", help="what follows `python -m`")
    parser.set_defaults(command=_start)


def _start(database: Database, args: argparse.Namespace) -> None:
    if len(args.words) < 2:
        raise UserError("Give a package and its command, such as: python -m runs start -- annotate measure")
    names = ("processes", "machines", "machine_rank", "main_process_ip", "main_process_port")
    launcher = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if launcher:
        launcher = {"processes": 1, "machines": 1, **launcher}
    if args.slurm is not None:
        launcher["slurm"] = dict(_parse_setting(setting) for setting in args.slurm)
    kind, arguments = " ".join(args.words[:2]), drop_common(args.words[2:])
    run_id = launch(
        database,
        args.data,
        kind,
        arguments,
        {},
        url=args.db,
        device=args.device,
        after=args.after,
        launcher=launcher,
    )
    _say_how_it_stands(database, args.data, [run_id])


def _parse_setting(setting: str) -> tuple[str, object]:
    name, equals, value = setting.partition("=")
    if not equals:
        raise UserError(f"--slurm {setting!r} is not NAME=VALUE.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _say_how_it_stands(database: Database, data: Path, run_ids: list[int]) -> None:
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


def _add_stop(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("stop", help="ask runs for a checkpoint and end them")
    parser.add_argument("run_ids", nargs="+", type=int, metavar="RUN")
    parser.add_argument("--grace", type=float, metavar="SECONDS", help="then kill (default: 60 for trainings, 10 else)")
    parser.add_argument("--machine-is-gone", action="store_true", help="call a run lost whose machine is no more")
    parser.set_defaults(command=_stop)


def _stop(database: Database, args: argparse.Namespace) -> None:
    reap_lost(database, args.data)
    for run_id in args.run_ids:
        if args.machine_is_gone:
            give_up(database, run_id)
        else:
            stop(database, run_id, args.grace)
        with database.read() as session:
            print(f"run {run_id} {session.get_one(Run, run_id).state}")


def _add_continue(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("continue", help="go on with runs that were stopped, failed or lost")
    parser.add_argument("run_ids", nargs="+", type=int, metavar="RUN")
    parser.set_defaults(command=_continue)


def _continue(database: Database, args: argparse.Namespace) -> None:
    reap_lost(database, args.data)
    for run_id in args.run_ids:
        continue_run(database, args.data, run_id, url=args.db)
    _say_how_it_stands(database, args.data, args.run_ids)


def _add_delete(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("delete", help="remove runs and their folders")
    parser.add_argument("run_ids", nargs="+", type=int, metavar="RUN")
    parser.add_argument("--also-out", action="store_true", help="and what they made, where nothing else refers to it")
    parser.set_defaults(command=_delete)


def _delete(database: Database, args: argparse.Namespace) -> None:
    reap_lost(database, args.data)
    for run_id in args.run_ids:
        freed = delete_run(database, args.data, run_id, also_out=args.also_out)
        print(f"run {run_id} deleted, {freed / 2**20:,.1f} MiB freed")


def _round(database: Database, args: argparse.Namespace) -> None:
    ids = run_round(database, args)
    if ids:
        _say_how_it_stands(database, args.data, ids)


def _add_supervise(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("supervise", help="start what is queued, as the app does, until Ctrl+C")
    parser.add_argument("--cpu-slots", type=int, default=1, metavar="N", help="runs on the CPU at a time (default: 1)")
    parser.set_defaults(command=_supervise)


def _supervise(database: Database, args: argparse.Namespace) -> None:
    if args.cpu_slots < 1:
        raise UserError(f"--cpu-slots is {args.cpu_slots}; give 1 or more.")
    print(f"starting what is queued for {', '.join(list_devices())}  (stop it with Ctrl+C; runs go on)", flush=True)
    try:
        supervise(database, args.data, args.db, args.cpu_slots)
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    sys.exit(main())

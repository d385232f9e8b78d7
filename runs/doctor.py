"""Look at this machine and at a data folder: what works, what is missing, what to do about it. Loads no torch."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import huggingface_hub.constants
import psutil
from alembic.script import ScriptDirectory
from packaging.requirements import Requirement
from sqlalchemy.exc import DatabaseError, OperationalError

from db.command import DATABASE_VARIABLE
from db.engine import alembic_config, default_url, is_known, make_engine, read_revision, show_url
from db.errors import UserError
from db.session import Database, check_writable
from licences.packages import parse_requirements
from runs.devices import CPU, CUDA_GIB, Card, list_cards, list_devices
from runs.finding import Finding
from runs.options import PACKAGES, Command, Place, list_commands
from runs.space import MIN_FREE_BYTES

ROOT = Path(__file__).resolve().parents[1]
MIN_PYTHON = (3, 11)
TRAINING_MARK = "# Measuring and training"
"""In requirements.txt: above it is what `make app` installs, below it what `make install` adds."""
INSTALL = "make install"
LITTLE_FREE_BYTES = 20 * 2**30
"""Less than this, and published weights or the checkpoints of a large training do not fit."""
CPU_GIB = 1.0
"""Presets that need less than this are made for a CPU."""
ANSWER_SECONDS = 5
TORCH_SECONDS = 120
GIB = 2**30


def find_all(place: Place, *, thorough: bool = False) -> list[Finding]:
    """All findings, a thing after the other.

    Args:
        thorough: also what takes seconds: load torch in a process of its own, ask the network, check the database.
    """
    cards, commands, faults = list_cards(), *load_commands()
    return [
        find_python(),
        *find_libraries(ROOT),
        find_torch(cards),
        *([find_loaded_torch(cards)] if thorough and read_version("torch") else []),
        *find_devices(cards),
        *find_presets(cards, commands),
        *find_in_data(place, commands, thorough=thorough),
        *([find_network()] if thorough else []),
        *faults,
    ]


def find_in_data(place: Place, commands: list[Command[Any]], *, thorough: bool) -> Iterator[Finding]:
    """The data folder's disk, the database, and what the commands look for in it."""
    try:
        place.data.exists()
    except OSError as error:  # its name is too long, or a folder above it may not be looked into
        seen = f"{place.data} cannot be looked at: {error.strerror}"
        yield Finding("fault", "data folder", seen, "name another with --data")
        return
    yield from find_disk(place.data)
    yield find_database(place)
    if thorough:
        yield from find_inside(place)
    for command in commands:
        if command.check:
            yield from command.check(place)


def load_commands() -> tuple[list[Command[Any]], list[Finding]]:
    """(the commands of all packages, a fault of each package that cannot be loaded)."""
    commands: list[Command[Any]] = []
    faults = []
    for package in PACKAGES:
        try:
            commands += list_commands(package)
        except ImportError as error:
            todo = f"{INSTALL}, or: pip install -r requirements.txt -c constraints.txt"
            faults.append(Finding("fault", f"python -m {package}", f"cannot be loaded: {error}", todo))
    return commands, faults


def find_python() -> Finding:
    """Which Python this is, and whether it is new enough."""
    seen = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info >= MIN_PYTHON:
        return Finding("ok", "Python", seen)
    return Finding("fault", "Python", seen, f"make PYTHON=python3.11 app: {'.'.join(map(str, MIN_PYTHON))} is needed")


def read_version(package: str) -> str | None:
    """The version of an installed package; None of one that is not here."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def find_libraries(root: Path) -> Iterator[Finding]:
    """Whether the libraries that requirements.txt names are here, new enough, and as tested (constraints.txt)."""
    app, mark, training = (root / "requirements.txt").read_text(encoding="utf-8").partition(TRAINING_MARK)
    pinned = read_requirements((root / "constraints.txt").read_text(encoding="utf-8"))
    tested = {one.name.lower(): one.specifier for one in pinned}
    for name, text, todo in (
        ("libraries of the app", app, "make app, or: pip install -r requirements.txt -c constraints.txt"),
        ("libraries of training", f"{mark}{training}", INSTALL),
    ):
        wanted = read_requirements(text)
        found = {one.name: read_version(one.name) for one in wanted}
        old = [
            f"{one.name} {found[one.name]} (needed: {one.specifier})"
            for one in wanted
            if (has := found[one.name]) and not one.specifier.contains(has, prereleases=True)
        ]
        missing = [one.name for one in wanted if not found[one.name]]
        others = [
            f"{library} {has} (tested: {str(pin).removeprefix('==')})"
            for library, has in found.items()
            if has and (pin := tested.get(library.lower())) is not None and not pin.contains(has, prereleases=True)
        ]
        if old:
            yield Finding("fault", name, f"not of the versions needed: {', '.join(old)}", todo)
        if missing:
            yield Finding("fault" if text is app else "care", name, f"missing: {', '.join(missing)}", todo)
        if others:
            seen = f"{len(others)} of {len(wanted)} of another version than tested: {', '.join(others)}"
            yield Finding("note", name, seen, f"if something fails: {todo}")
        if not (old or missing or others):
            yield Finding("ok", name, f"{len(wanted)}, of the versions needed")


def read_requirements(text: str) -> list[Requirement]:
    """The requirements of a file's lines; comments, and what is for other machines, are left out."""
    return [one for one in parse_requirements(text) if one.marker is None or one.marker.evaluate()]


def find_torch(cards: list[Card]) -> Finding:
    """Which torch is installed, told from its files."""
    installed = read_version("torch")
    if not installed:
        why = "measuring, restoring and training need it; judging, ranking and export do not"
        return Finding("care", "torch", "not installed", f"{INSTALL}: {why}")
    cuda = read_cuda(installed)
    built = f"for CUDA {cuda}" if cuda else "for CPUs alone"
    if cards and not cuda:
        todo = "pip install --force-reinstall torch torchvision, from the index that https://pytorch.org names"
        return Finding("care", "torch", f"{installed}, built {built}: it cannot use the GPU", todo)
    return Finding("ok", "torch", f"{installed}, built {built}")


def read_cuda(installed: str) -> str | None:
    """The version of CUDA that torch is built for; None for CPUs alone."""
    spec = importlib.util.find_spec("torch")  # of a top-level package: this imports nothing
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / "version.py"
        if file.is_file() and (found := re.search(r"^cuda\b.*=\s*'(.+)'", file.read_text("utf-8"), re.MULTILINE)):
            return found[1]
    return found[1] if (found := re.search(r"\+cu(\d+)", installed)) else None


def find_loaded_torch(cards: list[Card]) -> Finding:
    """Whether torch can be loaded, and finds the GPUs; asked in a process of its own."""
    program = "import torch; print(torch.cuda.device_count())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("fault", "torch at work", f"not within {TORCH_SECONDS} seconds", "see what keeps the disk busy")
    if done.returncode:
        said = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        return Finding("fault", "torch at work", said, f"remove it (pip uninstall torch), then {INSTALL}")
    count = int(done.stdout.split()[-1])
    if count < len(cards) and os.environ.get("CUDA_VISIBLE_DEVICES") is None:
        seen = f"it finds {count} of {len(cards)} GPUs"
        return Finding("fault", "torch at work", seen, "update the NVIDIA driver, or install a torch for an older CUDA")
    return Finding("ok", "torch at work", f"it can be loaded, and finds {count or 'no'} GPU{'s' if count > 1 else ''}")


def find_devices(cards: list[Card]) -> Iterator[Finding]:
    """The GPUs that runs may use and the CPU, with their memory."""
    known = {name: card for card in cards for name in card.names}
    for device in list_devices():
        if device == CPU:
            memory = psutil.virtual_memory()
            seen = f"{os.cpu_count()} cores, {memory.total / GIB:.0f} GiB of memory, {memory.available / GIB:.0f} free"
            yield Finding("ok", CPU, seen)
        elif device in known:
            card = known[device]
            seen = f"{card.name}, {card.total_gib:.1f} GiB, {card.free_gib:.1f} free; driver {card.driver}"
            yield Finding("ok", device, seen)
        else:
            todo = "see what nvidia-smi says, and CUDA_VISIBLE_DEVICES"
            yield Finding("care", device, "nvidia-smi does not list it; its memory is unknown", todo)
    if not cards and list_devices() == [CPU]:
        yield Finding("note", "GPU", "none here", "the tiny presets are for the CPU")


def find_presets(cards: list[Card], commands: list[Command[Any]]) -> Iterator[Finding]:
    """Which presets of the trainings fit which device, by what `--memory` counts for each."""
    needs = {
        f"{command.name} --preset {preset}": gib
        for command in commands
        if command.presets
        for preset, gib in sorted(command.presets.memory_gib.items(), key=lambda item: item[1])
    }
    known = {name: card.total_gib for card in cards for name in card.names}
    for device in list_devices():
        room = CPU_GIB + CUDA_GIB if device == CPU else known.get(device)
        if room is not None and needs:
            fit = {what: gib for what, gib in needs.items() if gib + CUDA_GIB <= room}
            rest = {what: gib for what, gib in needs.items() if what not in fit}
            name = f"presets for {device}"
            yield Finding("ok", name, say_needs(fit) or "none", f"too large here: {say_needs(rest)}" if rest else "")


def say_needs(needs: dict[str, float]) -> str:
    """'reward train --preset tiny (0.5 GiB)', with commas between."""
    return ", ".join(f"{what} ({gib:.1f} GiB)" for what, gib in needs.items())


def find_disk(data: Path) -> Iterator[Finding]:
    """Whether the data folder is there, can be written, and its disk has room."""
    there = next(path for path in (data, *data.absolute().parents) if path.exists())
    name = "data folder"
    if there != data:
        yield Finding("note", name, f"{data} is not there yet", "it is made by the first command or start of the app")
    elif not os.access(data, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("fault", name, f"{data} cannot be written", "make it writable, or name another with --data")
    else:
        yield Finding("ok", name, str(data.resolve()))
    free = shutil.disk_usage(there).free
    seen = f"{free / GIB:,.1f} GiB free at {there.resolve()}"
    if free < MIN_FREE_BYTES:
        yield Finding("fault", "disk", seen, f"free some: no run starts with less than {MIN_FREE_BYTES / GIB:g} GiB")
    elif free < LITTLE_FREE_BYTES:
        yield Finding("care", "disk", seen, "free some before you download weights (5 GB each) or train at full size")
    else:
        yield Finding("ok", "disk", seen)


def find_database(place: Place) -> Finding:
    """Which database it is, whether it answers and is of this version; nothing is made or migrated."""
    name = "database"
    if place.db is None and not (place.data / "facereward.db").exists():
        return Finding("note", name, "SQLite, none in the data folder yet", "the first command makes it")
    try:
        engine = make_engine(place.db or default_url(place.data))
    except UserError as error:
        return Finding("fault", name, str(error), f"see --db and {DATABASE_VARIABLE}")
    kind = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}.get(engine.dialect.name, engine.dialect.name)
    shown = f"{kind}, {show_url(engine.url)}"
    try:
        with engine.connect() as connection:
            revision = read_revision(connection)
    except OperationalError as error:
        seen = f"{shown} cannot be opened: {str(error.orig).partition(chr(10))[0]}"
        return Finding("fault", name, seen, "see that its server runs and takes you in, or that the file can be read")
    except DatabaseError as error:
        seen = f"{shown} is damaged, or not ours: {str(error.orig).partition(chr(10))[0]}"
        return Finding("fault", name, seen, "python -m db restore BACKUP, or name another with --data or --db")
    finally:
        engine.dispose()
    if revision is None:
        return Finding("note", name, f"{shown}, empty", "the first command makes its tables")
    if not is_known(revision):
        seen = f"{shown}, of a newer version of FaceReward ({revision})"
        return Finding("fault", name, seen, "update FaceReward, or name another with --data or --db")
    if revision != ScriptDirectory.from_config(alembic_config()).get_current_head():
        seen = f"{shown}, of an older version ({revision})"
        return Finding("note", name, seen, "the next command brings it to this one, and keeps a backup of it")
    return Finding("ok", name, f"{shown}, of this version ({revision})")


def find_inside(place: Place) -> Iterator[Finding]:
    """Whether the database can be written, and a SQLite file is whole: every page of it is read."""
    file = place.data / "facereward.db"
    if place.db is None and not file.exists():
        return
    engine = make_engine(place.db or default_url(place.data))
    try:
        if engine.dialect.name == "sqlite":
            with closing(sqlite3.connect(f"file:{quote(str(engine.url.database))}?mode=ro", uri=True)) as connection:
                said = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
            if said != "ok":
                todo = "stop the app, keep a copy of the file, then: python -m db restore BACKUP"
                yield Finding("fault", "database whole", said.replace("\n", " "), todo)
                return
        with engine.connect() as connection:
            migrated = read_revision(connection) == ScriptDirectory.from_config(alembic_config()).get_current_head()
        if migrated:
            check_writable(Database(engine), place.data.resolve())
            yield Finding("ok", "database whole", "every page was read; it and the data folder can be written")
    except UserError as error:
        yield Finding("fault", "database whole", str(error))
    except (DatabaseError, sqlite3.Error):
        return  # said by find_database
    finally:
        engine.dispose()


def find_network() -> Finding:
    """Whether the Hugging Face hub answers, or the mirror that HF_ENDPOINT names."""
    name, hub = "network", huggingface_hub.constants.ENDPOINT
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return Finding("note", name, "not asked, as HF_HUB_OFFLINE is set", "unset it to download weights")
    try:
        with urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=ANSWER_SECONDS):
            return Finding("ok", name, f"{hub} answers")
    except urllib.error.HTTPError:
        return Finding("ok", name, f"{hub} answers")
    except (OSError, ValueError) as error:
        why = str(getattr(error, "reason", error)) or type(error).__name__
        todo = "put weight files into DATA/weights by hand, or name a mirror: HF_ENDPOINT=https://…"
        return Finding("care", name, f"{hub} does not answer within {ANSWER_SECONDS} seconds: {why}", todo)

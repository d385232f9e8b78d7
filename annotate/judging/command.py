"""Make pairs, manage people, and set what is asked: `python -m annotate pair`, `people` and `project`."""

from __future__ import annotations

import getpass
import json
import sys
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from sqlalchemy.orm import Session

from annotate.ingest.equal_pixels import hash_candidates, set_aside_equal_pairs
from annotate.judging.discard import (
    describe_discard,
    describe_restore,
    disable_and_describe,
    discard_answers,
    list_people,
    restore_answers,
)
from annotate.judging.pairs import PairReport, make_pairs
from annotate.judging.people import (
    add_person,
    describe_ways,
    enable_person,
    end_sessions,
    find_doubles,
    get_person,
    make_link_token,
    read_lifetime,
    set_password,
)
from annotate.judging.tasks import TaskReport, make_tasks
from db.errors import UserError
from db.models import Role
from db.project import ProjectSettings, load_settings, save_settings
from db.session import Database, open_database
from metrics.rankings import MAX_SIZE, MIN_SIZE
from runs.options import Command, Flag, Options, Place
from runs.store import record


class PairOptions(Options):
    """Which candidates of a photo meet, and how many at once."""

    size: int | None = Field(
        None, ge=MIN_SIZE, le=MAX_SIZE, description="Images shown at once: 2, a pair, to 6 (default: the project's)"
    )
    per_source: int | None = Field(
        None, ge=1, description="Random pairs per photo (default: all); tasks (default: each image in one)"
    )
    against: Annotated[str | None, Flag(metavar="METHOD")] = Field(
        None, description="Only pairs and tasks with an image of this method (default: any)"
    )
    seed: int = Field(0, ge=0, description="Seed of the random choice")


def run_pair(options: PairOptions, place: Place) -> None:
    """Make pairs, or tasks of more, and say how many."""
    chosen = options.model_dump(exclude={"size"})
    with record(PAIR, options, place) as (database, run):
        pixels = hash_candidates(database, place.data)
        with database.write() as session:
            settings = load_settings(session)
            size = options.size or settings.task_size
            set_aside = len(set_aside_equal_pairs(session, pixels))
            report: PairReport | TaskReport
            if size == 2:
                report = make_pairs(session, settings, **chosen, pixels=pixels)
            else:
                report = make_tasks(session, settings, size, **chosen, pixels=pixels)
        run.write_result({"size": size, **vars(report), "set_aside": set_aside})
    print(
        (describe_pairs(report) if isinstance(report, PairReport) else describe_tasks(size, vars(report)))
        + (f"; {set_aside} that were there not asked any more" if set_aside else "")
        + describe_unshown(size, settings)
    )


def describe_pairs(report: PairReport) -> str:
    """What was made, in a sentence."""
    return (
        f"{report.added} pairs added, {report.existing} were there; {report.sources_with_pairs} sources have pairs, "
        f"{report.sources_without_pairs} have no two candidates to compare"
        + (f"; {report.identical} pairs of the same pixels left out" if report.identical else "")
    )


def describe_tasks(size: int, report: Mapping[str, int]) -> str:
    """What was made, in a sentence.

    Args:
        report: the values of a `TaskReport`.
    """
    return (
        f"{report['added']:,} tasks of {size} added, {report['existing']:,} were there; "
        f"{report['sources_with_tasks']:,} photos have tasks, {report['sources_without_tasks']:,} have no three "
        "different restored images to compare"
        + (f"; {report['smaller']:,} have fewer than {size}, all in one task" if report["smaller"] else "")
    )


def describe_unshown(size: int, settings: ProjectSettings) -> str:
    """A sentence where the project shows the other kind than was just made; else ''."""
    if (size == 2) is (settings.task_size == 2):
        return ""
    shows = "pairs" if settings.task_size == 2 else "tasks of more than two"
    return f". The project shows {shows}: `annotate project set task_size={size}` changes it"


class PeopleOptions(Options):
    """Which change to which person."""

    action: Annotated[
        Literal["add", "list", "link", "password", "sign-out", "disable", "enable", "discard", "restore"],
        Flag(positional=True),
    ] = Field(description="What to do")
    name: Annotated[str | None, Flag(positional=True, metavar="NAME")] = Field(
        None, description="The person; not for list"
    )
    role: Role = Field(Role.annotator, description="Role of a new person")
    simulated: bool = Field(False, description="The new annotator is a program")
    discard: bool = Field(False, description="With disable: discard their answers too")
    base_url: Annotated[str, Flag(metavar="URL")] = Field(
        "http://127.0.0.1:7860", description="The server's address as that person reaches it, put before the link"
    )
    expires: Annotated[str, Flag(metavar="TIME")] = Field(
        "", description="When a link expires: 30m, 12h, 7d, 2w (default: never)"
    )
    once: bool = Field(False, description="The link is gone once somebody has entered by it")


def run_people(options: PeopleOptions, place: Place) -> None:
    """One change to the people, or the list of them. A password is asked for, or read from standard input."""
    action, name = options.action, options.name
    if (name is None) != (action == "list"):
        raise UserError("people list takes no name." if name else f"people {action} needs a name.")
    if action != "link" and (options.once or options.expires):
        raise UserError(f"--once and --expires are of people link, not of people {action}.")
    if action == "list":
        print_people(open_database(place.data, place.db))
        return
    if options.discard and action != "disable":
        raise UserError(f"--discard goes with disable; people discard {name} takes the answers out alone.")
    lifetime = read_lifetime(options.expires)
    password = read_password() if action == "password" else ""
    with open_database(place.data, place.db).write() as session:
        done = change_person(session, options, password, lifetime)
    print(done)


def change_person(session: Session, options: PeopleOptions, password: str, lifetime: timedelta | None) -> str:
    """Change one person; returns what to say of it."""
    name = options.name or ""
    if options.action == "add":
        add_person(session, name, options.role, simulated=options.simulated)
        return f"{name} added as {options.role.value}"
    if options.action == "link":
        token = make_link_token(get_person(session, name), lifetime, once=options.once)
        return f"{options.base_url.rstrip('/')}/enter/{token}"
    if options.action == "password":
        set_password(get_person(session, name), password)
        return "password set"
    if options.action == "sign-out":
        end_sessions(get_person(session, name))
        return f"{name} signed out everywhere"
    if options.action == "enable":
        return f"{enable_person(session, name).name} enabled"
    if options.action == "restore":
        return describe_restore(name, restore_answers(session, name))
    if options.action == "discard":
        return describe_discard(name, discard_answers(session, name))
    if options.discard:
        disable_and_describe(session, name, "")
        return f"{name} disabled. {describe_discard(name, discard_answers(session, name))}"
    return disable_and_describe(session, name, f"people discard {name}")


def read_password() -> str:
    """A password typed twice unseen, or the first line of standard input; never an option, which others could see."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise UserError("The two passwords differ; nothing was changed.")
    return password


def print_people(database: Database) -> None:
    """A line a person: name, role, live judgments, ways to sign in, state; separated by tabs."""
    with database.read() as session:
        for person, judgments, discarded, _ in list_people(session):
            ways = describe_ways(person)
            state = "disabled" if person.disabled_at else "simulated" if person.simulated else "active"
            signs_in = " and ".join(ways) or "no password or link"
            answers = f"{judgments or 0} judgments" + (f" ({discarded} discarded)" if discarded else "")
            print("\t".join([person.name, person.role.value, answers, signs_in, state]))
        for line in find_doubles(session):
            print(line, file=sys.stderr)


class ProjectOptions(Options):
    """Which settings to change."""

    action: Annotated[Literal["show", "set"], Flag(positional=True)] = Field(description="What to do")
    changes: Annotated[list[str], Flag(positional=True, metavar="FIELD=VALUE")] = Field(
        [], description="JSON, plain text, or words between commas"
    )
    file: Annotated[Path | None, Flag(name="from", metavar="FILE")] = Field(
        None, description="Settings from a TOML file, set first"
    )


def run_project(options: ProjectOptions, place: Place) -> None:
    """Change settings, or show all of them as TOML."""
    database = open_database(place.data, place.db)
    if (options.action == "show") == bool(options.changes or options.file):
        raise UserError("project show takes no settings; project set takes FIELD=VALUE or --from FILE.")
    if options.action == "set":
        changes = load_changes(options.file) if options.file else {}
        changes |= dict(parse_change(text) for text in options.changes)
        with database.write() as session:
            save_settings(session, changes)
        print(f"set: {', '.join(changes)}")
        return
    with database.read() as session:
        settings = load_settings(session).model_dump()
    for name, value in settings.items():
        # A JSON value of these types is a TOML value too.
        print(f"# {ProjectSettings.model_fields[name].description}\n{name} = {json.dumps(value, ensure_ascii=False)}")


def load_changes(file: Path) -> dict[str, object]:
    """Settings from a TOML file."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not TOML ({error}).") from error


def parse_change(text: str) -> tuple[str, object]:
    """FIELD=VALUE: text as it stands, words between commas for a list, else JSON."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{text!r} is not FIELD=VALUE.")
    kind = type(ProjectSettings().model_dump().get(name))
    if kind is str:
        return name, value
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value.split(",") if kind is list else value


PAIR = Command(
    "annotate pair",
    "make pairs, or tasks of three to six, of the restored images of each photo",
    PairOptions,
    run_pair,
    "With `--size` 3 to 6 a task has so many restored images of one photo, which a person sees at once: as many tasks "
    "as show every image once, or `--per-source` of them. Images are in about equally many tasks, and any two methods "
    "meet about equally often. What is there stays; a second call adds what is missing.",
)
PEOPLE = Command(
    "annotate people",
    "who judges: add, list, link, password, sign-out, disable, enable, discard, restore",
    PeopleOptions,
    run_people,
    "`disable` bars a person from signing in, `enable` lets them in again. `discard` takes their answers "
    "out of all that "
    "is made of judgments and gives their pairs back to the others; `restore` undoes it.",
)
PROJECT = Command(
    "annotate project",
    "show or set the project's settings",
    ProjectOptions,
    run_project,
    "`project show > project.toml`, edit it, `project set --from project.toml`; or `project set judgments_per_pair=2 "
    "reasons=eyes,skin`.",
)

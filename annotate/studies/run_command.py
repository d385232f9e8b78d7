"""Do what `annotate study` is asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.studies.cost import describe_cost, estimate_cost
from annotate.studies.create import (
    change_settings,
    count_wanted,
    create_study,
    draw_pairs,
    get_study,
    set_state,
)
from annotate.studies.export import export_tables, write_folder
from annotate.studies.forget import Forgotten, describe_forgotten, find_left, forget_all, forget_participant
from annotate.studies.money import (
    find_by_number,
    give_bonus,
    mark_paid,
    note_owed,
    show_amount,
    top_up,
    write_bonuses,
    write_ledger,
)
from annotate.studies.options import StudyOptions
from annotate.studies.panels import make_link
from annotate.studies.settings import (
    StudySettings,
    load_study_settings,
    read_settings_file,
    read_study_settings,
)
from annotate.studies.show import describe_lines, describe_pay_lines
from annotate.studies.watch import describe_study
from annotate.studies.way import count_places_taken, sweep_overdue
from db.errors import UserError
from db.session import Database
from db.studies import Study, StudyState
from runs.files import check_new_folder, write_text_whole

STATES = {"open": StudyState.open, "pause": StudyState.paused, "close": StudyState.closed}


def read_given(options: StudyOptions, before: StudySettings | None = None) -> StudySettings:
    """Settings from the file and the words, over those there are.

    Raises:
        UserError: not FIELD=VALUE, or a setting that cannot be.
    """
    settings = read_settings_file(options.file) if options.file else before
    given = {} if settings is None else settings.model_dump(mode="json")
    for word in options.words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word!r} is not FIELD=VALUE.")
        try:
            given[name] = json.loads(value)
        except ValueError:
            given[name] = value
    return read_study_settings(given)


def read_number(options: StudyOptions) -> int:
    """The participant's number that stands after the study's name.

    Raises:
        UserError: none, more than one, or no number.
    """
    if len(options.words) != 1 or not options.words[0].lstrip("#").isdecimal():
        raise UserError(f"study {options.action} NAME takes one participant by number, as study show has it.")
    return int(options.words[0].lstrip("#"))


def _create(database: Database, options: StudyOptions) -> None:
    settings = read_given(options)
    with database.write() as session:
        study = create_study(session, options.name or "", settings)
        wanted, _ = count_wanted(session, study)
        lines = describe_cost(estimate_cost(session, settings), settings, wanted)
    print(f"Study {study.name!r} made, a draft: `study open` lets people in.", *lines, sep="\n")
    print(f"Address for the panel: {make_link(settings.panel, options.base_url.rstrip('/'), study.link)}")


def _set(database: Database, options: StudyOptions) -> None:
    with database.write() as session:
        study = get_study(session, options.name or "")
        change_settings(session, study, read_given(options, load_study_settings(study)))
    print("set")


def _list(database: Database, _: StudyOptions) -> None:
    with database.read() as session:
        for study in session.scalars(select(Study).order_by(Study.id)):
            settings = load_study_settings(study)
            wanted, done = count_wanted(session, study)
            places = f"{count_places_taken(session, study)} of {settings.places} places taken"
            print("\t".join([study.name, study.state.value, settings.panel, places, f"{done} of {wanted} answers"]))


def _show(database: Database, options: StudyOptions) -> None:
    with database.write() as session:
        study = get_study(session, options.name or "")
        sweep_overdue(session, study)
        note_owed(session, study)
        described = describe_study(session, study)
    print("\n".join(describe_lines(described)))


def _set_state(database: Database, options: StudyOptions) -> None:
    with database.write() as session:
        study = get_study(session, options.name or "")
        set_state(session, study, STATES[options.action])
    print(f"{study.name}: {study.state.value}")


def _link(database: Database, options: StudyOptions) -> None:
    with database.read() as session:
        study = get_study(session, options.name or "")
        print(make_link(load_study_settings(study).panel, options.base_url.rstrip("/"), study.link))


def _cost(database: Database, options: StudyOptions) -> None:
    with database.read() as session:
        study = None if options.name is None else get_study(session, options.name)
        settings = read_given(options, None if study is None else load_study_settings(study))
        if study is None:
            wanted = sum(row["wanted"] for row in draw_pairs(session, settings, Random(0)))
        else:
            wanted, _ = count_wanted(session, study)
        print("\n".join(describe_cost(estimate_cost(session, settings), settings, wanted)))


def _pay(database: Database, options: StudyOptions) -> None:
    with database.write() as session:
        study = get_study(session, options.name or "")
        sweep_overdue(session, study)
        added = note_owed(session, study)
        lifted = top_up(session, study) if options.top_up else []
        paid = mark_paid(session, study) if options.paid else 0
        described = describe_study(session, study)
    print(f"{added} new lines in the ledger")
    if options.top_up:
        total = show_amount(sum(rate.top_up_cents for rate in lifted))
        print(f"{len(lifted)} participants lifted to the announced rate, {total} in all")
    if options.paid:
        print(f"{paid} lines marked as paid")
    print("\n".join(describe_pay_lines(described["pay"])))


def _bonus(database: Database, options: StudyOptions) -> None:
    if not options.words:
        _list_bonuses(database, options)
        return
    number = read_number(options)
    if options.cents is None or not options.reason or options.out:
        raise UserError("A bonus needs --cents and --reason, and takes no --out.")
    with database.write() as session:
        participant = find_by_number(session, get_study(session, options.name or ""), number)
        payment = give_bonus(session, participant, options.cents, options.reason)
        print(f"participant {number}: {show_amount(payment.cents)} {payment.currency}")


def _list_bonuses(database: Database, options: StudyOptions) -> None:
    if options.cents is not None or options.reason:
        raise UserError("--cents and --reason are of one participant: study bonus NAME NUMBER.")
    with database.read() as session:
        text, gone = write_bonuses(session, get_study(session, options.name or ""))
    _hand_out(text, options.out)
    if gone:
        numbers = ", ".join(map(str, gone))
        print(f"Left out, for the panel's id is gone or never was: participants {numbers}", file=sys.stderr)


def _ledger(database: Database, options: StudyOptions) -> None:
    with database.write() as session:
        study = get_study(session, options.name or "")
        note_owed(session, study)
        text = write_ledger(session, study)
    _hand_out(text, options.out)


def _hand_out(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="")
    else:
        write_text_whole(out, text)
        print(f"{out}: {text.count(chr(10)) - 1} lines")


def _export(database: Database, options: StudyOptions) -> None:
    if options.out is None:
        raise UserError("study export needs --out FOLDER.")
    check_new_folder(options.out)
    with database.read() as session:
        tables = export_tables(session, get_study(session, options.name or ""), panel_ids=options.panel_ids)
    for path in write_folder(options.out, tables, jsonl=options.jsonl, panel_ids=options.panel_ids):
        print(f"{path}: {len(tables[path.stem]):,} rows")


def _forget(database: Database, options: StudyOptions) -> None:
    if options.all_ids == bool(options.words) or (options.all_ids and options.answers):
        raise UserError("Forget one participant, study forget NAME NUMBER [--answers], or study forget NAME --all-ids.")
    number = None if options.all_ids else read_number(options)

    def forget(session: Session) -> Forgotten:
        study = get_study(session, options.name or "")
        if number is None:
            return forget_all(session, study)
        return forget_participant(session, find_by_number(session, study, number), answers=options.answers)

    with database.write() as session:
        forgotten = forget(session)
    print(describe_forgotten(forgotten, find_left(database, forgotten.ids)))


ACTS: dict[str, Callable[[Database, StudyOptions], None]] = {
    "create": _create,
    "set": _set,
    "list": _list,
    "show": _show,
    "open": _set_state,
    "pause": _set_state,
    "close": _set_state,
    "link": _link,
    "cost": _cost,
    "pay": _pay,
    "bonus": _bonus,
    "ledger": _ledger,
    "export": _export,
    "forget": _forget,
}

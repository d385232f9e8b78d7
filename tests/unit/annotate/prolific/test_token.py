"""Neither the token nor the webhooks' secret is kept or shown anywhere: rows, files, logs, output, errors."""

from __future__ import annotations

import logging
import traceback

import pytest

from annotate.prolific.calls import read_study
from annotate.prolific.client import send
from db.errors import UserError
from db.studies import Outcome
from tests.making import dump_rows
from tests.prolific_stand_in import Fault
from tests.unit.annotate.prolific.conftest import ADDRESS, Ours


def read_all(ours: Ours) -> str:
    """Every row and every file of the project."""
    files = [path.read_bytes().decode("latin-1") for path in sorted(ours.data.rglob("*")) if path.is_file()]
    return "\n".join([str(dump_rows(ours.database)), *files])


def test_the_token_is_nowhere(ours: Ours, waits, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    printed, errors = [], []
    ours.publish()
    submission, number = ours.arrive("p1", Outcome.done)
    ours.give_bonus(number, 50)
    ours.api.submit(submission, "DONE1")
    for action in ("status", "submissions", "approve", "bonus", "pause"):
        printed += [ours.run(action, dry_run=True), ours.run(action)]
    printed.append(ours.run("hook", workspace="w1", base_url=ADDRESS))
    faults = [Fault(401, body=f"Token {ours.api.token} is wrong".encode()), *[Fault()] * 4, *[Fault(429)] * 4]
    for fault_count in (1, 4, 4):
        ours.api.faults += faults[:fault_count]
        del faults[:fault_count]
        with pytest.raises(UserError) as refused:
            send(read_study("s1"))
        causes = traceback.TracebackException.from_exception(refused.value, capture_locals=False).format()
        errors += [repr(refused.value), *causes]
    with pytest.raises(UserError) as refused:
        send(read_study("unknown"))
    errors.append(repr(refused.value.__context__))
    assert ours.api.requests
    assert "HTTP Request" in caplog.text  # httpx tells of each request, so the search is of something
    for place, text in (("rows and files", read_all(ours)), ("log", caplog.text), ("output", "".join(printed))):
        assert ours.api.token not in text, place
    assert ours.api.token not in "".join(errors)


def test_the_secret_of_webhooks_is_printed_once_and_kept_nowhere(ours: Ours, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    printed = ours.run("hook", workspace="w1", base_url=ADDRESS, new_secret=True)
    assert printed.count(ours.api.secret) == 1
    assert ours.api.secret not in read_all(ours) + caplog.text


def test_the_ids_of_the_panel_stand_in_their_own_table_alone(ours: Ours):
    ours.publish()
    submission, number = ours.arrive("5f0c1d2e3b4a596877665544", Outcome.done)
    ours.give_bonus(number, 50)
    ours.api.submit(submission, "DONE1")
    for action in ("submissions", "approve", "bonus"):
        ours.run(action)
    rows = dump_rows(ours.database)
    assert submission in str(rows.pop("panel_entry"))
    assert submission not in str(rows)
    assert "5f0c1d2e3b4a596877665544" not in str(rows)

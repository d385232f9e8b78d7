"""The client says in one line what Prolific refuses, and sends nothing that pays a second time by itself."""

from __future__ import annotations

import pytest

from annotate.prolific.calls import approve, check_id, pay_bonuses, read_study, screen_out, set_up_bonuses
from annotate.prolific.client import UnansweredError, read_address, read_all_submissions, send
from db.errors import UserError
from tests.prolific_stand_in import Fault, ProlificStandIn

DROPPED = Fault()
STUDY = {"external_study_url": "https://x", "completion_codes": [], "reward": 150, "status": "ACTIVE", "id": "s1"}


@pytest.mark.parametrize("token", ["", "two words", "töken"])
def test_a_token_that_is_none_is_refused_before_anything_is_sent(api, monkeypatch, token):
    monkeypatch.setenv("PROLIFIC_TOKEN", token)
    with pytest.raises(UserError, match="PROLIFIC_TOKEN"):
        send(read_study("s1"))
    assert api.requests == []


@pytest.mark.parametrize("address", ["http://api.prolific.com/", "ftp://x/", "https://me:pw@host/", "nonsense"])
def test_the_token_goes_to_https_alone(monkeypatch, address):
    monkeypatch.setenv("PROLIFIC_API", address)
    with pytest.raises(UserError, match="PROLIFIC_API"):
        read_address()


def test_without_another_address_it_is_prolifics(monkeypatch):
    monkeypatch.delenv("PROLIFIC_API", raising=False)
    assert read_address() == "https://api.prolific.com/api/v1/"


def test_what_prolific_says_is_in_one_line(api: ProlificStandIn):
    with pytest.raises(UserError) as refused:
        send(read_study("s1"))
    assert str(refused.value) == "Prolific refuses GET studies/s1/ with 404: Not found: Study not found"
    api.faults.append(Fault(400, body=b'{"error": {"title": "Bad", "detail": {"reward": ["too\\n low", "x"]}}}'))
    with pytest.raises(UserError, match=r"with 400: Bad: reward: too low, x$"):
        send(read_study("s1"))
    api.faults.append(Fault(400, body=f"your Token {api.token} is {'y' * 999}".encode()))
    with pytest.raises(UserError) as refused:
        send(read_study("s1"))
    assert api.token not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_wrong_token_is_said_and_not_shown(api, monkeypatch):
    monkeypatch.setenv("PROLIFIC_TOKEN", "wrong-token")
    with pytest.raises(UserError, match="401: Authentication failed: Invalid token") as refused:
        send(read_study("s1"))
    assert "wrong-token" not in repr(refused.value)


def test_too_many_requests_are_waited_out_as_long_as_prolific_says(api: ProlificStandIn, waits):
    api.bulks["b1"] = {"bonuses": []}
    api.faults += [Fault(429, {"Retry-After": "7"}), Fault(429)]
    send(pay_bonuses("b1"))
    assert waits == [7.0, 4.0]
    assert len(api.requests) == 1  # the two refused ones were not carried out
    api.faults.append(Fault(429, {"Retry-After": "3600"}))
    with pytest.raises(UserError, match="in 3600 seconds"):
        send(pay_bonuses("b1"))


def test_too_many_requests_for_too_long_are_given_up(api: ProlificStandIn, waits):
    api.faults += [Fault(429)] * 4
    with pytest.raises(UserError, match="later"):
        send(read_study("s1"))
    assert len(waits) == 3


@pytest.mark.parametrize("fault", [DROPPED, Fault(502), Fault(503)])
def test_reading_is_asked_for_again(api: ProlificStandIn, waits, fault):
    api.studies["s1"] = STUDY
    api.faults += [fault, fault]
    assert send(read_study("s1")).text("status") == "ACTIVE"
    assert len(waits) == 2


@pytest.mark.parametrize("fault", [DROPPED, Fault(500), Fault(503), Fault(done=True)])
def test_what_pays_is_never_sent_again(api: ProlificStandIn, waits, fault):
    api.bulks["b1"] = {"bonuses": []}
    api.faults.append(fault)
    with pytest.raises(UnansweredError, match="may have been done or not"):
        send(pay_bonuses("b1"))
    assert waits == []
    assert len(api.requests) == int(fault.done)


def test_an_approval_which_prolific_ignores_the_second_time_is_sent_again(api: ProlificStandIn, waits):
    api.studies["s1"] = STUDY
    number = api.join("s1", "p1")["id"]
    api.submit(number, "?")
    api.faults.append(Fault(done=True))
    send(approve(number))
    assert (len(api.requests), api.submissions[number]["status"]) == (2, "APPROVED")


def test_a_server_that_is_away_is_said(api, monkeypatch, waits):
    monkeypatch.setenv("PROLIFIC_API", "http://127.0.0.1:9/")
    with pytest.raises(UserError, match=r"cannot be reached at http://127\.0\.0\.1:9/") as refused:
        send(pay_bonuses("b1"))
    assert not isinstance(refused.value, UnansweredError)
    assert len(waits) == 3


def test_a_redirect_is_not_followed_with_the_token(api: ProlificStandIn):
    api.faults.append(Fault(302, {"Location": f"{api.address}studies/elsewhere/"}))
    with pytest.raises(UserError, match="302"):
        send(read_study("s1"))
    assert api.requests == []


@pytest.mark.parametrize("limit", [2, 100])
def test_every_page_of_submissions_is_read(api: ProlificStandIn, limit):
    api.page_size_limit = limit
    api.studies["s1"] = STUDY
    joined = [api.join("s1", f"p{number}")["id"] for number in range(5)]
    assert [one["id"] for one in read_all_submissions("s1")] == joined
    assert len(api.requests) == (3 if limit == 2 else 1)


def test_amounts_are_written_as_prolific_reads_them():
    assert set_up_bonuses("s1", {"a": 425, "b": 7}).body == {"study_id": "s1", "csv_bonuses": "a,4.25\nb,0.07"}
    for cents in range(1, 5000):  # as the text that JSON has
        sent = (screen_out("s1", ["a"], cents).body or {})["bonus_per_submission"]
        assert round(float(repr(sent)) * 100) == cents
        assert len(repr(sent).partition(".")[2]) <= 2


@pytest.mark.parametrize("given", ["", "../users/me", "a b", "x?y", "a" * 129])
def test_only_an_id_stands_in_a_path(given):
    with pytest.raises(UserError, match="no id of Prolific"):
        check_id(given)

"""A study's whole life at Prolific, command by command; every cent is paid once."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import delete

from annotate.prolific.client import UnansweredError
from annotate.prolific.command import ProlificOptions, run_prolific
from db.errors import UserError
from db.studies import Outcome, PanelEntry, StudyState
from runs.options import Place
from tests.prolific_stand_in import Fault, ProlificStandIn
from tests.unit.annotate.prolific.conftest import ADDRESS, Ours, make_ours


def test_a_dry_run_shows_the_request_that_is_then_sent(ours: Ours, api: ProlificStandIn):
    shown = ours.run("create", base_url=ADDRESS, dry_run=True)
    assert (api.requests, ours.study().panel_study) == ([], None)
    head, _, rest = shown.partition("\n")
    body, end = json.JSONDecoder().raw_decode(rest)
    assert head == "POST studies/"
    assert rest[end:].strip() == (
        "when published: 50 × 1.50 + up to 20 × 0.14 screened out = 77.80 GBP, without Prolific's fee"
    )
    ours.run("create", base_url=ADDRESS)
    assert api.sent() == [("studies/", body)]
    assert ours.study().panel_study in api.studies


def test_a_study_goes_through_its_states_at_prolific(ours: Ours, api: ProlificStandIn):
    number = ours.publish()
    assert api.studies[number]["status"] == "ACTIVE"
    assert "PAUSED" in ours.run("pause")
    assert "ACTIVE" in ours.run("start")
    assert "places taken\t0\n" in ours.run("status")
    ours.run("close")
    assert api.studies[number]["status"] == "AWAITING REVIEW"
    moves = [body["action"] for path, body in api.sent() if path.endswith("/transition/")]
    assert moves == ["PUBLISH", "PAUSE", "START", "STOP"]


@pytest.mark.parametrize("action", ["pause", "start", "close", "publish"])
def test_a_move_that_prolifics_state_does_not_allow_is_not_sent(ours: Ours, api: ProlificStandIn, action):
    ours.publish()
    api.studies[ours.study().panel_study or ""]["status"] = "COMPLETED"
    before = len(api.sent())
    with pytest.raises(UserError, match="is COMPLETED at Prolific"):
        ours.run(action)
    assert len(api.sent()) == before


@pytest.mark.parametrize("action", ["publish", "pause", "start", "close"])
def test_a_dry_run_of_a_move_sends_nothing(ours: Ours, api: ProlificStandIn, action):
    ours.run("create", base_url=ADDRESS)
    before = len(api.requests)
    assert ours.run(action, dry_run=True).startswith(f"POST studies/{ours.study().panel_study}/transition/\n")
    assert len(api.requests) == before


def test_nothing_is_published_that_lets_nobody_in_or_pays_otherwise(ours: Ours, api: ProlificStandIn):
    with pytest.raises(UserError, match="not at Prolific yet"):
        ours.run("publish")
    ours.run("create", base_url=ADDRESS)
    with ours.database.write() as session:
        session.merge(ours.study()).state = StudyState.draft
    with pytest.raises(UserError, match="draft and lets nobody in"):
        ours.run("publish")
    with ours.database.write() as session:
        session.merge(ours.study()).state = StudyState.open
    api.studies[ours.study().panel_study or ""]["reward"] = 1500
    with pytest.raises(UserError, match="has reward 1500, the settings say 150"):
        ours.run("publish")
    assert [path for path, _ in api.sent()] == ["studies/"]


def test_a_study_is_made_once(ours: Ours, api: ProlificStandIn):
    ours.run("create", base_url=ADDRESS)
    with pytest.raises(UserError, match="at Prolific already"):
        ours.run("create", base_url=ADDRESS)
    assert len(api.studies) == 1


def test_a_draft_whose_answer_got_lost_can_be_taken(ours: Ours, api: ProlificStandIn):
    api.faults.append(Fault(done=True))
    with pytest.raises(UserError, match="may have been made or not"):
        ours.run("create", base_url=ADDRESS)
    (made,) = api.studies
    ours.run("create", use=made)
    assert ours.study().panel_study == made
    with pytest.raises(UserError, match="404"):
        ours.run("create", use="unknown")
    assert ours.study().panel_study == made


def test_submissions_are_listed_and_carried_over_without_webhooks(ours: Ours, api: ProlificStandIn):
    ours.publish()
    done, _ = ours.arrive("p1", Outcome.done)
    gone, _ = ours.arrive("p2")
    late, _ = ours.arrive("p3", submission=False)
    api.submit(done, "DONE1")
    api.end(gone, "RETURNED")
    api.end(late, "TIMED-OUT")
    api.join(ours.study().panel_study or "", "p4")
    shown = ours.run("submissions", dry_run=True)
    assert ours.participant(2).outcome is None
    assert "2\tRETURNED\ttask\t0\t\n" in shown
    shown = ours.run("submissions")
    assert [ours.participant(number).outcome for number in (1, 2, 3)] == [
        *(Outcome.done, Outcome.returned, Outcome.timed_out),
    ]
    assert shown == (
        "participant\tat Prolific\there\tanswers\tminutes\n-\tACTIVE\tnot here\t0\t\n"
        "1\tAWAITING REVIEW\tdone\t0\t12.5\n2\tRETURNED\treturned\t0\t\n3\tTIMED-OUT\ttimed_out\t0\t\n"
        "4 submissions: 1 AWAITING REVIEW, 1 RETURNED, 1 TIMED-OUT, 1 ACTIVE\n"
    )
    assert all(panel not in shown for panel in (done, gone, late, "p1", "p2", "p3", "p4"))


def test_a_state_that_is_new_is_shown_and_changes_nothing(ours: Ours, api: ProlificStandIn):
    ours.publish()
    submission, _ = ours.arrive("p1")
    api.end(submission, "ON HOLD")
    assert "1\tON HOLD\ttask\t0\t\n" in ours.run("submissions")
    assert ours.participant(1).outcome is None


def test_who_is_done_is_approved_and_nobody_else(ours: Ours, api: ProlificStandIn):
    ours.publish()
    people = {outcome: ours.arrive(outcome.value, outcome)[0] for outcome in (Outcome.done, Outcome.blocked)}
    working, _ = ours.arrive("p3", Outcome.done)
    api.submit(people[Outcome.done], "DONE1")
    api.submit(people[Outcome.blocked], "STOP1")
    shown = ours.run("approve", dry_run=True)
    assert f"POST submissions/{people[Outcome.done]}/transition/" in shown
    assert shown.endswith("would approve 1: 1.50 GBP, without Prolific's fee\n")
    assert api.paid_cents() == 0
    assert ours.run("approve") == "approved 1: 1.50 GBP, without Prolific's fee\n"
    assert ours.run("approve").startswith("approved 0")
    assert (api.paid_cents(), ours.paid()) == (150, [(1, "base", 150, True)])
    with pytest.raises(UserError, match="No submission of participant 3, 9 awaits review"):
        ours.run("approve", participants=[2, 3, 9])
    ours.run("approve", participants=[2])
    assert api.paid_cents() == 300
    assert api.submissions[working]["status"] == "ACTIVE"


def test_a_return_is_asked_for_by_number_and_with_a_reason(ours: Ours, api: ProlificStandIn):
    ours.publish()
    submission, _ = ours.arrive("p1")
    for given in ({"participants": [1]}, {"reason": "Didn't finish the study"}):
        with pytest.raises(UserError, match="needs --participants NUMBER … and --reason TEXT"):
            ours.run("return", **given)
    given = {"participants": [1], "reason": "Encountered technical problems"}
    assert "POST" in ours.run("return", dry_run=True, **given)
    assert api.submissions[submission]["return_requested"] is None
    ours.run("return", **given)
    assert api.submissions[submission]["return_requested"]
    asked = (f"submissions/{submission}/request-return/", {"request_return_reasons": [given["reason"]]})
    assert api.sent()[-1] == asked


def test_the_screened_out_who_are_still_there_are_paid_once(ours: Ours, api: ProlificStandIn):
    ours.publish()
    first, _ = ours.arrive("p1", Outcome.screened_out)
    second, _ = ours.arrive("p2", Outcome.screened_out)
    api.submit(second, "SCREEN1")  # came back with the code, which paid them
    shown = ours.run("screen-out", dry_run=True)
    assert '"bonus_per_submission": 0.14' in shown
    assert second not in shown
    assert (api.paid_cents(), ours.paid()) == (14, [])
    shown = ours.run("screen-out")
    assert shown.endswith("screen out: 1 submissions, 0.14 GBP, without Prolific's fee\n")
    assert ours.run("screen-out").endswith("0 submissions, 0.00 GBP, without Prolific's fee\n")
    assert (api.paid_cents(), api.submissions[first]["status"]) == (28, "SCREENED OUT")
    assert sorted(ours.paid()) == [(1, "screen_out", 14, True), (2, "screen_out", 14, True)]


@pytest.mark.parametrize("carried_out", [True, False])
def test_a_screen_out_without_an_answer_is_looked_up(ours: Ours, api: ProlificStandIn, carried_out):
    ours.publish()
    ours.arrive("p1", Outcome.screened_out)
    answer_list = Fault(200, body=json.dumps(api.answer("GET", "submissions/", _query(ours), None)[1]).encode())
    api.faults += [answer_list, Fault(done=carried_out)]
    with pytest.raises(UnansweredError):
        ours.run("screen-out")
    assert ours.paid() == [(1, "screen_out", 14, False)]
    if carried_out:
        ours.run("screen-out")
    else:
        with pytest.raises(UserError, match="--unpaid 'screen-out") as refused:
            ours.run("screen-out")
        reference = str(refused.value).partition(" was sent")[0]
        ours.run("screen-out", unpaid=reference)
    assert (api.paid_cents(), ours.paid()) == (14, [(1, "screen_out", 14, True)])


def _query(ours: Ours) -> dict[str, list[str]]:
    return {"study": [ours.study().panel_study or ""]}


@pytest.fixture
def bonuses(ours: Ours) -> tuple[str, str]:
    """Two who are done, one of them with two bonuses; their submissions."""
    ours.publish()
    first, second = (ours.arrive(person, Outcome.done)[0] for person in ("p1", "p2"))
    ours.give_bonus(1, 33, "care")
    ours.give_bonus(1, 67, "time")
    ours.give_bonus(2, 7, "care")
    return first, second


def test_bonuses_are_paid_to_the_cent_and_once(ours: Ours, api: ProlificStandIn, bonuses):
    first, second = bonuses
    shown = ours.run("bonus", dry_run=True)
    assert json.dumps(f"{first},1.00\n{second},0.07") in shown
    assert "POST bulk-bonus-payments/ID/pay/" in shown
    assert shown.endswith("would pay: 2 submissions, 1.07 GBP, without Prolific's fee\n")
    assert (api.bulks, api.paid_cents()) == ({}, 0)
    shown = ours.run("bonus")
    assert "paid 1.07 to 2 (bulk " in shown
    assert "1.43 with Prolific's fee" in shown
    assert "0 submissions" in ours.run("bonus")
    assert [api.submissions[one]["bonus_payments"] for one in bonuses] == [[100], [7]]
    assert all(paid for *_, paid in ours.paid())
    ours.give_bonus(1, 100, "again")
    ours.run("bonus")
    assert api.paid_cents() == 207


def test_more_than_a_bulk_takes_are_paid_in_several(ours: Ours, api: ProlificStandIn, bonuses, monkeypatch):
    monkeypatch.setattr("annotate.prolific.pay.MAX_BONUSES", 1)
    ours.run("bonus")
    assert (len(api.bulks), api.paid_cents()) == (2, 107)


@pytest.mark.parametrize("carried_out", [True, False])
def test_a_payment_without_an_answer_is_never_sent_again_by_itself(
    ours: Ours, api: ProlificStandIn, bonuses, carried_out
):
    api.faults += [Fault(201, body=_set_up(api, ours, bonuses)), Fault(done=carried_out)]
    with pytest.raises(UnansweredError):
        ours.run("bonus")
    assert not any(paid for *_, paid in ours.paid())
    ours.give_bonus(2, 5, "later")
    if carried_out:
        ours.run("bonus")
        assert api.submissions[bonuses[1]]["bonus_payments"] == [7, 5]
    else:
        with pytest.raises(UserError, match="Nothing was paid now"):
            ours.run("bonus")
        assert api.paid_cents() == 0
        assert "GET submissions/" in ours.run("bonus", dry_run=True)
        (bulk,) = api.bulks
        with pytest.raises(UserError, match="claimed as 'other'"):
            ours.run("bonus", unpaid="other")
        ours.run("bonus", unpaid=bulk)
    assert api.paid_cents() == 112
    assert all(paid for *_, paid in ours.paid())


def _set_up(api: ProlificStandIn, ours: Ours, bonuses: tuple[str, str]) -> bytes:
    """The answer to the request that sets the bonuses up, which the stand-in carries out now."""
    body = {"study_id": ours.study().panel_study, "csv_bonuses": f"{bonuses[0]},1.00\n{bonuses[1]},0.07"}
    return json.dumps(api.answer("POST", "submissions/bonus-payments/", {}, body)[1]).encode()


def test_a_refused_payment_can_be_sent_again(ours: Ours, api: ProlificStandIn, bonuses):
    api.faults += [Fault(201, body=_set_up(api, ours, bonuses)), Fault(400, body=b'{"error": {"title": "No money"}}')]
    with pytest.raises(UserError, match="No money"):
        ours.run("bonus")
    ours.run("bonus")
    assert api.paid_cents() == 107


def test_a_sum_that_prolific_reads_otherwise_is_not_paid(ours: Ours, api: ProlificStandIn, bonuses):
    api.faults.append(Fault(201, body=b'{"id": "b1", "amount": 10700}'))
    with pytest.raises(UserError, match="reads 10700 hundredths where the ledger has 107"):
        ours.run("bonus")
    assert api.paid_cents() == 0
    ours.run("bonus")
    assert api.paid_cents() == 107


def test_who_has_no_id_at_prolific_any_more_is_counted(ours: Ours, api: ProlificStandIn, bonuses):
    with ours.database.write() as session:
        session.execute(delete(PanelEntry).where(PanelEntry.panel_person == "p2"))
    assert ours.run("bonus").endswith("1 lines of participants without an id at Prolific, who cannot be paid there\n")
    assert api.paid_cents() == 100


def test_webhooks_are_subscribed_to_once(ours: Ours, api: ProlificStandIn):
    given = {"workspace": "w1", "base_url": ADDRESS}
    shown = ours.run("hook", dry_run=True, new_secret=True, **given)
    assert api.requests == []
    assert shown.count("POST hooks/subscriptions/\n") == 2
    shown = ours.run("hook", new_secret=True, **given)
    assert f"PROLIFIC_WEBHOOK_SECRET={api.secret}\n" in shown
    assert sorted(one["event_type"] for one in api.subscriptions.values()) == [
        *("study.status.change", "submission.status.change"),
    ]
    assert all(one["is_enabled"] for one in api.subscriptions.values())
    assert {one["target_url"] for one in api.subscriptions.values()} == {f"{ADDRESS}/hooks/prolific"}
    assert ours.run("hook", **given).count("subscribed already") == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"base_url": ADDRESS}, "--workspace ID"),
        ({"workspace": "w1", "base_url": "http://x"}, "https addresses alone"),
        ({"workspace": "w1"}, "https addresses alone"),
    ],
)
def test_a_webhook_needs_a_workspace_and_an_https_address(ours: Ours, given, said):
    with pytest.raises(UserError, match=said):
        ours.run("hook", **given)


def test_without_a_secret_nothing_is_subscribed_to(ours: Ours, api: ProlificStandIn, monkeypatch):
    monkeypatch.delenv("PROLIFIC_WEBHOOK_SECRET")
    with pytest.raises(UserError, match="--new-secret"):
        ours.run("hook", workspace="w1", base_url=ADDRESS)
    assert api.requests == []


@pytest.mark.parametrize(
    ("action", "option", "value"),
    [
        ("publish", "base_url", ADDRESS),
        ("bonus", "participants", [1]),
        ("approve", "reason", "x"),
        ("status", "use", "a"),
    ],
)
def test_an_option_of_another_action_is_refused(ours: Ours, action, option, value):
    with pytest.raises(UserError, match=f"^--{option.replace('_', '-')} is of prolific "):
        ours.run(action, **{option: value})


def test_an_unknown_study_is_named(database, data):
    make_ours(ProlificStandIn(), database, data, str)
    with pytest.raises(UserError, match=r"no study called 'other'\. Known: faces"):
        run_prolific(ProlificOptions(action="status", name="other"), Place(data))
    with pytest.raises(UserError, match="needs the name"):
        run_prolific(ProlificOptions(action="status"), Place(data))

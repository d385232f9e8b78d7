"""Prolific's body of a study, its completion codes, and its states are those of the study's own settings."""

from __future__ import annotations

import pytest

from annotate.prolific.calls import create_study
from annotate.prolific.client import send
from annotate.prolific.study import ENDS, describe_cost, most_paid_cents, normalise_state, write_study
from annotate.studies.settings import StudySettings
from db.errors import UserError
from db.studies import Outcome, Study
from tests.unit.annotate.prolific.conftest import ADDRESS, SETTINGS


def make_study(**changes) -> Study:
    settings = StudySettings.model_validate(SETTINGS | changes)
    return Study(name="faces", link="l1nk", settings=settings.model_dump(mode="json"))


def codes_of(body) -> dict[str, list[object]]:
    return {code["code"]: [code["code_type"], *code["actions"]] for code in body["completion_codes"]}


def test_the_body_is_one_that_prolific_takes(api):
    body = write_study(make_study(), ADDRESS + "/")
    assert send(create_study(body)).text("status") == "UNPUBLISHED"
    assert body["external_study_url"] == (
        "https://faces.example.org/study/l1nk?"
        "PROLIFIC_PID={{%PROLIFIC_PID%}}&STUDY_ID={{%STUDY_ID%}}&SESSION_ID={{%SESSION_ID%}}"
    )
    sizes = ("reward", "total_available_places", "estimated_completion_time", "maximum_allowed_time")
    assert [body[name] for name in sizes] == [150, 50, 10, 45]
    assert (body["device_compatibility"], body["filters"]) == (["desktop"], [])
    assert "project" not in body
    assert "eligibility_requirements" not in body
    assert "about 9.5 minutes" in body["description"]


def test_what_is_only_prolifics_is_taken_over():
    filters = [{"filter_id": "age", "selected_range": {"lower": 18, "upper": 60}}]
    more = {"description": "<b>Faces</b>", "devices": ["desktop", "tablet"], "filters": filters, "project": "p1"}
    body = write_study(make_study(prolific=more), ADDRESS)
    assert {"description", "filters", "project"} & body.keys() == {"description", "filters", "project"}
    assert (body["description"], body["filters"], body["project"]) == ("<b>Faces</b>", filters, "p1")
    assert body["device_compatibility"] == ["desktop", "tablet"]


def test_each_ending_has_its_action():
    assert codes_of(write_study(make_study(), ADDRESS)) == {
        "DONE1": ["COMPLETED", {"action": "MANUALLY_REVIEW"}],
        "SCREEN1": [
            "FIXED_SCREENOUT",
            {"action": "FIXED_SCREEN_OUT_PAYMENT", "fixed_screen_out_reward": 14, "slots": 20},
        ],
        "NOCONS1": ["NO_CONSENT", {"action": "REQUEST_RETURN", "return_reason": "Withdrew consent"}],
        "FULL1": ["OTHER", {"action": "REQUEST_RETURN", "return_reason": "All places of this study are taken."}],
        "STOP1": ["FAILED_ATTENTION_CHECK", {"action": "MANUALLY_REVIEW"}],
    }


def test_without_pay_for_the_screened_out_they_are_asked_to_return():
    codes = codes_of(write_study(make_study(screen_out_cents=0), ADDRESS))
    assert codes["SCREEN1"][0] == "INCOMPATIBLE_DEVICE"
    assert codes["SCREEN1"][1]["action"] == "REQUEST_RETURN"


def test_who_is_done_is_paid_at_once_where_that_is_wished():
    codes = codes_of(write_study(make_study(prolific={"approve": "at once"}), ADDRESS))
    assert codes["DONE1"][1] == {"action": "AUTOMATICALLY_APPROVE"}


@pytest.mark.parametrize(
    ("changes", "address", "said"),
    [
        ({"panel": "plain"}, ADDRESS, "set panel to 'prolific'"),
        ({}, "http://127.0.0.1:7860", "--base-url https"),
        ({}, "https://localhost:7860", "--base-url https"),
        ({"pay_cents": 0, "screen_out_cents": 0}, ADDRESS, "set pay_cents"),
        ({"screen_out_cents": 9}, ADDRESS, "takes 0.10 or more"),
        ({"screen_out_cents": 13, "currency": "USD"}, ADDRESS, "takes 0.14 or more"),
        ({"screen_out_cents": 150}, ADDRESS, "less than the 1.50"),
        ({"endings": {"done": {"code": "A"}, "no_consent": {"code": "A"}}}, ADDRESS, "one code for two endings"),
        ({"endings": {"done": {"address": "https://x.org"}}}, ADDRESS, "endings.done.code"),
    ],
)
def test_what_prolific_would_refuse_is_refused_in_words(changes, address, said):
    with pytest.raises(UserError, match=said):
        write_study(make_study(**changes), address)


def test_the_cost_is_all_places_and_all_paid_screen_outs():
    settings = StudySettings.model_validate(SETTINGS)
    assert most_paid_cents(settings) == 50 * 150 + 20 * 14
    said = "50 × 1.50 + up to 20 × 0.14 screened out = 77.80 GBP, without Prolific's fee"
    assert describe_cost(settings) == said
    assert most_paid_cents(settings.model_copy(update={"screen_out_cents": 0})) == 7500


def test_states_are_known_in_every_spelling():
    assert {normalise_state(given) for given in ("TIMED-OUT", "timed_out", "Timed out")} == {"TIMED-OUT"}
    assert normalise_state("SCREENED_OUT") == "SCREENED OUT"
    assert normalise_state("AWAITING_REVIEW") == "AWAITING REVIEW"
    assert normalise_state("SOMETHING NEW") is None
    assert set(ENDS.values()) == {None, Outcome.returned, Outcome.timed_out, Outcome.screened_out}

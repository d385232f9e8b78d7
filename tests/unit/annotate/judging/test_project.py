"""Settings: checked, stored whole, fixed where the split depends on them, and followed by the pairs."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from annotate.judging.pairs import make_pairs
from db.errors import UserError
from db.models import Pair, Question, Split
from db.project import ProjectSettings, load_settings, question_key, save_settings, store_question
from tests.making import add_candidates


def test_defaults_before_anything_is_stored(session):
    settings = load_settings(session)
    assert settings == ProjectSettings()
    assert (settings.judgments_per_pair, settings.judgments_per_test_pair, settings.repeat_share) == (1, 3, 0.05)


def test_changes_are_stored_and_the_rest_stays(session):
    save_settings(session, {"title": "Faces", "reasons": ["eyes"]})
    save_settings(session, {"repeat_share": 0.1})
    stored = load_settings(session)
    assert (stored.title, stored.reasons, stored.repeat_share) == ("Faces", ["eyes"], 0.1)
    assert stored.question == ProjectSettings().question


@pytest.mark.parametrize(
    "change",
    [
        {"title": "Other faces"},
        {"question": "Which is sharper?"},
        {"guidelines": ""},
        {"reasons": ["eyes", "identity"]},
        {"skip_reasons": []},
    ],
)
def test_what_people_read_has_a_version_that_comes_back_with_the_words(session, change):
    before = save_settings(session, {"reasons": ["identity", "eyes"]})
    first = store_question(session, before)
    assert store_question(session, save_settings(session, {"lease_seconds": 60, "order": "mixed"})) is first
    second = store_question(session, save_settings(session, change))
    assert (second.id, second.key) == (first.id + 1, question_key(load_settings(session)))
    assert second.key != first.key
    assert store_question(session, save_settings(session, before.model_dump())) is first
    assert session.scalars(select(Question.id).order_by(Question.id)).all() == [first.id, second.id]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "colour"),
        ({"judgments_per_pair": 0}, "judgments_per_pair.*got 0"),
        ({"repeat_share": 0.6}, "repeat_share.*got 0.6"),
        ({"lease_seconds": "soon"}, "lease_seconds.*got 'soon'"),
        ({"reasons": [str(number) for number in range(10)]}, "reasons"),
        ({"title": ""}, "title"),
        ({"reasons": ["eyes", " "]}, "reasons"),
        ({"reasons": ["eyes", "eyes"]}, "reasons.*twice"),
        ({"skip_reasons": ["identical", "identical"]}, "skip_reasons.*twice"),
    ],
)
def test_bad_values_are_named_and_change_nothing(session, changes, message):
    save_settings(session, {"title": "Faces"})
    with pytest.raises(UserError, match=message):
        save_settings(session, {"question": "Another?", **changes})
    assert load_settings(session) == ProjectSettings(title="Faces")


def test_the_split_is_fixed_once_photos_are_there(session):
    save_settings(session, {"test_share": 0.2, "seed": 4})
    add_candidates(session, "face", ["m1"])
    for name, value in (("val_share", 0.2), ("test_share", 0.1), ("seed", 5)):
        with pytest.raises(UserError, match=f"{name} cannot change once photos are imported"):
            save_settings(session, {name: value})
    assert save_settings(session, {"test_share": 0.2, "title": "Same split"}).title == "Same split"


def test_pairs_follow_the_number_of_judgments_wanted(session):
    for split in Split:
        add_candidates(session, split.value, ["m1", "m2"], split)
    make_pairs(session, load_settings(session))
    save_settings(session, {"judgments_per_pair": 2, "judgments_per_test_pair": 5})
    wanted = {pair.source.split: pair.judgments_wanted for pair in session.scalars(select(Pair))}
    assert wanted == {Split.train: 2, Split.val: 2, Split.test: 5}


def test_a_judged_pair_returns_to_the_queue_when_more_is_wanted(session, make_project):
    (pair,) = make_project(1)
    pair.judgment_count = 1
    session.flush()
    levels = select(Pair.queue_level)
    assert session.scalars(levels).all() == [None]
    save_settings(session, {"judgments_per_pair": 2})
    assert session.scalars(levels).all() == [1]
    save_settings(session, {"judgments_per_pair": 1})
    assert session.scalars(levels).all() == [None]

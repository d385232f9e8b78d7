"""Names, passwords, personal links, and that somebody can always administer."""

from __future__ import annotations

import pytest

from annotate.judging.people import (
    add_person,
    check_link_token,
    check_password,
    disable_person,
    find_alike,
    find_doubles,
    find_person,
    get_person,
    make_link_token,
    set_password,
)
from db.errors import UserError
from db.models import Person, Role


def test_names_are_trimmed_unique_and_printable(session):
    ada = add_person(session, "  Ada ")
    assert ada.name == "Ada"
    assert find_person(session, " Ada ") is ada
    with pytest.raises(UserError, match="already a person called 'Ada'"):
        add_person(session, "Ada")
    for name in ("", "   ", "x" * 65, "a\nb", "a\x00b", "a\u200bb"):
        with pytest.raises(UserError, match="cannot be a name"):
            add_person(session, name)
    assert add_person(session, "Łukasz Ńowak").role is Role.annotator


@pytest.mark.parametrize(
    ("stored", "written"),
    [
        ("ada", "Ada"),
        ("Ada", "ＡＤＡ"),
        ("Zoe\u0308", "ZO\u00cb"),
        ("Straße", "STRASSE"),
        ("Ada  Lovelace", " ada lovelace"),
        ("\ufb01nn", "FINN"),
        ("Ольга", "ОЛЬГА"),
        ("ΟΔΥΣΣΕΥΣ", "οδυσσευς"),
        ("가나", "\u1100\u1161\u1102\u1161"),
    ],
)
def test_names_that_look_alike_are_one_person(session, stored, written):
    person = add_person(session, stored, password="correct horse")
    assert find_person(session, written) is get_person(session, written) is person
    assert check_password(session, written, "correct horse") is person
    with pytest.raises(UserError, match="already a person called"):
        add_person(session, written)


def test_two_people_of_an_older_version_whose_names_differ_in_case_are_told_apart(session):
    upper, lower = (Person(name=name, role=Role.annotator, public_id=name) for name in ("Ada", "ada"))
    session.add_all([upper, lower])
    session.flush()
    add_person(session, "Ben")
    (line,) = find_doubles(session)
    assert line.startswith("'Ada' and 'ada' are 2 people whose names sign-in takes for one")
    assert (find_person(session, "Ada"), find_person(session, "ada")) == (upper, lower)
    assert find_person(session, "ADA") is None
    with pytest.raises(UserError, match="'ADA' may be 'Ada' and 'ada'"):
        get_person(session, "ADA")


def test_those_who_may_be_meant_by_a_new_name(session):
    for name in ("ada", "Zoë K.", "ben", "annotator1"):
        add_person(session, name)
    add_person(session, "robot", simulated=True)
    assert find_alike(session, "Ada") == find_alike(session, "A.d.a") == ["ada"]
    assert find_alike(session, "zoe k") == ["Zoë K."]
    for name in ("ada", "Adam", "annotator2", "Robot", "", "\0", "…"):
        assert find_alike(session, name) == []


def test_public_ids_say_nothing_of_the_name(session):
    ids = {add_person(session, name).public_id for name in ("Ada", "Ben", "Cleo")}
    assert len(ids) == 3
    assert all(len(public_id) == 16 for public_id in ids)


def test_an_unknown_name_is_answered_with_those_there_are(session):
    with pytest.raises(UserError, match="Known: nobody yet"):
        get_person(session, "Zoe")
    add_person(session, "Ben")
    add_person(session, "Ada")
    with pytest.raises(UserError, match=r"no person called 'Zoe'\. Known: Ada, Ben"):
        get_person(session, "Zoe")


def test_passwords(session):
    ada = add_person(session, "Ada", password="correct horse")
    assert "correct" not in (ada.password_hash or "")
    assert check_password(session, "Ada", "correct horse") is ada
    for name, password in (("Ada", "wrong horse"), ("Ada", ""), ("Ben", "correct horse"), ("Ada", "Correct horse")):
        assert check_password(session, name, password) is None
    set_password(ada, "pässwörter")
    assert check_password(session, "Ada", "correct horse") is None
    assert check_password(session, "Ada", "pässwörter") is ada


def test_a_person_without_password_cannot_sign_in_with_one(session):
    add_person(session, "Ada")
    for password in ("", "anything at all", "$"):
        assert check_password(session, "Ada", password) is None


def test_the_same_password_is_stored_differently(session):
    hashes = {add_person(session, name, password="correct horse").password_hash for name in ("Ada", "Ben")}
    assert len(hashes) == 2


def test_short_passwords_are_refused_and_the_person_not_added(session):
    with pytest.raises(UserError, match="needs 8 characters or more; this one has 7"):
        add_person(session, "Ada", password="1234567")
    assert find_person(session, "Ada") is None


def test_links(session):
    ada, ben = add_person(session, "Ada"), add_person(session, "Ben")
    first = make_link_token(ada)
    session.flush()
    assert check_link_token(session, first) is ada
    assert first not in (ada.link_hash or "")
    second = make_link_token(ada)
    session.flush()
    assert check_link_token(session, first) is None, "the old link stops working"
    assert check_link_token(session, second) is ada
    for token in ("", "x", second + "x", ada.link_hash or ""):
        assert check_link_token(session, token) is None
    assert ben.link_hash is None


def test_a_disabled_person_gets_in_neither_way(session):
    ada = add_person(session, "Ada", password="correct horse")
    token = make_link_token(ada)
    disable_person(session, "Ada")
    session.flush()
    assert check_password(session, "Ada", "correct horse") is None
    assert check_link_token(session, token) is None


def test_the_last_enabled_admin_stays(session):
    add_person(session, "Ada", Role.admin)
    add_person(session, "Ben")
    with pytest.raises(UserError, match="only admin"):
        disable_person(session, "Ada")
    add_person(session, "Cleo", Role.admin)
    disable_person(session, "Ada")
    with pytest.raises(UserError, match="only admin"):
        disable_person(session, "Cleo")
    assert disable_person(session, "Ben").disabled_at is not None

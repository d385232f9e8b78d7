"""Sessions end everywhere at once; personal links expire, or let in once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, select
from starlette.testclient import TestClient

from annotate.judging.people import disable_person, end_sessions, get_person, make_link_token, set_password
from db.errors import UserError
from db.models import Person, utc_now
from db.session import Database
from tests.making import AnnotateHere, MakeClient
from ui.context import Context
from ui.gate.sign_in import check_someone_can_sign_in

ENDINGS: dict[str, Callable[[Person], object]] = {
    "signed out": end_sessions,
    "new password": lambda person: set_password(person, "another password"),
    "new link": make_link_token,
}


def is_in(client: TestClient) -> bool:
    return client.get("/api/session").status_code == 200


@pytest.mark.parametrize("ending", ENDINGS)
def test_all_sessions_of_one_person_end_at_once(client: MakeClient, database: Database, ending: str) -> None:
    here, there, other = client("ben"), client("ben"), client("ada")
    assert is_in(here)
    assert is_in(there)
    with database.write() as session:
        ENDINGS[ending](get_person(session, "ben"))
    assert (is_in(here), is_in(there), is_in(other)) == (False, False, True)
    assert here.post("/api/label", json={"want": 1}).status_code == 401


def test_the_button_ends_ones_own_sessions(client: MakeClient) -> None:
    here, there, other = client("ben"), client("ben"), client("ada")
    kept = dict(there.cookies)
    assert here.post("/sign-out/everywhere").headers["location"] == "/sign-in"
    assert (is_in(here), is_in(there), is_in(other)) == (False, False, True)
    there.cookies.update(kept)
    assert not is_in(there), "the cookie itself is worth nothing any more"
    assert is_in(client("ben")), "and signing in begins a new one"
    assert client().post("/sign-out/everywhere").status_code == 401


def test_a_disabled_persons_sessions_do_not_come_back(client: MakeClient, database: Database) -> None:
    here = client("ben")
    with database.write() as session:
        disable_person(session, "ben").disabled_at = None
    assert not is_in(here)


def test_a_session_costs_one_look_up(client: MakeClient, database: Database) -> None:
    ben, asked = client("ben"), []
    event.listen(database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    assert ben.get("/img/nothing").status_code == 403
    assert len([statement for statement in asked if statement.startswith("SELECT")]) == 1


def test_a_link_expires(client: MakeClient, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with database.write() as session:
        link = make_link_token(get_person(session, "ben"), timedelta(days=7))
    entered = client()
    assert entered.get(f"/enter/{link}").headers["location"] == "/"
    late = utc_now() + timedelta(days=7, seconds=1)
    monkeypatch.setattr("annotate.judging.people.utc_now", lambda: late)
    assert "expired" in client().get(f"/enter/{link}").headers["location"]
    assert "expired" in client().post(f"/enter/{link}").headers["location"]
    assert is_in(entered), "who has entered stays"


def test_a_link_for_once_lets_one_browser_in_and_no_scanner_uses_it_up(client: MakeClient, database: Database) -> None:
    with database.write() as session:
        link = make_link_token(get_person(session, "ben"), once=True)
    for _ in range(3):  # as chats do that show a preview
        page = client().get(f"/enter/{link}")
        assert (page.status_code, "set-cookie" in page.headers) == (200, False)
    browsers = [client() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda browser: browser.post(f"/enter/{link}"), browsers))
    assert sorted(map(is_in, browsers)) == [False] * 5 + [True]
    assert "used" in client().get(f"/enter/{link}").headers["location"]


def test_an_admin_whose_link_has_expired_cannot_enter(database: Database, data: Path) -> None:
    for lifetime, enters in ((timedelta(hours=1), True), (timedelta(seconds=-1), False)):
        with database.write() as session:
            ada = session.scalar(select(Person).where(Person.name == "ada")) or Person(
                name="ada", public_id="a", role="admin"
            )
            session.add(ada)
            make_link_token(ada, lifetime)
        context = Context(database=database, data=data, auth=True)
        if enters:
            check_someone_can_sign_in(context)
        else:
            with pytest.raises(UserError, match="needs an admin"):
                check_someone_can_sign_in(context)


def test_the_commands(database: Database, annotate_here: AnnotateHere) -> None:
    assert annotate_here("people", "add", "ben").returncode == 0
    assert annotate_here("people", "link", "ben", "--expires", "7d", "--once").returncode == 0
    with database.read() as session:
        ben = get_person(session, "ben")
        assert ben.link_once
        assert ben.link_expires_at is not None
        assert timedelta(days=6, hours=23) < ben.link_expires_at - utc_now() < timedelta(days=7)
        version = ben.session_version
    listed = annotate_here("people", "list")
    assert listed.returncode == 0
    assert "link for once until 20" in listed.stdout
    assert annotate_here("people", "sign-out", "ben").returncode == 0
    with database.read() as session:
        assert get_person(session, "ben").session_version == version + 1
    for words, said in (
        (("link", "ben", "--expires", "soon"), "30m, 12h, 7d or 2w"),
        (("link", "ben", "--expires", "0d"), "30m, 12h, 7d or 2w"),
        (("link", "ben", "--expires", "9999999w"), "30m, 12h, 7d or 2w"),
        (("add", "eve", "--once"), "are of people link"),
        (("sign-out", "nobody"), "no person called"),
    ):
        refused = annotate_here("people", *words)
        assert refused.returncode == 2, words
        assert said in refused.stderr
    with database.read() as session:
        assert get_person(session, "ben").link_once, "a refused command changes nothing"

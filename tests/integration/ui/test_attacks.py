"""Whatever is sent to whatever route: none fails, and none tells anybody what is not theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from annotate.judging.people import add_person, get_person, make_link_token
from annotate.studies.create import create_study, set_state
from annotate.studies.settings import StudySettings
from db.models import Role
from db.session import open_database
from db.studies import StudyState
from tests.making import PASSWORD, make_project
from ui.context import Context
from ui.server import make_app

SECRETS = ("zoe-the-colleague", "bicubic-secret", "gfpgan-secret", "Traceback", "scrypt", PASSWORD)
"""Words that no answer to a stranger or an annotator may hold."""
JSON = {"Content-Type": "application/json"}
OPEN = ("/sign-in", "/api/sign-in-info", "/enter/", "/study", "/favicon.ico", "/static")
"""Addresses that answer everybody."""
SETTINGS = hypothesis_settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

nasty_text = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            *("", "\0", "\ud800", "../../secret.key", "..\\..\\secret.key", "%2e%2e%2fsecret.key", "/etc/passwd"),
            *("' OR 1=1 --", "<script>alert(1)</script>", "{{7*7}}", "a" * 5_000, "\u202e", "ada", "ben\0", "é" * 300),
            *(
                "9" * 40,
                "-1",
                "0",
                "1e309",
                "NaN",
                "true",
                "null",
                "[]",
                "http://169.254.169.254/",
                "file:///etc/passwd",
            ),
        ]
    ),
)
nasty_number = st.one_of(
    st.integers(), st.floats(), st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64, 10**400, -1, float("nan"), 1e308])
)
nasty_value = st.recursive(
    st.one_of(st.none(), st.booleans(), nasty_number, nasty_text),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(nasty_text, inner, max_size=4)),
    max_leaves=8,
)
KEYS = (
    *("want", "events", "type", "id", "showing", "choice", "seconds", "reasons", "skip_reason", "replaces", "judgment"),
    *("view_mode", "question", "page", "known", "exclude", "kind", "values", "inputs", "name", "password", "next"),
    "fn_index",
    *("data", "session_hash", "trigger_id", "preset", "device", "number", "rounds", "url", "token"),
)
nasty_body = st.one_of(
    st.binary(max_size=200),
    st.dictionaries(st.sampled_from(KEYS), nasty_value, max_size=5).map(
        lambda values: json.dumps(values).encode("utf-8", "surrogatepass")
    ),
    st.sampled_from(
        [b"[" * 5_000, b'{"want": NaN}', b"\xff\xfe{}", b"null", b'"text"', b'{"want":' + b"9" * 5_000 + b"}"]
    ),
)
nasty_event = st.fixed_dictionaries(
    {"type": st.sampled_from(["judge", "undo", "judge\0"]), "id": st.one_of(st.uuids().map(str), nasty_text)},
    optional={
        "showing": nasty_text,
        "choice": st.one_of(st.sampled_from(["left", "right", "tie", "skip"]), nasty_value),
        "seconds": st.one_of(st.just(1.5), nasty_number),
        "skip_reason": nasty_text,
        "reasons": st.one_of(st.lists(nasty_text, max_size=3), nasty_value),
        "question": nasty_text,
        "view_mode": nasty_text,
        "replaces": nasty_text,
        "judgment": nasty_text,
    },
)
"""What a labelling page sends of one answer, with any of its parts spoiled."""
label_body = st.fixed_dictionaries(
    {"events": st.lists(nasty_event, min_size=1, max_size=3)},
    optional={"want": nasty_number, "page": nasty_text, "known": nasty_value},
).map(lambda values: json.dumps(values).encode("utf-8", "surrogatepass"))
nasty_headers = st.dictionaries(
    st.sampled_from(
        [
            *(
                "Host",
                "Origin",
                "Referer",
                "Cookie",
                "Content-Type",
                "If-None-Match",
                "Range",
                "Accept",
                "Authorization",
            ),
            *("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-HTTP-Method-Override", "Accept-Language"),
        ]
    ),
    st.one_of(
        st.sampled_from(
            [
                *(
                    "application/json",
                    "multipart/form-data; boundary=x",
                    "application/x-www-form-urlencoded",
                    "text/plain",
                ),
                *(
                    "evil.example",
                    "testserver",
                    "http://testserver",
                    "127.0.0.1:99999",
                    "[::1",
                    "bytes=0-9999999999999",
                ),
                *("facereward=garbage", "facereward=eyJ2IjoxfQ==.x.y", "*", "", "\xff\xfe", "a" * 5_000),
            ]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30),
    ),
    max_size=3,
)


def walk(routes: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(method, address with its {parameters}) of every route, of mounted apps too."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from walk(route.original_router.routes, prefix)
            continue
        inner = getattr(route, "app", None)
        if hasattr(inner, "routes") and not getattr(route, "methods", None):
            yield from walk(inner.routes, prefix + route.path)
        else:
            yield from ((method, prefix + route.path) for method in getattr(route, "methods", None) or ("GET",))


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An app with --auth: two sources and their pairs, an admin ada, the annotators ben and zoe, an open study."""
    folder = tmp_path_factory.mktemp("attacked")
    data: Path = folder / "data"
    database = open_database(data)
    with database.write() as session:
        make_project(session, data, folder, 2, SECRETS[1:3])
        add_person(session, "ada", Role.admin, PASSWORD)
        for name in ("ben", SECRETS[0]):
            add_person(session, name, Role.annotator, PASSWORD)
        links = {name: f"/enter/{make_link_token(get_person(session, name))}" for name in ("ada", "ben")}
        study = create_study(session, SECRETS[1], StudySettings(answers=2, panel="plain"))
        set_state(session, study, StudyState.open)
        links["participant"] = f"/study/{study.link}"
    made = make_app(Context(database=database, data=data, auth=True))
    made.state.links = links
    yield made
    database.close()


@pytest.fixture(scope="module")
def clients(app: Any) -> dict[str, TestClient]:
    """Clients of one app: a stranger's, a participant's of the study, ben's (annotator) and ada's (admin)."""
    made = {}
    for name in ("stranger", "participant", "ben", "ada"):
        made[name] = TestClient(
            app, base_url="http://testserver", follow_redirects=False, raise_server_exceptions=False
        )
        if name != "stranger":
            made[name].get(app.state.links[name])
            known_as = made[name].get("/api/session").json()["person"]["name"]
            assert known_as == ("" if name == "participant" else name)
    return made


def send(
    client: TestClient, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
) -> Any:
    """The answer; None where the request cannot be written down as HTTP at all."""
    cookies = dict(client.cookies)
    try:
        return client.request(
            method,
            path,
            params=query or None,
            headers={name: value.encode("latin-1") for name, value in {**JSON, **headers}.items()},
            content=body if method not in ("GET", "HEAD") else None,
        )
    except (UnicodeError, ValueError):
        return None
    finally:
        client.cookies = cookies  # type: ignore[assignment]


def fill(path: str, values: list[str]) -> str:
    """The address with its parameters filled in, percent-encoded as a browser would or would not."""
    parts = path.split("{")
    filled = [parts[0]]
    for number, part in enumerate(parts[1:]):
        value = values[number % len(values)]
        filled.append(quote(value.encode("utf-8", "surrogatepass"), safe="") + part.partition("}")[2])
    return "".join(filled)


def routes_of(app: Any) -> list[tuple[str, str]]:
    return sorted(set(walk(app.routes)))


@pytest.mark.parametrize("who", ["stranger", "ben", "ada"])
def test_no_route_fails_or_tells_whatever_is_sent(app: Any, clients: dict[str, TestClient], who: str) -> None:
    routes = [route for route in routes_of(app) if not route[1].startswith("/sign-out/everywhere")]
    assert len(routes) > 120
    ours = [route for route in routes if not route[1].startswith("/admin")]
    if who == "ada":
        routes = ours
    client = clients[who]
    seen: set[tuple[str, str]] = set()

    @SETTINGS
    @given(
        route=st.one_of(st.sampled_from(routes), st.sampled_from(ours)),
        method=st.sampled_from([None, None, None, "GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]),
        values=st.lists(nasty_text, min_size=1, max_size=3),
        query=st.dictionaries(st.sampled_from([*KEYS, "t", "after", "step"]), st.text(max_size=30), max_size=2),
        headers=nasty_headers,
        body=nasty_body,
    )
    def attack(route: Any, method: Any, values: Any, query: Any, headers: Any, body: Any) -> None:
        answer = send(client, method or route[0], fill(route[1], values), query, headers, body)
        if answer is None:
            return
        seen.add(route)
        assert answer.status_code < 500, answer.text[:500]
        if who != "ada":
            assert not [word for word in SECRETS if word in answer.text]
        if who == "stranger" and not route[1].startswith(OPEN):
            assert answer.status_code >= 300, answer.text[:200]

    @SETTINGS
    @given(body=label_body)
    def answer_askew(body: bytes) -> None:
        answer = send(client, "POST", "/api/label", {}, {}, body)
        assert answer.status_code in ((401,) if who == "stranger" else (200, 400, 413, 429)), answer.text[:500]
        assert who == "ada" or not [word for word in SECRETS if word in answer.text]

    attack()
    answer_askew()
    assert len(seen) > len(ours) // 2  # drawn at random; the tests below go through all


def test_no_step_of_a_study_fails_whatever_a_participant_sends(app: Any, clients: dict[str, TestClient]) -> None:
    steps = [path for method, path in routes_of(app) if method == "POST" and path.startswith("/api/study/")]
    assert len(steps) == 5
    client = clients["participant"]
    said: dict[str, Any] = {"agreed": st.booleans(), "place": nasty_number, "answer": nasty_text}
    seen = dict.fromkeys(("width_px", "height_px", "device_pixel_ratio", "zoom", "fields_seen"), nasty_number)
    body = st.fixed_dictionaries({}, optional={**said, **seen}).map(
        lambda values: json.dumps(values).encode("utf-8", "surrogatepass")
    )

    @hypothesis_settings(SETTINGS, max_examples=100)
    @given(path=st.sampled_from(steps), body=st.one_of(body, nasty_body))
    def attack(path: str, body: bytes) -> None:
        answer = send(client, "POST", path, {}, {}, body)
        assert answer.status_code in (200, 400, 409, 422), answer.text[:500]
        assert not [word for word in SECRETS if word in answer.text]

    attack()
    told = [client.get(path).text for path in ("/", "/study", "/api/study", "/api/session", "/api/progress")]
    assert not [word for word in SECRETS if word in "".join(told)]


@pytest.mark.parametrize("who", ["stranger", "participant", "ben"])
def test_every_route_is_closed_to_who_may_not(app: Any, clients: dict[str, TestClient], who: str) -> None:
    """Each of them in turn, its parameters filled with what an admin's own address would hold."""
    for method, path in routes_of(app):
        if path.startswith((*OPEN, "/sign-out")):
            continue
        answer = send(clients[who], method, fill(path, ["1"]), {}, {}, b"{}")
        admins = path.startswith(("/admin", "/api/runs", "/api/lineage", "/api/train"))
        if who == "stranger":
            to_sign_in = answer.headers.get("location", "").startswith("/sign-in")
            assert answer.status_code == 401 or to_sign_in, (method, path, answer.status_code)
        elif admins:
            assert answer.status_code == 403, (method, path, answer.status_code)


def test_an_admin_reaches_every_route_of_ours(app: Any, clients: dict[str, TestClient]) -> None:
    for method, path in routes_of(app):
        # An image has no address but a sealed one, and a webhook is known by its signature alone.
        if path.startswith(("/admin", "/enter", "/sign-out", "/img/", "/hooks/")):
            continue
        answer = send(clients["ada"], method, fill(path, ["1"]), {}, {}, b"{}")
        assert answer.status_code not in (401, 403), (method, path)
        assert answer.status_code < 500, (method, path, answer.text[:300])

"""How often an address may arrive, on a clock that the tests set."""

from __future__ import annotations

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from db.errors import UserError
from ui.address import read_trusted_proxies
from ui.gate.rate import MAX_KEYS, LimitArrivals, Rate, address_key


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_so_many_at_once_and_then_at_the_pace() -> None:
    clock = Clock()
    rate = Rate(a_minute=60, at_once=3, clock=clock)
    assert [rate.take("a") for _ in range(4)] == [0, 0, 0, 1]
    assert rate.take("b") == 0, "nobody waits for what others do"
    clock.now += 0.75
    assert rate.take("a") == 0.25, "what is refused makes no wait longer"
    clock.now += 0.25
    assert [rate.take("a"), rate.take("a")] == [0, 1]
    clock.now += 3600
    assert [rate.take("a") for _ in range(4)] == [0, 0, 0, 1], "an hour of silence saves up no more than a burst"


def test_processes_share_the_pace_and_addresses_are_forgotten() -> None:
    clock = Clock()
    rate = Rate(a_minute=60, at_once=3, workers=2, clock=clock)
    assert [rate.take("a") for _ in range(3)] == [0, 0, 2]
    for number in range(MAX_KEYS):
        rate.take(f"{number}")
    assert rate.take("a") == 0


@pytest.mark.parametrize(
    ("client", "key"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
        (None, ""),
    ],
)
def test_an_ipv6_address_counts_for_its_network(client: str | None, key: str) -> None:
    assert address_key(Request({"type": "http", "client": client and (client, 1)})) == key


def test_whoever_arrives_too_often_is_refused_and_all_else_is_let_through() -> None:
    limit = LimitArrivals(PlainTextResponse("in"))
    limit.rate = Rate(60, 2, clock=Clock())
    client = TestClient(limit)
    answers = [client.get("/study/abc", params={"PROLIFIC_PID": number}) for number in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[-1].headers["Retry-After"] == "1"
    assert client.get("/api/label").status_code == 200


@pytest.mark.parametrize("text", ["*", "proxy.local", "10.0.0.300", "", "10.0.0.1,"])
def test_only_addresses_are_trusted_as_proxies(text: str) -> None:
    with pytest.raises(UserError, match="--trusted-proxy"):
        read_trusted_proxies(text)
    assert read_trusted_proxies("127.0.0.1, 10.0.0.0/24,::1") == ["127.0.0.1", "10.0.0.0/24", "::1"]

"""What is told to programs that watch the server: whether it is well, and its counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from sqlalchemy.exc import OperationalError
from starlette.requests import Request
from starlette.testclient import TestClient

from app import read_metrics_token
from db.errors import UserError
from db.session import Database
from ui.context import Context
from ui.serving.counts import CountRequests, Counts, NoteRoute, note_events, write_text
from ui.serving.spread import SpreadConnections
from ui.serving.watch import Figures, Watch, may_read_counts

TOKEN = "0123456789abcdef"


def test_counts_are_written_as_prometheus_reads_them() -> None:
    counts = Counts()
    counts.add("POST", "/api/label", 200, 0.05, ["stored", "stored", "refused"])
    counts.add("POST", "/api/label", 503, 7.0, [])
    counts.add("GET", "/img/{name}", 200, 0.2, [])
    text = write_text({1: None, 0: Counts.load(counts.dump())}, {"leases": ("Held.", 3)})
    lines = text.splitlines()
    assert text.endswith("\n")
    for line in (
        'facereward_worker_up{worker="0"} 1',
        'facereward_worker_up{worker="1"} 0',
        'facereward_requests_total{worker="0",method="GET",route="/img/{name}",status="200"} 1',
        'facereward_label_events_total{worker="0",outcome="stored"} 2',
        'facereward_label_seconds_bucket{worker="0",le="0.025"} 0',
        'facereward_label_seconds_bucket{worker="0",le="0.05"} 1',
        'facereward_label_seconds_bucket{worker="0",le="5"} 1',
        'facereward_label_seconds_bucket{worker="0",le="+Inf"} 2',
        'facereward_label_seconds_sum{worker="0"} 7.05',
        'facereward_label_seconds_count{worker="0"} 2',
        "# TYPE facereward_leases gauge",
        "facereward_leases 3",
    ):
        assert line in lines, line
    assert len([line for line in lines if line.startswith("# TYPE")]) == 5


def test_requests_are_counted_by_route_and_nothing_of_a_visitor_is_told() -> None:
    counts, app = Counts(), FastAPI()

    @app.get("/enter/{token}")
    def enter(request: Request, token: str) -> str:
        note_events(request, ["stored"])
        return token

    app.add_middleware(NoteRoute)
    app.add_middleware(CountRequests, counts=counts)
    client = TestClient(app)
    for path in ("/enter/secret", "/nothing/here"):
        client.get(path)
    client.request("BREW", "/enter/secret")
    told = counts.dump()
    assert told["requests"] == [
        ["GET", "/enter/{token}", 200, 1],
        ["GET", "other", 404, 1],
        ["other", "/enter/{token}", 405, 1],
    ]
    assert (told["events"], sum(told["label_buckets"])) == ({"stored": 1}, 0)


def test_one_of_several_workers_closes_connections_now_and_then() -> None:
    client = TestClient(SpreadConnections(FastAPI(), answers=5))
    closed = [client.get("/").headers.get("connection") for _ in range(200)]
    assert set(closed) == {None, "close"}
    assert 10 < closed.count("close") < 90


@pytest.mark.parametrize(
    ("client", "headers", "allowed"),
    [
        ("127.0.0.1", {"host": "127.0.0.1:7860"}, True),
        ("::1", {"host": "localhost"}, True),
        ("127.0.0.1", {"host": "localhost", "x-forwarded-for": "203.0.113.7"}, False),
        ("127.0.0.1", {"host": "label.example.org"}, False),
        ("203.0.113.7", {"host": "localhost"}, False),
        ("203.0.113.7", {"host": "x", "authorization": f"Bearer {TOKEN}"}, True),
        ("203.0.113.7", {"host": "x", "authorization": f"Bearer {TOKEN}0"}, False),
        ("203.0.113.7", {"host": "x", "authorization": "Bearer "}, False),
    ],
)
def test_who_may_read_counts(client: str, headers: dict[str, str], allowed: bool) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    request = Request({"type": "http", "client": (client, 1), "headers": raw})
    assert may_read_counts(request, TOKEN) is allowed
    if "authorization" in headers:
        assert not may_read_counts(request, None)


def test_a_database_that_does_not_answer_is_told_and_asked_but_once_a_second(
    database: Database, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def fail(database: Database) -> Figures:
        asked.append(True)
        raise OperationalError("SELECT", {}, Exception("the server is gone"))

    app = Watch(FastAPI(), Context(database=database, data=data), Counts(), dict)
    client = TestClient(app, base_url="http://elsewhere.example")
    assert (client.get("/healthz").status_code, client.get("/healthz").json()) == (200, {"status": "ok"})
    assert client.get("/metrics").status_code == 403
    assert client.get("/counts").status_code == 404, "of one worker for the others"
    monkeypatch.setattr("ui.serving.watch.ask_database", fail)
    down = TestClient(Watch(FastAPI(), Context(database=database, data=data), Counts(), dict))
    assert [down.get("/healthz").status_code for _ in range(3)] == [503, 503, 503]
    assert len(asked) == 1


def test_a_token_that_is_no_secret_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(UserError, match="cannot be read"):
        read_metrics_token(file)
    file.write_text("short\n")
    with pytest.raises(UserError, match="holds 5 characters"):
        read_metrics_token(file)
    file.write_text(f"{TOKEN}\n")
    assert read_metrics_token(file) == TOKEN

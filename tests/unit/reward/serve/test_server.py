"""The routes: who may ask, what is answered, and that whatever is wrong is a clear 4xx in JSON."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator

import anyio
import numpy as np
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.testclient import TestClient

import reward.serve.server
from db.errors import UserError
from reward.score.scorer import Scorer, score_apart
from reward.serve.contract import JSON, NPZ, Refusal
from reward.serve.server import PLACES, make_app, receive_body, share_equal
from reward.serve.wire import pack_request
from tests.unit.reward.model.test_input import shake_heads
from tests.unit.reward.serve.conftest import BAD, LIMITS, draw_faces, encode

TOKEN = "a-token-of-these-tests"
MakeScorer = Callable[..., Scorer]


@pytest.fixture
def open_server(make_scorer: MakeScorer) -> Iterator[Callable[..., TestClient]]:
    """`open_server(text_mode="input")`: a client of the small model's server, which knows its token."""
    opened: list[TestClient] = []

    def start(batch_size: int = 3, token: str | None = TOKEN, **fields: object) -> TestClient:
        scorer = make_scorer(**fields)
        if scorer.config.has_heads:
            shake_heads(scorer.model)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        opened.append(TestClient(make_app(scorer, LIMITS, batch_size, token), headers=headers))
        return opened[-1]

    yield start
    for client in opened:
        client.app.state.desk.thread.shutdown()  # type: ignore[attr-defined]


@pytest.fixture
def server(open_server: Callable[..., TestClient]) -> TestClient:
    """That of the model which sees the image alone."""
    return open_server()


def scorer_of(server: TestClient) -> Scorer:
    """The scorer that a client's server asks."""
    return server.app.state.desk.scorer  # type: ignore[attr-defined, no-any-return]


def post(server: TestClient, body: bytes, kind: str = NPZ, **headers: str) -> object:
    """The answer to a body."""
    return server.post("/score", content=body, headers={"Content-Type": kind, **headers})


def test_scores_are_those_of_the_model_in_either_form(server: TestClient) -> None:
    faces, scorer = draw_faces(4), scorer_of(server)
    wanted = np.concatenate([score_apart(scorer, list(part), [None] * len(part))[0] for part in (faces[:3], faces[3:])])
    said = post(server, pack_request(faces, None, None)).json()
    assert said == {"name": "small", "version": scorer.version, "rewards": wanted.tolist()}
    as_json = json.dumps({"images": [encode(face) for face in faces]}).encode()
    assert post(server, as_json, f"{JSON}; charset=utf-8").json() == said
    packed = post(server, as_json, JSON, Accept=NPZ)
    assert packed.headers["content-type"] == NPZ
    with np.load(io.BytesIO(packed.content), allow_pickle=False) as arrays:
        assert np.array_equal(arrays["rewards"], wanted.astype(np.float32))


def test_captions_are_read_by_a_model_that_reads_them(open_server: Callable[..., TestClient]) -> None:
    server, faces = open_server(text_mode="caption"), draw_faces(2)
    assert server.get("/version").json()["needs_caption"] is True
    told = [post(server, pack_request(faces, None, texts)).json()["rewards"] for texts in (None, ["old", "young"])]
    assert told[0] != told[1]
    wanted, _ = score_apart(scorer_of(server), list(faces), ["old", "young"])
    assert told[1] == wanted.tolist()


def test_a_seeing_model_of_members_tells_its_spread_and_needs_the_photos(
    open_server: Callable[..., TestClient],
) -> None:
    server, faces, photos = open_server(text_mode="input", members=2), draw_faces(3), draw_faces(3, 8, seed=1)
    about = server.get("/version").json()
    assert (about["needs_input"], about["input_photo"], about["has_spread"]) == (True, "lq", True)
    assert about["members"] == ["small-1", "small-2"]
    refused = post(server, pack_request(faces, None, None))
    assert refused.status_code == 422
    assert "send as many inputs as images" in refused.json()["error"]
    said = post(server, pack_request(faces, photos, None)).json()
    rewards, spread = score_apart(scorer_of(server), list(faces), [None] * 3, list(photos))
    assert (said["rewards"], said["spread"]) == (rewards.tolist(), spread.tolist())
    assert min(said["spread"]) > 0


def test_a_photo_that_several_images_share_is_one() -> None:
    faces = list(draw_faces(2))
    shared = share_equal([faces[0], faces[1], faces[0].copy()])
    assert shared[0] is shared[2]
    assert shared[0] is not shared[1]
    assert len({id(image) for image in share_equal([faces[0], faces[0].reshape(12, 48, 3)])}) == 2


def test_version_tells_what_the_server_takes(server: TestClient) -> None:
    about = server.get("/version").json()
    assert about["contract"] == 1
    assert (about["name"], about["version"]) == ("small", scorer_of(server).version)
    assert about["limits"] == LIMITS.model_dump()
    assert (about["needs_input"], about["needs_caption"], about["has_spread"]) == (False, False, False)
    assert about["software"].startswith("facereward ")


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer a-token", f"Basic {TOKEN}", f"Bearer {TOKEN}\xe9", TOKEN])
def test_nobody_is_answered_without_the_token(server: TestClient, given: str) -> None:
    del server.headers["Authorization"]
    headers = {"Authorization": given.encode("latin-1")} if given else {}
    for answer in (
        server.get("/version", headers=headers),
        server.post("/score", content=b"{}", headers={"Content-Type": JSON, **headers}),
    ):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer TOKEN" in answer.json()["error"]
    assert server.get("/health").json() == {"status": "ok"}


def test_a_server_without_a_token_asks_for_none(open_server: Callable[..., TestClient]) -> None:
    server = open_server(token=None)
    assert server.get("/version").status_code == 200


@pytest.mark.parametrize("what", BAD)
def test_a_bad_request_is_a_clear_4xx(server: TestClient, what: str) -> None:
    kind, body, status, words = BAD[what]
    answer = post(server, body, kind)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert words in answer.json()["error"]
    assert "Traceback" not in answer.text
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/scores", 404),
        ("POST", "/score/", 404),
        ("GET", "/../etc/passwd", 404),
        ("GET", "/score", 405),
        ("PUT", "/score", 405),
        ("POST", "/version", 405),
        ("DELETE", "/health", 405),
    ],
)
def test_other_paths_and_methods_are_said_to_be_none(server: TestClient, method: str, path: str, status: int) -> None:
    answer = server.request(method, path, follow_redirects=False)
    assert answer.status_code == status
    assert "POST /score" in answer.json()["error"]


def test_a_body_is_refused_by_what_its_headers_say(server: TestClient) -> None:
    def send(**headers: str) -> int:
        request = server.build_request("POST", "/score", headers={"Content-Type": NPZ})
        for name, value in headers.items():
            request.headers[name.replace("_", "-")] = value
        return server.send(request).status_code  # type: ignore[no-any-return]

    assert send(Content_Encoding="gzip") == 415
    assert send(Content_Length="99999999999999999999999999") == 413
    assert send(Content_Length="-1") == 413
    request = server.build_request("POST", "/score", headers={"Content-Type": NPZ})
    del request.headers["Content-Length"]
    assert server.send(request).status_code == 411


def test_a_body_without_a_length_is_cut_off_where_it_is_too_large(server: TestClient) -> None:
    sent = []

    def stream() -> Iterator[bytes]:
        for _ in range(100):
            sent.append(1)
            yield bytes(1_000)

    answer = server.post("/score", content=stream(), headers={"Content-Type": NPZ})
    assert answer.status_code == 413


def test_a_body_that_trickles_is_waited_for_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward.serve.server, "PATIENCE_SECONDS", 0.1)

    async def trickle() -> dict[str, object]:
        await anyio.sleep(0.01)
        return {"type": "http.request", "body": b"a", "more_body": True}

    # A loop of its own: a browser's tests before this one leave theirs running here.
    with start_blocking_portal() as loop, pytest.raises(Refusal, match="bytes of the body came") as refused:
        loop.call(receive_body, Request({"type": "http"}, trickle), LIMITS)  # type: ignore[arg-type]
    assert refused.value.status == 408


def test_requests_beyond_the_line_are_told_to_come_again(server: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on, order = threading.Event(), threading.Event(), []

    def hold(scorer: Scorer, request: object, _: int) -> object:
        began.set()
        assert go_on.wait(60)
        order.append(threading.current_thread().name)
        return answer_request(scorer, request, 3)  # type: ignore[arg-type]

    answer_request = reward.serve.server.answer_request
    monkeypatch.setattr(reward.serve.server, "answer_request", hold)
    body, statuses = pack_request(draw_faces(1), None, None), []
    with server:  # one event loop for all of them
        asking = [
            threading.Thread(target=lambda: statuses.append(post(server, body).status_code)) for _ in range(PLACES)
        ]
        for one in asking:
            one.start()
        assert began.wait(60)
        desk = server.app.state.desk  # type: ignore[attr-defined]
        while desk.inside < PLACES:
            time.sleep(0.01)
        refused = post(server, body)
        go_on.set()
        for one in asking:
            one.join()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert statuses == [200] * PLACES
        assert set(order) == {"score_0"}
        assert desk.inside == 0
        assert post(server, body).status_code == 200


def test_what_does_not_fit_into_the_memory_is_said(server: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise UserError("The memory of cuda is too small for a batch of 3 images by small: lower --batch-size to 1.")

    monkeypatch.setattr(reward.serve.server, "score_apart", fail)
    answer = post(server, pack_request(draw_faces(1), None, None))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert "lower --batch-size" in answer.json()["error"]


def test_rewards_that_are_no_numbers_are_not_answered(server: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward.serve.server, "score_apart", lambda *_: (np.array([np.nan]), np.array([0.0])))
    answer = post(server, pack_request(draw_faces(1), None, None))
    assert answer.status_code == 500
    assert "its weights are damaged" in answer.json()["error"]


def test_a_fault_of_ours_shows_nobody_a_traceback(server: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward.serve.server, "score_apart", lambda *_: 1 / 0)
    silent = TestClient(server.app, headers=server.headers, raise_server_exceptions=False)
    answer = post(silent, pack_request(draw_faces(1), None, None))
    assert (answer.status_code, answer.json()) == (500, {"error": "The server has a fault; its log says more."})
    monkeypatch.undo()
    assert post(silent, pack_request(draw_faces(1), None, None)).status_code == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=300),
    kind=st.sampled_from([JSON, NPZ, "", "text/html"]) | st.text(st.characters(codec="ascii", categories=["L"])),
    token=st.sampled_from([TOKEN, "x"]),
)
def test_no_bytes_make_a_500(server: TestClient, body: bytes, kind: str, token: str) -> None:
    answer = post(server, body, kind, Authorization=f"Bearer {token}")
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]

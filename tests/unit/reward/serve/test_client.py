"""The client says in one line what is wrong with a server, and asks one that is away or busy again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

import reward.serve.client
from db.errors import UserError
from reward.serve.client import TOKEN_VARIABLE, RemoteReward
from reward.serve.contract import NPZ, Limits
from reward.serve.wire import read_request
from tests.unit.reward.serve.conftest import LIMITS, draw_faces

ABOUT = {"contract": 1, "name": "theirs", "version": "v1", "limits": LIMITS.model_dump()}
Answers = Callable[[httpx.Request], httpx.Response]


class Away:
    """A server of somebody else's; each request to /score meets the next of its answers, then the right one."""

    def __init__(self, about: dict[str, Any] | None = None) -> None:
        self.about: Any = ABOUT | (about or {})
        self.answers: Iterator[Any] = iter(())
        self.requests: list[httpx.Request] = []
        self.sizes: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.path.endswith("/version"):
            return self.about if isinstance(self.about, httpx.Response) else httpx.Response(200, json=self.about)
        answer = next(self.answers, None)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        read = read_request(request.content, request.headers["content-type"], Limits.model_validate(ABOUT["limits"]))
        self.sizes.append(len(read.images))
        pairs = zip(read.images, read.captions, strict=True)
        rewards = [float(image.mean()) + len(caption or "") for image, caption in pairs]
        return httpx.Response(200, json={"name": "theirs", "version": "v1", "rewards": rewards, **(answer or {})})


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client has waited: not really."""
    waited: list[float] = []
    monkeypatch.setattr(reward.serve.client.time, "sleep", waited.append)
    return waited


def ask(server: Answers, url: str = "http://gpu:8790", token: str | None = "a-token") -> RemoteReward:
    """A client of a server in memory."""

    def send(request: httpx.Request) -> httpx.Response:
        """As it comes from a network: not read yet."""
        answer = server(request)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content))

    client = RemoteReward(url, token)
    client.http = httpx.Client(headers=client.http.headers, transport=httpx.MockTransport(send))
    return client


def test_images_go_in_batches_that_the_server_takes() -> None:
    server, faces = Away(), draw_faces(9)
    found = ask(server, "https://gpu/reward/").score(faces)
    assert found.dtype == np.float32
    assert np.array_equal(found, faces.mean(axis=(1, 2, 3)).astype(np.float32))
    assert server.sizes == [4, 4, 1]
    asked = server.requests[1]
    assert str(asked.url) == "https://gpu/reward/score"
    assert (asked.headers["authorization"], asked.headers["content-type"]) == ("Bearer a-token", NPZ)
    assert len(server.requests) == 4, "/version is asked for once"
    server = Away({"limits": LIMITS.model_copy(update={"max_body_bytes": 9_000}).model_dump()})
    ask(server).score(faces)
    assert server.sizes == [2, 2, 2, 2, 1]
    assert max(len(request.content) for request in server.requests) <= 9_000
    assert ask(Away()).score(faces[:0]).shape == (0,)


def test_captions_and_photos_go_to_who_reads_them() -> None:
    faces = draw_faces(5)
    server = Away({"needs_caption": True, "needs_input": True})
    found = ask(server).score(faces, faces, ["a" * 300, None, "", "b", None])
    assert np.array_equal(np.round(found - faces.mean(axis=(1, 2, 3))), [100, 0, 0, 1, 0]), "cut at what it takes"
    with pytest.raises(UserError, match="compares with the photo that was restored"):
        ask(server).score(faces)
    blind = Away()
    ask(blind).score(faces[:1], faces[:1], ["a"])
    read = read_request(blind.requests[1].content, NPZ, LIMITS)
    assert (read.inputs, read.captions) == (None, [None])


def test_the_token_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "from-outside\n")
    assert RemoteReward("http://gpu").http.headers["authorization"] == "Bearer from-outside"
    assert RemoteReward("http://gpu", "given").http.headers["authorization"] == "Bearer given"
    monkeypatch.delenv(TOKEN_VARIABLE)
    assert "authorization" not in RemoteReward("http://gpu").http.headers


def test_a_server_that_is_away_or_busy_is_asked_again(waits: list[float]) -> None:
    server = Away()
    busy = httpx.Response(503, json={"error": "busy"}, headers={"Retry-After": "7"})
    faraway = httpx.Response(503, headers={"Retry-After": "99999"})
    server.answers = iter([httpx.ConnectError("refused"), busy, httpx.ReadError("reset"), httpx.Response(502), faraway])
    assert len(ask(server).score(draw_faces(1))) == 1
    assert waits == [0.5, 7, 2, 4, 60]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([httpx.ConnectError("refused")] * 20, "http://gpu:8790 cannot be reached (refused)"),
        ([httpx.Response(503, json={"error": "full\nup"})] * 20, "HTTP 503: full up"),
        ([httpx.ReadTimeout("")], "has not answered for 60 s"),
        ([httpx.Response(401, json={"error": "no"})], f"refuses the token; set {TOKEN_VARIABLE}"),
        ([httpx.Response(422, json={"error": "a line"})], "refuses with HTTP 422: a line"),
        ([httpx.Response(413, text="<html>nginx</html>")], "refuses with HTTP 413"),
        ([httpx.Response(404, text="nothing here")], "is no reward that can be asked (HTTP 404)"),
        ([httpx.Response(307, headers={"location": "http://evil/score"})], "is no reward that can be asked (HTTP 307)"),
        ([httpx.Response(200, text="<html>")], "is no reward that can be asked"),
        ([httpx.Response(200, text="[" * 5_000)], "is no reward that can be asked"),
        ([httpx.Response(200, content=b"{" + b" " * 2**21 + b"}")], "is no reward that can be asked"),
        ([{"version": "v2"}], "has another reward than at first: v2, it was v1"),
        ([{"rewards": [1.0]}], "gives 1 finite rewards for 3 images"),
        ([{"rewards": [1.0, 2.0, 1e300]}], "gives 2 finite rewards for 3 images"),
        ([httpx.Response(200, text='{"name": "", "version": "v1", "rewards": [NaN, 1, 1]}')], "gives 2 finite rewards"),
        ([{"rewards": ["1", 2, 3]}], "answers with no rewards (rewards.0"),
        ([{"rewards": None}], "answers with no rewards"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_what_is_wrong_is_one_line(answers: list[Any], said: str, waits: list[float]) -> None:
    server = Away()
    server.answers = iter(answers)
    with pytest.raises(UserError) as wrong:
        ask(server).score(draw_faces(3))
    assert said in str(wrong.value)
    assert "\n" not in str(wrong.value)
    assert {request.url.host for request in server.requests} == {"gpu"}, "the token goes nowhere else"


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"contract": 2}, "it names contract 2, this FaceReward speaks 1"),
        ({"contract": None}, "it names no contract"),
        ({"version": ""}, "describes its reward wrongly (version"),
        ({"limits": {"max_images": 0}}, "describes its reward wrongly (limits.max_images"),
        ({"needs_input": "perhaps"}, "describes its reward wrongly (needs_input"),
    ],
)
def test_a_server_of_another_contract_is_refused(about: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as wrong:
        ask(Away(about)).describe()
    assert said in str(wrong.value)


def test_what_a_description_leaves_out_has_a_default() -> None:
    server = Away()
    server.about = {"contract": 1, "name": "a", "version": "b", "limits": {"max_images": 2}, "more": "of theirs"}
    about = ask(server).describe()
    assert (about.needs_input, about.needs_caption, about.has_spread, about.members) == (False, False, False, ())
    assert (about.limits.max_images, about.limits.max_side_px) == (2, 2048)


def test_a_server_that_is_not_there_is_said_soon(waits: list[float]) -> None:
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 cannot be reached .* is `python -m reward serve` running"):
        RemoteReward("http://127.0.0.1:9").describe()
    assert sum(waits) < 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gpu:8790",
        "ftp://gpu",
        "file:///etc/passwd",
        "http://",
        "http://a:b@gpu",
        "http://gpu?token=1",
        "http://gpu#a",
        "http://gpu:port",
        "http://[::1",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="address"):
        RemoteReward(url)


def test_what_a_caller_gives_wrongly_is_a_fault_of_the_code() -> None:
    faces = draw_faces(2)
    for images, inputs, captions in (
        (faces.astype(np.float32), None, None),
        (faces[0], None, None),
        (faces, faces[:1], None),
        (faces, None, ["a"]),
    ):
        with pytest.raises(ValueError, match=r"images|inputs"):
            ask(Away()).score(images, inputs, captions)
    with pytest.raises(UserError, match="41 x 41 pixels are more than the 40 a side"):
        ask(Away()).score(draw_faces(1, 41))
    with pytest.raises(UserError, match="One image is more than the 9,000 bytes"):
        ask(Away({"limits": LIMITS.model_copy(update={"max_body_bytes": 9_000}).model_dump()})).score(draw_faces(1, 40))


def test_the_wrong_json_is_never_taken_for_numbers() -> None:
    server = Away()
    server.answers = iter([httpx.Response(200, text=json.dumps({"name": "a", "version": "v1", "rewards": [True]}))])
    with pytest.raises(UserError, match="answers with no rewards"):
        ask(server).score(draw_faces(1))

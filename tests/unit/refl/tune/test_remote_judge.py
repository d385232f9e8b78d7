"""A served reward as the judge: the model's own numbers, asked for over a real socket."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from db.errors import UserError
from refl.tune.judge_names import check_judge
from refl.tune.judges import Judge, load_judge
from reward.model.reward_set import compute_reward_version
from reward.score.scorer import Scorer
from reward.serve.client import TOKEN_VARIABLE
from reward.serve.contract import Limits
from reward.serve.server import make_app, make_server
from runs.listen import open_listener
from runs.options import Place
from tests.unit.refl.conftest import make_micro_reward
from tests.watching import wait_until

TOKEN = "a-token-of-the-tests-that-is-long-enough"


@pytest.fixture(params=["lq", "hq"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Scorer]]:
    """The address of a seeing reward model, and the model."""
    model = make_micro_reward(tmp_path, text_mode="input", input_photo=request.param).requires_grad_(False)
    scorer = Scorer("my model+1", None, model, compute_reward_version(model))
    app, listener = make_app(scorer, Limits(max_images=3), 2, TOKEN), open_listener("127.0.0.1", 0)
    server = make_server(app)
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    wait_until(lambda: server.started)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", scorer
    server.should_exit = True
    thread.join()
    app.state.desk.thread.shutdown()


def load(url: str) -> Judge:
    return load_judge(url, "cpu", Path("weights"), Place())


def test_a_served_model_judges_as_it_does_here(served: tuple[str, Scorer], monkeypatch: pytest.MonkeyPatch) -> None:
    url, scorer = served
    with pytest.raises(UserError, match="refuses the token"):
        load(url)
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    judge = load(url)
    assert (judge.name, judge.version, judge.metrics) == ("my_model+1", scorer.version, ())
    images, lq, hq = (torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    found = judge.score(images.requires_grad_(), lq, hq, [None, "a", "b", None, None], ["a"] * 5)
    seen = lq if scorer.config.input_photo == "lq" else hq
    with torch.no_grad():
        wanted = scorer.model(as_file(images), [None] * 5, as_file(seen))
    assert found.dtype == torch.float32
    assert not found.requires_grad
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-5)
    assert judge.score(images[:0], lq[:0], hq[:0], [], []).shape == (0,)


def as_file(images: Tensor) -> Tensor:
    """What a file of 8 bits holds of them."""
    return (images.detach() * 255).round() / 255


def test_an_address_that_nobody_answers_is_told_before_training() -> None:
    listener = open_listener("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(UserError, match="cannot be reached"):
        load(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "url", ["http://", "http://host:port", "https://[::1", "https://user:secret@host", "http://h/?a"]
)
def test_what_is_no_address_is_refused_before_anything_is_loaded(url: str) -> None:
    with pytest.raises(UserError, match=r"(no address of a remote reward|holds a password)"):
        check_judge(url)

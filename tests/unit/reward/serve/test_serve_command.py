"""`reward serve` refuses what it may not do before a model is loaded."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import reward.score.scorer
from reward.__main__ import main
from reward.serve.command import TOKEN_VARIABLE, read_token

Run = Callable[..., str]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command, which must fail before any weights are read; gives what it says."""
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.setattr(reward.score.scorer, "load_scorer", lambda *_, **__: pytest.fail("weights were read"))

    def run(*words: object) -> str:
        assert main(["serve", "--reward", "absent", *map(str, words), "--data", str(tmp_path / "data")]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    return run


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gpu.example.org"])
def test_the_network_is_not_served_without_a_token(fail: Run, host: str) -> None:
    said = fail("--host", host)
    assert f"--host {host} would let everyone in the network in; give --token-file FILE" in said


def test_a_bad_token_is_said(fail: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be read as the token's file" in fail("--token-file", tmp_path / "absent")
    for token in ("short", "", "with a space in the middle", "ümläuts-ümläuts-ümläuts"):
        (tmp_path / "token").write_text(token)
        assert "a token has 16 or more letters" in fail("--token-file", tmp_path / "token")
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    assert f"{TOKEN_VARIABLE}: a token has 16 or more" in fail()


def test_the_token_is_that_of_the_file_or_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "from-the-environment\n")
    assert read_token(None) == "from-the-environment"
    (tmp_path / "token").write_text("from-the-file-itself\n")
    assert read_token(tmp_path / "token") == "from-the-file-itself"


def test_a_taken_port_is_said(fail: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Cannot listen on 127.0.0.1:{port}" in fail("--port", port)
    assert "--port: Give 65,535 or less" in fail("--port", 70_000)

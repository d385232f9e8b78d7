import sys
from pathlib import Path

import pytest

from runs.own_command import drop_common, own_command


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([], []),
        (["--preset", "tiny", "--data", "d", "--db", "postgresql://u:secret@h/n"], ["--preset", "tiny"]),
        (["--data=d", "--db=x", "--run=3", "in"], ["in"]),
        (["--dataset", "d", "--data-less=1", "--runs", "2"], ["--dataset", "d", "--data-less=1", "--runs", "2"]),
        (["in", "--", "--data", "x"], ["in", "--", "--data", "x"]),
        (["--data"], []),
    ],
)
def test_where_the_data_is_belongs_not_to_the_command(given: list[str], kept: list[str]) -> None:
    assert drop_common(given) == kept


def test_the_command_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["/x/reward/__main__.py", "train", "--preset", "tiny", "--data", "d"])
    arguments = ["--preset", "tiny"]
    expected = {"arguments": arguments, "cwd": str(Path.cwd()), "device": "cpu", "launcher": {}}
    assert own_command("reward train") == expected
    assert own_command("reward score") == {}
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert own_command("reward train")["launcher"] == {"processes": 4, "machines": 2}
    monkeypatch.setattr(sys, "argv", ["/x/bin/pytest", "train"])
    assert own_command("reward train") == {}

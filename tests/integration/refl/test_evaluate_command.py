"""`python -m refl evaluate` as a process that dies as it restores, then as it measures, and ends as if it had not."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("diffusers", reason="needs diffusers: `make install`")

import refl.evaluate.compare  # noqa: E402
import refl.evaluate.restored  # noqa: E402
from refl.__main__ import main  # noqa: E402
from refl.evaluate.values import Measured  # noqa: E402
from refl.restorers.tiny import save_tiny  # noqa: E402
from refl.tune.data import Face  # noqa: E402
from reward.model.checkpoint import save_model  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from tests.forked import start  # noqa: E402
from tests.unit.refl.conftest import MICRO, faces, make_micro_restorer, make_micro_reward  # noqa: E402, F401
from tests.watching import LIMIT_SECONDS  # noqa: E402

QUICK = ("psnr", "gmsd"), ("niqe_skvideo",)
"""Metrics with and without ground truth, instead of all."""


def die_restoring(words: list[str]) -> None:
    """Evaluate, and end as SIGKILL would while the eleventh image is written: at once, nothing cleaned up."""
    write, written = refl.evaluate.restored.write_whole, []

    def write_or_die(file: Path, content: bytes) -> None:
        if file.suffix == ".png":
            written.append(file)
            if len(written) == 11:
                file.with_name(f".{file.name}.part").write_bytes(content[:9])
                os._exit(9)
        write(file, content)

    refl.evaluate.restored.write_whole = write_or_die
    evaluate_quickly(words)


def die_measuring(words: list[str]) -> None:
    """Evaluate, and end so while the fifth batch's values are written."""
    add, added = Measured.add, []

    def add_or_die(self: Measured, keys: Any, found: Any) -> None:
        added.append(keys)
        if len(added) == 5:
            with open(self.path, "a") as stream:
                stream.write('{"keys": ["0')
            os._exit(9)
        add(self, keys, found)

    Measured.add = add_or_die  # type: ignore[method-assign]
    evaluate_quickly(words)


def evaluate_quickly(words: list[str]) -> None:
    refl.evaluate.compare.WITH_TRUTH, refl.evaluate.compare.WITHOUT_TRUTH = QUICK
    main(words)


@pytest.fixture
def words(data: Path, tmp_path: Path, faces: list[Face]) -> list[str]:  # noqa: F811
    """A command on two micro restorers, a micro reward model and eight faces."""
    for name, seed in (("one", 0), ("two", 1)):
        save_tiny(make_micro_restorer(seed), MICRO, tmp_path / name)
    save_model(make_micro_reward(tmp_path, text_mode="caption"), tmp_path / "reward")
    words = ["evaluate", "--data", str(data), "--faces", str(faces[0].path.parent), "--reward"]
    words += [f"frozen={tmp_path / 'reward'}", "--degradation", "tiny-refl", "--seeds", "0", "1", "--batch-size", "3"]
    return [*words, "--method", str(tmp_path / "one"), "--method", str(tmp_path / "two")]


def run_until_death(log: Path, target: Callable[[list[str]], None], words: list[str]) -> None:
    process = start(log, target, words, HF_HUB_OFFLINE="1")
    process.join(LIMIT_SECONDS)
    assert process.exitcode == 9, log.read_text()


@pytest.mark.slow
def test_killed_while_restoring_and_while_measuring_it_ends_with_the_same_table(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, metrics in zip(("WITH_TRUTH", "WITHOUT_TRUTH"), QUICK, strict=True):
        monkeypatch.setattr(f"refl.evaluate.compare.{name}", metrics)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*words, f"--out={whole}"]) == 0
    run_until_death(tmp_path / "log", die_restoring, [*words, f"--out={killed}"])
    assert 6 <= len(list(killed.rglob("*.png"))) < 32
    run_until_death(tmp_path / "log", die_measuring, [*words, f"--out={killed}"])
    assert len(list(killed.rglob("*.png"))) == 32
    assert (killed / "measured.jsonl").read_text().count("\n") == 4
    assert main([*words, f"--out={killed}"]) == 0
    for name in ("values.csv", "summary.csv", "synthetic.png"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    with open(killed / "summary.csv", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == "reward frozen"]
    assert [row["n"] for row in rows] == ["8", "8"]
    assert json.loads((killed / "summary.json").read_text())["notes"]  # six of the faces have no caption


@pytest.mark.slow
def test_memory_does_not_grow_with_the_faces() -> None:
    command = [sys.executable, "-m", "benchmarks.evaluating", "--faces", "100", "1000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

"""The whole chain as `make loop` runs it, small: every command takes what the one before left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from tests.making import run_python

pytest.importorskip("diffusers", reason="needs diffusers: `make install`")


@pytest.mark.slow
@pytest.mark.usefixtures("shared_faces")
def test_from_faces_to_an_evaluated_restorer(tmp_path: Path) -> None:
    small = ["--faces=40", "--test-faces=4", "--judgments=80", "--reward-steps=20", "--refl-steps=4", "--control"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = run_python("-m", "experiments.loop", f"--out={tmp_path}", "--seeds", "3", *small, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "SIMULATED" in done.stdout
    table = pd.read_csv(tmp_path / "seed3" / "report" / "summary.csv")
    assert set(table["method"]) == {"tiny", "tuned-tuned", "control-tuned"}
    assert {"reward frozen", "ssim", "fsim", "vif"} <= set(table["metric"])
    labels = [json.loads(line) for line in (tmp_path / "seed3" / "dataset" / "pairs.jsonl").read_text().splitlines()]
    assert {label["origin"] for label in labels} == {"human", "svm"}
    names = {label["source"] for label in labels}
    tests = {path.stem for path in (tmp_path / "seed3" / "faces" / "test").iterdir()}
    assert not names & tests

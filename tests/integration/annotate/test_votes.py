"""The votes benchmark reads every layout it names, and prints a row a method with the accuracy first."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.votes import compute_ceiling, count_pairs, load_codec, load_study, read_wins
from tests.making import run_python

ROW = re.compile(r"^(\S.*?)\s{2,}(0\.\d{3}|1\.000)\s+(\[\d\.\d{3}, \d\.\d{3}\])?$", re.MULTILINE)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """pairs.csv of 24 images, two methods, six people: the method with the higher `Good` is preferred five to one."""
    rng = np.random.default_rng(0)
    votes, metrics = [], []
    for number in range(24):
        image = f"{number:04}"
        good = dict(zip(("Alpha", "BetaGAN"), rng.normal(size=2), strict=True))
        metrics += [(image, model, value, rng.normal(), 0.1) for model, value in good.items()]
        best, other = sorted(good, key=good.__getitem__, reverse=True)
        for person in range(6):
            left, right = (best, other) if rng.random() < 0.5 else (other, best)
            votes.append((f"s{person}", image, left, right, other if person == number % 6 else best, 3.0))
    pd.DataFrame(votes, columns=["session", "image", "left", "right", "chosen", "seconds"]).to_csv(
        tmp_path / "pairs.csv", index=False
    )
    pd.DataFrame(metrics, columns=["image", "model", "Good", "LPIPS", "Same"]).to_csv(
        tmp_path / "metrics_by_authors.csv", index=False
    )
    return tmp_path


def run(*arguments: str | Path) -> str:
    done = run_python("experiments/votes.py", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pairs_are_read_and_scored(study: Path) -> None:
    rows = {name: float(accuracy) for name, accuracy, _ in ROW.findall(run(study))}
    assert rows["Good"] == pytest.approx(5 / 6, abs=1e-3)
    assert rows["SVM"] > 0.75
    assert {"LPIPS", "Same", "majority side", "logistic regression", "gradient boosting"} <= set(rows)
    assert rows["Same"] == 0.5  # equal values decide nothing
    assert rows["one person against the others"] == pytest.approx(5 / 6, abs=1e-3)


def test_one_study_is_scored_by_another(study: Path) -> None:
    said = run("--train", study, "--test", study)
    assert f"trained on {study.name}" in said
    assert any(name == "SVM" for name, _, _ in ROW.findall(said))


def test_sides_may_be_named_too(study: Path) -> None:
    votes = pd.read_csv(study / "pairs.csv", dtype=str)
    by_name, share = read_wins(study)
    votes["chosen"] = np.where(votes["chosen"] == votes["left"], "Left", "right")
    votes.to_csv(study / "pairs.csv", index=False)
    by_side, same_share = read_wins(study)
    assert by_name.equals(by_side)
    assert share == same_share


def test_a_choice_of_one_of_four_is_three_wins(tmp_path: Path) -> None:
    (tmp_path / "best_of_4.csv").write_text(
        "observer,image,chosen,seconds\no1,0001,A,2\no2,0001,B,2\no3,0001,C,2\no4,0001,D,2\no5,0001,A,2\n"
    )
    wins, share = read_wins(tmp_path)
    assert len(wins) == 15
    assert share is None
    pairs = count_pairs(wins).set_index(["a", "b"])
    assert len(pairs) == 6
    (p_a,) = [row["p_a"] if a == "A" else 1 - row["p_a"] for (a, b), row in pairs.iterrows() if {a, b} == {"A", "B"}]
    assert p_a == pytest.approx(2 / 3)
    assert pairs["n"].sum() == 15


def test_real_votes(shared_faces: Path) -> None:
    codec = load_codec(shared_faces / "votes" / "codec")
    assert len(codec.pairs) == 144
    assert compute_ceiling(codec)[0] == pytest.approx(0.671, abs=1e-3)
    values = next(iter(codec.metrics.values()))
    data = codec.training(values)
    vmaf = data.differences[:, list(values.columns).index("vmaf")]
    assert np.mean((vmaf > 0) == (data.p_a > 0.5)) == pytest.approx(0.819, abs=0.001)  # as published with the data
    assert 0.4 < data.p_a.mean() < 0.6  # sides are drawn


def test_a_folder_without_votes_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no votes; it has neither"):
        load_study(tmp_path)

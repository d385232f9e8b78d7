"""The whole way on real faces, by the commands: import, pair, measure, judge, fit, label, export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import func, select

from annotate.judging.people import get_person
from annotate.measure.vectors import load_differences
from db.models import Judgment, Label, MetricValue, Origin, Pair
from db.session import Database, open_database
from metrics.lists import columns, load_metric_list
from tests.making import AnnotateHere, Ended, judge, read_lines

pytest.importorskip("pyiqa")
JUDGED = 60


@pytest.fixture
def annotate(annotate_here: AnnotateHere) -> Callable[..., Ended]:
    """Runs `python -m annotate …` on the test's data folder."""

    def run(*arguments: str, fails: bool = False) -> Ended:
        done = annotate_here(*arguments)
        assert (done.returncode == 2) == fails, done.stderr
        return done

    return run


def judge_simulated(database: Database, count: int) -> None:
    """A marked program answers random pairs: noise and fidelity to the input please it, with logistic noise."""
    wanted = [c for c in columns(load_metric_list("offline")) if c.name in ("noise_level", "nlpd@lq", "sharpness")]
    rng = np.random.default_rng(0)
    with database.write() as session:
        person = get_person(session, "robot")
        pairs = session.scalars(select(Pair.id).order_by(Pair.shuffle_key).limit(count)).all()
        differences = load_differences(session, wanted, pairs)
        utility = (differences / differences.std(axis=0)).sum(axis=1)
        for pair_id, better in zip(pairs, utility + rng.logistic(scale=0.4, size=count) > 0, strict=True):
            judge(session, person.id, pair_id, "a" if better else "b")


@pytest.mark.slow  # the browser's test of the pages goes the same way
def test_from_photos_to_a_dataset_that_a_machine_labelled(
    shared_faces: Path, data: Path, annotate: Callable[..., Ended]
) -> None:
    annotate("import", str(shared_faces / "restored"))
    annotate("pair")
    said = annotate("fit", fails=True).stderr
    assert said.startswith("error: No pair has a human label yet")
    annotate("measure")
    assert "0 values" in annotate("measure").stdout  # nothing is missing any more
    annotate("people", "add", "robot", "--simulated")
    database = open_database(data)
    judge_simulated(database, JUDGED)

    said = annotate("fit", fails=True).stderr  # a program's answers do not count unless asked for
    assert "No pair has a human label yet" in said
    fitted = annotate("fit", "--include-simulated", "--target-accuracy", "0.75", "--kernel", "linear").stdout
    assert "SIMULATED" in fitted
    assert "human ceiling not known" in fitted
    folder = max((data / "runs").iterdir(), key=lambda path: int(path.name))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["simulated"]
    assert summary["target"]["threshold"] is not None
    methods = pd.read_csv(folder / "methods.csv")
    assert {"SVM", "logistic regression", "gradient boosting", "noise_level", "gmsd@lq"} <= set(methods["method"])
    assert not [name for name in methods["method"] if name.endswith("@hq")]  # only 4 of 85 photos have ground truth
    assert any("Not used" in note and "@hq" in note for note in summary["notes"])

    preview = annotate("label", "--dry-run").stdout
    assert "would be labelled" in preview
    done = annotate("label").stdout
    assert done.splitlines()[0].replace("would be labelled", "labelled") == preview.splitlines()[0].replace(
        "would be labelled", "labelled"
    )
    with database.read() as session:
        svm = session.scalars(select(Label).where(Label.origin == Origin.svm)).all()
        judged = set(session.scalars(select(Judgment.pair_id)))
        assert len(svm) > 100
        assert not {label.pair_id for label in svm} & judged
        assert (
            session.scalar(select(func.count()).select_from(MetricValue).where(MetricValue.failure.is_not(None))) == 0
        )
    database.close()

    out = data / "dataset"
    annotate("export", "--out", str(out), "--include-simulated")
    rows = read_lines(out / "pairs.jsonl")
    by_origin = {origin: [row for row in rows if row["origin"] == origin] for origin in ("human", "svm")}
    assert len(by_origin["human"]) == JUDGED
    assert len(by_origin["svm"]) == len(svm)
    assert all("with simulated annotators" in row["made_by"] for row in rows)
    assert all(row["p_a"] != 0.5 for row in by_origin["svm"])
    scores = pd.read_parquet(out / "scores.parquet")
    assert set(columns(load_metric_list("offline"))[0].metric.split()) <= set(scores["metric"])
    refused = annotate("export", "--out", str(data / "without"), fails=True).stderr
    assert "No label to export" in refused


def test_a_target_out_of_reach_says_so(data: Path, database: Database, annotate: Callable[..., Ended]) -> None:
    assert "There is no labeler yet" in annotate("label", fails=True).stderr
    said = annotate("fit", "--target-accuracy", "1.5", fails=True).stderr
    assert said.startswith("error: --target-accuracy: Give less than 1")
    assert "There is no metric list 'mine'" in annotate("fit", "--metrics", "mine", fails=True).stderr

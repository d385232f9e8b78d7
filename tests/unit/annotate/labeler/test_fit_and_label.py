"""From judgments to a stored labeler, and from it to labels: what is used, what is left alone, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from annotate.judging.judgments import Answer, record_judgment
from annotate.judging.labels import find_pairs_told_by_tasks
from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person
from annotate.judging.tasks import make_tasks
from annotate.labeler import label as label_module
from annotate.labeler.command import format_label
from annotate.labeler.file import FILE, StoredLabeler, find_labeler, load_labeler
from annotate.labeler.fit import fit
from annotate.labeler.label import Filter, LabelReport, label_pairs
from annotate.labeler.settings import FitSettings
from annotate.measure.vectors import load_differences
from db.errors import UserError
from db.models import (
    Asked,
    Candidate,
    Choice,
    Image,
    Judgment,
    Label,
    MetricValue,
    Origin,
    Pair,
    Picked,
    Source,
    Split,
    Task,
)
from db.project import load_settings
from db.records import add_metric_value
from db.session import Database
from metrics.lists import columns, load_metric_list
from runs.store import open_run
from tests.making import add_candidates, write_metric_list
from tests.making import judge as judge_pair

Judge = Callable[..., None]
Fit = Callable[..., tuple[StoredLabeler, dict[str, Any]]]
METHODS = ["m1", "m2", "m3", "m4"]
SOURCES = 24


@pytest.fixture
def metric_list(tmp_path: Path) -> str:
    return write_metric_list(tmp_path / "two.toml")


@pytest.fixture
def measured(database: Database, metric_list: str) -> Database:
    """SOURCES photos of four candidates, both metrics stored; every fifth photo is of the test split."""
    rng = np.random.default_rng(0)
    wanted = columns(load_metric_list(metric_list))
    with database.write() as session:
        for number in range(SOURCES):
            split = Split.test if number % 5 == 4 else Split.train
            for candidate in add_candidates(session, f"face{number:02}", METHODS, split):
                for column in wanted:
                    value = float(rng.normal())
                    values = {"value": value, "raw_value": value}
                    add_metric_value(session, candidate.image, column.metric, column.version, **values)
        make_pairs(session, load_settings(session))
    return database


@pytest.fixture
def judge(measured: Database, metric_list: str) -> Judge:
    """`judge(60)`: a person answers that many pairs by sharpness, now and then wrongly."""

    def judge(count: int, *, name: str = "ada", simulated: bool = False, picked: Picked = Picked.random) -> None:
        rng = np.random.default_rng(1)
        with measured.write() as session:
            person = add_person(session, name, simulated=simulated)
            session.flush()
            pairs = session.scalars(
                select(Pair.id).where(Pair.judgment_count == 0).order_by(Pair.shuffle_key).limit(count)
            ).all()
            differences = load_differences(session, columns(load_metric_list(metric_list)), pairs)
            for pair_id, difference in zip(pairs, differences[:, 0], strict=True):
                choice = Choice.a if (difference > 0) != (rng.random() < 0.1) else Choice.b
                judge_pair(session, person.id, pair_id, choice, picked=picked)

    return judge


def run_fit(database: Database, data: Path, metric_list: str, **settings: Any) -> tuple[StoredLabeler, dict[str, Any]]:
    """A fit as the command runs it."""
    chosen = FitSettings(metrics=metric_list, kernel="linear", **{"quick": True, **settings})
    with open_run(database, data, "annotate fit", chosen.model_dump()) as run:
        _, _, summary = fit(database, run.folder, run.run_id, chosen, run.progress)
    return load_labeler(run.folder, run.run_id), summary


@pytest.fixture
def fit_measured(measured: Database, data: Path, metric_list: str) -> Fit:
    """`fit_measured(seed=1)`: a fit of what is measured, as `run_fit` gives it."""
    return partial(run_fit, measured, data, metric_list)


def labels(session: Session) -> list[Label]:
    return list(session.scalars(select(Label).where(Label.origin == Origin.svm, Label.superseded_at.is_(None))))


def test_a_fit_leaves_a_whole_report_and_a_labeler(
    measured: Database, data: Path, judge: Judge, fit_measured: Fit
) -> None:
    judge(100)
    stored, summary = fit_measured(quick=False)
    folder = data / "runs" / str(stored.run_id)
    assert json.loads((folder / "summary.json").read_text())["labeler"] == stored.name
    assert summary["accuracy"]["accuracy"] > 0.85
    assert summary["columns"] == ["sharpness", "contrast"]
    assert summary["test"]["n"] > 0
    assert not summary["simulated"]
    for name in ("methods", "coverage", "calibration", "importance", "learning_curve"):
        assert (folder / f"{name}.png").exists()
        assert len(pd.read_csv(folder / f"{name}.csv")) > 1
    judged = pd.read_csv(folder / "judged.csv")
    assert len(judged) == 100
    trained_on = stored.provenance["trained_on"]
    with measured.read() as session:
        train = session.scalars(
            select(Judgment.uuid)
            .join(Pair, Pair.id == Judgment.pair_id)
            .join(Source, Source.id == Pair.source_id)
            .where(Source.split == Split.train)
        ).all()
    assert sorted(uuid for row in trained_on for uuid in row[4]) == sorted(train)
    assert stored.provenance["settings"]["seed"] == 0


def test_the_same_judgments_give_the_same_labeler(judge: Judge, fit_measured: Fit) -> None:
    judge(80)
    one, other = (fit_measured()[0] for _ in range(2))
    assert np.array_equal(one.labeler.vectors, other.labeler.vectors)
    assert np.array_equal(one.held_out["confidence"], other.held_out["confidence"])


def test_simulated_annotators_are_left_out_or_marked(judge: Judge, fit_measured: Fit) -> None:
    judge(80, name="robot", simulated=True)
    with pytest.raises(UserError, match="No pair has a human label yet"):
        fit_measured()
    _, summary = fit_measured(include_simulated=True)
    assert summary["simulated"]
    assert summary["people"]["n_simulated"] == 1
    assert summary["people"]["n_people"] == 0


def test_only_randomly_picked_pairs_measure_accuracy(judge: Judge, fit_measured: Fit) -> None:
    judge(60, picked=Picked.uncertain)
    with pytest.raises(UserError, match="None of the labels is of a pair that was picked at random"):
        fit_measured()
    judge(40, name="ben")
    stored, summary = fit_measured()
    assert summary["n_measured"] < summary["n_train"]
    assert len(stored.held_out["confidence"]) == summary["n_measured"] <= 40


def test_labels_and_what_is_left_alone(measured: Database, judge: Judge, fit_measured: Fit) -> None:
    judge(100)
    stored, summary = fit_measured()
    sure = stored.held_out["confidence"] > np.median(stored.held_out["confidence"])
    stored = replace(stored, held_out={**stored.held_out, "right": sure.astype(float)})  # half can be labelled
    before = label_pairs(measured, stored, 0.87, 0.51, Filter(), dry_run=True)
    with measured.read() as session:
        assert labels(session) == []
    report = label_pairs(measured, stored, 0.87, 0.51, Filter())
    assert before == report
    assert report.expected_coverage == pytest.approx((stored.held_out["confidence"] >= report.threshold).mean())
    assert 0 < report.labelled < report.pairs
    assert report.labelled + report.abstained == report.pairs == SOURCES * 6 - 100
    with measured.read() as session:
        made = labels(session)
        judged = set(session.scalars(select(Judgment.pair_id)))
        assert len(made) == report.labelled == report.added
        assert not {label.pair_id for label in made} & judged
        assert {label.made_by for label in made} == {stored.name}
        assert all(max(label.p_a, 1 - label.p_a) >= report.threshold for label in made)
    again = label_pairs(measured, stored, 0.87, 0.51, Filter())
    assert (again.added, again.unchanged) == (0, report.labelled)
    assert summary["target"]["target_accuracy"] == 0.9


def test_a_new_labeler_supersedes_and_counts_the_flips(measured: Database, judge: Judge, fit_measured: Fit) -> None:
    judge(100)
    first, _ = fit_measured()
    old = label_pairs(measured, first, 0.75, 0.51, Filter())
    with measured.write() as session:  # everybody changes their mind
        swapped = {Choice.a: Choice.b, Choice.b: Choice.a}
        for judgment in session.scalars(select(Judgment)):
            judgment.choice = swapped[judgment.choice]
    second, _ = fit_measured()
    new = label_pairs(measured, second, 0.75, 0.51, Filter())
    assert new.flipped > 0
    assert new.changed == 0
    assert new.flipped + new.withdrawn == old.labelled
    with measured.read() as session:
        history = session.scalar(select(func.count()).where(Label.superseded_at.is_not(None)))
        assert history == old.labelled
        assert {label.made_by for label in labels(session)} == {second.name}


def test_a_target_out_of_reach_labels_nothing(measured: Database, judge: Judge, fit_measured: Fit) -> None:
    judge(60)
    stored, _ = fit_measured()
    report = label_pairs(measured, stored, 0.999, 0.6, Filter())
    assert report == LabelReport(stored.name, 0.999, 0.6)
    with measured.read() as session:
        assert labels(session) == []


def test_filters(measured: Database, judge: Judge, fit_measured: Fit) -> None:
    judge(100)
    stored, _ = fit_measured()
    everything = label_pairs(measured, stored, 0.75, 0.51, Filter(), dry_run=True)
    test = label_pairs(measured, stored, 0.75, 0.51, Filter(splits=(Split.test,)), dry_run=True)
    two = label_pairs(measured, stored, 0.75, 0.51, Filter(methods=("m1", "m2")), dry_run=True)
    assert 0 < test.pairs < everything.pairs
    assert two.pairs <= SOURCES
    with pytest.raises(UserError, match=r"no method called 'm9'. Known: m1, m2, m3, m4"):
        label_pairs(measured, stored, 0.75, 0.51, Filter(methods=("m9",)))


def test_a_pair_without_all_values_is_not_labelled(measured: Database, judge: Judge, fit_measured: Fit) -> None:
    judge(100)
    stored, _ = fit_measured()
    with measured.write() as session:
        unjudged = session.scalars(select(Pair).where(Pair.judgment_count == 0)).first()
        assert unjudged is not None
        image = session.get_one(Candidate, unjudged.a_id).image_id
        session.execute(
            update(MetricValue)
            .where(MetricValue.image_id == image, MetricValue.metric == "contrast")
            .values(value=None, raw_value=None, failure="the file is gone")
        )
    report = label_pairs(measured, stored, 0.75, 0.51, Filter())
    assert report.unmeasured > 0
    with measured.read() as session:
        assert unjudged.id not in {label.pair_id for label in labels(session)}


def test_values_of_another_version_are_not_used(measured: Database, judge: Judge, fit_measured: Fit) -> None:
    judge(100)
    stored, _ = fit_measured()
    with measured.write() as session:
        session.execute(update(MetricValue).where(MetricValue.metric == "contrast").values(version="facereward 99"))
    with pytest.raises(UserError, match=r"wants contrast of facereward \d+, which is measured with facereward 99"):
        label_pairs(measured, stored, 0.75, 0.51, Filter())


def test_a_column_that_few_images_have_is_dropped_and_said(measured: Database, judge: Judge, fit_measured: Fit) -> None:
    judge(100)
    with measured.write() as session:
        few = select(Image.id).where(Image.id % 2 == 0)
        session.execute(
            update(MetricValue)
            .where(MetricValue.metric == "contrast", MetricValue.image_id.in_(few))
            .values(value=None, raw_value=None, failure="too small")
        )
    stored, summary = fit_measured()
    assert [column.name for column in stored.labeler.columns] == ["sharpness"]
    assert "Not used, since too few images have them: contrast." in summary["notes"]


def test_nothing_measured_names_the_command(database: Database, data: Path, metric_list: str) -> None:
    with database.write() as session:
        add_candidates(session, "face", METHODS, Split.train)
        make_pairs(session, load_settings(session))
        person = add_person(session, "ada")
        session.flush()
        for pair_id in session.scalars(select(Pair.id)):
            judge_pair(session, person.id, pair_id)
    with pytest.raises(UserError, match=r"run `python -m annotate measure --metrics two` first"):
        run_fit(database, data, metric_list)


def test_a_killed_labelling_goes_on(
    measured: Database, judge: Judge, fit_measured: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(60)
    stored, _ = fit_measured()
    monkeypatch.setattr(label_module, "BLOCK_PAIRS", 10)
    whole = label_pairs(measured, stored, 0.75, 0.51, Filter(), dry_run=True)

    def die(done: int, _total: int) -> None:
        if done >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_pairs(measured, stored, 0.75, 0.51, Filter(), progress=die)
    with measured.read() as session:
        done = len(labels(session))
    assert 0 < done < whole.labelled
    rest = label_pairs(measured, stored, 0.75, 0.51, Filter())
    assert (rest.unchanged, rest.added) == (done, whole.labelled - done)


def test_a_judgment_that_comes_in_meanwhile_wins(
    measured: Database, judge: Judge, fit_measured: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(60)
    stored, _ = fit_measured()
    compare = label_module._compare

    def judge_first(block: list[Any], *rest: Any) -> Any:
        changes = compare(block, *rest)
        with measured.write() as session:
            person = add_person(session, "ben")
            session.flush()
            first = changes.added[0][0]
            judge_pair(session, person.id, first, Choice.tie)
        return changes

    monkeypatch.setattr(label_module, "_compare", judge_first)
    label_pairs(measured, stored, 0.75, 0.51, Filter())
    with measured.read() as session:
        judged = set(session.scalars(select(Judgment.pair_id)))
        assert not judged & {label.pair_id for label in labels(session)}


def test_two_photos_of_one_person_are_never_on_both_sides(measured: Database, judge: Judge, fit_measured: Fit) -> None:
    with measured.write() as session:
        for source in session.scalars(select(Source)):
            source.group = f"person{int(source.key[4:]) // 4}"
    judge(100)
    stored, summary = fit_measured()
    with measured.read() as session:
        person = dict(session.execute(select(Pair.key, Source.group).join(Source, Source.id == Pair.source_id)).all())
    folds: dict[str, set[int]] = {}
    for pair, _, _, fold, _ in stored.provenance["trained_on"]:
        folds.setdefault(person[pair], set()).add(fold)
    assert all(len(found) == 1 for found in folds.values())
    assert len(set.union(*folds.values())) == 5
    assert summary["n_groups"] == 6 == len(np.unique(stored.held_out["group"]))
    assert (summary["target"]["confidence"], summary["target"]["n_groups"]) == (0.9, 6)


def test_photos_of_one_person_say_that_no_other_is_known(measured: Database, judge: Judge, fit_measured: Fit) -> None:
    with measured.write() as session:
        session.execute(update(Source).values(group="ada"))
    judge(100)
    stored, summary = fit_measured()
    assert "All photos are of one person" in " ".join(summary["notes"])
    assert len(np.unique(stored.held_out["group"])) == summary["n_sources"]  # by photo then


def test_a_labeler_of_an_earlier_version_labels_and_says_what_it_does_not_know(
    measured: Database, data: Path, judge: Judge, fit_measured: Fit
) -> None:
    judge(100)
    stored, _ = fit_measured()
    path = data / "runs" / str(stored.run_id) / FILE
    values = json.loads(path.read_text())
    del values["held_out"]["group"], values["provenance"]["settings"]["confidence"]
    path.write_text(json.dumps(values))
    old = load_labeler(path.parent, stored.run_id)
    report = label_pairs(measured, old, 0.75, 0.51, Filter())
    assert report.labelled > 0
    assert not report.knows_groups
    assert "counted as if each were of another person" in format_label(
        {**asdict(report), "coverage": report.coverage, "dry_run": False}
    )
    del values["held_out"]["weight"][0]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="do not go together"):
        load_labeler(path.parent, stored.run_id)


def test_a_labeler_is_found_by_name_run_or_latest(
    measured: Database, data: Path, judge: Judge, fit_measured: Fit
) -> None:
    with measured.read() as session, pytest.raises(UserError, match="There is no labeler yet"):
        find_labeler(session, data)
    judge(60)
    first, _ = fit_measured()
    second, _ = fit_measured(seed=1)
    with measured.read() as session:
        assert find_labeler(session, data).name == second.name
        assert find_labeler(session, data, first.name).run_id == first.run_id
        assert find_labeler(session, data, str(first.run_id)).name == first.name
        with pytest.raises(UserError, match="There is no labeler 'svm-77-00000000'"):
            find_labeler(session, data, "svm-77-00000000")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: text.replace("facereward labeler 1", "facereward labeler 9"), "of format 'facereward labeler 9'"),
        (lambda text: text.replace('"kernel": "linear"', '"kernel": "os.system"'), "unknown kernel"),
        (lambda text: text.replace('"coefficients": [1.0]', '"coefficients": [1.0, 2.0]'), "do not go together"),
    ],
)
def test_a_damaged_labeler_is_refused(data: Path, judge: Judge, fit_measured: Fit, change: Any, said: str) -> None:
    judge(60)
    stored, _ = fit_measured()
    path = data / "runs" / str(stored.run_id) / FILE
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=said):
        load_labeler(path.parent, stored.run_id)


def test_a_changed_labeler_is_another(measured: Database, data: Path, judge: Judge, fit_measured: Fit) -> None:
    judge(60)
    stored, _ = fit_measured()
    path = data / "runs" / str(stored.run_id) / FILE
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 5'))
    with measured.read() as session, pytest.raises(UserError, match=f"not {stored.name}; its file was changed"):
        find_labeler(session, data, stored.name)


def test_a_stored_reward_is_a_feature_like_any_other(
    measured: Database, data: Path, tmp_path: Path, judge: Judge, fit_measured: Fit
) -> None:
    judge(100)
    version = "reward 0123456789abcdef"
    path = write_metric_list(tmp_path / "with_reward.toml", metrics=(f"reward-mine {version}", "contrast"))
    with measured.write() as session:
        for value in session.scalars(select(MetricValue).where(MetricValue.metric == "sharpness")):
            rewarded = {"metric": "reward-mine", "version": version}
            same = {"value": value.value, "raw_value": value.raw_value}
            session.add(MetricValue(image_id=value.image_id, **rewarded, **same))
    by_sharpness, _ = fit_measured()
    by_reward, summary = run_fit(measured, data, path)
    assert summary["columns"] == ["reward-mine", "contrast"]
    assert np.array_equal(by_reward.labeler.vectors, by_sharpness.labeler.vectors)
    assert label_pairs(measured, by_reward, 0.85, 0.51, Filter()).labelled > 0


def test_a_pair_that_a_task_told_of_is_left_alone(measured: Database, judge: Judge, fit_measured: Fit) -> None:
    judge(100)
    stored, _ = fit_measured()
    before = label_pairs(measured, stored, 0.75, 0.51, Filter(), dry_run=True)
    with measured.write() as session:
        make_tasks(session, load_settings(session), 4)
        person = add_person(session, "ben")
        session.flush()
        for number, task in enumerate(session.scalars(select(Task)).all()):
            shown = {"task_id": task.id, "ranking": "c>?", "places": "abcd", "asked": Asked.best}
            uuid = str(UUID(int=number, version=4))
            record_judgment(session, person.id, Answer(uuid, None, 0, None, None, 2.0, **shown))
        told = find_pairs_told_by_tasks(session)
        unjudged = set(session.scalars(select(Pair.id).where(Pair.judgment_count == 0)))
    assert len(told) == 3 * SOURCES, "the best of four tells of three pairs"
    assert told & unjudged
    report = label_pairs(measured, stored, 0.75, 0.51, Filter())
    assert report.pairs == before.pairs - len(told & unjudged)
    with measured.read() as session:
        assert not told & {label.pair_id for label in labels(session)}

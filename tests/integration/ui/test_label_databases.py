"""Metric vectors, fitting and labelling on SQLite and on PostgreSQL: the same rows, the same labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sqlalchemy import select

from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person
from annotate.labeler.file import load_labeler
from annotate.labeler.fit import fit
from annotate.labeler.label import Filter, label_pairs
from annotate.labeler.settings import FitSettings
from annotate.measure.vectors import load_differences, load_vectors
from db.models import Candidate, Choice, Label, Origin, Pair, Source
from db.project import load_settings
from db.records import add_metric_value
from db.session import Database
from metrics.lists import Column
from runs.store import open_run
from tests.making import add_candidates, add_image_row, judge, write_metric_list


def add_value(session, candidate: Candidate, column: Column, value: float, reference: str = "") -> None:
    values = {"value": value, "raw_value": value, "reference": reference}
    add_metric_value(session, candidate.image, column.metric, column.version, **values)


def test_vectors_take_their_own_reference_and_version(any_database: Database) -> None:
    own, other = Column("ssim", "v1", "lq"), Column("ssim", "v2", "lq")
    plain, truth = Column("niqe", "v1", ""), Column("ssim", "v1", "hq")
    with any_database.write() as session:
        first, second = add_candidates(session, "face", ["m1", "m2"])
        lq = add_image_row(session, "a")
        session.get_one(Source, first.source_id).lq_image_id = lq.id
        add_value(session, first, own, 0.25, reference=lq.sha256)
        add_value(session, first, own, 0.75, reference="b" * 64)  # against another photo
        add_value(session, first, plain, 3.0)
        add_value(session, second, plain, 1.0)
        add_value(session, second, other, 9.0, reference=lq.sha256)
        session.flush()
        make_pairs(session, load_settings(session))
        found = load_vectors(session, [plain, own, truth], [second.id, first.id])
        assert np.array_equal(found, [[1.0, np.nan, np.nan], [3.0, 0.25, np.nan]], equal_nan=True)
        pair = session.scalars(select(Pair)).one()
        difference = load_differences(session, [plain], [pair.id])[0, 0]
        assert difference == (2.0 if pair.a_id == first.id else -2.0)


def test_fit_and_label(any_database: Database, data: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with any_database.write() as session:
        for number in range(20):
            for candidate in add_candidates(session, f"face{number:02}", ["m1", "m2", "m3", "m4"]):
                for name in ("sharpness", "contrast"):
                    add_value(session, candidate, Column(name, "facereward 1", ""), float(rng.normal()))
        make_pairs(session, load_settings(session))
        person = add_person(session, "ada")
        session.flush()
        judged = session.scalars(select(Pair.id).order_by(Pair.shuffle_key).limit(60)).all()
        columns = [Column(name, "facereward 1", "") for name in ("sharpness", "contrast")]
        for pair_id, (sharper, _) in zip(judged, load_differences(session, columns, judged), strict=True):
            choice = Choice.a if sharper > 0 else Choice.b
            judge(session, person.id, pair_id, choice)
    settings = FitSettings(metrics=write_metric_list(tmp_path / "two.toml"), kernel="linear", quick=True)
    with open_run(any_database, data, "annotate fit", settings.model_dump()) as run:
        fit(any_database, run.folder, run.run_id, settings, run.progress)
    stored = load_labeler(run.folder, run.run_id)
    report = label_pairs(any_database, stored, 0.9, 0.6, Filter())
    assert report.labelled > 30
    with any_database.read() as session:
        labels = session.scalars(select(Label).where(Label.origin == Origin.svm)).all()
        right = [
            (label.p_a > 0.5) == (load_differences(session, columns, [label.pair_id])[0, 0] > 0) for label in labels
        ]
        assert np.mean(right) > 0.9
    assert label_pairs(any_database, stored, 0.9, 0.6, Filter()).unchanged == report.labelled

"""The demo project, made from the photos inside installed packages."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from db.errors import UserError
from db.images import open_rgb
from db.models import Candidate, Image, Pair, Source, Split
from db.project import load_settings, save_settings
from db.records import add_source
from db.session import Database, open_database
from tests.making import count_rows, run_python, stored_names
from ui import demo
from ui.demo import METHODS, PAIRS_PER_SOURCE, make_demo

FAST_METHODS = {name: METHODS[name] for name in ("unsharp mask", "bilateral and sharpen", "Richardson-Lucy")}


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the six shots of each person and three methods, where the whole demo is not the point."""
    monkeypatch.setattr(demo, "METHODS", FAST_METHODS)
    monkeypatch.setattr(demo, "SHOTS", demo.SHOTS[:1])


def counts(database: Database) -> dict[str, int]:
    tables = (Source, Candidate, Pair, Image)
    return dict(zip((table.__name__ for table in tables), count_rows(database, *tables), strict=True))


def test_the_demo_is_whole_and_takes_one_judgment_a_pair(database: Database, data: Path) -> None:
    make_demo(database, data)
    with database.read() as session:
        sources = session.scalars(select(Source)).all()
        pairs = session.scalars(select(Pair)).all()
        candidates = session.scalars(select(Candidate)).all()
        assert Counter(source.group for source in sources) == {"Eileen Collins": 6, "Grace Hopper": 6}
        assert {source.split for source in sources} == {Split.train}
        assert all(source.caption and source.lq and source.hq for source in sources)
        assert Counter(candidate.source_id for candidate in candidates) == dict.fromkeys(range(1, 13), len(METHODS))
        assert {candidate.method.name: candidate.method.settings for candidate in candidates} == {
            name: parameters for name, (_, parameters) in METHODS.items()
        }
        assert Counter(pair.source_id for pair in pairs) == dict.fromkeys(range(1, 13), PAIRS_PER_SOURCE)
        assert {pair.judgments_wanted for pair in pairs} == {1}
        images = session.scalars(select(Image)).all()
        assert {(image.width_px, image.height_px, image.conversion) for image in images} == {(512, 512, None)}

        for candidate in candidates:
            assert candidate.source.lq is not None
            lq = np.asarray(open_rgb(data, candidate.source.lq), dtype=np.float64)
            restored = np.asarray(open_rgb(data, candidate.image), dtype=np.float64)
            difference = np.abs(restored - lq).mean()
            assert 0.3 < difference < 30, (candidate.method.name, candidate.source.key, difference)
        assert len({candidate.image_id for candidate in candidates}) == len(candidates)


@pytest.mark.usefixtures("fast")
def test_every_lq_is_worse_than_its_hq_but_the_same_face(database: Database, data: Path) -> None:
    make_demo(database, data)
    with database.read() as session:
        for source in session.scalars(select(Source)):
            assert source.lq is not None
            assert source.hq is not None
            lq = np.asarray(open_rgb(data, source.lq).convert("L"), dtype=np.float64)
            hq = np.asarray(open_rgb(data, source.hq).convert("L"), dtype=np.float64)
            assert np.corrcoef(lq.ravel(), hq.ravel())[0, 1] > 0.95
            assert np.abs(lq - hq).mean() > 1


@pytest.mark.usefixtures("fast")
def test_the_demo_is_made_once_and_alike_everywhere(database: Database, data: Path, tmp_path: Path) -> None:
    make_demo(database, data)
    rows, files = counts(database), stored_names(data)
    assert rows == {"Source": 2, "Candidate": 6, "Pair": 6, "Image": 10}
    make_demo(database, data)
    assert counts(database) == rows
    other = open_database(tmp_path / "other")
    make_demo(other, tmp_path / "other")
    assert stored_names(tmp_path / "other") == files
    other.close()


def test_a_database_with_photos_is_left_alone(database: Database, data: Path) -> None:
    with database.write() as session:
        add_source(session, "mine", Split.train)
    make_demo(database, data)
    assert counts(database) == {"Source": 1, "Candidate": 0, "Pair": 0, "Image": 0}
    assert not (data / "images").exists()


@pytest.mark.usefixtures("fast")
def test_the_demo_obeys_settings_that_were_there_before(database: Database, data: Path) -> None:
    with database.write() as session:
        save_settings(session, {"title": "Mine", "judgments_per_pair": 2})
    make_demo(database, data)
    with database.read() as session:
        assert load_settings(session).title == "Mine"
        assert set(session.scalars(select(Pair.judgments_wanted))) == {2}


@pytest.mark.usefixtures("fast")
def test_a_demo_that_fails_in_the_middle_leaves_no_rows_and_can_be_made_again(
    database: Database, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(demo, "make_pairs", fail)
        with pytest.raises(KeyboardInterrupt):
            make_demo(database, data)
    assert counts(database) == {"Source": 0, "Candidate": 0, "Pair": 0, "Image": 0}
    make_demo(database, data)
    assert counts(database)["Source"] == 2


def test_a_missing_photo_is_named(database: Database, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"astronaut\.png is missing from the installed skimage"):
        make_demo(database, data)
    assert counts(database)["Source"] == 0


def test_the_demo_loads_nothing_heavy_into_the_app() -> None:
    code = (
        "import sys, ui.demo\n"
        "ui.demo._open_photo(ui.demo.COLLINS), ui.demo._open_photo(ui.demo.HOPPER)\n"
        "print([name for name in ('torch', 'scipy', 'matplotlib', 'skimage') if name in sys.modules])"
    )
    assert run_python("-c", code).stdout.strip() == "[]"

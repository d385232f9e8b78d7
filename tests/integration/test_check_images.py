"""Images of imports by earlier versions, stored with tags that a browser applies: found, and mended with their rows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from annotate.__main__ import main
from annotate.check_images import check_stored_images
from annotate.pairs import make_pairs
from annotate.project import load_settings, save_settings
from db.images import image_path, probe_bytes
from db.models import Candidate, Image, MetricValue, Pair, Source, Split
from db.records import add_candidate, add_method, add_source
from db.session import Database
from tests.colour_files import encode, gama, tagged

PHOTO = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
LINEAR = tagged(encode(PHOTO), gama(1.0))


def store(session, data: Path, content: bytes) -> Image:
    """A file as earlier versions stored it: byte for byte."""
    sha256 = hashlib.sha256(content).hexdigest()
    path = image_path(data, sha256, ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    image = Image(sha256=sha256, suffix=".png", width_px=16, height_px=16, size_bytes=len(content))
    session.add(image)
    session.flush()
    return image


@pytest.fixture
def old(database: Database, data: Path) -> str:
    """A source whose candidate "linear" and lq carry gAMA, each with values; gives the candidate's SHA-256."""
    with database.write() as session:
        lq = store(session, data, tagged(encode(PHOTO[::-1]), gama(1.0)))
        linear, plain = store(session, data, LINEAR), store(session, data, encode(PHOTO[:, ::-1]))
        source = add_source(session, "face", Split.train, lq=lq)
        for name, image in (("linear", linear), ("plain", plain)):
            add_candidate(session, source, add_method(session, name), image)
            for metric, reference in (("niqe", ""), ("psnr", lq.sha256)):
                session.add(
                    MetricValue(
                        image_id=image.id, metric=metric, version="1", reference=reference, value=1.0, raw_value=1.0
                    )
                )
        save_settings(session, {"guidelines": f"![x](/img/{linear.sha256})"})
        make_pairs(session, load_settings(session))
        return linear.sha256


def test_what_is_affected_is_said_and_nothing_changed(
    database: Database, data: Path, old: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-images", "--data", str(data)]) == 0
    said = capsys.readouterr().out
    assert "3 images read, 2 are seen differently" in said
    assert f"affected: {old}: colours converted from gAMA to sRGB" in said
    assert "3 values were computed from other pixels" in said
    assert image_path(data, old, ".png").read_bytes() == LINEAR
    with database.read() as session:
        assert len(session.scalars(select(MetricValue)).all()) == 4


def test_mending_stores_what_people_saw_and_keeps_all_but_the_values(
    database: Database, data: Path, old: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-images", "--mend", "--data", str(data)]) == 0
    assert "2 images are stored as people saw them, 3 values" in capsys.readouterr().out
    expected = probe_bytes(LINEAR, "x")
    with database.read() as session:
        image = session.scalars(select(Image).where(Image.original_sha256 == old)).one()
        assert (image.sha256, image.conversion) == (expected.sha256, expected.conversion)
        assert image_path(data, image.sha256, ".png").read_bytes() == expected.converted
        assert not image_path(data, old, ".png").exists()
        (value,) = session.scalars(select(MetricValue)).all()
        assert (value.metric, value.reference) == ("niqe", "")
        assert len(session.scalars(select(Pair)).all()) == 1
        assert load_settings(session).guidelines == f"![x](/img/{image.sha256})"
    assert check_stored_images(database, data).affected == []


def test_a_plain_file_that_is_there_already_takes_its_place(database: Database, data: Path) -> None:
    with database.write() as session:
        plain = probe_bytes(LINEAR, "x").converted
        assert plain is not None
        there, linear = store(session, data, plain), store(session, data, LINEAR)
        source = add_source(session, "face", Split.train, lq=linear, hq=linear)
        add_candidate(session, source, add_method(session, "m"), linear)
        kept = there.id
    assert check_stored_images(database, data, mend=True).mended == 1
    with database.read() as session:
        source = session.scalars(select(Source)).one()
        candidate = session.scalars(select(Candidate)).one()
        assert (source.lq_image_id, source.hq_image_id, candidate.image_id) == (kept, kept, kept)
        assert [image.id for image in session.scalars(select(Image))] == [kept]


def test_a_file_that_is_gone_is_named(database: Database, data: Path, old: str) -> None:
    image_path(data, old, ".png").unlink()
    (missing,) = check_stored_images(database, data, mend=True).unreadable
    assert missing[0] == old
    assert "cannot be read" in missing[1]

"""Images of imports by earlier versions, stored with tags that a browser applies: found, and mended with their rows."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from annotate.ingest.check_images import check_stored_images
from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person
from db.images import image_path, probe_bytes
from db.models import Candidate, Image, MetricValue, Pair, Role, Source, Split
from db.project import load_settings, save_settings
from db.records import add_candidate, add_method, add_metric_value, add_source
from db.session import Database
from tests.colour_files import encode, gama, tagged
from tests.making import AnnotateHere, fetch, judge

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


def add_value(session, image: Image, metric: str, reference: str = "", value: float = 1.0) -> None:
    add_metric_value(session, image, metric, "1", value=value, raw_value=1.0, reference=reference)


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
                add_value(session, image, metric, reference)
        save_settings(session, {"guidelines": f"![x](/img/{linear.sha256})"})
        make_pairs(session, load_settings(session))
        return linear.sha256


def test_what_is_affected_is_said_and_nothing_changed(
    database: Database, data: Path, old: str, annotate_here: AnnotateHere
) -> None:
    code, said, _ = annotate_here("check")
    assert code == 0
    assert "3 images read, 2 are seen differently" in said
    assert f"affected: {old}: colours converted from gAMA to sRGB" in said
    assert "3 values were computed from other pixels" in said
    assert image_path(data, old, ".png").read_bytes() == LINEAR
    assert len(fetch(database, select(MetricValue))) == 4


def test_mending_stores_what_people_saw_and_keeps_all_but_the_values(
    database: Database, data: Path, old: str, annotate_here: AnnotateHere
) -> None:
    mended = annotate_here("check-images", "--mend")
    assert mended.returncode == 0
    assert "2 images are stored as people saw them, 3 values" in mended.stdout
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


def values_of(database: Database) -> set[tuple[str, str, str, float | None]]:
    """(image, metric, reference, value) of all that is stored."""
    with database.read() as session:
        rows = session.execute(
            select(Image.sha256, MetricValue.metric, MetricValue.reference, MetricValue.value).join(
                Image, Image.id == MetricValue.image_id
            )
        )
        return {tuple(row) for row in rows}


TEXT = (b"tEXt", b"parameters\0secret method")


def test_metadata_is_taken_out_and_all_that_is_known_of_the_pixels_stays(
    database: Database, data: Path, annotate_here: AnnotateHere
) -> None:
    pictures = [encode(picture) for picture in (PHOTO[::-1], PHOTO, PHOTO[:, ::-1])]
    with database.write() as session:
        lq, *restored = [store(session, data, tagged(content, TEXT)) for content in pictures]
        old = {image.sha256 for image in (lq, *restored)}
        source = add_source(session, "face", Split.train, lq=lq)
        for number, image in enumerate(restored):
            add_candidate(session, source, add_method(session, f"m{number}"), image)
            for metric, reference in (("niqe", ""), ("psnr", lq.sha256)):
                add_value(session, image, metric, reference, float(number))
        make_pairs(session, load_settings(session))
    checked = annotate_here("check")
    assert checked.returncode == 0
    assert "3 hold metadata" in checked.stdout
    assert {row[0] for row in values_of(database)} <= old
    assert annotate_here("check", "--mend").returncode == 0
    names = [hashlib.sha256(content).hexdigest() for content in pictures]
    assert values_of(database) == {
        (names[number + 1], metric, reference, float(number))
        for number in range(2)
        for metric, reference in (("niqe", ""), ("psnr", names[0]))
    }
    with database.read() as session:
        images = session.scalars(select(Image).order_by(Image.id)).all()
        assert [image.sha256 for image in images] == names
        assert {image.original_sha256 for image in images} == old
        assert {image.conversion for image in images} == {"metadata removed: tEXt"}
        assert len(session.scalars(select(Pair)).all()) == 1
    stored = {path.stem: path.read_bytes() for path in (data / "images").rglob("*.png")}
    assert stored == dict(zip(names, pictures, strict=True))
    again = check_stored_images(database, data)
    assert (again.affected, again.with_metadata, again.damaged) == ([], [], [])


def test_images_that_differ_in_metadata_alone_become_one_with_the_values_of_both(
    database: Database, data: Path
) -> None:
    with database.write() as session:
        plain, other = store(session, data, encode(PHOTO)), store(session, data, tagged(encode(PHOTO), TEXT))
        source = add_source(session, "face", Split.train, lq=other, hq=plain)
        add_candidate(session, source, add_method(session, "m"), other)
        for image, metric in ((plain, "niqe"), (other, "niqe"), (other, "musiq")):
            add_value(session, image, metric)
        for reference in (plain.sha256, other.sha256):
            add_value(session, plain, "psnr", reference)
        name = plain.sha256
    check_stored_images(database, data, mend=True)
    assert values_of(database) == {(name, "niqe", "", 1.0), (name, "musiq", "", 1.0), (name, "psnr", name, 1.0)}
    assert [image.sha256 for image in fetch(database, select(Image))] == [name]


@pytest.mark.parametrize("damage", ["missing", "cut", "other bytes", "another picture"])
def test_what_is_damaged_is_named_with_all_that_depends_on_it(
    database: Database, data: Path, damage: str, annotate_here: AnnotateHere
) -> None:
    with database.write() as session:
        lq, first, second = (store(session, data, encode(picture)) for picture in (PHOTO[::-1], PHOTO, PHOTO[:, ::-1]))
        source = add_source(session, "<face>", Split.train, lq=lq)
        for name, image in (("gfpgan", first), ("bicubic", second)):
            add_candidate(session, source, add_method(session, name), image)
        add_value(session, first, "niqe")
        make_pairs(session, load_settings(session))
        person = add_person(session, "ada", Role.annotator)
        session.flush()
        pair = session.scalars(select(Pair)).one()
        judge(session, person.id, pair.id)
        name = first.sha256
    exported = annotate_here("export")
    assert exported.returncode == 0
    run_id = int(re.search(r"runs/(\d+)/dataset", exported.stdout)[1])
    assert annotate_here("check").returncode == 0
    path = image_path(data, name, ".png")
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "other bytes":
        path.write_bytes(path.read_bytes() + b"x")
    else:
        path.write_bytes(encode(PHOTO[:8]))
    before = path.read_bytes() if path.exists() else None
    said = annotate_here("check", "--mend")
    assert said.returncode == 2
    assert f"damaged: images/{name[:2]}/{name}.png: " in said.stdout
    assert "is 'gfpgan' of '<face>', seed 0" in said.stdout
    assert "in 1 pair, 1 judgment, 1 label, 1 value" in said.stdout
    assert f"in run {run_id} (annotate export): " in said.stdout
    assert "error: 1 of 3 stored images are damaged. Import their originals again" in said.stderr
    assert (path.read_bytes() if path.exists() else None) == before

"""Scoring by a reward that sees the photo that was restored: which photo, what is stored, what is asked for again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from sqlalchemy import select

import reward.score.scorer
from db.errors import UserError
from db.images import add_image, probe_image
from db.models import MetricValue, Source, Split
from db.records import add_candidate, add_method, add_source
from db.session import Database
from pixels.read import read_rgb
from reward.model.checkpoint import compute_version
from reward.model.model import RewardModel
from reward.score.files_and_rows import ImageItem, find_images, score_candidates, score_files
from reward.score.input_photos import InputPhotos
from reward.score.scorer import Scorer, read_batches, score_apart, score_batch
from runs.image_folders import read_caption


@pytest.fixture
def seeing(make_model: Callable[..., RewardModel]) -> Scorer:
    """Of two members, whose heads differ."""
    model = make_model(text_mode="input", members=2)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.heads.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return Scorer("seeing", None, model, compute_version(model))


def list_lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_photos_are_found_by_name(tmp_path: Path, make_photo: Callable[..., Path]) -> None:
    names = ("one.JPG", "deep/Two.png", "deep/one.png", "three.webp", "é.png")
    one, two, deep, three, accented = (make_photo(tmp_path / "lq" / name, at) for at, name in enumerate(names))
    photos = InputPhotos(tmp_path / "lq")
    for image, expected in (
        ("one.png", one),
        ("gfpgan/one.png", one),
        ("deep/one.png", deep),
        ("gfpgan/deep/TWO.PNG", two),
        ("three_00.jpg", three),
        ("three_out.png", three),
        ("three_01.png", None),
        ("e\u0301.png", accented),
        ("thirteen.png", None),
    ):
        assert photos.find(Path(image)) == expected, image
    make_photo(tmp_path / "lq" / "ONE.png", 9)
    twice = InputPhotos(tmp_path / "lq")
    assert twice.find(Path("one.png")) == one
    with pytest.raises(UserError, match=r"(ONE\.png and one\.JPG|one\.JPG and ONE\.png) could each be the photo"):
        twice.find(Path("One.png"))
    with pytest.raises(UserError, match="is no folder; --inputs"):
        InputPhotos(tmp_path / "absent")


def test_files_are_scored_with_their_photos(tmp_path: Path, make_photo: Callable[..., Path], seeing: Scorer) -> None:
    images = [make_photo(tmp_path / "out" / f"{name}.png", at) for at, name in enumerate(("one", "two", "three"))]
    images[0].with_suffix(".txt").write_bytes(b"a face\r\n")
    inputs = [
        make_photo(tmp_path / "lq" / f"{name}.JPG", 9, size) for name, size in (("one", (20, 24)), ("two", (64, 8)))
    ]
    out = tmp_path / "rewards.jsonl"
    with pytest.raises(UserError, match=r"sees the photo.*1 of the 3 images lack it.*--inputs DIR.*three\.png"):
        score_files(seeing, find_images([tmp_path / "out"], "lq", tmp_path / "lq"), out, 2)
    assert not out.exists()
    inputs.append(make_photo(tmp_path / "lq" / "three.webp", 11))
    items = find_images([tmp_path / "out"], "lq", tmp_path / "lq")
    report = score_files(seeing, items, out, 2)
    assert report.scored == 3
    lines = {line["image"]: line for line in list_lines(out)}
    assert lines[str(images[0])]["caption"] == read_caption(images[0]) == "a face"
    for image, photo in zip(images, inputs, strict=True):
        line = lines[str(image)]
        value, spread = score_apart(seeing, [read_rgb(image)], [None], [read_rgb(photo)])
        assert (line["input"], line["input_sha256"]) == (str(photo), probe_image(photo).sha256)
        assert line["value"] == pytest.approx(value[0], abs=1e-5)
        assert line["spread"] == pytest.approx(spread[0], abs=1e-5)
    assert report.spread == pytest.approx(np.mean([line["spread"] for line in lines.values()]))
    assert report.spread > 1e-4
    assert score_files(seeing, items, out, 2).already == 3
    make_photo(inputs[1], 77)  # another photo is another reward
    assert score_files(seeing, items, out, 2).scored == 1
    assert len({line["value"] for line in list_lines(out) if line["image"] == str(images[1])}) == 2


def test_lines_of_a_blind_reward_stay_as_they_are(
    tmp_path: Path, make_photo: Callable[..., Path], make_model: Callable[..., RewardModel]
) -> None:
    model = make_model(text_mode="learned")
    out = tmp_path / "rewards.jsonl"
    report = score_files(
        Scorer("blind", None, model, compute_version(model)),
        [ImageItem(make_photo(tmp_path / "a.png", 0), None)],
        out,
        2,
    )
    assert [*list_lines(out)[0]] == ["image", "sha256", "caption", "metric", "version", "value", "reading"]
    assert report.spread is None


def test_a_dataset_gives_its_own_photos(make_dataset: Callable[..., Path]) -> None:
    def add_photo(row: dict[str, Any]) -> None:
        row.update(lq=f"images/{row['source']}.png", sha256_lq="0" * 64)

    folder = make_dataset(sources=6, change=add_photo)
    items = find_images([folder], "lq")
    assert {item.input.name for item in items if item.input} == {f"face{number}.png" for number in range(6)}
    assert all(item.input is None for item in find_images([folder]))


@pytest.fixture
def project(database: Database, data: Path, tmp_path: Path, make_photo: Callable[..., Path]) -> list[int]:
    """Two photos and their inputs; one image is a candidate of both. Gives the ids of the restored images."""
    with database.write() as session:
        files = [make_photo(tmp_path / f"{at}.png", at, (40, 30 + at)) for at in range(5)]
        images = [add_image(session, data, probe_image(file), file) for file in files]
        for number, restored in ((0, images[:2]), (1, images[1:3])):
            source = add_source(session, f"face{number}", Split.train, lq=images[3 + number])
            for name, image in zip(("m1", "m2"), restored, strict=True):
                add_candidate(session, source, add_method(session, name), image)
        return [image.id for image in images[:3]]


def read_values(database: Database) -> dict[tuple[str, int, str], float | None]:
    with database.read() as session:
        rows = session.scalars(select(MetricValue))
        return {(row.metric, row.image_id, row.reference): row.value for row in rows}


def test_candidates_have_a_reward_for_each_photo(
    database: Database, data: Path, tmp_path: Path, project: list[int], make_photo: Callable[..., Path], seeing: Scorer
) -> None:
    report = score_candidates(seeing, database, data, 3)
    assert (report.scored, report.already) == (4, 0)
    stored = read_values(database)
    rewards = {key[1:]: value for key, value in stored.items() if key[0] == "reward-seeing"}
    photos = [probe_image(tmp_path / f"{at}.png").sha256 for at in (3, 4)]
    assert set(rewards) == {*((at, photos[0]) for at in project[:2]), *((at, photos[1]) for at in project[1:])}
    assert rewards[project[1], photos[0]] != pytest.approx(rewards[project[1], photos[1]], abs=1e-4)
    images = [read_rgb(tmp_path / f"{at}.png") for at in range(5)]
    assert rewards[project[1], photos[1]] == pytest.approx(
        score_batch(seeing, [images[1]], [None], [images[4]])[0], abs=1e-5
    )
    spreads = {key[1:]: value for key, value in stored.items() if key[0] == "spread-seeing"}
    assert set(spreads) == set(rewards)
    assert report.spread == pytest.approx(np.mean([value for value in spreads.values() if value is not None]))
    again = score_candidates(seeing, database, data, 3)
    assert (again.scored, again.already) == (0, 4)
    with database.write() as session:  # another input of a photo makes its candidates new
        source = session.scalars(select(Source).where(Source.key == "face1")).one()
        file = make_photo(tmp_path / "again.png", 50)
        source.lq_image_id = add_image(session, data, probe_image(file), file).id
    again = score_candidates(seeing, database, data, 3)
    assert (again.scored, again.already) == (2, 2)


def test_candidates_without_a_photo_are_one_line(
    database: Database, data: Path, project: list[int], seeing: Scorer
) -> None:
    with database.write() as session:
        session.scalars(select(Source).where(Source.key == "face1")).one().lq_image_id = None
    with pytest.raises(UserError, match=r"2 of the 4 restored images lack it.*Import the photos with lq.*'face1'"):
        score_candidates(seeing, database, data, 3)
    assert not read_values(database)


def test_a_photo_of_many_images_is_read_and_encoded_once(
    tmp_path: Path, make_photo: Callable[..., Path], seeing: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no more than two batches are in memory."""
    images = [make_photo(tmp_path / f"{at}.png", at) for at in range(12)]
    photo = make_photo(tmp_path / "lq" / "photo.png", 99)
    read: list[Path] = []
    encoded: list[int] = []

    def read_image(path: Path) -> Any:
        read.append(path)
        return np.asarray(PilImage.open(path).convert("RGB"))

    encode = seeing.model.encode_pixels
    monkeypatch.setattr(reward.score.scorer, "read_image", read_image)
    monkeypatch.setattr(seeing.model, "encode_pixels", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    batches = read_batches(((path, path, photo) for path in images), 4)
    for number, batch in enumerate(batches):
        assert len(read) <= 5 * (number + 2)
        score_batch(
            seeing, [image for _, image, _ in batch], [None] * 4, [seen for *_, seen in batch if seen is not None]
        )
    assert read.count(photo) == 3
    assert encoded == [5, 5, 5]


def test_a_photo_that_cannot_be_read_leaves_its_images_out(
    tmp_path: Path, make_photo: Callable[..., Path], seeing: Scorer
) -> None:
    images = [make_photo(tmp_path / f"{at}.png", at) for at in range(2)]
    good, bad = make_photo(tmp_path / "good.png", 5), tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    items = [ImageItem(images[0], None, bad), ImageItem(images[1], None, good)]
    report = score_files(seeing, items, tmp_path / "rewards.jsonl", 2)
    assert (report.scored, report.unreadable_count) == (1, 1)
    assert "bad.png" in report.unreadable[0]

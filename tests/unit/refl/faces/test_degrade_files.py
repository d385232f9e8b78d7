from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from annotate.ingest.layout import read_folder
from db.errors import UserError
from refl.faces.command import DegradeOptions, run_degrade
from refl.faces.degrade import PUBLISHED, Degradation, degrade, draw_degradation
from refl.faces.degrade_files import degrade_folder, make_degradation
from refl.faces.photo_files import PhotosRefused, map_in_threads
from runs.options import Place


@pytest.fixture
def photos(tmp_path: Path, make_photo) -> Path:
    for number in range(3):
        make_photo(tmp_path / "photos" / f"face{number}.png", number)
    make_photo(tmp_path / "photos" / "face3.jpg", 3)
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    return tmp_path / "photos"


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "degradations.jsonl").read_text().splitlines()]


def test_each_lq_is_the_degradation_that_its_line_records(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = degrade_folder(photos, out, "strong", 7)
    assert (report.degraded, report.already) == (4, 0)
    assert [line["image"] for line in lines_of(out)] == ["face0.png", "face1.png", "face2.png", "face3.jpg"]
    for line in lines_of(out):
        assert (out / line["hq"]).read_bytes() == (photos / line["image"]).read_bytes()
        hq = np.asarray(PilImage.open(photos / line["image"]), np.float32) / np.float32(255)
        again = degrade(hq, Degradation(**line["degradation"]))
        assert np.array_equal(np.asarray(PilImage.open(out / line["lq"])), np.round(again * 255).astype(np.uint8))
        assert (line["preset"], line["seed"]) == ("strong", 7)
        assert 4 <= line["degradation"]["downsample_factor"] <= 30
    assert len({line["degradation"]["noise_seed"] for line in lines_of(out)}) == 4


def test_what_is_made_can_be_imported(photos: Path, tmp_path: Path) -> None:
    degrade_folder(photos, tmp_path / "out", "published", 0)
    plan = read_folder(tmp_path / "out")
    assert plan.refused == []
    assert {(s.key, s.lq, s.hq) for s in plan.sources.values()} == {
        *((f"face{n}", f"lq/face{n}.png", f"hq/face{n}.png") for n in range(3)),
        ("face3", "lq/face3.png", "hq/face3.jpg"),
    }


def test_same_seed_same_bytes_whatever_the_threads_and_the_other_photos(photos: Path, tmp_path: Path) -> None:
    degrade_folder(photos, tmp_path / "one", "published", 1, threads=1)
    degrade_folder(photos, tmp_path / "four", "published", 1, threads=4)
    assert read_all(tmp_path / "one") == read_all(tmp_path / "four")
    (photos / "face0.png").unlink()
    degrade_folder(photos, tmp_path / "fewer", "published", 1)
    assert read_all(tmp_path / "fewer")["lq/face2.png"] == read_all(tmp_path / "one")["lq/face2.png"]
    degrade_folder(photos, tmp_path / "other", "published", 2)
    assert read_all(tmp_path / "other")["lq/face2.png"] != read_all(tmp_path / "one")["lq/face2.png"]


def test_the_draw_depends_on_seed_and_name_only() -> None:
    assert make_degradation(PUBLISHED, 3, "a.png") == make_degradation(PUBLISHED, 3, "a.png")
    drawn = [make_degradation(PUBLISHED, seed, name) for seed in range(20) for name in ("a.png", "b.png")]
    assert len({one.noise_seed for one in drawn}) == 40
    assert draw_degradation(PUBLISHED, np.random.default_rng(3)) not in drawn


def test_an_interrupted_call_goes_on_and_ends_with_the_same_folder(photos: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    degrade_folder(photos, whole, "published", 0)

    class Ended(Exception):
        pass

    def end_after_six(done: int, _total: int) -> None:
        if done == 6:
            raise Ended

    with pytest.raises(Ended):
        degrade_folder(photos, out, "published", 0, threads=1, progress=end_after_six)
    with open(out / "degradations.jsonl", "a") as stream:
        stream.write('{"image": "face2.p')  # as a kill leaves it
    report = degrade_folder(photos, out, "published", 0)
    assert (report.degraded, report.already) == (2, 2)
    assert read_all(out) == read_all(whole)
    (out / "lq" / "face1.png").unlink()
    report = degrade_folder(photos, out, "published", 0)
    assert (report.degraded, report.already) == (1, 3)
    assert read_all(out) == read_all(whole)


def test_a_kill_before_the_first_line_goes_on_too(photos: Path, tmp_path: Path) -> None:
    def end_at_once(done: int, _total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    degrade_folder(photos, tmp_path / "whole", "published", 0)
    with pytest.raises(KeyboardInterrupt):
        degrade_folder(photos, tmp_path / "out", "published", 0, progress=end_at_once)
    (tmp_path / "out" / "degradations.jsonl").write_text("")
    assert degrade_folder(photos, tmp_path / "out", "published", 0).degraded == 4
    assert read_all(tmp_path / "out") == read_all(tmp_path / "whole")


def test_a_broken_photo_is_named_and_nothing_is_written(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes((photos / "face3.jpg").read_bytes()[:200])
    (photos / "text.png").write_text("no photo")
    with pytest.raises(PhotosRefused, match=r"broken.jpg: corrupt or truncated.*text.png: not a PNG") as caught:
        degrade_folder(photos, tmp_path / "out", "published", 0)
    assert [Path(name).name for name, _ in caught.value.refused] == ["broken.jpg", "text.png"]
    assert not (tmp_path / "out").exists()


def test_what_is_stored_converted_is_degraded_converted(tmp_path: Path) -> None:
    tall = PilImage.new("RGB", (10, 30), "red")
    exif = PilImage.Exif()
    exif[0x0112] = 6  # lies on its side
    (tmp_path / "photos").mkdir()
    tall.save(tmp_path / "photos" / "turned.jpg", exif=exif)
    degrade_folder(tmp_path / "photos", tmp_path / "out", "gfpgan", 0)
    for name in ("lq", "hq"):
        assert PilImage.open(tmp_path / "out" / name / "turned.png").size == (30, 10)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"preset": "strong"}, "was made with preset published and seed 0"),
        ({"seed": 1}, "was made with preset published and seed 0"),
        ({"preset": "mild"}, "no preset 'mild'. Known: published, gfpgan, small, strong"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_another_call_into_the_same_folder_is_refused(photos: Path, tmp_path: Path, change, said) -> None:
    degrade_folder(photos, tmp_path / "out", "published", 0)
    before = read_all(tmp_path / "out")
    with pytest.raises(UserError, match=said):
        degrade_folder(photos, tmp_path / "out", **{"preset": "published", "seed": 0, **change})
    assert read_all(tmp_path / "out") == before


def test_a_folder_of_something_else_is_left_alone(photos: Path, tmp_path: Path, make_photo) -> None:
    with pytest.raises(UserError, match="was not made by this command"):
        degrade_folder(photos, tmp_path, "published", 0)
    degrade_folder(photos, tmp_path / "out", "published", 0)
    make_photo(photos / "face1.png", 50)
    with pytest.raises(UserError, match=r"face1.png has changed since"):
        degrade_folder(photos, tmp_path / "out", "published", 0)


@pytest.mark.parametrize("name", ["nothing", "empty", "deep"])
def test_no_photos(tmp_path: Path, make_photo, name) -> None:
    (tmp_path / "empty").mkdir()
    make_photo(tmp_path / "deep" / "hq" / "a.png", 0)
    said = {"nothing": "cannot be read", "empty": "No photo in", "deep": "name one of them: hq"}[name]
    with pytest.raises(UserError, match=said):
        degrade_folder(tmp_path / name, tmp_path / "out", "published", 0)


def test_the_command_says_what_comes_next(photos: Path, tmp_path: Path, capsys) -> None:
    run_degrade(DegradeOptions(folder=photos, out=tmp_path / "a b", workers=2), Place())
    said = capsys.readouterr().out
    assert "4 photos degraded" in said
    assert f"python -m annotate import '{tmp_path / 'a b'}'" in said


def test_threads_keep_the_order_and_hand_on_errors() -> None:
    assert list(map_in_threads(lambda n: n * n, range(50), 3)) == [n * n for n in range(50)]
    taken = []

    def fail_at_four(number: int) -> int:
        taken.append(number)
        return 1 // (number - 4)

    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(fail_at_four, range(1000), 2))
    assert max(taken) < 20  # nor is the rest begun

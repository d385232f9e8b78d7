from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from sqlalchemy import select

from db.errors import UserError
from db.images import image_path
from db.models import Candidate, Method, Source, Split
from db.project import ProjectSettings, load_settings, save_settings
from db.records import add_source, draw_split
from refl.evaluate.restored import restore_batch
from refl.faces.color_fix import fix_color
from refl.faces.photo_files import PhotosRefused, encode_png, read_photo
from refl.restore.files import MadeBy, _enlarge_once, list_made, write_faces, write_photo
from refl.restore.inputs import add_photos
from refl.restore.restore import RestoreMethod, count_missing, restore_faces, restore_missing, to_tensor
from refl.restore.rows import SPLIT_DEFAULTS, add_face, add_restorer_method, find_missing, find_sources
from refl.restorers.surface import draw_ahead, make_generators


@dataclass
class StandIn:
    """Brightens, and adds noise of the seed: a restorer whose every pixel can be worked out by hand."""

    image_size_px: int = 32
    multiple_px: int = 8
    default_steps: int = 3
    is_random: bool = True
    noise: float = 0.0
    add: float = 0.2
    settings: dict = field(default_factory=dict)
    calls: list[tuple[tuple[int, ...], list[int], int | None]] = field(default_factory=list)

    def restore(self, lq: torch.Tensor, seeds: Sequence[int], steps: int | None = None) -> torch.Tensor:
        self.calls.append((tuple(lq.shape), list(seeds), steps))
        (noise,) = draw_ahead(make_generators(seeds), lq.shape[1:], 1, lq.device)
        return (lq + self.add + self.noise * noise).clamp(0, 1)


def grey(height: int, width: int, value: int = 100) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def faces(database, data, make_photo, tmp_path) -> list[int]:
    """Three sources of 24 x 32 pixels."""
    with database.write() as session:
        paths = [make_photo(tmp_path / "lq" / f"face{number}.png", number) for number in range(3)]
        return [add_face(session, data, path.stem, path.read_bytes()) for path in paths]


def add_method_of(database, method: RestoreMethod) -> int:
    with database.write() as session:
        return add_restorer_method(session, method.name, method.settings, None)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (32, 32), (24, 32), (300, 2), (100, 90)])
def test_a_face_comes_back_in_its_own_size(height, width) -> None:
    stand_in = StandIn()
    (restored,) = restore_faces(RestoreMethod("m", stand_in), [grey(height, width)], [0])
    assert restored.shape == (height, width, 3)
    assert np.abs(restored.astype(int) - 151).max() <= 1  # 100 / 255 + 0.2
    assert stand_in.calls == [((1, 3, 32, 32), [0], None)]


def test_another_size_is_made_where_it_is_asked_for() -> None:
    stand_in = StandIn()
    method = RestoreMethod("m", stand_in, size_px=64, work_size_px=48, steps=7)
    wide, square = restore_faces(method, [grey(10, 20), grey(99, 99)], [4, 5])
    assert (wide.shape, square.shape) == ((32, 64, 3), (64, 64, 3))
    assert stand_in.calls == [((2, 3, 48, 48), [4, 5], 7)]


def test_faces_of_one_batch_keep_to_themselves() -> None:
    dark, light = restore_faces(RestoreMethod("m", StandIn()), [grey(20, 30, 10), grey(30, 20, 180)], [0, 0])
    assert (dark.shape, light.shape) == ((20, 30, 3), (30, 20, 3))
    assert abs(int(dark.mean()) - 61) <= 1
    assert abs(int(light.mean()) - 231) <= 1


def test_a_fix_of_the_colours_follows_where_it_is_asked_for() -> None:
    face = np.random.default_rng(0).integers(40, 120, (32, 32, 3), dtype=np.uint8)
    (fixed,) = restore_faces(RestoreMethod("m", StandIn(), color_fix="adain"), [face], [0])
    lq = torch.from_numpy(face).permute(2, 0, 1)[None] / 255
    expected = fix_color(lq + 0.2, lq, "adain")[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(fixed - expected).max() <= 1


def test_a_face_without_colour_stays_without() -> None:
    restorer = StandIn(noise=0.3)  # in each channel another
    rng = np.random.default_rng(0)
    lightness = np.repeat(rng.integers(0, 256, (32, 32, 1), dtype=np.uint8), 3, axis=2)
    nearly = lightness.clip(0, 252) + rng.integers(0, 4, lightness.shape).astype(np.uint8)
    coloured = lightness.copy()
    coloured[0, 0] = (200, 100, 100)
    for face, size_px in ((lightness, None), (nearly, None), (lightness[:20], 90), (lightness, 17)):
        for fix in (None, "adain", "wavelet"):
            method = RestoreMethod("m", restorer, size_px=size_px, color_fix=fix)
            (restored,) = restore_faces(method, [face], [0])
            assert not np.ptp(restored, axis=2).any()
            assert restored.std() > 10
    (restored,) = restore_faces(RestoreMethod("m", restorer), [coloured], [0])
    assert np.ptp(restored, axis=2).any()
    (evaluated,) = restore_batch(RestoreMethod("m", restorer), to_tensor([lightness]), [0])
    assert not np.ptp(evaluated, axis=2).any()


def test_a_photo_without_colour_gets_no_colour_back(database, data, crowd, tmp_path) -> None:
    PilImage.open(crowd).convert("L").save(tmp_path / "old.png")
    inputs = add_photos(database, data, [tmp_path / "old.png"], find_two)
    method = RestoreMethod("m", StandIn(image_size_px=64, noise=0.3))
    method_id = add_method_of(database, method)
    restore_missing(method, method_id, database, data, inputs.source_ids, [0], 8)
    (file,) = write_photo(
        database, data, tmp_path / "out", inputs.photos[0], list_made(method, method_id, [0])
    ).values()
    assert not np.ptp(np.asarray(PilImage.open(file)), axis=2).any()
    for candidate in (tmp_path / "out").rglob("*.png"):
        assert not np.ptp(np.asarray(PilImage.open(candidate)), axis=2).any()


def test_the_shared_black_and_white_photo_by_the_shipped_restorer() -> None:
    file = Path(__file__).resolve().parents[5] / "shared" / "cases" / "photos" / "gray_l.png"
    if not file.is_file():
        pytest.skip("needs ../shared/cases, which is not beside this checkout")
    from refl.restorers.tiny import load_tiny

    (restored,) = restore_faces(RestoreMethod("tiny", load_tiny()), [read_photo(file)[0]], [0])
    assert not np.ptp(restored, axis=2).any()


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match="not numbers; try --dtype float32"):
        restore_faces(RestoreMethod("m", StandIn(add=float("nan"))), [grey(8, 8)], [0])


@pytest.mark.parametrize(("count", "advice"), [(4, "--batch-size 2"), (1, "--small-memory")])
def test_too_little_memory_says_what_to_do(count, advice) -> None:
    def run_out(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    full = StandIn()
    full.restore = run_out
    with pytest.raises(UserError, match=f"give {advice}"):
        restore_faces(RestoreMethod("m", full), [grey(8, 8)] * count, [0] * count)


def test_candidates_are_stored_once_and_what_is_there_is_skipped(database, data, faces) -> None:
    stand_in = StandIn(noise=0.1)
    method = RestoreMethod("m", stand_in, settings={"weights": "abc"})
    method_id = add_method_of(database, method)
    told: list[int] = []
    assert count_missing(method, method_id, database, data, faces, [0, 1]) == 6
    assert restore_missing(method, method_id, database, data, faces, [0, 1], 4, told.append) == 6
    assert told == [4, 2]
    assert [seeds for _, seeds, _ in stand_in.calls] == [[0, 1, 0, 1], [0, 1]]
    with database.read() as session:
        made = session.scalars(select(Candidate).order_by(Candidate.id)).all()
        assert [(row.source.key, row.seed) for row in made] == [(f"face{n}", s) for n in range(3) for s in (0, 1)]
        assert {(row.image.width_px, row.image.height_px) for row in made} == {(24, 32)}
        assert {row.method.name for row in made} == {"m"}
        assert session.scalars(select(Method)).one().settings == {"weights": "abc"}
        paths = [image_path(data, row.image.sha256, ".png") for row in made]
    assert len({path.read_bytes() for path in paths}) == 6
    stand_in.calls.clear()
    assert restore_missing(method, method_id, database, data, faces, [0, 1, 2], 4) == 3
    assert [seeds for _, seeds, _ in stand_in.calls] == [[2, 2, 2]]


def test_stored_pixels_are_those_of_the_single_image(database, data, faces, tmp_path) -> None:
    method = RestoreMethod("m", StandIn(noise=0.1, image_size_px=32))
    method_id = add_method_of(database, method)
    restore_missing(method, method_id, database, data, faces, [3], 3)
    lq = np.asarray(PilImage.open(tmp_path / "lq" / "face1.png"))
    (alone,) = restore_faces(method, [lq], [3])
    with database.read() as session:
        row = session.scalars(select(Candidate).join(Source).where(Source.key == "face1")).one()
        stored = np.asarray(PilImage.open(image_path(data, row.image.sha256, ".png")))
    assert np.array_equal(stored, alone)


def test_a_restorer_without_noise_makes_one_candidate(database, data, faces) -> None:
    method = RestoreMethod("m", StandIn(is_random=False))
    assert method.seeds_of([5, 6]) == [0]
    assert restore_missing(method, add_method_of(database, method), database, data, faces, [5, 6], 8) == 3


def test_what_ends_in_the_middle_goes_on(database, data, faces) -> None:
    method = RestoreMethod("m", StandIn())
    method_id = add_method_of(database, method)

    def end(_count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_missing(method, method_id, database, data, faces, [0], 2, end)
    assert count_missing(method, method_id, database, data, faces, [0]) == 1
    assert restore_missing(method, method_id, database, data, faces, [0], 2) == 1


def test_a_lost_image_file_is_named(database, data, faces) -> None:
    method = RestoreMethod("m", StandIn())
    method_id = add_method_of(database, method)
    lost = next(find_missing(database, data, faces, method_id, [0])).lq
    lost.unlink()
    with pytest.raises(UserError, match=f"{lost.name}: cannot be read"):
        restore_missing(method, method_id, database, data, faces, [0], 2)


def test_a_method_of_that_name_with_other_settings_is_refused(database) -> None:
    with database.write() as session:
        first = add_restorer_method(session, "m", {"weights": "abc", "size": (1, 2)}, None)
        assert add_restorer_method(session, "m", {"weights": "abc", "size": [1, 2]}, None) == first
        with pytest.raises(UserError, match="with weights abc and not def"):
            add_restorer_method(session, "m", {"weights": "def", "size": [1, 2]}, None)


def test_another_path_of_the_same_files_is_the_same_method(database) -> None:
    with database.write() as session:
        relative = {"restorer": "run/tuned", "eta": 0.0, "weights": {"model.safetensors": "ab"}}
        first = add_restorer_method(session, "m", relative, None)
        absolute = {**relative, "restorer": "/work/run/tuned", "weights": {"renamed.safetensors": "ab"}}
        assert add_restorer_method(session, "m", absolute, None) == first
        with pytest.raises(UserError, match=r"with weights .*ab.* and not .*cd"):
            add_restorer_method(session, "m", {**relative, "weights": {"model.safetensors": "cd"}}, None)


def test_sources_are_found_by_name_by_split_or_all(database, data, faces) -> None:
    with database.write() as session:
        add_source(session, "no-lq", Split.test)
        for number, split in enumerate([Split.train, Split.test, Split.test]):
            session.get_one(Source, faces[number]).split = split
        session.flush()
        assert find_sources(session) == (faces, 1)
        assert find_sources(session, ["face2", "face0", "face2"]) == ([faces[2], faces[0]], 0)
        assert find_sources(session, split=Split.test) == (faces[1:], 1)
        with pytest.raises(UserError, match="low-quality image: 'no-lq', 'face9'"):
            find_sources(session, ["face1", "no-lq", "face9"])
        with pytest.raises(UserError, match="No photo in the split val"):
            find_sources(session, split=Split.val)


def test_splits_are_drawn_as_an_import_draws_them(database, data, make_photo, tmp_path) -> None:
    with database.read() as session:
        assert {name: getattr(load_settings(session), name) for name in SPLIT_DEFAULTS} == SPLIT_DEFAULTS
    assert SPLIT_DEFAULTS.keys() < ProjectSettings.model_fields.keys()
    with database.write() as session:
        save_settings(session, {"seed": 5, "val_share": 0.3, "test_share": 0.4})
        for number in range(30):
            content = make_photo(tmp_path / "face.png", number).read_bytes()
            source_id = add_face(session, data, f"face{number}", content)
            assert session.get_one(Source, source_id).split is draw_split(f"face{number}", 5, 0.3, 0.4)
        of_photo = set()
        for number in (0, 1):
            content = make_photo(tmp_path / "face.png", 100 + number).read_bytes()
            of_photo.add(session.get_one(Source, add_face(session, data, f"p#{number}", content, group="p")).split)
        assert of_photo == {draw_split("p", 5, 0.3, 0.4)}


def test_a_face_under_another_name_has_its_group_and_split(database, data, make_photo, tmp_path) -> None:
    content = make_photo(tmp_path / "face.png", 0).read_bytes()
    with database.write() as session:
        for key in ("face0", "face1", "face2", "e\u0301", "\xe9"):
            add_face(session, data, key, content)
        sources = session.scalars(select(Source).order_by(Source.id)).all()
        assert [source.key for source in sources] == ["face0", "face1", "face2", "\xe9"]
        assert {(source.group, source.split) for source in sources} == {("face0", draw_split("face0", 0, 0.1, 0.1))}


def test_aligned_photos_become_sources_once(database, data, make_photo, tmp_path) -> None:
    for number in range(2):
        make_photo(tmp_path / "in" / f"face{number}.jpg", number)
    first = add_photos(database, data, [tmp_path / "in"], None)
    assert add_photos(database, data, [tmp_path / "in", tmp_path / "in" / "face0.jpg"], None).source_ids == (
        first.source_ids
    )
    with database.read() as session:
        source = session.get_one(Source, first.source_ids[1])
        assert (source.key, source.group) == ("face1", "face1")
        assert source.lq is not None
        stored = image_path(data, source.lq.sha256, source.lq.suffix)
    assert stored.read_bytes() == (tmp_path / "in" / "face1.jpg").read_bytes()
    make_photo(tmp_path / "in" / "face1.jpg", 9)
    with pytest.raises(UserError, match="'face1' is already stored with another lq image"):
        add_photos(database, data, [tmp_path / "in"], None)


def test_the_same_pixels_in_another_file_are_the_same_face(database, data, tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    PilImage.fromarray(pixels).save(tmp_path / "face.png", compress_level=9)
    first = add_photos(database, data, [tmp_path / "face.png"], None)
    PilImage.fromarray(pixels).save(tmp_path / "face.png", compress_level=0)
    assert add_photos(database, data, [tmp_path / "face.png"], None).source_ids == first.source_ids


def test_unfit_photos_refuse_all_or_stay_out(database, data, make_photo, tmp_path) -> None:
    whole = make_photo(tmp_path / "in" / "whole.jpg", 0, (64, 64)).read_bytes()
    (tmp_path / "in" / "cut.jpg").write_bytes(whole[:-300])
    frames = [PilImage.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "in" / "moving.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(PhotosRefused, match=r"cut.jpg: corrupt or truncated.*moving.webp: animated.*--skip-bad"):
        add_photos(database, data, [tmp_path / "in"], None)
    with database.read() as session:
        assert session.scalars(select(Source)).all() == []
    inputs = add_photos(database, data, [tmp_path / "in"], None, skip_bad=True)
    assert len(inputs.source_ids) == 1
    assert [Path(name).name for name, _ in inputs.refused] == ["cut.jpg", "moving.webp"]
    with pytest.raises(PhotosRefused, match=r"cut.jpg: corrupt.*mend it\.$"):
        add_photos(database, data, [tmp_path / "in" / "cut.jpg"], None, skip_bad=True)


TEMPLATE_AT_100 = np.array([[37.7, 46.9], [62.3, 46.9], [50.1, 61.3], [39.3, 72.5], [61.1, 72.5]])


def find_two(photo: np.ndarray) -> list[np.ndarray]:
    """Two faces of 100 px side, the second 120 px to the right."""
    return [TEMPLATE_AT_100, TEMPLATE_AT_100 + np.array([120, 10])] if photo.shape[1] > 200 else []


@pytest.fixture
def crowd(tmp_path) -> Path:
    down, across = np.mgrid[0:130, 0:240]
    waves = [np.sin(across / 9 + channel) + np.cos(down / 11) for channel in range(3)]
    PilImage.fromarray(np.stack([100 + 30 * wave for wave in waves], 2).astype(np.uint8)).save(tmp_path / "crowd.png")
    return tmp_path / "crowd.png"


def test_each_face_of_a_photo_is_a_source_of_one_group(database, data, crowd) -> None:
    inputs = add_photos(database, data, [crowd], find_two)
    with database.read() as session:
        sources = [session.get_one(Source, source_id) for source_id in inputs.source_ids]
        assert [(source.key, source.group) for source in sources] == [("crowd#0", "crowd"), ("crowd#1", "crowd")]
        assert [(source.lq.width_px, source.lq.height_px) for source in sources if source.lq] == [(512, 512)] * 2
    (photo,) = inputs.photos
    assert (photo.file, list(photo.faces)) == (crowd, inputs.source_ids)
    assert np.array_equal(list(photo.faces.values()), find_two(np.zeros((1, 240))))
    assert add_photos(database, data, [crowd], find_two).source_ids == inputs.source_ids


def test_photos_without_a_face_are_said_and_alone_refused(database, data, crowd, make_photo, tmp_path) -> None:
    empty = make_photo(tmp_path / "empty.png", 0)
    inputs = add_photos(database, data, [crowd, empty], find_two)
    assert inputs.without_face == [str(empty)]
    assert [len(photo.faces) for photo in inputs.photos] == [2, 0]
    with pytest.raises(UserError, match=r"No face was found in .*empty.png.*upright.*--detector facexlib.*--aligned"):
        add_photos(database, data, [empty], find_two)
    with pytest.raises(UserError, match=r"No face was found in .*empty.png.*upright.*--aligned") as caught:
        add_photos(database, data, [empty], find_two, detector="facexlib")
    assert "--detector" not in str(caught.value)


def test_what_was_done_to_photos_and_where_small_faces_hide_is_told(
    database, data, crowd, tmp_path, monkeypatch
) -> None:
    see_through = PilImage.open(crowd)
    see_through.putalpha(100)
    see_through.save(tmp_path / "glass.png")
    monkeypatch.setattr("refl.restore.inputs.MAX_PIXELS_ENLARGED", 1000)
    inputs = add_photos(database, data, [tmp_path / "glass.png"], find_two)
    assert inputs.converted == [(str(tmp_path / "glass.png"), "alpha laid over white")]
    assert inputs.large == [str(tmp_path / "glass.png")]
    assert add_photos(database, data, [tmp_path / "glass.png"], find_two, detector="facexlib").large == []
    assert add_photos(database, data, [crowd], None).large == []


@pytest.mark.parametrize("size_px", [None, 128])
def test_restored_faces_are_pasted_back_and_the_rest_is_untouched(database, data, crowd, tmp_path, size_px) -> None:
    inputs = add_photos(database, data, [crowd], find_two)
    method = RestoreMethod("m", StandIn(image_size_px=64), size_px=size_px)
    method_id = add_method_of(database, method)
    restore_missing(method, method_id, database, data, inputs.source_ids, [0], 8)
    made = list_made(method, method_id, [0])
    (file,) = write_photo(database, data, tmp_path / "out", inputs.photos[0], made).values()
    assert file == str(tmp_path / "out" / "photos" / "m-seed0" / "crowd.png")
    before, after = (np.asarray(PilImage.open(path)).astype(int) for path in (crowd, file))
    assert after.shape == before.shape
    difference = (after - before).mean(axis=2)
    for left, top in ((0, 0), (120, 10)):  # 0.2 of 255 brighter in the middle of each face
        middle = difference[top + 40 : top + 60, left + 40 : left + 60]
        assert abs(middle.mean() - 51) < 2
    assert not difference[:, 104:118].any()
    assert not difference[:8, 120:].any()


def test_faces_are_written_as_they_are_stored(database, data, faces, tmp_path) -> None:
    method = RestoreMethod("a/b", StandIn(noise=0.1))
    method_id = add_method_of(database, method)
    restore_missing(method, method_id, database, data, faces, [0, 1], 8)
    with database.write() as session:
        session.get_one(Source, faces[2]).key = "../../up"
    made = list_made(method, method_id, [0, 1])
    out = tmp_path / "out"
    assert write_faces(database, data, out, faces, made) == 6
    written = sorted(str(file.relative_to(out)) for file in out.rglob("*.png"))
    names = ("_._.._up.png", "face0.png", "face1.png")
    assert written == [f"a_b-seed{seed}/{name}" for seed in (0, 1) for name in names]
    stored = {file.read_bytes() for file in (data / "images").rglob("*.png")}
    assert {file.read_bytes() for file in out.rglob("*.png")} < stored
    assert write_faces(database, data, out, faces, made) == 0
    (out / "a_b-seed0" / "face0.png").write_bytes(encode_png(grey(2, 2)))
    assert write_faces(database, data, out, faces, made) == 1


def test_a_method_without_noise_has_one_folder() -> None:
    for name, folder in (("gfpgan", "gfpgan"), (".hidden", "_hidden")):
        assert list_made(RestoreMethod(name, StandIn(is_random=False)), 3, [4, 5]) == [MadeBy(3, name, 0, folder)]


def test_an_enlarged_background_is_kept_by_what_the_photo_shows(tmp_path) -> None:
    calls = []

    class Twice:
        scale = 2
        device = "cpu"

        def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
            calls.append(tuple(pixels.shape))
            return pixels.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    def enlarge(place: str, level: int, sha256: str = "1") -> int:
        photo = np.full((6, 5, 3), level, np.uint8)
        made, scale = _enlarge_once(tmp_path / "out", tmp_path / place / "photo.png", photo, ("twice", sha256, Twice()))
        assert (made.shape, scale) == ((12, 10, 3), 2.0)
        assert abs(int(made.mean()) - level) <= 1
        return len(calls)

    assert [enlarge("a", 10), enlarge("a", 10), enlarge("b", 10)] == [1, 1, 1]
    assert [enlarge("a", 200), enlarge("b", 200)] == [2, 2]  # another photo under the same name
    assert enlarge("a", 10, "2") == 3  # another model under the same name

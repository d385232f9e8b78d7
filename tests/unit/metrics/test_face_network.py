"""dlib's face recognition network in torch gives dlib's own numbers, and reads no other file."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage import data

import metrics.face_network
from metrics.face_network import FaceNetwork, find_face_file, read_face_network
from metrics.lists import MetricError


@pytest.fixture(scope="module")
def path() -> Path:
    try:
        return find_face_file()
    except MetricError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def network(path: Path) -> FaceNetwork:
    return read_face_network(path)


def make_chips() -> list[np.ndarray]:
    """Noise, a black and a white picture, and a face: (150, 150, 3) each."""
    noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    face = cv2.resize(data.astronaut()[:200, 120:320], (150, 150), interpolation=cv2.INTER_AREA)
    return [noise, np.zeros_like(noise), np.full_like(noise, 255), face]


def test_its_numbers_are_dlibs_own(network: FaceNetwork, path: Path, request: pytest.FixtureRequest) -> None:
    dlib = pytest.importorskip("dlib")
    chips = make_chips()
    shared = Path(__file__).resolve().parents[4] / "shared" / "faces" / "gt" / "london512"
    for file in sorted(shared.glob("*.jpg"))[:4]:
        chips.append(cv2.imread(str(file), cv2.IMREAD_COLOR_RGB)[130:484, 82:436])
        chips[-1] = cv2.resize(chips[-1], (150, 150), interpolation=cv2.INTER_AREA)
    model = dlib.face_recognition_model_v1(str(path))
    theirs = np.array([model.compute_face_descriptor(chip) for chip in chips])
    with torch.no_grad():
        ours = network(torch.from_numpy(np.stack(chips)).permute(0, 3, 1, 2).float() / 255)
    assert np.abs(ours.numpy() - theirs).max() < 1e-5  # 3e-7 here; the numbers are about 0.1


def test_a_number_has_the_gradient_of_finite_differences(network: FaceNetwork) -> None:
    chip = torch.from_numpy(make_chips()[3]).permute(2, 0, 1)[None].float() / 255
    (gradient,) = torch.autograd.grad(network(chip.requires_grad_())[0, 0], chip)
    step = 0.01 * gradient / gradient.norm()
    with torch.no_grad():
        ahead, behind = (float(network(chip + sign * step)[0, 0]) for sign in (1, -1))
    assert ahead - behind == pytest.approx(0.02 * float(gradient.norm()), rel=0.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw[:0], "it ends where 1 bytes should follow at byte 0"),
        (lambda raw: raw[:300], "it ends where"),
        (lambda raw: raw[:20_000], "it ends where"),
        (lambda raw: raw[:-1], "it ends where"),
        (lambda raw: raw + b"\0", "1 bytes too many follow"),
        (lambda raw: raw.replace(b"loss_metric_2", b"loss_metric_3"), "loss_metric_3"),
        (lambda raw: raw.replace(b"con_4", b"con_9"), "con_9"),
        (lambda raw: raw.replace(b"con_4\x01\x02\x02\x80\x12", b"con_4\x01\x02\x02\xff\xff"), "stands for 4736"),
        (lambda raw: b"\x01" * len(raw), "stands for 13"),
        (lambda raw: b"<html>" + raw, "there is no number at byte 1"),
        (lambda raw: raw[:364] + b"\xff\xff\xff\x7f" + raw[368:], "a weight is not finite"),
    ],
)
def test_another_file_is_an_error_of_one_line(
    path: Path, tmp_path: Path, change: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.dat"
    other.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(MetricError, match=re.escape(said)) as found:
        read_face_network(other)
    assert "is not dlib's face recognition network" in str(found.value)
    assert "\n" not in str(found.value)


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.face_network, "PACKAGE", "no-such-package")
    with pytest.raises(MetricError, match="pip install no-such-package"):
        find_face_file()

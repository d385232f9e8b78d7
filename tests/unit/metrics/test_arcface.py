"""Identity by uniface's ArcFace: an optional list, its packages and its weights each missed in one line."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from metrics import faces, lists
from metrics.compute import Request, compute_values, prepare
from metrics.lists import Column, MetricError, columns, load_metric_list, skipped_metrics
from metrics.weights import MissingWeights


@pytest.fixture(autouse=True)
def _forget() -> Any:
    faces.load_arcface.cache_clear()
    yield
    faces.load_arcface.cache_clear()


@pytest.fixture
def uniface(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in with uniface's names: the face is a box of the picture, its code the mean colours in it, in BGR."""
    seen = SimpleNamespace(fault=None, faces=True)

    class RetinaFace:
        def __init__(self, *, providers: list[str]) -> None:
            assert providers == ["CPUExecutionProvider"]
            if seen.fault:
                raise seen.fault

        def detect(self, _image: Any) -> list[Any]:
            box = np.array([8, 8, 56, 56], float)
            small = SimpleNamespace(bbox=np.array([0, 0, 4, 4], float), landmarks=np.zeros((5, 2)))
            return [small, SimpleNamespace(bbox=box, landmarks=np.full((5, 2), 30.0))] if seen.faces else []

    class ArcFace:
        def __init__(self, *, providers: list[str]) -> None:
            assert providers == ["CPUExecutionProvider"]

        def get_normalized_embedding(self, image: Any, landmarks: Any) -> Any:
            assert landmarks[0, 0] == 30  # of the largest face
            code = image[8:56, 8:56].mean(axis=(0, 1)) - 127.5
            return code / np.linalg.norm(code)

    for name, member in (("uniface", None), ("detection", RetinaFace), ("recognition", ArcFace)):
        module = ModuleType(name if member is None else f"uniface.{name}")
        if member is not None:
            setattr(module, member.__name__, member)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(lists, "_installed_version", lambda _package: "1.0")
    return seen


def test_without_its_packages_it_is_left_out_and_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_installed_version", lambda package: None if package == "uniface" else "1.0")
    listed = load_metric_list("arcface")
    assert columns(listed) == []
    assert "needs uniface: pip install onnxruntime" in skipped_metrics(listed)["identity_arcface"]
    assert "--no-deps uniface" in skipped_metrics(listed)["identity_arcface"]


def test_the_largest_faces_code_decides(uniface: SimpleNamespace) -> None:
    red, green = (np.full((64, 64, 3), 100, np.uint8) for _ in range(2))
    red[..., 0], green[..., 1] = 250, 250
    prepare([Column("identity_arcface", "1", "lq")], "cpu")
    requests = [Request("identity_arcface", 0, 0), Request("identity_arcface", 0, 1)]
    same, other = compute_values(requests, [red, green])
    assert same.value == pytest.approx(0, abs=1e-6)
    assert other.value is not None
    assert other.value < -0.5
    assert other.raw_value == -other.value  # a distance: lower is better


def test_no_face_is_a_failure_of_that_image(uniface: SimpleNamespace) -> None:
    uniface.faces = False
    [value] = compute_values([Request("identity_arcface", 0, 0)], [np.zeros((64, 64, 3), np.uint8)])
    assert value.value is None
    assert "no face was found" in str(value.failure)


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (ConnectionError("Failed to download file from https://example.org/arcface.onnx"), MissingWeights, "uniface"),
        (RuntimeError("Failed to initialize model session"), MetricError, "cannot be loaded"),
    ],
)
def test_missing_or_damaged_weights_are_one_line_before_anything_is_measured(
    uniface: SimpleNamespace, fault: Exception, kind: type[Exception], said: str
) -> None:
    uniface.fault = fault
    with pytest.raises(kind, match=said):
        prepare([Column("identity_arcface", "1", "hq")], "cpu")

"""Restorers of one pass from ONNX files, by onnxruntime."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from db.errors import UserError
from refl.restorers import onnx as onnx_restorer
from refl.restorers.load import get_restorer_files, load_restorer
from refl.restorers.onnx import FIDELITY, read_face_model
from refl.restorers.outline import Outline, outline_restorer
from tests import onnx_files
from tests.onnx_files import DOUBLE, FLOAT, FLOAT16, INT64, SCALE, face_model, model, node, value_info

HALF_BOUND = 2e-3
DETECTOR = Path(__file__).parents[5] / "shared" / "faces" / "models" / "retinaface_mobilenet0.25.onnx"
needs_runtime = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime: pip install -r requirements-dev.txt"
)


def expect(lq: torch.Tensor, added: float = 0.0) -> torch.Tensor:
    """What `face_model` makes of images in [0, 1]."""
    return ((2 * lq - 1) * torch.tensor(SCALE).float() + added + 1).div(2).clamp(0, 1)


@needs_runtime
@pytest.mark.parametrize("batch", [1, "n"])
def test_it_gives_what_the_formula_says(tmp_path, faces, batch):
    path = onnx_files.write(tmp_path / "Face.onnx", face_model(64, batch=batch))
    restorer = load_restorer(f"onnx:{path}")
    lq = faces(3)
    restored = restorer.restore(lq, [0, 1, 2])
    torch.testing.assert_close(restored, expect(lq))
    assert not restored.requires_grad
    assert torch.equal(restorer.restore(lq[1:2], [7]), restored[1:2])
    assert restorer.settings["restorer"] == f"onnx:{path}"
    assert list(restorer.settings["weights"]) == ["Face.onnx"]
    assert "fidelity" not in restorer.settings
    assert outline_restorer(f"onnx:{path}", tmp_path) == Outline(64, 1, False)
    assert (restorer.image_size_px, restorer.multiple_px, restorer.is_random) == (64, 1, False)


@needs_runtime
@pytest.mark.parametrize(("kind", "shape"), [(DOUBLE, (1,)), (DOUBLE, ()), (FLOAT, (1,)), (FLOAT, None)])
def test_the_fidelity_of_codeformer_is_given_and_recorded(tmp_path, faces, kind, shape):
    path = onnx_files.write(tmp_path / "codeformer.onnx", face_model(64, weight=kind, weight_shape=shape))
    restorer = load_restorer(f"onnx:{path}")
    assert restorer.settings["fidelity"] == FIDELITY == 0.5
    torch.testing.assert_close(restorer.restore(faces(1), [0]), expect(faces(1), 0.5))


@needs_runtime
def test_a_file_in_float16_takes_float16(tmp_path, faces):
    path = onnx_files.write(tmp_path / "half.onnx", face_model(64, kind=FLOAT16, weight=DOUBLE))
    restored = load_restorer(f"onnx:{path}").restore(faces(2), [0, 1])
    assert restored.dtype == torch.float32
    assert (restored - expect(faces(2), 0.5)).abs().max() < HALF_BOUND


@needs_runtime
def test_images_of_another_size_are_resized_and_back(tmp_path, faces):
    path = onnx_files.write(tmp_path / "small.onnx", face_model(32))
    restorer = load_restorer(f"onnx:{path}")
    lq = torch.full((1, 3, 64, 64), 0.6)
    restored = restorer.restore(lq, [0])
    assert restored.shape == lq.shape
    torch.testing.assert_close(restored, expect(lq), atol=1e-5, rtol=0)
    assert (restorer.restore(faces(1), [0]) - expect(faces(1))).abs().mean() < 0.02
    with pytest.raises(ValueError, match="expected square faces, got 64 × 32"):
        restorer.restore(lq[:, :, :32], [0])


@needs_runtime
def test_a_file_that_leaves_its_sides_open_runs_at_512(tmp_path):
    path = onnx_files.write(tmp_path / "open.onnx", face_model("side"))
    restorer = load_restorer(f"onnx:{path}")
    assert restorer.image_size_px == 512
    lq = torch.full((1, 3, 512, 512), 0.25)
    torch.testing.assert_close(restorer.restore(lq, [0]), expect(lq))


@needs_runtime
def test_numbers_in_a_file_beside_it_count(tmp_path, faces):
    path = onnx_files.write(tmp_path / "big.onnx", face_model(64, location="big.onnx.data"))
    with pytest.raises(UserError, match=r"numbers in the file 'big.onnx.data', which must lie beside it"):
        load_restorer(f"onnx:{path}")
    (tmp_path / "big.onnx.data").write_bytes(SCALE.astype("float32").tobytes())
    restorer = load_restorer(f"onnx:{path}")
    torch.testing.assert_close(restorer.restore(faces(1), [0]), expect(faces(1)))
    assert set(restorer.settings["weights"]) == {"big.onnx", "big.onnx.data"}


@needs_runtime
@pytest.mark.parametrize("away", ["../secret.bin", "/etc/hostname", "link.bin"])
def test_files_outside_its_folder_are_not_read(tmp_path, away):
    (tmp_path / "secret.bin").write_bytes(bytes(12))
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = onnx_files.write(folder / "a.onnx", face_model(64, location=away))
    with pytest.raises(UserError, match=f"wants to read '{away}', outside its folder"):
        load_restorer(f"onnx:{path}")


def image_model(inputs, outputs, kind="Relu", domain=""):
    return model(
        [node(kind, ["x"], "y", domain=domain)],
        [value_info(f"x{at}" if at else "x", *one) for at, one in enumerate(inputs)],
        [value_info("y", *one) for one in outputs],
        [],
    )


FACE = (FLOAT, (1, 3, 512, 512))


@pytest.mark.parametrize(
    ("inputs", "outputs", "seen"),
    [
        ([(FLOAT, (1, 1, 512, 512))], [FACE], r"takes x float32\[1, 1, 512, 512\]"),
        ([(FLOAT, (4, 3, 512, 512))], [FACE], r"takes x float32\[4, 3, 512, 512\]"),
        ([(FLOAT, (1, 3, 512, 256))], [FACE], r"512, 256"),
        ([(FLOAT, (1, 512, 512, 3))], [FACE], r"512, 512, 3"),
        ([(INT64, (1, 3, 512, 512))], [FACE], "takes x type 7"),
        ([FACE, FACE], [FACE], "x1 float32"),
        ([FACE, (DOUBLE, (1,)), (DOUBLE, (1,))], [FACE], "x2 float64"),
        ([FACE, (FLOAT, (1, 512))], [FACE], r"x1 float32\[1, 512\]"),
        ([FACE], [(FLOAT, (1, 3, 1024, 1024))], r"gives y float32\[1, 3, 1024, 1024\]"),
        ([FACE], [(FLOAT, (1, 1000))], r"gives y float32\[1, 1000\]"),
        ([(FLOAT, (1, 3, 8, 8))], [(FLOAT, (1, 3, 8, 8))], "8, 8"),
        ([], [FACE], "takes  and gives"),
    ],
)
def test_what_is_no_restorer_is_refused_with_what_was_seen(tmp_path, inputs, outputs, seen):
    path = onnx_files.write(tmp_path / "a.onnx", image_model(inputs, outputs))
    with pytest.raises(UserError, match=f"is no face restorer: it .*{seen}"):
        read_face_model(path)


@pytest.mark.skipif(not DETECTOR.is_file(), reason="needs ../shared/faces/models")
def test_another_programs_file_is_refused_with_what_was_seen():
    seen = r"takes input0 float32\[batch_size, channel, height, width\] and gives output0 float32\[batch_size, feature"
    with pytest.raises(UserError, match=f"is no face restorer: it {seen}"):
        read_face_model(DETECTOR)


def test_operators_of_other_libraries_are_refused(tmp_path):
    path = onnx_files.write(tmp_path / "a.onnx", image_model([FACE], [FACE], "Run", "their.own"))
    with pytest.raises(UserError, match=r"operators that onnxruntime does not bring: their\.own\.Run"):
        read_face_model(path)


@needs_runtime
def test_what_onnxruntime_refuses_is_said_in_one_line(tmp_path):
    path = onnx_files.write(tmp_path / "a.onnx", image_model([FACE], [FACE], "NoSuchOperator"))
    with pytest.raises(UserError, match=r"a\.onnx: onnxruntime cannot load it: .*NoSuchOperator") as refused:
        load_restorer(f"onnx:{path}")
    assert "\n" not in str(refused.value)


@needs_runtime
def test_an_output_that_is_no_image_after_all_is_refused(tmp_path, faces):
    content = model(
        [node("GlobalAveragePool", ["x"], "y")],
        [value_info("x", FLOAT, (1, 3, 64, 64))],
        [value_info("y", FLOAT, (1, 3, "h", "w"))],
        [],
    )
    restorer = load_restorer(f"onnx:{onnx_files.write(tmp_path / 'a.onnx', content)}")
    with pytest.raises(UserError, match=r"gave \[1, 3, 1, 1\] for \[1, 3, 64, 64\]; it is no restorer"):
        restorer.restore(faces(1), [0])


@needs_runtime
def test_steps_and_dtypes_are_the_files_own(tmp_path, faces):
    asked = f"onnx:{onnx_files.write(tmp_path / 'a.onnx', face_model(64))}"
    with pytest.raises(UserError, match="takes one step, not 4"):
        load_restorer(asked, steps=4)
    with pytest.raises(UserError, match=r"computes in the numbers of its file; leave --dtype out"):
        load_restorer(asked, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="one step"):
        load_restorer(asked).restore(faces(1), [0], 2)


@needs_runtime
def test_the_cpu_is_said_where_the_card_cannot(tmp_path, caplog):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    path = onnx_files.write(tmp_path / "a.onnx", face_model(64))
    with caplog.at_level(logging.INFO, "refl.restorers.onnx"):
        onnx_restorer.load_onnx(onnx_restorer.FoundFile(path, "0"), "onnx:a", "cuda:0")
    assert "runs by onnxruntime's CPUExecutionProvider" in caplog.text
    assert "runs on the CPU (pip install onnxruntime-gpu)" in caplog.text


def test_a_missing_package_is_said_before_anything_is_got(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    for refused in (
        lambda: get_restorer_files(["onnx:gfpgan-v1.4-onnx"], tmp_path),
        lambda: load_restorer("onnx:nowhere.onnx"),
        lambda: outline_restorer("onnx:nowhere.onnx", tmp_path),
    ):
        with pytest.raises(UserError, match="needs the package onnxruntime, which is not installed: pip install"):
            refused()


def test_numpy_knows_the_types_of_the_files():
    assert [np.dtype(name).itemsize for name in onnx_restorer.FLOATS] == [4, 2, 8]


@needs_runtime
def test_too_little_memory_is_known_as_such(tmp_path, faces, monkeypatch):
    from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

    restorer = load_restorer(f"onnx:{onnx_files.write(tmp_path / 'a.onnx', face_model(64))}")

    class Full:
        def get_outputs(self):
            return restorer_outputs

        def run(self, *_):
            raise RuntimeException("Failed to allocate memory for requested buffer of size 4294967296")

    restorer_outputs = restorer.session.get_outputs()
    monkeypatch.setattr(restorer, "session", Full())
    with pytest.raises(MemoryError):
        restorer.restore(faces(1), [0])

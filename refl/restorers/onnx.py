"""Restore in one pass by an ONNX file: GFPGAN, GPEN, CodeFormer, RestoreFormer, as face-swapping programs publish them.

Such a file takes one square RGB image in [-1, 1] and gives it restored in the same range. CodeFormer's takes a second
number besides, how near to the input the result stays. Sources of both: facefusion/facefusion,
facefusion/processors/modules/face_enhancer/core.py, and sczhou/CodeFormer, inference_codeformer.py. onnxruntime runs
it, which is a package of its own; nothing in such a file is code.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from db.errors import UserError
from metrics.download import compute_sha256
from refl.published.onnx_file import OnnxFile, TensorType, read_onnx_file
from refl.published.weights import FoundFile
from refl.restorers.surface import check_images

log = logging.getLogger(__name__)

RUNTIME = "onnxruntime"
OPEN_SIZE_PX = 512
"""Side at which a file runs that leaves its sides open; the published ones of that kind were trained at it."""
SIZES_PX = range(32, 4097)
FIDELITY = 0.5
"""Of CodeFormer, in [0, 1]: 0 trusts what it has learned of faces, 1 the photo. Its own program's default."""
NUMBER_SHAPES = (None, (), (1,))
"""Of it; exports differ."""
FLOATS = ("float32", "float16", "float64")


@dataclass(frozen=True)
class FaceModel:
    """What a restorer's file takes and gives."""

    image: TensorType
    size_px: int
    weight: TensorType | None
    """CodeFormer's fidelity, a scalar or one number in a list."""
    others: tuple[Path, ...]
    """Files beside it that hold some of its numbers."""


class OnnxRestorer:
    """Restores in one pass, the same for every seed; see `refl.restorers.surface`.

    Images of another side than the file's own are resized to it, and what comes back to theirs. They run one by one:
    most files take one at a time, and so a batch gives what its images give alone.
    """

    multiple_px = 1
    default_steps = 1
    is_random = False

    def __init__(
        self, session: Any, model: FaceModel, base: str, weights: dict[str, str], fidelity: float = FIDELITY
    ) -> None:
        """
        Args:
            session: onnxruntime's, of this file.
            base: the name under which `load_restorer` makes it again.
            weights: file name -> SHA-256 of what it was loaded from.
        """
        self.session = session
        self.model = model
        self.base = base
        self.weights = weights
        self.fidelity = fidelity

    @property
    def image_size_px(self) -> int:
        return self.model.size_px

    @property
    def settings(self) -> dict[str, object]:
        said: dict[str, object] = {"restorer": self.base, "weights": self.weights}
        return said if self.model.weight is None else {**said, "fidelity": self.fidelity}

    @torch.no_grad()
    def restore(self, lq: Tensor, seeds: Sequence[int], steps: int | None = None) -> Tensor:
        """See `Restorer.restore`.

        Raises:
            ValueError: as there, or the images are not square.
            UserError: the file gives another shape than it takes, or onnxruntime cannot run it.
        """
        check_images(lq, seeds, self.multiple_px)
        side_px = lq.shape[-1]
        if lq.shape[-2] != side_px:
            raise ValueError(f"expected square faces, got {side_px} × {lq.shape[-2]}")
        if steps not in (None, 1):
            raise ValueError(f"this restorer takes one step, not {steps}")
        images = _resize(lq.float(), self.image_size_px) * 2 - 1
        restored = torch.cat([self._run(image[None]) for image in images.cpu()])
        return _resize((restored + 1) / 2, side_px).clamp(0, 1).to(lq.device)

    def _run(self, image: Tensor) -> Tensor:
        """(1, 3, S, S) in [-1, 1] -> the same, float32, on the CPU."""
        given = {self.model.image.name: image.numpy().astype(self.model.image.dtype)}
        if (weight := self.model.weight) is not None:
            given[weight.name] = np.full(() if weight.shape == () else (1,), self.fidelity, weight.dtype)
        try:
            result = self.session.run([self.session.get_outputs()[0].name], given)[0]
        except _list_errors() as error:
            said = " ".join(str(error).split())[:300]
            if "allocate memory" in said or "bad_alloc" in said:
                raise MemoryError(said) from error
            raise UserError(f"{self.base}: onnxruntime cannot run it: {said}") from error
        if result.shape != tuple(image.shape):
            raise UserError(f"{self.base}: gave {list(result.shape)} for {list(image.shape)}; it is no restorer.")
        return torch.from_numpy(result.astype(np.float32))


def _resize(images: Tensor, size_px: int) -> Tensor:
    if images.shape[-1] == size_px:
        return images
    return interpolate(images, (size_px, size_px), mode="bicubic", align_corners=False, antialias=True)


def check_runtime() -> None:
    """Check that onnxruntime is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec(RUNTIME) is None:
        raise UserError(
            "onnx:FILE needs the package onnxruntime, which is not installed: pip install onnxruntime, or "
            "onnxruntime-gpu for NVIDIA cards."
        )


def read_face_model(path: Path) -> FaceModel:
    """What a restorer's file takes and gives; its numbers are not read.

    Raises:
        UserError: it is no ONNX file or no restorer's, or needs files or operators that it may not have.
    """
    found = read_onnx_file(path)
    if found.operators:
        names = sorted(f"{domain}.{name}" for domain, name in found.operators)
        raise UserError(f"{path}: needs operators that onnxruntime does not bring: {', '.join(names[:5])}.")
    images = [one for one in found.inputs if one.shape is not None and len(one.shape) == 4]
    numbers = [one for one in found.inputs if one.shape in NUMBER_SHAPES]
    size_px = _read_size(images[0]) if len(images) == 1 else None
    is_one = len(images) == 1 and len(images) + len(numbers) == len(found.inputs) and len(numbers) < 2
    if not is_one or size_px is None or any(one.dtype not in FLOATS for one in found.inputs) or not found.outputs:
        raise _no_restorer(path, found)
    result = found.outputs[0]
    if result.dtype not in FLOATS or not _may_be(result, size_px):
        raise _no_restorer(path, found)
    return FaceModel(images[0], size_px, numbers[0] if numbers else None, _find_others(path, found))


def _no_restorer(path: Path, found: OnnxFile) -> UserError:
    return UserError(
        f"{path}: is no face restorer: it {found}. One takes a square RGB image [1, 3, S, S], CodeFormer's a number "
        "besides, and the first that it gives is the image at its own size."
    )


def _read_size(image: TensorType) -> int | None:
    """The side of the images that it takes, pixels; None where they are no square RGB images, one at a time."""
    batch, channels, height, width = image.shape or ()
    if any(isinstance(side, int) and side != said for side, said in ((batch, 1), (channels, 3))):
        return None
    if isinstance(height, str) and isinstance(width, str):
        return OPEN_SIZE_PX
    return height if isinstance(height, int) and height == width and height in SIZES_PX else None


def _may_be(result: TensorType, size_px: int) -> bool:
    """Whether an output can be an image of this side."""
    sides = (1, 3, size_px, size_px) if result.shape is not None else ()
    known = result.shape or ()
    return len(known) == len(sides) and all(
        isinstance(one, str) or one == side for one, side in zip(known, sides, strict=True)
    )


def _find_others(path: Path, found: OnnxFile) -> tuple[Path, ...]:
    """The files beside it that hold numbers of its.

    Raises:
        UserError: one is missing, or lies elsewhere.
    """
    folder = path.parent.resolve()
    for other in sorted(found.others):
        if not (folder / other).resolve().is_relative_to(folder):
            raise UserError(f"{path}: wants to read {other!r}, outside its folder; that is not done.")
        if not (folder / other).is_file():
            raise UserError(f"{path}: has numbers in the file {other!r}, which must lie beside it.")
    return tuple(folder / other for other in sorted(found.others))


def load_onnx(
    found: FoundFile, base: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> OnnxRestorer:
    """The restorer of an ONNX file, on this device where onnxruntime has it, else on the CPU.

    Args:
        dtype: float32 alone; what a file computes in stands in it.
    Raises:
        UserError: onnxruntime is missing, the file is no restorer's, or it cannot be run.
    """
    check_runtime()
    model = read_face_model(found.path)
    if dtype != torch.float32:
        raise UserError(
            f"{base} computes in the numbers of its file; leave --dtype out, or name a file in float16 (…fp16.onnx)."
        )
    weights = {found.path.name: found.sha256} | {other.name: compute_sha256(other) for other in model.others}
    return OnnxRestorer(_open_session(found.path, torch.device(device)), model, base, weights)


def _open_session(path: Path, device: torch.device) -> Any:
    """onnxruntime's session of a file.

    Raises:
        UserError: it cannot make one.
    """
    runtime = importlib.import_module(RUNTIME)
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    level = runtime.GraphOptimizationLevel
    fault: Exception | None = None
    for optimised in (level.ORT_ENABLE_ALL, level.ORT_ENABLE_EXTENDED):  # CodeFormer in float16 fails with all of them
        options = runtime.SessionOptions()
        options.graph_optimization_level = optimised
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            session = runtime.InferenceSession(str(path), options, providers=providers)
        except _list_errors() as error:
            fault = fault or error
            continue
        log.info("%s runs by onnxruntime's %s", path.name, session.get_providers()[0])
        if device.type != "cpu" and session.get_providers()[0] == "CPUExecutionProvider":
            log.warning("onnxruntime has no %s here: %s runs on the CPU (pip install onnxruntime-gpu)", device, path)
        return session
    raise UserError(f"{path}: onnxruntime cannot load it: {' '.join(str(fault).split())[:300]}") from fault


def _list_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its errors have no class in common but Exception."""
    of_runtime = vars(importlib.import_module(f"{RUNTIME}.capi.onnxruntime_pybind11_state")).values()
    errors = [one for one in of_runtime if isinstance(one, type) and issubclass(one, Exception)]
    return (*errors, RuntimeError, ValueError)

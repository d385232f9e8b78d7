"""Enlarge what lies around the faces of a photo with any super-resolution model that spandrel reads.

Photos are uint8 (H, W, 3) RGB. Large ones go through in overlapping tiles, so that memory does not grow with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from spandrel import ImageModelDescriptor
from torch import Tensor

from db.errors import UserError
from refl.faces.grey import keep_grey
from refl.restorers.feedforward import load_architecture
from training.stopping import advise_out_of_memory
from training.weights import map_weights

RgbImage = npt.NDArray[np.uint8]
TILE_PX = 512
OVERLAP_PX = 32
"""On each side of a tile, cut off again: what a network sees beyond a tile's border changes little further in."""
MAX_OUTPUT_PIXELS = 256_000_000


def load_enlarger(file: Path, device: str) -> Any:
    """The model of a weight file, ready on the device; nothing but tensors is unpickled.

    Raises:
        UserError: the file is damaged, no model that spandrel knows, or one of another purpose.
    """
    model = load_architecture(map_weights(file), file, device)
    if not isinstance(model, ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        what = f"{model.architecture.name}, of purpose {model.purpose}"
        raise UserError(f"{file} is a model of the architecture {what}; it does not enlarge photos.")
    return model.eval()


def enlarge(photo: RgbImage, model: Any) -> RgbImage:
    """The photo `model.scale` times as large, (scale H, scale W, 3), without colour where the photo has none.

    Raises:
        UserError: the result would be above MAX_OUTPUT_PIXELS, or a tile does not fit into the memory.
    """
    height, width = photo.shape[:2]
    scale = int(model.scale)
    if height * width * scale * scale > MAX_OUTPUT_PIXELS:
        raise UserError(
            f"{width} x {height} pixels enlarged {scale} times are above the limit of {MAX_OUTPUT_PIXELS:,} pixels; "
            "scale the photo down, or leave --background out."
        )
    enlarged = np.empty((height * scale, width * scale, 3), dtype=np.uint8)
    for top in range(0, height, TILE_PX):
        for left in range(0, width, TILE_PX):
            bottom, right = min(top + TILE_PX, height), min(left + TILE_PX, width)
            above, before = min(top, OVERLAP_PX), min(left, OVERLAP_PX)
            tile = photo[top - above : bottom + OVERLAP_PX, left - before : right + OVERLAP_PX]
            out = _enlarge_tile(tile, model)[above * scale :, before * scale :]
            enlarged[top * scale : bottom * scale, left * scale : right * scale] = out[
                : (bottom - top) * scale, : (right - left) * scale
            ]
    return keep_grey(enlarged, photo)


def _enlarge_tile(tile: RgbImage, model: Any) -> RgbImage:
    pixels = torch.from_numpy(np.ascontiguousarray(tile)).permute(2, 0, 1)[None].float() / 255.0
    said = f"The memory of {model.device} is too small for --background; give --device cpu."
    with advise_out_of_memory(lambda: said), torch.inference_mode():
        out: Tensor = model(pixels.to(model.device))
    rounded = (out[0].float().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return np.asarray(rounded.permute(1, 2, 0).cpu().numpy())

"""Restore by PMRF (arXiv:2410.00418): from the mean of all faces that the photo may show along a learned flow to one.

SwinIR gives the mean, whose every pixel is nearest to the truth on average, and which is therefore blurred. Noise is
added, and a velocity is followed from time 0 to 1 in equal steps (Euler), to an image as real faces are distributed.
Settings and steps as published: ohayonguy/PMRF, lightning_models/mmse_rectified_flow.py (`generate_reconstructions`),
inference.py (25 steps) and scripts/train/blind_face_restoration/train_pmrf.sh (noise of 0.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from db.errors import UserError
from refl.published.convert import select
from refl.published.hdit import HDiT, HDiTShape
from refl.published.weights import find_file
from refl.restorers.diffbir import load_stage1
from refl.restorers.surface import check_images, draw_ahead, make_generators
from training.weights import check_strictly, load_strictly, map_weights, name_some, read_weights

WEIGHTS = "pmrf"
"""In the manifest."""
SHAPE = HDiTShape()
VELOCITY, MEAN = "model.", "mmse_model."
"""Prefixes of the published names."""
OF_TRAINING = ("fid.", "inception_score.")
"""Networks of the metrics that its training looked at, which the published file holds besides."""
MULTIPLE_PX = 64
"""SwinIR looks at 8 × 8 of what it made eight times smaller; the flow's sides would be multiples of 16."""


class PMRF(nn.Module):
    """Restores in 25 steps, another face for every seed; see `refl.restorers.surface`."""

    image_size_px = 512
    multiple_px = MULTIPLE_PX
    is_random = True

    def __init__(
        self,
        velocity: nn.Module,
        mean: nn.Module,
        weights: dict[str, str],
        dtype: torch.dtype = torch.float32,
        steps: int = 25,
        noise_std: float = 0.1,
    ) -> None:
        """
        Args:
            velocity: (N, 3, H, W) at times (N,) -> (N, 3, H, W).
            mean: (N, 3, H, W) in [0, 1] -> the same, not clamped.
            weights: file name -> SHA-256 of what it was loaded from.
            dtype: what the velocity multiplies matrices in, by autocast as published; numbers stay float32, and so
                does the mean.
            noise_std: of what is added to the mean.
        """
        super().__init__()
        self.velocity = velocity
        self.mean = mean
        self.weights = weights
        self.dtype = dtype
        self.steps = steps
        self.noise_std = noise_std
        self.eval().requires_grad_(False)

    @property
    def default_steps(self) -> int:
        return self.steps

    @property
    def settings(self) -> dict[str, object]:
        return {"restorer": "pmrf", "steps": self.steps, "noise_std": self.noise_std, "weights": self.weights}

    @torch.no_grad()
    def restore(self, lq: Tensor, seeds: Sequence[int], steps: int | None = None) -> Tensor:
        """See `Restorer.restore`."""
        check_images(lq, seeds, self.multiple_px)
        count = self.steps if steps is None else steps
        if count < 1:
            raise ValueError(f"the flow takes at least one step, not {count}")
        noise = next(draw_ahead(make_generators(seeds), lq.shape[1:], 1, lq.device))
        flowing: Tensor = self.mean(lq.float()).float().clamp(0, 1) + self.noise_std * noise
        for step in range(count):
            time = torch.full((len(flowing),), step / count, device=lq.device)
            with torch.autocast(lq.device.type, self.dtype, enabled=self.dtype != torch.float32):
                velocity = self.velocity(flowing, time)
            flowing = flowing + velocity.float() / count
        return flowing.clamp(0, 1)


def load_pmrf(folder: Path, dtype: torch.dtype = torch.float32) -> PMRF:
    """The published restorer, on the CPU; keys and shapes are checked before the numbers are read.

    Raises:
        UserError: the file cannot be got, or is not what it should be.
    """
    found = find_file(WEIGHTS, folder)
    state = map_weights(found.path)
    others = [name for name in state if not name.startswith((VELOCITY, MEAN, *OF_TRAINING))]
    if others or not select(state, MEAN):
        seen = name_some(others or list(state))
        raise UserError(f"{found.path}: holds {seen}, where PMRF has {VELOCITY}* and {MEAN}* alone.")
    with torch.device("meta"):
        velocity = HDiT(SHAPE)
    check_strictly(velocity.state_dict(), select(state, VELOCITY), found.path, "PMRF's velocity")
    del state
    numbers = read_weights(found.path, choose=lambda all_of_it: select(all_of_it, VELOCITY))
    load_strictly(velocity, numbers, found.path, "PMRF's velocity")
    mean = load_stage1(read_weights(found.path, choose=lambda all_of_it: select(all_of_it, MEAN)), found.path)
    return PMRF(velocity, mean, {found.path.name: found.sha256}, dtype)

"""Any restorer of one pass that spandrel knows: GFPGAN, RestoreFormer, SwinIR, and CodeFormer with its extra package.

spandrel finds the architecture in the file's keys. Its models are always put into evaluation mode here: it hands SwinIR
over in training mode, with parts dropped at random.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from spandrel import (
    MAIN_REGISTRY,
    ImageModelDescriptor,
    ModelLoader,
    UnsupportedModelError,
    canonicalize_state_dict,
)
from torch import Tensor, nn

from refl.restorers.surface import check_images
from refl.weights import FoundFile
from reward.weights import read_checkpoint
from runs import UserError

IMAGE_SIZE_PX = 512
"""Side of the aligned faces that the published ones were trained on."""
EXTRA_ARCHITECTURES = "spandrel_extra_arches"
"""The package with architectures under licences of their own, such as CodeFormer's."""


class FeedForwardRestorer(nn.Module):
    """Restores in one pass, the same for every seed; see `refl.restorers.surface`."""

    image_size_px = IMAGE_SIZE_PX
    multiple_px = 1  # the model's own multiple is reached by padding
    default_steps = 1
    is_random = False

    def __init__(
        self,
        descriptor: ImageModelDescriptor[nn.Module],
        base: str,
        weights: dict[str, str],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            base: the name under which `load_restorer` makes it again.
            weights: file name -> SHA-256 of what it was loaded from.
            dtype: what matrices are multiplied in, by autocast; the weights stay float32, since some architectures
                make float32 masks and tables as they run.
        """
        super().__init__()
        self.dtype = dtype
        self.descriptor = descriptor
        self.model = descriptor.model.eval().requires_grad_(False)
        self.base = base
        self.weights = weights
        self.eval()

    @property
    def settings(self) -> dict[str, object]:
        architecture = self.descriptor.architecture.name
        return {"restorer": self.base, "architecture": architecture, "weights": self.weights}

    def restore(self, lq: Tensor, seeds: Sequence[int], steps: int | None = None) -> Tensor:
        """See `Restorer.restore`."""
        check_images(lq, seeds, self.multiple_px)
        if steps not in (None, 1):
            raise ValueError(f"this restorer takes one step, not {steps}")
        with torch.autocast(lq.device.type, self.dtype, enabled=self.dtype != torch.float32):
            restored: Tensor = self.descriptor(lq.float())
        return restored.float().clone()  # a clone, since what inference mode made may take part in no gradient


def load_feedforward(found: FoundFile, base: str, dtype: torch.dtype = torch.float32) -> FeedForwardRestorer:
    """The restorer of a weight file, on the CPU.

    Raises:
        UserError: spandrel does not know it, it is no restorer of RGB images at their own size, or not in this dtype.
    """
    descriptor = read_descriptor(found.path)
    if dtype == torch.float16 and not descriptor.supports_half:
        raise UserError(
            f"{found.path}: {descriptor.architecture.name} overflows in float16. Choose bfloat16 or float32."
        )
    return FeedForwardRestorer(descriptor, base, {found.path.name: found.sha256}, dtype)


def read_descriptor(path: Path) -> ImageModelDescriptor[nn.Module]:
    """The model of a weight file.

    Raises:
        UserError: spandrel does not know it, or it is no restorer of RGB images at their own size.
    """
    has_extra = importlib.util.find_spec(EXTRA_ARCHITECTURES) is not None
    if has_extra:
        MAIN_REGISTRY.add(*importlib.import_module(EXTRA_ARCHITECTURES).EXTRA_REGISTRY, ignore_duplicates=True)
    state = canonicalize_state_dict(read_checkpoint(path))
    try:
        descriptor = ModelLoader().load_from_state_dict(state)
    except UnsupportedModelError as error:
        more = "" if has_extra else f" If it is CodeFormer, pip install {EXTRA_ARCHITECTURES}; mind its licence."
        raise UserError(f"{path}: of no architecture that spandrel knows.{more}") from error
    except (RuntimeError, KeyError) as error:
        line = str(error).replace("\n", " ")[:200]
        raise UserError(f"{path}: looks like a known architecture, but its weights do not fit it: {line}") from error
    if not isinstance(descriptor, ImageModelDescriptor) or descriptor.input_channels != 3 or descriptor.scale != 1:
        raise UserError(
            f"{path}: a {descriptor.architecture.name} that takes {descriptor.input_channels} channels and enlarges "
            f"×{descriptor.scale}; a restorer takes RGB images and gives them at their own size."
        )
    return descriptor

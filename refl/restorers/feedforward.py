"""Restore in one pass by a model spandrel knows: GFPGAN, RestoreFormer, SwinIR, and CodeFormer with its extra package.

spandrel finds the architecture in the file's keys. Its models are always put into evaluation mode here: it hands SwinIR
over in training mode, with parts dropped at random.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from spandrel import (
    MAIN_REGISTRY,
    ImageModelDescriptor,
    ModelDescriptor,
    ModelLoader,
    UnsupportedModelError,
)
from torch import Tensor, nn

from db.errors import UserError
from refl.published.weights import FoundFile
from refl.restorers.surface import check_images
from training.weights import list_candidates, list_faults, map_weights, name_some

IMAGE_SIZE_PX = 512
"""Side of the aligned faces that the published ones were trained on."""
EXTRA_ARCHITECTURES = "spandrel_extra_arches"
"""The package with architectures under licences of their own, such as CodeFormer's."""
MISFITS = (RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError, ArithmeticError)
"""Errors of spandrel where names look like an architecture's and their tensors are not."""


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
        UserError: spandrel does not know it, it does not restore RGB images at their own size, or not in this dtype.
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
        UserError: spandrel does not know it, or it does not restore RGB images at their own size.
    """
    descriptor = load_architecture(map_weights(path), path)
    if not isinstance(descriptor, ImageModelDescriptor) or descriptor.input_channels != 3 or descriptor.scale != 1:
        raise UserError(
            f"{path}: a {descriptor.architecture.name} that takes {descriptor.input_channels} channels and enlarges "
            f"×{descriptor.scale}; a restorer takes RGB images and gives them at their own size."
        )
    return descriptor


def load_architecture(
    state: Mapping[str, Tensor], source: Path | str, device: torch.device | str = "cpu"
) -> ModelDescriptor[nn.Module]:
    """The model that spandrel finds in these tensors' names, as they are or below a prefix that other code put there.

    Raises:
        UserError: it knows none of such names, or they do not fit what it found.
    """
    has_extra = importlib.util.find_spec(EXTRA_ARCHITECTURES) is not None
    if has_extra:
        MAIN_REGISTRY.add(*importlib.import_module(EXTRA_ARCHITECTURES).EXTRA_REGISTRY, ignore_duplicates=True)
    fault: Exception | None = None
    for candidate in list_candidates(dict(state)):
        try:
            descriptor = ModelLoader().load_from_state_dict(dict(candidate))
        except UnsupportedModelError:
            continue
        except MISFITS as error:
            fault = fault or error
            continue
        ours = {name: value for name, value in descriptor.model.state_dict().items() if name in candidate}
        faults = list_faults(ours, {name: candidate[name] for name in ours})  # it would copy integers into floats
        if faults:
            raise UserError(f"{source}: not the weights of {descriptor.architecture.name}: {name_some(faults)}.")
        return descriptor.to(torch.device(device))
    if fault is not None:
        line = " ".join(str(fault).split())[:200]
        raise UserError(f"{source}: looks like a known architecture, but its weights do not fit it: {line}") from fault
    more = "" if has_extra else f" If it is CodeFormer, pip install {EXTRA_ARCHITECTURES}; mind its licence."
    raise UserError(f"{source}: not an architecture that spandrel knows (it holds {name_some(list(state))}).{more}")

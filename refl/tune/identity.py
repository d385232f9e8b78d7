"""Compute the identity term of ReFL's loss: how far the restored face is from whom it shows, by dlib's network.

Training faces are aligned to one template, so that where dlib would crop the face is known beforehand, the same for the
restored image and for what it is compared with: nothing is detected, and the crop has a gradient.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from db.errors import UserError
from metrics.face_network import CHIP_PX, find_face_file, load_face_network
from metrics.lists import MetricError
from refl.faces.align import TEMPLATE_SIZE_PX

IdentityLoss = partial[Tensor]
"""`compute_identity_loss` with its network."""
CHIP_LEFT, CHIP_TOP, CHIP_STEP = 82.66, 130.74, 2.3497
"""Of dlib's crop in an aligned face of TEMPLATE_SIZE_PX: its first pixel, and the distance of two of its pixels. They
fit the template's five points to those of the mean face of dlib's `get_face_chip_details`, padding 0.25. Of dlib's own
crops by 68 landmarks of 46 faces the median is 1 px off in place and 1 % in size."""


def check_identity() -> None:
    """Check that the network's weights are here.

    Raises:
        UserError: they are not.
    """
    try:
        find_face_file()
    except MetricError as error:
        raise UserError(f"The identity term cannot be computed. {error} Or set identity_weight to 0.") from error


def load_identity(device: torch.device | str) -> IdentityLoss:
    """The term on a device, in float32 whatever is around.

    Raises:
        UserError: the weights are not here, or are another file.
    """
    check_identity()
    try:
        return partial(compute_identity_loss, load_face_network(str(device)))
    except MetricError as error:
        raise UserError(f"The identity term cannot be computed. {error} Or set identity_weight to 0.") from error


def compute_identity_loss(network: nn.Module, restored: Tensor, other: Tensor) -> Tensor:
    """(N,) squared distances of the faces' 128 numbers: 0 for the same picture, below 0.36 mostly the same person.

    Squared, since a plain distance pulls a face that is right as hard as one that is wrong, and has no gradient at 0;
    dlib calls two faces one person below 0.6, of which this is the square.

    Args:
        restored, other: (N, 3, H, W) about [0, 1], aligned; no gradient goes to the second.
    """
    with torch.autocast(restored.device.type, enabled=False):
        with torch.no_grad():
            wanted = network(crop_chips(other))
        found: Tensor = (network(crop_chips(restored)) - wanted).square().sum(dim=1)
    return found


def crop_chips(images: Tensor) -> Tensor:
    """(N, 3, 150, 150) what dlib would crop of (N, 3, H, W) aligned faces, each pixel a mean over what it covers."""
    down, across = (
        _weigh(size, first, images.device) for size, first in zip(images.shape[-2:], (CHIP_TOP, CHIP_LEFT), strict=True)
    )
    return down @ images.float() @ across.T


def _weigh(size: int, first: float, device: torch.device) -> Tensor:
    """(150, size) shares that the pixels of a row have in those of the crop: triangles as wide as two of its pixels."""
    ratio = size / TEMPLATE_SIZE_PX
    centres = (first + CHIP_STEP * torch.arange(CHIP_PX, device=device) + 0.5) * ratio - 0.5
    distances = (torch.arange(size, device=device) - centres[:, None]).abs()
    shares = (1 - distances / max(1.0, CHIP_STEP * ratio)).clamp_min(0)
    return shares / shares.sum(dim=1, keepdim=True)

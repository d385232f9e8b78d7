"""Compute light losses and measures of restored pixels; all take (N, 3, H, W) in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from refl.pretrain.config import PretrainConfig

GMS_CONSTANT = 0.0026
"""170 on the 0 to 255 scale squared; arXiv:1308.3052, section III-A."""
SSIM_CONSTANTS = 0.01**2, 0.03**2
SSIM_WINDOW_PX, SSIM_SIGMA_PX = 11, 1.5
LUMA = 0.299, 0.587, 0.114


def pixel_loss(restored: Tensor, hq: Tensor, config: PretrainConfig) -> Tensor:
    """() mean absolute error, and what structure and edges lack, by the config's weights."""
    with torch.autocast(restored.device.type, enabled=False):  # in bfloat16 a variance E[x²] - E[x]² is noise
        restored = restored.float()
        return (
            F.l1_loss(restored, hq)
            + config.ssim_weight * (1 - compute_ssim(restored, hq).mean())
            + config.gradient_weight * (1 - compute_gradient_similarity(restored, hq).mean())
        )


def compute_psnr(restored: Tensor, hq: Tensor) -> Tensor:
    """(N,) peak signal-to-noise ratio in dB."""
    return -10 * torch.log10(((restored - hq) ** 2).mean(dim=(1, 2, 3)).clamp_min(1e-10))


def compute_ssim(restored: Tensor, hq: Tensor) -> Tensor:
    """(N,) structural similarity of the three channels, Gaussian window, without borders.

    Source: Wang et al. 2004, equation 13.
    """
    offsets = torch.arange(SSIM_WINDOW_PX, dtype=restored.dtype, device=restored.device) - SSIM_WINDOW_PX // 2
    line = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA_PX**2))
    line = line / line.sum()
    stacked = torch.cat([restored, hq, restored**2, hq**2, restored * hq], dim=1)
    channels = stacked.shape[1]
    across = F.conv2d(stacked, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    means = F.conv2d(across, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    x, y, xx, yy, xy = means.chunk(5, dim=1)
    c1, c2 = SSIM_CONSTANTS
    contrast = (2 * (xy - x * y) + c2) / (xx - x**2 + yy - y**2 + c2)
    similarity: Tensor = ((2 * x * y + c1) / (x**2 + y**2 + c1) * contrast).mean(dim=(1, 2, 3))
    return similarity


def compute_gradient_similarity(restored: Tensor, hq: Tensor) -> Tensor:
    """(N, 1, H/2, W/2) gradient magnitude similarity of the luma at half size. Source: arXiv:1308.3052, equation 4."""
    x, y = _gradient_magnitude(restored), _gradient_magnitude(hq)
    return (2 * x * y + GMS_CONSTANT) / (x**2 + y**2 + GMS_CONSTANT)


def compute_gmsd(restored: Tensor, hq: Tensor) -> Tensor:
    """(N,) gradient magnitude similarity deviation, lower is better. Source: arXiv:1308.3052, equation 6."""
    return compute_gradient_similarity(restored, hq).flatten(1).std(dim=1, correction=0)


def _gradient_magnitude(image: Tensor) -> Tensor:
    weights = image.new_tensor(LUMA).view(1, 3, 1, 1)
    small = F.avg_pool2d((image * weights).sum(dim=1, keepdim=True), 2)
    prewitt = image.new_tensor([[1.0, 0.0, -1.0]] * 3) / 3
    kernels = torch.stack([prewitt, prewitt.T]).unsqueeze(1)
    gradients = F.conv2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), kernels)
    return torch.sqrt((gradients**2).sum(dim=1, keepdim=True) + 1e-8)

"""Compare an image with its reference: PSNR, SSIM and GMSD in torch, written from their papers.

What the papers leave open (the luma, its rounding, the borders) is as pyiqa has it: the values are the same, and no
package with conditions is needed for them. All take (N, 3, H, W), RGB, 0 … 1, and give (N,).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = 0.299, 0.587, 0.114
"""ITU-R BT.601."""
PSNR_FLOOR = 1e-8
"""Mean squared error of equal images, so that theirs is 80 dB and not infinite."""
SSIM_WINDOW_PX, SSIM_SIGMA_PX = 11, 1.5
SSIM_CONSTANTS = (0.01 * 255) ** 2, (0.03 * 255) ** 2
MIDDLE_GREY = 128
GMSD_CONSTANT = 170


def compute_luma(images: Tensor) -> Tensor:
    """(N, 1, H, W) of 0 … 255 in whole grey levels; its gradient is that of the luma before rounding."""
    luma = (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True) * 255
    return luma + (luma.round() - luma).detach()


def compute_psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of the three channels, dB."""
    return -10 * torch.log10(((images - references) ** 2).mean(dim=(1, 2, 3)) + PSNR_FLOOR)


def compute_ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of the lumas without borders, negative contrast counted as none.

    Source: Wang et al. 2004, equation 13.

    Raises:
        ValueError: the images are smaller than the window.
    """
    height, width = images.shape[-2:]
    if min(height, width) < SSIM_WINDOW_PX:
        raise ValueError(f"{width} x {height} pixels are fewer than the window of {SSIM_WINDOW_PX} x {SSIM_WINDOW_PX}")
    # Shifted to the middle grey: variances do not change, and float32 keeps their digits.
    x, y = (compute_luma(either) - MIDDLE_GREY for either in (images, references))
    mean_x, mean_y, xx, yy, xy = (_smooth(plane) for plane in (x, y, x * x, y * y, x * y))
    c1, c2 = SSIM_CONSTANTS
    spread = xx - mean_x * mean_x + yy - mean_y * mean_y
    contrast = ((2 * (xy - mean_x * mean_y) + c2) / (spread + c2)).clamp_min(0)
    mean_x, mean_y = mean_x + MIDDLE_GREY, mean_y + MIDDLE_GREY
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return (luminance * contrast).double().mean(dim=(1, 2, 3))


def _smooth(planes: Tensor) -> Tensor:
    """(N, 1, H, W) -> (N, 1, H - 10, W - 10), by the Gaussian window, with a gradient."""
    line = cv2.getGaussianKernel(SSIM_WINDOW_PX, SSIM_SIGMA_PX, cv2.CV_32F)
    # Some twenty times as fast as a convolution of one channel; of gradients and fake tensors OpenCV knows nothing.
    if planes.device.type == "cpu" and not planes.requires_grad and type(planes) is Tensor:
        inside = slice(SSIM_WINDOW_PX // 2, -(SSIM_WINDOW_PX // 2))
        smoothed = [cv2.sepFilter2D(plane.numpy(), cv2.CV_32F, line, line)[inside, inside] for plane in planes[:, 0]]
        return torch.from_numpy(np.stack(smoothed)).unsqueeze(1)
    kernel = torch.from_numpy(line).to(planes).view(1, 1, 1, -1)
    return F.conv2d(F.conv2d(planes, kernel), kernel.transpose(2, 3))


def compute_gmsd(images: Tensor, references: Tensor) -> Tensor:
    """Gradient magnitude similarity deviation of the lumas at half size, zeros beyond the border; lower is better.

    Source: Xue et al., arXiv:1308.3052, equations 4 and 6.
    """
    x, y = (_gradient_magnitude(F.avg_pool2d(compute_luma(either), 2)) for either in (images, references))
    similarity = (2 * x * y + GMSD_CONSTANT) / (x * x + y * y + GMSD_CONSTANT)
    return similarity.flatten(1).std(dim=1)


def _gradient_magnitude(luma: Tensor) -> Tensor:
    """(N, 1, H, W) by Prewitt's masks; never quite 0, where a root has no gradient."""
    prewitt = luma.new_tensor([[1.0, 0.0, -1.0]] * 3) / 3
    gradients = F.conv2d(luma, torch.stack([prewitt, prewitt.T]).unsqueeze(1), padding=1)
    return torch.sqrt((gradients * gradients).sum(dim=1, keepdim=True) + 1e-12)

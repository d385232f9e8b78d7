"""Build the hourglass diffusion transformer (HDiT) that PMRF's velocity is, under its published names.

An image becomes tokens of 4 × 4 pixels; at each level down, 2 × 2 tokens become one. At the finer levels a token looks
at the 7 × 7 tokens around it, at the lowest at all. All layers are scaled by a vector made of the time. Places enter by
rotating queries and keys (axial RoPE). Written after arXiv:2401.11605 and, for names, shapes and what the paper leaves
open, ohayonguy/PMRF, arch/hourglass/image_transformer_v2.py and arch/hourglass/axial_rope.py (MIT, of k-diffusion).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from refl.published.neighbourhood import attend_to_neighbourhood

EPSILON = 1e-6
AUGMENTATIONS = 9
"""Numbers that say how an image was augmented in training; 0 at use."""


@dataclass(frozen=True)
class HDiTShape:
    """Widths and depths of the levels, the finest first; the last attends to all tokens, the others to neighbours."""

    widths: tuple[int, ...] = (256, 512, 1024)
    depths: tuple[int, ...] = (2, 2, 8)
    head_width: int = 64
    kernel: int = 7
    patch_px: int = 4
    mapping_width: int = 768
    mapping_depth: int = 2
    expansion: int = 3
    """Of the layers between attentions: times a level's width."""


class RMSNorm(nn.Module):
    """Divide by the root of the mean square over channels, and scale each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return _normalise(x, self.scale)


class AdaRMSNorm(nn.Module):
    """The same with scales from the condition: (N, H, W, C), (N, M) -> (N, H, W, C)."""

    def __init__(self, width: int, condition_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(condition_width, width, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return _normalise(x, self.linear(condition)[:, None, None] + 1)


def _normalise(x: Tensor, scale: Tensor) -> Tensor:
    inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPSILON)
    return x * (scale.float() * inverse).to(x.dtype)


class GEGLU(nn.Linear):
    """Linear to twice the width; the one half times the GELU of the other."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__(width, 2 * out_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        values, gate = super().forward(x).chunk(2, -1)
        return values * functional.gelu(gate)


class FourierFeatures(nn.Module):
    """Cosines and sines of numbers at fixed random frequencies: (N, n) -> (N, width)."""

    weight: Tensor

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(width // 2, numbers))

    def forward(self, x: Tensor) -> Tensor:
        angles = 2 * math.pi * (x[:, None].float() * self.weight.float()).sum(-1)  # autocast would round a product
        return torch.cat([angles.cos(), angles.sin()], -1)


class AxialRoPE(nn.Module):
    """The angles by which queries and keys are turned at a place: (..., 2) -> (..., heads, half the turned width)."""

    freqs: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        count = heads * width // 4
        freqs = torch.linspace(math.log(math.pi), math.log(10 * math.pi), count + 1)[:-1].exp()
        self.register_buffer("freqs", freqs.view(width // 4, heads).T.contiguous())

    def forward(self, places: Tensor) -> Tensor:
        return torch.cat([places[..., None, 0:1] * self.freqs, places[..., None, 1:2] * self.freqs], -1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn pairs of channels, the first half with the second of those that are turned; the rest stays as it is.

    Args:
        x: (..., D).
        angles: (..., d), 2 d <= D.
    """
    count = angles.shape[-1]
    first, second, rest = x[..., :count].float(), x[..., count : 2 * count].float(), x[..., 2 * count :]
    cos, sin = angles.cos(), angles.sin()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return torch.cat([turned.to(x.dtype), rest], -1)


class SelfAttention(nn.Module):
    """Attention by the cosine of queries and keys, times a learned scale a head: to all tokens or to neighbours."""

    def __init__(self, width: int, head_width: int, condition_width: int, kernel: int | None) -> None:
        """
        Args:
            kernel: side of the neighbourhood; None for all tokens.
        """
        super().__init__()
        self.kernel = kernel
        self.heads = width // head_width
        self.norm = AdaRMSNorm(width, condition_width)
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.scale = nn.Parameter(torch.full([self.heads], 10.0))
        self.pos_emb = AxialRoPE(head_width // 2, self.heads)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, places: Tensor, condition: Tensor) -> Tensor:
        """(N, H, W, C), (H, W, 2), (N, M) -> (N, H, W, C)."""
        height, width = x.shape[1:3]
        split: Tensor = self.qkv_proj(self.norm(x, condition))
        query, key, value = split.reshape(*split.shape[:3], 3, self.heads, -1).unbind(3)  # each (N, H, W, heads, D)
        angles = self.pos_emb(places)
        query, key = (rotate(self._to_cosine(one), angles) for one in (query, key))
        if self.kernel is None:
            query, key, value = (one.flatten(1, 2).transpose(1, 2) for one in (query, key, value))  # (N, heads, H W, D)
            seen = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
            seen = seen.transpose(1, 2).reshape(len(x), height, width, self.heads, -1)
        else:
            seen = attend_to_neighbourhood(query, key, value, self.kernel)
        result: Tensor = x + self.out_proj(seen.flatten(-2))
        return result

    def _to_cosine(self, x: Tensor) -> Tensor:
        inverse = torch.rsqrt(x.float().square().sum(-1, keepdim=True) + EPSILON)
        return x * (self.scale.float().sqrt()[:, None] * inverse).to(x.dtype)


class FeedForward(nn.Module):
    """A token at a time: (N, H, W, C), (N, M) -> (N, H, W, C)."""

    def __init__(self, width: int, inner_width: int, condition_width: int) -> None:
        super().__init__()
        self.norm = AdaRMSNorm(width, condition_width)
        self.up_proj = GEGLU(width, inner_width)
        self.down_proj = nn.Linear(inner_width, width, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        result: Tensor = x + self.down_proj(self.up_proj(self.norm(x, condition)))
        return result


class Layer(nn.Module):
    """Attention, and then each token for itself."""

    def __init__(self, shape: HDiTShape, level: int) -> None:
        super().__init__()
        width, is_lowest = shape.widths[level], level == len(shape.widths) - 1
        kernel = None if is_lowest else shape.kernel
        self.self_attn = SelfAttention(width, shape.head_width, shape.mapping_width, kernel)
        self.ff = FeedForward(width, width * shape.expansion, shape.mapping_width)

    def forward(self, x: Tensor, places: Tensor, condition: Tensor) -> Tensor:
        result: Tensor = self.ff(self.self_attn(x, places, condition), condition)
        return result


class MappingBlock(nn.Module):
    """(N, M) -> (N, M)."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.up_proj = GEGLU(width, inner_width)
        self.down_proj = nn.Linear(inner_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down_proj(self.up_proj(self.norm(x)))
        return result


class Mapping(nn.Module):
    """The condition of all layers, (N, M) -> (N, M)."""

    def __init__(self, shape: HDiTShape) -> None:
        super().__init__()
        width = shape.mapping_width
        self.in_norm = RMSNorm(width)
        self.blocks = nn.ModuleList(MappingBlock(width, width * shape.expansion) for _ in range(shape.mapping_depth))
        self.out_norm = RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_norm(x)
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.out_norm(x)
        return result


class Merge(nn.Module):
    """Make one token of s × s: (N, s H, s W, C) -> (N, H, W, C')."""

    def __init__(self, width: int, out_width: int, side: int = 2) -> None:
        super().__init__()
        self.side = side
        self.proj = nn.Linear(width * side**2, out_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        count, height, width, channels = x.shape
        x = x.reshape(count, height // self.side, self.side, width // self.side, self.side, channels)
        result: Tensor = self.proj(x.transpose(2, 3).flatten(3))
        return result


class Split(nn.Module):
    """Make s × s tokens of one: (N, H, W, C) -> (N, s H, s W, C')."""

    def __init__(self, width: int, out_width: int, side: int = 2) -> None:
        super().__init__()
        self.side = side
        self.proj = nn.Linear(width, out_width * side**2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        x = x.view(*x.shape[:3], self.side, self.side, -1)  # (N, H, W, s, s, C')
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class SkipSplit(Split):
    """The same, blended with what the level was on the way down."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__(width, out_width)
        self.fac = nn.Parameter(torch.full([1], 0.5))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        return torch.lerp(skip, super().forward(x), self.fac.to(x.dtype))


class HDiT(nn.Module):
    """The velocity of an image at a time; see the module."""

    def __init__(self, shape: HDiTShape) -> None:
        super().__init__()
        self.shape = shape
        widths, lowest = shape.widths, len(shape.widths) - 1
        self.patch_in = Merge(3, widths[0], shape.patch_px)
        self.time_emb = FourierFeatures(1, shape.mapping_width)
        self.time_in_proj = nn.Linear(shape.mapping_width, shape.mapping_width, bias=False)
        self.aug_emb = FourierFeatures(AUGMENTATIONS, shape.mapping_width)
        self.aug_in_proj = nn.Linear(shape.mapping_width, shape.mapping_width, bias=False)
        self.mapping = Mapping(shape)
        self.down_levels = nn.ModuleList(self._make_level(level) for level in range(lowest))
        self.up_levels = nn.ModuleList(self._make_level(level) for level in range(lowest))
        self.mid_level = self._make_level(lowest)
        self.merges = nn.ModuleList(Merge(*widths[level : level + 2]) for level in range(lowest))
        self.splits = nn.ModuleList(SkipSplit(widths[level + 1], widths[level]) for level in range(lowest))
        self.out_norm = RMSNorm(widths[0])
        self.patch_out = Split(widths[0], 3, shape.patch_px)

    def _make_level(self, level: int) -> nn.ModuleList:
        return nn.ModuleList(Layer(self.shape, level) for _ in range(self.shape.depths[level]))

    def forward(self, images: Tensor, time: Tensor) -> Tensor:
        """(N, 3, H, W) at times (N,) in [0, 1] -> (N, 3, H, W), of no bounds; sides multiples of 4 times 2 a level."""
        condition = self._map_time(time)
        x = self.patch_in(images.movedim(1, -1))
        places = make_places(x.shape[1], x.shape[2], images.device)
        skips: list[tuple[Tensor, Tensor]] = []
        for level, merge in zip(self.down_levels, self.merges, strict=True):
            x = _pass(level, x, places, condition)
            skips.append((x, places))
            x, places = merge(x), shrink_places(places)
        x = _pass(self.mid_level, x, places, condition)
        for at in reversed(range(len(skips))):
            skip, places = skips[at]
            x = _pass(self.up_levels[at], self.splits[at](x, skip), places, condition)
        velocity: Tensor = self.patch_out(self.out_norm(x)).movedim(-1, 1)
        return velocity

    def _map_time(self, time: Tensor) -> Tensor:
        of_time = self.time_in_proj(self.time_emb(time[:, None]))
        of_augmentation = self.aug_in_proj(self.aug_emb(time.new_zeros(len(time), AUGMENTATIONS)))
        condition: Tensor = self.mapping(of_time + of_augmentation)
        return condition


def _pass(level: nn.Module, x: Tensor, places: Tensor, condition: Tensor) -> Tensor:
    assert isinstance(level, nn.ModuleList)
    for layer in level:
        x = layer(x, places, condition)
    return x


def make_places(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Where tokens lie, (H, W, 2) of (y, x): the middles of equal parts, the longer side from -1 to 1."""
    longer = max(height, width)
    sides = [
        (torch.arange(count, device=device, dtype=torch.float32) * 2 + 1 - count) / longer for count in (height, width)
    ]
    return torch.stack(torch.meshgrid(*sides, indexing="ij"), -1)


def shrink_places(places: Tensor) -> Tensor:
    """The middles of 2 × 2 places each."""
    return (places[0::2, 0::2] + places[0::2, 1::2] + places[1::2, 0::2] + places[1::2, 1::2]) / 4

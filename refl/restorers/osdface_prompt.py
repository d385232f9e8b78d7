"""Tell OSDFace's denoiser what the face is: the 77 best words of a learned vocabulary for the image, as a prompt.

An encoder makes 16 × 16 vectors of the image; each is near one of 1024 words; the words that are nearest to any vector,
each once, are the prompt, widened from 512 to 1024 numbers. Nothing here is trained further.

Source: lq_embed/{inference,vqvae}.py of jkwang28/OSDFace, whose names the tensors have. It takes pixels in [-1, 1] and
centres them a second time, as if they were in [0, 1]; so it was published, and so it is here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from db.errors import UserError
from training.weights import load_strictly

PREFIX = "vqvae_LQ."
"""Of the encoder's names in the published checkpoint."""
TOKENS = 77
LATENT_PX = 16
"""Side of what the encoder makes of an image."""
NORM_GROUPS = 32


class _Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inside), nn.Conv2d(inside, out, 3, padding=1)
        self.norm2, self.conv2 = _norm(out), nn.Conv2d(out, out, 3, padding=1)
        if inside != out:
            self.nin_shortcut = nn.Conv2d(inside, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        found: Tensor = h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)
        return found


class _Attention(nn.Module):
    """Attention of one head over all places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = _norm(width)
        self.norm2 = _norm(width)  # in the file; of a second input, which there is none of
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        found: Tensor = x + self.proj_out(attended)
        return found


class _Encoder(nn.Module):
    """(N, 3, side, side) -> (N, out, 16, 16); attention at the last level."""

    def __init__(self, widths: list[int], blocks: int, out: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        inside = widths[0]
        for place, width in enumerate(widths):
            is_last = place == len(widths) - 1
            level = nn.Module()
            level.block = nn.ModuleList(_Block(inside if at == 0 else width, width) for at in range(blocks))
            level.attn = nn.ModuleList(_Attention(width) for _ in range(blocks if is_last else 0))
            if not is_last:
                level.downsample = nn.Module()
                level.downsample.conv = nn.Conv2d(width, width, 3, stride=2)
            self.down.append(level)
            inside = width
        self.mid = nn.Module()
        self.mid.block_1, self.mid.attn_1, self.mid.block_2 = (
            _Block(inside, inside),
            _Attention(inside),
            _Block(inside, inside),
        )
        self.norm_out, self.conv_out = _norm(inside), nn.Conv2d(inside, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            parts = cast(Any, level)
            for place, block in enumerate(parts.block):
                h = block(h)
                if len(parts.attn):
                    h = parts.attn[place](h)
            if hasattr(parts, "downsample"):
                h = parts.downsample.conv(F.pad(h, (0, 1, 0, 1)))
        middle = cast(Any, self.mid)
        h = middle.block_2(middle.attn_1(middle.block_1(h)))
        found: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return found


class _Change(nn.Module):
    """Widens each word: (N, C, T) -> (N, C', T)."""

    def __init__(self, inside: int, middle: int, out: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(inside, middle, 1), nn.Conv1d(middle, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = F.silu(self.conv2(F.silu(self.conv1(x))))
        return found


class PromptEncoder(nn.Module):
    """Images to prompts: (N, 3, H, W) in [0, 1] -> (N, 77, C), float32."""

    def __init__(
        self, widths: list[int], blocks: int = 2, words: int = 1024, word: int = 512, middle: int = 256, out: int = 1024
    ) -> None:
        """
        Args:
            widths: channels of each level of the encoder.
            blocks: of a level.
            words: of the vocabulary.
            word: numbers of a word.
            middle, out: numbers on the way to, and of, what the denoiser attends to.
        """
        super().__init__()
        self.side_px = LATENT_PX << (len(widths) - 1)
        self.encoder = _Encoder(widths, blocks, word)
        self.quant_conv = nn.Conv2d(word, word, 1)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(words, word)
        self.change = _Change(word, middle, out)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        vocabulary = cast(Tensor, cast(Any, self.quantize).embedding.weight)
        pixels = F.interpolate(images.to(vocabulary.dtype) * 2 - 1, (self.side_px,) * 2, mode="bilinear")
        vectors = self.quant_conv(self.encoder((pixels - 0.5) / 0.5)).flatten(2).transpose(1, 2)
        distances = vectors.square().sum(2, keepdim=True) + vocabulary.square().sum(1) - 2 * vectors @ vocabulary.T
        widened: Tensor = self.change(choose_words(distances, vocabulary).transpose(1, 2)).transpose(1, 2)
        return widened.float()


def choose_words(distances: Tensor, vocabulary: Tensor) -> Tensor:
    """Each image's words, the nearest to any of its vectors first, each once; zeros where there are fewer than 77.

    Args:
        distances: (N, vectors, words) squared.
        vocabulary: (words, C).
    Returns:
        (N, 77, C).
    """
    nearest, words = distances.min(dim=2)
    best = torch.full_like(distances[:, 0], torch.inf).scatter_reduce(1, words, nearest, "amin")  # inf: nobody's
    ordered, words = best.sort(dim=1)
    chosen = vocabulary[words[:, :TOKENS]] * ordered[:, :TOKENS, None].isfinite()
    return F.pad(chosen, (0, 0, 0, TOKENS - chosen.shape[1]))


def make_prompt_encoder(state: Mapping[str, Tensor], change: Mapping[str, Tensor], source: Path | str) -> PromptEncoder:
    """A prompt encoder of the shape of these tensors, without their numbers.

    Args:
        state: of the published checkpoint, the encoder's below `vqvae_LQ.`.
        change: of the file that widens words.
    Raises:
        UserError: they are of no such network.
    """
    levels = {int(found[1]) for key in state if (found := re.match(rf"{PREFIX}encoder\.down\.(\d+)\.", key))}
    firsts = [state.get(f"{PREFIX}encoder.down.{level}.block.0.conv1.weight") for level in sorted(levels)]
    words = state.get(f"{PREFIX}quantize.embedding.weight")
    if (
        not levels
        or words is None
        or any(one is None for one in firsts)
        or not {"conv1.weight", "conv2.weight"} <= set(change)
    ):
        raise UserError(f"{source}: not OSDFace's prompt encoder: no levels below {PREFIX}encoder, or no vocabulary.")
    widths = [int(one.shape[0]) for one in firsts if one is not None]
    blocks = len([key for key in state if re.fullmatch(rf"{PREFIX}encoder\.down\.0\.block\.\d+\.conv1\.weight", key)])
    middle, out = int(change["conv1.weight"].shape[0]), int(change["conv2.weight"].shape[0])
    return PromptEncoder(widths, blocks, int(words.shape[0]), int(words.shape[1]), middle, out)


def fill_prompt_encoder(
    encoder: PromptEncoder, state: Mapping[str, Tensor], change: Mapping[str, Tensor], source: Path | str
) -> None:
    """Give it its numbers; what the checkpoint has besides (decoder, the high-quality encoder) is not used.

    Raises:
        UserError: a tensor is missing, or of another shape.
    """
    wanted = ("encoder.", "quant_conv.", "quantize.embedding.")
    below = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    found = {key: value.float().clone() for key, value in below.items() if key.startswith(wanted)}
    found |= {f"change.{key}": value.float().clone() for key, value in change.items()}
    load_strictly(encoder, found, source, "OSDFace's prompt encoder")


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, width, eps=1e-6)

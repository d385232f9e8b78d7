"""Define the surface of every restorer, and draw noise that makes one image's result independent of its batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class Restorer(Protocol):
    """A restorer of square aligned faces, ready to use on one device."""

    @property
    def image_size_px(self) -> int:
        """Side of the aligned faces that it was trained on; `restore` takes any multiple of `multiple_px`."""

    @property
    def multiple_px(self) -> int:
        """Sides of an image must be multiples of this; callers fit the image, restorers refuse others."""

    @property
    def default_steps(self) -> int:
        """Number of steps where none are named; 1 for restorers of one pass."""

    @property
    def is_random(self) -> bool:
        """Whether a seed changes the result; without it there is one candidate per source."""

    @property
    def settings(self) -> dict[str, object]:
        """All that the pixels depend on, JSON-able; stored with the method."""

    def restore(self, lq: Tensor, seeds: Sequence[int], steps: int | None = None) -> Tensor:
        """The restored images.

        Args:
            lq: (N, 3, H, W) RGB, float in [0, 1], sides multiples of `multiple_px`.
            seeds: of the noise, one per image; a batch gives what its images give alone.
            steps: how many denoising steps; None for `default_steps`.
        Returns:
            (N, 3, H, W) RGB, float32 in [0, 1], on the device of `lq`, without gradient.
        Raises:
            ValueError: another shape, or another number of seeds or steps.
        """


class HeldPrompt(nn.Module):
    """Stands where a text encoder was: gives the embedding of the one prompt that is used."""

    embedding: Tensor

    def __init__(self, embedding: Tensor) -> None:
        """
        Args:
            embedding: (1, T, C).
        """
        super().__init__()
        self.register_buffer("embedding", embedding, persistent=False)

    def forward(self, prompts: Sequence[str]) -> Tensor:
        return self.embedding.expand(len(prompts), -1, -1)


def make_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One source of noise per image, on the CPU, so that every device sees the same noise."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def draw_ahead(
    generators: Sequence[torch.Generator], shape_of_one: Sequence[int], count: int, device: torch.device | str
) -> Iterator[Tensor]:
    """The next `count` normal noises of each generator, (N, *shape_of_one) each, sent to the device at once.

    Image i's comes from generators[i] alone.
    """
    drawn = [torch.stack([torch.randn(*shape_of_one, generator=one) for one in generators]) for _ in range(count)]
    return iter(torch.stack(drawn).to(device)) if count else iter(())


def check_images(lq: Tensor, seeds: Sequence[int], multiple_px: int) -> None:
    """Check that a batch can be restored.

    Raises:
        ValueError: no RGB batch, no floats, sides that are not multiples, or another number of seeds.
    """
    if lq.ndim != 4 or lq.shape[1] != 3 or 0 in lq.shape or not lq.is_floating_point():
        raise ValueError(f"expected RGB images (N, 3, H, W) as floats in [0, 1], got {tuple(lq.shape)} {lq.dtype}")
    height, width = lq.shape[2:]
    if height % multiple_px or width % multiple_px:
        raise ValueError(
            f"sides must be multiples of {multiple_px} px, got {width} × {height}; pad or resize the image"
        )
    if len(seeds) != len(lq):
        raise ValueError(f"expected one seed per image, got {len(seeds)} for {len(lq)}")

"""Hold one-step restorers whose published adapters stay beside the weights, and are what a training goes on with.

So what was trained has the names, shapes and ranks of the published file, and its authors' own code loads it. "Before
training" is then the published restorer, not bare Stable Diffusion: as training begins, each adapter gets a frozen
copy, which costs the adapters' memory once more, and counts where the trained ones do not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from db.errors import UserError
from refl.published.weights import FoundFile
from refl.restorers import lora
from refl.restorers.diffbir import StableDiffusion, choose_dtypes, fill_stable_diffusion
from refl.restorers.lora import BEFORE
from refl.restorers.one_step import OneStepRestorer, OneStepSettings
from refl.restorers.osediff_lora import add_adapters
from refl.restorers.record import Kind
from training.weights import check_strictly, name_some


class AdaptedRestorer(OneStepRestorer):
    """Restore in one step by a denoiser with adapters that are not merged; see `refl.restorers.surface`."""

    adapted = ("unet",)

    def set_trainable(self, kind: Kind = "lora", rank: int = 0) -> None:  # noqa: ARG002 (theirs counts)
        """Let the published adapters be trained, at the rank that they have, whatever is asked for.

        Raises:
            ValueError: `kind` is not "lora"; there is no ControlNet here.
        """
        if kind != "lora":
            raise ValueError(f"{type(self).__name__} is trained by LoRA; it has no {kind}")
        if self.trained is None:
            copy_adapters(self.unet)
        self.requires_grad_(False)
        for layer in lora.lora_layers(self.unet):
            layer.set_adapter([name for name in layer.lora_A if not name.endswith(BEFORE)])
        self.trained = lora.Trained("lora", find_rank(self.unet))

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """The block computes as before training: with the published adapters."""
        if self.trained is None:
            yield
            return
        with choose_adapters(self.unet, lambda layer: [name for name in layer.lora_A if name.endswith(BEFORE)]):
            yield

    def set_lora_strength(self, strength: float) -> None:
        """Mix the published adapters and the trained ones: 0 is published, 1 as trained, beyond it more so.

        Raises:
            ValueError: nothing was trained.
        """
        if self.trained is None:
            raise ValueError("this restorer has no LoRA whose strength could be set")
        for layer in lora.lora_layers(self.unet):
            for name in layer.lora_A:
                layer.set_scale(name, 1 - strength if name.endswith(BEFORE) else strength)
            active = [name for name in layer.lora_A if strength != 1 or not name.endswith(BEFORE)]
            layer.set_adapter(active, inference_mode=True)
        self.trained = replace(self.trained, strength=strength)


R = TypeVar("R", bound=AdaptedRestorer)


def find_rank(part: nn.Module) -> int:
    """The rank of a part's adapters, the largest where there are several."""
    return max(int(rank) for layer in lora.lora_layers(part) for rank in layer.r.values())


def copy_adapters(part: nn.Module) -> None:
    """Give every adapter a frozen copy, which does not count until it is chosen."""
    adapted = {name: layer for name, layer in part.named_modules() if hasattr(layer, "lora_A")}
    groups: dict[str, dict[str, Any]] = {}
    for name, layer in adapted.items():
        for adapter in layer.lora_A:
            groups.setdefault(adapter, {})[name] = layer
    for adapter, layers in groups.items():
        first = next(iter(layers.values()))
        add_adapters(part, {adapter + BEFORE: list(layers)}, first.r[adapter], first.lora_alpha[adapter])
        for layer in layers.values():
            for factors in (layer.lora_A, layer.lora_B):
                copied = factors[adapter].weight.detach().clone()
                factors[adapter + BEFORE].weight = nn.Parameter(copied, requires_grad=False)


@contextmanager
def choose_adapters(part: nn.Module, choose: Callable[[Any], list[str]]) -> Iterator[None]:
    """The block computes with those adapters alone that are chosen for each layer."""
    layers = list(lora.lora_layers(part))
    before = [(list(layer.active_adapters), any(one.requires_grad for one in layer.parameters())) for layer in layers]
    for layer in layers:
        layer.set_adapter(choose(layer), inference_mode=True)
    try:
        yield
    finally:
        for layer, (active, is_trained) in zip(layers, before, strict=True):
            layer.set_adapter(active, inference_mode=not is_trained)


def find_layers(state: Mapping[str, Tensor], source: Path | str) -> tuple[list[str], int]:
    """The layers of adapters named `LAYER.lora_A…`, and their rank.

    Raises:
        UserError: there are none, or their ranks differ.
    """
    downs = {name.partition(".lora_A.")[0]: value for name, value in state.items() if ".lora_A." in name}
    ranks = sorted({int(value.shape[0]) for value in downs.values()})
    if len(ranks) != 1:
        what = f"their ranks are {', '.join(map(str, ranks))}, not one" if ranks else "there are none"
        raise UserError(f"{source}: not the adapters of a denoiser: {what}.")
    return list(downs), ranks[0]


@dataclass(frozen=True)
class Adapters:
    """What a published file of adapters holds."""

    state: Mapping[str, Tensor]
    """`LAYER.lora_A.ADAPTER.weight` and `…lora_B…`, as peft names them in a denoiser."""
    groups: Mapping[str, tuple[Sequence[str], int]]
    """Adapter -> its layers and its rank."""
    source: Path | str
    alpha: float | None = None
    """An adapter counts alpha / rank; once where it is not given."""


def check_adapters(part: nn.Module, adapters: Adapters) -> None:
    """Check that adapters are those of a part, of which only shapes are read.

    Raises:
        UserError: a layer or a tensor is missing, unknown or of another shape.
    """
    layers = {name: layer for name, layer in part.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    asked = [name for names, _ in adapters.groups.values() for name in names]
    if unknown := [f"there is no layer {name}" for name in asked if name not in layers]:
        raise UserError(f"{adapters.source}: not adapters of this Stable Diffusion: {name_some(unknown)}.")
    expected = {}
    for adapter, (names, rank) in adapters.groups.items():
        for name in names:
            out, *inside = layers[name].weight.shape
            ones = (1,) * (len(inside) - 1)
            expected[f"{name}.lora_A.{adapter}.weight"] = torch.empty(rank, *inside, device="meta")
            expected[f"{name}.lora_B.{adapter}.weight"] = torch.empty(out, rank, *ones, device="meta")
    check_strictly(expected, adapters.state, adapters.source, "these adapters")


@torch.no_grad()
def load_adapters(part: nn.Module, adapters: Adapters) -> None:
    """Put adapters beside a part's weights.

    Raises:
        UserError: see `check_adapters`; nothing was changed then.
    """
    check_adapters(part, adapters)
    for adapter, (layers, rank) in adapters.groups.items():
        add_adapters(part, {adapter: layers}, rank, adapters.alpha or rank)
    for name, value in part.named_parameters():
        if ".lora_" in name:
            value.copy_(adapters.state[name])


def fill_with_adapters(
    parts: StableDiffusion,
    base: FoundFile,
    adapters: Adapters,
    names: Sequence[str],
    dtype: torch.dtype,
    keep_float32: Collection[str],
) -> None:
    """Read the numbers of Stable Diffusion's parts, and put adapters on the denoiser, all checked before.

    Args:
        names: of the parts.
        dtype, keep_float32: see `load_restorer`.
    """
    check_adapters(parts.unet, adapters)
    dtypes = choose_dtypes(dtype, keep_float32)
    fill_stable_diffusion(parts, base, {name: dtypes[name] for name in names})
    load_adapters(parts.unet, adapters)


def load_adapted(
    build: Callable[..., R],
    parts: StableDiffusion,
    files: Sequence[FoundFile],
    adapters: Adapters,
    *,
    use: OneStepSettings,
    asked: str,
    dtype: torch.dtype,
    keep_float32: Collection[str],
    text: nn.Module | None = None,
    **more: Any,
) -> R:
    """Load a restorer, on the CPU.

    Args:
        build: the restorer's class.
        parts: of Stable Diffusion, without its numbers.
        files: Stable Diffusion's, then all others that the restorer is made from.
        asked, dtype, keep_float32: see `load_restorer`.
        text: what stands for Stable Diffusion's text encoder, which then is not read.
        more: of the class.
    Raises:
        UserError: a file is not what it should be.
    """
    names = ("unet", "vae", "text") if text is None else ("unet", "vae")
    fill_with_adapters(parts, files[0], adapters, names, dtype, keep_float32)
    weights = {found.path.name: found.sha256 for found in files}
    made = build(parts.unet, parts.vae, parts.text if text is None else text, use, base=asked, weights=weights, **more)
    return made.eval().requires_grad_(False)

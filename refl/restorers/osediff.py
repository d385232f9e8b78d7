"""Restore by OSEDiff (arXiv:2406.08177): Stable Diffusion 2.1 with adapters, in one step from the image's latents.

The image is encoded, its latents are taken for those of the last timestep, the noise that the denoiser finds in them is
removed, and what is left is decoded. The published code draws the latents from the encoder's posterior; here they are
its mean, so that an image has one result.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from refl.faces.color_fix import ColorFix, fix_color
from refl.published.weights import find_any, find_file, get_files
from refl.restorers import lora
from refl.restorers.diffbir import STABLE_DIFFUSION, choose_dtypes, fill_stable_diffusion, make_stable_diffusion
from refl.restorers.diffusion import dtype_of, make_schedule
from refl.restorers.osediff_lora import (
    ENCODER,
    add_adapters,
    group_layers,
    list_encoder_layers,
    load_published_adapters,
    merge_lora,
)
from refl.restorers.surface import HeldPrompt, check_images
from training.weights import read_checkpoint

TIMESTEP = 999
FACE_ADAPTERS = "osediff-face"
"""In the manifest."""


@dataclass(frozen=True)
class OSEDiffSettings:
    """How it is used; part of what its pixels depend on."""

    image_size_px: int = 512
    prompt: str = ""
    """The published code describes each image by a tagger's words; a fixed prompt is used here."""
    color_fix: ColorFix = "none"
    """None for faces, as published; the published code gives general images the colours of the input by adain."""


class OSEDiff(nn.Module):
    """Restores in one step, the same for every seed; see `refl.restorers.surface`.

    The one step multiplies the denoiser's errors of rounding by 1 / sqrt(a) = 14.6, so that float16, as published, is
    to be preferred to bfloat16.
    """

    default_steps = 1
    is_random = False

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text: nn.Module,
        use: OSEDiffSettings,
        *,
        base: str = "osediff",
        weights: dict[str, str] | None = None,
    ) -> None:
        """
        Args:
            text: a callable, prompts -> (N, T, C).
            base: the name under which `load_restorer` makes it again.
            weights: file name -> SHA-256 of what the parts were loaded from.
        """
        super().__init__()
        self.unet, self.vae, self.text = unet, vae, text
        self.use = use
        self.base = base
        self.weights = dict(weights or {})
        self.trained: lora.Trained | None = None
        self.alpha = float(make_schedule("epsilon", False).alphas_cumprod[TIMESTEP])

    @property
    def image_size_px(self) -> int:
        return self.use.image_size_px

    @property
    def multiple_px(self) -> int:
        levels = len(self.vae.config.block_out_channels) - 1 + len(self.unet.config.block_out_channels) - 1
        return int(2**levels)

    @property
    def settings(self) -> dict[str, object]:
        return {"restorer": self.base, **asdict(self.use), "weights": self.weights, **lora.describe(self.trained)}

    def encode_condition(self, lq: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, c, h, w): the posterior's mean, scaled."""
        posterior = self.vae.encode((lq * 2 - 1).to(dtype_of(self.vae))).latent_dist
        latents: Tensor = posterior.mean * self.vae.config.scaling_factor
        return latents.float()

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """(N, T, C), float32."""
        embedding: Tensor = self.text(prompts)
        return embedding.float()

    def predict_noise(self, condition: Tensor, embedding: Tensor) -> Tensor:
        """What the denoiser takes for noise in the image's latents, (N, c, h, w)."""
        dtype = dtype_of(self.unet)
        sample: Tensor = self.unet(condition.to(dtype), TIMESTEP, embedding.to(dtype), return_dict=False)[0]
        return sample.float()

    def predict_x0(self, condition: Tensor, noise_pred: Tensor) -> Tensor:
        """The clean latents if the image's were those of the last timestep: (z - sqrt(1 - a) eps) / sqrt(a)."""
        x0: Tensor = (condition - (1 - self.alpha) ** 0.5 * noise_pred) / self.alpha**0.5
        return x0

    def decode(self, latents: Tensor) -> Tensor:
        """(N, c, h, w) -> (N, 3, H, W), about [0, 1], not clamped, so that gradients pass."""
        image: Tensor = self.vae.decode(
            (latents / self.vae.config.scaling_factor).to(dtype_of(self.vae)), return_dict=False
        )[0]
        return image.float() / 2 + 0.5

    def forward(self, lq: Tensor) -> Tensor:
        """The restored image before clamping and the colour fix, with gradient to the adapters."""
        embedding = self.encode_prompts([self.use.prompt]).expand(len(lq), -1, -1)
        return self.decode(self.restore_latents(lq, embedding))

    def restore_latents(self, lq: Tensor, embedding: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] and (N, T, C) -> (N, c, h, w) clean latents, with gradient to the adapters."""
        condition = self.encode_condition(lq)
        return self.predict_x0(condition, self.predict_noise(condition, embedding))

    @torch.no_grad()
    def restore(self, lq: Tensor, seeds: Sequence[int], steps: int | None = None) -> Tensor:
        """See `Restorer.restore`."""
        check_images(lq, seeds, self.multiple_px)
        if steps not in (None, 1):
            raise ValueError(f"OSEDiff takes one step, not {steps}")
        restored = self(lq.float()).clamp(0, 1)
        return fix_color(restored, lq.float(), self.use.color_fix).clamp(0, 1)

    def merge(self) -> None:
        """Add the adapters to the weights they adapt: the same pixels, faster, and their strength is settled."""
        for part in (self.unet, self.vae):
            merge_lora(part)

    def set_trainable(self, kind: lora.Kind = "lora", rank: int = 4) -> None:
        """Merge what there is, then put fresh adapters on the same layers; only these are trained.

        Raises:
            ValueError: `kind` is not "lora"; there is no ControlNet here.
        """
        if kind != "lora":
            raise ValueError(f"OSEDiff is trained by LoRA; it has no {kind}")
        self.merge()
        self.requires_grad_(False)
        add_adapters(self.unet, group_layers(self.unet), rank, alpha=rank)
        add_adapters(self.vae, {ENCODER: list_encoder_layers(self.vae)}, rank, alpha=rank)
        self.trained = lora.Trained("lora", rank)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What an optimizer takes, in a fixed order."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def save_trained(self, folder: Path, values: Mapping[nn.Parameter, Tensor] | None = None) -> None:
        """Write what was trained and no more; `load_trained` or `load_restorer` takes the folder.

        Args:
            values: of the parameters, where they are kept elsewhere; the parameters themselves where not given.
        """
        lora.save_trained(folder, self.trained, self._parts(), self.settings, values)

    def load_trained(self, folder: Path) -> None:
        """Take what `save_trained` wrote from a restorer of this base."""
        read = lora.read_trained(folder, self.settings)
        if self.trained != read.trained:
            self.set_trainable(read.trained.kind, read.trained.rank)
        lora.load_trained(read, self._parts())
        self.weights = {**self.weights, read.path.name: read.sha256}  # settings that were given away stay

    def set_lora_strength(self, strength: float) -> None:
        """How much the trained adapters count: 0 is OSEDiff as published, 1 as trained."""
        self.trained = lora.set_strength(self._parts(), self.trained, strength)

    def without_adapters(self) -> AbstractContextManager[None]:
        """The block computes as before training."""
        return lora.without_adapters(self._parts())

    def hold_prompt(self) -> None:
        """Encode the prompt once and let the text encoder go, which nothing else needs."""
        with torch.no_grad():
            self.text = HeldPrompt(self.encode_prompts([self.use.prompt]))

    def enable_small_memory(self) -> None:
        """Decode and encode by tiles, and attend by slices: slower, and little memory for large images."""
        self.vae.enable_tiling()
        self.unet.set_attention_slice("auto")

    def _parts(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "vae": self.vae}


def list_osediff_files(asked: str) -> list[tuple[str, ...]]:
    """For each file that `load_osediff` takes, the names or paths of which one will do."""
    return [STABLE_DIFFUSION, (asked.partition(":")[2] or FACE_ADAPTERS,)]


def load_osediff(
    asked: str, folder: Path, dtype: torch.dtype = torch.float32, keep_float32: Collection[str] = ()
) -> OSEDiff:
    """The restorer from Stable Diffusion 2.1 and the published adapters, merged, on the CPU.

    Denoiser and autoencoder are read and merged in float32 and then cast: merged in bfloat16, an adapter's numbers
    would be lost beside those that they are added to.

    Args:
        asked: "osediff" for the adapters for faces, "osediff:FILE" for others, a path or a name of the manifest.
        folder: where weight files lie.
        dtype: what the parts' numbers become.
        keep_float32: parts that are float32 nonetheless.
    Raises:
        UserError: a file cannot be got, or is not what it should be.
    """
    files = list_osediff_files(asked)
    get_files(files, folder)
    base, adapters = find_any(files[0], folder), find_file(files[1][0], folder)
    parts, content = make_stable_diffusion(base), read_checkpoint(adapters.path)
    load_published_adapters(deepcopy(parts.unet), deepcopy(parts.vae), content, adapters.path)  # on meta: a check
    fill_stable_diffusion(parts, base, {"unet": torch.float32, "vae": torch.float32})
    load_published_adapters(parts.unet, parts.vae, content, adapters.path)
    dtypes = choose_dtypes(dtype, keep_float32)
    for part, name in ((parts.unet, "unet"), (parts.vae, "vae")):
        merge_lora(part)
        nn.Module.to(part, dtypes[name])  # for diffusers' `to` warns of parts to keep in float32, of which are none
    fill_stable_diffusion(parts, base, {"text": dtypes["text"]})
    use = OSEDiffSettings() if asked == "osediff" else OSEDiffSettings(color_fix="adain")
    weights = {found.path.name: found.sha256 for found in (base, adapters)}
    restorer = OSEDiff(parts.unet, parts.vae, parts.text, use, base=asked, weights=weights).eval()
    return restorer.requires_grad_(False)

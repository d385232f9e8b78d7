"""Set how a tiny restorer is trained: the options of `python -m refl pretrain`. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from refl.restorers.tiny_config import TinyConfig
from runs.options import Input, Options, Output
from runs.presets import list_presets, read_tables
from training.settings import MayChange

SHIPPED = list_presets(Path(__file__).parent / "configs", "model")
PhaseName = Literal["stage1", "vae", "diffusion"]
PHASES: tuple[PhaseName, ...] = get_args(PhaseName)
THIRD_PHASE = {
    "unet_channels",
    "prompt_tokens",
    "prompt_channels",
    "prediction",
    "diffusion_batch_size",
    "diffusion_learning_rate",
    "min_snr",
    "trained_fraction",
    "small_variants",
    "large_variants",
}
"""Fields that only the third phase reads, so that it can be trained anew on the same first two."""


class PretrainConfig(BaseModel):
    """Data, degradation and optimization of the three phases. Sizes of blurs are at the model's `image_size_px`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage1_steps: Annotated[int, MayChange()] = Field(
        ge=1, description="Optimizer steps of the regression network, the first phase"
    )
    vae_steps: Annotated[int, MayChange()] = Field(
        ge=1, description="Optimizer steps of the autoencoder, the second phase"
    )
    diffusion_steps: Annotated[int, MayChange()] = Field(
        ge=1, description="Optimizer steps of denoiser and ControlNet, the third phase"
    )
    batch_size: int = Field(
        8, ge=1, description="Faces per step of the first two phases; a quarter of it at the large size"
    )
    diffusion_batch_size: int = Field(16, ge=1, description="Faces per step of the third phase, likewise")
    large_share: float = Field(0.2, ge=0, le=1, description="Share of steps on faces of twice image_size_px")
    stage1_learning_rate: float = Field(8e-4, gt=0, le=1, description="AdamW's step size of the first phase")
    vae_learning_rate: float = Field(1e-3, gt=0, le=1, description="AdamW's step size of the second phase")
    diffusion_learning_rate: float = Field(5e-4, gt=0, le=1, description="AdamW's step size of the third phase")
    warmup_steps: int = Field(100, ge=0, description="Steps of linear warmup of each learning rate")
    decay_share: float = Field(0.3, ge=0, le=1, description="Last share of a phase: its rate falls to 0")
    weight_decay: float = Field(1e-4, ge=0, le=10, description="AdamW's decay of all weights")
    max_gradient_norm: float = Field(1.0, gt=0, description="Largest gradient norm; longer ones are clipped")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="EMA decay per step; the EMA weights are used")
    ssim_weight: float = Field(0.1, ge=0, description="Weight of 1 - SSIM beside the mean absolute error")
    gradient_weight: float = Field(0.2, ge=0, description="Weight of 1 - gradient magnitude similarity")
    kl_weight: float = Field(2e-4, ge=0, description="Weight of the latents' KL divergence, per number")
    min_snr: float = Field(5.0, gt=0, description="Cap of the signal-to-noise ratio in the third phase's weights")
    trained_fraction: float = Field(
        0.7, gt=0, le=1, description="Share of the noise schedule that is trained, from its clean end"
    )
    small_variants: int = Field(4, ge=1, description="Degraded versions per face whose latents are kept")
    large_variants: int = Field(1, ge=1, description="Degraded versions per face at the large size")
    crop_scale: tuple[float, float] = Field(
        (0.85, 1.0), description="Side of the random crop, as a share of the face image, lowest and highest"
    )
    blur_kernel_px: int = Field(11, ge=1, le=99, description="Side of the blur kernel, odd, in pixels")
    blur_sigma_px: tuple[float, float] = Field((0.2, 2.0), description="Standard deviation of the blur in pixels")
    downsample_factor: tuple[float, float] = Field((1.0, 4.0), description="How many times smaller each side becomes")
    noise_std: tuple[float, float] = Field((0.0, 15.0), description="Standard deviation of the noise, of 255")
    jpeg_quality: tuple[int, int] = Field((30, 100), description="JPEG quality, 1 to 100")
    held_out_share: float = Field(0.04, gt=0, lt=1, description="Share of faces held out from training, by file name")
    validate_faces: Annotated[int, MayChange()] = Field(
        48, ge=2, description="Held-out faces restored at each validation"
    )
    precision: Literal["fp32", "bf16"] = Field("bf16", description="Compute dtype; weights are float32")
    device: Annotated[Literal["auto", "cpu", "cuda"], MayChange()] = Field(
        "auto", description="Where to train; auto takes a GPU if there is one"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of first weights, faces, degradations and noise")
    log_every_steps: Annotated[int, MayChange()] = Field(100, ge=1, description="Steps between progress lines")
    validate_every_steps: Annotated[int, MayChange()] = Field(
        1000, ge=0, description="Steps between validations; 0 for the phase's end only"
    )
    checkpoint_every_seconds: Annotated[float, MayChange()] = Field(
        120, gt=0, description="Seconds between checkpoints"
    )
    workers: Annotated[int, MayChange()] = Field(
        0, ge=0, le=64, description="Threads that prepare batches ahead; 0 for none"
    )
    data_terms: Annotated[str, MayChange()] = Field(
        "", description="Origin and licence of the faces, for the model card"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("crop_scale", "blur_sigma_px", "downsample_factor", "noise_std", "jpeg_quality"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name}: the low end comes first, got {low} to {high}")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale {self.crop_scale} must lie in (0, 1]")
        return self


class PretrainOptions(Options):
    """What is trained on which faces, and how."""

    preset: str = Field(description="Settings: a preset's name, or a file")
    faces: Annotated[list[Path], Input("faces", needed=True)] = Field(
        [], description="Folders of face images of any size, with those below"
    )
    out: Annotated[Path | None, Output()] = Field(
        None, description="Folder of the restorer (default: in DATA/restorers, by settings)"
    )
    phase: Annotated[PhaseName | None, Input("phase")] = Field(
        None, description="Train this one alone (default: all in turn)"
    )
    model: TinyConfig
    train: PretrainConfig


def preset_names() -> list[str]:
    """The presets that ship with the project."""
    return list(SHIPPED)


def load_options(name_or_path: str, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The tables of a preset, a TOML file or a run's config.json, and what else it names; see `read_tables`."""
    return read_tables(name_or_path, SHIPPED, PretrainOptions, changes)

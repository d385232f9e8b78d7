"""Define the config of a tiny restorer: the widths of its parts and its sampling. Loads no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.settings import MayChange


class TinyConfig(BaseModel):
    """All that makes the parts of a tiny restorer, beside their numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size_px: int = Field(64, ge=16, multiple_of=16, description="Side of the faces in pixels")
    stage1_channels: tuple[int, int, int] = Field(
        (32, 64, 80), description="Widths of the regression network that cleans first, at 1/2, 1/4 and 1/8 of the side"
    )
    vae_channels: tuple[int, int, int] = Field(
        (16, 32, 64), description="Widths of the autoencoder at 1, 1/2 and 1/4 of the side"
    )
    latent_channels: int = Field(8, ge=1, le=64, description="Channels of the latents, at 1/4 of the side")
    scaling_factor: float = Field(
        1.0, gt=0, description="Factor that gives latents unit variance; measured when the autoencoder is trained"
    )
    unet_channels: tuple[int, int, int] = Field(
        (64, 96, 96), description="Widths of denoiser and ControlNet at 1/4, 1/8 and 1/16 of the side"
    )
    layers: int = Field(1, ge=1, le=4, description="Residual blocks per level of stage 1, denoiser and ControlNet")
    norm_groups: int = Field(16, ge=1, description="Groups of the normalizations; divides every width")
    vae_norm_groups: int = Field(
        4,
        ge=1,
        description="Groups of the autoencoder's normalizations; one channel per group loses brightness",
    )
    prompt_tokens: int = Field(4, ge=1, le=77, description="Length of the learned vector that stands for a prompt")
    prompt_channels: int = Field(64, ge=8, description="Width of the learned prompt")
    steps: Annotated[int, MayChange()] = Field(20, ge=1, le=1000, description="Steps of the whole DDIM schedule")
    eta: Annotated[float, MayChange()] = Field(
        0.0, ge=0, le=1, description="Noise added at each step; 0 for none, 1 for as much as DDPM"
    )
    start_fraction: Annotated[float, MayChange()] = Field(
        0.5, gt=0, le=1, description="Share of the schedule to which the condition is noised at the start; 1 for noise"
    )
    prediction: Literal["epsilon", "v_prediction"] = Field(
        "v_prediction", description="Output of the denoiser: the noise or v"
    )
    color_fix: Annotated[Literal["wavelet", "adain", "none"], MayChange()] = Field(
        "wavelet", description="Colour fix: gives the result the colours of stage 1's image"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("stage1_channels", "vae_channels", "unet_channels"):
            groups_of = "vae_norm_groups" if name == "vae_channels" else "norm_groups"
            groups = getattr(self, groups_of)
            if any(width % groups or width < 1 for width in getattr(self, name)):
                raise ValueError(f"{name} {getattr(self, name)} must be multiples of {groups_of}, {groups}")
        return self

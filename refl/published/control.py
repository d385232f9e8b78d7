"""Define the ControlNet of DiffBIR: it gets the condition's latent beside the noisy one, and has no hint encoder."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from torch import Tensor, nn


class NoHint(nn.Module):
    """Stands where diffusers encodes a hint image: adds nothing, has no parameters."""

    def forward(self, condition: Tensor) -> Tensor:
        return condition.new_zeros(())


class ConditionControlNet(ControlNetModel):  # type: ignore[misc]  # diffusers is untyped
    """A ControlNet whose first convolution takes (noisy latent, condition latent), 2 × the latent channels.

    Init arguments are those of diffusers' ControlNetModel, under the same names.

    Source: IRControlNet, arXiv:2308.15070, section 3.3.
    """

    def __init__(self, in_channels: int = 8, **arguments: Any) -> None:
        super().__init__(in_channels=in_channels, **arguments)
        self.controlnet_cond_embedding = NoHint()

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | int,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: float = 1.0,
        **arguments: Any,
    ) -> Any:
        """As the parent's, but `controlnet_cond` is a latent.

        Args:
            sample: (N, c, h, w) noisy latents.
            timestep: () or (N,).
            encoder_hidden_states: (N, T, C) prompt embedding.
            controlnet_cond: (N, c, h, w) condition latents, scaled.
            conditioning_scale: factor on what is returned.
        """
        both = torch.cat([sample, controlnet_cond], dim=1)
        return super().forward(both, timestep, encoder_hidden_states, controlnet_cond, conditioning_scale, **arguments)


@torch.no_grad()
def init_from_unet(control: ConditionControlNet, unet: nn.Module) -> None:
    """Copy the denoiser's encoder, as DiffBIR starts: the condition's input weights and the outputs stay or become 0.

    Raises:
        ValueError: the two are not of one architecture.
    """
    state = unet.state_dict()
    for name, parameter in control.named_parameters():
        if name.startswith(("controlnet_down_blocks", "controlnet_mid_block")):
            parameter.zero_()
        elif name == "conv_in.weight":
            noisy = state[name].shape[1]
            parameter.zero_()[:, :noisy].copy_(state[name])
        elif name not in state or state[name].shape != parameter.shape:
            raise ValueError(f"the ControlNet's {name} {tuple(parameter.shape)} is not the denoiser's")
        else:
            parameter.copy_(state[name])

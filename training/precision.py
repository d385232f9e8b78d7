"""Hold weights on their device and in the numbers they are computed in, without autocast.

Frozen weights are held in the number format of the forward pass. Trained weights are float32; forward and backward see
a copy of them in that format (their working copy), whose gradients are added up in float32. Every kernel then runs in
one format, nothing is cast back and forth, and what a backward pass computes again is computed as the first time.

Source: mixed precision with float32 master weights, arXiv:1710.03740, section 3.1.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from db.errors import UserError
from training.processes import copy_to_all, sum_tensors

Precision = Literal["no", "bf16", "fp16"]
OptimizerKind = Literal["adamw", "adamw8bit"]
DTYPES: dict[str, torch.dtype] = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Compute dtype of forward passes, by a config's `mixed_precision`."""


@torch.no_grad()
def place(
    module: nn.Module,
    device: torch.device | str,
    dtype: torch.dtype,
    keep: Collection[Tensor] = (),
) -> None:
    """Move a module to a device and into a number format, tensor by tensor, so that no second copy of it is needed.

    Args:
        keep: parameters that keep their number format.
    """
    kept = {id(tensor) for tensor in keep}
    for tensor in [*module.parameters(), *module.buffers()]:
        changes = tensor.is_floating_point() and id(tensor) not in kept
        tensor.data = _move(tensor.data, device, dtype if changes else tensor.dtype)


def _move(tensor: Tensor, device: torch.device | str, dtype: torch.dtype, *, copy: bool = False) -> Tensor:
    """On the device in this number format; there weights of convolutions lie as tensor cores read them."""
    moved = tensor.to(device=device, dtype=dtype, copy=copy)
    if moved.device.type == "cuda" and moved.ndim == 4:
        moved = moved.contiguous(memory_format=torch.channels_last)
    return moved


class TrainedWeights:
    """The weights that a training changes, with their optimizer, running average and loss scale.

    Args:
        parameters: of modules, float32, in a fixed order; they become the working copy.
        dtype: what forward and backward passes see; of float32 there is no second copy.
        keep: of the parameters, those whose working copy stays float32.
        ema_decay: share kept per step of the running average; 0 for none.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        learning_rate: float,
        weight_decay: float,
        optimizer: OptimizerKind = "adamw",
        keep: Collection[Tensor] = (),
        ema_decay: float = 0.0,
    ) -> None:
        kept = {id(tensor) for tensor in keep}
        self.working = list(parameters)
        self.masters = [
            _split(parameter, torch.float32 if id(parameter) in kept else dtype, device) for parameter in self.working
        ]
        self.ema_decay = ema_decay
        self.averages = [master.detach().clone() for master in self.masters] if ema_decay else []
        self.scaler = torch.amp.GradScaler(torch.device(device).type) if dtype == torch.float16 else None
        self.optimizer = make_optimizer(self.masters, optimizer, learning_rate, weight_decay)

    def start_alike(self, accelerator: Accelerator) -> None:
        """Let every process begin with the main process's weights. A collective."""
        copy_to_all(accelerator, self.masters)
        copy_to_all(accelerator, self.averages)
        self.publish()

    def set_learning_rate(self, learning_rate: float) -> None:
        """The rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of () `loss` to that of the masters."""
        torch.autograd.backward(self.scale(loss))

    def scale(self, loss: Tensor) -> Tensor:
        """A loss as its gradient is computed: larger in float16, where small numbers would become 0."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def step(self, accelerator: Accelerator, max_gradient_norm: float, number: int) -> float:
        """One optimizer step with the gradients' sum over all processes. A collective.

        Args:
            max_gradient_norm: longer gradients are scaled to this length; 0 for never.
            number: of the step, for the error.
        Returns:
            the length of the gradient before clipping.
        Raises:
            UserError: the gradient is not finite; nothing was changed. With float16 such a step is left out instead.
        """
        for master in self.masters:
            if master.grad is None and accelerator.num_processes > 1:  # this process had no image
                master.grad = torch.zeros_like(master)
        sum_tensors(accelerator, [master.grad for master in self.masters if master.grad is not None])
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.masters, max_gradient_norm or math.inf))
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif math.isfinite(norm):
            self.optimizer.step()
        else:
            raise UserError(
                f"The gradient of step {number} is not finite. Lower the learning rate, or set mixed_precision to no; "
                "the last checkpoint is from before."
            )
        self.optimizer.zero_grad(set_to_none=True)
        if self.averages:
            torch._foreach_lerp_(self.averages, [master.detach() for master in self.masters], 1 - self.ema_decay)
        self.publish()
        return norm

    @torch.no_grad()
    def publish(self) -> None:
        """Bring the working copy up to date with the masters."""
        for working, master in zip(self.working, self.masters, strict=True):
            if working is not master:
                working.copy_(master)

    @contextmanager
    def in_masters(self) -> Iterator[None]:
        """What the block copies into the parameters goes whole into the masters, from there to the working copy."""
        kept = [working.data for working in self.working]
        for working, master in self._both():
            working.data = master.data
        try:
            yield
        finally:
            for working, data in zip(self.working, kept, strict=True):
                working.data = data
            self.publish()

    def values(self) -> dict[nn.Parameter, Tensor]:
        """The float32 value of each parameter as it is trained."""
        return dict(zip(self.working, self.masters, strict=True))

    def best_values(self) -> dict[nn.Parameter, Tensor]:
        """The float32 value of each parameter as it is used: the running average where there is one."""
        return dict(zip(self.working, self.averages or self.masters, strict=True))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The block computes with the running averages; with the weights where there is none."""
        if not self.averages:
            yield
            return
        kept = [master.detach().clone() if working is master else master for working, master in self._both()]
        copy_values(self.working, self.averages)
        try:
            yield
        finally:
            copy_values(self.working, kept)

    def state_dict(self) -> dict[str, Any]:
        """All but the weights that an exact continuation needs."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "averages": self.averages,
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.optimizer.state.clear()  # the moments of now: there need not be room for both
        self.optimizer.load_state_dict(state["optimizer"])
        copy_values(self.averages, state["averages"])
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def _both(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        return zip(self.working, self.masters, strict=True)


def _split(parameter: nn.Parameter, dtype: torch.dtype, device: torch.device | str) -> nn.Parameter:
    """The float32 master of a parameter, which becomes its working copy; itself where it computes in float32."""
    if dtype == torch.float32:
        parameter.data = _move(parameter.data, device, torch.float32)
        return parameter
    master = nn.Parameter(_move(parameter.detach(), device, torch.float32, copy=True))
    parameter.data = _move(parameter.data, device, dtype)
    parameter.register_post_accumulate_grad_hook(partial(_collect, master))  # type: ignore[no-untyped-call]
    return master


def _collect(master: nn.Parameter, working: Tensor) -> None:
    """Add a working copy's gradient to its master's, in float32, and free it."""
    assert working.grad is not None
    if master.grad is None:
        master.grad = working.grad.float()
    else:
        master.grad += working.grad
    working.grad = None


@torch.no_grad()
def copy_values(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Overwrite tensors, whatever number format and device the values have."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def group_parameters(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """The trained ones of these as an optimizer takes them: matrices decay, norms, biases and vectors do not."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def make_optimizer(
    masters: Sequence[nn.Parameter], kind: OptimizerKind, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW over the masters, in the groups of `group_parameters`.

    Args:
        kind: adamw8bit keeps both moments in 8 bits, a quarter of the memory. Source: arXiv:2110.02861.
    Raises:
        UserError: 8 bits are asked for where bitsandbytes or a GPU is missing.
    """
    groups = group_parameters(masters, weight_decay)
    on_gpu = all(master.device.type == "cuda" for master in masters)
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True if on_gpu else None)
    if not on_gpu:
        raise UserError("optimizer adamw8bit needs a GPU, and there is none. Set it to adamw.")
    try:
        bitsandbytes: Any = importlib.import_module("bitsandbytes.optim")  # here: seconds to load, and rarely asked for
    except ImportError as error:
        raise UserError("optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes, or set adamw.") from error
    optimizer: torch.optim.Optimizer = bitsandbytes.AdamW8bit(groups, lr=learning_rate)
    return optimizer

"""Run full-size models on fake tensors, which have shapes, types and devices but no numbers, and count them.

Building a model, a forward and a backward pass cost the time of their dispatch and no memory. On the device "cpu" host
and device are one. The device "meta" stands for a GPU beside the host: what is copied between the two is seen too. Fake
CUDA tensors are not a third way: their backward wants a real card, and on torch 2.8 their indexing too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import cast
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from training import precision
from training.accounting import MemoryCount
from training.precision import TrainedWeights


@contextmanager
def count_without_memory(device: str = "cpu") -> Iterator[MemoryCount]:
    """Count what runs inside, where every tensor is fake: shapes, types and devices, but no numbers.

    Build the models inside too, and move them to the device as in training. A number read from a fake tensor is 1
    (True for a boolean). On "meta" torch refuses fused optimizers; count their steps on "cpu".
    """
    # A TorchFunctionMode would do for attention, but rests while a backward pass recomputes a checkpoint.
    attention = patch.object(F, "scaled_dot_product_attention", _attend)
    quiet = warnings.catch_warnings()
    with (
        quiet,
        attention,
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        MemoryCount(device, workspaces=True) as count,
    ):
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # copy.deepcopy asks for it
        # It would keep a weak reference to every tensor, and Module.to refuses to exchange tensors that have some.
        fake.fake_tensor_converter.set_tensor_memo = lambda *_: None  # type: ignore[method-assign]
        yield count


@contextmanager
def count_fake_training(device: str = "cpu") -> Iterator[MemoryCount]:
    """`count_without_memory` of a training: the gradients of its `TrainedWeights` have the part `gradients`."""
    collect = precision._collect

    def collect_and_name(master: nn.Parameter, working: Tensor) -> None:
        collect(master, working)
        count.name("gradients", [master.grad] if master.grad is not None else [])

    naming = patch.object(precision, "_collect", collect_and_name)
    with naming, count_without_memory(device) as count:
        yield count


def make_lone_accelerator(device: str) -> Accelerator:
    """Stand in for the accelerator of a training of one process on this device."""
    alone = SimpleNamespace(
        device=torch.device(device), num_processes=1, process_index=0, is_main_process=True, wait_for_everyone=int
    )
    return cast(Accelerator, alone)


def make_moments(weights: TrainedWeights) -> None:
    """Let the optimizer have what it has from the second step on."""
    for master in weights.masters:
        master.grad = torch.zeros_like(master)
    weights.optimizer.step()
    weights.optimizer.zero_grad(set_to_none=True)


_torch_attend = F.scaled_dot_product_attention


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend on the meta device by one kernel that stores no matrix of tokens by tokens, as on a GPU.

    The CPU's stands for it: its results, and what it keeps for the backward pass, have the same sizes. torch itself
    would take the form of several products there, and does for what that kernel does not know.
    """
    if (
        dropout_p
        or enable_gqa
        or query.device.type != "meta"
        or (attn_mask is not None and attn_mask.dtype == torch.bool)
    ):
        out: Tensor = _torch_attend(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return out
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mixed: Tensor = flash(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return mixed

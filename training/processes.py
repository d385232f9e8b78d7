"""Let the processes of a training agree: on decisions, starts, sums of gradients, shares of work.

Every function that takes an accelerator is a collective: all processes call it, in the same order, so none of them may
stand in a branch that only some processes take.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, broadcast_object_list, gather_object
from torch import Tensor

from db.errors import UserError
from training.tracking import check_tracker

log = logging.getLogger(__name__)

T = TypeVar("T")
PLAIN_KINDS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
BUCKET_BYTES = 64 * 2**20
"""Tensors are sent in pieces of about this size: few messages, and little memory for them."""


def make_accelerator(mixed_precision: str, tracker: str = "none", out: Path | None = None) -> Accelerator:
    """The devices that this command or `accelerate launch` has.

    Args:
        tracker: program that is given the progress; what it writes goes into `out`.

    Precision is not accelerate's: `training.precision` holds weights in the wanted number format, without autocast.

    Raises:
        UserError: the tracker or the number format is not available here, or the launcher splits the model.
    """
    check_tracker(tracker)
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("mixed_precision fp16 needs a GPU, and there is none. Set it to bf16 or no.")
    accelerator = Accelerator(
        mixed_precision="no",
        # accelerate's own accumulation stays out of it: the loop knows how many images a batch has
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=None if tracker == "none" else tracker,
        project_dir=out,
    )
    if accelerator.distributed_type not in PLAIN_KINDS:
        raise UserError(
            f"accelerate is set up for {accelerator.distributed_type.value}; training copies the whole model to each "
            "device. Run `accelerate config` and choose neither DeepSpeed nor FSDP."
        )
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32: what stays float32 is multiplied by tensor cores too
    if accelerator.num_processes > 1 and accelerator.is_main_process:
        log.info("training on %s processes", accelerator.num_processes)
    return accelerator


def leave_processes() -> None:
    """End this process's part in the group, after its last training."""
    PartialState().destroy_process_group()


def agree_on_largest(accelerator: Accelerator, value: int) -> int:
    """The largest of the processes' values: a signal that came to one of them ends all."""
    if accelerator.num_processes == 1:
        return value
    return int(accelerator.gather(torch.tensor([value], device=accelerator.device)).max())


def add_up(accelerator: Accelerator, value: int) -> int:
    """The sum of the processes' values."""
    if accelerator.num_processes == 1:
        return value
    return int(accelerator.gather(torch.tensor([value], device=accelerator.device)).sum())


def broadcast(accelerator: Accelerator, value: T) -> T:
    """The main process's value, on every process; picklable."""
    if accelerator.num_processes == 1:
        return value
    told: list[T] = broadcast_object_list([value])
    return told[0]


def share_places(accelerator: Accelerator, count: int) -> list[int]:
    """List this process's share of `count` things: every process has its own, and none is left out."""
    return list(range(accelerator.process_index, count, accelerator.num_processes))


def gather_places(accelerator: Accelerator, found: Sequence[tuple[int, T]]) -> list[T]:
    """Gather the findings of all processes in order of place: (place, value) of each, picklable."""
    together = list(found) if accelerator.num_processes == 1 else gather_object(list(found))
    return [value for _, value in sorted(together, key=lambda row: row[0])]


def sum_tensors(accelerator: Accelerator, tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in place, in few messages."""
    if accelerator.num_processes == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        torch.distributed.all_reduce(flat)
        _unpack(flat, bucket)


def copy_to_all(accelerator: Accelerator, tensors: Sequence[Tensor]) -> None:
    """Overwrite every process's tensors by those of the main process."""
    if accelerator.num_processes == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        torch.distributed.broadcast(flat, src=0)
        _unpack(flat, bucket)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one number format together, up to BUCKET_BYTES or a single larger one."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bytes_ = tensor.numel() * tensor.element_size()
        if bucket and (size + bytes_ > BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += bytes_
    if bucket:
        yield bucket


@torch.no_grad()
def _unpack(flat: Tensor, bucket: Sequence[Tensor]) -> None:
    for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(part.view(tensor.shape))

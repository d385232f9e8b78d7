"""Name the settings that need less memory, after a training ran out of it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from reward.train.config import RewardTrainConfig
from training.stopping import advise_out_of_memory


def explain_out_of_memory(config: RewardTrainConfig, processes: int) -> AbstractContextManager[None]:
    """`advise_out_of_memory` for a training.

    Args:
        processes: that share a batch.
    """

    def advise() -> str:
        changes = list_savings(config, processes)
        if not changes:
            return (
                "Out of memory with one pair a forward pass. Train fewer groups and blocks, or a smaller architecture."
            )
        pairs = config.choose_micro_batch_size(processes)
        return f"Out of memory with {pairs} pairs a forward pass. Set {', or '.join(changes)}."

    return advise_out_of_memory(advise)


def list_savings(config: RewardTrainConfig, processes: int) -> list[str]:
    """Settings that need less memory, each as what follows "Set"; none where all of them are set so already.

    Args:
        processes: that share a batch.
    """
    micro_batch_size = config.choose_micro_batch_size(processes)
    changes = []
    if micro_batch_size > 1:
        changes.append(f"micro_batch_size to {micro_batch_size // 2} (the batch and the result stay)")
    if not config.gradient_checkpointing:
        changes.append("gradient_checkpointing to true")
    if config.mixed_precision == "no" and torch.cuda.is_available():
        changes.append("mixed_precision to bf16 in a new --out")
    return changes

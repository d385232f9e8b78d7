"""How a reward model is trained: every field is a flag of `python -m reward train`. Loads no torch."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.settings import MayChange


class RewardTrainConfig(BaseModel):
    """Optimization, memory, how often things happen. A pair is one label: two images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_steps: int = Field(ge=1, description="Optimizer steps; warmup and cosine decay are laid over them")
    batch_size: int = Field(128, ge=1, description="Pairs per optimizer step, over all processes")
    micro_batch_size: Annotated[int, MayChange()] = Field(
        0,
        ge=0,
        description="Pairs that one process takes through the model at a time; gradients of a batch are accumulated, "
        "so this decides memory, not the result; 0 takes a process's whole share of the batch",
    )
    learning_rate: float = Field(3.3e-6, gt=0, le=1, description="AdamW's step size after warmup (HPSv2: 3.3e-6)")
    warmup_steps: int = Field(
        500, ge=0, description="Steps over which the rate rises linearly; then it falls to 0 as half a cosine"
    )
    weight_decay: float = Field(
        0.35, ge=0, le=10, description="AdamW's decay of matrices; never of norms, biases and the logit scale"
    )
    max_gradient_norm: float = Field(1.0, ge=0, description="Longer gradients are scaled to this length; 0 for never")
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="EMA decay per step of the weights' average, which is then validated and saved as best/; "
        "0 for no average",
    )
    human_weight: float = Field(1.0, ge=0, description="Factor on the loss of people's labels; 0 leaves them out")
    svm_weight: float = Field(1.0, ge=0, description="Factor on the loss of the SVM's labels; 0 leaves them out")
    label_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the photos of the train split whose labels are learned from, chosen by a seeded hash; "
        "below 1 it shows what more labels would bring",
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="AdamW with moments in float32, or in 8 bits (needs bitsandbytes and a GPU)"
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no",
        description="Compute dtype of forward and backward passes and of the frozen weights; trained weights stay "
        "float32; fp16 needs a GPU",
    )
    gradient_checkpointing: Annotated[bool, MayChange()] = Field(
        False, description="Compute the trained blocks' activations a second time instead of keeping them in memory"
    )
    cache_frozen: Annotated[bool, MayChange()] = Field(
        False,
        description="Run the frozen first blocks of the image tower once an image and keep what they give on disk, in "
        "frozen/ of the output folder; pays where many blocks are frozen and images are seen often",
    )
    validate_every_steps: int = Field(
        500, ge=0, description="Steps between measurements on people's labels of the val split; 0 for none"
    )
    checkpoint_every_steps: Annotated[int, MayChange()] = Field(
        500, ge=1, description="Steps between writings of last/, from which the same command continues"
    )
    keep_every_steps: Annotated[int, MayChange()] = Field(
        0, ge=0, description="Steps between copies of the model that stay in steps/, beside last/ and best/; 0 for none"
    )
    keep_steps_max: Annotated[int, MayChange()] = Field(
        0, ge=0, description="How many of these copies stay; the oldest is removed for a new one; 0 keeps all"
    )
    log_every_steps: Annotated[int, MayChange()] = Field(10, ge=1, description="Steps averaged in each progress line")
    workers: Annotated[int, MayChange()] = Field(
        4, ge=0, le=256, description="Processes that decode images, for each training process; 0 for none of their own"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of random weights and of the order of the pairs")
    tracker: Annotated[Literal["none", "tensorboard", "wandb", "mlflow", "trackio"], MayChange()] = Field(
        "none", description="Program that is given the progress as well, through accelerate; must be installed"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps >= self.max_steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be below max_steps, {self.max_steps}")
        return self

    def choose_micro_batch_size(self, processes: int) -> int:
        """Pairs that one of so many processes takes through the model at a time, at most."""
        share = math.ceil(self.batch_size / processes)
        return min(self.micro_batch_size or share, share)

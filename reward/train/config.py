"""Define the settings of a reward model's training (`python -m reward train`). Loads no torch."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dataset.labelled import Origin
from training.settings import MayChange


class RewardTrainConfig(BaseModel):
    """Optimization, memory, how often things happen. A pair is one label: two images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_steps: int = Field(ge=1, description="Optimizer steps, with warmup and cosine decay over them")
    batch_size: int = Field(128, ge=1, description="Pairs per optimizer step, over all processes")
    micro_batch_size: Annotated[int, MayChange()] = Field(
        0,
        ge=0,
        description="Pairs per forward pass of one process; gradients of a batch are accumulated, "
        "so this decides memory, not the result; 0 takes a process's whole share of the batch",
    )
    learning_rate: float = Field(3.3e-6, gt=0, le=1, description="AdamW's step size after warmup (HPSv2: 3.3e-6)")
    warmup_steps: int = Field(
        500, ge=0, description="Steps of linear warmup of the learning rate; then it falls to 0 as half a cosine"
    )
    weight_decay: float = Field(
        0.35, ge=0, le=10, description="AdamW's decay of matrices; never of norms, biases and the logit scale"
    )
    max_gradient_norm: float = Field(
        1.0, ge=0, description="Largest gradient norm; longer ones are clipped; 0 for no limit"
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="EMA decay per step; the EMA weights are validated and saved as best/; 0 for none",
    )
    human_weight: float = Field(1.0, ge=0, description="Factor on the loss of people's labels; 0 leaves them out")
    svm_weight: float = Field(1.0, ge=0, description="Factor on the loss of the SVM's labels; 0 leaves them out")
    constructed_weight: float = Field(
        1.0, ge=0, description="Factor on the loss of pairs that `reward construct` made; 0 leaves them out"
    )
    label_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the photos of the train split to learn from, chosen by a seeded hash; below 1 it shows "
        "what more labels would bring",
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
        False, description="Recompute the trained blocks' activations instead of keeping them in memory"
    )
    cache_frozen: Annotated[bool, MayChange()] = Field(
        False,
        description="Run the frozen first blocks of the image tower once per image and keep the result on disk, in "
        "frozen/ of the output folder; pays where many blocks are frozen and images are used often",
    )
    validate_every_steps: int = Field(
        500, ge=0, description="Steps between measurements on people's labels of the val split; 0 for none"
    )
    checkpoint_every_steps: Annotated[int, MayChange()] = Field(
        500, ge=1, description="Steps between checkpoints in last/, from which the same command continues"
    )
    keep_every_steps: Annotated[int, MayChange()] = Field(
        0, ge=0, description="Steps between copies of the model that stay in steps/, beside last/ and best/; 0 for none"
    )
    keep_steps_max: Annotated[int, MayChange()] = Field(
        0, ge=0, description="Number of these copies to keep; the oldest is removed for a new one; 0 keeps all"
    )
    log_every_steps: Annotated[int, MayChange()] = Field(10, ge=1, description="Steps averaged in each progress line")
    workers: Annotated[int, MayChange()] = Field(
        4, ge=0, le=256, description="Processes that decode images, for each training process; 0 for none of their own"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of random weights and of the order of the pairs")
    tracker: Annotated[Literal["none", "tensorboard", "wandb", "mlflow", "trackio"], MayChange()] = Field(
        "none", description="Program to send the progress to as well, through accelerate; must be installed"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps >= self.max_steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be below max_steps, {self.max_steps}")
        return self

    @property
    def origin_weights(self) -> dict[Origin, float]:
        """The factor on the loss of a label by its origin."""
        return {"human": self.human_weight, "svm": self.svm_weight, "constructed": self.constructed_weight}

    def choose_micro_batch_size(self, processes: int) -> int:
        """Pairs that one of so many processes takes through the model at a time, at most."""
        share = math.ceil(self.batch_size / processes)
        return min(self.micro_batch_size or share, share)

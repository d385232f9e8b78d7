"""Describe a reward set: several rewards made comparable, and how their disagreement counts. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from db.errors import UserError, first_fault
from reward.model.config import ModelConfig

FILE = "set.json"
_Strict = ConfigDict(extra="forbid", frozen=True)


class Member(BaseModel):
    """One reward of a set: a head of a reward model, or a metric that has a gradient."""

    model_config = _Strict

    name: str = Field(min_length=1, description="For logs and tables")
    model: str = Field("", description="What `load_named` takes; empty for a metric")
    head: int = Field(0, ge=0, description="Which of the model's members")
    version: str = Field("", description="The model's `compute_version` when the set was made; another one is refused")
    metric: str = Field("", description="A metric with a gradient to the pixels; empty for a model")
    center: float = Field(description="Mean over the held-out images")
    scale: float = Field(gt=0, description="Standard deviation over the held-out images")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.model) == bool(self.metric):
            raise ValueError(f"member {self.name!r} is a model or a metric, one of them")
        return self


class SetConfig(BaseModel):
    """All that a reward set is; `set.json` of its folder."""

    model_config = _Strict

    members: tuple[Member, ...] = Field(min_length=2, description="Two or more, one of a model among them")
    spread_weight: float = Field(ge=0, description="Factor on the spread over members that the reward is lowered by")
    unit: float = Field(gt=0, description="Size of a spread over images in the reward: that of the models' own rewards")
    logit_scale: float = Field(gt=0, description="Factor from reward to logit: the mean of the models'")
    held_out_spread: float = Field(gt=0, description="Mean spread over members of the held-out images, in their scales")
    images: int = Field(ge=2, description="Number of held-out images")
    dataset: str = Field(description="Where these are from")
    text_mode: Literal["caption", "fixed"] = Field("fixed", description="caption where a member reads captions")
    prompt: str = Field("", description="What stands in for missing captions")
    needs_input: bool = Field(False, description="Whether a member sees a photo beside the image")
    input_photo: Literal["lq", "hq"] = Field("lq", description="Which one, the same for all members")


RewardConfig = ModelConfig | SetConfig


def find_set(what: str) -> Path | None:
    """The folder of a reward set where that is one, else None."""
    folder = Path(what).expanduser()
    return folder if (folder / FILE).is_file() else None


def read_set(folder: Path) -> SetConfig:
    """The set of a folder.

    Raises:
        UserError: its file is missing or damaged.
    """
    path = folder / FILE
    try:
        return SetConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}. Make the set again: python -m reward set.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text. Make the set again: python -m reward set.") from error

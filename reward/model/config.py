"""Define a reward model: architecture, first weights, preprocessing, prompt, trained layers. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from db.errors import UserError
from runs.options import Input, make_table
from runs.presets import list_presets, read_preset

FOLDER = Path(__file__).parent / "configs"
SHIPPED = list_presets(FOLDER, "model")


class ModelConfig(BaseModel):
    """All that a checkpoint must carry beside its numbers, so that it is fed in use as it was in training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = Field(
        min_length=1,
        description="open_clip's name of the architecture, a JSON file in open_clip's form, or `tiny`, which ships",
    )
    image_size_px: int = Field(
        224, ge=16, le=1024, description="Side of the image tower's square input in pixels; fixed by the weights"
    )
    weights: Annotated[str, Input("weights")] = Field(
        "",
        description="First weights: a file, a name in reward/model/weights.toml, an open_clip tag of the "
        "architecture, or ORG/REPOSITORY/FILE of the Hugging Face hub; empty for random weights",
    )
    unlocked_image_groups: int = Field(
        ge=0,
        description="Trained groups of the image tower, counted from its end as the paper does: the projection, then "
        "each block (the last with ln_post), then the stem; 20 are the projection and 19 blocks",
    )
    unlocked_text_blocks: int = Field(
        ge=0,
        description="Trained blocks of the text tower, counted from its end as the paper does; with any, ln_final and "
        "the projection are trained too, the embeddings never; with a learned prompt the text tower is frozen",
    )
    interpolation: Literal["bicubic", "bilinear"] = Field("bicubic", description="Filter that resizes images")
    antialias: bool = Field(True, description="Antialias when downscaling")
    mean: tuple[float, float, float] = Field(
        (0.48145466, 0.4578275, 0.40821073), description="Subtracted from red, green and blue in [0, 1]"
    )
    std: tuple[float, float, float] = Field(
        (0.26862954, 0.26130258, 0.27577711), description="Divides red, green and blue after the mean is subtracted"
    )
    text_mode: Literal["caption", "fixed", "learned", "input", "input+learned"] = Field(
        "caption",
        description="What an image is compared with: its caption, or the prompt where it has none; always the prompt; "
        "a learned vector that starts as the prompt's and needs no text; the photo that was restored, through the same "
        "image tower and a small head; or that photo and a learned vector together",
    )
    input_photo: Literal["lq", "hq"] = Field(
        "lq",
        description="Photo that the text modes with `input` see: what was restored, or in its place the ground truth "
        "or a reference photo of the person",
    )
    members: int = Field(
        1,
        ge=1,
        le=64,
        description="Heads on the one image tower, each trained on a bootstrap over photos and people; the reward is "
        "their mean, and their spread says how sure it is",
    )
    prompt: str = Field(
        "A sharp, natural photo of a person's face.",
        min_length=1,
        description="Sentence that replaces missing captions",
    )

    @property
    def needs_input(self) -> bool:
        """Whether an image is compared with the photo that was restored."""
        return self.text_mode.startswith("input")

    @property
    def learns_prompt(self) -> bool:
        """Whether it has a learned vector in place of a text."""
        return self.text_mode.endswith("learned")

    @property
    def has_heads(self) -> bool:
        """Whether small heads stand behind the image tower; a published model has none."""
        return self.needs_input or self.members > 1

    @property
    def reads_text(self) -> bool:
        """Whether the text tower runs."""
        return self.text_mode in ("caption", "fixed")


def preset_names() -> list[str]:
    """The presets that ship with the project."""
    return list(SHIPPED)


def load_model_config(name_or_path: str, **changes: Any) -> ModelConfig:
    """The table `model` of a shipped preset or of a person's own file, with single fields replaced.

    Raises:
        UserError: no such preset, the file is not one, or a value is not allowed.
    """
    path, values = read_preset(name_or_path, SHIPPED)
    if not isinstance(values.get("model"), dict):
        raise UserError(f"{path}: has no table [model]; see {SHIPPED['tiny']} for one.")
    return make_table(ModelConfig, {**values["model"], **changes}, str(path))

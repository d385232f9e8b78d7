"""Define the options of `python -m refl evaluate`. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from db.errors import UserError
from db.records import MAX_SEED
from refl.tune.config import preset_names
from reward.model.weights_folder import WeightsFolder
from runs.options import Flag, Input, Options, Output, without_name
from training.settings import MayChange

UNTELLING = ("best", "last", "tuned", "reward", "/")
"""Names of folders that every training has."""


class EvaluateOptions(Options):
    """Which restorers are compared, on which faces, by what."""

    method: Annotated[list[str], Input("restorer", "Restorers"), Flag(repeated=True, metavar="[NAME=]RESTORER")] = (
        Field(
            min_length=1,
            description="tiny, diffbir-v1, …, or a folder of a training; the first is the base; repeatable",
        )
    )
    reward: Annotated[list[str], Input("reward", "Reward models"), Flag(repeated=True, metavar="[NAME=]MODEL")] = Field(
        [], description="A reward model, such as frozen=FOLDER and live=RUN/tuned/reward; repeatable"
    )
    faces: Annotated[Path | None, Input("faces")] = Field(
        None, description="Sharp faces (default: the project's test split)"
    )
    wild: Annotated[Path | None, Input("faces", "Wild faces")] = Field(
        None, description="Low-quality aligned faces without ground truth"
    )
    degradation: Annotated[str, Input("degradation"), Flag(metavar="PRESET")] = Field(
        "paper",
        min_length=1,
        description=f"Whose degradation spoils sharp faces: {', '.join(preset_names())}, or a config file",
    )
    seeds: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] = Field([0], min_length=1, description="Seeds of the noise")
    steps: int | None = Field(None, ge=1, le=10_000, description="Denoising steps (default: the restorer's own)")
    limit: int | None = Field(None, ge=1, description="Only the first N faces by name of each set (default: all)")
    image_size_px: int | None = Field(
        None, ge=1, le=4096, description="Side of the faces, pixels (default: the base's own)"
    )
    use_prompt: bool = Field(
        False,
        description="Let reward models compare with their own prompt even where not one face has a caption; for single "
        "faces that lack one it always stands in",
    )
    out: Annotated[Path | None, MayChange(), Output("Folder of the report")] = Field(
        None, description="Folder of the report and of the restored images (default: in DATA/evaluations, by options)"
    )
    device: Annotated[str, MayChange(), Flag(terminal_only=True)] = Field(
        "auto", description="auto, cpu, cuda or cuda:1"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Compute dtype of the restorers")
    batch_size: Annotated[int, MayChange()] = Field(
        4, ge=1, le=10_000, description="Faces restored and measured at a time"
    )
    weights: Annotated[WeightsFolder, MayChange()] = None


def name_rewards(asked: Sequence[str]) -> dict[str, str]:
    """Name -> model of each [NAME=]MODEL; one without a name is called after its folder or file.

    Raises:
        UserError: two have the same name.
    """
    found: dict[str, str] = {}
    for text in asked:
        what = without_name(text)
        name = text.removesuffix(what).removesuffix("=")
        if name in found:
            raise UserError(f"Two reward models are called {name!r}; name one of them otherwise.")
        if not name:
            parts = [part for part in reversed(Path(what).expanduser().parts) if part not in UNTELLING]
            stem = re.sub(r"[^A-Za-z0-9_+.-]", "_", next(iter(parts), "reward"))
            others = (f"{stem}-{number}" for number in count(2))
            name = next(one for one in chain([stem], others) if one not in found)
        found[name] = what
    return found

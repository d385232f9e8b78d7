"""Set which pairs are constructed. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from runs.options import Flag, Input, Options, Output

Kind = Literal["other_person", "input_pasted", "colour_shift", "blurred_eye", "comb_teeth"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class ConstructOptions(Options):
    """Which pairs are added to which dataset, and where the new dataset goes."""

    dataset: Annotated[Path, Input("dataset", "Dataset"), Flag(positional=True, metavar="DATASET")] = Field(
        description="Folder that `annotate export` wrote; it stays as it is"
    )
    kinds: list[Kind] = Field(
        list(KINDS),
        min_length=1,
        description="Beside a photo's own restored image: the same method's of another person, the input pasted back, "
        "colours shifted, one eye blurred, a comb of teeth; the last two are for faces aligned as FFHQ's are",
    )
    per_photo: int = Field(1, ge=1, le=100, description="Pairs of each kind for each photo")
    seed: int = Field(0, ge=0, description="Seed of what is drawn")
    out: Annotated[Path | None, Output("Folder of the new dataset")] = Field(
        None, description="Folder of the new dataset (default: DATASET-constructed)"
    )

"""Define the options of a report; apart from its making, so that the command line need not load matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from db.models import Split
from runs.options import Options, Output


class RankOptions(Options):
    """What a report takes in, and where it goes."""

    out: Annotated[Path | None, Output("Folder of the report")] = Field(
        None, description="Folder of the report (default: the run's folder)"
    )
    resamples: int = Field(1000, ge=0, description="Bootstrap resamples, 0 for none")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap")
    split: Split | None = Field(None, description="Only pairs of this split")
    people: list[str] = Field([], description="Only judgments of these people")
    include_simulated: bool = Field(False, description="Count simulated annotators too")
    exclude_flagged: bool = Field(False, description="Leave out the people that the screening flags, see people.csv")

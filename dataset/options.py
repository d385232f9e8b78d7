"""Say what an export holds: its format, filters and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from db.models import Split
from runs.options import Options, Output

Format = Literal["jsonl", "parquet", "hpdv2", "imagereward", "pickapic", "diffusion-dpo", "trl", "imagefolder"]


class ExportOptions(Options):
    """Which labels, how they are resolved, and in whose format they are written."""

    out: Annotated[Path | None, Output("New folder")] = Field(
        None, description="A new folder (default: in the run's folder)"
    )
    format: Format = Field("jsonl", description="jsonl is our own dataset folder, which import reads back")
    name: str = Field("face-preferences", min_length=1, max_length=100, description="Name on the dataset card")
    licence: str = Field(
        "unknown",
        min_length=1,
        max_length=200,
        description="Licence on the dataset card (unknown: that of the project's photos)",
    )
    resolve: Literal["majority", "dawid-skene", "keep"] = Field(
        "majority", description="How judgments become labels; keep takes the stored labels as they are"
    )
    ties: Literal["keep", "drop", "soft"] = Field(
        "keep", description="Ties as ties, left out, or all labels as probabilities, where the format can say it"
    )
    origin: Literal["human", "svm", "both"] = Field("both", description="Whose labels; with both, a human one wins")
    min_agreement: float = Field(0.0, ge=0, le=1, description="Share of judgments for a pair's most frequent answer")
    splits: list[Split] = Field([], description="Only these splits; none named takes all")
    methods: list[str] = Field([], description="Only pairs whose two methods are among these; none named takes all")
    people: list[str] = Field(
        [], description="Only judgments of these people, and human labels made of no others; none named takes all"
    )
    exclude_people: list[str] = Field([], description="No judgments of these people, and no labels made of them")
    exclude_flagged: bool = Field(
        False, description="Leave out the people that the report's screening flags too; the card says who and why"
    )
    include_simulated: bool = Field(False, description="Count simulated annotators too; the labels then say so")
    skip_bad: bool = Field(
        False, description="Leave pairs with a damaged or missing image out instead of refusing the export"
    )
    prompt: str = Field(
        "a high-quality photo of a face", min_length=1, description="Prompt where a photo has no caption"
    )

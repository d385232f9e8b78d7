"""Describe what a study needs to be made at Prolific, besides what every study has."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ProlificSettings(BaseModel):
    """Settings of a study that Prolific alone knows."""

    model_config = ConfigDict(extra="forbid")

    description: str = Field(
        "", max_length=20_000, description="What participants read at Prolific, simple HTML; the information if empty"
    )
    devices: list[Literal["desktop", "tablet", "mobile"]] = Field(
        ["desktop"], min_length=1, description="Devices that are let in"
    )
    filters: list[dict[str, Any]] = Field(
        [], description="Prolific's filters of people, as its API writes them: filter_id and selected_values or range"
    )
    project: str = Field("", max_length=64, description="Id of Prolific's project; its default where empty")
    approve: Literal["by hand", "at once"] = Field(
        "by hand", description="Whether who is done is paid at once or once the answers were looked at"
    )
    screen_out_slots: int = Field(
        0, ge=0, le=100_000, description="People who may be screened out with pay before Prolific pauses the study"
    )

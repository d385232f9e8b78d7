"""Define what a reward over HTTP is asked and answers, for both sides; docs/reward.md has it in words."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

CONTRACT = 1
"""Raised where what is asked and answered changes, so that older sides refuse."""
JSON = "application/json"
NPZ = "application/x-npz"


class Refusal(Exception):
    """Say why a request is not answered, in one line for who sent it."""

    def __init__(self, status: int, message: str, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class Limits(BaseModel):
    """What a request may hold."""

    model_config = ConfigDict(frozen=True)

    max_images: int = Field(64, ge=1)
    max_side_px: int = Field(2048, ge=1)
    max_body_bytes: int = Field(256 * 2**20, ge=1)
    """Of the body, and of all that it unpacks to."""
    max_caption_characters: int = Field(2_000, ge=1)
    """More than a text tower of 77 tokens reads; the time that splitting a word takes grows with its length squared."""


class RemoteDescription(BaseModel):
    """What a server tells of its reward: the answer of /version. What it may leave out has a default."""

    model_config = ConfigDict(frozen=True)

    contract: int
    name: str = Field(min_length=1)
    version: str = Field(min_length=1)
    """Another one where any reward may be another."""
    limits: Limits
    needs_input: bool = False
    """Whether the photo that was restored is compared with each image."""
    input_photo: Literal["lq", "hq"] = "lq"
    needs_caption: bool = False
    """Whether captions are read; the prompt stands in for one that is missing."""
    prompt: str = ""
    has_spread: bool = False
    """Whether answers tell the spread over the members."""
    members: tuple[str, ...] = ()
    software: str = ""


class Answer(BaseModel):
    """The rewards of a request's images, in their order; higher is better."""

    model_config = ConfigDict(frozen=True, strict=True)

    name: str
    version: str
    rewards: list[float]
    spread: list[float] | None = None


def check_counts(images: int, beside: Mapping[str, Sized | None], limits: Limits) -> None:
    """Refuse no images, too many, and other numbers of the things beside them, of which each may be None."""
    if images == 0:
        raise Refusal(422, "There are no images; send at least one.")
    if images > limits.max_images:
        raise Refusal(413, f"There are {images:,} images; at most {limits.max_images:,} go in a request.")
    for name, things in beside.items():
        if things is not None and len(things) != images:
            raise Refusal(422, f"There are {images:,} images but {len(things):,} {name}; send as many, or none.")

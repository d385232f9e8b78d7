"""Check that a reward model which sees the restored photo gets it: one rule for training, evaluating, scoring, ReFL."""

from __future__ import annotations

from typing import Literal, Protocol

from db.errors import UserError

PHOTOS = {"lq": "the photo that was restored (lq)", "hq": "the ground truth or a reference photo (hq)"}


class SeesInput(Protocol):
    """What says whether a reward sees a photo beside each image: the config of a model or of a set."""

    @property
    def needs_input(self) -> bool:
        """Whether it does."""

    @property
    def input_photo(self) -> Literal["lq", "hq"]:
        """Which one."""


def check_inputs(config: SeesInput, missing: int, total: int, things: str, *, instead: str) -> None:
    """Check that every image has the photo that the model compares it with; nothing stands in for one.

    Args:
        missing: of so many in all, how many have none.
        things: what is counted: 'images'.
        instead: what a person can do, for the message.
    Raises:
        UserError: the model needs it, and one is missing.
    """
    if config.needs_input and missing:
        count = f"{missing:,} of the" if missing < total else "all"
        raise UserError(
            f"The reward model sees {PHOTOS[config.input_photo]} beside each image; {count} {total:,} {things} lack "
            f"it. {instead}"
        )

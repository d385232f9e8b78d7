"""Check that a reward model which sees the restored photo gets it: one rule for training, evaluating, scoring, ReFL."""

from __future__ import annotations

from db.errors import UserError
from reward.model.config import ModelConfig

PHOTOS = {"lq": "the photo that was restored (lq)", "hq": "the ground truth or a reference photo (hq)"}


def check_inputs(config: ModelConfig, missing: int, total: int, things: str, *, instead: str) -> None:
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
            f"text_mode is {config.text_mode}, so that the reward model sees {PHOTOS[config.input_photo]} beside each "
            f"image; {count} {total:,} {things} lack it. {instead}"
        )

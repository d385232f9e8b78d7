"""What happens where captions are missing: one rule, of training, evaluating and scoring alike."""

from __future__ import annotations

from reward.config import ModelConfig
from runs import UserError


def check_captions(
    config: ModelConfig, missing: int, total: int, things: str, *, instead: str, use_prompt: bool = False
) -> str | None:
    """That a model which compares images with their captions gets some; its prompt stands in for those that miss.

    Args:
        missing: of so many in all, how many have no caption.
        things: what is counted: 'images'.
        instead: what a person can do where there is not one caption, for the message.
        use_prompt: whether the prompt may stand in for all of them.
    Returns:
        where the prompt stands in, and for how many, to be said; None where it does not.
    Raises:
        UserError: there is not one caption, and the prompt may not stand in for all.
    """
    if not missing or config.text_mode != "caption":
        return None
    if missing == total and not use_prompt:
        raise UserError(f"None of the {total:,} {things} has a caption, but text_mode is caption. {instead}")
    return f"{missing:,} of {total:,} {things} have no caption; the prompt {config.prompt!r} stands in."

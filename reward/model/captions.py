"""Check captions that are missing or too long: one rule for training, evaluating and scoring."""

from __future__ import annotations

from collections.abc import Iterable

from db.errors import UserError
from reward.model.set_config import RewardConfig


def check_captions(
    config: RewardConfig, missing: int, total: int, things: str, *, instead: str, use_prompt: bool = False
) -> str | None:
    """Check that a caption model has captions; its prompt replaces missing ones.

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


CONTEXT_TOKENS = 77
"""Tokens that CLIP reads of a text, start and end included; the rest is cut off."""


def describe_long_captions(
    config: RewardConfig, captions: Iterable[str | None], context_tokens: int = CONTEXT_TOKENS
) -> str | None:
    """Describe how many different captions are longer than the model reads; None for none, or where none is read.

    Args:
        context_tokens: how many tokens the model's text half takes.
    """
    if config.text_mode != "caption":
        return None
    # A token is at least a byte of the text, so that most captions need no counting.
    places = context_tokens - 2
    long = [text for text in {text for text in captions if text} if len(text.encode()) > places]
    if not long:
        return None
    from reward.model.model import load_tokenizer  # here: it loads torch, and most captions are short

    encode = load_tokenizer().encode
    cut = sorted((text for text in long if len(encode(text)) > places), key=len)
    if not cut:
        return None
    return (
        f"{len(cut):,} captions are longer than the {context_tokens} tokens that the model reads; what follows is cut "
        f"off, as of {cut[0][:60]!r}…"
    )

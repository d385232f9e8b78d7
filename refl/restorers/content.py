"""Identify a restorer by what it computes with, not by where its files lie: two paths of the same bytes are one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_content(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A restorer's settings without the names of its files.

    Args:
        settings: as `Restorer.settings`, with whatever a method adds to them.
    Returns:
        the same, `weights` the sorted SHA-256 of the files and `restorer` left out; that stays where no file is known.
    """
    weights = settings.get("weights")
    if not isinstance(weights, Mapping) or not weights:
        return dict(settings)
    kept = {name: value for name, value in settings.items() if name != "restorer"}
    return {**kept, "weights": sorted(weights.values())}


def name_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings in which two restorers differ by content; none where they are one."""
    one, other = describe_content(before), describe_content(now)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))

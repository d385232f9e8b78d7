"""Say in GiB, by part, what a training will need, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from training.accounting import Phase

GIB = 2**30
LEAST_GIB = 0.01
"""Smaller parts are left out of the table; the sums have them."""


def find_peak(phases: Mapping[str, Phase]) -> float:
    """The most that is in use at once in any phase, GiB."""
    return max(phase.peak_bytes for phase in phases.values()) / GIB


def describe_memory(phases: Mapping[str, Phase]) -> str:
    """A table: a row per part, largest first, a column per phase, GiB at the phase's peak; the sums last.

    Args:
        phases: by name, each with its peak and the split at it.
    """
    most = {
        part: max(phase.at_peak.get(part, 0) for phase in phases.values())
        for part in sorted({part for phase in phases.values() for part in phase.at_peak})
    }
    shown = [part for part in sorted(most, key=lambda part: -most[part]) if most[part] >= LEAST_GIB * GIB]
    rows = [
        ["GiB", *phases],
        *([part, *(f"{phase.at_peak.get(part, 0) / GIB:.2f}" for phase in phases.values())] for part in shown),
        ["in all", *(f"{phase.peak_bytes / GIB:.2f}" for phase in phases.values())],
    ]
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(
        "  ".join([part.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))])
        for part, *cells in rows
    )

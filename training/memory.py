"""Say in GiB, by part, what a training will need, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training.accounting import Phase

GIB = 2**30
CUDA_GIB = 0.7
"""What CUDA itself and the allocator's gaps take besides what is counted."""


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one training on one device."""

    phases: Mapping[str, Phase]
    """What is done, by name, each with its peak and the split at it."""

    @property
    def peak_gib(self) -> float:
        """The most that is in use at once, GiB."""
        return max(phase.peak_bytes for phase in self.phases.values()) / GIB

    def describe(self) -> str:
        """A table: a row per part, a column per phase, GiB at the phase's peak."""
        names = {name for phase in self.phases.values() for name in phase.at_peak}
        size = {name: max(phase.at_peak.get(name, 0) for phase in self.phases.values()) for name in names}
        shown = [name for name in sorted(names, key=lambda name: -size[name]) if size[name] >= GIB / 100]
        rows = [["GiB", *self.phases]]
        for name in shown:
            rows.append([name, *(f"{phase.at_peak.get(name, 0) / GIB:.2f}" for phase in self.phases.values())])
        rows.append(["in all", *(f"{phase.peak_bytes / GIB:.2f}" for phase in self.phases.values())])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if at == 0 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )

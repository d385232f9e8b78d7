"""The table of a training's memory, from phases made by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: `make install`")

from training.accounting import Phase
from training.memory import GIB, describe_memory


def test_a_row_per_part_and_a_column_per_phase() -> None:
    phases = {
        "step": Phase(13 * GIB // 4, {"moments": GIB, "activations": 9 * GIB // 4, "a crumb": GIB // 200}),
        "validation": Phase(3 * GIB // 2, {"moments": GIB, "activations": GIB // 2}),
    }
    assert describe_memory(phases).splitlines() == [
        "GiB          step  validation",
        "activations  2.25        0.50",
        "moments      1.00        1.00",
        "in all       3.25        1.50",
    ]


def test_parts_of_one_phase_only_are_nothing_in_the_others() -> None:
    phases = {"step": Phase(GIB, {"gradients": GIB}), "look": Phase()}
    assert describe_memory(phases).splitlines()[1:] == ["gradients  1.00  0.00", "in all     1.00  0.00"]

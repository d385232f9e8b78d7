"""Write the card of a tuned restorer: what it was tuned from, and the licences of all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from licences.terms import Licensed, format_list
from refl.tune.config import Algorithm
from runs.files import write_text_whole
from runs.licences import write_recorded

LEARNED: dict[Algorithm, str] = {
    "refl": "with the gradient of a reward (ReFL)",
    "dpo": "on labelled pairs (Diffusion-DPO)",
    "gdpo": "on groups of its own results, compared by a reward (group DPO)",
    "grpo": "on groups of its own results, compared by a reward (GRPO)",
}


def write_card(
    folder: Path,
    asked: Mapping[str, str],
    method: Algorithm,
    result: Mapping[str, Any],
    made_from: Sequence[Licensed],
) -> None:
    """Write README.md and licences.json beside the weights.

    Args:
        asked: what it was made from by what that is: restorer, reward, faces, dataset; empty ones are left out.
        result: of the training: its steps, its cost, and where its monitor saw hacking.
    """
    hacking = result.get("hacking")
    lines = [
        f"# Restorer {folder.parent.name}",
        "",
        f"A restorer fine-tuned {LEARNED[method]}. It invents detail: a restored face is plausible, not evidence of a",
        "person's real appearance.",
        "",
        *(f"- {name}: {value}" for name, value in asked.items() if value),
        f"- steps: {result['step']:,}",
        f"- network evaluations: {result['evaluations']:,}",
        f"- monitor: {'no hacking seen' if hacking is None else f'hacking seen at step {hacking:,}'}",
        "",
        "## Licences",
        "",
        "It was made from these, the strictest first:",
        "",
        *format_list(made_from),
        "",
    ]
    write_text_whole(folder / "README.md", "\n".join(lines))
    write_recorded(folder, made_from)

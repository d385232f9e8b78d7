"""Write the card of a tuned restorer: what it was tuned from, and the licences of all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from licences.terms import Licensed, format_list
from runs.files import write_text_whole
from runs.licences import write_recorded


def write_card(
    folder: Path, asked: Mapping[str, str], result: Mapping[str, Any], made_from: Sequence[Licensed]
) -> None:
    """Write README.md and licences.json beside the weights.

    Args:
        asked: what it was made from by what that is: restorer, reward, faces, dataset; empty ones are left out.
        result: of the training: its steps, and where its monitor saw hacking.
    """
    hacking = result.get("hacking")
    lines = [
        f"# Restorer {folder.parent.name}",
        "",
        "A restorer fine-tuned with the gradient of a reward (ReFL). It invents detail: a restored face is plausible,",
        "not evidence of a person's real appearance.",
        "",
        *(f"- {name}: {value}" for name, value in asked.items() if value),
        f"- steps: {result['step']:,}",
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

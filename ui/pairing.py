"""Start making pairs from a page, and show how it goes."""

from __future__ import annotations

from pathlib import Path

from annotate.ingest.command import IMPORT
from annotate.judging.command import PAIR, describe_tasks
from db.errors import UserError
from db.models import Run, RunState
from ui.context import Context
from ui.html import ended_html, live_html, read_result
from ui.run_panel import is_live, start_run

ALL, RANDOM, AGAINST = "All", "Some, at random", "Only with one method"
SIZES = [("as the Project page says", 0), ("2, a pair", 2), *((f"{size}, a task", size) for size in range(3, 7))]
"""Choices of how many images are judged at once: words, and the number, 0 for the project's."""


def start_pairing(context: Context, which: str, per_source: float | None, against: str | None, size: int = 0) -> int:
    """Start `annotate pair` as a run and return its id.

    Args:
        size: of a task, 2 for pairs; 0: the project's.

    Raises:
        UserError: no number or method chosen, or a run is going on.
    """
    if which == RANDOM and not per_source:
        raise UserError("Say how many pairs or tasks a photo gets.")
    if which == AGAINST and not against:
        raise UserError("Choose the method that every pair is to have.")
    options = PAIR.make(
        {
            "size": size or None,
            "per_source": int(per_source or 0) if which == RANDOM else None,
            "against": against if which == AGAINST else None,
        }
    )
    return start_run(context, PAIR, options, beside=(IMPORT,))


def pair_html(data: Path, run: Run | None) -> str:
    """How the latest pairing goes or went."""
    if run is None:
        return ""
    if is_live(run):
        return live_html(data, run, "Making pairs")
    result = read_result(data, run.id)
    if run.state is not RunState.finished:
        return ended_html(run, "")
    aside = f"; {result['set_aside']:,} that were there are not asked any more" if result.get("set_aside") else ""
    if result.get("size", 2) > 2:
        return ended_html(run, describe_tasks(result["size"], result) + aside)
    return ended_html(
        run,
        f"{result['added']:,} pairs added, {result['existing']:,} were there. {result['sources_with_pairs']:,} photos "
        f"have pairs, {result['sources_without_pairs']:,} have no two restored images to compare"
        + (f"; {result['identical']:,} pairs of the same pixels were left out" if result["identical"] else "")
        + aside,
    )

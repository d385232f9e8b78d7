"""Start making pairs from a page, and show how it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from db.errors import UserError
from db.models import Run, RunState
from runs.launch import launch
from runs.store import LIVE_STATES, latest_run
from ui.context import Context
from ui.html import ended_html, live_html, read_result

IMPORT = "annotate import"
PAIR = "annotate pair"
ALL, RANDOM, AGAINST = "All", "Some, at random", "Only with one method"


def start_pairing(context: Context, which: str, per_source: float | None, against: str | None) -> int:
    """Start `annotate pair` as a run and return its id.

    Raises:
        UserError: no number or method chosen, or a run is going on.
    """
    config: dict[str, Any] = {"per_source": None, "against": None, "seed": 0}
    arguments = []
    if which == RANDOM:
        if not per_source:
            raise UserError("Say how many pairs a photo gets.")
        config["per_source"] = int(per_source)
        arguments = [f"--per-source={int(per_source)}"]
    elif which == AGAINST:
        if not against:
            raise UserError("Choose the method that every pair is to have.")
        config["against"] = against
        arguments = [f"--against={against}"]  # in one piece: the name may begin with a dash
    refuse_second_run(context)
    return launch(context.database, context.data, PAIR, arguments, config, url=context.url)


def refuse_second_run(context: Context) -> None:
    with context.database.read() as session:
        for run in (latest_run(session, IMPORT), latest_run(session, PAIR)):
            if run is not None and run.state in LIVE_STATES:
                raise UserError(f"Run {run.id} ({run.kind}) is going on; wait for it or stop it.")


def pair_html(data: Path, run: Run | None) -> str:
    """How the latest pairing goes or went."""
    if run is None:
        return ""
    if run.state in LIVE_STATES:
        return live_html(data, run, "Making pairs")
    result = read_result(data, run.id)
    if run.state is not RunState.finished:
        return ended_html(run, "")
    return ended_html(
        run,
        f"{result['added']:,} pairs added, {result['existing']:,} were there. {result['sources_with_pairs']:,} photos "
        f"have pairs, {result['sources_without_pairs']:,} have no two restored images to compare"
        + (f"; {result['identical']:,} pairs of the same pixels were left out" if result["identical"] else "")
        + (f"; {result['set_aside']:,} that were there are not asked any more" if result.get("set_aside") else ""),
    )

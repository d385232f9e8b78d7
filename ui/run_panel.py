"""Start commands from a page as runs, and show how they go: status, progress, a stop button, after a reload too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from sqlalchemy.orm import Session

from db.errors import UserError
from db.models import Run
from runs import launch
from runs.options import Command, O
from runs.stop import stop
from runs.store import LIVE_STATES, latest_run, reap_lost
from ui.context import Context
from ui.html import page_error

TICK_SECONDS = 1.0
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

Runs = Mapping[str, Run | None]
"""Command -> its latest run."""


class RunPanel:
    """The latest runs of some commands on one page.

    A page calls `place` where the status is to stand, `start` for each button that starts a run, and `show` last, with
    what else it shows. While a run goes on, its buttons rest and only the statuses are sent; once it ends, all is shown
    anew.
    """

    def __init__(
        self, context: Context, statuses: Mapping[str, Callable[[Path, Run | None], str]], stop: str = "Stop"
    ) -> None:
        """
        Args:
            statuses: command -> how its latest run goes or went, as HTML.
        """
        self.context = context
        self.describe = dict(statuses)
        self.status = {kind: gr.HTML(render=False) for kind in statuses}
        self.stop_button = gr.Button(stop, variant="stop", size="sm", visible=False, render=False)
        self.timer = gr.Timer(TICK_SECONDS, active=False)
        self._starts: list[tuple[gr.Button, Callable[..., object], Sequence[Any], bool]] = []

    def place(self, kind: str, *, stop: bool = False) -> None:
        """Place how a command's latest run goes at this place of the page, and the stop button below it."""
        self.status[kind].render()  # type: ignore[no-untyped-call]
        if stop:
            self.stop_button.render()  # type: ignore[no-untyped-call]

    def start(
        self, button: gr.Button, action: Callable[..., object], inputs: Sequence[Any] = (), *, rests: bool = True
    ) -> None:
        """Let a button do something that starts a run; a UserError becomes the page's message.

        Args:
            rests: whether the panel disables it while a run goes on; else the page's own `fill` says so.
        """
        self._starts.append((button, action, inputs, rests))

    def show(
        self,
        outputs: Sequence[Any] = (),
        fill: Callable[..., Sequence[Any]] = lambda *_: (),
        asked: Sequence[Any] = (),
        anew_on: Sequence[Any] = (),
    ) -> None:
        """Show the statuses and the page's own outputs: now, after each start and stop, and when a run has ended.

        Args:
            fill: (session, latest runs, whether one goes on, values of `asked`) -> values of `outputs`.
            anew_on: events of the page after which all is shown anew.
        """
        resting = [button for button, _, _, rests in self._starts if rests]
        halts = [self.stop_button] if self.stop_button.is_rendered else []
        shown = [*self.status.values(), *outputs, *resting, *halts, self.timer]

        def show(*values: Any) -> list[Any]:
            reap_lost(self.context.database, self.context.data)
            with self.context.database.read() as session:
                runs = self._latest(session)
                busy = any(map(is_live, runs.values()))
                rest = list(fill(session, runs, busy, *values))
            return [
                *self._statuses(runs),
                *rest,
                *(gr.Button(interactive=not busy) for _ in resting),
                *(gr.Button(visible=busy) for _ in halts),
                gr.Timer(active=busy),
            ]

        def tick(*values: Any) -> list[Any]:
            reap_lost(self.context.database, self.context.data)
            with self.context.database.read() as session:
                runs = self._latest(session)
            if any(map(is_live, runs.values())):
                return [*self._statuses(runs), *[gr.skip()] * (len(shown) - len(runs))]
            return show(*values)

        def run_action(action: Callable[..., object], count: int, *values: Any) -> list[Any]:
            with refused_in_page():
                action(*values[:count])
            return show(*values[count:])

        gr.on(None, show, list(asked), shown, **QUIET)
        self.timer.tick(tick, list(asked), shown, **QUIET)
        for event in anew_on:
            event(show, list(asked), shown, **QUIET)
        for button, action, inputs, _ in self._starts:
            on_click = _bind(run_action, action, len(inputs))
            button.click(on_click, [*inputs, *asked], shown, **QUIET)
        for halt in halts:
            halt.click(_bind(run_action, self.stop_runs, 0), list(asked), shown, **QUIET)

    def stop_runs(self) -> None:
        """Ask the runs that go on to end."""
        stop_latest(self.context, *self.describe)

    def _latest(self, session: Session) -> dict[str, Run | None]:
        return {kind: latest_run(session, kind) for kind in self.describe}

    def _statuses(self, runs: Runs) -> list[str]:
        return [self.describe[kind](self.context.data, run) for kind, run in runs.items()]


def _bind(function: Callable[..., list[Any]], *first: Any) -> Callable[..., list[Any]]:
    """A function of the event's values alone; Gradio counts the parameters of what it calls."""

    def bound(*values: Any) -> list[Any]:
        return function(*first, *values)

    return bound


@contextmanager
def refused_in_page() -> Iterator[None]:
    """Show a UserError of the block as the page's message."""
    try:
        yield
    except UserError as error:
        raise page_error(error) from error


def is_live(run: Run | None) -> bool:
    """Whether a run goes on."""
    return run is not None and run.state in LIVE_STATES


def start_run(context: Context, command: Command[O], options: O, beside: Sequence[Command[Any]] = ()) -> int:
    """Start a command as a run, unless one of it or of those beside it goes on; returns the run's id.

    Raises:
        UserError: one goes on, or the options cannot be meant.
    """
    with context.database.read() as session:
        for kind in (command.name, *(other.name for other in beside)):
            run = latest_run(session, kind)
            if run is not None and is_live(run):
                raise UserError(f"Run {run.id} ({run.kind}) is going on; wait for it or stop it.")
    return launch.start(context.database, context.data, command, options, url=context.url)


def stop_latest(context: Context, *kinds: str) -> None:
    """Ask the latest runs of these commands to end, where they go on."""
    with context.database.read() as session:
        runs = [latest_run(session, kind) for kind in kinds]
    for run in runs:
        if run is not None and is_live(run):
            stop(context.database, run.id)

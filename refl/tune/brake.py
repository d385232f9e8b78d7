"""Decide what to do about reward hacking while a training goes on: keep, lower the step, go back, or stop.

The rule, of each check of the monitor in turn:

- keep: the check is not suspicious. What is trained now is the last good checkpoint, `good/` and `tuned/`.
- wait: it is not, but would be if a quarter of a judge's least effect counted. Nothing is done, and the last good
  checkpoint stays what it was: a fall that is noticed later began here.
- lower: it is suspicious and the one before was not. One look may be chance: the learning rate is multiplied by
  `brake_factor`, all else goes on, and the last good checkpoint stays what it was.
- back: it is suspicious a second time in a row, which is hacking. Weights, moments, running averages and the live
  reward model become those of the last good checkpoint, and the learning rate is lowered once more. The steps go on
  counting, so that what is drawn from now on is another sample. The row of suspicious checks begins anew.
- stop: it would be the `brake_backs_max`-th time to go back. It goes back, and training ends: `tuned/` is the last
  good checkpoint.

What is lowered stays lowered. The first check, of what training begins with, is good, so there is always something to
go back to. Under the brake the monitor measures a judge's fall from that judge's best good check instead of from the
first: what training had won and lost again counts as lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Action = Literal["keep", "wait", "lower", "back", "stop"]
KEPT = 1.0
"""The learning rate's factor as long as nothing was lowered."""


@dataclass(frozen=True)
class Decision:
    """What is done after a check, and why."""

    action: Action
    reason: str
    """In plain words, for the log and the run's page."""
    learning_rate_factor: float
    """Of the steps from now on, on whatever the schedule says."""
    good_step: int
    """Of the last good checkpoint, with this check."""


def decide(history: Sequence[Mapping[str, Any]], brake_factor: float, backs_max: int) -> Decision:
    """The rule at the newest check; the same history gives the same decision on every process and after a restart.

    Args:
        history: the monitor's: `step` and `verdict` of each check, and of all but the newest `brake`, the decision.
        brake_factor: of the learning rate each time that it is lowered.
        backs_max: going back for this time ends the training.
    """
    *earlier, newest = history
    step, verdict = newest["step"], newest["verdict"]
    factor, good_step = find_factor(earlier), find_good_step(earlier)
    if good_step is None or not verdict:
        return Decision("keep", "what training begins with", factor, step)
    if not verdict["suspicious"] and verdict["slips"]:
        reason = f"the reward rose while {', '.join(verdict['slipping'])} fell a little: none to go back to"
        return Decision("wait", reason, factor, good_step)
    if not verdict["suspicious"]:
        return Decision("keep", _explain_good(verdict), factor, step)
    seen = _tell_falls(verdict)
    lowered = factor * brake_factor
    if not verdict["hacking"]:
        reason = f"{seen}; once may be chance, so the learning rate alone is lowered, to {lowered:.3g} of the setting"
        return Decision("lower", reason, lowered, good_step)
    backs = 1 + sum(row["brake"]["action"] == "back" for row in earlier)
    seen = f"{seen}, twice in a row"
    if backs >= backs_max:
        times = "the first time" if backs == 1 else f"{backs} times now"
        reason = f"{seen}, {times}: training ends with what it was at step {good_step:,}, its last good check"
        return Decision("stop", reason, lowered, good_step)
    reason = f"{seen}: back to step {good_step:,}, the last good check, and on at {lowered:.3g} of the learning rate"
    return Decision("back", reason, lowered, good_step)


def _tell_falls(verdict: Mapping[str, Any]) -> str:
    return f"the reward rose while {', '.join(verdict['fallen'])} fell"


def _explain_good(verdict: Mapping[str, Any]) -> str:
    if not verdict["fallen"]:
        return "no judge fell"
    fallen = ", ".join(verdict["fallen"])
    if not verdict["reward_rose"]:
        return f"{fallen} fell, but the reward has not risen: it is not what was bought"
    return f"{fallen} fell, in fewer families of judges than hacking_judges asks for"


def find_factor(history: Sequence[Mapping[str, Any]]) -> float:
    """What the learning rate is multiplied by after these checks; 1 without the brake."""
    return float(history[-1]["brake"]["learning_rate_factor"]) if _has_brake(history) else KEPT


def find_good_step(history: Sequence[Mapping[str, Any]]) -> int | None:
    """The step of the last good checkpoint; None before the first check, and without the brake."""
    return int(history[-1]["brake"]["good_step"]) if _has_brake(history) else None


def is_stopped(history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the brake has ended this training."""
    return _has_brake(history) and history[-1]["brake"]["action"] == "stop"


def _has_brake(history: Sequence[Mapping[str, Any]]) -> bool:
    return bool(history) and "brake" in history[-1]


def list_actions(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Step, action and reason of each check at which something was done."""
    return [
        {"step": row["step"], "action": row["brake"]["action"], "reason": row["brake"]["reason"]}
        for row in history
        if row["brake"]["action"] not in ("keep", "wait")
    ]


def describe_checks(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a check for the run's page: `step`, `seen` (good, suspicious, hacking), `action`, `factor`, `why`.

    Without the brake, `action` is empty.
    """
    rows = []
    for row in history:
        verdict, braked = row["verdict"] or {"suspicious": False, "hacking": False}, row.get("brake")
        suspicious = verdict.get("suspicious", verdict["hacking"])  # earlier versions told hacking alone
        why = braked["reason"] if braked else _tell_falls(verdict) if suspicious else ""
        rows.append(
            {
                "step": row["step"],
                "seen": "hacking" if verdict["hacking"] else "suspicious" if suspicious else "good",
                "action": braked["action"] if braked else "",
                "factor": braked["learning_rate_factor"] if braked else KEPT,
                "why": why,
            }
        )
    return rows

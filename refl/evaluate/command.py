"""Compare a base restorer with tuned ones on held-out faces, in one report: `python -m refl evaluate`."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from refl.evaluate.options import EvaluateOptions, name_rewards
from refl.tune.config import load_refl_config
from runs.options import Command, Place, make_absolute
from runs.progress import show_progress
from runs.store import record
from training.settings import dump_deciding


def settle_evaluate(options: EvaluateOptions, data: Path) -> EvaluateOptions:
    """Choose the folder of a report that names none.

    Raises:
        UserError: the degradation cannot be read, or reward models are not named apart.
    """
    load_refl_config(options.degradation)
    named = [f"{name}={what}" for name, what in name_rewards(options.reward).items()]
    options = options.model_copy(update={"reward": named})
    out = options.out or data / "evaluations" / name_evaluation(options)
    return make_absolute(options.model_copy(update={"out": out}))


def name_evaluation(options: EvaluateOptions) -> str:
    """'tiny-3f2a9c1b': the same for the same command, so that it finds its images again."""
    asked = dump_deciding(options, short=False)
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    base = re.sub(r"[^\w.+-]+", "-", Path(options.method[0].rpartition("=")[2]).name)
    return f"{base}-{digest}"


def run_evaluate(options: EvaluateOptions, place: Place) -> None:
    """Evaluate as a run and write the report."""
    out = options.out
    assert out is not None  # settled
    with record(EVALUATE, options, place) as (database, run):
        from refl.evaluate.plan import make_plan  # here: these load torch, which --help need not wait for
        from refl.evaluate.run import evaluate
        from training.stopping import stop_at_next_step

        plan = make_plan(options, database, place.data)
        for note in plan.notes:
            print(f"note: {note}")
        with show_progress(run, "evaluating", "images") as show, stop_at_next_step() as stop_asked:
            evaluate(plan, out, EVALUATE.config(options), show, stop_asked)
        run.write_result({"out": str(out)})
    print(f"report: {out / 'report.md'}")


EVALUATE = Command(
    "refl evaluate",
    "compare tuned restorers with the base on held-out faces",
    EvaluateOptions,
    run_evaluate,
    "Faces with ground truth are degraded with fixed seeds; wild ones are taken as they are. Metrics whose weights "
    "cannot be had here are left out and named. Ended at any time, the same command goes on after the images that are "
    "restored and measured already.",
    settle_evaluate,
)

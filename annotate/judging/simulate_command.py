"""Let a simulated annotator judge: `python -m annotate simulate`."""

from __future__ import annotations

from pydantic import Field

from annotate.judging.simulate import ANNOTATOR, SimilarityScore, check_ground_truth, get_annotator, judge_pairs
from db.project import load_settings
from runs.options import Command, Options, Place
from runs.store import record


class SimulateOptions(Options):
    """How many pairs or tasks are answered, by whom, and how reliably."""

    count: int = Field(60, ge=1, description="So many pairs or tasks, or all that want an answer if they are fewer")
    name: str = Field(ANNOTATOR, min_length=1, description="Name of the simulated annotator; added where it is new")
    noise: float = Field(0.1, ge=0, le=0.5, description="Share of answers against its own judgment")
    seed: int = Field(0, ge=0, description="Seed of the answers drawn by lot")


def run_simulate(options: SimulateOptions, place: Place) -> None:
    """Answer and say how many."""
    with record(SIMULATE, options, place) as (database, run):
        with database.write() as session:
            check_ground_truth(session)
            person_id = get_annotator(session, options.name).id
            task_size = load_settings(session).task_size
        answers, by_lot = judge_pairs(
            database,
            person_id,
            SimilarityScore(place.data),
            count=options.count,
            noise=options.noise,
            seed=options.seed,
            tell=lambda done: run.progress(done, options.count),
        )
        run.write_result({"answers": answers, "by_lot": by_lot, "person": options.name})
    what = "pairs" if task_size == 2 else "tasks"
    print(f"SIMULATED: {answers} {what} answered by {options.name!r}, {by_lot} of them by lot")


SIMULATE = Command(
    "annotate simulate",
    "let a simulated annotator judge pairs or tasks, to try out what follows",
    SimulateOptions,
    run_simulate,
    "A program answers what the labelling page would show, by likeness to the ground truth (SSIM of small pictures), "
    "some by lot. It is marked as simulated wherever its answers count, and counts only where --include-simulated says "
    "so.",
)

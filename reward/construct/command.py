"""Add pairs whose answer is known to a dataset: `python -m reward construct`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from reward.construct.options import ConstructOptions
from runs.options import Command, Place
from runs.store import record


def settle_construct(options: ConstructOptions, _data: Path) -> ConstructOptions:
    """Make paths absolute and name the new dataset."""
    dataset = options.dataset.expanduser().absolute()
    out = options.out or dataset.with_name(f"{dataset.name}-constructed")
    return options.model_copy(update={"dataset": dataset, "out": out.expanduser().absolute()})


def run_construct(options: ConstructOptions, place: Place) -> None:
    """Write the new dataset as a run, and say what it has."""
    from reward.construct.construct import construct  # here: it loads torch, which --help need not wait for
    from reward.data import load_dataset

    assert options.out is not None  # settled
    with record(CONSTRUCT, options, place) as (_, run):
        counts = construct(options.dataset, options.out, options.kinds, options.per_photo, options.seed, run.progress)
        rows = load_dataset(options.out).rows  # also that it is one, as training reads it
        tallies = {"origins": Counter(row.origin for row in rows), "made_by": Counter(row.made_by for row in rows)}
        run.write_result({"out": str(options.out), "rows": sum(counts.values()), "kinds": counts, **tallies})
    for kind, count in counts.items():
        print(f"{kind:<12}  {count:,} pairs")
    print(f"constructed by a program, judged by nobody; the dataset is {options.out}")


CONSTRUCT = Command(
    "reward construct",
    "add pairs whose answer is known to a copy of a dataset",
    ConstructOptions,
    run_construct,
    "Each photo's own restored image wins against an image that no person would take. The pairs have the origin "
    "`constructed` and count nowhere as people's labels; `reward train` weighs them by --constructed-weight.",
    settle_construct,
)

"""Add constructed pairs to a copy of a dataset: `python -m reward construct`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

from pydantic import Field

from db.errors import UserError
from reward.construct.faults import Kind
from runs.options import Command, Flag, Input, Options, Output, Place, make_absolute
from runs.progress import show_progress
from runs.store import record

SHARE = 0.2


class ConstructOptions(Options):
    """Which pairs are made, and how many."""

    dataset: Annotated[Path, Input("dataset", "Dataset"), Flag(positional=True, metavar="DATASET")] = Field(
        description="Folder that `annotate export` wrote"
    )
    out: Annotated[Path | None, Output("New folder")] = Field(
        None, description="A new folder (default: in the run's folder)"
    )
    kinds: list[Kind] = Field([], description="What stands beside a restored image; none named takes all")
    share: float | None = Field(
        None,
        gt=0,
        le=1,
        description=f"Share of the restored images that a pair of each kind is made from (default: {SHARE})",
    )
    per_kind: int | None = Field(
        None, ge=1, description="Pairs of each kind instead, in the splits' proportion; as many as there can be"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of which images are taken, and how they are spoilt")


def settle_construct(options: ConstructOptions, _data: Path) -> ConstructOptions:
    """Name the kinds and the share, and make paths absolute.

    Raises:
        UserError: the folder is there already, or both a share and a number are given.
    """
    if options.share is not None and options.per_kind is not None:
        raise UserError("--share and --per-kind both say how many pairs are made; give one of them.")
    out = options.out
    if out and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; name a new folder with --out, or remove it.")
    kinds: list[Kind] = [kind for kind in get_args(Kind) if kind in options.kinds or not options.kinds]
    return make_absolute(options.model_copy(update={"kinds": kinds}))


def run_construct(options: ConstructOptions, place: Place) -> None:
    """Write the dataset and say what was added."""
    from reward.construct.construct import construct_dataset  # here: it loads torch, which --help need not wait for

    with record(CONSTRUCT, options, place) as (_, run), show_progress(run, "making", "pairs") as show:
        out = options.out or run.folder / "dataset"
        share = SHARE if options.share is None else options.share
        counts = construct_dataset(
            options.dataset, out, options.kinds, share, options.per_kind, options.seed, show, run.licences
        )
        run.write_result({"out": str(out), **counts})
    print(f"{counts['constructed']:,} constructed pairs added to {counts['rows'] - counts['constructed']:,} labels")
    for kind, splits in counts["by_kind"].items():
        print(f"{kind}: {', '.join(f'{split} {count:,}' for split, count in splits.items())}")
    if counts["not_square"]:
        print(f"{counts['not_square']:,} images were passed over: they are not square, so no aligned faces")
    if counts["persons_unknown"]:
        print("the dataset does not say who is on its photos: each was taken for another person than the others")
    print(f"in {out}")


CONSTRUCT = Command(
    "reward construct",
    "add pairs whose answer is known to a copy of a dataset, marked as made",
    ConstructOptions,
    run_construct,
    "Beside a restored image stands one that any person would reject: its method's output of another person "
    "(other_person), the low-quality photo (input_pasted), wrong colours (colour_shift), or, for aligned faces, one "
    "blurred eye (blurred_eye) or lines over the teeth (comb_teeth). Such pairs are trained on with "
    "`constructed_weight`, and never count as labels by people.",
    settle_construct,
)

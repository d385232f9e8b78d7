"""Make low-quality photos of good ones, as a folder to import: `python -m refl degrade`."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

from pydantic import Field

from runs.hold import hold_file
from runs.options import Command, Flag, Input, Options, Output, Place
from runs.progress import show_progress


class DegradeOptions(Options):
    """Which photos are degraded, and how much."""

    folder: Annotated[Path, Input("photos"), Flag(positional=True, metavar="FOLDER")] = Field(
        description="Photos: .png, .jpg or .webp"
    )
    out: Annotated[Path, Output()] = Field(description="Folder to make")
    preset: str = Field(
        "published",
        description="published (DiffBIR's), gfpgan (milder), small (for faces of 64 pixels), or strong (CodeFormer's "
        "large one)",
    )
    seed: int = Field(0, description="Seed of what is drawn")
    workers: int | None = Field(None, ge=1, description="Photos at a time (default: one per core)")


def run_degrade(options: DegradeOptions, _place: Place) -> None:
    """Degrade the folder and say what was done."""
    from refl.faces.degrade_files import degrade_folder  # here: --help needs no OpenCV

    start, out = time.monotonic(), options.out
    lock = out.with_name(f".{out.name}.lock")  # beside the folder, which must be empty or this command's
    with show_progress(None, "checking and degrading") as show, hold_file(lock, out):
        report = degrade_folder(
            options.folder, out, options.preset, options.seed, threads=options.workers, progress=show
        )
    seconds = time.monotonic() - start
    rate = f" ({report.degraded / seconds:.1f} photos/s)" if report.degraded else ""
    print(f"{report.degraded:,} photos degraded in {seconds:.0f} s{rate}, {report.already:,} were there")
    print(f"next: python -m annotate import {shlex.quote(str(out))}")


DEGRADE = Command(
    "refl degrade",
    "make low-quality photos of good ones, with the published degradation",
    DegradeOptions,
    run_degrade,
    "Blurs, shrinks, adds noise and compresses each photo of FOLDER as restorers' training does, with parameters drawn "
    "by the seed and the photo's name. DIR gets lq/, hq/ and degradations.jsonl, ready for `python -m annotate import "
    "DIR`. Ended at any time, the same command goes on.",
)

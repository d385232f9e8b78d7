"""`python -m refl degrade`: low-quality photos of good ones, as a folder to import."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from tqdm import tqdm


def add_degrade_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`degrade`: a folder of photos to lq/ and hq/."""
    parser = commands.add_parser(
        "degrade",
        help="make low-quality photos of good ones, with the published degradation",
        description="Blurs, shrinks, adds noise and compresses each photo of FOLDER as restorers' training does, with "
        "parameters drawn by the seed and the photo's name. DIR gets lq/, hq/ and degradations.jsonl, ready for "
        "`python -m annotate import DIR`. Ended at any time, the same command goes on.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="photos: .png, .jpg or .webp")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--preset",
        default="published",
        help="published (DiffBIR's, the default), gfpgan (milder), small (for faces of 64 pixels), or strong "
        "(CodeFormer's large one)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="what is drawn (default: 0)")
    parser.add_argument("--workers", type=int, metavar="N", help="photos at a time (default: one a core)")
    parser.set_defaults(command=run_degrade)


def run_degrade(args: argparse.Namespace) -> None:
    """Degrade the folder and say what was done."""
    from db.errors import UserError
    from refl.faces.degrade_files import degrade_folder  # here: --help needs no OpenCV
    from runs.hold import hold_file

    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers is {args.workers}; give 1 or more.")
    start = time.monotonic()
    with tqdm(desc="checking and degrading", unit=" steps", disable=not sys.stderr.isatty()) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        # beside the folder, which must be empty or this command's
        with hold_file(args.out.with_name(f".{args.out.name}.lock"), args.out):
            report = degrade_folder(args.folder, args.out, args.preset, args.seed, threads=args.workers, progress=show)
    seconds = time.monotonic() - start
    rate = f" ({report.degraded / seconds:.1f} photos/s)" if report.degraded else ""
    print(f"{report.degraded:,} photos degraded in {seconds:.0f} s{rate}, {report.already:,} were there")
    print(f"next: python -m annotate import {shlex.quote(str(args.out))}")

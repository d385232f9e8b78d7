"""`python -m refl evaluate`: a base restorer against tuned ones on held-out faces, as one report."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from db.errors import UserError
from refl.restore.command import MAX_SEED, show_progress
from refl.tune.config import preset_names
from reward.model.weights_folder import add_weights_flag
from runs.store import open_database_run

MAY_CHANGE = ("out", "device", "batch_size", "weights")
"""Options that decide nothing of a report; with others of them the same evaluation goes on."""


def add_evaluate_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`evaluate`: metrics and rewards of restorers side by side."""
    parser = commands.add_parser(
        "evaluate",
        help="hold tuned restorers against the base on held-out faces",
        description="Faces with ground truth are degraded with fixed seeds; wild ones are taken as they are. Metrics "
        "whose weights cannot be had here are left out and named. Ended at any time, the same command goes on after "
        "the images that are restored and measured already.",
    )
    parser.add_argument(
        "--method",
        action="append",
        required=True,
        metavar="[NAME=]RESTORER",
        help="tiny, diffbir-v1, …, or a folder of a training; the first is the base; repeatable",
    )
    parser.add_argument("--faces", type=Path, metavar="DIR", help="sharp faces (default: the project's test split)")
    parser.add_argument("--wild", type=Path, metavar="DIR", help="low-quality aligned faces without ground truth")
    parser.add_argument(
        "--degradation",
        default="paper",
        metavar="PRESET",
        help=f"whose degradation: {', '.join(preset_names())}, or a config file (default: paper)",
    )
    parser.add_argument(
        "--reward",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="a reward model, such as frozen=FOLDER and live=RUN/tuned/reward; repeatable",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="of the noise (default: 0)")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: the restorer's own)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N faces by name of each set")
    parser.add_argument("--image-size-px", type=int, metavar="N", help="side of the faces (default: the base's own)")
    parser.add_argument(
        "--use-prompt",
        action="store_true",
        help="let reward models compare with their own prompt even where not one face has a caption; for single faces "
        "that lack one it always stands in",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="numbers inside the restorers"
    )
    parser.add_argument(
        "--batch-size", type=int, default=4, metavar="N", help="faces restored and measured at a time (default: 4)"
    )
    add_weights_flag(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the report and of the restored images (default: in DATA/evaluations)",
    )
    parser.set_defaults(command=run_evaluate)


def describe_run(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as JSON values."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name not in ("command", "data", "db", "run")
    }


def name_evaluation(args: argparse.Namespace) -> str:
    """'tiny-3f2a9c1b': the same for the same command, so that it finds its images again."""
    asked = {name: value for name, value in describe_run(args).items() if name not in MAY_CHANGE}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    base = re.sub(r"[^\w.+-]+", "-", Path(args.method[0].rpartition("=")[2]).name)
    return f"{base}-{digest}"


def check_arguments(args: argparse.Namespace) -> None:
    """That numbers are in their ranges.

    Raises:
        UserError: one is not.
    """
    for option, most in (("batch_size", 10_000), ("steps", 10_000), ("limit", None), ("image_size_px", 4096)):
        value = getattr(args, option)
        if value is not None and not 1 <= value <= (most or value):
            to = f"1 to {most:,}" if most else "1 or more"
            raise UserError(f"--{option.replace('_', '-')} is {value}; give {to}.")
    if not all(0 <= seed <= MAX_SEED for seed in args.seeds):
        raise UserError(f"--seeds are {args.seeds}; give numbers from 0 to {MAX_SEED:,}.")


def run_evaluate(args: argparse.Namespace) -> None:
    """Evaluate as a run and write the report."""
    check_arguments(args)
    config = describe_run(args)
    out = (args.out or args.data / "evaluations" / name_evaluation(args)).expanduser().absolute()
    with open_database_run(args.data, args.db, "refl evaluate", config, args.run) as run:
        from refl.evaluate.plan import make_plan  # here: these load torch, which --help need not wait for
        from refl.evaluate.run import evaluate
        from training.stopping import stop_at_next_step

        plan = make_plan(args)
        for note in plan.notes:
            print(f"note: {note}")
        with show_progress(run, "evaluating", "images") as show, stop_at_next_step() as stop_asked:
            evaluate(plan, out, config, show, stop_asked)
        run.write_result({"out": str(out)})
    print(f"report: {out / 'report.md'}")

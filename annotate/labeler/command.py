"""`python -m annotate fit` and `label`: learn from people's labels, label the rest."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from annotate.labeler.settings import FitSettings
from db.errors import UserError
from db.models import Split
from db.project import load_settings
from db.session import Database
from runs.store import open_run

PROGRESS_SECONDS = 1.0


def add_fit_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`fit`: an SVM on metric differences, from the human labels of the train split."""
    parser = commands.add_parser("fit", help="fit an SVM labeler on people's labels; report how good it is")
    for name, field in FitSettings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        words = f"{field.description} (default: {field.default})".replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag, action="store_true", help=field.description)
        else:
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else None
            parser.add_argument(flag, default=field.default, choices=choices, help=words)
    parser.set_defaults(command=run_fit)


def run_fit(database: Database, args: argparse.Namespace) -> None:
    """Fit, report, and choose the pairs that are shown next where the project asks for it."""
    from annotate.labeler.active import (
        write_shortlists,  # here: these load scikit-learn, which other commands do not need
    )
    from annotate.labeler.fit import fit

    settings = read_settings(args)
    with open_run(database, args.data, "annotate fit", settings.model_dump(), args.run) as run:
        labeler, training, summary = fit(database, run.folder, run.run_id, settings, run.progress)
        with database.read() as session:
            project = load_settings(session)
        if project.order != "random":
            write_shortlists(database, labeler, training, seed=settings.seed)
        run.write_result({"out": str(run.folder), "labeler": summary["labeler"]})
    print(format_fit(summary))
    print(f"report: {run.folder}")


def read_settings(args: argparse.Namespace) -> FitSettings:
    """The command's options, checked.

    Raises:
        UserError: an option is out of range.
    """
    try:
        return FitSettings.model_validate({name: getattr(args, name) for name in FitSettings.model_fields})
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(
            f"--{str(fault['loc'][0]).replace('_', '-')}: {fault['msg']}, got {fault['input']!r}"
        ) from error


def format_fit(summary: dict[str, Any]) -> str:
    """The key numbers of a fit as text for a terminal."""
    lines = [
        f"{summary['labeler']}: {summary['kernel']} SVM on {len(summary['columns'])} metrics, trained on "
        f"{summary['n_train']} human labels of {summary['n_sources']} photos",
        f"accuracy on photos not seen {describe_interval(summary['accuracy'])}, "
        f"measured on {summary['n_measured']} labels",
        summary["verdict"],
        *([summary["learning"]] if "learning" in summary else []),
        f"human ceiling {describe_interval(summary['people']['ceiling'], 'value')}; same answer when shown again "
        f"{describe_interval(summary['people']['repeats'], 'value')}",
        f"calibration error {summary['calibration_error']:.3f}, Brier score {summary['brier']:.3f}",
        f"test split, scored once: {describe_interval(summary['test'])} on {summary['test']['n']} labels",
        describe_target(summary["target"]),
        *summary["notes"],
    ]
    if summary["simulated"]:
        lines.insert(1, "SIMULATED annotators are among the labels: these are no figures about people")
    return "\n".join(lines)


def describe_interval(values: dict[str, Any], name: str = "accuracy") -> str:
    """'0.712 [0.650, 0.770]', 'not known' where there is too little."""
    if values[name] is None or values[name] != values[name]:
        return "not known"
    low, high = values.get("low"), values.get("high")
    known = low is not None and low == low
    return f"{values[name]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if known else "")


def describe_target(target: dict[str, Any]) -> str:
    """What labelling at the target accuracy is expected to give."""
    wanted = f"target accuracy {target['target_accuracy']:g}"
    if target["threshold"] is None:
        return f"{wanted} is not reached at any coverage: `label` would label nothing"
    return (
        f"{wanted}: the surest {target['coverage']:.0%} of the pairs would be labelled, with held-out accuracy "
        f"{describe_interval(target)}"
    )


def add_label_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`label`: label the pairs that nobody judged with a fitted labeler."""
    parser = commands.add_parser("label", help="label the unjudged pairs with a fitted labeler")
    parser.add_argument("--labeler", default="latest", metavar="NAME", help="name, or run number (default: latest)")
    parser.add_argument("--target-accuracy", type=float, metavar="A", help="default: that of the fit")
    parser.add_argument("--splits", action="extend", nargs="+", default=[], choices=[split.value for split in Split])
    parser.add_argument(
        "--methods",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only pairs of two of these methods",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be labelled")
    parser.set_defaults(command=run_label)


def run_label(database: Database, args: argparse.Namespace) -> None:
    """Label, and say how many pairs got a label and how many flipped."""
    from annotate.labeler.file import find_labeler
    from annotate.labeler.label import Filter, label_pairs

    with database.read() as session:
        stored = find_labeler(session, args.data, args.labeler)
    target = args.target_accuracy or float(stored.provenance["settings"]["target_accuracy"])
    if not 0.5 < target < 1:
        raise UserError(f"--target-accuracy: {target:g} is not between 0.5 and 1.")
    chosen = Filter(tuple(Split(name) for name in args.splits), tuple(args.methods))
    config = {
        "labeler": stored.name,
        "target_accuracy": target,
        "splits": args.splits,
        "methods": args.methods,
        "dry_run": args.dry_run,
    }
    last = 0.0
    with open_run(database, args.data, "annotate label", config, args.run) as run:

        def progress(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= PROGRESS_SECONDS or done == total:
                last = time.monotonic()
                run.progress(done, total)

        report = label_pairs(database, stored, target, chosen, dry_run=args.dry_run, progress=progress)
        result = {**asdict(report), "coverage": report.coverage, "dry_run": args.dry_run}
        run.write_result(result)
    print(format_label(result))


def format_label(result: dict[str, Any]) -> str:
    """What labelling did, as text for a terminal."""
    target = f"target accuracy {result['target_accuracy']:g}"
    if result["threshold"] is None:
        return f"{result['labeler']} reaches the {target} at no coverage on held-out pairs: nothing was labelled"
    would = "would be " if result["dry_run"] else ""
    return (
        f"{result['labelled']:,} of {result['pairs']:,} unjudged pairs {would}labelled by {result['labeler']} at "
        f"{target} (confidence {result['threshold']:.3f} and above): coverage {result['coverage']:.1%}, expected "
        f"{result['expected_coverage']:.1%}; it abstains on {result['abstained']:,}, {result['unmeasured']:,} lack a "
        f"metric value\n{result['added']:,} new, {result['flipped']:,} flipped, {result['changed']:,} changed without "
        f"flipping, {result['withdrawn']:,} withdrawn, {result['unchanged']:,} as they were"
    )

"""Learn from people's labels and label the rest: `python -m annotate fit` and `label`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field

from annotate.labeler.settings import FitSettings
from db.models import Picked, Split
from db.project import load_settings
from runs.options import Command, Input, Options, Place
from runs.progress import show_progress
from runs.store import record

LATEST = "latest"
UNKNOWN_GROUPS = (
    "This labeler is of an earlier version, which did not keep whose photos the answers are of: they were counted as "
    "if each were of another person. Fit anew for a confidence that holds."
)

NO_SPREAD = (
    "The order is spread, but no waiting pair has a stored spread: score with a reward of several members (python -m "
    "reward score), then fit again."
)


def run_fit(settings: FitSettings, place: Place) -> None:
    """Fit, report, and choose the pairs that are shown next where the project asks for it."""
    from annotate.labeler.active import write_shortlists  # here: these load scikit-learn, which others do not need
    from annotate.labeler.fit import fit

    with record(FIT, settings, place) as (database, run):
        labeler, training, summary = fit(database, run.folder, run.run_id, settings, run.progress)
        with database.read() as session:
            project = load_settings(session)
        if project.order != "random":
            by_spread = project.order == "spread"
            listed = write_shortlists(database, labeler, training, seed=settings.seed, by_spread=by_spread)
            if by_spread and not listed[Picked.disagreement]:
                summary["notes"] = [*summary["notes"], NO_SPREAD]
        run.write_result({"out": str(run.folder), "labeler": summary["labeler"]})
    print(format_fit(summary))
    print(f"report: {run.folder}")


def format_fit(summary: dict[str, Any]) -> str:
    """The key numbers of a fit as text for a terminal."""
    lines = [
        f"{summary['labeler']}: {summary['kernel']} SVM on {len(summary['columns'])} metrics, trained on "
        f"{summary['n_train']} human labels of {summary['n_sources']} photos"
        + (f" of {summary['n_groups']} people" if summary["n_groups"] < summary["n_sources"] else ""),
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
    """What labelling at the target accuracy is expected to give, and what is promised of it."""
    wanted = f"target accuracy {target['target_accuracy']:g} with confidence {target['confidence']:g}"
    if target["threshold"] is None:
        return (
            f"{wanted} cannot be promised of any share of the pairs from {target['n_answers']:,} held-out answers: "
            "`label` would label nothing. Judge more pairs, of more photos, or ask for less"
        )
    return (
        f"{wanted}: the surest {target['coverage']:.0%} of the pairs would be labelled, with held-out accuracy "
        f"{describe_interval(target)}, at least {target['bound']:.3f} with that confidence. That holds for pairs drawn "
        "as the judged ones were, of people or photos not judged; not for other methods, nor for each part of the pairs"
    )


class LabelOptions(Options):
    """Which labeler labels which pairs."""

    labeler: Annotated[str, Input("labeler", "Labeler")] = Field(
        LATEST, min_length=1, description="Name or run number of a fit"
    )
    target_accuracy: float | None = Field(
        None, gt=0.5, lt=1, description="Target accuracy of the labels (default: that of the fit)"
    )
    confidence: float | None = Field(
        None, gt=0.5, lt=1, description="Confidence that the target is kept (default: that of the fit)"
    )
    splits: list[Split] = Field([], description="Only pairs of these splits (default: all)")
    methods: list[str] = Field([], description="Only pairs of two of these methods (default: all)")
    dry_run: bool = Field(False, description="Only count what would be labelled")


def run_label(options: LabelOptions, place: Place) -> None:
    """Label, and say how many pairs got a label and how many flipped."""
    from annotate.labeler.file import find_labeler
    from annotate.labeler.label import Filter, label_pairs

    with record(LABEL, options, place) as (database, run), show_progress(run, "labelling", "pairs") as show:
        with database.read() as session:
            stored = find_labeler(session, place.data, options.labeler)
        fitted = {"confidence": FitSettings().confidence, **stored.provenance["settings"]}  # earlier fits had none
        target = options.target_accuracy or float(fitted["target_accuracy"])
        confidence = options.confidence or float(fitted["confidence"])
        chosen = Filter(tuple(options.splits), tuple(options.methods))
        report = label_pairs(database, stored, target, confidence, chosen, dry_run=options.dry_run, progress=show)
        result = {**asdict(report), "coverage": report.coverage, "dry_run": options.dry_run}
        run.write_result(result)
    print(format_label(result))


def format_label(result: dict[str, Any]) -> str:
    """What labelling did, as text for a terminal."""
    target = f"target accuracy {result['target_accuracy']:g} with confidence {result['confidence']:g}"
    if result["threshold"] is None:
        return f"{result['labeler']} cannot promise {target} of any share of the pairs: nothing was labelled"
    would = "would be " if result["dry_run"] else ""
    return (
        f"{result['labelled']:,} of {result['pairs']:,} unjudged pairs {would}labelled by {result['labeler']} at "
        f"{target} (those of which it is at least {result['threshold']:.3f} sure): coverage {result['coverage']:.1%}, "
        f"expected {result['expected_coverage']:.1%}; it abstains on {result['abstained']:,}, "
        f"{result['unmeasured']:,} lack a metric value\n{result['added']:,} new, {result['flipped']:,} flipped, "
        f"{result['changed']:,} changed without flipping, {result['withdrawn']:,} withdrawn, "
        f"{result['unchanged']:,} as they were" + ("" if result["knows_groups"] else f"\n{UNKNOWN_GROUPS}")
    )


FIT = Command("annotate fit", "fit an SVM labeler on people's labels; report how good it is", FitSettings, run_fit)
LABEL = Command("annotate label", "label the unjudged pairs with a fitted labeler", LabelOptions, run_label)

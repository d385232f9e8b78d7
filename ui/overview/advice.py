"""Say the one thing to do next, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from annotate.labeler.settings import MIN_ANSWERS
from db.models import Run
from runs.file_cache import read_json, read_number, read_part
from runs.store import artifact_of, run_folder
from ui.overview.stages import Link, Project

NEW_ANSWERS = 50
"""Judgments after which another fit of the labeler pays."""


@dataclass(frozen=True)
class Advice:
    """What to do next."""

    text: str
    """One sentence: what, and why."""
    link: Link
    also: Link | None = None
    """Another way, such as the whole round at once."""


def advise(project: Project, data: Path) -> Advice:
    """The first of the loop's steps that is not done, from photos to the next round.

    What goes on comes before what could be started: two runs of one stage would not agree.
    """
    return _before_answers(project) or _of_live_runs(project) or _after_answers(project, data)


def _before_answers(project: Project) -> Advice | None:
    """What has to be there before anybody can judge."""
    live = {run.kind for run in project.latest.live}
    if not project.sources and "annotate import" not in live:
        return Advice(
            "Import photos of faces: a folder with lq/, and hq/ where you have the ground truth.",
            Link("Import photos", "/admin/data"),
        )
    if not project.methods and not live & {"annotate import", "refl restore"}:
        return Advice(
            "Restore the photos with two or more methods or seeds: a pair needs two restored images of one photo.",
            Link("Restore photos", "/admin/restore"),
            Link("Import restored images", "/admin/data"),
        )
    if project.methods and not project.pairs and not live & {"refl restore", "annotate pair"}:
        if not project.unpaired:
            return Advice(
                "Restore the photos by one more method or seed: each has one restored image, and a pair needs two.",
                Link("Restore photos", "/admin/restore"),
            )
        return Advice(
            "Make pairs of the restored images, so that people can judge them.", Link("Make pairs", "/admin/data")
        )
    return None


def _of_live_runs(project: Project) -> Advice | None:
    """What people can do while runs go on."""
    if not project.latest.live:
        return None
    run = project.latest.live[0]
    more = len(project.latest.live) - 1
    goes = f"Run {run.id} ({run.kind}) goes on" + (f", and {more} more wait" if more else "")
    watch = Link("Watch it", f"/admin/runs#run={run.id}")
    if project.waiting and project.pairs:
        return Advice(
            f"{goes}; meanwhile judge pairs: {project.waiting:,} wait for an answer.", Link("Judge", "/"), watch
        )
    return Advice(f"{goes}; this page says what comes next when it has ended.", watch)


def _after_answers(project: Project, data: Path) -> Advice:
    latest = project.latest
    fitted, exported = latest.id_of("annotate fit"), latest.id_of("annotate export")
    rewarded, tuned = latest.id_of("reward train"), latest.id_of("refl train")
    round_link = Link(f"Or queue all of round {project.round_no}", "/admin/train#round=next")
    if project.unpaired:
        return Advice(
            "Make pairs of the new restored images: they are in none yet, so nobody can judge them.",
            Link("Make pairs", "/admin/data"),
        )
    if project.learnable < MIN_ANSWERS:
        return _judge_more(project)
    if project.unmeasured and not fitted:
        return Advice(
            f"Measure the restored images: {project.unmeasured:,} lack metric values, from which the labeler learns.",
            Link("Measure", "/admin/metrics"),
            round_link,
        )
    if not fitted or (project.since_fit >= NEW_ANSWERS and fitted > exported):
        since = f"{project.since_fit:,} answers came since the last fit" if fitted else "there are answers enough"
        return Advice(f"Fit the labeler: {since}.", Link("Fit the labeler", "/admin/auto-annotate"), round_link)
    if fitted > latest.id_of("annotate label") and project.waiting and _reaches_target(project):
        return Advice(
            f"Label the unjudged pairs: the labeler reaches its target accuracy, and {project.waiting:,} pairs have no "
            "answer.",
            Link("Label", "/admin/auto-annotate"),
            round_link,
        )
    if not exported or max(fitted, latest.id_of("annotate label")) > exported:
        return Advice(
            "Export the labels as a dataset: a reward model learns from it.",
            Link("Export a dataset", "/admin/export"),
            round_link,
        )
    if exported > rewarded:
        return Advice(
            f"Train a reward model on the dataset of run {exported}.",
            _train("reward train", dataset=artifact_of(data, latest.finished["annotate export"])),
        )
    if rewarded > tuned:
        return _tune(project, data)
    return _after_tuning(project, data)


def _judge_more(project: Project) -> Advice:
    missing = MIN_ANSWERS - project.learnable
    if project.waiting or project.in_part:
        return Advice(
            f"Judge pairs: the labeler learns from {MIN_ANSWERS} decided pairs of the split train, and {missing} are "
            "missing.",
            Link("Judge", "/"),
        )
    return Advice(
        f"Import more photos or restore them by another method: all pairs are judged, and the labeler needs {missing} "
        "decided pairs more.",
        Link("Restore photos", "/admin/restore"),
        Link("Import photos", "/admin/data"),
    )


def _reaches_target(project: Project) -> bool:
    return read_number(read_part(project.fit, "target"), "threshold") is not None


def _tune(project: Project, data: Path) -> Advice:
    run = project.latest.finished["reward train"]
    best = read_part(read_json(run_folder(data, run.id) / "result.json"), "best")
    accuracy, low = read_number(best, "accuracy"), read_number(best, "low")
    folder = artifact_of(data, run)
    tune = _train("refl train", reward=folder / "best" if folder else None)
    if accuracy is not None and low is not None and low <= 0.5 and project.waiting:
        return Advice(
            f"Judge more pairs: the reward model of run {run.id} is right {accuracy:.0%} of the time, and its "
            f"interval begins at {low:.0%}, no better than a coin. Tuning would follow noise.",
            Link("Judge", "/"),
            Link("Tune with it all the same", tune.href),
        )
    return Advice(f"Tune a restorer with the reward model of run {run.id}.", tune)


def _after_tuning(project: Project, data: Path) -> Advice:
    run = project.latest.finished["refl train"]
    folder = artifact_of(data, run)
    hacking = read_number(read_json(run_folder(data, run.id) / "result.json"), "hacking")
    look = Link("Look at its samples", f"/admin/runs#run={run.id}")
    if not _is_restored_with(project, run, folder):
        restore = _train("refl restore", method=folder / "tuned" if folder else None)
        if hacking is not None:
            return Advice(
                f"Look at the samples of run {run.id} before you use it: its monitor saw the reward hacked from step "
                f"{hacking:,} on.",
                look,
                Link("Restore with it all the same", restore.href),
            )
        return Advice(
            f"Restore the photos with the tuned restorer of run {run.id}, and judge what it makes.", restore, look
        )
    plan, judge = Link("Plan the next round", "/admin/train#round=next"), Link("Judge", "/")
    if project.waiting and project.since_fit < NEW_ANSWERS:
        return Advice(
            f"Judge the new pairs: {project.waiting:,} wait, and only people can tell whether the restorer is better.",
            judge,
            Link("See the ranking", "/admin/report"),
        )
    return Advice(
        f"Begin round {project.round_no}: the loop learns from the {project.since_fit:,} answers since the last fit.",
        plan,
        judge if project.waiting else Link("See the ranking", "/admin/report"),
    )


def _is_restored_with(project: Project, run: Run, folder: Path | None) -> bool:
    """Whether a later restoring used what a run tuned."""
    restored = project.latest.finished.get("refl restore")
    if restored is None or restored.id < run.id or folder is None:
        return False
    return any(str(folder.absolute()) in made["value"] for made in restored.inputs or [])


def _train(kind: str, **inputs: Path | None) -> Link:
    """Open the Train page with a form that is filled in."""
    words = {"reward train": "Train a reward model", "refl train": "Tune a restorer", "refl restore": "Restore with it"}
    filled = "".join(f"&{name}={quote(str(path.absolute()))}" for name, path in inputs.items() if path)
    return Link(words[kind], f"/admin/train#kind={quote(kind)}{filled}")

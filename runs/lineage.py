"""Trace each labeler, dataset, reward model, restorer and method to its judgments, and to what it became.

A run whose recorded inputs lie inside what another run made is its child, and labels name the labeler that made them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.models import Candidate, Method, Pair, Run, RunState, Task, TaskCandidate
from db.records import SIMULATED
from runs.file_cache import read_file, read_json, read_number, read_part
from runs.licences import LABELER
from runs.lineage_judgments import NONE, Hashes, Judgments, count_all, find_simulated, parse_judgments, parse_labeler
from runs.made_from import guess_paths, list_inputs
from runs.store import LIVE_STATES, artifact_of, run_folder

GROUPS = {
    "annotate fit": "labeler",
    "annotate export": "dataset",
    "reward construct": "dataset",
    "reward train": "reward",
    "reward set": "reward",
    "refl train": "restorer",
    "refl pretrain": "restorer",
}
"""Kinds of runs that make something that others are made of; all other kinds use it."""


@dataclass
class Node:
    """Something that was made, or a run that used it."""

    id: str
    """'run-7', or 'method-3'."""
    group: str
    """labeler, dataset, reward, restorer, method; use for a run that made none of these."""
    title: str
    kind: str
    run: int | None
    state: str
    path: str | None = None
    parents: list[str] = field(default_factory=list)
    own: Judgments = field(default_factory=Judgments)
    labels: dict[str, int] = field(default_factory=dict)
    """Labels by origin, of a dataset's or those that a labeler was trained on."""
    simulated: bool = False
    note: str = ""


def load_lineage(session: Session, data: Path) -> dict[str, Any]:
    """`judgments` of the whole project, and `nodes`, each with its parents and what lies behind it, oldest first."""
    runs = session.scalars(select(Run).order_by(Run.id)).all()
    nodes = make_nodes(runs, data, find_simulated(session))
    nodes |= _method_nodes(session, runs, data)
    return {"judgments": count_all(session), "nodes": [_to_json(node, nodes) for node in nodes.values()]}


def make_nodes(runs: Sequence[Run], data: Path, simulated: Hashes = NONE) -> dict[str, Node]:
    """The runs that made or used something, by node id, each with its parents.

    Args:
        runs: in the order of their ids.
        simulated: judgments of simulated annotators.
    """
    artifacts = {run.id: artifact_of(data, run) for run in runs}
    folders = find_folders(runs, artifacts, data)
    found: dict[str, Node] = {}
    for run in runs:
        artifact = artifacts[run.id]
        made = run.state in (*LIVE_STATES, RunState.finished) or (artifact is not None and artifact.exists())
        result = read_json(run_folder(data, run.id) / "result.json")
        parents = sorted(find_parents(run, folders) | _labelers(run, result))
        group = GROUPS.get(run.kind, "use") if made else "use"
        if group == "use" and not parents:
            continue
        node = Node(
            id=f"run-{run.id}",
            group=group,
            title=_title(run, artifact, result),
            kind=run.kind,
            run=run.id,
            state=run.state.value,
            path=str(artifact) if artifact else None,
            parents=[f"run-{parent}" for parent in parents],
        )
        if group == "labeler":
            _describe_labeler(node, run_folder(data, run.id), simulated)
        elif group == "dataset":
            _describe_dataset(node, artifact, result)
        found[node.id] = node
    for node in found.values():
        node.parents = [parent for parent in node.parents if parent in found]
    return found


@dataclass(frozen=True)
class Folders:
    """Whose folder is whose; paths are absolute texts, for there are many of them."""

    owners: dict[str, list[int]]
    """Folder -> ids of the runs that it belongs to."""
    own: dict[int, set[str]]
    """Run id -> its own folder, and where it puts what it makes."""


def find_folders(runs: Iterable[Run], artifacts: Mapping[int, Path | None], data: Path) -> Folders:
    """The folders of all runs.

    A folder that the data folder lies in has no owner, or all would come from that run.
    """
    found = Folders({}, {})
    root = os.path.abspath(data)
    for run in runs:
        artifact = artifacts[run.id]
        folders = {os.path.join(root, "runs", str(run.id))} | (
            {os.path.abspath(os.path.expanduser(artifact))} if artifact else set()
        )
        found.own[run.id] = folders
        for folder in folders:
            if f"{root}/" != f"{folder}/" and not f"{root}/".startswith(f"{folder.rstrip('/')}/"):
                found.owners.setdefault(folder, []).append(run.id)
    return found


def find_parents(run: Run, folders: Folders) -> set[int]:
    """Runs before this one inside whose folders lies what it is made from."""
    return find_makers(list_inputs(run), run.id, folders)


def find_makers(paths: Iterable[str], run_id: int, folders: Folders) -> set[int]:
    """Runs before one inside whose folders these paths lie; values that are no paths lie in none.

    Args:
        run_id: of the run that is made from them.
    """
    found = set()
    for path in filter(os.path.isabs, paths):
        folder = os.path.normpath(path)
        while folder not in folders.owners and folder != os.path.dirname(folder):
            folder = os.path.dirname(folder)
        before = [owner for owner in folders.owners.get(folder, []) if owner < run_id]
        if before and folder not in folders.own[run_id]:
            found.add(before[-1])
    return found


def _labelers(run: Run, result: dict[str, Any]) -> set[int]:
    """Fits whose labeler labelled, or made the labels of a dataset."""
    named = [run.config.get("labeler"), result.get("labeler") if run.kind == "annotate label" else None]
    if run.kind == "annotate export":
        named += result.get("made_by") or {}
    found = {int(match[1]) for text in named if (match := LABELER.match(str(text)))}
    return {number for number in found if number < run.id}


def _title(run: Run, artifact: Path | None, result: dict[str, Any]) -> str:
    if run.kind == "annotate fit":
        return str(result.get("labeler", f"labeler of run {run.id}"))
    if run.kind == "annotate export":
        return str(run.config.get("name") or "dataset")
    return artifact.name if artifact is not None and run.kind in GROUPS else run.kind


def _describe_labeler(node: Node, folder: Path, simulated: Hashes) -> None:
    summary = read_json(folder / "summary.json")
    trained_on = read_file(folder / "labeler.json", parse_labeler)
    node.simulated = bool(summary.get("simulated"))
    node.labels = {"human": int(read_number(summary, "n_train") or 0)}
    if trained_on is not None:
        of_programs = np.isin(trained_on, simulated)
        node.own = Judgments(trained_on[~of_programs], trained_on[of_programs])


def _describe_dataset(node: Node, artifact: Path | None, result: dict[str, Any]) -> None:
    origins, judgments = read_part(result, "origins"), int(read_number(result, "judgments") or 0)
    node.labels = {name: int(count) for name in origins if (count := read_number(origins, name)) is not None}
    node.simulated = any(SIMULATED in name for name in read_part(result, "made_by"))
    node.note = ", ".join(sorted(read_part(result, "methods")))
    read = read_file(artifact / "judgments.jsonl", parse_judgments) if artifact else None
    if read is not None:
        node.own = read
    elif not result.get("simulated_annotators"):
        node.own = Judgments(at_least=(judgments, 0))
    else:  # whose they were is not known any more: programs' are never counted as people's
        node.own = Judgments(at_least=(0, judgments))


def _method_nodes(session: Session, runs: Sequence[Run], data: Path) -> dict[str, Node]:
    """The methods, children of the runs whose weights they are."""
    folders = find_folders(runs, {run.id: artifact_of(data, run) for run in runs}, data)
    makers: dict[str, set[int]] = {}
    for run in runs:
        if run.kind != "refl restore":
            continue
        names = read_json(run_folder(data, run.id) / "result.json").get("methods") or ()
        for name, asked in zip(names, run.config.get("methods") or (), strict=False):
            makers.setdefault(str(name), set()).update(find_makers(guess_paths(asked, run.cwd), run.id, folders))
    counted_images = select(Candidate.method_id, func.count()).group_by(Candidate.method_id)
    images = {method_id: count for method_id, count in session.execute(counted_images)}  # noqa: C416, a result has keys of its own
    judged: dict[int, int] = {}
    for side in (Pair.a_id, Pair.b_id):
        counted = (
            select(Candidate.method_id, func.sum(Pair.judgment_count))
            .join(Pair, side == Candidate.id)
            .where(Pair.judgment_count > 0)
            .group_by(Candidate.method_id)
        )
        for method_id, count in session.execute(counted):
            judged[method_id] = judged.get(method_id, 0) + int(count)
    of_tasks = (
        select(Candidate.method_id, func.sum(Task.judgment_count))
        .join(TaskCandidate, TaskCandidate.candidate_id == Candidate.id)
        .join(Task, Task.id == TaskCandidate.task_id)
        .where(Task.judgment_count > 0)
        .group_by(Candidate.method_id)
    )
    for method_id, count in session.execute(of_tasks):
        judged[method_id] = judged.get(method_id, 0) + int(count)
    return {
        f"method-{method.id}": Node(
            id=f"method-{method.id}",
            group="method",
            title=method.name,
            kind="method",
            run=method.run_id,
            state="",
            parents=[f"run-{maker}" for maker in sorted(makers.get(method.name, ()))],
            note=f"{images.get(method.id, 0):,} images, in {judged.get(method.id, 0):,} judgments",
        )
        for method in session.scalars(select(Method).order_by(Method.id))
    }


def ancestors(node: Node, nodes: Mapping[str, Node]) -> list[Node]:
    """All that a node was made from, itself not among them."""
    found: dict[str, Node] = {}
    waiting = list(node.parents)
    while waiting:
        parent = waiting.pop()
        if parent in nodes and parent not in found:
            found[parent] = nodes[parent]
            waiting += nodes[parent].parents
    return list(found.values())


def _to_json(node: Node, nodes: Mapping[str, Node]) -> dict[str, Any]:
    """A node with what lies behind it: judgments of all its ancestors, each once, and their datasets' labels."""
    behind = ancestors(node, nodes)
    judgments = node.own
    for one in behind:
        judgments = judgments.join(one.own)
    labels = dict(node.labels)
    if not labels:
        datasets = [one for one in behind if one.group == "dataset"]
        within = {older.id for one in datasets for older in ancestors(one, nodes)}  # their labels are in a newer one
        for one in datasets:
            if one.id not in within:
                for origin, count in one.labels.items():
                    labels[origin] = labels.get(origin, 0) + count
    counts = judgments.count()
    return {
        "id": node.id,
        "group": node.group,
        "title": node.title,
        "kind": node.kind,
        "run": node.run,
        "state": node.state,
        "path": node.path,
        "parents": node.parents,
        "judgments": counts,
        "labels": labels,
        "simulated": node.simulated or any(one.simulated for one in behind) or counts["simulated"] > 0,
        "note": node.note,
    }

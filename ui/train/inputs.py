"""List the datasets, reward models, restorers and labelers of this project that a run can start from.

Nothing here loads a model: a checkpoint is known by the files in its folder.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

import refl.tune.config
import reward.model.config
from db.errors import UserError
from db.models import Run, RunState
from metrics.lists import MetricError, list_names, load_metric_list
from refl.pretrain.config import PHASES
from refl.restore.choices import NEEDS, list_methods
from refl.restorers.record import is_tuned
from refl.tune.judge_names import check_judge, is_judge
from runs.file_cache import read_part
from runs.options import Setting, without_name
from runs.store import artifact_of, run_folder
from ui.html import read_result

MAX_RUNS = 200
PUBLISHED_REWARDS = tuple(
    tomllib.loads((reward.model.config.FOLDER.parent / "weights.toml").read_text(encoding="utf-8"))
)
LATEST = "latest"


@dataclass(frozen=True)
class Choice:
    """Something to choose: what the command is given, and what the page calls it."""

    value: str
    words: str


JUDGES = (
    Choice("metric:psnr", "metric:psnr, or another metric; for gdpo and grpo"),
    Choice("identity", "identity, whether it is the same person; for gdpo and grpo"),
    Choice("people", "people, who answer on the Label page; for gdpo and grpo"),
)
"""Rewards of a restorer's training that have no gradient."""


def list_choices(session: Session, data: Path) -> dict[str, list[Choice]]:
    """All there is to choose, by what it is; the newest first."""
    runs = session.scalars(select(Run).order_by(Run.id.desc()).limit(MAX_RUNS)).all()
    rewards = [*_rewards(data, runs), *(Choice(name, f"{name}, published") for name in PUBLISHED_REWARDS)]
    return {
        "datasets": list(_datasets(data, runs)),
        "rewards": rewards,
        "restorers": list(_restorers(data, runs)),
        "judges": [*rewards, *JUDGES],
        "labelers": [Choice(LATEST, "the latest"), *_labelers(data, runs)],
        "faces": list(_faces(runs)),
        "metrics": [Choice(name, name) for name in list_names()],
        "phases": [Choice(name, name) for name in PHASES],
        "degradations": [Choice(name, name) for name in refl.tune.config.preset_names()],
    }


def _datasets(data: Path, runs: Any) -> Iterator[Choice]:
    for run in runs:
        folder = artifact_of(data, run) if run.kind in ("annotate export", "reward construct") else None
        if folder and (folder / "pairs.jsonl").is_file():
            rows = read_result(data, run.id).get("rows")
            words = f"run {run.id}: {rows:,} labelled pairs" if isinstance(rows, int) else f"run {run.id}"
            yield Choice(str(folder.absolute()), words)


def _rewards(data: Path, runs: Any) -> Iterator[Choice]:
    seen = set()
    for run in runs:
        folder = artifact_of(data, run) if run.kind in ("reward train", "reward set") else None
        if folder and folder not in seen and (folder / "set.json").is_file():
            seen.add(folder)
            yield Choice(str(folder.absolute()), f"run {run.id}: {folder.name}, a set of rewards")
        if not folder or folder in seen or not (folder / "best" / "config.json").is_file():
            continue
        seen.add(folder)
        record = read_json(folder / "best" / "training.json")
        accuracy = read_part(record, "validation").get("accuracy")
        known = f", accuracy {accuracy:.3f}" if isinstance(accuracy, float) else ""
        yield Choice(
            str((folder / "best").absolute()),
            f"run {run.id}: {folder.name} after {record.get('step', '?')} steps{known}{_goes_on(run)}",
        )


def _restorers(data: Path, runs: Any) -> Iterator[Choice]:
    made_by: dict[str, str] = {}
    for run in runs:
        folder = artifact_of(data, run) if run.kind in ("refl train", "refl pretrain") else None
        made = folder / "tuned" if folder and run.kind == "refl train" else folder
        if folder and made and is_restorer(made):
            how = "tuned" if run.kind == "refl train" else "pretrained"
            made_by.setdefault(str(made.resolve()), f"run {run.id}: {folder.name}, {how}{_goes_on(run)}")
    known = {choice.asked: choice.words for choice in list_methods(data)} | made_by
    named = [Choice(asked, words) for asked, words in known.items() if "/" not in asked]
    return iter([*named, *(Choice(asked, words) for asked, words in known.items() if "/" in asked)])


def _labelers(data: Path, runs: Any) -> Iterator[Choice]:
    for run in runs:
        if run.kind == "annotate fit" and run.state is RunState.finished:
            name = read_result(data, run.id).get("labeler")
            if name and (run_folder(data, run.id) / "labeler.json").is_file():
                yield Choice(str(name), str(name))


def _faces(runs: Any) -> Iterator[Choice]:
    """The folders of faces that earlier runs had."""
    seen = set()
    for run in runs:
        asked = run.config.get("faces") if run.kind.startswith("refl ") else None
        for folder in asked if isinstance(asked, list) else [asked]:
            if isinstance(folder, str) and folder not in seen and Path(folder).is_dir():
                seen.add(folder)
                yield Choice(folder, f"{Path(folder).name}, of run {run.id}")


def _goes_on(run: Run) -> str:
    return " (goes on)" if run.state in (RunState.running, RunState.stopping) else ""


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def is_restorer(folder: Path) -> bool:
    """As `refl.restorers.load.is_restorer_folder`, which would load torch: a training wrote it, or it is a tiny one."""
    return is_tuned(folder) or all((folder / name).is_file() for name in ("config.json", "model.safetensors"))


def check_dataset(value: str, _data: Path) -> str | None:
    """What is wrong with a dataset folder; None where nothing is."""
    folder = Path(value).expanduser()
    if not folder.is_dir():
        return f"There is no folder {value}."
    if not (folder / "pairs.jsonl").is_file() and not any(folder.glob("*.json")):
        return "This folder is no dataset: it has no pairs.jsonl."
    return None


def check_reward(value: str, _data: Path) -> str | None:
    """What is wrong with what `reward.score.scorer.load_scorer` is to load; NAME=… may stand before it."""
    what = without_name(value)
    path = Path(what).expanduser()
    if path.is_dir():
        known = (path / "set.json").is_file()
        known = known or any((folder / "config.json").is_file() for folder in (path, path / "best"))
        return None if known else "This folder is no reward model: it has no config.json, nor a best/ with one."
    if path.is_file() or what in PUBLISHED_REWARDS or what in reward.model.config.preset_names():
        return None
    return f"There is no file or folder {what}, and no model of that name."


def check_reward_or_judge(value: str, data: Path) -> str | None:
    """As `check_reward`, of what may also be a judge without gradient, such as metric:psnr."""
    if not is_judge(value):
        return check_reward(value, data)
    try:
        check_judge(value)
    except UserError as error:
        return str(error)
    return None


def check_restorer(value: str, _data: Path) -> str | None:
    """What is wrong with what `refl.restorers.load.load_restorer` is to load; NAME=… may stand before it."""
    what = without_name(value)
    kind, _, file = what.partition(":")
    if what in NEEDS or (file and any(name.partition(":")[0] == kind for name in NEEDS if name != "tiny")):
        return None
    path = Path(what).expanduser()
    if not path.is_dir():
        return f"There is no folder {what}, and no restorer of that name."
    return None if is_restorer(path) else "This folder is no restorer: no training of one wrote it."


def check_tunable(value: str, data: Path) -> str | None:
    """As `check_restorer`, of one that is to be trained."""
    if value.startswith(("feedforward:", "onnx:")):
        return (
            "It has no noise to learn from; choose tiny, diffbir-v1, diffbir-v2.1 or a one-step one, such as osediff."
        )
    if value == "pmrf":
        return "It is restored by and not tuned; choose tiny, diffbir-v1, diffbir-v2.1 or a one-step one."
    return check_restorer(value, data)


def check_folder(value: str, _data: Path) -> str | None:
    """That the folder is there."""
    return None if Path(value).expanduser().is_dir() else f"There is no folder {value}."


def check_path(value: str, _data: Path) -> str | None:
    """That the file or folder is there."""
    return None if Path(value).expanduser().exists() else f"There is no file or folder {value}."


def check_out(value: str, _data: Path) -> str | None:
    """That it can be a folder."""
    path = Path(value).expanduser()
    return f"{value} is a file; name a folder." if path.exists() and not path.is_dir() else None


def check_labeler(value: str, data: Path) -> str | None:
    """That there is a labeler of that name, of that run, or any."""
    number = value.split("-")[1] if value.startswith("svm-") and value.count("-") == 2 else value
    found = (data / "runs").glob(f"{'*' if value == LATEST else number}/labeler.json") if number.isalnum() else ()
    if any(True for _ in found):
        return None
    return "There is no labeler yet; fit the SVM first." if value == LATEST else "No such labeler."


def check_metrics(value: str, _data: Path) -> str | None:
    """That it is a list's name or a list."""
    try:
        load_metric_list(value)
    except MetricError as error:
        return str(error)
    return None


def check_phase(value: str, _data: Path) -> str | None:
    """That it is a phase of a pretraining."""
    return None if value in PHASES else f"Choose one of {', '.join(PHASES)}."


def check_degradation(value: str, _data: Path) -> str | None:
    """That it is a preset of ReFL's, or a file."""
    if value in refl.tune.config.preset_names():
        return None
    return check_path(value, _data)


Check = Callable[[str, Path], str | None]
"""(value, data folder) -> what is wrong with it."""

KINDS: dict[str, tuple[str, Check]] = {
    "dataset": ("datasets", check_dataset),
    "reward": ("rewards", check_reward),
    "judge": ("judges", check_reward_or_judge),
    "restorer": ("restorers", check_restorer),
    "tunable": ("restorers", check_tunable),
    "labeler": ("labelers", check_labeler),
    "faces": ("faces", check_folder),
    "metrics": ("metrics", check_metrics),
    "phase": ("phases", check_phase),
    "degradation": ("degradations", check_degradation),
    "photos": ("", check_path),
    "pair scores": ("", check_path),
}
"""Kind of an input -> which of `list_choices` are offered, and how a value is checked."""


def choices_for(wanted: Setting, choices: Mapping[str, list[Choice]]) -> list[Choice]:
    """What a page offers for an input; nothing for a folder that is written."""
    return choices.get(KINDS[wanted.input.kind][0], []) if wanted.input else []


def is_needed(wanted: Setting) -> bool:
    """Whether a page cannot do without it."""
    return wanted.required or bool(wanted.input and wanted.input.needed)


def check_input(wanted: Setting, value: str, data: Path) -> str | None:
    """What is wrong with one value of an input or output; None where nothing is."""
    return KINDS[wanted.input.kind][1](value, data) if wanted.input else check_out(value, data)

"""List what a run left on disk: its checkpoints and the use of each, its sample grids, and the size of it all."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from db.models import Run
from runs.file_cache import read_json
from runs.store import artifact_of, run_folder

SIZE_SECONDS = 20.0
PICTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.png")
STEP = re.compile(r"\d{1,12}")
REWARD_USES = (
    ("start ReFL", "refl train", "reward"),
    ("score", "reward score", "scorer"),
    ("evaluate", "reward evaluate", "scorer"),
)
RESTORER_USES = (("restore", "refl restore", "method"), ("evaluate", "refl evaluate", "method"))
BASE_USES = (*RESTORER_USES, ("start ReFL", "refl train", "restorer"))
DATASET_USES = (("train a reward model", "reward train", "dataset"), ("evaluate on it", "reward evaluate", "dataset"))
LABELER_USES = (("label with it", "annotate label", "labeler"),)
_sizes: dict[Path, tuple[float, int]] = {}


def list_checkpoints(data: Path, run: Run) -> list[dict[str, Any]]:
    """List what a run made that other runs take: name, path, step, bytes, and `uses`, links into the Train page."""
    folder = artifact_of(data, run)
    if run.kind == "annotate fit":
        name = read_json(run_folder(data, run.id) / "result.json").get("labeler")
        file = run_folder(data, run.id) / "labeler.json"
        return [_checkpoint(str(name), file, LABELER_USES, str(name))] if name and file.is_file() else []
    if folder is None or not folder.is_dir():
        return []
    if run.kind in ("annotate export", "reward construct"):
        return [_checkpoint(folder.name, folder, DATASET_USES)] if (folder / "pairs.jsonl").is_file() else []
    if run.kind == "refl pretrain":
        return [_checkpoint(folder.name, folder, BASE_USES)] if (folder / "model.safetensors").is_file() else []
    if run.kind == "reward train":
        return [_checkpoint(name, path, REWARD_USES) for name, path in _folders(folder, ("best", "last"))]
    if run.kind != "refl train":
        return []
    found = []
    for name, path in _folders(folder, ("tuned", "last")):
        found.append(_checkpoint(name, path, RESTORER_USES))
        if (path / "reward").is_dir():  # a reward model that learned with the restorer
            found.append(_checkpoint(f"{name}/reward", path / "reward", REWARD_USES))
    return found


def _folders(folder: Path, names: tuple[str, ...]) -> list[tuple[str, Path]]:
    """The named ones that are there, then the copies that stayed, the latest first."""
    kept = [path for path in _list(folder / "steps") if STEP.fullmatch(path.name)]
    kept.sort(key=lambda path: -int(path.name))
    asked = [(name, folder / name) for name in names] + [(f"steps/{path.name}", path) for path in kept]
    return [(name, path) for name, path in asked if path.is_dir()]


def _checkpoint(name: str, path: Path, uses: tuple[tuple[str, str, str], ...], value: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "path": str(path),
        "step": read_json(path / "training.json").get("step"),
        "bytes": measure_size(path),
        "uses": [
            {"words": words, "href": f"/admin/train#kind={quote(kind)}&{field}={quote(value or str(path), safe='')}"}
            for words, kind, field in uses
        ],
    }


def list_checks(data: Path, run: Run) -> list[dict[str, Any]]:
    """List what a training's monitor saw and what was done: `first`, `last` step, `seen`, `action`, `factor`, `why`.

    Good checks in a row at which nothing was done but to keep are one row, with the last one's reason.
    """
    folder = artifact_of(data, run)
    found = read_json(folder / "checks.json").get("checks") if folder is not None else None
    rows: list[dict[str, Any]] = []
    for check in found if isinstance(found, list) else ():
        if not isinstance(check, dict) or not isinstance(step := check.get("step"), int):
            continue
        told = {name: check.get(name, "") for name in ("seen", "action", "factor", "why")}
        alike = {"seen": "good", "action": told["action"], "factor": told["factor"]}
        if rows and told["action"] in ("", "keep") and {**rows[-1], **alike} == rows[-1] and told["seen"] == "good":
            rows[-1] |= {"last": step, "why": told["why"]}
        else:
            rows.append({"first": step, "last": step, **told})
    return rows


def list_samples(data: Path, run: Run) -> dict[str, Any]:
    """`grids`, the sample grids by step, and `pictures`, those of a report: names that `find_sample` finds."""
    folder = _servable(data, run)
    if folder is None:
        return {"grids": [], "pictures": [], "inside": artifact_of(data, run) is None}
    grids = sorted(
        (path.name for path in _list(folder / "grids") if path.suffix == ".png" and STEP.fullmatch(path.stem)),
        key=lambda name: int(name.removesuffix(".png")),
    )
    pictures = sorted(path.name for path in _list(folder) if PICTURE.fullmatch(path.name))
    return {"grids": grids, "pictures": pictures, "inside": True}


def find_sample(data: Path, run: Run, name: str) -> Path | None:
    """The file of a sample, only where it lies in the run's own folder, and that in the data folder."""
    folder = _servable(data, run)
    if folder is None or not PICTURE.fullmatch(name):
        return None
    for path in (folder / "grids" / name, folder / name):
        if path.is_file() and path.resolve().is_relative_to(folder):
            return path
    return None


def _servable(data: Path, run: Run) -> Path | None:
    """The run's artifact folder where it may be shown: inside the data folder, and not the data folder itself."""
    folder = (artifact_of(data, run) or run_folder(data, run.id)).resolve()
    inside = data.resolve()
    own = run_folder(data, run.id).resolve()
    others = folder.is_relative_to(inside / "runs") and not folder.is_relative_to(own)
    return folder if folder != inside and folder.is_relative_to(inside) and not others else None


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def measure_size(path: Path) -> int:
    """Bytes of a file or of all files below a folder; counted again after some seconds only."""
    now = time.monotonic()
    known = _sizes.get(path)
    if known is None or now - known[0] > SIZE_SECONDS:
        if len(_sizes) > 1_000:
            _sizes.clear()
        known = _sizes[path] = now, _count(path)
    return known[1]


def _count(path: Path) -> int:
    total = 0
    try:
        if not path.is_dir():
            return path.stat().st_size
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    total += _count(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    except OSError:  # gone meanwhile
        pass
    return total

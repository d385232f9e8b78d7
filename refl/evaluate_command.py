"""`python -m refl evaluate`: a base restorer against tuned ones on held-out faces, as one report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refl.train_config import load_refl_config, preset_names
from runs import UserError
from runs.store import code_version, open_database_run, without_nan

if TYPE_CHECKING:
    import pandas as pd

    from refl.evaluate import FaceSet
    from refl.monitor import RewardFunction
    from refl.restorers.surface import Restorer
    from refl.train_data import Face

EVALUATION_DRAW = 2**41
"""The draw of the degradations here, which no training step and no monitor has."""
DEGRADATION_SEED = 0


def add_evaluate_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`evaluate`: metrics and rewards of restorers side by side."""
    parser = commands.add_parser(
        "evaluate",
        help="hold tuned restorers against the base on held-out faces",
        description="Faces with ground truth are degraded with fixed seeds; wild ones are taken as they are. Metrics "
        "whose weights cannot be had here are left out and named.",
    )
    parser.add_argument(
        "--method",
        action="append",
        required=True,
        metavar="RESTORER",
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
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (default: the run's)")
    parser.set_defaults(command=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> None:
    """Evaluate as a run and write the report."""
    config = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name not in ("command", "data", "db", "run")
    }
    with open_database_run(args.data, args.db, "refl evaluate", config, args.run) as run:
        out = args.out or run.folder
        evaluate(args, config, out, run.progress)
        run.write_result({"out": str(out)})
    print(f"report: {out / 'report.md'}")


def evaluate(
    args: argparse.Namespace, config: dict[str, Any], out: Path, progress: Callable[[int, int], None]
) -> pd.DataFrame:
    """Restore and measure everything, write the report; returns its summary table."""
    import pandas as pd  # here: --help need not wait for these

    from refl.evaluate import choose_metrics, measure_set, restore_set, summarize, write_grid
    from refl.evaluate_report import write_report
    from refl.fid import compare_by_fid
    from refl.restorers.load import load_restorer, method_name
    from reward.device import choose_device

    device = choose_device(args.device)
    restorers = {method_name(asked): load_restorer(asked, device=device) for asked in args.method}
    base = next(iter(restorers))
    sets = load_sets(args, args.image_size_px or restorers[base].image_size_px, device)
    check_sizes(sets, restorers)
    scorers = load_reward_models(args.reward, device)
    out.mkdir(parents=True, exist_ok=True)
    tables, seconds, by_fid = [], {}, []
    left_out: dict[str, str] = {}
    for faces in sets:
        metrics, missing = choose_metrics(faces.hq is not None, device)
        left_out |= missing
        rewards: dict[str, RewardFunction] = {name: partial(scorer, faces) for name, scorer in scorers.items()}
        restored = {}
        for name, restorer in restorers.items():
            restored[name] = restore_set(restorer, faces, args.seeds, args.steps)
            seconds[faces.name, name] = restored[name].seconds_an_image
            tables.append(measure_set(faces, name, restored[name], metrics, rewards, device))
            progress(len(tables), len(sets) * len(restorers))
        found, missing_fid = compare_by_fid(faces, restored, base, device)
        by_fid.append(found)
        left_out |= {"fid": missing_fid} if missing_fid else {}
        write_grid(out / f"{faces.name}.png", faces, restored)
    values = pd.concat(tables, ignore_index=True)
    summary = pd.concat([summarize(values, base), *(rows for rows in by_fid if len(rows))], ignore_index=True)
    values.to_csv(out / "values.csv", index=False, float_format="%.6g")
    summary.to_csv(out / "summary.csv", index=False, float_format="%.6g")
    record = {"asked": config, "base": base, "left_out": left_out, "code_version": code_version()}
    record["seconds_an_image"] = {f"{name} {method}": value for (name, method), value in seconds.items()}
    record["faces"] = {faces.name: list(faces.names) for faces in sets}
    write_report(out, summary, record)
    text = json.dumps(without_nan(record), indent=2, ensure_ascii=False)
    (out / "summary.json").write_text(text + "\n", encoding="utf-8")
    return summary


def load_sets(args: argparse.Namespace, size_px: int, device: str) -> list[FaceSet]:
    """`synthetic`, degraded with fixed seeds, and `wild`.

    Raises:
        UserError: there is no face.
    """
    import torch

    from refl.evaluate import FaceSet
    from refl.train_data import DegradedFaces, find_faces, stack

    sets = []
    faces = find_faces(args.faces) if args.faces else load_test_faces(args)
    for name, found in (("synthetic", faces), ("wild", find_faces(args.wild) if args.wild else [])):
        if not found:
            continue
        found = found[: args.limit]
        names, captions = [face.name for face in found], [face.caption for face in found]
        if name == "wild":
            lq = torch.stack([read_square(face, size_px) for face in found]).to(device)
            sets.append(FaceSet(name, names, lq, None, captions))
            continue
        settings = load_refl_config(args.degradation).degradation
        images = DegradedFaces(found, size_px, settings, DEGRADATION_SEED)
        hq, lq = stack([images[EVALUATION_DRAW, place] for place in range(len(found))])
        sets.append(FaceSet(name, names, lq.to(device), hq, captions))
    if not sets:
        raise UserError(
            "There is no face to restore. Give --faces DIR or --wild DIR, or import sources of the split test with "
            "ground truth (hq)."
        )
    return sets


def load_test_faces(args: argparse.Namespace) -> list[Face]:
    """Ground truths of the project's test split."""
    from db.models import Split
    from db.session import open_database
    from refl.train_data import load_faces

    database = open_database(args.data, args.db)
    try:
        return load_faces(database, args.data, Split.test)
    finally:
        database.close()


def read_square(face: Face, size_px: int) -> Any:
    """(3, S, S) in [0, 1] of an aligned face."""
    import torch

    from refl.faces import as_square
    from reward.images import read_image

    square, _ = as_square(read_image(face.path), size_px)
    return torch.from_numpy(square.transpose(2, 0, 1).copy()).float() / 255


def check_sizes(sets: list[FaceSet], restorers: Mapping[str, Restorer]) -> None:
    """That every restorer takes images of this size.

    Raises:
        UserError: one does not.
    """
    side = sets[0].lq.shape[-1]
    for name, restorer in restorers.items():
        if side % restorer.multiple_px:
            raise UserError(f"{name} takes sides that are multiples of {restorer.multiple_px} px; set --image-size-px.")


def load_reward_models(asked: list[str], device: str) -> dict[str, Callable[..., Any]]:
    """Name -> (faces, images) to rewards.

    Raises:
        UserError: no name is given, or a model cannot be loaded.
    """
    from reward.scoring import load_scorer

    found: dict[str, Callable[..., Any]] = {}
    for text in asked:
        name, equals, path = text.partition("=")
        if not equals:
            raise UserError(f"--reward {text}: give it a name, such as --reward frozen={text}.")
        model = load_scorer(path, device).model
        found[name] = partial(score_faces, model, device)
    return found


def score_faces(model: Any, device: str, faces: FaceSet, images: Any) -> Any:
    """(N,) rewards of restored images of a set."""
    return model(images.to(device), list(faces.captions))

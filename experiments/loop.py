"""Run the whole chain on real faces, by commands that a person would type: `python -m experiments.loop` (`make loop`).

Faces of ../shared/faces that the tiny restorer was pretrained on are degraded and restored by several methods and
seeds; the candidates are paired; a SIMULATED annotator answers some pairs, with a quarter of the answers at random; an
SVM labels the rest; the labels train a reward model from scratch; the reward fine-tunes the restorer; and the base and
the tuned restorer are evaluated on people that nothing in the chain has seen. The annotator judges by FSIM and VIF
against the ground truth, which are neither among the SVM's metrics nor anything that the reward model sees.

The margin is stated beforehand: the tuned restorer must not lose more than MARGINS of SSIM and GMSD. With --control the
restorer is tuned once more with nothing but a strong, static reward, to see whether the monitor notices.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image as PilImage
from scipy.stats import t
from sqlalchemy.orm import Session

from annotate.judging.simulate import get_annotator, judge_pairs
from db.images import image_path
from db.models import Candidate, Image
from db.session import open_database
from metrics.compute import Request, compute_values
from refl.pretrain.config import PretrainConfig
from refl.pretrain.data import is_held_out
from refl.restorers.tiny import SHIPPED
from training.images import read_image

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "faces"
SIZE_PX = 64
MARGINS = {"ssim": 0.01, "gmsd": 0.005}
"""Largest losses of the means that count as not worse."""
NOISE = 0.25
"""Share of the simulated annotator's answers that are drawn by lot."""
METHODS = (
    ("--method=tiny", "--seeds", "0", "1"),
    ("--method=few=tiny", "--steps=4"),
    ("--method=raw=tiny", "--color-fix=none"),
)
"""Flags of `refl restore` that make the candidates."""
CONTROL = ("--structure-weight=0", "--perceptual-weight=0", "--regularizer-weight=0", "--reward-every-steps=0")


def run(*words: str) -> None:
    """One of our commands, its output to this terminal."""
    print("$ python -m", " ".join(words), flush=True)
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True)


def split_pretraining() -> tuple[list[Path], list[Path]]:
    """(faces of ffhq256 that the shipped restorer was pretrained on, those held out from that), by name."""
    record = json.loads((SHIPPED / "training.json").read_text(encoding="utf-8"))
    config = PretrainConfig.model_validate(record["train"])
    files = sorted((SHARED / "train" / "ffhq256").rglob("*.jpg"))
    held_out = [path for path in files if is_held_out(path.name, config)]
    return [path for path in files if not is_held_out(path.name, config)], held_out


def write_faces(folder: Path, n_train: int, n_held_out: int, seed: int) -> None:
    """train/, of what the tiny restorer was pretrained on; val/ and test/, of what was held out from that."""
    trained, held_out = split_pretraining()
    rng = np.random.default_rng(seed)
    chosen = {
        "train": [trained[place] for place in rng.permutation(len(trained))[:n_train]],
        "val": held_out[: len(held_out) // 3],
        "test": held_out[len(held_out) // 3 :][:n_held_out],
    }
    for split, paths in chosen.items():
        (folder / split).mkdir(parents=True)
        for path in paths:
            small = cv2.resize(read_image(path), (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)
            PilImage.fromarray(small).save(folder / split / f"{path.stem}.png")


def score_candidate(session: Session, data: Path, candidate_id: int, quality: dict[int, float]) -> float:
    """Return the simulated annotator's score of a candidate: FSIM + VIF against the ground truth."""
    if candidate_id not in quality:
        candidate = session.get_one(Candidate, candidate_id)
        truth = session.get_one(Image, candidate.source.hq_image_id)
        images = [read_image(image_path(data, image.sha256, image.suffix)) for image in (candidate.image, truth)]
        values = compute_values([Request("fsim", 0, 1), Request("vif", 0, 1)], images)
        quality[candidate_id] = sum(value.value or 0.0 for value in values)
    return quality[candidate_id]


def learn_reward(folder: Path, faces: int, test_faces: int, judgments: int, steps: int, seed: int) -> None:
    """The chain's first half, into a folder: `reward/` there is the reward model, `faces/` has the splits."""
    data = folder / "data"
    shared = f"--data={data}"
    write_faces(folder / "faces", faces, test_faces, seed)
    run(
        "refl",
        "degrade",
        str(folder / "faces" / "train"),
        f"--out={folder / 'degraded'}",
        "--preset=small",
        f"--seed={seed}",
        shared,
    )
    run("annotate", "import", str(folder / "degraded"), shared)
    for method in METHODS:
        run("refl", "restore", *method, "--batch-size=32", shared)
    run("annotate", "pair", shared)
    database = open_database(data)
    quality: dict[int, float] = {}
    with database.write() as session:
        person_id = get_annotator(session).id
    answers, by_lot = judge_pairs(
        database,
        person_id,
        lambda session, candidate_id: score_candidate(session, data, candidate_id, quality),
        count=judgments,
        noise=NOISE,
        seed=seed,
    )
    database.close()
    print(f"SIMULATED: {answers} pairs answered, {by_lot / max(1, answers):.0%} of the answers by lot", flush=True)
    run("annotate", "measure", shared)
    run("annotate", "fit", "--include-simulated", "--quick", f"--seed={seed}", shared)
    run("annotate", "label", "--target-accuracy=0.65", shared)
    run("annotate", "export", "--include-simulated", f"--out={folder / 'dataset'}", shared)
    flags = [f"--max-steps={steps}", f"--seed={seed}", "--validate-every-steps=50", f"--out={folder / 'reward'}"]
    run("reward", "train", "--preset=tiny", f"--dataset={folder / 'dataset'}", *flags, shared)


def run_chain(folder: Path, args: argparse.Namespace, seed: int) -> None:
    """All of it once, into a folder; `report/` there is that of `refl evaluate`."""
    learn_reward(folder, args.faces, args.test_faces, args.judgments, args.reward_steps, seed)
    shared, reward = f"--data={folder / 'data'}", folder / "reward"
    tuned: dict[str, tuple[str, ...]] = {"tuned": (), **({"control": CONTROL} if args.control else {})}
    for name, changes in tuned.items():
        what = [
            f"--reward={reward / 'best'}",
            f"--faces={folder / 'faces' / 'train'}",
            f"--held-out={folder / 'faces' / 'val'}",
        ]
        steps = [f"--max-steps={args.refl_steps}", f"--seed={seed}"]
        run(
            "refl",
            "train",
            "--preset=tiny-refl",
            "--restorer=tiny",
            *what,
            f"--out={folder / name}",
            *steps,
            *changes,
            shared,
        )
    methods = ["--method=tiny", *(f"--method={folder / name / 'tuned'}" for name in tuned)]
    what = [f"--faces={folder / 'faces' / 'test'}", f"--reward=frozen={reward / 'best'}", "--degradation=tiny-refl"]
    run("refl", "evaluate", *methods, *what, "--seeds", "0", "1", f"--out={folder / 'report'}", shared)


def print_verdict(tables: dict[int, pd.DataFrame]) -> None:
    """Changes over the base by seed, their mean over seeds, and whether the margins hold in each."""
    table = pd.concat([table.assign(seed_no=seed) for seed, table in tables.items()])
    base = table[table["change"].isna()].groupby("metric")["mean"].mean()
    changed = table[table["change"].notna()]
    print("\n| method | metric | base | " + " | ".join(f"seed {seed}: change [95 %]" for seed in tables), end="")
    print(" | mean over seeds [95 %] |\n" + "|---" * (len(tables) + 4) + "|")
    for (method, metric), rows in changed.groupby(["method", "metric"], sort=False):
        spans = [
            f"{row['change']:+.4f} [{row['change_low']:+.4f}, {row['change_high']:+.4f}]"
            for row in rows.to_dict("records")
        ]
        print(
            f"| {method} | {metric} | {base[str(metric)]:.4f} | {' | '.join(spans)} | {format_mean(rows['change'])} |"
        )
    for metric, margin in MARGINS.items():
        rows = changed[(changed["metric"] == metric) & (changed["method"] == "tuned-tuned")]
        held = int((rows["change_low"] > -margin).sum())
        print(f"{metric}: not worse by more than {margin} in {held} of {len(tables)} seeds")


def format_mean(changes: pd.Series[float]) -> str:
    """The mean over seeds with its interval by Student's t; without one where there is one seed."""
    if len(changes) < 2:
        return f"{changes.mean():+.4f}"
    half = t.ppf(0.975, len(changes) - 1) * changes.sem()
    return f"{changes.mean():+.4f} [{changes.mean() - half:+.4f}, {changes.mean() + half:+.4f}]"


def main() -> None:
    """Run the chain for each seed, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="keep everything here, and leave out finished seeds (default: a temporary folder)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one chain each (default: 0)")
    parser.add_argument("--faces", type=int, default=300, help="faces to restore, judge and train on (default: 300)")
    parser.add_argument("--test-faces", type=int, default=64, help="unseen faces to evaluate on (default: 64)")
    parser.add_argument("--judgments", type=int, default=300, help="pairs that the annotator answers (default: 300)")
    parser.add_argument("--reward-steps", type=int, default=300, help="of the reward model (default: 300)")
    parser.add_argument("--refl-steps", type=int, default=150, help="of the restorer (default: 150)")
    parser.add_argument("--control", action="store_true", help="tune once more with nothing but the reward")
    args = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit("needs ../shared/faces, which is not beside this checkout")
    began, tables = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in args.seeds:
            folder = (args.out or Path(temporary)).absolute() / f"seed{seed}"
            if not (folder / "report" / "summary.csv").is_file():
                run_chain(folder, args, seed)
            tables[seed] = pd.read_csv(folder / "report" / "summary.csv")
    print_verdict(tables)
    print(f"{len(tables)} chains in {(time.monotonic() - began) / 60:.0f} minutes; the annotator is SIMULATED")


if __name__ == "__main__":
    main()

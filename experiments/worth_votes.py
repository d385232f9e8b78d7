"""Test blind and seeing reward models on real people's votes: `python -m experiments.worth_votes`.

votes/sr of ../shared/faces: 52 people chose the best of four super-resolved images of 12 scenes. Each scene is left out
in turn; a small model, from first weights as in `experiments.reward_worth`, learns from crops of the eleven others and
scores an image by its crops' mean. Accuracy is the share of people's pairwise votes that it gives, with an interval
over scenes; the ceiling is one person against the others. The seeing model's inputs are also shuffled among the scenes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image as PilImage
from torch import Tensor

from dataset.labelled import LabelledPair
from experiments.loop import SHARED, SIZE_PX
from experiments.reward_worth import MODES, score
from experiments.votes import CEILING, Study, compute_ceiling, count_pairs, find_image, read_wins, simplify
from experiments.worth_first import write_first_model
from metrics.accuracy import bootstrap_mean
from reward.data import Pairs, to_tensor
from reward.model.checkpoint import load_model
from reward.train.config import RewardTrainConfig
from reward.train.train import train
from training.images import read_image

VOTES = SHARED / "votes" / "sr"
COLUMNS, ROWS = 6, 4
"""Of the grid of crops."""
SHRUNK = 4
"""Times that a photo is smaller than what was made of it."""
SHUFFLED = "seeing, inputs shuffled"


def write_crops(folder: Path, images: list[str]) -> None:
    """Write crops of every scene's four images and of its photo, as PNG by method, scene and place."""
    for method in (one for one in VOTES.iterdir() if one.is_dir()):
        (folder / simplify(method.name)).mkdir()
        for image in images:
            file = find_image(method, image)
            assert file is not None
            whole = read_image(file)
            size_px = SIZE_PX // SHRUNK if method.name == "lq" else SIZE_PX
            for number, (top, left) in enumerate(place_crops(whole.shape[0], whole.shape[1], size_px)):
                crop = PilImage.fromarray(whole[top : top + size_px, left : left + size_px])
                crop.save(name_crop(folder, method.name, image, number))


def place_crops(height: int, width: int, size_px: int) -> list[tuple[int, int]]:
    """Top left corners of an even grid; of a photo shrunk by SHRUNK they are where its larger image has them."""
    ends = (height - size_px) / (ROWS - 1), (width - size_px) / (COLUMNS - 1)
    return [(int(row * ends[0]), int(column * ends[1])) for row in range(ROWS) for column in range(COLUMNS)]


def name_crop(folder: Path, method: str, image: str, number: int) -> Path:
    """Where a crop is."""
    return folder / simplify(method) / f"{image}-{number}.png"


def read_crops(folder: Path, method: str, image: str) -> Tensor:
    """(crops, 3, S, S) in [0, 1]."""
    files = [name_crop(folder, method, image, number) for number in range(ROWS * COLUMNS)]
    return torch.stack([to_tensor(file) for file in files]).float() / 255


def make_rows(folder: Path, votes: pd.DataFrame) -> list[LabelledPair]:
    """A label for each crop of each pair, of the weight of its votes, one on average."""
    rows = []
    for vote in votes.to_dict("records"):
        for number in range(ROWS * COLUMNS):
            a, b = (name_crop(folder, vote[side], vote["image"], number) for side in ("a", "b"))
            row = LabelledPair(
                pair=f"{vote['image']} {vote['a']} {vote['b']} {number}",
                image_a=a,
                image_b=b,
                sha256_a=None,
                sha256_b=None,
                p_a=float(vote["p_a"]),
                weight=float(vote["n"] / votes["n"].mean()),
                origin="human",
                made_by="votes/sr",
                agreement=None,
                caption=None,
                source=vote["image"],
                group=vote["image"],
                split="train",
                method_a=vote["a"],
                method_b=vote["b"],
                lq=name_crop(folder, "lq", vote["image"], number),
                hq=None,
            )
            rows.append(row)
    return rows


def predict(folder: Path, kind: str, votes: pd.DataFrame, rows: list[LabelledPair], steps: int) -> pd.DataFrame:
    """The votes with a model's margins, and with shuffled inputs; each scene by a model that has not seen it."""
    images = sorted(set(votes["image"]))
    methods = sorted({*votes["a"], *votes["b"]})
    margins = {name: np.zeros(len(votes)) for name in ("margin", "shuffled")}
    for place, image in enumerate(images):
        own = tuple(row for row in rows if row.source != image)
        crops = torch.cat([read_crops(folder, methods[0], one) for one in images if one != image])
        config = write_first_model(folder, crops, MODES[kind], 1, seed=place)
        with tempfile.TemporaryDirectory() as out:
            train(Pairs(folder, own), config, make_config(steps, place), Path(out))
            model = load_model(Path(out) / "best")
        for name, photo in (("margin", image), ("shuffled", images[place - 1])):
            lq = read_crops(folder, "lq", photo)
            given = {method: float(score(model, read_crops(folder, method, image), lq).mean()) for method in methods}
            for at in np.flatnonzero(votes["image"] == image):
                margins[name][at] = given[votes["a"][at]] - given[votes["b"][at]]
    return votes.assign(**margins)


def make_config(steps: int, seed: int) -> RewardTrainConfig:
    """How each model is trained."""
    return RewardTrainConfig(
        max_steps=steps,
        batch_size=32,
        learning_rate=1e-3,
        warmup_steps=min(10, steps - 1),
        weight_decay=0.05,
        validate_every_steps=0,
        checkpoint_every_steps=10 * steps,
        workers=0,
        seed=seed,
    )


def measure_accuracy(votes: pd.DataFrame, margins: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Share of the votes that margins give, with its interval over scenes."""
    p_a = votes["p_a"].to_numpy(dtype=float)
    right = np.where(margins > 0, p_a, np.where(margins < 0, 1 - p_a, 0.5))
    return bootstrap_mean(right, votes["n"].to_numpy(dtype=float), votes["image"].to_numpy(str))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="of each model's training (default: 60)")
    parser.add_argument("--scenes", type=int, default=12, help="only the first of them (default: 12, all)")
    args = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit("needs ../shared/faces, which is not beside this checkout")
    torch.set_num_threads(1)
    wins, _ = read_wins(VOTES)
    votes = count_pairs(wins)
    votes = votes[votes["image"].isin(sorted(set(votes["image"]))[: args.scenes])].reset_index(drop=True)
    study = Study(VOTES.name, votes, {})
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_crops(folder, sorted(set(votes["image"])))
        rows = make_rows(folder, votes)
        for kind in MODES:
            predicted = predict(folder, kind, votes, rows, args.steps)
            found[kind] = measure_accuracy(votes, predicted["margin"].to_numpy())
            if kind == "seeing":
                found[SHUFFLED] = measure_accuracy(votes, predicted["shuffled"].to_numpy())
            print(json.dumps({kind: found[kind]}), flush=True)
    found[CEILING] = compute_ceiling(study)
    print(f"\n| votes/sr, {int(votes['n'].sum())} pairwise votes of real people | accuracy |\n|---|---|")
    for name, (mean, low, high) in found.items():
        print(f"| {name} | {mean:.3f} [{low:.3f}, {high:.3f}] |")


if __name__ == "__main__":
    main()

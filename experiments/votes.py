"""Test the labeler on real people's votes: `python experiments/votes.py FOLDER`, or `--train FOLDER --test FOLDER`.

FOLDER is laid out as ../shared/faces/votes/sr: a folder of images per method, `lq/` and perhaps `hq/` beside them,
`metrics_by_authors.csv` (image, model, a column per metric), and the votes as `best_of_4.csv` (observer, image, chosen:
three pairwise wins each) or `pairs.csv` (session, image, left, right, chosen). Or as votes/codec: `study_results.csv`,
a row per pair with its two numbers of votes and metrics, no images.

Prints a table for each set of metrics there is: a row per method, its accuracy, the 95 % interval (resampling images).
With one FOLDER every prediction is of an image that no part of the training saw (leave one image out). Accuracy is the
share of people's votes that a prediction equals; for study_results.csv, which has many votes per pair, the share of
pairs of which it gives the majority.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file too, not only with -m

from annotate.labeler.report import (
    compare_methods,
    compute_coverage,
    describe_against_best,
    predict_held_out,
    predict_methods,
)
from annotate.labeler.settings import SIDE, FitSettings
from annotate.labeler.svm import Training, fit_labeler
from metrics.accuracy import bootstrap_mean

Array = npt.NDArray[Any]

LOWER_IS_BETTER = {"lpips", "dists", "niqe", "brisque", "nlpd", "gmsd", "mad", "fid", "ilniqe", "piqe"}
LEAVE_ONE_OUT = 50
"""Folds asked for: one per image, up to so many images."""
CEILING = "one person against the others"


@dataclass(frozen=True)
class Study:
    """Votes on pairs, a row per pair: image, a, b (names of the methods), p_a, n (votes); and metric sets by title.

    A metric set is a table of values, higher is better, by (image, method). `left_share` is how often people chose the
    left side, where that is known.
    """

    name: str
    pairs: pd.DataFrame
    metrics: dict[str, pd.DataFrame]
    by_majority: bool = False
    left_share: float | None = None

    def training(self, values: pd.DataFrame) -> Training:
        """The pairs with their metric differences."""
        a, b = (values.loc[list(zip(self.pairs["image"], self.pairs[side], strict=True))] for side in ("a", "b"))
        p_a, n = self.pairs["p_a"].to_numpy(dtype=float), self.pairs["n"].to_numpy(dtype=float)
        if self.by_majority:
            p_a, n = np.where(p_a == 0.5, 0.5, (p_a > 0.5).astype(float)), np.ones(len(n))
        images = self.pairs["image"].to_numpy(str)
        return Training(a.to_numpy(dtype=float) - b.to_numpy(dtype=float), p_a, n, images, images)


def load_study(folder: Path) -> Study:
    """Read a folder of either layout."""
    if (folder / "study_results.csv").exists():
        return load_codec(folder)
    wins, left_share = read_wins(folder)
    metrics = {}
    if (folder / "metrics_by_authors.csv").exists():
        metrics["the authors' metrics"] = read_author_metrics(folder)
    methods = sorted({*wins["winner"], *wins["loser"]})
    measured = measure_images(folder, sorted(set(wins["image"])), methods)
    if measured is not None:
        metrics["the offline list, measured from the images"] = measured
    if not metrics:
        sys.exit(f"{folder}: neither metrics_by_authors.csv nor a folder of images for each of {', '.join(methods)}")
    return Study(folder.name, keep_measured(count_pairs(wins), metrics), metrics, left_share=left_share)


def keep_measured(pairs: pd.DataFrame, metrics: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The pairs of which both sides are in every metric set; says how many are not."""
    known = [set(values.index) for values in metrics.values()]
    kept = [
        all((row["image"], row[side]) in keys for keys in known for side in ("a", "b"))
        for row in pairs.to_dict("records")
    ]
    if not all(kept):
        print(f"{len(kept) - sum(kept)} of {len(kept)} pairs left out: one of their images has no metric values")
    return pairs[kept].reset_index(drop=True)


def read_wins(folder: Path) -> tuple[pd.DataFrame, float | None]:
    """(a row a pairwise vote: image, winner, loser; the share of left choices where sides are known)."""
    wins, left_share = [], None
    if (folder / "best_of_4.csv").exists():
        votes = pd.read_csv(folder / "best_of_4.csv", dtype=str)
        methods = sorted(set(votes["chosen"]))
        wins += [
            (image, chosen, other)
            for image, chosen in zip(votes["image"], votes["chosen"], strict=True)
            for other in methods
            if other != chosen
        ]
    if (folder / "pairs.csv").exists():
        votes = pd.read_csv(folder / "pairs.csv", dtype=str)
        is_left = (votes["chosen"] == votes["left"]) | (votes["chosen"].str.lower() == "left")
        is_right = (votes["chosen"] == votes["right"]) | (votes["chosen"].str.lower() == "right")
        decided = votes[is_left | is_right]
        left_share = float(is_left[is_left | is_right].mean())
        for image, left, right, first in zip(
            decided["image"], decided["left"], decided["right"], is_left[decided.index], strict=True
        ):
            wins.append((image, left, right) if first else (image, right, left))
    if not wins:
        sys.exit(f"{folder}: no votes; it has neither best_of_4.csv, pairs.csv nor study_results.csv")
    return pd.DataFrame(wins, columns=["image", "winner", "loser"]), left_share


def count_pairs(wins: pd.DataFrame) -> pd.DataFrame:
    """A row per pair: image, a, b, p_a, n. Which method is a is drawn for each pair, so that no side is favoured."""
    counts = wins.groupby(["image", "winner", "loser"]).size()
    rng = np.random.default_rng(0)
    rows = []
    for image, first, second in sorted({(image, *sorted((one, two))) for image, one, two in counts.index}):
        a, b = (first, second) if rng.random() < 0.5 else (second, first)
        won, lost = int(counts.get((image, a, b), 0)), int(counts.get((image, b, a), 0))
        rows.append((image, a, b, won / (won + lost), won + lost))
    return pd.DataFrame(rows, columns=["image", "a", "b", "p_a", "n"])


def read_author_metrics(folder: Path) -> pd.DataFrame:
    """The authors' values by (image, method), turned so that higher is better."""
    table = pd.read_csv(folder / "metrics_by_authors.csv", dtype={"image": str, "model": str})
    values = table.set_index(["image", "model"])
    lower = [name for name in values.columns if name.lower() in LOWER_IS_BETTER]
    return values.assign(**{name: -values[name] for name in lower}).dropna(axis="columns").sort_index()


def measure_images(folder: Path, images: list[str], methods: list[str]) -> pd.DataFrame | None:
    """Our offline list's values of every restored image, None where the images are not there.

    Columns that some image lacks are left out.
    """
    folders = {simplify(path.name): path for path in folder.iterdir() if path.is_dir()}
    files = {
        (image, method): find_image(folders.get(simplify(method)), image) for method in methods for image in images
    }
    found = {key: path for key, path in files.items() if path}
    if not found:
        return None
    from metrics.compute import measure_files  # it loads torch

    references = {kind: {image: find_image(folders.get(kind), image) for image in images} for kind in ("lq", "hq")}
    rows = {}
    for (image, method), path in found.items():
        beside = {kind: paths[image] for kind, paths in references.items()}
        known = {kind: reference for kind, reference in beside.items() if reference}
        rows[image, method] = measure_files("offline", path, known)
    return pd.DataFrame.from_dict(rows, orient="index").dropna(axis="columns").sort_index()


def simplify(name: str) -> str:
    """'Real-ESRGAN' and 'realesrgan' are one method."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def find_image(folder: Path | None, name: str) -> Path | None:
    """The image of that name or stem in a folder; None where there is none."""
    if folder is None:
        return None
    return next((path for path in sorted(folder.glob(f"{Path(name).stem}.*"))), None)


def load_codec(folder: Path) -> Study:
    """votes/codec: `ours` against `base` of a codec, sides drawn, since ours wins seven times in eight."""
    table = pd.read_csv(folder / "study_results.csv")
    names = sorted(name.removesuffix("_ours") for name in table.columns if name.endswith("_ours"))
    names = [name for name in names if pd.api.types.is_float_dtype(table[f"{name}_ours"])]
    rng = np.random.default_rng(0)
    rows, values = [], []
    for at, row in enumerate(table.to_dict("records")):
        a, b = ("ours", "base") if rng.random() < 0.5 else ("base", "ours")
        n = row["num_vote_ours"] + row["num_vote_base"]
        rows.append((row["image"], f"{a} {at}", f"{b} {at}", row[f"num_vote_{a}"] / n, n))
        values += [(row["image"], f"{side} {at}", *(row[f"{name}_{side}"] for name in names)) for side in (a, b)]
    pairs = pd.DataFrame(rows, columns=["image", "a", "b", "p_a", "n"])
    table = pd.DataFrame(values, columns=["image", "model", *names]).set_index(["image", "model"]).sort_index()
    return Study(folder.name, pairs, {"the authors' metrics": table}, by_majority=True)


def compute_ceiling(study: Study) -> tuple[float, float, float]:
    """Compute how often one vote is that of most others on the pair, with its interval; half where they draw."""
    p_a, n = study.pairs["p_a"].to_numpy(dtype=float), study.pairs["n"].to_numpy(dtype=float)
    for_a = np.round(p_a * n)
    for_b = n - for_a
    agrees = for_a * _majority(for_a - 1 - for_b) + for_b * _majority(for_b - 1 - for_a)
    several = n > 1
    return bootstrap_mean((agrees / n)[several], n[several], study.pairs["image"].to_numpy(str)[several])


def _majority(lead: Array) -> Array:
    return np.where(lead > 0, 1.0, np.where(lead == 0, 0.5, 0.0))


def print_table(study: Study, title: str, names: list[str], margins: dict[str, Array], data: Training) -> None:
    """One row per method, the best first: accuracy, then the interval."""
    table = compare_methods(margins, data).set_index("method")
    if study.left_share is not None:
        share = max(study.left_share, 1 - study.left_share)
        table.loc[SIDE, ["accuracy", "low", "high"]] = (share, np.nan, np.nan)
    n_votes, n_images = int(study.pairs["n"].sum()), len(set(data.sources))
    print(f"{study.name}, {title}: {len(data)} pairs of {n_images} images, {n_votes} votes")
    for name, row in table.sort_values("accuracy", ascending=False, kind="stable").iterrows():
        interval = "" if np.isnan(row["low"]) else f"[{row['low']:.3f}, {row['high']:.3f}]"
        print(f"{name:<32} {row['accuracy']:.3f}  {interval}")
    ceiling = compute_ceiling(study)
    print(f"{CEILING:<32} {ceiling[0]:.3f}  [{ceiling[1]:.3f}, {ceiling[2]:.3f}]")
    print(describe_against_best(table.reset_index().sort_values("accuracy", ascending=False), names))


def score(study: Study, title: str, seed: int) -> None:
    """Leave one image out."""
    values = study.metrics[title]
    data, names = study.training(values), list(values.columns)
    held_out = predict_held_out(data, names, FitSettings(folds=LEAVE_ONE_OUT, seed=seed))
    print_table(study, title, names, held_out.margins, data)
    coverage = compute_coverage(held_out.p_a, data)
    shown = coverage[coverage["coverage"].isin([0.1, 0.25, 0.5, 0.75, 1.0])]
    print(
        "accuracy of the surest " + ", ".join(f"{r.coverage:.0%}: {r.accuracy:.3f}" for r in shown.itertuples()) + "\n"
    )


def score_other(train: Study, test: Study, title: str, seed: int) -> None:
    """Train on one study, score the other, on the metrics that both have."""
    names = [name for name in train.metrics[title].columns if name in test.metrics[title].columns]
    data, unseen = train.training(train.metrics[title][names]), test.training(test.metrics[title][names])
    settings = FitSettings(seed=seed)
    labeler = fit_labeler(data, settings)
    print_table(
        test,
        f"{title}, trained on {train.name}",
        names,
        predict_methods(data, unseen, names, labeler, settings),
        unseen,
    )
    print()


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="*", metavar="FOLDER", help="leave one image out of each")
    parser.add_argument("--train", type=Path, metavar="FOLDER", help="train on all of this one")
    parser.add_argument("--test", type=Path, metavar="FOLDER", help="and score this one")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if bool(args.folder) == bool(args.train) or bool(args.train) != bool(args.test):
        parser.error("give one or more FOLDERs, or --train FOLDER --test FOLDER")
    for folder in args.folder:
        study = load_study(folder)
        for title in study.metrics:
            score(study, title, args.seed)
    if args.train:
        train, test = load_study(args.train), load_study(args.test)
        for title in itertools.chain(title for title in train.metrics if title in test.metrics):
            score_other(train, test, title, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())

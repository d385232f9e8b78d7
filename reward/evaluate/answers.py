"""Collect scorers' answers to labelled pairs: of reward models, stored metric values, and any file of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from dataset.labelled import LabelledPair
from db.candidates import SPREAD_PREFIX
from db.errors import UserError
from pixels.read import RgbImage
from reward.score.scorer import Scorer, choose_photo, read_batches, score_batch, split_name, stack_inputs
from runs.tables import restore_cell

Array = npt.NDArray[Any]
ANSWER_COLUMNS = ("p_a", "machine_p_a")
"""Columns that may hold the probability that a is better: ours, and `annotate fit`'s in judged.csv."""


@dataclass(frozen=True)
class Answers:
    """Answers of one scorer to n pairs, in their order."""

    name: str
    kind: Literal["reward model", "metric", "pair predictor"]
    margin: Array
    """(n,) positive where a is preferred, 0 where neither is; NaN where the scorer says nothing."""
    p_a: Array | None
    """(n,) probability that a is better; None for a scorer that gives none."""


def answer_by_model(
    scorer: Scorer,
    pairs: Sequence[LabelledPair],
    batch_size: int,
    change: Callable[[RgbImage], RgbImage] | None = None,
    *,
    backwards: bool = False,
) -> Answers:
    """A reward model's answers; each image is scored once for each caption and photo that it is shown with.

    Args:
        change: what is done to every image first, but not to the photo that a seeing model has beside it.
        backwards: score the images in the other order, so b before a and in other batches.
    Raises:
        UserError: an image cannot be read, or the batch is too large for the memory.
    """
    photo = choose_photo(scorer)
    seen_of = {row.pair: getattr(row, photo) if photo else None for row in pairs}
    wanted = {(row.caption, path, seen_of[row.pair]): None for row in pairs for path in (row.image_a, row.image_b)}
    ordered = list(wanted)[::-1] if backwards else list(wanted)
    rewards: dict[tuple[str | None, Path, Path | None], float] = {}
    for batch in read_batches(((item, item[1], item[2]) for item in ordered), batch_size):
        items, images, seen = zip(*batch, strict=True)
        changed = [change(image) if change else image for image in images]
        values = score_batch(scorer, changed, [caption for caption, _, _ in items], stack_inputs(seen))
        rewards.update(zip(items, values.tolist(), strict=True))
    a = np.array([rewards[row.caption, row.image_a, seen_of[row.pair]] for row in pairs])
    b = np.array([rewards[row.caption, row.image_b, seen_of[row.pair]] for row in pairs])
    margin = (a - b) * float(scorer.model.logit_scale.detach())
    return Answers(scorer.name, "reward model", margin, np.asarray(expit(margin)))


def answer_by_metrics(dataset: Path, pairs: Sequence[LabelledPair]) -> list[Answers]:
    """The answers of every metric that the dataset's `scores.parquet` has values of, by name; none without that file.

    A metric with references answers once for each kind of them, such as 'ssim@lq' and 'ssim@hq'. Of a metric that is
    stored in several versions, each answers, its version in its name. The spread over a reward's members is no answer.

    Raises:
        UserError: the file is not a table of scores.
    """
    file = dataset / "scores.parquet"
    if not file.exists() or any(row.sha256_a is None for row in pairs):
        return []
    columns = ["sha256", "metric", "version", "reference", "value"]
    try:
        scores = pd.read_parquet(file, columns=columns)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a table of scores ({error}). Export the dataset again.") from error
    scores = scores[~scores["metric"].str.startswith(SPREAD_PREFIX)]
    hashes = {name: [_stem(getattr(row, name)) for row in pairs] for name in ("lq", "hq")}
    sides = [[row.sha256_a for row in pairs], [row.sha256_b for row in pairs]]
    versions = scores.groupby("metric")["version"].nunique()
    found = []
    for (metric, version), rows in scores.groupby(["metric", "version"], sort=True):
        shown = f"{metric} ({version})" if versions[str(metric)] > 1 else str(metric)
        values = rows.set_index(["sha256", "reference"])["value"]
        for kind in ("lq", "hq") if (rows["reference"] != "").any() else ("",):
            references = hashes[kind] if kind else [""] * len(pairs)
            a, b = (values.reindex(list(zip(side, references, strict=True))).to_numpy(float) for side in sides)
            if np.isfinite(a - b).any():
                found.append(Answers(f"{shown}@{kind}" if kind else shown, "metric", a - b, None))
    return found


def _stem(path: Path | None) -> str | None:
    """The SHA-256 in the name of a dataset's image."""
    return path.stem if path else None


def answer_by_file(asked: str, pairs: Sequence[LabelledPair]) -> Answers:
    """Anybody's answers from a CSV file: columns pair and p_a, or machine_p_a as `annotate fit` writes judged.csv.

    Args:
        asked: FILE, or NAME=FILE.
    Raises:
        UserError: no such file, a column is missing, a pair is there twice, a probability is none, or none of the
            pairs is answered.
    """
    name, what = split_name(asked)
    path = Path(what).expanduser()
    try:
        table = pd.read_csv(path, dtype={"pair": str}, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}).") from error
    column = next((column for column in ANSWER_COLUMNS if column in table), None)
    if "pair" not in table or column is None:
        raise UserError(
            f"{path}: has the columns {', '.join(map(str, table.columns))}; it needs pair and "
            f"{' or '.join(ANSWER_COLUMNS)}."
        )
    table["pair"] = table["pair"].map(restore_cell, na_action="ignore")
    if table["pair"].duplicated().any():
        raise UserError(f"{path}: pair {table.loc[table['pair'].duplicated(), 'pair'].iloc[0]} is there twice.")
    p_a = pd.to_numeric(table[column], errors="coerce").set_axis(table["pair"])
    if not p_a.dropna().between(0, 1).all():
        raise UserError(f"{path}: {column} is a probability, 0 to 1; found {p_a.min():g} to {p_a.max():g}.")
    answers = p_a.reindex([row.pair for row in pairs]).to_numpy(float)
    if not np.isfinite(answers).any():
        raise UserError(f"{path}: answers none of the {len(pairs):,} pairs; is it of another dataset or split?")
    return Answers(name or path.stem, "pair predictor", answers - 0.5, answers)

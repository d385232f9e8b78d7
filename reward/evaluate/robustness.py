"""Test that a reward model's answers stay when images change in ways that no person minds."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image as PilImage

from dataset.labelled import LabelledPair
from metrics.accuracy import compute_credit
from pixels.read import RgbImage
from reward.evaluate.answers import answer_by_model
from reward.evaluate.compare import Labels
from reward.score.scorer import Scorer, choose_photo

AS_THEY_ARE, SWAPPED = "as they are", "swapped, in other batches"
SHUFFLED = "inputs shuffled among photos"


def measure_robustness(scorer: Scorer, labels: Labels, n_pairs: int, batch_size: int, seed: int = 0) -> pd.DataFrame:
    """A row per condition, on pairs drawn from those that people decided; both images of a pair change alike.

    SHUFFLED leaves the images and takes the photo beside them from another pair; what sees none answers as before.

    scorer, condition, n (pairs), same, low, high (share of pairs with the same preference as before, with interval),
    accuracy (share of people's answers), change (mean change of the margin, as a share of the mean margin).

    Raises:
        UserError: an image cannot be read, or the batch is too large for the memory.
    """
    places = np.nonzero(labels.decided)[0]
    drawn = np.sort(np.random.default_rng(seed).permutation(places)[:n_pairs])
    part = Labels(tuple(labels.pairs[place] for place in drawn), labels.answers[drawn])
    everything = np.ones(len(drawn), dtype=bool)
    photo = choose_photo(scorer)
    shuffled = shuffle_inputs(part.pairs, labels.pairs, photo, seed) if photo else part.pairs
    before = answer_by_model(scorer, part.pairs, batch_size).margin
    rows = []
    for name, change in CONDITIONS.items():
        pairs = shuffled if name == SHUFFLED else part.pairs
        if pairs is None:
            continue
        margin = before
        if name != AS_THEY_ARE and not (name == SHUFFLED and photo is None):
            margin = answer_by_model(scorer, pairs, batch_size, change, backwards=name == SWAPPED).margin
        same = (np.sign(margin) == np.sign(before)).astype(float)
        accuracy = part.share(compute_credit(margin, part.p_a), everything, seed)[0]
        apart = np.abs(before).mean()
        change_share = float(np.abs(margin - before).mean() / apart) if apart else 0.0
        interval = part.share(same, everything, seed)
        rows.append((scorer.name, name, len(drawn), *interval, accuracy, change_share))
    return pd.DataFrame(rows, columns=["scorer", "condition", "n", "same", "low", "high", "accuracy", "change"])


def shuffle_inputs(
    pairs: Sequence[LabelledPair], donors: Sequence[LabelledPair], photo: Literal["lq", "hq"], seed: int
) -> tuple[LabelledPair, ...] | None:
    """The pairs, each with the photo of another: of another person where there is one, never its own.

    None where there is one photo in all, so that nobody can have another's.
    """
    rng = np.random.default_rng(seed)
    groups = {getattr(row, photo): row.group for row in donors}
    shuffled: dict[str, LabelledPair] = {}
    for row in pairs:
        own = getattr(row, photo)
        others = [path for path, group in groups.items() if path != own and group != row.group]
        others = others or [path for path in groups if path != own]
        if not others:
            return None
        shuffled.setdefault(row.source, replace(row, **{photo: others[rng.integers(len(others))]}))
    return tuple(replace(row, **{photo: getattr(shuffled[row.source], photo)}) for row in pairs)


def compress(image: RgbImage, quality: int) -> RgbImage:
    """The image after JPEG of that quality, 1 … 100."""
    buffer = io.BytesIO()
    PilImage.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return np.array(PilImage.open(buffer).convert("RGB"))


def resize(image: RgbImage, factor: float) -> RgbImage:
    """The image shrunk by the factor and brought back to its size, both bicubic."""
    height, width = image.shape[:2]
    small = PilImage.fromarray(image).resize(
        (max(1, round(width * factor)), max(1, round(height * factor))), PilImage.Resampling.BICUBIC
    )
    return np.array(small.resize((width, height), PilImage.Resampling.BICUBIC))


def shift(image: RgbImage, share: float) -> RgbImage:
    """The image moved right and down by a share of its longer side, at least a pixel; its edge fills the gap."""
    step = max(1, round(share * max(image.shape[:2])))
    padded = np.pad(image, ((step, 0), (step, 0), (0, 0)), mode="edge")
    return np.ascontiguousarray(padded[: image.shape[0], : image.shape[1]])


CONDITIONS: dict[str, Callable[[RgbImage], RgbImage] | None] = {
    AS_THEY_ARE: None,
    SWAPPED: None,
    "JPEG, quality 90": partial(compress, quality=90),
    "JPEG, quality 50": partial(compress, quality=50),
    "three quarters the size and back": partial(resize, factor=0.75),
    "half the size and back": partial(resize, factor=0.5),
    "shifted by 1/256 of the side": partial(shift, share=1 / 256),
    "shifted by 1/32 of the side": partial(shift, share=1 / 32),
    SHUFFLED: None,
}

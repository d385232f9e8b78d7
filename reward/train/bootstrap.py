"""Weigh labels for each member of a reward model by a bootstrap over photos and people.

A member sees the labels as another study might have given them: each photo and each person counts more or less often by
a draw of its own. Where members disagree, the labels do not say.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from db.errors import UserError
from reward.data import Pairs


def weigh_labels(pairs: Pairs, weights: Sequence[float], members: int, seed: int) -> Tensor:
    """(members, pairs) float32 factors on the loss: the labels' own weights, of several members times each one's draw.

    A label's draw is that of its photo times the mean of those of the people whose judgments it was made of, each from
    the exponential distribution of mean 1. It depends on seed, member and names alone.

    Source: the Bayesian bootstrap, Rubin 1981; over two factors at once as Owen & Eckles 2012, arXiv:1106.2125.
    """
    own = torch.tensor(weights, dtype=torch.float32)
    if members == 1:
        return own[None]
    person_of = read_people(pairs.path)
    people = [{person_of[judgment] for judgment in row.judgments if judgment in person_of} for row in pairs.rows]
    factors = [
        [
            draw_weight(seed, member, "photo", row.source)
            * fmean([draw_weight(seed, member, "person", one) for one in sorted(judged)] or [1.0])
            for row, judged in zip(pairs.rows, people, strict=True)
        ]
        for member in range(members)
    ]
    return own * torch.tensor(factors, dtype=torch.float32)


def read_people(dataset: Path) -> dict[str, str]:
    """Who gave each judgment, by its key in `judgments.jsonl`; empty where the dataset has none.

    Raises:
        UserError: a line is malformed; named.
    """
    file, people = dataset / "judgments.jsonl", {}
    if not file.is_file():
        return {}
    with open(file, encoding="utf-8-sig") as stream:
        for number, text in enumerate(stream, 1):
            try:
                line = json.loads(text)
                people[str(line["uuid"])] = str(line["person"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{file}, line {number}: not a judgment ({error}). Export the dataset again."
                ) from error
    return people


def draw_weight(seed: int, member: int, kind: str, name: str) -> float:
    """Above 0, exponential with mean 1, by a seeded hash of the name."""
    digest = hashlib.sha256(f"bootstrap\n{seed}\n{member}\n{kind}\n{name}".encode()).hexdigest()
    return -math.log((int(digest[:13], 16) + 0.5) / 16**13)

"""Compare scorers on pairs that people answered and no training saw: arrays in, tables out.

Accuracy is the share of people's answers that a scorer's equals: p_a of a label where the scorer prefers a, 1 − p_a
where b, one half where neither. Ties among labels are left out of it and reported apart. Intervals are 95 %, from
resampling people in the photos (photos, where unknown). Only pairs that were picked at random measure anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import mannwhitneyu

from dataset.labelled import LabelledPair
from metrics.accuracy import bootstrap_mean, bootstrap_share, compute_calibration, compute_credit
from metrics.votes import compute_ceiling
from reward.evaluate.answers import Answers

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

MARGIN_BINS = 4
RESAMPLES = 1000
AGREEMENT_NAMES = ("one answer", "split", "most agree", "all agree")
MOST_AGREE = 0.75
"""Share of a label's answers from which people 'most agree'; below, they are 'split'."""


@dataclass(frozen=True)
class Labels:
    """People's labels of n pairs of one split."""

    pairs: tuple[LabelledPair, ...]
    answers: Array
    """(n,) how many answers of people each label was made of; 0 where that is not known."""

    @cached_property
    def p_a(self) -> Array:
        """(n,) share of people's answers for a."""
        return np.array([row.p_a for row in self.pairs])

    @cached_property
    def weight(self) -> Array:
        """(n,) of the labels."""
        return np.array([row.weight for row in self.pairs])

    @cached_property
    def sources(self) -> Array:
        """(n,) names of the photos."""
        return np.array([row.source for row in self.pairs])

    @cached_property
    def groups(self) -> Array:
        """(n,) the person in each photo where known, else the photo: what resampling keeps whole.

        Pairs that follow from one answer about several candidates are of one photo, so they stay together too.
        """
        return np.array([row.group for row in self.pairs])

    @cached_property
    def decided(self) -> Mask:
        """(n,) no tie."""
        return np.asarray(self.p_a != 0.5)

    def measured(self, answers: Answers) -> Mask:
        """(n,) what an accuracy is measured on: no tie, and the scorer says something."""
        return self.decided & np.isfinite(answers.margin)

    def share(self, values: Array, chosen: Mask, seed: int = 0) -> tuple[float, float, float]:
        """As `interval`, of values in [0, 1]."""
        return bootstrap_share(values[chosen], self.weight[chosen], self.groups[chosen], seed)

    def interval(self, values: Array, chosen: Mask, seed: int = 0) -> tuple[float, float, float]:
        """(mean, low, high) of (n,) values over the chosen pairs."""
        return bootstrap_mean(values[chosen], self.weight[chosen], self.groups[chosen], seed)


def compare_scorers(scorers: Sequence[Answers], labels: Labels, seed: int = 0) -> pd.DataFrame:
    """A row per scorer, in their order.

    scorer, kind, accuracy, low, high, n (pairs measured), unanswered (pairs it says nothing of), undecided (of n, where
    it prefers neither); a_share, a_share_low, a_share_high: how often it prefers a, which is drawn by a hash, so
    anything but one half is a bias; first_ahead, …_low, …_high: how far the first scorer is ahead of it, on the pairs
    that both answer.
    """
    p_a, rows = labels.p_a, []
    first = compute_credit(scorers[0].margin, p_a)
    for answers in scorers:
        chosen = labels.measured(answers)
        both = chosen & labels.measured(scorers[0])
        credit = compute_credit(answers.margin, p_a)
        prefers_a = np.where(answers.margin == 0, 0.5, answers.margin > 0)
        rows.append(
            (
                answers.name,
                answers.kind,
                *labels.share(credit, chosen, seed),
                int(chosen.sum()),
                int((~np.isfinite(answers.margin)).sum()),
                int((answers.margin[chosen] == 0).sum()),
                *labels.share(prefers_a, chosen, seed),
                *labels.interval(first - credit, both, seed),
            )
        )
    columns = ["scorer", "kind", "accuracy", "low", "high", "n", "unanswered", "undecided"]
    columns += [f"{name}{end}" for name in ("a_share", "first_ahead") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=columns)


def calibrate_scorers(scorers: Sequence[Answers], labels: Labels, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(curves: scorer, confidence, accuracy, low, high, n; a row per scorer: scorer, calibration_error, brier).

    Only of scorers that give probabilities; see `metrics.accuracy.compute_calibration`.
    """
    curves, errors = [], []
    for answers in scorers:
        chosen = labels.measured(answers)
        if answers.p_a is None or not chosen.any():
            continue
        curve, error, brier = compute_calibration(
            answers.p_a[chosen], labels.p_a[chosen], labels.weight[chosen], labels.groups[chosen], seed
        )
        curves.append(curve.assign(scorer=answers.name))
        errors.append((answers.name, error, brier))
    columns = ["scorer", "confidence", "accuracy", "low", "high", "n"]
    table = pd.concat(curves)[columns] if curves else pd.DataFrame(columns=columns)
    return table.reset_index(drop=True), pd.DataFrame(errors, columns=["scorer", "calibration_error", "brier"])


def compare_by(
    scorers: Sequence[Answers], labels: Labels, groups: Sequence[str], column: str, seed: int = 0
) -> pd.DataFrame:
    """Accuracy within groups of pairs: scorer, `column`, accuracy, low, high, n; a group without a pair has no row.

    Args:
        groups: (n,) names; a name's first place gives its order.
    """
    names, rows = np.array(groups, dtype=object), []
    for answers in scorers:
        credit, measured = compute_credit(answers.margin, labels.p_a), labels.measured(answers)
        for name in dict.fromkeys(groups):
            chosen = measured & (names == name)
            if chosen.any():
                rows.append((answers.name, name, *labels.share(credit, chosen, seed), int(chosen.sum())))
    return pd.DataFrame(rows, columns=["scorer", column, "accuracy", "low", "high", "n"])


def name_method_pairs(labels: Labels) -> list[str]:
    """(n,) 'codeformer vs gfpgan', the two in the order of the alphabet."""
    return [" vs ".join(sorted((row.method_a or "", row.method_b or ""))) for row in labels.pairs]


def name_agreement(labels: Labels) -> list[str]:
    """(n,) how far people agreed on each pair, one of AGREEMENT_NAMES; 'not known' without their number."""
    names = []
    for row, answers in zip(labels.pairs, labels.answers, strict=True):
        share = row.agreement if row.agreement is not None else max(row.p_a, 1 - row.p_a)
        if answers < 2:
            names.append(AGREEMENT_NAMES[0] if answers else "not known")
        else:
            names.append(AGREEMENT_NAMES[1 + (share >= MOST_AGREE) + (share == 1)])
    return names


def compare_by_margin(scorers: Sequence[Answers], labels: Labels, seed: int = 0) -> pd.DataFrame:
    """Accuracy by how far apart a scorer sees the two images, in MARGIN_BINS of equally many pairs.

    scorer, bin (1 for the closest), margin_from, margin_to (in the scorer's own unit), accuracy, low, high, n.
    """
    rows = []
    for answers in scorers:
        credit, apart = compute_credit(answers.margin, labels.p_a), np.abs(answers.margin)
        places = np.nonzero(labels.measured(answers))[0]
        ordered = places[np.argsort(apart[places], kind="stable")]
        for number, part in enumerate(np.array_split(ordered, MARGIN_BINS), 1):
            if len(part):
                chosen = np.zeros(len(apart), dtype=bool)
                chosen[part] = True
                ends = apart[part[0]], apart[part[-1]]
                rows.append((answers.name, number, *ends, *labels.share(credit, chosen, seed), len(part)))
    return pd.DataFrame(rows, columns=["scorer", "bin", "margin_from", "margin_to", "accuracy", "low", "high", "n"])


def compare_ties(scorers: Sequence[Answers], labels: Labels) -> pd.DataFrame:
    """Compute whether a scorer rates people's ties as close: scorer, ties, tie_auc.

    tie_auc is the probability that the margin of a pair that people decided is larger than that of one they called a
    tie; one half where the margin knows nothing of ties, NaN without ties.
    """
    rows = []
    for answers in scorers:
        known, apart = np.isfinite(answers.margin), np.abs(answers.margin)
        ties, decided = apart[known & ~labels.decided], apart[known & labels.decided]
        auc = float("nan")
        if len(ties) and len(decided):
            auc = float(mannwhitneyu(decided, ties).statistic) / (len(ties) * len(decided))
        rows.append((answers.name, len(ties), auc))
    return pd.DataFrame(rows, columns=["scorer", "ties", "tie_auc"])


def describe_people(labels: Labels, votes: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Compute the accuracy that people reach themselves, to compare scorers with.

    ceiling: how often one person's answer is that of most others, ties left out as they are in an accuracy;
    ceiling_with_ties: the same with ties as answers, as the Report page has it; both with low, high and n.
    majority: the accuracy of always answering as most people did, which no scorer can pass.
    """
    names = ("value", "low", "high", "n")
    known = labels.decided
    majority = labels.share(np.maximum(labels.p_a, 1 - labels.p_a), known, seed)
    return {
        "ceiling": dict(zip(names, compute_ceiling(votes[votes["choice"] != "tie"], RESAMPLES, seed), strict=True)),
        "ceiling_with_ties": dict(zip(names, compute_ceiling(votes, RESAMPLES, seed), strict=True)),
        "majority": dict(zip(names, (*majority, int(known.sum())), strict=True)),
    }

"""Find what the order of showing does to answers: the side, the place on the screen, and the time of answering."""

from __future__ import annotations

import numpy as np
import pandas as pd

from annotate.report.side_bias import SideBias
from metrics.answers import list_comparisons
from metrics.plackett_luce import Floats
from metrics.rankings import read_ranking
from metrics.two_way import compute_half_width, number_clusters

MIN_ANSWERS = 20
"""Answers below which an effect is not given."""
COLUMNS = ["effect", "what", "value", "low", "high", "expected", "n", "sentence"]


def compute_order_effects(answers: pd.DataFrame, ranking: pd.DataFrame, side: SideBias) -> pd.DataFrame:
    """A row an effect: COLUMNS, with a sentence for the report. Intervals are 95 %, over photos and people.

    side: share of left among pairs that are no ties; place: share of tasks whose best stood at each place on the
    screen, against one by the number of places; time: the second half of each person's answers against the first, in
    the share of comparisons that agree with the ranking of all, and in seconds.

    Args:
        ranking: as `metrics.votes.rank_methods` gives it.
    """
    rows = [_describe_side(side), *_compare_places(answers), *_compare_halves(answers, ranking)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _describe_side(side: SideBias) -> tuple[object, ...]:
    ends = side.left_share, side.left_share_low, side.left_share_high
    if side.n_decisive < MIN_ANSWERS:
        said = f"Side: not known from {side.n_decisive} answers to pairs without ties."
    else:
        said = f"Side: left was chosen in {ends[0]:.1%} [{ends[1]:.1%}, {ends[2]:.1%}] of pairs"
        said += _judge(0.5, *ends[1:])
    return ("side", "left chosen", *ends, 0.5, side.n_decisive, said)


def _judge(expected: float, low: float, high: float) -> str:
    if not low <= high:  # NaN
        return ": how sure that is cannot be told from answers all alike, or on one photo."
    return ": no effect is seen." if low <= expected <= high else ": an effect that chance does not explain."


def _compare_places(answers: pd.DataFrame) -> list[tuple[object, ...]]:
    """A row a size of task and place: how often the best stood there."""
    rows: list[tuple[object, ...]] = []
    sizes = answers["methods"].map(len)
    for size in sorted(set(sizes[sizes > 2])):
        own = answers[(sizes == size) & ~answers["ranking"].str.startswith("?")]
        n, found = len(own), []
        if n < MIN_ANSWERS:
            rows.append(
                ("place", f"of {size}", *[np.nan] * 3, 1 / size, n, f"Place: not known from {n} tasks of {size}.")
            )
            continue
        best = [read_ranking(ranking, size)[0][0] for ranking in own["ranking"]]
        clusters = number_clusters(own)
        for place in range(size):
            won = np.array(
                [(at[place] in tier) / len(tier) for at, tier in zip(own["places"], best, strict=True)], dtype=float
            )
            half = compute_half_width((won - won.mean()) / n, *clusters)
            found.append((float(won.mean()), float(won.mean() - half), float(won.mean() + half)))
        named = ", ".join(f"{place + 1}: {share:.1%}" for place, (share, _, _) in enumerate(found))
        off = [str(place + 1) for place, (_, low, high) in enumerate(found) if low > 1 / size or high < 1 / size]
        said = f"Place: the best of {size} stood at place {named}, where {1 / size:.1%} is chance"
        said += f": more or less than chance at {', '.join(off)}." if off else ": no effect is seen."
        rows += [
            ("place", f"{place + 1} of {size}", *ends, 1 / size, n, said if place == 0 else "")
            for place, ends in enumerate(found)
        ]
    return rows


def _compare_halves(answers: pd.DataFrame, ranking: pd.DataFrame) -> list[tuple[object, ...]]:
    """Agreement with the ranking, and seconds, of the second half of each person's answers against the first."""
    order = answers.sort_values(["created_at", "judgment"]) if "judgment" in answers else answers
    turn = order.groupby("person").cumcount().reindex(answers.index).to_numpy()
    many = answers.groupby("person")["person"].transform("size").to_numpy()
    # An odd one in the middle is left out, so that both halves are as large.
    second = np.where(turn < many // 2, -1.0, np.where(turn >= (many + 1) // 2, 1.0, 0.0))
    n = int((second != 0).sum())
    if n < MIN_ANSWERS:
        return [("time", "second half", *[np.nan] * 3, 0.0, n, f"Time: not known from {n} answers.")]
    seconds = np.log(answers["seconds"].to_numpy(dtype=float).clip(min=0.1))
    agreed, faster = (_contrast(answers, values, second) for values in (_share_agreeing(answers, ranking), seconds))
    said = (
        f"Time: in the second half of their answers people agree with the ranking {_span(agreed, '+.1%')} of the time"
    )
    said += f" against the first{_judge(0.0, *agreed[1:])}"
    ratio = tuple(float(end) for end in np.exp(faster))
    told = f"Time: the second half of answers takes {_span(ratio, '.2f')} times as long as"
    return [
        ("time", "agreement with the ranking, second half less first", *agreed, 0.0, n, said),
        ("time", "seconds, second half by first", *ratio, 1.0, n, f"{told} the first{_judge(1.0, *ratio[1:])}"),
    ]


def _span(ends: tuple[float, ...], style: str) -> str:
    """A value with its interval, where it has one."""
    value, low, high = ends
    return f"{value:{style}}" + (f" [{low:{style}}, {high:{style}}]" if low <= high else "")


def _contrast(answers: pd.DataFrame, values: Floats, second: Floats) -> tuple[float, float, float]:
    """(mean of the second half less that of the first, low, high); NaN values are left out."""
    known = np.isfinite(values) & (second != 0)
    own, sign = values[known], second[known]
    difference = np.zeros(len(own))
    for half in (-1.0, 1.0):
        chosen = sign == half
        difference[chosen] = half * (own[chosen] - own[chosen].mean()) / chosen.sum()
    mean = float(own[sign > 0].mean() - own[sign < 0].mean())
    width = compute_half_width(difference, *number_clusters(answers[known]))
    return mean, mean - width, mean + width


def _share_agreeing(answers: pd.DataFrame, ranking: pd.DataFrame) -> Floats:
    """(n,) share of each answer's comparisons that the method of the higher score won; a tie is half; NaN of none."""
    score = ranking.set_index("method")["score"]
    compared = list_comparisons(answers)
    compared = compared[compared["method_a"] != compared["method_b"]]
    ahead = compared["method_a"].map(score) > compared["method_b"].map(score)
    right = np.where(compared["choice"] == "tie", 0.5, (compared["choice"] == "a") == ahead)
    shares = pd.Series(right.astype(float)).groupby(compared["answer"].to_numpy()).mean()
    return np.asarray(shares.reindex(range(len(answers))), dtype=float)

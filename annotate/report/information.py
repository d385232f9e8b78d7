"""Compare the ways of asking by what they tell of the methods in a second: pairs, the best of several, orders."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from metrics.plackett_luce import Fit, Floats, Tally, compute_gradients, compute_shares, fit, tally_answers
from metrics.two_way import compute_half_width, number_clusters

MIN_ANSWERS = 20
"""Answers of a way of asking below which it is not compared."""
LONGEST_SECONDS = 120.0
"""A longer answer counts as this: whoever takes more has done something else."""
PAIR = "pair"
COLUMNS = ["asked", "n", "seconds", "information", "per_second", "sharpness", "ratio", "low", "high"]


def compare_asked(answers: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """(a row a way of asking: COLUMNS; a sentence for the report).

    `information` is the mean over answers of the trace of the Fisher information of the methods' scores, at the scores
    of all answers, times the square of `sharpness`: how much farther apart this way's answers see the methods than all
    do, so that hasty choices among many are not taken for as sure as a pair's. `seconds` are the server's where it saw
    them, LONGEST_SECONDS at most, the mean. `ratio` is per second against pairs, with its 95 % interval over photos and
    people. A way with fewer than MIN_ANSWERS answers, or answers that tell nothing, has no row.
    """
    tally = tally_answers(answers)
    found = fit(tally)
    told, pulls = _inform(tally, found), {}
    seconds = _take_seconds(answers)
    rows = []
    for asked in sorted(set(answers["asked"]), key=lambda name: (name != PAIR, name)):
        own = ((answers["asked"] == asked) & (seconds > 0)).to_numpy()
        if own.sum() < MIN_ANSWERS or told[own].sum() <= 0:
            continue
        sharpness, bend = _fit_sharpness(tally, found, own)
        n, mean_seconds = int(own.sum()), float(seconds[own].mean())
        information = float(told[own].mean()) * sharpness**2
        # How far each answer pulls log(information / second).
        pulls[asked] = np.where(own, told / told[own].sum() - seconds / seconds[own].sum() + 2 * bend / sharpness, 0.0)
        rows.append((asked, n, mean_seconds, information, information / mean_seconds, sharpness))
    table = pd.DataFrame(rows, columns=COLUMNS[:6]).astype({"asked": str})
    table[["ratio", "low", "high"]] = np.nan
    if PAIR not in pulls or len(pulls) < 2:
        ways = ", ".join(sorted(set(answers["asked"])))
        return table, (
            "Which way of asking tells more in a second cannot be told: there must be "
            f"{MIN_ANSWERS} answers to pairs and {MIN_ANSWERS} of another way; there are {len(answers):,} by {ways}."
        )
    clusters = number_clusters(answers)
    base = float(table.loc[table["asked"] == PAIR, "per_second"].iloc[0])
    for at, row in table[table["asked"] != PAIR].iterrows():
        ratio = row["per_second"] / base
        half = compute_half_width(pulls[row["asked"]] - pulls[PAIR], *clusters)
        table.loc[at, ["ratio", "low", "high"]] = ratio, ratio * np.exp(-half), ratio * np.exp(half)
    return table, " ".join(_describe(row) for row in table[table["asked"] != PAIR].to_dict("records"))


def _describe(row: dict[Hashable, Any]) -> str:
    asked = str(row["asked"]).replace("_", " and ")
    interval = f" [{row['low']:.2f}, {row['high']:.2f}]" if row["low"] <= row["high"] else ""
    said = f"Asked for {asked}, a second tells {row['ratio']:.2f}{interval} times as much as with pairs "
    return f"{said}({row['n']:,} answers, {row['seconds']:.1f} s each)."


def _take_seconds(answers: pd.DataFrame) -> Floats:
    seconds = answers["seconds"].astype(float)
    if "server_seconds" in answers:
        seconds = answers["server_seconds"].astype(float).fillna(seconds)
    return np.asarray(seconds.clip(upper=LONGEST_SECONDS))


def _inform(tally: Tally, found: Fit) -> Floats:
    """(n,) trace of each answer's Fisher information of the scores."""
    share = compute_shares(tally, found.scores)
    traces = 1 - np.asarray(share.multiply(share).sum(axis=1)).ravel()
    return np.asarray(tally.asked @ traces)


def _fit_sharpness(tally: Tally, found: Fit, own: np.ndarray) -> tuple[float, Floats]:
    """(factor by which all scores fit these answers best, (n,) how far each answer of them moved it); Newton."""
    factor, weights = 1.0, own.astype(float)
    for _ in range(50):
        scaled = replace(found, scores=factor * found.scores)
        pull = compute_gradients(tally, scaled.scores) @ found.scores
        share = compute_shares(tally, scaled.scores)
        mean = share @ found.scores
        variance = share @ found.scores**2 - mean**2
        curvature = float(weights @ (tally.asked @ variance))
        if curvature <= 1e-9:  # the methods are alike: their distance says nothing of how sharply people see it
            return 1.0, np.zeros(len(own))
        step = float(weights @ pull) / curvature
        factor = max(factor + float(np.clip(step, -1, 1)), 0.05)
        if abs(step) < 1e-8:
            break
    return factor, np.where(own, pull / curvature, 0.0)

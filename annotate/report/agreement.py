"""Compute how far people agree, with each other and themselves, and find grounds to doubt a person's answers.

Tables in, tables out: `judgments` as `annotate.report.rank.load_judgments`, `votes` as
`annotate.report.rank.select_votes` gives them. Where there is too little to say something, the value is NaN and the
count beside it tells why. Flags are for an admin to read; nothing here leaves a judgment out or deletes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from annotate.report.side_bias import compute_wilson
from metrics.votes import CHOICES, MIN_SHARED_PAIRS, compare_with_others, compute_ceiling

MIN_COMPARED = 5
"""Answers below which a person's share of anything is not given."""
MIN_GOLD = 5
GOLD_ACCURACY = 0.7
SAME_SIDE_P = 0.001
"""Two-sided binomial test of left against right."""
MIN_REPEATS = 20
"""Repeats below which consistency is not held against chance."""
FAST_SECONDS = 0.4
"""Below it, by the claim or by the server's clock, nobody has looked at a pair."""
FAST_SHARE = 0.2
CARRIED_SECONDS = 300.0
"""A page has up to five pairs ahead, so no more than some minutes of answers ever wait for a network."""
CLAIM_TOLERANCE_SECONDS = 0.25
OVERCLAIMED_SHARE = 0.1
MIN_JUDGMENTS = 20
PEOPLE_COLUMNS = [
    "person",
    "simulated",
    "judgments",
    "skips",
    "votes",
    "tie_share",
    "repeats",
    "consistency",
    "consistency_low",
    "consistency_high",
    "shared_pairs",
    "agreement",
    "agreement_low",
    "agreement_high",
    "decisive",
    "left_share",
    "left_share_low",
    "left_share_high",
    "median_seconds",
    "fast_share",
    "timed",
    "overclaimed_share",
    "gold",
    "gold_right",
    "gold_accuracy",
    "flags",
]


def compute_agreement(votes: pd.DataFrame, *, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Three numbers of the whole group: measure, value, low, high (95 %), n, unit.

    'alpha nominal' and 'alpha ordinal' (a < tie < b) are Krippendorff's alpha over the pairs that two or more judged:
    1 is perfect agreement, 0 what chance gives. 'human ceiling' is the share of people's answers that equal the
    majority of the other people's; simulated annotators never count in it, and its interval resamples sources.
    """
    rows = [_alpha(votes, "nominal", n_resamples, seed), _alpha(votes, "ordinal", n_resamples, seed)]
    ceiling = compute_ceiling(votes, n_resamples, seed)
    rows.append(("human ceiling", *ceiling, "people's answers with a majority of others"))
    return pd.DataFrame(rows, columns=["measure", "value", "low", "high", "n", "unit"])


def _alpha(
    votes: pd.DataFrame, distance: Literal["nominal", "ordinal"], n_resamples: int, seed: int
) -> tuple[str, float, float, float, int, str]:
    import evalica

    # Codes, not letters: the order of the values is what makes 'ordinal' ordinal.
    codes = votes["choice"].map({choice: float(place) for place, choice in enumerate(CHOICES)})
    ratings = votes.assign(code=codes).pivot(index="person", columns="pair", values="code")
    shared = ratings.loc[:, ratings.notna().sum() > 1] if len(votes) else ratings
    n, name, unit, nan = shared.shape[1], f"alpha {distance}", "pairs judged by two or more", float("nan")
    # With one answer only there is no disagreement to expect, and alpha is not defined.
    if n < MIN_SHARED_PAIRS or len(np.unique(shared.to_numpy()[shared.notna().to_numpy()])) < 2:
        return name, nan, nan, nan, n, unit
    if n_resamples < 1:
        return name, float(evalica.alpha(shared, distance).alpha), nan, nan, n, unit
    result = evalica.alpha_bootstrap(shared, distance, n_resamples=n_resamples, random_state=seed)
    # Perfect agreement, say, is the same in every resample, which is not to say that it is certain.
    low, high = (float(result.low), float(result.high)) if result.high > result.low else (nan, nan)
    return name, float(result.alpha), low, high, n, unit


def compare_repeats(judgments: pd.DataFrame) -> pd.DataFrame:
    """Each repeat against the same person's first answer: person, consistent.

    Sides are swapped in a repeat: the same candidate again is consistent, and so are two ties. Skips are left out.
    """
    answered = judgments[(judgments["choice"] != "skip") & judgments["gold_answer"].isna()]
    first = answered[answered["repeat_no"] == 0][["person", "pair", "choice"]]
    again = answered[answered["repeat_no"] > 0][["person", "pair", "choice"]]
    both = again.merge(first, on=["person", "pair"], suffixes=("_again", "_first"))
    return pd.DataFrame({"person": both["person"], "consistent": both["choice_again"] == both["choice_first"]})


@dataclass(frozen=True)
class _Counts:
    """One person's answers, counted; what the shares and the flags are made of."""

    judgments: int
    skips: int
    votes: int
    ties: int
    left: int
    """Votes for the left side; votes that are not ties are `votes - ties`."""
    repeats: int
    same: int
    shared: int
    agreed: int
    gold: int
    gold_right: int
    fast: int
    timed: int
    """Judgments of which the server saw the time."""
    overclaimed: int
    claimed_seconds: float
    """Of the timed ones, as the page claims."""
    server_seconds: float
    other_votes: int
    other_ties: int


def compute_possible_seconds(own: pd.DataFrame) -> pd.Series[float]:
    """The most that each of a person's judgments, in their order, can have taken by the server's clock; NaN if unknown.

    Seconds that a judgment does not claim are carried on to the next ones, CARRIED_SECONDS at most: a slow network may
    bring one late and the following one just after it.
    """
    possible, carried = [], 0.0
    for claimed, seen in zip(own["seconds"], own["server_seconds"], strict=True):
        possible.append(seen + carried)
        if seen == seen:  # no NaN
            carried = min(max(seen + carried - claimed, 0.0), CARRIED_SECONDS)
    return pd.Series(possible, index=own.index, dtype=float)


def compute_people(judgments: pd.DataFrame, votes: pd.DataFrame) -> pd.DataFrame:
    """Summarize each person's answers, most judgments first: PEOPLE_COLUMNS.

    Shares come with 95 % Wilson intervals and are NaN below MIN_COMPARED answers. `judgments` counts all live ones,
    skips, repeats and gold pairs too; `left_share` is among votes that are not ties; `fast_share` is the share of
    judgments under FAST_SECONDS, by what they claim or by the server's clock; `overclaimed_share` is the share of the
    `timed` ones, of which the server saw the time, that claim more than there was (`compute_possible_seconds`);
    `flags` has a plain sentence for each thing to look at, empty where there is none.
    """
    repeats, shared = compare_repeats(judgments), compare_with_others(votes)
    rows = []
    for person, own in judgments.groupby("person", sort=True):
        same = repeats.loc[repeats["person"] == person, "consistent"]
        agreed = shared.loc[shared["person"] == person, "agrees"]
        counts = _count(own, votes, str(person), same, agreed)
        decisive = counts.votes - counts.ties
        rows.append(
            {
                "person": person,
                "simulated": bool(own["simulated"].iloc[0]),
                "judgments": counts.judgments,
                "skips": counts.skips,
                "votes": counts.votes,
                "tie_share": _share(counts.ties, counts.votes),
                "repeats": counts.repeats,
                **_share_with_interval("consistency", counts.same, counts.repeats),
                "shared_pairs": counts.shared,
                **_share_with_interval("agreement", counts.agreed, counts.shared),
                "decisive": decisive,
                **_share_with_interval("left_share", counts.left, decisive),
                "median_seconds": float(own["seconds"].median()),
                "fast_share": _share(counts.fast, counts.judgments),
                "timed": counts.timed,
                "overclaimed_share": _share(counts.overclaimed, counts.timed),
                "gold": counts.gold,
                "gold_right": counts.gold_right,
                "gold_accuracy": _share(counts.gold_right, counts.gold),
                "flags": "; ".join(find_flags(counts)),
            }
        )
    table = pd.DataFrame(rows, columns=PEOPLE_COLUMNS)
    return table.sort_values(["judgments", "person"], ascending=[False, True]).reset_index(drop=True)


def _count(
    own: pd.DataFrame, votes: pd.DataFrame, person: str, same: pd.Series[bool], agreed: pd.Series[bool]
) -> _Counts:
    is_own = votes["person"] == person
    cast = votes[is_own]
    gold = own[own["gold_answer"].notna() & (own["choice"] != "skip")]
    ties = votes["choice"] == "tie"
    possible = compute_possible_seconds(own)
    timed = own[possible.notna()]
    return _Counts(
        judgments=len(own),
        skips=int((own["choice"] == "skip").sum()),
        votes=len(cast),
        ties=int((ties & is_own).sum()),
        left=int((cast["choice"] == cast["shown_left"]).sum()),
        repeats=len(same),
        same=int(same.sum()),
        shared=len(agreed),
        agreed=int(agreed.sum()),
        gold=len(gold),
        gold_right=int((gold["choice"] == gold["gold_answer"]).sum()),
        fast=int(((own["seconds"] < FAST_SECONDS) | (possible < FAST_SECONDS)).sum()),
        timed=len(timed),
        overclaimed=int((own["seconds"] > possible + CLAIM_TOLERANCE_SECONDS).sum()),
        claimed_seconds=float(timed["seconds"].sum()),
        server_seconds=float(timed["server_seconds"].sum()),
        other_votes=int((~is_own).sum()),
        other_ties=int((ties & ~is_own).sum()),
    )


def _share(part: int, n: int) -> float:
    return part / n if n >= MIN_COMPARED else float("nan")


def _share_with_interval(name: str, part: int, n: int) -> dict[str, float]:
    low, high = compute_wilson(part, n) if n >= MIN_COMPARED else (float("nan"), float("nan"))
    return {name: _share(part, n), f"{name}_low": low, f"{name}_high": high}


def find_flags(counts: _Counts) -> list[str]:
    """Reasons to look at a person's answers, in plain words with the numbers behind them."""
    from scipy.stats import binomtest

    flags = []
    if counts.gold >= MIN_GOLD and counts.gold_right / counts.gold < GOLD_ACCURACY:
        flags.append(f"fails gold pairs: {counts.gold_right} of {counts.gold} right")
    decisive = counts.votes - counts.ties
    if decisive and binomtest(counts.left, decisive).pvalue < SAME_SIDE_P:
        side, n_side = ("left", counts.left) if 2 * counts.left > decisive else ("right", decisive - counts.left)
        flags.append(f"mostly answers {side}: {n_side} of {decisive}")
    if counts.votes >= MIN_JUDGMENTS and counts.other_votes >= MIN_JUDGMENTS:
        own, group = counts.ties / counts.votes, counts.other_ties / counts.other_votes
        # The interval's end as well: one tie too many is not a habit.
        if own > 2 * group and compute_wilson(counts.ties, counts.votes)[0] > group:
            flags.append(f"many ties: {own:.0%} of answers, the others {group:.0%}")
    if counts.repeats >= MIN_REPEATS and counts.votes:
        tie_share = counts.ties / counts.votes
        chance = tie_share**2 + (1 - tie_share) ** 2 / 2
        if chance < 1 and binomtest(counts.same, counts.repeats, chance, alternative="greater").pvalue > 0.05:
            flags.append(
                f"no more consistent than chance: {counts.same} of {counts.repeats} repeats the same, "
                f"chance {chance:.0%}"
            )
    if counts.judgments >= MIN_JUDGMENTS and counts.fast / counts.judgments > FAST_SHARE:
        flags.append(f"very fast: {counts.fast / counts.judgments:.0%} of answers under {FAST_SECONDS:g} s")
    if counts.timed >= MIN_JUDGMENTS and counts.overclaimed / counts.timed > OVERCLAIMED_SHARE:
        flags.append(
            f"claims more time than passed: {counts.overclaimed} of {counts.timed} answers, in all "
            f"{counts.claimed_seconds:,.0f} s where the server saw {counts.server_seconds:,.0f} s"
        )
    return flags

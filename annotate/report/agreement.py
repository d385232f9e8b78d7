"""Compute how far people agree, with each other and themselves, and count what each of them did.

Tables in, tables out: `judgments` as `annotate.report.rank.load_judgments`, `votes` as
`annotate.report.rank.select_votes` gives them. Where there is too little to say something, the value is NaN and the
count beside it tells why. `annotate.report.screening` finds grounds to doubt a person's answers in these counts.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from metrics.accuracy import compute_wilson
from metrics.votes import CHOICES, MIN_SHARED_PAIRS, compare_with_others, compute_ceiling

MIN_COMPARED = 5
"""Answers below which a person's share of anything is not given."""
FAST_SECONDS = 0.4
"""Below it, by the claim or by the server's clock, nobody has looked at a pair."""
CARRIED_SECONDS = 300.0
"""A page has up to five pairs ahead, so no more than some minutes of answers ever wait for a network."""
CLAIM_TOLERANCE_SECONDS = 0.25
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
    "gold_accuracy_low",
    "gold_accuracy_high",
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


def count_people(judgments: pd.DataFrame, votes: pd.DataFrame) -> pd.DataFrame:
    """Count what each person did, by person in the order of names: all that the shares and the screening are made of.

    `judgments` are all live ones, skips, repeats and gold pairs too; `left` are votes for the left side, `decisive`
    those that are not ties; `timed` judgments are those of which the server saw the time, `claimed_seconds` what the
    page claims of these and `server_seconds` what the server saw; `fast` ones took less than FAST_SECONDS by what they
    claim or by the server's clock; `overclaimed` ones claim more than there was (`compute_possible_seconds`).
    """
    repeats, shared = compare_repeats(judgments), compare_with_others(votes)
    rows = {}
    for person, own in judgments.groupby("person", sort=True):
        cast = votes[votes["person"] == person]
        gold = own[own["gold_answer"].notna() & (own["choice"] != "skip")]
        same = repeats.loc[repeats["person"] == person, "consistent"]
        agreed = shared.loc[shared["person"] == person, "agrees"]
        possible = compute_possible_seconds(own)
        timed = own[possible.notna()]
        ties = int((cast["choice"] == "tie").sum())
        rows[str(person)] = {
            "simulated": bool(own["simulated"].iloc[0]),
            "judgments": len(own),
            "skips": int((own["choice"] == "skip").sum()),
            "votes": len(cast),
            "ties": ties,
            "decisive": len(cast) - ties,
            "left": int((cast["choice"] == cast["shown_left"]).sum()),
            "repeats": len(same),
            "repeats_same": int(same.sum()),
            "shared_pairs": len(agreed),
            "agreed": int(agreed.sum()),
            "gold": len(gold),
            "gold_right": int((gold["choice"] == gold["gold_answer"]).sum()),
            "median_seconds": float(own["seconds"].median()),
            "fast": int(((own["seconds"] < FAST_SECONDS) | (possible < FAST_SECONDS)).sum()),
            "fast_seconds": FAST_SECONDS,
            "timed": len(timed),
            "overclaimed": int((own["seconds"] > possible + CLAIM_TOLERANCE_SECONDS).sum()),
            "claimed_seconds": float(timed["seconds"].sum()),
            "server_seconds": float(timed["server_seconds"].sum()),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("person")


def compute_people(counts: pd.DataFrame) -> pd.DataFrame:
    """Summarize each person's answers, most judgments first: PEOPLE_COLUMNS of what `count_people` counted.

    Shares come with 95 % Wilson intervals and are NaN below MIN_COMPARED answers. `left_share` is among votes that are
    not ties, `fast_share` among all judgments, `overclaimed_share` among the `timed` ones.
    """
    rows = [
        {
            "person": person,
            **{name: own[name] for name in PEOPLE_COLUMNS if name in own.index},
            "tie_share": _share(own["ties"], own["votes"]),
            **_share_with_interval("consistency", own["repeats_same"], own["repeats"]),
            **_share_with_interval("agreement", own["agreed"], own["shared_pairs"]),
            **_share_with_interval("left_share", own["left"], own["decisive"]),
            "fast_share": _share(own["fast"], own["judgments"]),
            "overclaimed_share": _share(own["overclaimed"], own["timed"]),
            **_share_with_interval("gold_accuracy", own["gold_right"], own["gold"]),
        }
        for person, own in counts.iterrows()
    ]
    table = pd.DataFrame(rows, columns=PEOPLE_COLUMNS)
    return table.sort_values(["judgments", "person"], ascending=[False, True]).reset_index(drop=True)


def _share(part: int, n: int) -> float:
    return part / n if n >= MIN_COMPARED else float("nan")


def _share_with_interval(name: str, part: int, n: int) -> dict[str, float]:
    low, high = compute_wilson(part, n) if n >= MIN_COMPARED else (float("nan"), float("nan"))
    return {name: _share(part, n), f"{name}_low": low, f"{name}_high": high}

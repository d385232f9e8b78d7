"""Compute how far people agree, with each other and themselves, and count what each of them did.

Tables in, tables out: `judgments` as `annotate.report.rank.load_judgments`, `votes` as
`annotate.report.rank.select_answers` (or `select_votes`, of pairs alone) gives them. Where there is too little to say
something, the value is NaN and the count beside it tells why. `annotate.report.screening` finds grounds to doubt a
person's answers in these counts.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from metrics.accuracy import SAME, compute_wilson
from metrics.answers import list_comparisons, read_answers
from metrics.rankings import CHOICE_OF_RANKING, contradicts
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
    """Krippendorff's alpha by coincidences (Computing Krippendorff's Alpha-Reliability, 2011), a row of the table.

    Added up by task, so that resampling tasks, whose comparisons come of the same answers, is a product.
    """
    compared = list_comparisons(read_answers(votes)) if len(votes) else pd.DataFrame(columns=["pair", "choice"])
    counts = pd.crosstab(compared["pair"], compared["choice"]).reindex(columns=CHOICES, fill_value=0)
    shared = counts[counts.sum(axis=1) > 1]
    values, n, nan = shared.to_numpy(dtype=float), len(shared), float("nan")
    name, unit = f"alpha {distance}", "pairs judged by two or more"
    # With one answer only there is no disagreement to expect, and alpha is not defined.
    if n < MIN_SHARED_PAIRS or (values.sum(axis=0) > 0).sum() < 2:
        return name, nan, nan, nan, n, unit
    # The ordered pairs of values within a unit, a value with itself left out, weighted by one less than its values.
    within = values[:, :, None] * values[:, None, :] - values[:, :, None] * np.eye(len(CHOICES))
    within /= (values.sum(axis=1) - 1)[:, None, None]
    alpha = float(_compute_alpha(within.sum(axis=0)[None], distance)[0])
    tasks = compared.drop_duplicates("pair").set_index("pair")["task"].loc[shared.index]
    number, names = pd.factorize(tasks, sort=True)
    if n_resamples < 1:
        return name, alpha, nan, nan, n, unit
    by_task = np.zeros((len(names), *within.shape[1:]))
    np.add.at(by_task, number, within)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), n_resamples).astype(float)
    resampled = _compute_alpha(np.tensordot(drawn, by_task, axes=1), distance)
    low, high = np.nanpercentile(resampled, [2.5, 97.5]) if np.isfinite(resampled).any() else (nan, nan)
    # Perfect agreement, say, is the same in every resample, which is not to say that it is certain.
    return name, alpha, *((float(low), float(high)) if high - low > SAME else (nan, nan)), n, unit


def _compute_alpha(coincidences: npt.NDArray[np.float64], distance: str) -> npt.NDArray[np.float64]:
    """(R,) alphas of R tables of coincidences, (R, 3, 3); NaN where one value alone was given."""
    totals = coincidences.sum(axis=2)
    if distance == "nominal":
        squares = np.broadcast_to(1 - np.eye(len(CHOICES)), coincidences.shape)
    else:  # the squared number of values between two, each end by half
        upto = np.cumsum(totals, axis=1) - totals / 2
        squares = (upto[:, :, None] - upto[:, None, :]) ** 2
    n = totals.sum(axis=1)
    observed = (coincidences * squares).sum(axis=(1, 2)) / n
    expected = (totals[:, :, None] * totals[:, None, :] * squares).sum(axis=(1, 2)) / (n * (n - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha: npt.NDArray[np.float64] = np.where(expected > 0, 1 - observed / expected, np.nan)
    return alpha


def compare_repeats(judgments: pd.DataFrame) -> pd.DataFrame:
    """Each repeat against the same person's first answer: person, consistent.

    Of pairs alone. Sides are swapped in a repeat: the same candidate again is consistent, and so are two ties. Skips
    are left out.
    """
    answered = judgments[judgments["choice"].isin(CHOICES) & judgments["gold_answer"].isna()]
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
    votes = _read_pairs(votes)
    rows = {}
    for person, own in judgments.groupby("person", sort=True):
        cast = votes[votes["person"] == person]
        gold = own[own["gold_answer"].notna() & (own["choice"] != "skip")]
        same = repeats.loc[repeats["person"] == person, "consistent"]
        own_shared = shared[shared["person"] == person]
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
            "shared_pairs": round(own_shared["share"].sum()),
            "agreed": round((own_shared["agrees"] * own_shared["share"]).sum()),
            "gold": len(gold),
            "gold_right": sum(_is_right(row) for row in gold.to_dict("records")),
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


def _read_pairs(votes: pd.DataFrame) -> pd.DataFrame:
    """Answers to pairs as votes; votes as they are."""
    if "choice" in votes:
        return votes
    pairs = votes[votes["methods"].map(len) == 2]
    return pairs.assign(choice=pairs["ranking"].map(CHOICE_OF_RANKING), shown_left=pairs["places"].str[0])


def _is_right(gold: dict[Hashable, Any]) -> bool:
    """Whether an answer is that of a gold pair, or has none of a gold task's the other way round."""
    if gold["choice"] in CHOICES:
        return bool(gold["choice"] == gold["gold_answer"])
    return not contradicts(gold["ranking"], gold["gold_answer"], len(gold["methods"]))


def _share(part: int, n: int) -> float:
    return part / n if n >= MIN_COMPARED else float("nan")


def _share_with_interval(name: str, part: int, n: int) -> dict[str, float]:
    low, high = compute_wilson(part, n) if n >= MIN_COMPARED else (float("nan"), float("nan"))
    return {name: _share(part, n), f"{name}_low": low, f"{name}_high": high}

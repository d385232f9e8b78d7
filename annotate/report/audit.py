"""Audit a leaderboard: what its order hangs on. Cycles, one photo, one person, what a tie is, the side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from metrics.answers import list_comparisons
from metrics.plackett_luce import Fit, Floats, Tally, fit, leave_out, tally_answers
from metrics.two_way import number_clusters
from metrics.votes import JOD, center, find_components

DRAWS = 200
"""Of majorities by the fitted scores, for the cycles that chance makes."""
MAX_METHODS = 60
"""Methods beyond which cycles are not counted: their triples would take too long."""
CHANCE = 0.05
COLUMNS = ["check", "subject", "value", "expected", "order_changes", "sentence"]


def audit_ranking(answers: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """A row a check: COLUMNS. `order_changes` is whether another order of methods comes out, None where not asked.

    Args:
        answers: with at least two methods that were compared.
    """
    tally = tally_answers(answers)
    found, components = fit(tally), find_components(tally, strong=False)
    scores = center(found.scores, components)
    compared = list_comparisons(answers)
    compared = compared[compared["method_a"] != compared["method_b"]]
    photos, people = number_clusters(answers)
    named = answers["group"].fillna(answers["source"]) if "group" in answers else answers["source"]
    rows = [
        _count_cycles(tally, scores, compared, seed),
        _leave_one_out("photo", tally, found, components, photos, named),
    ]
    if people is not None:
        rows.append(_leave_one_out("person", tally, found, components, people, answers["person"]))
    rows += [*_change_ties(answers, tally, scores, compared), _compare_sides(answers, tally, scores)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _count_cycles(tally: Tally, scores: Floats, compared: pd.DataFrame, seed: int) -> tuple[object, ...]:
    """Triples of methods each of which most people prefer to the next, round and round."""
    n, wins = len(tally.methods), _count_wins(tally, compared)
    if not 3 <= n <= MAX_METHODS:
        return "cycles", "", np.nan, np.nan, None, f"Cycles: not counted of {n} methods (3 to {MAX_METHODS} are)."
    met = np.round(wins + wins.T).astype(int)
    upper = np.triu_indices(n, 1)
    rng = np.random.default_rng(seed)
    p = expit(scores[:, None] - scores[None, :])
    drawn = np.zeros((DRAWS, n, n))
    drawn[:, *upper] = rng.binomial(met[upper], p[upper], (DRAWS, len(upper[0])))
    drawn += np.tril(met.T, -1) - drawn.swapaxes(1, 2) * (np.tril(np.ones((n, n)), -1))
    counted = [_find_cycles(one) for one in (wins, *drawn)]
    found, chance = counted[0], float(np.mean([len(one) for one in counted[1:]]))
    # Equals make cycles too, of small majorities: how large those of the cycles are is what chance does not explain.
    strength = [_weigh_cycles(one, cycles) for one, cycles in zip((wins, *drawn), counted, strict=True)]
    beyond = (1 + sum(one >= strength[0] for one in strength[1:])) / (1 + DRAWS)
    said = f"Cycles: {len(found)} of three methods among the majorities, where chance makes {chance:.1f}"
    said += " if the scores are right"
    if found and beyond < CHANCE:
        most = max(found, key=lambda cycle: _weigh_cycles(wins, [cycle]))
        named = " over ".join(tally.methods[at] for at in (*most, most[0]))
        said += (
            f", of larger majorities than chance explains (p = {beyond:.3f}), such as {named}: no one scale holds them"
        )
    return "cycles", "", len(found), chance, None, f"{said}."


def _count_wins(tally: Tally, compared: pd.DataFrame) -> Floats:
    """(M, M) comparisons that the row won over the column, a tie half."""
    number = {name: at for at, name in enumerate(tally.methods)}
    a, b = (compared[f"method_{side}"].map(number).to_numpy() for side in "ab")
    worth = compared["choice"].map({"a": 1.0, "tie": 0.5, "b": 0.0}).to_numpy(dtype=float)
    wins = np.zeros((len(number), len(number)))
    np.add.at(wins, (a, b), worth)
    np.add.at(wins, (b, a), 1 - worth)
    return wins


def _find_cycles(wins: Floats) -> list[tuple[int, int, int]]:
    """Triples i over j over k over i by majority, each once."""
    beats = wins > wins.T
    around = np.argwhere(beats[:, :, None] & beats[None, :, :] & beats.T[:, None, :])
    return [(int(i), int(j), int(k)) for i, j, k in around if i < j and i < k]


def _weigh_cycles(wins: Floats, cycles: list[tuple[int, int, int]]) -> float:
    """The smallest of each cycle's three majorities, in answers, added up."""
    lead = wins - wins.T
    return float(sum(min(lead[i, j], lead[j, k], lead[k, i]) for i, j, k in cycles))


def _order(scores: Floats, components: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(..., M) methods best first, component by component."""
    return np.lexsort((-scores, np.broadcast_to(components, scores.shape)), axis=-1)


def _leave_one_out(
    kind: str,
    tally: Tally,
    found: Fit,
    components: npt.NDArray[np.int64],
    clusters: npt.NDArray[np.int64],
    names: Sequence[object] | pd.Series[str],
) -> tuple[object, ...]:
    """Largest change of a score when all answers of one photo, or of one person, are left out."""
    known = pd.Series(np.asarray(names)).groupby(clusters).first()
    if len(known) < 2:
        return f"one {kind} out", "", np.nan, np.nan, None, f"One {kind} left out: there is only one."
    moved = np.stack([center(row, components) for row in leave_out(tally, found, clusters)]) / JOD
    most, method = (int(at) for at in np.unravel_index(np.abs(moved).argmax(), moved.shape))
    before = center(found.scores, components)
    orders = _order(before + moved * JOD, components)
    other = (orders != _order(before, components)).any(axis=1)
    first = int((orders[:, 0] != _order(before, components)[0]).sum())
    said = f"One {kind} left out: {_name(known.loc[most])} moves {tally.methods[method]} most, by "
    said += f"{moved[most, method]:+.2f} JOD. Leaving one out changes the order of methods for {int(other.sum())} of "
    said += f"{len(known)}, the first place for {first}."
    return f"one {kind} out", _name(known.loc[most]), float(moved[most, method]), np.nan, bool(other.any()), said


def _name(value: object) -> str:
    return "someone unknown" if value is None or value != value else str(value)


def _change_ties(
    answers: pd.DataFrame, tally: Tally, scores: Floats, compared: pd.DataFrame
) -> list[tuple[object, ...]]:
    """The order with ties left out, and with ties as an outcome of their own, against half a win for each."""
    tied = answers["ranking"].str.contains("=").to_numpy()
    if not tied.any():
        return [("ties", "", 0, np.nan, False, "Ties: nobody gave one.")]
    said = f"Ties: {int(tied.sum())} of {len(answers)} answers hold one, half a win for each;"
    weights = (~tied).astype(float)
    ways = {"left out": fit(tally, weights).scores, "as an outcome of their own": _fit_davidson(tally, compared)}
    rows: list[tuple[object, ...]] = []
    for way, other in ways.items():
        changed, told = _compare_orders(tally, scores, other)
        rows.append(("ties", way, int(tied.sum()), np.nan, changed, f"{said} with ties {way} {told}"))
        said = "Ties:"
    return rows


def _compare_orders(tally: Tally, scores: Floats, other: Floats) -> tuple[bool, str]:
    """(whether the order of methods is another, a sentence's end)."""
    before, after = np.argsort(-scores, kind="stable"), np.argsort(-other, kind="stable")
    if (before == after).all():
        return False, "the order is the same."
    pairs = [
        f"{tally.methods[b]} before {tally.methods[a]}"
        for a, b in itertools.combinations(before, 2)
        if other[b] > other[a]
    ]
    more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
    return True, f"the order is another: {', '.join(pairs[:3])}{more}."


def _fit_davidson(tally: Tally, compared: pd.DataFrame) -> Floats:
    """(M,) scores where a tie is an outcome of its own, as likely as the geometric mean of both wins times a factor.

    Source: Davidson, On Extending the Bradley-Terry Model to Accommodate Ties in Paired Comparison Experiments, 1970.
    """
    from scipy.optimize import minimize

    number = {name: at for at, name in enumerate(tally.methods)}
    kinds = compared.groupby(["method_a", "method_b", "choice"], as_index=False).size()
    a, b = (kinds[f"method_{side}"].map(number).to_numpy() for side in "ab")
    outcome = kinds["choice"].map({"a": 0, "b": 1, "tie": 2}).to_numpy()
    count, n = kinds["size"].to_numpy(dtype=float), len(number)

    def lose(values: Floats) -> tuple[float, Floats]:
        scores = values[:n]
        logits = np.stack([scores[a], scores[b], values[n] + (scores[a] + scores[b]) / 2])
        shares = np.exp(logits - np.logaddexp.reduce(logits, axis=0))
        loss = -(count * np.log(shares[outcome, np.arange(len(count))])).sum() + 0.125 * (scores**2).sum()
        off = count * (shares - (np.arange(3)[:, None] == outcome))
        slope = np.zeros(n + 1)
        np.add.at(slope, a, off[0] + off[2] / 2)
        np.add.at(slope, b, off[1] + off[2] / 2)
        slope[:n] += 0.25 * scores
        slope[n] = off[2].sum()
        return float(loss), slope

    result = minimize(lose, np.zeros(n + 1), jac=True, method="L-BFGS-B", options={"ftol": 1e-12, "gtol": 1e-6})
    return np.asarray(result.x[:n], dtype=float)


def _compare_sides(answers: pd.DataFrame, tally: Tally, scores: Floats) -> tuple[object, ...]:
    """The order by the pairs in which the method that is better by all answers stood left, against those on the right.

    A side that draws answers stretches the scores of one half and shrinks those of the other.
    """
    pairs = (answers["methods"].map(len) == 2).to_numpy()
    if "places" not in answers or pairs.sum() < 2:
        return "side", "", np.nan, np.nan, None, "Side: no pairs with a known side."
    score = dict(zip(tally.methods, scores, strict=True))
    better = np.array(
        [
            score.get(names[0], 0) > score.get(names[1], 0) if pair else False
            for names, pair in zip(answers["methods"], pairs, strict=True)
        ]
    )
    left = (answers["places"].str[0] == "a").to_numpy() == better
    halves = [fit(tally, (pairs & side).astype(float)).scores for side in (left, ~left)]
    changed, told = _compare_orders(tally, *halves)
    spans = [float(np.ptp(half)) / JOD for half in halves]
    said = f"Side: with the better of a pair left the scores span {spans[0]:.2f} JOD, right {spans[1]:.2f}; {told}"
    return "side", "", spans[0] / spans[1] if spans[1] else np.nan, 1.0, changed, said

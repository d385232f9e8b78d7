"""Fit scores of methods to people's answers, of two candidates or of more, by Plackett-Luce.

An *answer* is what one person said of one set of candidates: a row of a table with at least `methods` (a tuple, the
first of candidate a) and `ranking` (see `metrics.rankings`). The model reads a ranking as a sequence of choices. The
best tier is chosen out of all candidates, the next out of what remains, each with a probability in proportion to
exp(score); below '?', the last tier is chosen as the worst of what then remains, in proportion to exp(-score), and so
upwards. Of the candidates of '?' among themselves it says nothing. Tied candidates are the mean of the log-likelihoods
of all their orders, which of a pair is half a win for each. Two candidates of one method, two seeds, say nothing of
their method between themselves and both count among what was chosen from.

    tally = tally_answers(answers)
    found = fit(tally)              # or fit(tally, weights) with a weight an answer
    found.scores, found.information

Source: Plackett, The Analysis of Permutations, 1975; Luce 1959; the worst after the best, sequential best-worst:
Marley & Louviere, Some Probabilistic Models of Best, Worst, and Best-Worst Choices, 2005. Pairs alone are Bradley &
Terry 1952. The package choix fits the same model and is what the tests hold this against; it takes no weights, ties,
worst choices nor virtual ties, and its loop over answers is too slow to leave out each photo and each person.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from metrics.rankings import LETTERS, MAX_SIZE, read_ranking

PRIOR_TIES = 0.5
"""Virtual ties of each method with an average one: what keeps the score of a method that won everything finite."""
MAX_ITERATIONS, LONGEST_STEP, SHORTEST_STEP = 200, 2.0, 1e-9
CELLS_AT_ONCE = 4_000_000
"""Of the information matrices of clusters, so that memory does not grow with clusters times methods squared."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tally:
    """What n answers say of M methods: of each set that was chosen from, how often, and who was chosen."""

    methods: list[str]
    """Sorted; only those that were compared with another."""
    members: Any
    """(S, M) sparse: how many candidates of each method a set holds."""
    signs: Floats
    """(S,) 1 where the best was chosen, -1 where the worst."""
    asked: Any
    """(n, S) sparse: how often an answer chose from each set; parts of one where it tied."""
    chosen: Any
    """(n, M) sparse: the signs of the choices, by who was chosen."""
    beats: Any
    """(M, M) sparse: how often the row was preferred to the column, a tie both ways; only that it is above 0 counts."""


@dataclass(frozen=True)
class Fit:
    """Scores at the maximum of the likelihood with its virtual ties."""

    scores: Floats
    """(M,) log strengths; an average method has 0."""
    information: Floats
    """(M, M) Fisher information of the scores, the virtual ties' own among it."""


@lru_cache(maxsize=65536)
def list_choices(ranking: str, size: int) -> tuple[tuple[str, str, float, float], ...]:
    """(set, letter chosen, 1 best or -1 worst, weight) of each choice that a ranking is read as.

    Letters of a set stand sorted. A tier of m tied letters counts as the mean of its m! orders.
    """
    tiers, _, worst = read_ranking(ranking, size)
    remaining, found = LETTERS[:size], defaultdict[tuple[str, str, float], float](float)
    for sign, tier in [*((1.0, tier) for tier in tiers), *((-1.0, tier) for tier in reversed(worst))]:
        others = [letter for letter in remaining if letter not in tier]
        for n in range(1, len(tier) + 1):
            share = math.factorial(len(tier) - n) * math.factorial(n - 1) / math.factorial(len(tier))
            for left in itertools.combinations(tier, n):
                choices = "".join(sorted([*others, *left]))
                for letter in left if len(choices) > 1 else ():
                    if len(choices) == 2 and sign < 0:  # the worst of two says who is the best of them
                        found[choices, choices.replace(letter, ""), 1.0] += share
                    else:
                        found[choices, letter, sign] += share
        remaining = "".join(others)
    return tuple((*key, weight) for key, weight in found.items())


def tally_answers(answers: pd.DataFrame) -> Tally:
    """Add up what the answers chose, so that every weighting of them is a product of matrices.

    Args:
        answers: with columns methods and ranking.
    """
    from scipy.sparse import coo_array

    answer, sets, chosen, signs, weights = _list_stages(answers)
    used = np.unique(sets[sets >= 0])
    all_names = sorted({name for row in set(answers["methods"]) for name in row})
    n, n_methods = len(answers), len(used)
    sets = np.where(sets >= 0, np.searchsorted(used, sets), -1)
    chosen = np.searchsorted(used, chosen)
    kinds = pd.DataFrame(np.column_stack([sets, signs.astype(np.int64)]))
    kind = kinds.groupby(list(kinds.columns), sort=True).ngroup().to_numpy()
    distinct, first = np.unique(kind, return_index=True)
    held = sets[first] >= 0
    members = coo_array(
        (np.ones(int(held.sum())), (np.nonzero(held)[0], sets[first][held])), shape=(len(distinct), n_methods)
    ).tocsr()
    asked = coo_array((weights, (answer, kind)), shape=(n, len(distinct))).tocsr()
    marks = coo_array((weights * signs, (answer, chosen)), shape=(n, n_methods)).tocsr()
    stage, place = np.nonzero(sets >= 0)
    ends = chosen[stage], sets[stage, place]
    best = signs[stage] > 0
    ways = np.where(best, ends[0], ends[1]), np.where(best, ends[1], ends[0])
    beats = coo_array((weights[stage], ways), shape=(n_methods, n_methods)).tocsr()
    return Tally([all_names[number] for number in used], members, signs[first], asked, marks, beats)


def _list_stages(answers: pd.DataFrame) -> tuple[npt.NDArray[Any], ...]:
    """(answer, (n, MAX_SIZE) sorted method numbers padded by -1, chosen, sign, weight) of every choice, a row each.

    Methods are numbered in the order of their names.
    """
    kinds = {kind: number for number, kind in enumerate(sorted(set(answers["methods"])))}
    number = {name: at for at, name in enumerate(sorted({name for kind in kinds for name in kind}))}
    table = np.full((len(kinds), MAX_SIZE), -1, dtype=np.int64)
    for kind, row in kinds.items():
        table[row, : len(kind)] = [number[name] for name in kind]
    methods = table[[kinds[kind] for kind in answers["methods"]]] if kinds else np.zeros((0, MAX_SIZE), dtype=np.int64)
    size = (methods >= 0).sum(axis=1)
    parts = []
    spoken = pd.DataFrame({"ranking": answers["ranking"].to_numpy(), "size": size})
    for numbered, group in spoken.groupby(["ranking", "size"]).groups.items():
        ranking, k = str(numbered[0]), int(numbered[1])  # type: ignore[index]
        at = np.asarray(group)
        for letters, letter, sign, weight in list_choices(ranking, k):
            own = methods[at][:, [LETTERS.index(one) for one in letters]]
            told = (own != own[:, :1]).any(axis=1)  # a choice among one method's own candidates says nothing
            sets = np.full((int(told.sum()), MAX_SIZE), -1, dtype=np.int64)
            sets[:, : len(letters)] = np.sort(own[told], axis=1)
            chosen = methods[at][told, LETTERS.index(letter)]
            parts.append((at[told], sets, chosen, np.full(len(sets), sign), np.full(len(sets), weight)))
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return none, np.zeros((0, MAX_SIZE), dtype=np.int64), none, none.astype(float), none.astype(float)
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def fit(
    tally: Tally, weights: Floats | None = None, *, prior_ties: float = PRIOR_TIES, start: Floats | None = None
) -> Fit:
    """The scores of the greatest likelihood, by Newton's iteration.

    Args:
        weights: (n,) how much each answer counts, 0 or more; None counts each once.
        prior_ties: virtual ties of each method with an average one, above 0.
        start: (M,) scores to begin at, such as those of other weights.
    """
    weights = np.ones(tally.asked.shape[0]) if weights is None else weights
    asked, chosen = tally.asked.T @ weights, tally.chosen.T @ weights
    scores = np.zeros(len(tally.methods)) if start is None else start.copy()
    for _ in range(MAX_ITERATIONS):
        gradient, information = _differentiate(tally, scores, asked, chosen, prior_ties)
        step = np.linalg.solve(information, gradient)
        scores += step.clip(-LONGEST_STEP, LONGEST_STEP)
        if np.abs(step).max(initial=0) < SHORTEST_STEP:
            break
    return Fit(scores, _differentiate(tally, scores, asked, chosen, prior_ties)[1])


def _differentiate(
    tally: Tally, scores: Floats, asked: Floats, chosen: Floats, prior_ties: float
) -> tuple[Floats, Floats]:
    """(gradient (M,), information (M, M)) of the log-likelihood with its virtual ties."""
    share = compute_shares(tally, scores)
    average = 1 / (1 + np.exp(-scores))
    gradient = chosen - share.T @ (asked * tally.signs) + prior_ties * (0.5 - average)
    own = share.T @ asked + prior_ties * average * (1 - average)
    information: Floats = np.diag(own) - (share.T @ share.multiply(asked[:, None]).tocsr()).toarray()
    return gradient, information


def compute_shares(tally: Tally, scores: Floats) -> Any:
    """(S, M) sparse probabilities that a set's choice falls on each method."""
    share = tally.members.copy()
    sets = np.repeat(np.arange(share.shape[0]), np.diff(share.indptr))
    share.data = share.data * np.exp(tally.signs[sets] * scores[share.indices])
    share.data /= np.bincount(sets, weights=share.data, minlength=share.shape[0])[sets]
    return share


def compute_gradients(tally: Tally, scores: Floats) -> Any:
    """(n, M) sparse gradients of each answer's log-likelihood: what it pulls the scores to."""
    expected = compute_shares(tally, scores).multiply(tally.signs[:, None]).tocsr()
    return (tally.chosen - tally.asked @ expected).tocsr()


def leave_out(tally: Tally, found: Fit, clusters: npt.NDArray[np.int64]) -> Floats:
    """(G, M) how the scores move when all answers of a cluster are left out, by one step of Newton's iteration.

    Args:
        found: the fit of all answers.
        clusters: (n,) numbers from 0 of the answers' clusters, such as photos or people.
    """
    from scipy.sparse import coo_array

    n_methods, n_clusters = len(tally.methods), int(clusters.max(initial=-1)) + 1
    member = coo_array((np.ones(len(clusters)), (clusters, np.arange(len(clusters))))).tocsr()
    gradients, asked = (member @ compute_gradients(tally, found.scores)).toarray(), (member @ tally.asked).tocsr()
    share = compute_shares(tally, found.scores)
    squares = _square_rows(share)
    moved = np.empty((n_clusters, n_methods))
    at_once = max(1, CELLS_AT_ONCE // max(1, n_methods**2))
    own = np.arange(n_methods)
    for start in range(0, n_clusters, at_once):
        part = asked[start : start + at_once]
        information = -(part @ squares).toarray().reshape(-1, n_methods, n_methods)
        information[:, own, own] += (part @ share).toarray()
        rest = found.information - information
        moved[start : start + at_once] = -np.linalg.solve(rest, gradients[start : start + at_once, :, None])[:, :, 0]
    return moved


def _square_rows(share: Any) -> Any:
    """(S, M * M) sparse outer product of each row with itself."""
    from scipy.sparse import coo_array

    n, size = share.shape
    lengths = np.diff(share.indptr)
    repeats = np.repeat(lengths, lengths)  # for each entry, as many as its row has
    first = np.repeat(np.arange(len(share.data)), repeats)
    starts = np.repeat(np.repeat(share.indptr[:-1], lengths), repeats)
    within = np.arange(len(first)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    second = starts + within
    rows = np.repeat(np.repeat(np.arange(n), lengths), repeats)
    columns = share.indices[first].astype(np.int64) * size + share.indices[second]
    return coo_array((share.data[first] * share.data[second], (rows, columns)), shape=(n, size * size)).tocsr()

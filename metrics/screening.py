"""Find grounds to doubt a person's answers: tests of what an honest person may do, with the error over people held.

Tables in, tables out. Each test asks whether a person's answers are worse than an honest person's: a small p-value says
so. What tells of attention (the others' scale, gold pairs, repeats) is independent of each other in an honest person
and is added up (Fisher), so that three weak signs make a strong one. A person's p-value is the smallest of the four
kinds of faults, times their number (Bonferroni), and the people that are flagged are chosen by Benjamini and Hochberg's
rule at FALSE_FLAGS, so that of all flags about that share is wrong at most. Whoever is flagged no longer sets the scale
that the others are held against, and all are tested again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from metrics.accuracy import compute_wilson
from metrics.plackett_luce import Floats, compute_shares, fit, leave_out, tally_answers
from metrics.rankings import read_ranking

FALSE_FLAGS = 0.1
"""Share of the flagged people who are honest, that is held; so fewer of the honest people are flagged."""
MIN_ANSWERS = 10
"""Answers below which a person's answers are not held against the others' scale."""
MIN_OTHERS = 3
"""Others with so many answers, without whom there is no saying what an honest person does."""
HONEST_SPREAD = 0.2
"""Standard deviation of `follows` among honest people, at least: tastes and care differ."""
UPPER_QUARTILE = 0.6745
"""Of a normal distribution, in standard deviations."""
GOLD_ACCURACY = 0.85
"""Gold pairs that an honest person gets right, at least; the pairs are chosen so that nobody can miss them."""
HONEST_PULL = 0.5
"""Logits that an honest person is drawn to one place on screen, at most."""
HONEST_TIES = 0.5
"""Share of ties that an honest person may give, however few the others give."""
HONEST_FAST = 0.1
"""Share of answers too fast to have looked, which a finger that slips may give."""
LESS_CONSISTENT = 0.1
"""By how much an honest person may repeat their answers less often than the others."""
ROUNDS = 4
ONE_STEP_SHARE = 0.1
"""Of all answers: the scale without a person who gave more of them is fitted anew, not by one step from that of all."""
MIN_GAP = 1e-6
"""Nats between the likelihood of an honest person's answers and chance's, below which nothing is to be seen."""
SAID = 0.05
"""Of a flagged person: tests with a p-value below it are named."""

COLUMNS = [
    "log_likelihood",
    "honest_log_likelihood",
    "chance_log_likelihood",
    "follows",
    "follows_low",
    "follows_high",
    "longest_run",
    "p_value",
    "flags",
]


Ints = npt.NDArray[np.int64]
ATTENTION, KEYS, TIME, TIES = "attention", "keys", "time", "ties"


@dataclass(frozen=True)
class Fault:
    """One test of a person: what of, how unlikely an honest person is to do this, and what it says."""

    of: str
    p: float
    words: str


def screen_people(answers: pd.DataFrame, checks: pd.DataFrame) -> pd.DataFrame:
    """Hold every person against what an honest one may do: COLUMNS by person, in the order of `checks`.

    `log_likelihood` is the mean of an answer in nats under the Plackett-Luce scale that the others' answers give,
    without theirs and those of the flagged; `honest_log_likelihood` and `chance_log_likelihood` are what a person of
    that very scale, and one who clicks at random, would get. `follows` is where they lie between: 1 honest, 0 chance,
    -1 the opposite; its interval is 95 %, answers on one photo counted as dependent. `p_value` is of all tests
    together; `flags` has a sentence with its numbers for each ground, joined by '; ', empty where nothing is flagged.

    Args:
        answers: a row an answer in the order of their making: person, source, methods, ranking, places.
        checks: by person, counts: judgments, gold, gold_right, repeats, repeats_same, fast, timed, overclaimed; and
            fast_seconds (below which an answer is fast), claimed_seconds, server_seconds.
    """
    people = [str(person) for person in checks.index]
    tests: dict[str, list[Fault]] = {str(person): _test_alone(own) for person, own in checks.iterrows()}
    ties = _share_ties(answers)
    places = {str(person): own for person, own in _list_places(answers).groupby("person")}
    runs = {person: _longest_run(places[person]) if person in places else (0, 0, 1.0) for person in people}
    for person in people:
        tests[person] += _test_places(places.get(person))
        run, size, p = runs[person]
        if run:
            tests[person].append(
                Fault(KEYS, p, f"one key again and again: {run} answers running on one place of {size}")
            )
    flagged: frozenset[str] = frozenset()
    scale = _Scale(answers)
    for _ in range(ROUNDS):
        follows = scale.compare(people, flagged)
        trusted = [person for person in people if person not in flagged]
        found = {
            person: [
                *tests[person],
                *_test_follows(follows, person, trusted),
                *_test_ties(ties, person, trusted),
                *_test_repeats(checks, person, trusted),
            ]
            for person in people
        }
        p_values = {person: combine(faults) for person, faults in found.items()}
        limit = find_limit(list(p_values.values()))
        now = frozenset(person for person in people if p_values[person] <= limit)
        if now == flagged:
            break
        flagged = now
    table = follows.assign(
        longest_run=[runs[person][0] for person in people],
        p_value=[p_values[person] for person in people],
        flags=["; ".join(list_words(found[person])) if person in flagged else "" for person in people],
    )
    return table[COLUMNS]


def combine(faults: Sequence[Fault]) -> float:
    """One p-value of a person's tests: the smallest of their kinds' times the number of kinds (Bonferroni).

    Within a kind the p-values are added up as independent (Fisher) for ATTENTION, else the smallest counts, times their
    number. A person of whom nothing was tested has 1.

    Source: Fisher, Statistical Methods for Research Workers, 1932, section 21.1.
    """
    from scipy.stats import chi2

    kinds = []
    for kind in (ATTENTION, KEYS, TIME, TIES):
        p_values = np.array([fault.p for fault in faults if fault.of == kind])
        if kind == ATTENTION and len(p_values):
            kinds.append(float(chi2.sf(-2 * np.log(np.maximum(p_values, 1e-300)).sum(), 2 * len(p_values))))
        elif len(p_values):
            kinds.append(float(p_values.min() * len(p_values)))
    return min([1.0, *(p * len(kinds) for p in kinds)])


def list_words(faults: Sequence[Fault]) -> list[str]:
    """What to say of a flagged person: each test that an honest person fails one time in twenty, or else the worst."""
    ordered = sorted(faults, key=lambda fault: fault.p)
    return [fault.words for fault in ordered if fault.p < SAID] or [fault.words for fault in ordered[:1]]


def find_limit(p_values: Sequence[float], rate: float = FALSE_FLAGS) -> float:
    """The largest p-value that is flagged, so that at most the share `rate` of all flags is wrong; -1 for none.

    Source: Benjamini & Hochberg, Controlling the False Discovery Rate, 1995.
    """
    ordered = np.sort(np.asarray(p_values, dtype=float))
    under = np.flatnonzero(ordered <= rate * np.arange(1, len(ordered) + 1) / max(len(ordered), 1))
    return float(ordered[under[-1]]) if len(under) else -1.0


class _Scale:
    """The answers that tell of methods, so that the scale of the others is a few steps from that of all."""

    def __init__(self, answers: pd.DataFrame) -> None:
        told = answers[answers["ranking"].str.contains(">", regex=False)]  # a tie of all says nothing of a scale
        self.person = told["person"].astype(str).to_numpy()
        self.source = pd.factorize(told["source"])[0]
        self.tally = tally_answers(told)

    def compare(self, people: Sequence[str], flagged: frozenset[str]) -> pd.DataFrame:
        """The columns of likelihood by person, with `honest_se`, that of `follows` in an honest person.

        NaN where there is too little to compare.
        """
        trusted = (~np.isin(self.person, list(flagged))).astype(float)
        found = fit(self.tally, trusted)
        names, numbers = np.unique(self.person, return_inverse=True)
        moved = leave_out(self.tally, found, numbers) if len(names) else np.zeros((0, len(self.tally.methods)))
        rows: list[tuple[float, ...]] = []
        for person in people:
            own = np.flatnonzero(self.person == person)
            others = trusted * (self.person != person)
            if len(own) < MIN_ANSWERS or others.sum() < MIN_ANSWERS:
                rows.append((np.nan,) * 7)
                continue
            scores = found.scores
            if person not in flagged and len(own) > ONE_STEP_SHARE * trusted.sum():
                scores = fit(self.tally, others, start=scores).scores
            elif person not in flagged:
                scores = scores + moved[numbers[own[0]]]
            rows.append(self._likelihood(own, scores))
        columns = [*COLUMNS[:6], "honest_se"]
        return pd.DataFrame(rows, columns=columns, index=pd.Index(people, name="person"), dtype=float)

    def _likelihood(self, own: Ints, scores: Floats) -> tuple[float, ...]:
        """The columns of `compare` of the person whose answers these are, under the scores."""
        tally = self.tally
        asked, signs = tally.asked[own], tally.signs
        weights = tally.members.multiply(np.exp(signs[:, None] * scores)).tocsr()
        log_sum = np.log(weights.sum(axis=1))
        share = compute_shares(tally, scores)
        mean = signs * (share @ scores)
        said = tally.chosen[own] @ scores - asked @ log_sum
        expected = asked @ (mean - log_sum)
        random = asked @ (signs * (tally.members @ scores) / tally.members.sum(axis=1) - log_sum)
        variance = (asked.power(2) @ (share @ scores**2 - mean**2)).sum()
        gap = (expected - random).sum()
        means = said.mean(), expected.mean(), random.mean()
        if gap < MIN_GAP:
            return (*means, *(np.nan,) * 4)
        follows = (said - random).sum() / gap
        by_photo = np.bincount(self.source[own], said - random - follows * (expected - random))
        se = np.sqrt((by_photo**2).sum()) / gap
        return *means, follows, follows - 1.96 * se, follows + 1.96 * se, np.sqrt(variance) / gap


def _test_follows(follows: pd.DataFrame, person: str, trusted: Sequence[str]) -> list[Fault]:
    """Whether a person follows the others' scale less than the others do: by their median and upper quartile.

    The upper one alone, as those who click at random lie below.
    """
    from scipy.stats import norm

    own = follows.loc[person]
    others = follows.loc[[name for name in trusted if name != person]].dropna()
    if np.isnan(own["follows"]) or len(others) < MIN_OTHERS:
        return []
    middle = float(others["follows"].median())
    z: pd.Series[float] = (others["follows"] - middle) / np.hypot(HONEST_SPREAD, others["honest_se"])
    wider = max(1.0, float(z.quantile(0.75)) / UPPER_QUARTILE)
    p = float(norm.cdf((own["follows"] - middle) / (wider * np.hypot(HONEST_SPREAD, own["honest_se"]))))
    words = (
        f"answers unlike the others': a log-likelihood of {own['log_likelihood']:.2f} an answer under the others' "
        f"ranking, where an honest person has {own['honest_log_likelihood']:.2f} and random clicks "
        f"{own['chance_log_likelihood']:.2f}, so that they follow it by {own['follows']:.2f} "
        f"[{own['follows_low']:.2f}, {own['follows_high']:.2f}], the others by {middle:.2f}"
    )
    return [Fault(ATTENTION, p, words)]


def _test_alone(check: pd.Series) -> list[Fault]:
    """What needs no others: gold, speed, claims of time."""
    from scipy.stats import binom

    faults = []
    if check["gold"]:
        low, high = compute_wilson(int(check["gold_right"]), int(check["gold"]))
        words = f"fails gold pairs: {check['gold_right']:.0f} of {check['gold']:.0f} right [{low:.0%}, {high:.0%}]"
        faults.append(Fault(ATTENTION, float(binom.cdf(check["gold_right"], check["gold"], GOLD_ACCURACY)), words))
    if check["judgments"]:
        p = float(binom.sf(check["fast"] - 1, check["judgments"], HONEST_FAST))
        share = check["fast"] / check["judgments"]
        faults.append(Fault(TIME, p, f"very fast: {share:.0%} of answers under {check['fast_seconds']:g} s"))
    if check["timed"]:
        p = float(binom.sf(check["overclaimed"] - 1, check["timed"], HONEST_FAST))
        words = (
            f"claims more time than passed: {check['overclaimed']:.0f} of {check['timed']:.0f} answers, in all "
            f"{check['claimed_seconds']:,.0f} s where the server saw {check['server_seconds']:,.0f} s"
        )
        faults.append(Fault(TIME, p, words))
    return faults


def _list_places(answers: pd.DataFrame) -> pd.DataFrame:
    """Where on screen the best one stood, of each answer with a single best: person, size, place from 0."""
    first = {}
    for ranking, size in {(row, len(names)) for row, names in zip(answers["ranking"], answers["methods"], strict=True)}:
        tiers, _, _ = read_ranking(ranking, size)
        first[ranking, size] = tiers[0] if tiers and len(tiers[0]) == 1 else ""
    rows = [
        (str(person), len(names), places.index(best))
        for person, names, ranking, places in answers[["person", "methods", "ranking", "places"]].itertuples(
            index=False
        )
        if (best := first[ranking, len(names)])
    ]
    return pd.DataFrame(rows, columns=["person", "size", "place"])


def _by_size(own: pd.DataFrame) -> list[tuple[int, Ints]]:
    """(size of task, places chosen in the order of answering) of one person's rows of `_list_places`."""
    return [(int(size), own.loc[own["size"] == size, "place"].to_numpy()) for size in sorted(set(own["size"]))]


def honest_share(size: int) -> float:
    """The share of answers that an honest person gives to one place of so many, at most, by HONEST_PULL."""
    pull = float(np.exp(HONEST_PULL))
    return pull / (pull + size - 1)


def name_place(place: int, size: int) -> str:
    """A place on screen in words: 'left', 'place 3 of 4'."""
    return ("left", "right")[place] if size == 2 else f"place {place + 1} of {size}"


def _test_places(own: pd.DataFrame | None) -> list[Fault]:
    """Whether one place on screen is chosen more than a bias of HONEST_PULL explains; a test a size of task."""
    from scipy.stats import binom

    faults = []
    for size, chosen in _by_size(own) if own is not None else ():
        counts = np.bincount(chosen, minlength=size)
        most, place = int(counts.max()), int(counts.argmax())
        p = min(1.0, size * float(binom.sf(most - 1, len(chosen), honest_share(size))))
        faults.append(Fault(KEYS, p, f"mostly answers {name_place(place, size)}: {most} of {len(chosen)}"))
    return faults


def _longest_run(own: pd.DataFrame) -> tuple[int, int, float]:
    """(longest run of answers on one place, the size of its tasks, p-value) of a person's answers in order.

    The p-value is an upper bound: that such a run begins at any of the answers, at any of the places.
    """
    best = (0, 2, 1.0)
    for size, place in _by_size(own):
        ends = np.flatnonzero(np.append(place[1:] != place[:-1], True))
        run = int(np.diff(ends, prepend=-1).max())
        share, n = honest_share(size), len(place)
        p = min(1.0, size * share**run * (1 + (n - run) * (1 - share)))
        if p <= best[2]:
            best = (run, size, p)
    return best


def _share_ties(answers: pd.DataFrame) -> pd.DataFrame:
    """By person: ties (answers in which letters are tied) and n."""
    tied = answers["ranking"].str.contains("=", regex=False).groupby(answers["person"].astype(str))
    return pd.DataFrame({"ties": tied.sum(), "n": tied.size()})


def _test_ties(ties: pd.DataFrame, person: str, trusted: Sequence[str]) -> list[Fault]:
    """Whether a person ties more than twice as often as the middle one of the others."""
    from scipy.stats import binom

    others = ties.loc[ties.index.isin([name for name in trusted if name != person]) & (ties["n"] >= MIN_ANSWERS)]
    if person not in ties.index or len(others) < MIN_OTHERS:
        return []
    own, usual = ties.loc[person], float((others["ties"] / others["n"]).median())
    allowed = min(max(HONEST_TIES, 2 * usual), 0.9)
    words = f"many ties: {own['ties'] / own['n']:.0%} of answers, the others {usual:.0%}"
    return [Fault(TIES, float(binom.sf(own["ties"] - 1, own["n"], allowed)), words)]


def _test_repeats(checks: pd.DataFrame, person: str, trusted: Sequence[str]) -> list[Fault]:
    """Whether a person repeats their own answers less than the others do by more than LESS_CONSISTENT."""
    from scipy.stats import binom

    own = checks.loc[[person], ["repeats", "repeats_same"]].iloc[0]
    others = checks.loc[[name for name in trusted if name != person]]
    if not own["repeats"] or others["repeats"].sum() < MIN_ANSWERS or (others["repeats"] > 0).sum() < MIN_OTHERS:
        return []
    usual = float(others["repeats_same"].sum() / others["repeats"].sum())
    low, high = compute_wilson(int(own["repeats_same"]), int(own["repeats"]))
    words = (
        f"does not repeat their own answers: {own['repeats_same']:.0f} of {own['repeats']:.0f} the same "
        f"[{low:.0%}, {high:.0%}], the others {usual:.0%}"
    )
    p = float(binom.cdf(own["repeats_same"], own["repeats"], max(usual - LESS_CONSISTENT, 0.0)))
    return [Fault(ATTENTION, p, words)]

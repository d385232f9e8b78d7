"""Plant people who click without looking among honest ones, and count who is found: `python -m experiments.screening`.

Every study has 30 simulated people, 24 honest and 6 not, of the kinds in turn. Honest people differ: in care (the
scale of what they see, log-normal 0.3), in how often they tie, in their pull to one side (0.2 logits) and in their
pace; photos differ too (a method is better on some photos than on others, by 0.7 of the methods' spread). Beside their
answers come gold pairs, one in twenty, which honest people get right 19 times in 20, and as many repeats.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: the processes below use the cores already

import numpy as np
import numpy.typing as npt
import pandas as pd

from metrics.accuracy import exact_interval
from metrics.rankings import LETTERS, write_ranking
from metrics.screening import screen_people

Array = npt.NDArray[Any]

KINDS = ("random", "one key", "fast random", "opposite", "mostly ties")
ASKED = ("pairs", "fours", "mixed")
N_PEOPLE, N_METHODS, N_PHOTOS = 30, 8, 60
SPAMMERS = 0.2
INTERACTION = 0.7
CARE_SD, PULL_SD, REPEAT_SHARE, GOLD_SHARE, GOLD_RIGHT = 0.3, 0.2, 0.05, 0.05, 0.95
FAST_SECONDS = 0.4


class _Person:
    """How a simulated person answers a set of candidates."""

    def __init__(self, kind: str, rng: np.random.Generator) -> None:
        self.kind, self.rng = kind, rng
        self.care = float(np.exp(rng.normal(0, CARE_SD))) * (-1.0 if kind == "opposite" else 1.0)
        self.pull = float(rng.normal(0, PULL_SD))
        self.tie_share = float(rng.beta(1, 9))
        self.place = int(rng.integers(0, 4))
        self.seconds = float(np.exp(rng.normal(np.log(4), 0.4)))

    def order(self, utilities: Array) -> tuple[list[int], bool]:
        """(places on screen, best first; whether the first two are tied)."""
        k, rng = len(utilities), self.rng
        if self.kind in ("random", "fast random"):
            return rng.permutation(k).tolist(), bool(rng.random() < 0.1)
        if self.kind == "one key":
            first = self.place % k
            return [first, *(place for place in range(k) if place != first)], False
        pull = self.pull * np.arange(k)[::-1] / max(k - 1, 1)
        order = np.argsort(-(self.care * utilities + pull + rng.gumbel(size=k))).tolist()
        return order, bool(rng.random() < (0.9 if self.kind == "mostly ties" else self.tie_share))

    def take_seconds(self) -> float:
        """How long an answer takes."""
        return 0.2 if self.kind == "fast random" else float(self.seconds * np.exp(self.rng.normal(0, 0.5)))


def simulate_study(
    seed: int, asked: str, n_answers: int, spread: float = 1.0
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """(answers and checks as `screen_people` takes them, kind by person; '' for an honest one) of one study.

    Args:
        asked: 'pairs', 'fours' (best, best and worst, or whole orders, by turns) or 'mixed'.
        n_answers: of each person, without gold and repeats, of which come more.
        spread: standard deviation of the methods' log strengths.
    """
    rng = np.random.default_rng(seed)
    strengths = rng.normal(0, spread, N_METHODS)
    utilities = strengths + rng.normal(0, INTERACTION * spread, (N_PHOTOS, N_METHODS))
    n_spammers = round(SPAMMERS * N_PEOPLE)
    kinds = {f"p{n:02}": KINDS[(n + seed) % len(KINDS)] if n < n_spammers else "" for n in range(N_PEOPLE)}
    rows: list[tuple[object, ...]] = []
    checks = []
    n_repeats, n_gold = round(REPEAT_SHARE * n_answers), round(GOLD_SHARE * n_answers)
    for name, kind in kinds.items():
        person = _Person(kind, rng)
        for turn in range(n_answers):
            photo = int(rng.integers(N_PHOTOS))
            k = {"pairs": 2, "fours": 4, "mixed": 2 if turn % 2 else 4}[asked]
            methods = rng.choice(N_METHODS, k, replace=False)
            order, tied = person.order(utilities[photo, methods])
            rows.append((name, f"f{photo}", *describe(methods, order, tied, turn, rng)))
        n = n_answers + n_repeats + n_gold
        same = sum(repeat_answer(person, utilities[rng.integers(N_PHOTOS)], rng) for _ in range(n_repeats))
        right = sum(answer_gold(person, rng) for _ in range(n_gold))
        fast = sum(person.take_seconds() < FAST_SECONDS for _ in range(n))
        checks.append((name, n, n_gold, right, n_repeats, same, fast, FAST_SECONDS, 0, 0, 0.0, 0.0))
    columns = ["person", "judgments", "gold", "gold_right", "repeats", "repeats_same", "fast", "fast_seconds"]
    columns += ["timed", "overclaimed", "claimed_seconds", "server_seconds"]
    answers = pd.DataFrame(rows, columns=["person", "source", "methods", "ranking", "places"])
    return answers, pd.DataFrame(checks, columns=columns).set_index("person"), kinds


def describe(
    methods: Array, order: list[int], tied: bool, turn: int, rng: np.random.Generator
) -> tuple[tuple[str, ...], str, str]:
    """(methods by letter, ranking, places) of an answer to the methods by place; letters are drawn over the places."""
    k = len(methods)
    places = "".join(rng.permutation(list(LETTERS[:k])))
    said = [places[place] for place in order]
    tiers = ["".join(said[:2]), *said[2:]] if tied else said
    named = tuple(f"m{methods[places.index(letter)]}" for letter in LETTERS[:k])
    if k == 2 or turn % 3 == 2:
        return named, write_ranking(tiers, k), places
    return named, write_ranking(tiers[:1], k, tiers[-1:] if turn % 3 else ()), places


def repeat_answer(person: _Person, utilities: Array, rng: np.random.Generator) -> bool:
    """Whether a person says the same of a pair of a photo when it comes again, turned round."""
    pair = utilities[rng.choice(len(utilities), 2, replace=False)]
    (first, tied), (again, tied_again) = person.order(pair), person.order(pair[::-1])
    return bool((tied and tied_again) or (not tied and not tied_again and first[0] != again[0]))


def answer_gold(person: _Person, rng: np.random.Generator) -> bool:
    """Whether a person gets a gold pair right."""
    better = int(rng.integers(2))
    utilities = np.where(np.arange(2) == better, np.log(GOLD_RIGHT / (1 - GOLD_RIGHT)), 0.0) / abs(person.care)
    order, tied = person.order(utilities)
    return not (tied and person.kind == "mostly ties") and order[0] == better


def count_found(seed: int, asked: str, n_answers: int, spread: float) -> Counter[str]:
    """How many people of each kind ('' honest) a study had, and how many of them were flagged ('+' before the kind)."""
    answers, checks, kinds = simulate_study(seed, asked, n_answers, spread)
    flags = screen_people(answers, checks)["flags"]
    return Counter(kinds.values()) + Counter(f"+{kinds[str(person)]}" for person in flags.index[flags != ""])


def write_row(asked: str, n_answers: int, spread: float, counts: Counter[str]) -> str:
    """A row of the table: recall of all and of each kind, honest people flagged; 95 % intervals (Clopper-Pearson)."""
    found, planted = (sum(counts[mark + kind] for kind in KINDS) for mark in ("+", ""))
    cells = [f"{counts['+' + kind] / max(counts[kind], 1):.2f}" for kind in KINDS]
    low, high = exact_interval(found / planted, planted)
    wrong = counts["+"] / counts[""]
    wrong_low, wrong_high = exact_interval(wrong, counts[""])
    honest = f"{wrong:.1%} [{wrong_low:.1%}, {wrong_high:.1%}]"
    return (
        f"| {asked} | {n_answers} | {spread:g} | {found / planted:.3f} [{low:.3f}, {high:.3f}] | "
        + " | ".join([*cells, honest])
        + " |"
    )


def write_rows(studies: int, workers: int | None) -> Iterator[str]:
    """The table, a row a setting as soon as it is there."""
    yield "| asked | answers a person | spread | found | " + " | ".join([*KINDS, "honest flagged"]) + " |"
    yield "|---" * (len(KINDS) + 5) + "|"
    with ProcessPoolExecutor(workers) as processes:
        for spread, n_answers in ((1.0, 60), (1.0, 100), (1.0, 200), (0.5, 200)):
            for asked in ASKED:
                job = partial(count_found, asked=asked, n_answers=n_answers, spread=spread)
                counts: Counter[str] = sum(processes.map(job, range(studies)), Counter())
                yield write_row(asked, n_answers, spread, counts)


def main() -> int:
    """Simulate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=100, help="studies of each setting (default: 100)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    args = parser.parse_args()
    for line in write_rows(args.studies, args.workers):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

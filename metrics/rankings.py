"""Read and write rankings: what a person said of a set of candidates, as one short text.

Candidates are the letters a … f. Tiers stand best first between '>', tied letters of one tier between '=', and '?' is
the place of all candidates that were not told apart, two or more:

    c>?        c is the best of them          c>?>b      c is the best, b the worst
    c>a>?      c, then a, then any of the rest   c>a=d>b    a whole order, a and d tied

A pair is the ranking 'a>b', 'b>a' or 'a=b'.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

LETTERS = "abcdef"
MIN_SIZE, MAX_SIZE = 2, len(LETTERS)
REST = "?"
FORM = re.compile(r"(\?|[a-f](=[a-f])*)(>(\?|[a-f](=[a-f])*))*")
RANKING_OF_CHOICE = {"a": "a>b", "b": "b>a", "tie": "a=b"}
"""An answer to a pair as a ranking."""
CHOICE_OF_RANKING = {ranking: choice for choice, ranking in RANKING_OF_CHOICE.items()}


def write_ranking(tiers: Sequence[str], size: int, worst: Sequence[str] = ()) -> str:
    """Write tiers of letters as a ranking in its one form: letters of a tier sorted, a lone rest named.

    Args:
        tiers: best first, such as ["c", "ad"]; the letters of one tier are tied.
        size: number of candidates, 2 … 6.
        worst: tiers below all that are not named, the last the worst.
    Raises:
        ValueError: an empty tier, a letter twice or beyond `size`, or nothing told apart.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"{size} candidates: a task has {MIN_SIZE} to {MAX_SIZE}")
    named = "".join([*tiers, *worst])
    rest = [letter for letter in LETTERS[:size] if letter not in named]
    if not all([*tiers, *worst]) or len(set(named)) < len(named) or not set(named) <= set(LETTERS[:size]):
        raise ValueError(f"{[*tiers, *worst]} are not tiers of the letters {LETTERS[:size]}, each once")
    if not named or (len(rest) == size):
        raise ValueError("a ranking names one candidate at least")
    middle = [] if not rest else ["".join(rest)] if len(rest) == 1 else [REST]
    return ">".join("=".join(sorted(tier)) for tier in [*tiers, *middle, *worst])


def read_ranking(ranking: str, size: int) -> tuple[list[str], str, list[str]]:
    """Return (tiers best first, letters not told apart, tiers below these) of a ranking; a tier's letters are sorted.

    Raises:
        ValueError: not a ranking of `size` candidates in the form of `write_ranking`.
    """
    if not FORM.fullmatch(ranking) or ranking.count(REST) > 1:
        raise ValueError(f"{ranking!r} is not a ranking such as 'c>?' or 'c>a=d>b'")
    parts = [part.replace("=", "") for part in ranking.split(">")]
    at = parts.index(REST) if REST in parts else len(parts)
    tiers, worst = parts[:at], parts[at + 1 :]
    rest = "".join(letter for letter in LETTERS[:size] if letter not in ranking)
    if (at == len(parts) and rest) or write_ranking(tiers, size, worst) != ranking:
        raise ValueError(f"{ranking!r} is not a ranking of {size} candidates, each once, in its one form")
    return tiers, rest, worst


def derive_pairs(ranking: str, size: int) -> list[tuple[str, str, str]]:
    """(x, y, choice) of each two letters x < y that the ranking tells of: choice 'a' where x is better, 'b', or 'tie'.

    They come of one answer and are not independent: count the answer, never these.
    """
    tiers, rest, worst = read_ranking(ranking, size)
    place = {letter: at for at, tier in enumerate([*tiers, rest, *worst]) for letter in tier}
    told = []
    for x, y in itertools.combinations(LETTERS[:size], 2):
        if place[x] == place[y] and x in rest:
            continue
        told.append((x, y, "tie" if place[x] == place[y] else "a" if place[x] < place[y] else "b"))
    return told


def rename_letters(ranking: str, new: Mapping[str, str]) -> str:
    """Write the same ranking with other letters, those of a tier sorted again."""
    tiers = ["=".join(sorted(new.get(letter, letter) for letter in tier.split("="))) for tier in ranking.split(">")]
    return ">".join(tiers)


def contradicts(ranking: str, known: str, size: int) -> bool:
    """Whether an answer has two candidates the other way round than the known ranking has them; a tie has not."""
    truth = {(x, y): choice for x, y, choice in derive_pairs(known, size)}
    opposite = {"a": "b", "b": "a"}
    return any(truth.get((x, y)) == opposite.get(choice, "") for x, y, choice in derive_pairs(ranking, size))

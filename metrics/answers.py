"""Hold people's answers in one table, whatever was asked: pairs, the best of several, whole orders.

`answers` has a row an answer that counts: task (the key of the pair or set), source, methods (a tuple, the first of
candidate a) and ranking (see `metrics.rankings`), and where they are known group (the person in the photo), person,
simulated, asked, places, seconds and more. A table of votes on pairs (pair, source, method_a, method_b, choice) reads
as answers, and answers as the comparisons that follow from them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from metrics.rankings import LETTERS, RANKING_OF_CHOICE, derive_pairs

KEPT = ["judgment", "source", "group", "person", "simulated", "asked"]
"""Columns that a comparison has of its answer."""


def read_answers(votes: pd.DataFrame) -> pd.DataFrame:
    """Votes on pairs as answers, numbered from 0; answers as they are."""
    if "method_a" not in votes:
        return votes.reset_index(drop=True)
    answers = votes.reset_index(drop=True).rename(columns={"pair": "task"})
    answers["methods"] = list(zip(answers["method_a"], answers["method_b"], strict=True))
    answers["ranking"] = answers["choice"].map(RANKING_OF_CHOICE)
    if "shown_left" in answers:
        answers["places"] = answers["shown_left"].map({"a": "ab", "b": "ba"})
    return answers.drop(columns=["method_a", "method_b", "choice"])


def list_comparisons(answers: pd.DataFrame) -> pd.DataFrame:
    """Every two candidates that an answer tells apart or ties, a row each: for counts of who won over whom.

    answer (its row's number in `answers`), task, pair (task and letters; a pair's own key), method_a, method_b, choice,
    share (one by the number of its answer's comparisons: an answer counts once), and KEPT of its answer, where it has
    them.
    Comparisons of one answer are not independent: fits, bootstraps and intervals count answers.
    """
    kinds = pd.DataFrame({"ranking": answers["ranking"].to_numpy(), "size": answers["methods"].map(len).to_numpy()})
    methods = answers["methods"].to_numpy()
    at, shares = list[npt.NDArray[np.int64]](), list[float]()
    first, second, choices, letters = (list[str]() for _ in range(4))
    for numbered, group in kinds.groupby(["ranking", "size"]).groups.items():
        told = derive_pairs(str(numbered[0]), int(numbered[1]))  # type: ignore[index]
        rows = np.asarray(group)
        for x, y, choice in told:
            at.append(rows)
            for names, letter in ((first, x), (second, y)):
                names.extend(methods[row][LETTERS.index(letter)] for row in rows)
            choices += [choice] * len(rows)
            letters += [x + y if int(numbered[1]) > 2 else ""] * len(rows)  # type: ignore[index]
            shares += [1 / len(told)] * len(rows)
    answer = np.concatenate(at) if at else np.zeros(0, dtype=np.int64)
    table = answers[[name for name in KEPT if name in answers]].iloc[answer].reset_index(drop=True)
    table.insert(0, "answer", answer)
    if "task" in answers:
        task = answers["task"].iloc[answer].astype(str).to_numpy()
        table["task"] = task
        table["pair"] = [key if not two else f"{key} {two}" for key, two in zip(task, letters, strict=True)]
    table["method_a"], table["method_b"] = first, second
    table["choice"], table["share"] = choices, np.array(shares, dtype=float)
    return table.sort_values("answer", kind="stable").reset_index(drop=True)

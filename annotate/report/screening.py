"""Screen the people who judge: what speaks against whose answers, and what the ranking is without them.

`metrics.screening` has the tests. Nobody is left out unless a command is told `--exclude-flagged`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from sqlalchemy.orm import Session

from annotate.report.agreement import compute_people, count_people
from annotate.report.rank import load_judgments, select_answers
from metrics.answers import read_answers
from metrics.screening import FALSE_FLAGS, screen_people

RULE = (
    "Each person's answers were tested against what an honest person may do: their likelihood under the scale of the "
    "others' answers (Plackett-Luce, fitted without them), gold pairs, repeats, one place or key on screen, ties, and "
    f"time; those flagged at a false discovery rate of {FALSE_FLAGS:.0%} over people (Benjamini and Hochberg)"
)
"""What `--exclude-flagged` does, for a card."""


def describe_people(judgments: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """The table of people: `compute_people`'s columns, and what `screen_people` says of them; of votes too."""
    counts = count_people(judgments, answers)
    if judgments.empty:
        return compute_people(counts).assign(flags="")
    screened = screen_people(read_answers(answers), counts)
    return compute_people(counts).merge(screened, left_on="person", right_index=True)


def find_flagged(session: Session, *, people: Sequence[str] = (), include_simulated: bool = False) -> dict[str, str]:
    """Why each flagged person is flagged, by name.

    Args:
        people: whose judgments are looked at; none named takes all.
    Raises:
        UserError: there is no person of such a name.
    """
    judgments = load_judgments(session, people=people, include_simulated=include_simulated)
    table = describe_people(judgments, select_answers(judgments))
    flagged = table[table["flags"] != ""]
    return dict(zip(flagged["person"], flagged["flags"], strict=True))


def compare_rankings(every: pd.DataFrame, kept: pd.DataFrame) -> pd.DataFrame:
    """The ranking of all answers beside that without the flagged people: method, score, rank, score_kept, rank_kept."""
    both = every[["method", "score", "rank"]].merge(
        kept[["method", "score", "rank"]], on="method", how="left", suffixes=("", "_kept")
    )
    return both.astype({"rank_kept": "Int64"})


def describe_effect(compared: pd.DataFrame, flagged: Sequence[str], *, excluded: bool) -> str:
    """What leaving the flagged people out does to the ranking, in a sentence."""
    who = f"the {len(flagged)} flagged {'person' if len(flagged) == 1 else 'people'} ({', '.join(flagged)})"
    done = f"Leaves out {who}" if excluded else f"Counts {who} too; --exclude-flagged leaves them out"
    told = compared[compared["rank_kept"].notna()]
    moved = told[told["rank"] != told["rank_kept"]]
    changes = ", ".join(f"{row.method} {row.rank} to {row.rank_kept}" for row in moved.itertuples(index=False))
    largest = (told["score_kept"] - told["score"]).abs().max()
    order = f"ranks change without them: {changes}" if changes else "the order of the methods is the same without them"
    return f"{done}. By screening.csv, {order}; no score moves by more than {largest:.2f}."

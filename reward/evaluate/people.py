"""Read people's judgments of a dataset folder, and select the labels that scorers may be measured by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dataset.labelled import LabelledPair, Split
from db.errors import UserError
from db.records import SIMULATED
from reward.data import Pairs
from reward.evaluate.compare import Labels

"""Ending of `made_by` of a label that includes programs' answers."""
JUDGMENT_FIELDS = ["pair", "person", "simulated", "choice", "picked", "superseded_at", "repeat_no", "gold"]


def read_judgments(dataset: Path) -> pd.DataFrame:
    """The live judgments of `judgments.jsonl`, oldest first: JUDGMENT_FIELDS; empty where the dataset has none.

    Raises:
        UserError: a line is malformed; named.
    """
    file = dataset / "judgments.jsonl"
    rows: list[dict[str, Any]] = []
    if file.exists():
        with open(file, encoding="utf-8-sig") as stream:
            for number, text in enumerate(stream, 1):
                try:
                    line = json.loads(text)
                    rows.append({name: line[name] for name in JUDGMENT_FIELDS})
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{file}, line {number}: not a judgment ({error}). Export the dataset again."
                    ) from error
    table = pd.DataFrame(rows, columns=JUDGMENT_FIELDS)
    live: pd.DataFrame = table[table["superseded_at"].isna()].reset_index(drop=True)
    return live.astype({"simulated": bool})


def select_votes(judgments: pd.DataFrame, pairs: Sequence[LabelledPair], *, include_simulated: bool) -> pd.DataFrame:
    """The judgments of these pairs that count: no repeat, no gold pair, no skip; see `metrics.votes`.

    Args:
        include_simulated: take programs' answers too; they stay marked `simulated`, and no ceiling counts them.
    """
    counts = (judgments["repeat_no"] == 0) & judgments["gold"].isna() & (judgments["choice"] != "skip")
    if not include_simulated:
        counts &= ~judgments["simulated"]
    fields = pd.DataFrame(
        [(row.pair, row.source, row.method_a, row.method_b) for row in pairs],
        columns=["pair", "source", "method_a", "method_b"],
    )
    return judgments[counts][["pair", "person", "simulated", "choice", "picked"]].merge(fields, on="pair")


def choose_labels(
    pairs: Pairs, split: Split, judgments: pd.DataFrame, *, include_simulated: bool
) -> tuple[Labels, pd.DataFrame, list[str]]:
    """(people's labels of a split that may measure accuracy, their votes, notes of what was left out and why).

    Only pairs whose first answer was to a pair picked at random: what an active order picks is not a fair sample.

    Raises:
        UserError: there is none, or all are of one method.
    """
    human = pairs.select(split, "human").rows
    rows = [row for row in human if include_simulated or not row.made_by.endswith(SIMULATED)]
    votes = select_votes(judgments, rows, include_simulated=include_simulated)
    picked = votes.drop_duplicates("pair").set_index("pair")["picked"]
    fair = [row for row in rows if picked.get(row.pair, "random") == "random"]
    notes = []
    if len(rows) < len(human):
        notes.append(f"{len(human) - len(rows):,} labels of simulated annotators are left out.")
    if len(fair) < len(rows):
        notes.append(f"{len(rows) - len(fair):,} labels are left out, since their pairs were not picked at random.")
    if not any(row.p_a != 0.5 for row in fair):
        found = f"only {len(fair):,} ties" if fair else "none"
        raise UserError(
            f"{pairs.path} has no label by people to measure on in split {split}: {found}. {' '.join(notes)} It holds "
            f"{pairs.describe()}. Judge pairs of that split, name another --split, or give --include-simulated to "
            "measure on programs' answers."
        )
    methods = {method for row in fair for method in (row.method_a, row.method_b)}
    if len(methods) == 1 and None not in methods:
        raise UserError(
            f"All {len(fair):,} labels of split {split} are of one method, {methods.pop()}: nothing to compare. "
            "Import a second method's images and judge pairs of both."
        )
    kept = {row.pair for row in fair}
    votes = votes[votes["pair"].isin(kept)].reset_index(drop=True)
    counts = votes["pair"].value_counts()
    return Labels(tuple(fair), np.array([int(counts.get(row.pair, 0)) for row in fair])), votes, notes

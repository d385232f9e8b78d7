"""The card of a dataset folder: what is in it, how it was made, what was left out."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from runs.store import code_version

Row = dict[str, Any]


def write_card(
    rows: list[Row], judgments: list[Row], counts: dict[str, Any], name: str, licence: str, options: dict[str, Any]
) -> str:
    """The dataset card: YAML front matter, then what is in it, how it was made, and what was left out."""
    agreements = [row["agreement"] for row in rows if row["agreement"] is not None]
    several = [row["agreement"] for row in rows if len(row["judgments"]) > 1]
    pairs_of_methods = Counter(tuple(sorted((row["method_a"], row["method_b"]))) for row in rows)
    methods = sorted({row[side] for row in rows for side in ("method_a", "method_b")})
    live = [row for row in judgments if row["superseded_at"] is None]
    lines = [
        "---",
        f"license: {json.dumps(licence)}",
        f"pretty_name: {json.dumps(name)}",
        "tags: [preference, face-restoration]",
        "---",
        "",
        f"# {name}",
        "",
        "Pairwise preferences between restorations of the same low-quality face, exported by FaceReward "
        f"{code_version()}.",
        "",
        f"- **{counts['rows']:,} labelled pairs** of {len({row['source'] for row in rows}):,} photos; "
        + ", ".join(f"{split} {count:,}" for split, count in counts["splits"].items()),
        "- The split was drawn once, by person where known, else by photo: no person or photo is in two splits.",
        f"- Labels: {', '.join(f'{count:,} by {maker}' for maker, count in counts['made_by'].items())}.",
        f"- {counts['ties']:,} ties (policy: {options['ties']}).",
        f"- {len(live):,} live judgments by {counts['people']} people and {counts['simulated_annotators']} "
        f"simulated annotators; {len(judgments) - len(live):,} superseded ones.",
        f"- Mean agreement with a pair's most frequent answer: {_mean(several)} over the {len(several):,} pairs judged "
        f"more than once, {_mean(agreements)} over all.",
        f"- Licence: {licence}.",
        "",
        "## How it was made",
        "",
        "```json",
        json.dumps(options, indent=2),
        "```",
        "",
        "Left out by filters: " + ", ".join(f"{which} {count:,}" for which, count in counts["dropped"].items()) + ".",
        "",
        "`p_a` is the probability that a is better; a tie is 0.5. Which candidate is a is drawn by a hash, so it says "
        "nothing of the method. People appear under random names.",
        "",
        f"## Methods ({len(methods)})",
        "",
        "| methods | pairs |",
        "|---|---|",
        *(f"| {first} / {second} | {count:,} |" for (first, second), count in sorted(pairs_of_methods.items())),
        "",
    ]
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else "not known"

"""Write the card of a dataset folder: its contents, how it was made, what was left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dataset.card_configs import ALL_SPLITS, Config, write_front_matter
from db.records import describe_discarded
from licences.terms import Licensed, format_list
from runs.store import code_version

Row = dict[str, Any]
NOTES = {
    "jsonl": '`scores.parquet` holds metric values: `load_dataset("parquet", data_files="scores.parquet")`. '
    "`python -m annotate import` reads the folder back, `python -m reward train --dataset` trains on it.",
    "hpdv2": "HPSv2 trains on `train.json` (`--dataset-type HPD`) and evaluates on `test.json` (`ranking`), the folder "
    "being that of the images. Its accuracy counts a tie as right whatever the model says, so `test.json` has none; in "
    "`train.json` and `val.json` a tie is [0.5, 0.5], which its loss takes as it stands.",
    "imagereward": "An answer about several candidates is one item, with its `ranking`; those tied or not told apart "
    "have the same rank, of which the loader makes no pair. ImageReward's `rank_pair_dataset` reads it with "
    "`data_base` this folder and `image_base` too. It passes over ties, and HPSv2's count of such files fails on "
    "them, so of pairs there are none.",
    "pickapic": "PickScore's trainer reads it with `dataset.dataset_config_name=pairs`, "
    "`dataset.valid_split_name=validation` and `dataset.test_split_name=test`. A tie has the labels 0.5 and 0.5: its "
    "loss takes them as they stand, its accuracy counts half a hit.",
    "diffusion-dpo": "diffusers' `train_diffusion_dpo.py` reads it. It would take a tie for a win, so there are none.",
    "trl": "The DPOTrainer of TRL 0.29 to 1.16 (tried) reads it, with a vision-language model: `images` are those "
    "of the prompt, which shows the two restorations, ordered by their SHA-256, and the chosen answer names the better "
    "one. TRL's RewardTrainer reads text only. There are no ties.",
}
"""Readers of a format, and the labels it cannot hold."""


def write_card(
    rows: list[Row],
    judgments: list[Row],
    questions: list[Row],
    counts: dict[str, Any],
    options: dict[str, Any],
    configs: list[Config],
    made_from: Sequence[Licensed] = (),
) -> str:
    """The dataset card: YAML front matter, then what is in it, how it was made, and what was left out.

    Args:
        questions: the versions of the question that the judgments answered, oldest first.
        counts: as `export_dataset` returns them.
        options: of the export; people under their public ids.
        configs: the tables of the folder.
        made_from: licences of the photos, restorers and labelers.
    """
    name, licence = options["name"], options["licence"]
    lines = [
        "---",
        f"license: {json.dumps(licence)}",
        f"pretty_name: {json.dumps(name)}",
        "tags: [preference, face-restoration]",
        *write_front_matter(configs),
        "---",
        "",
        f"# {_words(name)}",
        "",
        "Pairwise preferences between restorations of the same low-quality face, exported by FaceReward "
        f"{code_version()}.",
        "",
        *_contents(rows, judgments, counts, options["ties"]),
        f"- Licence: {_words(licence)}.",
        "",
        "## Licences of what it was made from",
        "",
        "The strictest first:",
        "",
        *format_list(made_from),
        "",
        "## How to read it",
        "",
        *_reading(counts, options["format"], configs),
        "",
        "## How it was made",
        "",
        f"{_maker(options['resolve'])} Skips, repeats and gold pairs make no label. `agreement` is the share of a "
        "label's judgments that gave its most frequent answer.",
        "",
        "`p_a` is the probability that a is better; `tie` says that it is one half. Which candidate is a is drawn by a "
        "hash, so it says nothing of the method. People appear under random names.",
        "",
        "The judgments are all those of these pairs by the people who count, so more than the labels were made of: "
        "also those taken back (`superseded_at`), skips, repeats (`repeat_no` 1) and answers to gold pairs (`gold` is "
        "the known answer). `seconds` is how long the page says that the pair was in view, `server_seconds` the most "
        "that it can have been by the server's clock: from handing the pair out, or from the answer before it, to the "
        "answer. A label's `judgments` names those that it was made of. `picked` says why a pair was shown; "
        "only pairs picked at random (`random`) are a fair sample to measure accuracy on.",
        "",
        *_tasks(rows, judgments),
        *_questions(judgments, questions),
        "Left out, by filter: " + ", ".join(f"{which} {count:,}" for which, count in counts["dropped"].items()) + ".",
        "",
        *_screened(counts.get("screened")),
        "The options of the export:",
        "",
        "```json",
        json.dumps(options, indent=2, ensure_ascii=False),
        "```",
        "",
        *_table("split", "labelled pairs", counts["splits"]),
        *_table("origin", "labelled pairs", counts["origins"]),
        *_table("method", "labelled pairs it is in", counts["methods"]),
    ]
    return "\n".join(lines)


def _contents(rows: list[Row], judgments: list[Row], counts: dict[str, Any], ties: str) -> list[str]:
    live = [row for row in judgments if row["superseded_at"] is None]
    simulated = sum(row["simulated"] for row in judgments)
    agreements = [row["agreement"] for row in rows if row["agreement"] is not None]
    several = [row["agreement"] for row in rows if row["agreement"] is not None and len(row["judgments"]) > 1]
    lines = [
        f"- **{counts['rows']:,} labelled pairs** of {len({row['source'] for row in rows}):,} photos; "
        + ", ".join(f"{split} {count:,}" for split, count in counts["splits"].items())
        + ".",
        "- The split was drawn once, by person where known, else by photo: no person or photo is in two splits.",
        f"- Labels: {', '.join(f'{count:,} by {_words(maker)}' for maker, count in counts['made_by'].items())}.",
        f"- {counts['ties']:,} ties (policy: {ties}).",
        f"- {len(live):,} live judgments and {len(judgments) - len(live):,} superseded ones, by {counts['people']:,} "
        f"people and {counts['simulated_annotators']:,} simulated annotators.",
        f"- Mean agreement: {_mean(several)} over the {len(several):,} pairs judged more than once, "
        f"{_mean(agreements)} over all.",
    ]
    if discarded := describe_discarded(**counts["discarded"]):
        lines.append(f"- {discarded}.")
    if simulated:
        lines.append(
            f"- **{simulated:,} of the {len(judgments):,} judgments were made by programs, not people** (`simulated` "
            "is true), and labels were made of them too."
        )
    return lines


def _reading(counts: dict[str, Any], form: str, configs: list[Config]) -> list[str]:
    first = configs[0].name
    others = "".join(f", `load_dataset(folder, {config.name!r})` its {config.name}" for config in configs[1:])
    lines = [f"`datasets.load_dataset(folder)` of this folder gives its {first}{others}."]
    if ALL_SPLITS in configs[0].files:
        lines[0] += f" They come as one split, `{ALL_SPLITS}`: take the rows whose `split` is `train` to train on."
    if form in NOTES:
        lines += ["", NOTES[form]]
    if counts.get("ties_left_out"):
        lines += ["", f"{counts['ties_left_out']:,} ties are not in the files, since their readers cannot take them."]
    return lines


def _tasks(rows: list[Row], judgments: list[Row]) -> list[str]:
    """How answers about several candidates became labels of pairs; nothing where there are none."""
    answers = sum(row.get("ranking") is not None and row["superseded_at"] is None for row in judgments)
    derived = sum(bool(row.get("tasks")) for row in rows)
    if not derived:
        return []
    return [
        f"{derived:,} labels were derived from {answers:,} answers about three to six candidates at once: `tasks` "
        "names them. **Labels of one task are not independent**: count answers, and keep a task's pairs together. "
        "In our own folder `ranking` is the answer, such as c>a>? (c best, then a, the others not told apart; = is a "
        "tie), over the candidates of `tasks.jsonl`, and `places` how they stood on the screen. A label's `weight` is "
        "the sum over its judgments of one part in as many as the answer tells of pairs, 1 at most.",
        "",
    ]


def _questions(judgments: list[Row], questions: list[Row]) -> list[str]:
    """List the questions asked, a line per version; judgments from before versions were kept have none."""
    counts = Counter(row["question_version"] for row in judgments)
    if not counts:
        return []
    lines = [
        f"- `{row['question_version']}`, since {row['created_at'][:10]}, "
        f"{counts[row['question_version']]:,} judgments: {_words(row['question'])}"
        for row in questions
    ]
    lines += [f"- not recorded, {counts[None]:,} judgments"] if counts[None] else []
    return [
        "What was asked, by `question_version`; another version has another question, guidelines or reasons:",
        "",
        *lines,
        "",
    ]


def _screened(screened: dict[str, Any] | None) -> list[str]:
    """Who was left out by rule, under random names, and why."""
    if screened is None:
        return []
    people = [f"- `{person}`: {_words(why)}" for person, why in screened["people"].items()]
    return [
        f"Left out by screening, {len(people):,} people. {_words(screened['rule'])}:",
        "",
        *(people or ["- nobody"]),
        "",
    ]


def _maker(resolve: str) -> str:
    if resolve == "majority":
        return "A human label is the share of people's votes for a, a tie being half a vote for each."
    if resolve == "dawid-skene":
        return (
            "A human label is P(a) + P(tie) / 2 of the posterior of Dawid and Skene (1979) over people's answers, "
            "which weighs people by their reliability."
        )
    return "The labels are those that the database held; `made_by` says how each was made."


def _table(of: str, what: str, counts: dict[str, int]) -> list[str]:
    rows = [f"| {_words(name)} | {count:,} |" for name, count in counts.items()]
    return [f"| {of} | {what} |", "|---|---|", *rows, ""]


def _words(text: str) -> str:
    """Text as Markdown shows it, whatever is in it: no table, link, picture, code or HTML begins in it."""
    return "".join(f"&#{ord(one)};" if one in "<>[]`|\\&" else one for one in " ".join(text.split()))


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else "not known"

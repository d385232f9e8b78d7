"""Write the report on a set of judgments: tables as CSV, pictures as PNG and SVG, the key numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotate.report.agreement import compute_agreement
from annotate.report.audit import audit_ranking
from annotate.report.information import compare_asked
from annotate.report.options import RankOptions
from annotate.report.order_effects import compute_order_effects
from annotate.report.plan import compare_neighbours, decide_pairs, describe_neighbours, describe_pairs
from annotate.report.plots import plot_over_time, plot_people, plot_ranking, plot_win_matrix
from annotate.report.rank import compute_win_matrix, load_judgments, select_answers, select_votes
from annotate.report.rewards import compute_mean_rewards
from annotate.report.screening import compare_rankings, describe_effect, describe_people
from annotate.report.side_bias import compute_side_bias
from db.errors import UserError
from db.models import Judgment, Person, Question, utc_now
from db.records import count_discarded, describe_discarded
from metrics.votes import MIN_SOURCES, explain_connection, explain_intervals, rank_methods
from runs.files import write_text_whole
from runs.hold import hold_folder
from runs.pictures import save_figure
from runs.space import explain_full_disk
from runs.store import without_nan
from runs.tables import write_table

MAX_METHODS_PLOTTED = 40
"""Methods beyond which the pictures show the best only; the CSV files always have all."""


def write_report(
    session: Session, out: Path, options: RankOptions, on_step: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Rank the methods, describe the people, and write all of it to a folder.

    Writes ranking.csv, win_matrix.csv, win_counts.csv, people.csv, screening.csv (the ranking with and without the
    flagged people), plan.csv (whether neighbours in the ranking are told apart, and the answers missing), pairs.csv
    (which pairs of images are decided), agreement.csv, side_bias.csv, order_effects.csv, audit.csv, asked.csv (what
    each way of asking tells in a second), over_time.csv, questions.csv (the versions of the question that were
    answered), rewards.csv (stored rewards by method), summary.json, and ranking, win_matrix, over_time and people as
    .png and .svg.

    Args:
        out: folder, made where it is missing; files of an earlier report in it are replaced.
        on_step: called with (done, total) in steps.
    Returns:
        the contents of summary.json.
    Raises:
        UserError: no judgments to rank, a negative number of resamples, an unknown person, or `out` cannot be written.
    """
    step = on_step or (lambda _done, _total: None)
    last_judgment_id = session.scalar(select(func.max(Judgment.id))) or 0
    judgments = load_judgments(
        session, split=options.split, people=options.people, include_simulated=options.include_simulated
    )
    answers = select_answers(judgments)
    if answers.empty:
        raise UserError(_nothing_to_rank(session, judgments, options))
    people = describe_people(judgments, answers)
    flagged = people.loc[people["flags"] != "", "person"].tolist()
    every, kept = answers, answers[~answers["person"].isin(flagged)]
    answers = kept if options.exclude_flagged else every
    votes = select_votes(judgments)
    votes = votes[votes["person"].isin(answers["person"])]
    if answers.empty:
        raise UserError("Everybody who judged is flagged; rank without --exclude-flagged and read people.csv.")
    step(1, 5)
    ranking = rank_methods(answers, n_resamples=options.resamples, seed=options.seed)
    step(2, 5)
    bias = compute_side_bias(votes, n_resamples=options.resamples, seed=options.seed)
    order_effects = compute_order_effects(answers, ranking, bias)
    audit = audit_ranking(answers, seed=options.seed)
    asked, asked_said = compare_asked(answers)
    step(3, 5)
    agreement = compute_agreement(answers, n_resamples=options.resamples, seed=options.seed)
    neighbours, pairs = compare_neighbours(answers, ranking), decide_pairs(answers)
    of_every = rank_methods(every, n_resamples=0) if options.exclude_flagged and flagged else ranking
    of_kept = rank_methods(kept, n_resamples=0) if flagged and not options.exclude_flagged else ranking
    screening = compare_rankings(of_every, of_kept)
    shares, counts = compute_win_matrix(answers, ranking["method"].tolist())
    rewards = compute_mean_rewards(session, options.split, options.seed)
    questions = count_by_question(session, judgments)
    step(4, 5)
    summary: dict[str, Any] = {
        "written_at": utc_now().isoformat(timespec="seconds"),
        "last_judgment_id": last_judgment_id,
        "options": options.model_dump(mode="json", exclude={"out"}),
        "n_judgments": len(judgments),
        "n_votes": len(answers),
        "n_sources": int(answers["source"].nunique()),
        "n_people": int((~people["simulated"]).sum()),
        "n_simulated": int(people["simulated"].sum()),
        "ranking": ranking.to_dict("records"),
        "intervals": explain_intervals(answers) if options.resamples else "",
        "side_bias": asdict(bias),
        "order_effects": order_effects.to_dict("records"),
        "audit": audit.to_dict("records"),
        "asked": asked.to_dict("records"),
        "asked_said": asked_said,
        "agreement": {row["measure"]: row for row in agreement.to_dict("records")},
        "rewards": rewards.to_dict("records"),
        "questions": questions.to_dict("records"),
        "plan": [*describe_neighbours(neighbours, float(answers["seconds"].median())), describe_pairs(pairs)],
        "flagged": flagged,
        "screening": screening.to_dict("records") if flagged else [],
        "notes": [
            *_notes(session, judgments, ranking, people, questions, options),
            *([describe_effect(screening, flagged, excluded=options.exclude_flagged)] if flagged else []),
        ],
    }
    tables = {
        "ranking": ranking,
        "win_matrix": shares.reset_index(),
        "win_counts": counts.reset_index(),
        "people": people,
        "screening": screening,
        "plan": neighbours,
        "pairs": pairs,
        "agreement": agreement,
        "side_bias": pd.DataFrame([asdict(bias)]),
        "order_effects": order_effects,
        "audit": audit,
        "asked": asked,
        "over_time": count_by_hour(judgments),
        "rewards": rewards,
        "questions": questions,
    }
    summary = {key: without_nan(value) for key, value in summary.items()}
    _write_files(out, tables, summary, judgments)
    step(5, 5)
    return summary


def _write_files(out: Path, tables: dict[str, pd.DataFrame], summary: dict[str, Any], judgments: pd.DataFrame) -> None:
    best = tables["ranking"].head(MAX_METHODS_PLOTTED)
    names = best["method"].tolist()
    shares, counts = (tables[name].set_index("method").loc[names, names] for name in ("win_matrix", "win_counts"))
    try:
        with hold_folder(out), explain_full_disk(out, "run the same command again"):
            for name, table in tables.items():
                write_table(out / f"{name}.csv", table)
            save_figure(plot_ranking(best), out, "ranking")
            save_figure(plot_win_matrix(shares, counts), out, "win_matrix")
            save_figure(plot_over_time(judgments), out, "over_time")
            save_figure(plot_people(tables["people"].head(MAX_METHODS_PLOTTED)), out, "people")
            # Last, so that a folder with a summary is a whole report.
            write_text_whole(out / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(
            f"Cannot write the report to {out}: {error.strerror}. Name another folder with --out."
        ) from error


def count_by_hour(judgments: pd.DataFrame) -> pd.DataFrame:
    """All live judgments over time: hour (UTC), person, simulated, judgments, cumulative."""
    hours = judgments["created_at"].dt.floor("h").dt.strftime("%Y-%m-%dT%H:%MZ")
    keys = ["person", "simulated", hours.rename("hour")]
    table = judgments.groupby(keys).size().rename("judgments").reset_index()
    table["cumulative"] = table.groupby("person")["judgments"].cumsum()
    return table[["hour", "person", "simulated", "judgments", "cumulative"]].sort_values(["hour", "person"])


def count_by_question(session: Session, judgments: pd.DataFrame) -> pd.DataFrame:
    """The versions of the question that live judgments answered: version, key, since (UTC), judgments, title, question.

    Those of which nobody recorded what was asked stand last, without a version.
    """
    counts = judgments["question"].value_counts(dropna=False)
    rows: list[tuple[int | None, str, str, int, str, str]] = [
        (row.id, row.key, f"{row.created_at:%Y-%m-%dT%H:%MZ}", int(counts[row.id]), row.title, row.question)
        for row in session.scalars(select(Question).order_by(Question.id))
        if row.id in counts.index
    ]
    if unknown := int(judgments["question"].isna().sum()):
        rows.append((None, "", "", unknown, "", "not recorded"))
    # As objects, so that a missing version is empty and the others stay whole numbers.
    return pd.DataFrame(rows, columns=["version", "key", "since", "judgments", "title", "question"], dtype=object)


def _nothing_to_rank(session: Session, judgments: pd.DataFrame, options: RankOptions) -> str:
    reasons = []
    if len(judgments):
        reasons.append(f"{len(judgments)} are skips, repeats or of gold pairs")
    left_out = 0 if options.include_simulated else _count_simulated(session)
    if left_out:
        reasons.append(f"{left_out} are of simulated annotators, which --include-simulated takes in")
    where = f" in split {options.split.value!r}" if options.split else ""
    where += f" of {', '.join(options.people)}" if options.people else ""
    return f"No judgments{where} to rank{': ' if reasons else ''}{'; '.join(reasons)}. Judge some pairs first."


def _count_simulated(session: Session) -> int:
    return (
        session.scalar(
            select(func.count())
            .select_from(Judgment)
            .join(Person, Person.id == Judgment.person_id)
            .where(Judgment.superseded_at.is_(None), Person.simulated.is_(True))
        )
        or 0
    )


def _notes(
    session: Session,
    judgments: pd.DataFrame,
    ranking: pd.DataFrame,
    people: pd.DataFrame,
    questions: pd.DataFrame,
    options: RankOptions,
) -> list[str]:
    """List the cautions for a reader of the numbers, one sentence each."""
    notes = []
    if people["simulated"].any():
        n = int(judgments["simulated"].sum())
        notes.append(
            f"Includes {n} judgments of simulated annotators, who are not people: {n / len(judgments):.0%} of all."
        )
    elif not options.include_simulated and (left_out := _count_simulated(session)):
        notes.append(f"{left_out} judgments of simulated annotators are left out.")
    if discarded := describe_discarded(*count_discarded(session, include_simulated=options.include_simulated)):
        notes.append(f"{discarded}.")
    if len(questions) > 1:
        asked = [
            f"{row['judgments']} " + ("without a record" if row["version"] is None else f"of version {row['version']}")
            for row in questions.to_dict("records")
        ]
        notes.append(f"What is asked has changed between these judgments: {', '.join(asked)}; see questions.csv.")
    notes += explain_connection(select_answers(judgments))
    bare = ranking[ranking["low"].isna()] if options.resamples else ranking[:0]
    few = bare["n_groups"] < MIN_SOURCES
    alone = ~few & ~bare["strong_component"].duplicated(keep=False)
    for names, why in (
        (bare.loc[few, "method"], f"judged on fewer than {MIN_SOURCES} sources, or people in them"),
        (bare.loc[alone, "method"], "every judgment against the others went one way"),
        (bare.loc[~few & ~alone, "method"], "every source says the same"),
    ):
        if len(names):
            notes.append(f"No interval for {', '.join(names)}: {why}.")
    if len(ranking) > MAX_METHODS_PLOTTED:
        notes.append(
            f"The pictures show the first {MAX_METHODS_PLOTTED} of {len(ranking)} methods; the CSV files have all."
        )
    return notes


def format_summary(summary: dict[str, Any]) -> str:
    """The ranking and the key numbers as text for a terminal."""
    ranking = summary["ranking"]
    width = max([len("method"), *(len(row["method"]) for row in ranking)])
    lines = [
        f"{'rank':>4}  {'method':<{width}}  {'score':>6}  {'95 % interval':>15}  {'JOD':>6}  {'win rate':>8}  {'n':>6}"
    ]
    for row, before in zip(ranking, [None, *ranking[:-1]], strict=True):
        if before is not None and row["component"] != before["component"]:
            lines.append(f"{'':4}  -- never met those above --")
        interval = "" if row["low"] is None else f"{row['low']:+.2f} … {row['high']:+.2f}"
        lines.append(
            f"{row['rank']:>4}  {row['method']:<{width}}  {row['score']:+6.2f}  {interval:>15}  "
            f"{row['score_jod']:+6.2f}  {row['win_rate']:>8.1%}  {row['n_judgments']:>6}"
        )
    lines += ["", f"{summary['n_votes']} answers on {summary['n_sources']} sources by {describe_raters(summary)}"]
    lines += [summary["intervals"]] if summary["intervals"] else []
    lines += [line for line in summary["plan"] if line]
    bias = summary["side_bias"]
    lines.append(
        f"side bias: {_number(bias['logit'], bias['logit_low'], bias['logit_high'], '+.2f')} logits for left; left "
        f"chosen in {_number(bias['left_share'], bias['left_share_low'], bias['left_share_high'], '.1%')} of "
        f"{bias['n_decisive']} answers without ties"
    )
    for row in summary["agreement"].values():
        lines.append(
            f"{row['measure']}: {_number(row['value'], row['low'], row['high'], '.2f')} ({row['n']} {row['unit']})"
        )
    lines += [row["sentence"] for row in [*summary["order_effects"], *summary["audit"]] if row["sentence"]]
    lines.append(summary["asked_said"])
    if summary["flagged"]:
        lines.append(f"flagged, see people.csv: {', '.join(summary['flagged'])}")
    return "\n".join([*lines, *(f"note: {note}" for note in summary["notes"])])


def describe_raters(summary: dict[str, Any]) -> str:
    """Describe who answered: '3 people and 1 simulated annotator'."""
    people, robots = summary["n_people"], summary["n_simulated"]
    words = [f"{people} {'person' if people == 1 else 'people'}"] if people or not robots else []
    words += [f"{robots} simulated annotator{'' if robots == 1 else 's'}"] if robots else []
    return " and ".join(words)


def _number(value: float | None, low: float | None, high: float | None, style: str) -> str:
    if value is None:
        return "not enough data"
    return f"{value:{style}}" + ("" if low is None or high is None else f" [{low:{style}}, {high:{style}}]")

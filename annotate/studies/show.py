"""Say in lines of text how a study stands, for the terminal."""

from __future__ import annotations

from typing import Any


def describe_lines(described: dict[str, Any]) -> list[str]:
    """What `annotate.studies.watch.describe_study` tells, a line a fact, then a line a participant."""
    return [
        f"{described['name']}: {described['state']}, {described['panel']}",
        f"places: {described['places_left']} of {described['places']} left; "
        f"answers: {described['answers_done']:,} of {described['answers_wanted']:,}",
        "; ".join(f"{step} {count}" for step, count in described["flow"].items()),
        *(_describe_end(end) for end in described["ended"]),
        *describe_quality_lines(described["quality"]),
        *describe_pay_lines(described["pay"]),
        *map(_describe_participant, described["participants"]),
    ]


def _describe_end(end: dict[str, Any]) -> str:
    reasons = "; ".join(f"{count} × {reason}" if count > 1 else reason for reason, count in end["reasons"])
    return f"{end['outcome'].replace('_', ' ')} {end['count']}: {reasons}"


def describe_quality_lines(quality: dict[str, Any]) -> list[str]:
    """Gold pairs, repeats and sides with their intervals, and whom the study warned and stopped."""
    shares = {"gold pairs right": "gold", "repeats alike": "repeats", "left image chosen": "left"}
    lines = [
        f"{words}: {found['share']:.0%} of {found['of']:,} (95 % interval {found['low']:.0%} to {found['high']:.0%})"
        for words, name in shares.items()
        if (found := quality[name]) is not None
    ]
    return [*lines, f"warned {quality['warned']}, stopped {quality['stopped']}"]


def describe_pay_lines(pay: dict[str, Any]) -> list[str]:
    """The ledger's sums, and the rate that people got against the announced one."""
    currency = pay["currency"]
    kinds = ", ".join(f"{kind.replace('_', '-')} {cents / 100:,.2f}" for kind, cents in pay["by_kind"].items())
    owed = f"ledger: {pay['owed_cents'] / 100:,.2f} {currency}{f' ({kinds})' if kinds else ''}"
    lines = [f"{owed}, of it paid {pay['paid_cents'] / 100:,.2f}"]
    if pay["quartiles_cents"] is not None:
        low, median, high = (cents / 100 for cents in pay["quartiles_cents"])
        announced = f", announced {pay['announced_cents'] / 100:,.2f}" if pay["announced_cents"] else ""
        lines.append(f"an hour at work: {median:,.2f} {currency} (middle half {low:,.2f} to {high:,.2f}){announced}")
    if pay["below"]:
        numbers = ", ".join(f"{number} ({cents / 100:,.2f})" for number, cents in pay["below"])
        lines.append(
            f"below the announced rate, with what is lacking: {numbers}; in all {pay['top_up_cents'] / 100:,.2f}: "
            "`study pay NAME --top-up` gives it"
        )
    return lines


def _describe_participant(one: dict[str, Any]) -> str:
    where = one["outcome"] or one["stage"]
    facts = [f"{one['answers']} answers", f"gold {one['gold_right']} of {one['gold_right'] + one['gold_wrong']}"]
    facts.append(f"{one['active_seconds'] / 60:.1f} min")
    return "\t".join([f"#{one['number']}", where, *facts, "flagged" if one["flagged"] else ""]).rstrip()

"""`python -m runs round`: the next round of the loop, shown before it starts."""

from __future__ import annotations

import argparse
import shlex
from typing import get_origin

from pydantic import ValidationError

from db.errors import UserError
from db.session import Database
from runs.rounds import RoundSettings, next_round_no, plan_round, start_round


def add_round_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """`round`: a flag for every setting."""
    parser = commands.add_parser("round", help="the next round: from the judgments so far to the next pairs to judge")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be started")
    for name, field in RoundSettings.model_fields.items():
        flag, words = f"--{name.replace('_', '-')}", str(field.description).replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=words)
        elif get_origin(field.annotation) is tuple:
            parser.add_argument(flag, nargs="+", default=field.default, metavar="X", help=words)
        else:
            default = "" if field.default is None else f" (default: {field.default})"
            parser.add_argument(flag, default=field.default, metavar="X", help=words + default)
    return parser


def run_round(database: Database, args: argparse.Namespace) -> list[int]:
    """Print the plan and start it; the ids of its runs, none where it was only asked what it would be."""
    try:
        settings = RoundSettings.model_validate({name: getattr(args, name) for name in RoundSettings.model_fields})
    except ValidationError as error:
        fault = error.errors()[0]
        flag = str(fault["loc"][0]).replace("_", "-")
        raise UserError(f"--{flag}: {fault['msg']}, got {fault['input']!r}") from error
    round_no = next_round_no(args.data)
    plan = plan_round(args.data, round_no, settings)
    print(f"round {round_no}:")
    for number, one in enumerate(plan, 1):
        print(f"{number}. {one.words}\n   python -m {shlex.join([*one.kind.split(), *one.arguments])}")
    return [] if args.dry_run else start_round(database, args.data, plan, url=args.db)

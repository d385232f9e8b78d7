"""Define the options of commands that publish, choose the licence of what is published, and begin its card."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field

from db.errors import UserError
from licences.terms import NOT_STATED, Licensed, Terms, is_commercial, sort_strictest
from runs.files import check_new_folder
from runs.hub import RepositoryKind, check_repository, push_folder
from runs.licences import refuse_non_commercial
from runs.options import Flag, Options, Output, make_absolute

HUB_LICENCES = (
    "apache-2.0",
    "mit",
    "openrail",
    "creativeml-openrail-m",
    "openrail++",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0",
    "cc-by-nc-nd-4.0",
    "gpl-2.0",
    "gpl-3.0",
    "agpl-3.0",
    "lgpl-2.1",
    "lgpl-3.0",
    "mpl-2.0",
    "isc",
    "unlicense",
    "wtfpl",
    "zlib",
    "bsl-1.0",
)
"""Ids that the hub knows; another licence is `other` with a name."""
OTHER_NAMES = {"creativeml open rail++-m": "openrail++", "creativeml open rail-m": "creativeml-openrail-m"}


class RepositoryOptions(Options):
    """How a folder becomes a repository of the hub, and under which licence."""

    private: Annotated[bool, Flag(terminal_only=True)] = Field(
        False, description="A repository that is made by the push is private"
    )
    licence: Annotated[str, Flag(metavar="TEXT", terminal_only=True)] = Field(
        "",
        max_length=200,
        description="Licence of what is published (default: the strictest of what it was made from); needed to push "
        "where one of these is not stated",
    )


class PushOptions(RepositoryOptions):
    """Where to, too."""

    push: Annotated[str | None, Flag(metavar="ORG/NAME", terminal_only=True)] = Field(
        None, description="Push the folder to this repository of the Hugging Face hub"
    )


class PublishOptions(PushOptions):
    """Of a command that writes a model as a folder, and pushes it where that is asked for."""

    out: Annotated[Path, Output()] = Field(description="Folder to write")


P = TypeVar("P", bound=PublishOptions)


def settle_publish(options: P, _data: Path) -> P:
    """Check that the folder is new.

    Raises:
        UserError: it is there already.
    """
    check_new_folder(options.out)
    return make_absolute(options)


def finish_publish(options: PublishOptions, what: str) -> None:
    """Say what was written, and push it where that is asked for.

    Raises:
        UserError: see `push_folder`.
    """
    print(f"{options.out}: {sum(1 for file in options.out.rglob('*') if file.is_file())} files")
    if pushed := push(options.out, options, "model", what):
        print(pushed)


def check_push(options: PushOptions, made_from: Iterable[Licensed]) -> None:
    """Refuse before anything is loaded what cannot be pushed, or may not.

    Raises:
        UserError: no name of a repository; a licence is not stated and `--licence` neither; commercial use is asked
            for and forbidden.
    """
    things = sort_strictest(made_from)
    if is_commercial():
        refuse_non_commercial(things)
    if options.push is None:
        return
    check_repository(options.push)
    silent = [one.name for one in things if one.terms is Terms.unknown]
    if silent and not options.licence:
        raise UserError(
            f"Nobody states the licence of {', '.join(silent)}, which this was made from. Ask who made it, then say "
            "with --licence TEXT under which you may publish."
        )


def choose_licence(given: str, made_from: Iterable[Licensed]) -> str:
    """The licence that a card names: what a person says, else the strictest of what it was made from."""
    things = sort_strictest(made_from)
    return given or (things[0].licence if things else NOT_STATED)


def format_front_matter(
    licence: str, made_from: Sequence[Licensed], tags: Sequence[str], fields: Mapping[str, object]
) -> list[str]:
    """The lines between the dashes of a card: YAML, each value as JSON, which YAML reads.

    Args:
        made_from: where commercial use of one is forbidden, the card has the tag `non-commercial`.
        fields: more of the hub's fields, such as `base_model`; empty ones are left out.
    """
    word = licence.lower()
    known = word if word in HUB_LICENCES else OTHER_NAMES.get(word)
    lines = ["---", f"license: {json.dumps(known or 'other')}"]
    if not known:
        lines.append(f"license_name: {json.dumps(licence, ensure_ascii=False)}")
    if any(one.terms is Terms.non_commercial for one in made_from):
        tags = [*tags, "non-commercial"]
    lines.append(f"tags: {json.dumps(list(tags))}")
    lines += [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items() if value]
    return [*lines, "---", ""]


def push(folder: Path, options: PushOptions, kind: RepositoryKind, what: str) -> str:
    """Push the folder where that is asked for.

    Returns:
        How others name it, for a terminal; empty where nothing was pushed.
    Raises:
        UserError: see `push_folder`.
    """
    if options.push is None:
        return ""
    repository = check_repository(options.push)
    commit = push_folder(folder, repository, kind, private=options.private, message=f"Publish {what}")
    return f"pushed: hf:{repository}@{commit}"

"""Push an exported dataset to the Hugging Face hub: `python -m annotate push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from dataset.files import CONSENT_FILE
from db.errors import UserError
from runs.licences import read_recorded
from runs.options import Command, Flag, Input, Place, make_absolute
from runs.publishing import PushOptions, RepositoryOptions, check_push, push

PARTS = ("README.md", "SHA256SUMS")
"""What every exported folder has."""


class PushDatasetOptions(RepositoryOptions):
    """What is pushed, and where to."""

    dataset: Annotated[Path, Input("dataset"), Flag(positional=True, metavar="DATASET")] = Field(
        description="Folder that `annotate export` wrote"
    )
    to: Annotated[str, Flag(metavar="ORG/NAME")] = Field(
        min_length=1, description="Repository of the Hugging Face hub, made where there is none"
    )


def check_dataset(folder: Path) -> None:
    """Check that a folder is an exported dataset whose people agreed to its publication.

    Raises:
        UserError: it is not, or they did not.
    """
    if not all((folder / name).is_file() for name in PARTS):
        raise UserError(f"{folder} is not a dataset that `python -m annotate export` wrote.")
    if not (folder / CONSENT_FILE).is_file():
        raise UserError(
            f"{folder} was exported without the consent of its people. Where those on the photos and those who judged "
            "agreed to publication, say so with `python -m annotate project --consent-to-publish`, and export again."
        )


def run_push(options: PushDatasetOptions, _place: Place) -> None:
    """Check, then push."""
    folder = options.dataset
    check_dataset(folder)
    where = PushOptions(push=options.to, private=options.private, licence=options.licence)
    check_push(where, read_recorded(folder))
    print(push(folder, where, "dataset", f"the dataset {folder.name}"))


PUSH = Command(
    "annotate push",
    "push an exported dataset to the Hugging Face hub",
    PushDatasetOptions,
    run_push,
    "Only a dataset of a project whose people agreed to its publication (`annotate project --consent-to-publish`) is "
    "pushed. Judges are random names in it. hf:ORG/NAME@COMMIT names it for --dataset elsewhere.",
    lambda options, _data: make_absolute(options),
)

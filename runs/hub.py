"""Fetch `hf:ORG/NAME@REVISION` from the Hugging Face hub, and push a folder to it; loads no torch.

Who may do what the hub decides by a token: HF_TOKEN, or that of `hf auth login`. HF_HUB_OFFLINE=1 takes what is in the
Hugging Face cache, and pushes nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from db.errors import UserError
from runs.options import Command

log = logging.getLogger(__name__)

MARK = "hf:"
OWN_FOLDER = "facereward"
"""In a published folder: what this project loads, beside what others load."""
RepositoryKind = Literal["model", "dataset"]
KINDS: dict[str, RepositoryKind] = {
    "dataset": "dataset",
    "photos": "dataset",
    "reward": "model",
    "judge": "model",
    "restorer": "model",
    "tunable": "model",
}
"""Kinds of a command's inputs that may lie on the hub."""
NAME = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
REVISION = r"[A-Za-z0-9](?:[\w./-]{0,98}\w)?"


@dataclass(frozen=True)
class HubName:
    """A repository of the hub."""

    repository: str
    """'ORG/NAME'"""
    revision: str = ""
    """A commit, branch or tag; empty for the latest."""


def parse_hub_name(text: str) -> HubName:
    """Read `hf:ORG/NAME@REVISION`, without which it is the latest.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(rf"{MARK}({NAME}/{NAME})(?:@({REVISION}))?", text, re.ASCII)
    if not found or ".." in text or "--" in found[1] or found[1].endswith(".git"):
        raise UserError(f"{text!r} names nothing on the Hugging Face hub; write hf:ORG/NAME or hf:ORG/NAME@REVISION.")
    return HubName(found[1], found[2] or "")


def check_repository(text: str) -> str:
    """'ORG/NAME' as `--push` takes it.

    Raises:
        UserError: it is no name of a repository.
    """
    try:
        name = parse_hub_name(MARK + text.removeprefix(MARK))
    except UserError as error:
        raise UserError(f"--push: {text!r} is no name of a repository; write ORG/NAME.") from error
    if name.revision:
        raise UserError(f"--push: {text!r} names a revision; what is pushed becomes the latest. Write ORG/NAME.")
    return name.repository


def fetch_inputs(command: Command[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a command's options, `hf:…` and `NAME=hf:…` replaced by the folder that was fetched.

    The folder's path has the commit in it, which so is recorded with the run.

    Raises:
        UserError: a name is none, or cannot be fetched.
    """
    kinds = {one.name: KINDS[one.input.kind] for one in command.settings if one.input and one.input.kind in KINDS}
    fetched = {}
    for name, value in given.items():
        if name in kinds and value is not None:
            many = isinstance(value, list | tuple)
            items = [_fetch_one(str(item), kinds[name], item) for item in (value if many else [value])]
            fetched[name] = items if many else items[0]
    return {**given, **fetched}


def _fetch_one(text: str, kind: RepositoryKind, item: Any) -> Any:
    before, equals, what = text.rpartition("=")
    if not what.startswith(MARK):
        return item
    return f"{before}{equals}{fetch_folder(what, kind)}"


def fetch_folder(text: str, kind: RepositoryKind) -> Path:
    """Download what `hf:…` names into the Hugging Face cache, where it is not there yet.

    Returns:
        Its folder, or of one that was published from here the part that this project loads.
    Raises:
        UserError: it is no name, or the hub does not give it.
    """
    from huggingface_hub import snapshot_download  # here: the app starts without it
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of whichever client it uses

    name = parse_hub_name(text)
    try:
        folder = Path(snapshot_download(name.repository, repo_type=kind, revision=name.revision or None))
    except (OSError, ValueError, HTTPError) as error:  # the hub's own errors are of all these kinds
        raise UserError(f"{text} cannot be fetched: {explain(error)}.") from error
    commit = folder.name
    if name.revision != commit:
        log.warning(
            "%s: took commit %s; name that to have the same again: hf:%s@%s", text, commit, name.repository, commit
        )
    return folder / OWN_FOLDER if (folder / OWN_FOLDER).is_dir() else folder


def push_folder(folder: Path, repository: str, kind: RepositoryKind, *, private: bool, message: str) -> str:
    """Upload a folder as the latest commit of a repository, which is made where there is none.

    Files that the repository had before and the folder has not are deleted from the latest commit.

    Returns:
        The commit.
    Raises:
        UserError: there is no token, or the hub cannot be reached or refuses it.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    if is_offline_mode():
        raise UserError("HF_HUB_OFFLINE is set; unset it to push.")
    if not get_token():
        raise UserError("To push, set HF_TOKEN to a token of yours that may write, or run `hf auth login`.")
    api = HfApi()
    try:
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type=kind,
            commit_message=message,
            delete_patterns="*",
        )
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(f"{repository}: cannot be pushed: {explain(error)}. {folder} is as it was.") from error
    return str(done.oid)


def explain(error: BaseException) -> str:
    """Why the hub did not do what it was asked, in one line."""
    seen: BaseException | None = error
    while seen is not None:
        if code := getattr(getattr(seen, "response", None), "status_code", None):
            return _explain_code(int(code))
        seen = seen.__cause__ or seen.__context__
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return "HF_HUB_OFFLINE is set, and the Hugging Face cache does not have it"
    cause = error.__cause__ or error
    said = str(cause).strip().partition("\n")[0][:200]
    return f"the hub cannot be reached ({said or type(cause).__name__})"


def _explain_code(code: int) -> str:
    if code in (401, 403):
        return (
            f"the hub refuses it ({code}): the token is wrong or may not do this, or the repository is private or gated"
            " and its terms are not accepted; see `hf auth whoami`"
        )
    if code == 404:
        return "the hub has no such repository or revision (404), or it is private and HF_TOKEN is not set"
    return f"the hub answers {code}"

"""Say the licences of reward models' published weights, by the manifests, without loading them."""

from __future__ import annotations

from pathlib import Path

from licences.terms import NOT_STATED, Licensed, read_manifest

MANIFEST = Path(__file__).parent / "weights.toml"
TAG_LICENCES = {"openai": "MIT", "laion": "MIT", "datacomp": "MIT"}
"""Licences that the publishers of open_clip's tags state, by how a tag begins."""


def find_licences(kind: str, value: str, weights: Path) -> list[Licensed] | None:
    """Those of the published weights of this name; None of other kinds of inputs.

    Args:
        weights: folder of weight files, whose own manifest counts too.
    """
    if kind not in ("weights", "reward", "judge"):
        return None
    if kind == "judge" and value == "people":
        return []
    if kind == "judge" and value.startswith(("http://", "https://")):
        return [Licensed("weights", value, NOT_STATED)]
    known = read_manifests(weights)
    if value in known:
        return [known[value]]
    tag = next((licence for start, licence in TAG_LICENCES.items() if value.startswith(start)), NOT_STATED)
    return [Licensed("weights", Path(value).name, tag)]


def read_manifests(weights: Path) -> dict[str, Licensed]:
    """The shipped manifest's weights and those of the folder's own."""
    own = weights / "weights.toml"
    return read_manifest(MANIFEST) | (read_manifest(own) if own.is_file() else {})


def list_weights(weights: Path) -> list[Licensed]:
    """Every published weight file of a reward model."""
    return list(read_manifests(weights).values())

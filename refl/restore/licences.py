"""Say the licences of restorers' weights, by the manifests, without loading them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from db.errors import UserError
from licences.terms import NOT_STATED, Licensed, read_manifest
from refl.restore.choices import MANIFEST, NEEDS
from refl.restorers.record import find_base

TINY = Path(__file__).parents[1] / "restorers" / "tiny_weights" / "training.json"
INSTEAD = "name another restorer, or train a tiny one with `python -m refl pretrain` on faces that allow it"
PUBLISHED = {
    "diffbir-v1": "diffbir-v1-face",
    "diffbir-v2.1": "diffbir-v2.1",
    "osediff": "osediff-face",
    "hypir": "hypir-sd2",
    "osdface": "osdface-lora",
    "pisasr": "pisasr",
}
"""The part that `KIND:FILE` replaces; of others it is added to what is published."""
WITH_FILE = re.compile(r"(?:^|/)(diffbir-v1|diffbir-v2\.1|osediff|hypir|osdface|pisasr|gdpo|feedforward|onnx):(.+)$")


def find_licences(kind: str, value: str, weights: Path) -> list[Licensed] | None:
    """Those of a restorer's weights; None of other kinds of inputs."""
    if kind == "weights file":
        return [_find_file(value, weights)]
    return find_of_restorer(value, weights) if kind in ("restorer", "tunable") else None


def find_of_restorer(asked: str, weights: Path) -> list[Licensed]:
    """The weights of a restorer as `--method` names it; of a folder those of the restorer that it began as."""
    if asked == "tiny":
        terms = json.loads(TINY.read_text(encoding="utf-8"))["train"]["data_terms"]
        return [Licensed("weights", "tiny", terms, INSTEAD)]
    if found := WITH_FILE.search(asked):
        kind, file = found.groups()
        others = [group[0] for group in NEEDS.get(kind, ()) if group[0] != PUBLISHED.get(kind)]
        return [_find_file(name, weights) for name in (*others, file)]
    if asked in NEEDS:
        return [_find_file(group[0], weights) for group in NEEDS[asked]]
    own = Licensed("weights", Path(asked).name, NOT_STATED)
    try:
        base = find_base(asked)
    except UserError:  # a damaged folder says as little of its weights as none
        return [own]
    return [own] if base is None else [own, *find_of_restorer(base, weights)]


def _find_file(name: str, weights: Path) -> Licensed:
    known = {one.name: one for one in list_weights(weights)}
    return known.get(name) or Licensed("weights", Path(name).name, NOT_STATED)


def list_weights(weights: Path) -> list[Licensed]:
    """Every published weight file of a restorer, and the restorer that ships."""
    own = weights / "weights.toml"
    known = read_manifest(MANIFEST) | (read_manifest(own) if own.is_file() else {})
    return [*find_of_restorer("tiny", weights), *(replace(one, instead=INSTEAD) for one in known.values())]

"""HPDv2's `train.json` into a database, read and checked whole before anything is added."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.project import load_settings
from annotate.read_back import count_rows, find_or_add_pair, first_fault, inside
from db.errors import UserError
from db.images import add_image, probe_image
from db.models import Label, Origin, Pair, Split
from db.records import add_candidate, add_method, add_source, candidate_key, draw_split, pair_key
from db.session import Database


class Hpdv2Row(BaseModel):
    """An item of HPDv2's `train.json`."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    file_path: list[str] = Field(min_length=2, max_length=2)
    human_preference: list[float] = Field(min_length=2, max_length=2)


def import_hpdv2(database: Database, data: Path, path: Path) -> dict[str, int]:
    """Read HPDv2's `train.json`: pairs of images with a prompt and a preference; nobody's name, no input photo.

    Images that pairs of one prompt connect are candidates of one source; its methods are called 'hpdv2 image 1', …,
    in the order of the files' SHA-256. The preference becomes a label made by 'imported:hpdv2'. A file train.json
    or val.json names its split; otherwise it is drawn.

    Returns:
        counts of what was added.
    Raises:
        UserError: malformed, a missing or unreadable image, two preferences for one pair, or a pair
            of one and the same image.
    """
    rows = _read_hpdv2(path)
    probes = {name: probe_image(inside(path.parent, name)) for row in rows for name in row.file_path}
    with database.write() as session:
        before = count_rows(session)
        settings = load_settings(session)
        images = {name: add_image(session, data, probe, path.parent / name) for name, probe in probes.items()}
        hashes = {name: probe.sha256 for name, probe in probes.items()}
        by_hash = {images[name].sha256: images[name] for name in images}
        seen: dict[str, float] = {}
        for prompt, members, pairs in _group_hpdv2(rows, hashes):
            source_key = "hpdv2-" + hashlib.sha256("\n".join([prompt, *members]).encode()).hexdigest()[:16]
            drawn = draw_split(source_key, settings.seed, settings.val_share, settings.test_share)
            split = Split(path.stem) if path.stem in Split.__members__ else drawn
            source = add_source(session, source_key, split, caption=prompt)
            names = {sha256: f"hpdv2 image {place}" for place, sha256 in enumerate(members, 1)}
            candidates = {
                sha256: add_candidate(session, source, add_method(session, name), by_hash[sha256])
                for sha256, name in names.items()
            }
            for first, second, p_first in pairs:
                key, first_is_a = pair_key(
                    candidate_key(source_key, names[first], 0), candidate_key(source_key, names[second], 0)
                )
                a, b = (first, second) if first_is_a else (second, first)
                p_a = p_first if first_is_a else 1.0 - p_first
                if seen.setdefault(key, p_a) != p_a:
                    raise UserError(
                        f"{path}: two preferences for one pair of the prompt {prompt!r}; resolve them first."
                    )
                pair = find_or_add_pair(session, key, source.id, candidates[a], candidates[b], split, settings)
                _add_imported_label(session, pair, p_a)
        session.flush()
        after = count_rows(session)
    return {name: after[name] - before[name] for name in after}


def _read_hpdv2(path: Path) -> list[Hpdv2Row]:
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(items, list) or not items:
        raise UserError(f"{path} is no list of pairs; HPDv2's train.json is.")
    rows = []
    for number, item in enumerate(items):
        try:
            row = Hpdv2Row.model_validate(item)
        except ValidationError as error:
            raise UserError(f"{path}, item {number}: {first_fault(error)}") from error
        if min(row.human_preference) < 0 or sum(row.human_preference) <= 0:
            raise UserError(f"{path}, item {number}: human_preference {row.human_preference} says nothing.")
        rows.append(row)
    return rows


def _group_hpdv2(
    rows: list[Hpdv2Row], hashes: dict[str, str]
) -> Iterator[tuple[str, list[str], list[tuple[str, str, float]]]]:
    """(prompt, sorted SHA-256 of its images, [(first, second, probability that first is better)]) of each source."""
    graph: nx.Graph[tuple[str, str]] = nx.Graph()
    for row in rows:
        first, second = ((row.prompt, hashes[name]) for name in row.file_path)
        if first == second:
            raise UserError(f"{row.file_path[0]} and {row.file_path[1]} are the same image; leave the pair out.")
        graph.add_edge(first, second)
    source_of = {node: place for place, nodes in enumerate(nx.connected_components(graph)) for node in nodes}
    members: dict[int, list[str]] = {}
    for (_, sha256), place in source_of.items():
        members.setdefault(place, []).append(sha256)
    pairs: dict[int, list[tuple[str, str, float]]] = {}
    prompts: dict[int, str] = {}
    for row in rows:
        left, right = (hashes[name] for name in row.file_path)
        place = source_of[(row.prompt, left)]
        prompts[place] = row.prompt
        share = row.human_preference[0] / sum(row.human_preference)
        pairs.setdefault(place, []).append((left, right, share))
    for place, sha256s in members.items():
        yield prompts[place], sorted(sha256s), pairs[place]


def _add_imported_label(session: Session, pair: Pair, p_a: float) -> None:
    live = session.scalar(
        select(Label).where(Label.pair_id == pair.id, Label.origin == Origin.human, Label.superseded_at.is_(None))
    )
    if live is None:
        session.add(Label(pair_id=pair.id, origin=Origin.human, made_by="imported:hpdv2", p_a=p_a))
    elif live.p_a != p_a:
        raise UserError(f"Pair {pair.key} has the label p_a = {live.p_a} already, here {p_a}.")

"""HPDv2's `train.json` into a database, read and checked whole before anything is added."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import networkx as nx
from pydantic import BaseModel, Field, ValidationError, model_validator

from annotate.image_files import CheckedFiles
from annotate.project import ProjectSettings, load_settings
from annotate.read_back import add_dataset, check_images
from annotate.read_dataset import STRICT, Dataset, PairRow, Text, first_fault
from db.errors import UserError
from db.models import Origin, Split
from db.records import candidate_key, draw_split, pair_key
from db.session import Database


class Hpdv2Item(BaseModel):
    """An item of HPDv2's `train.json`."""

    model_config = STRICT

    prompt: Text
    file_path: list[Text] = Field(min_length=2, max_length=2)
    human_preference: list[float] = Field(min_length=2, max_length=2)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.human_preference) < 0 or sum(self.human_preference) <= 0:
            raise ValueError(f"human_preference {self.human_preference} says nothing")
        return self


def import_hpdv2(database: Database, data: Path, path: Path) -> dict[str, int]:
    """Read HPDv2's `train.json`: pairs of images with a prompt and a preference; nobody's name, no input photo.

    Images that pairs of one prompt connect are candidates of one source; its methods are called 'hpdv2 image 1', …,
    in the order of the files' SHA-256. The preference becomes a label made by 'imported:hpdv2', of no judgments. Where
    a pair is there several times, each is a pair of its own, of candidates with the seeds 0, 1, …. A file train.json
    or val.json names its split; otherwise it is drawn.

    Returns:
        counts of what was added.
    Raises:
        UserError: malformed, a missing or unreadable image, a pair of one and the same image, or the database holds
            other content.
    """
    items = _read_items(path)
    files = check_images(path.parent, (name for item in items for name in item.file_path))
    with database.read() as session:
        settings = load_settings(session)
    rows = list(_pair_rows(items, files, settings, path.stem))
    return add_dataset(database, data, path.parent, files, Dataset(pairs=rows, judgments=[], questions=[], scores=[]))


def _read_items(path: Path) -> list[Hpdv2Item]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, list) or not values:
        raise UserError(f"{path} is no list of pairs; HPDv2's train.json is.")
    items = []
    for number, value in enumerate(values):
        try:
            items.append(Hpdv2Item.model_validate(value))
        except ValidationError as error:
            raise UserError(f"{path}, item {number}: {first_fault(error)}") from error
    return items


def _pair_rows(items: list[Hpdv2Item], files: CheckedFiles, settings: ProjectSettings, stem: str) -> Iterator[PairRow]:
    """The items as rows of our own format."""
    groups = _group_images(items, files)
    seen: Counter[tuple[str, frozenset[str]]] = Counter()
    for item in items:
        hashes = [files[name].sha256 for name in item.file_path]
        members = groups[(item.prompt, hashes[0])]
        source = "hpdv2-" + hashlib.sha256("\n".join([item.prompt, *members]).encode()).hexdigest()[:16]
        drawn = draw_split(source, settings.seed, settings.val_share, settings.test_share)
        seed = seen[(source, frozenset(hashes))]
        seen[(source, frozenset(hashes))] += 1
        methods = [f"hpdv2 image {members.index(sha256) + 1}" for sha256 in hashes]
        keys = [candidate_key(source, method, seed) for method in methods]
        key, first_is_a = pair_key(*keys)
        a, b = (0, 1) if first_is_a else (1, 0)
        names = [f"images/{files[name].sha256}{files[name].suffix}" for name in item.file_path]
        p_a = item.human_preference[a] / sum(item.human_preference)
        yield PairRow(
            pair=key,
            source=source,
            split=Split(stem) if stem in Split.__members__ else drawn,
            group=source,
            caption=item.prompt,
            image_a=names[a],
            image_b=names[b],
            lq=None,
            hq=None,
            sha256_a=hashes[a],
            sha256_b=hashes[b],
            sha256_lq=None,
            sha256_hq=None,
            method_a=methods[a],
            method_b=methods[b],
            seed_a=seed,
            seed_b=seed,
            p_a=p_a,
            tie=p_a == 0.5,
            origin=Origin.human,
            made_by="imported:hpdv2",
            weight=1.0,
            agreement=None,
            judgments=[],
        )


Groups = dict[tuple[str, str], list[str]]
"""(prompt, SHA-256) to the sorted SHA-256 of all images that pairs of that prompt connect it with."""


def _group_images(items: list[Hpdv2Item], files: CheckedFiles) -> Groups:
    graph: nx.Graph[tuple[str, str]] = nx.Graph()
    for item in items:
        first, second = ((item.prompt, files[name].sha256) for name in item.file_path)
        if first == second:
            raise UserError(f"{item.file_path[0]} and {item.file_path[1]} are the same image; leave the pair out.")
        graph.add_edge(first, second)
    groups: Groups = {}
    for nodes in nx.connected_components(graph):
        groups |= dict.fromkeys(nodes, sorted(sha256 for _, sha256 in nodes))
    return groups

"""Import HPDv2's own files into a database.

A file is read and checked whole before anything is added. Images lie where the items say, beside the file or in the
folder of its name (`test/`), as HPDv2 is packed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import networkx as nx

from annotate.exchange.read_back import add_dataset, check_images
from annotate.ingest.image_files import CheckedFiles
from dataset.hpdv2 import Preference, read_preferences
from dataset.read import Dataset, PairRow
from db.errors import UserError
from db.models import Origin, Split
from db.project import ProjectSettings, load_settings
from db.records import candidate_key, draw_split, pair_key
from db.session import Database


def import_hpdv2(database: Database, data: Path, path: Path) -> dict[str, int]:
    """Read a file of HPDv2: pairs of images with a prompt and a preference; nobody's name, no input photo.

    A ranking of n images, as `test.json` has them, becomes its n(n − 1)/2 pairs; of the persons' own rankings the
    agreement is kept.

    Images that pairs of one prompt connect are candidates of one source; its methods are called 'hpdv2 image 1', …,
    in the order of the files' SHA-256. The preference becomes a label made by 'imported:hpdv2', of no judgments. Where
    a pair is there several times, each is a pair of its own, of candidates with the seeds 0, 1, …. A file train.json,
    val.json or test.json names its split; otherwise it is drawn.

    Returns:
        counts of what was added.
    Raises:
        UserError: malformed, a missing or unreadable image, a pair of one and the same image, or the database holds
            other content.
    """
    items = _place_images(path, read_preferences(path))
    files = check_images(path.parent, (name for item in items for name in item.names))
    with database.read() as session:
        settings = load_settings(session)
    rows = list(_pair_rows(items, files, settings, path.stem))
    return add_dataset(database, data, path.parent, files, Dataset(pairs=rows, judgments=[], questions=[], scores=[]))


def _place_images(path: Path, items: Iterable[Preference]) -> list[Preference]:
    """The items with their files relative to the file's folder, wherever HPDv2's archive was unpacked."""

    def place(name: str) -> str:
        nested = f"{path.stem}/{name}"
        return nested if not (path.parent / name).exists() and (path.parent / nested).exists() else name

    return [replace(item, names=(place(item.names[0]), place(item.names[1]))) for item in items]


def _pair_rows(items: list[Preference], files: CheckedFiles, settings: ProjectSettings, stem: str) -> Iterator[PairRow]:
    """The items as rows of our own format."""
    groups = _group_images(items, files)
    seen: Counter[tuple[str, frozenset[str]]] = Counter()
    for item in items:
        hashes = [files[name].sha256 for name in item.names]
        members = groups[(item.prompt, hashes[0])]
        source = "hpdv2-" + hashlib.sha256("\n".join([item.prompt, *members]).encode()).hexdigest()[:16]
        drawn = draw_split(source, settings.seed, settings.val_share, settings.test_share)
        seed = seen[(source, frozenset(hashes))]
        seen[(source, frozenset(hashes))] += 1
        methods = [f"hpdv2 image {members.index(sha256) + 1}" for sha256 in hashes]
        keys = [candidate_key(source, method, seed) for method in methods]
        key, first_is_a = pair_key(*keys)
        a, b = (0, 1) if first_is_a else (1, 0)
        names = [f"images/{files[name].sha256}{files[name].suffix}" for name in item.names]
        p_a = item.p_first if first_is_a else 1 - item.p_first
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
            agreement=item.agreement,
            judgments=[],
        )


Groups = dict[tuple[str, str], list[str]]
"""(prompt, SHA-256) to the sorted SHA-256 of all images that pairs of that prompt connect it with."""


def _group_images(items: list[Preference], files: CheckedFiles) -> Groups:
    graph: nx.Graph[tuple[str, str]] = nx.Graph()
    for item in items:
        first, second = ((item.prompt, files[name].sha256) for name in item.names)
        if first == second:
            raise UserError(f"{item.names[0]} and {item.names[1]} are the same image; leave the pair out.")
        graph.add_edge(first, second)
    groups: Groups = {}
    for nodes in nx.connected_components(graph):
        groups |= dict.fromkeys(nodes, sorted(sha256 for _, sha256 in nodes))
    return groups

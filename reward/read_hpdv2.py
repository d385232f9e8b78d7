"""Read HPDv2's own files as labelled pairs.

Images lie where the items say, beside the file or in the folder of its name (`train/`, `test/`), as HPDv2 is packed.
A source is what annotate's import makes of it: the images that pairs of one prompt connect.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

from dataset.hpdv2 import Preference, read_preferences
from dataset.labelled import SPLITS, LabelledPair, Split, inside
from db.errors import UserError

MADE_BY = "imported:hpdv2"


def find_files(path: Path) -> dict[Split, Path]:
    """HPDv2's files by split: those of a folder, or the one that is named."""
    if path.is_file():
        return {split: path for split in SPLITS if path.name == f"{split}.json"}
    return {split: path / f"{split}.json" for split in SPLITS if (path / f"{split}.json").is_file()}


def read_hpdv2(path: Path) -> list[LabelledPair]:
    """All pairs of the files that are there; a ranking of n images becomes its n(n − 1)/2 pairs.

    Raises:
        UserError: malformed; the item is named.
    """
    return [row for split, file in find_files(path).items() for row in _to_rows(split, file, read_preferences(file))]


def _to_rows(split: Split, file: Path, preferences: list[Preference]) -> Iterator[LabelledPair]:
    folder = file.parent
    nested = (folder / split).is_dir()
    graph: nx.Graph[tuple[str, str]] = nx.Graph()
    graph.add_edges_from(((p.prompt, p.names[0]), (p.prompt, p.names[1])) for p in preferences)
    source_of: dict[tuple[str, str], str] = {}
    for nodes in nx.connected_components(graph):
        prompt = next(iter(nodes))[0]
        text = "\n".join([split, prompt, *sorted(name for _, name in nodes)])
        source_of |= dict.fromkeys(nodes, "hpdv2-" + hashlib.sha256(text.encode()).hexdigest()[:16])
    for number, preference in enumerate(preferences):
        a, b = (_find_image(folder, split, name, nested, file) for name in preference.names)
        if a == b:
            raise UserError(f"{file}: {a} is compared with itself; leave the pair out.")
        source = source_of[preference.prompt, preference.names[0]]
        yield LabelledPair(
            pair=f"hpdv2-{split}-{number}",
            image_a=a,
            image_b=b,
            sha256_a=None,
            sha256_b=None,
            p_a=preference.p_first,
            weight=1.0,
            origin="human",
            made_by=MADE_BY,
            agreement=preference.agreement,
            caption=preference.prompt or None,
            source=source,
            group=source,
            split=split,
            method_a=None,
            method_b=None,
            lq=None,
            hq=None,
        )


def _find_image(folder: Path, split: Split, name: str, nested: bool, file: Path) -> Path:
    try:
        path = inside(folder, name)
    except ValueError as error:
        raise UserError(f"{file}: {error}.") from error
    assert path is not None
    return folder / split / name if nested and not path.exists() else path

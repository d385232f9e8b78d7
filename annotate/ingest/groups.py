"""Group sources that share an LQ or HQ image: they share group and split.

Without it one photo under two names lands in two splits, and is measured on after it was trained on. Groups are joined
through the images' pixels and the persons' names alike: of two persons in one photo all photos become one group.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select, union, update
from sqlalchemy.orm import Session

from annotate.ingest.image_files import batches
from db.models import Image, Pair, Source, Split, Task
from db.pairs import is_reserved, wanted_judgments
from db.pixel_hashes import File
from db.project import ProjectSettings
from db.records import GROUP_JOINT, draw_split


@dataclass(frozen=True)
class Joined:
    """A source whose group or split was changed so that it is that of the photos it shares a picture with."""

    key: str
    shares_with: str
    """Key of the first source of the same group."""
    group: str
    """The group that it has now."""
    split_before: Split | None
    """None for a source that is just being added."""
    split: Split

    def describe(self) -> str:
        """In words: with which source, and which split it came to or from."""
        shares = f"shares a picture or person with {self.shares_with}"
        if self.split_before is None:
            return f"{shares}: in its group and split, {self.split}"
        if self.split_before is self.split:
            return f"{shares}: in its group now; its split, {self.split}, is the same"
        return f"{shares}: in its group now, moved from {self.split_before} to {self.split}"


def input_images(session: Session) -> list[File]:
    """The lq and hq images of all sources."""
    of_sources = union(select(Source.lq_image_id), select(Source.hq_image_id)).subquery()
    rows = session.execute(select(Image.sha256, Image.suffix).where(Image.id.in_(select(of_sources.c[0]))))
    return [(sha256, suffix) for sha256, suffix in rows]


def join_groups(
    session: Session,
    settings: ProjectSettings,
    pixels: Mapping[str, str],
    *,
    new: Collection[int] = (),
    touched: Collection[int] | None = None,
) -> list[Joined]:
    """Give sources that share an image or a person, over however many others, one group and one split.

    The split is that of the sources that were there before; where those differ it is train if any of them is in train,
    else val: what may have been trained on cannot be measured on.

    Args:
        pixels: SHA-256 to the hash of the pixels of lq and hq images (`db.pixel_hashes`); of one that is not in there
            the file itself counts.
        new: ids of sources that are just being added: their own splits count for nothing.
        touched: ids of sources whose groups are looked at; None looks at all.
    Returns:
        the sources that were changed, by their names.
    """
    import networkx as nx  # here: the command line need not wait for it

    rows = _read_sources(session)
    keys = {row.key for row in rows}
    graph: nx.Graph[tuple[str, int | str]] = nx.Graph()
    for row in rows:
        me = ("source", row.id)
        # The group of several persons holds every photo of each; that of a file's name is not a person's.
        persons = [row.group] if row.group in keys else row.group.split(GROUP_JOINT)
        graph.add_edges_from((me, ("group", person)) for person in persons)
        for sha256 in (row.lq, row.hq):
            if sha256 is not None:
                graph.add_edge(me, ("pixels", pixels.get(sha256, sha256)))
    by_id = {row.id: row for row in rows}
    joined: list[Joined] = []
    for nodes in nx.connected_components(graph):
        members = sorted(int(value) for kind, value in nodes if kind == "source")
        if len(members) > 1 and (touched is None or any(member in touched for member in members)):
            joined += _join(session, settings, [by_id[member] for member in members], new)
    return sorted(joined, key=lambda item: item.key)


@dataclass(frozen=True)
class _Row:
    id: int
    key: str
    group: str
    split: Split
    lq: str | None
    """SHA-256."""
    hq: str | None


def _read_sources(session: Session) -> list[_Row]:
    images: dict[int | None, str] = {row.id: row.sha256 for row in session.execute(select(Image.id, Image.sha256))}
    columns = (Source.id, Source.key, Source.group, Source.split, Source.lq_image_id, Source.hq_image_id)
    return [
        _Row(row[0], row[1], row[2], row[3], images.get(row[4]), images.get(row[5]))
        for row in session.execute(select(*columns).order_by(Source.id))
    ]


def _join(session: Session, settings: ProjectSettings, members: Sequence[_Row], new: Collection[int]) -> list[Joined]:
    group = _common_group(members)
    splits = {row.split for row in members if row.id not in new}
    if not splits:
        split = draw_split(group, settings.seed, settings.val_share, settings.test_share)
    else:
        split = next(known for known in (Split.train, Split.val, Split.test) if known in splits)
    changed = [row for row in members if (row.group, row.split) != (group, split)]
    for batch in batches(row.id for row in changed):
        session.execute(
            update(Source)
            .where(Source.id.in_(batch))
            .values({Source.group: group, Source.split: split})
            .execution_options(synchronize_session=False)
        )
    _change_pairs(session, settings, [row.id for row in changed if row.split is not split], split)
    first = members[0].key
    return [
        Joined(
            row.key, first if row.key != first else members[1].key, group, None if row.id in new else row.split, split
        )
        for row in changed
    ]


def _common_group(members: Sequence[_Row]) -> str:
    """The one group of all: the persons' names joined; the first source's group where nobody knows a person."""
    groups = {row.group for row in members}
    if len(groups) == 1:
        return members[0].group
    # A source that nobody knows the person of has its own key as its group, or that of one that it was joined with.
    keys = {row.key for row in members}
    named = {row.group for row in members if row.group != row.key and row.group not in keys}
    persons = {person for group in named for person in group.split(GROUP_JOINT)}
    return GROUP_JOINT.join(sorted(persons)) or members[0].group


def _change_pairs(session: Session, settings: ProjectSettings, source_ids: Sequence[int], split: Split) -> None:
    """Set what a pair or task has from its split: how many judgments, and whether active orders may show it."""
    tables: tuple[type[Pair] | type[Task], ...] = (Pair, Task)
    for batch, table in itertools.product(batches(source_ids), tables):
        rows = session.execute(select(table.id, table.key, table.judgments_wanted).where(table.source_id.in_(batch)))
        changes = [
            {
                "id": number,
                "reserved": is_reserved(key, split),
                # None are wanted of one that was set aside (see annotate.ingest.equal_pixels).
                "judgments_wanted": wanted_judgments(split, settings) if wanted else 0,
            }
            for number, key, wanted in rows
        ]
        if changes:
            session.execute(update(table), changes)

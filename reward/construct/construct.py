"""Write a dataset again with pairs added whose answer is known: one side is wrong by construction.

They are marked `constructed` and count nowhere as people's labels. They teach a reward model what people are never
asked, since no restorer of theirs does it: that a sharp face of somebody else is no restoration.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dataset.labelled import LabelledPair
from dataset.read import PairLine
from db.errors import UserError
from pixels.read import RgbImage
from reward.construct.kinds import SPOILERS
from reward.construct.options import Kind
from reward.data import load_dataset
from runs.files import link_or_copy
from runs.space import explain_full_disk
from training.images import read_image

RIGHT = 0.98
"""Probability that the honest image is better: not 1, where a label's loss never ends."""
NOT_COPIED = {"pairs.jsonl", "SHA256SUMS", ".lock"}


@dataclass(frozen=True)
class Own:
    """A restored image of a photo."""

    row: LabelledPair
    image: str
    sha256: str
    method: str


class OtherPeople:
    """The restored images by split and method, so that a draw of another person's does not look at all of them."""

    def __init__(self, photos: Sequence[Sequence[Own]]) -> None:
        self.images: dict[tuple[str, str], list[Own]] = defaultdict(list)
        self.places: dict[tuple[str, str, str], set[int]] = defaultdict(set)
        """(split, method, person or SHA-256) -> where their images stand in the list of split and method."""
        for own in (one for photo in photos for one in photo):
            key, images = (own.row.split, own.method), self.images[own.row.split, own.method]
            for name in (own.row.group, own.sha256):
                self.places[*key, name].add(len(images))
            images.append(own)

    def draw(self, own: Own, rng: np.random.Generator) -> Own | None:
        """The same method's image of another person of the same split; None where there is none."""
        key = own.row.split, own.method
        left_out = sorted(self.places[*key, own.row.group] | self.places[*key, own.sha256])
        count = len(self.images[key]) - len(left_out)
        if not count:
            return None
        place = int(rng.integers(count))
        for one in left_out:  # counted among those that are left
            place += one <= place
        return self.images[key][place]


def construct(
    dataset: Path, out: Path, kinds: Sequence[Kind], per_photo: int, seed: int, progress: Callable[[int, int], None]
) -> dict[str, int]:
    """Write `out`: all of the dataset, and the constructed pairs.

    Args:
        per_photo: pairs of each kind for each photo.
        progress: called with (photos done, photos in all).
    Returns:
        how many pairs there are of each kind.
    Raises:
        UserError: the dataset is none of ours or is damaged, lacks what a kind needs, `out` is there already, or the
            disk is full; then nothing is written.
    """
    if out.exists():
        raise UserError(f"{out} is there already. Name another --out, or remove it.")
    if not (dataset / "pairs.jsonl").is_file():
        raise UserError(f"{dataset} is no dataset folder: it has no pairs.jsonl. Write one: python -m annotate export.")
    pairs = load_dataset(dataset)
    photos = group_by_photo(dataset, pairs.rows)
    check_kinds(photos, kinds, dataset)
    others = OtherPeople(photos)
    unfinished = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with explain_full_disk(out.parent, "run the same command again"):
            copy_dataset(dataset, unfinished)
            counts: Counter[str] = Counter()
            with open(unfinished / "pairs.jsonl", "wb") as stream:
                stream.write((dataset / "pairs.jsonl").read_bytes().rstrip() + b"\n")  # as it is, whoever wrote it
                for done, photo in enumerate(photos, 1):
                    for line in construct_for(photo, others, kinds, per_photo, seed, dataset, unfinished):
                        counts[line["made_by"]] += 1
                        stream.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                    progress(done, len(photos))
            add_to_card(unfinished / "README.md", counts)
        unfinished.replace(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return dict(counts)


def group_by_photo(dataset: Path, rows: Sequence[LabelledPair]) -> list[list[Own]]:
    """The restored images of each photo, each once, in the dataset's order; constructed rows are passed over."""
    photos: dict[str, dict[str, Own]] = {}
    for row in (row for row in rows if row.origin != "constructed"):
        for path, sha256, method in (
            (row.image_a, row.sha256_a, row.method_a),
            (row.image_b, row.sha256_b, row.method_b),
        ):
            assert sha256 is not None
            own = Own(row, path.relative_to(dataset).as_posix(), sha256, method or "")
            photos.setdefault(row.source, {}).setdefault(sha256, own)
    return [list(images.values()) for images in photos.values()]


def check_kinds(photos: Sequence[Sequence[Own]], kinds: Sequence[Kind], dataset: Path) -> None:
    """Check that the dataset has what each kind needs.

    Raises:
        UserError: it lacks it; said with the kinds that are left.
    """
    lacking = [photo[0].row.source for photo in photos if photo[0].row.lq is None]
    left = [kind for kind in kinds if kind != "input_pasted"]
    if "input_pasted" in kinds and lacking:
        raise UserError(
            f"{dataset}: input_pasted needs the photo that was restored (lq), and {len(lacking):,} of {len(photos):,} "
            f"photos lack it, {lacking[0]!r} first. Leave it out: --kinds {' '.join(left)}"
        )
    people = {photo[0].row.group for photo in photos}
    if "other_person" in kinds and len(people) < 2:
        raise UserError(f"{dataset}: other_person needs photos of two people or more; all are of one.")


def copy_dataset(dataset: Path, folder: Path) -> None:
    """A second name for every file of a dataset but its rows, or a copy where the disk knows no links."""
    for file in sorted(path for path in dataset.rglob("*") if path.is_file() and path.name not in NOT_COPIED):
        target = folder / file.relative_to(dataset)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.parent == dataset:  # the card is added to, and a link would change the dataset's own
            shutil.copyfile(file, target)
            continue
        link_or_copy(file, target)
    (folder / "images").mkdir(parents=True, exist_ok=True)


def construct_for(
    photo: Sequence[Own],
    others: OtherPeople,
    kinds: Sequence[Kind],
    per_photo: int,
    seed: int,
    dataset: Path,
    folder: Path,
) -> Iterator[dict[str, Any]]:
    """The rows of one photo; new images are written."""
    source = photo[0].row.source
    for kind in kinds:
        for number in range(per_photo):
            draw = hashlib.sha256(f"{seed}\n{source}\n{kind}\n{number}".encode()).digest()
            rng = np.random.default_rng(list(draw))
            own = photo[int(rng.integers(len(photo)))]
            if kind == "other_person":
                other = others.draw(own, rng)
                if other is None:
                    continue
                wrong, method = (other.image, other.sha256), other.method
            else:
                lq = read_image(own.row.lq) if own.row.lq else None
                wrong = write_image(SPOILERS[kind](read_image(dataset / own.image), lq, rng), folder)
                method = f"{own.method} {kind}"
            yield make_row(own, wrong, method, kind, f"{kind}-{draw.hex()[:24]}", bool(rng.integers(2)))


def write_image(image: RgbImage, folder: Path) -> tuple[str, str]:
    """(name in the dataset, SHA-256) of a new PNG."""
    content = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"images/{sha256}.png"
    (folder / name).write_bytes(content)
    return name, sha256


def make_row(own: Own, wrong: tuple[str, str], method: str, kind: Kind, key: str, right_is_a: bool) -> dict[str, Any]:
    """A line of `pairs.jsonl`: this photo's own image beside the wrong one."""
    sides = [(own.image, own.sha256, own.method), (*wrong, method)]
    a, b = sides if right_is_a else sides[::-1]
    row = own.row
    base = row.image_a.parent.parent
    line: dict[str, Any] = {
        "pair": key,
        "source": row.source,
        "split": row.split,
        "group": row.group,
        "caption": row.caption,
        "image_a": a[0],
        "image_b": b[0],
        "lq": row.lq and row.lq.relative_to(base).as_posix(),
        "hq": row.hq and row.hq.relative_to(base).as_posix(),
        "sha256_a": a[1],
        "sha256_b": b[1],
        "sha256_lq": row.sha256_lq,
        "sha256_hq": row.sha256_hq,
        "method_a": a[2],
        "method_b": b[2],
        "seed_a": 0,
        "seed_b": 0,
        "p_a": RIGHT if right_is_a else 1 - RIGHT,
        "tie": False,
        "origin": "constructed",
        "made_by": kind,
        "weight": 1.0,
        "agreement": None,
        "judgments": [],
    }
    PairLine.model_validate(line)
    return line


def add_to_card(card: Path, counts: Counter[str]) -> None:
    """Say in the dataset's card what was added."""
    said = "\n".join(f"- {kind}: {count:,}" for kind, count in counts.items())
    before = card.read_text(encoding="utf-8").rstrip("\n") + "\n\n" if card.is_file() else ""
    text = "## Constructed pairs\n\nMade by a program (`reward construct`), judged by nobody; origin `constructed`.\n\n"
    card.write_text(f"{before}{text}{said}\n", encoding="utf-8")

"""Add constructed pairs to a copy of a dataset: a restored image, and beside it what any person would reject.

Nobody judged them: they are marked by the origin `constructed`, their `made_by` is the kind. The right image has the
probability P_RIGHT, and which of the two is a is drawn by the hash that draws it for every pair.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImage

from dataset.files import Row, whole_folder, write_checksums
from dataset.read import PairLine, check_sums
from db.errors import UserError
from db.records import candidate_key, pair_key
from licences.terms import Licensed
from pixels.read import RgbImage
from reward.construct.faults import FAULTS, NEED_ALIGNED, Kind, paste_input
from reward.data import load_dataset
from runs.licences import write_recorded
from training.images import check_images, read_image

P_RIGHT = 0.98
"""Not 1: of so sure a label the loss would never be satisfied."""
ANEW = {"README.md", "SHA256SUMS", "pairs.jsonl", "licences.json"}
"""Files that the copy has of its own."""


@dataclass(frozen=True)
class Restored:
    """A restored image of a dataset."""

    line: PairLine
    """A pair that shows it, for all that it says of the photo."""
    method: str
    seed: int
    image: str
    sha256: str

    @property
    def key(self) -> str:
        """Its name, the same in every database."""
        return candidate_key(self.line.source, self.method, self.seed)


@dataclass(frozen=True)
class Plan:
    """A pair that is to be made."""

    kind: Kind
    right: Restored
    other: Restored | None = None
    """The image of another person, where that is the wrong one."""

    @property
    def method(self) -> str:
        """Name of what made the wrong image: 'gfpgan+blurred_eye'."""
        return f"{self.right.method}+{self.kind}"

    @property
    def key(self) -> tuple[str, bool]:
        """(the pair's key, whether the right image is its a)."""
        return pair_key(self.right.key, candidate_key(self.right.line.source, self.method, self.right.seed))


def construct_dataset(
    dataset: Path,
    out: Path,
    kinds: Sequence[Kind],
    share: float,
    per_kind: int | None,
    seed: int,
    progress: Callable[[int, int], None],
    made_from: Sequence[Licensed] = (),
) -> dict[str, Any]:
    """Write a new dataset folder with all that `dataset` has and constructed pairs, whole or not at all.

    Its images are hard links where the disk has such, else copies; its rows come first, byte for byte.

    Args:
        share: of the restored images, from how many a pair of each kind is made.
        per_kind: so many pairs of each kind instead, or as many as there can be.
        progress: called with (pairs made, pairs in all).
        made_from: licences, for `licences.json`.
    Returns:
        counts, as `annotate export` gives them of a dataset, and `constructed`: the pairs added; `by_kind`, of each
        kind and split, `not_square`: the images that were passed over by kinds that need aligned faces, and
        `persons_unknown`: whether each photo was taken for another person.
    Raises:
        UserError: the dataset is not as it should be, a kind cannot be made of it, or `out` is there or cannot be
            written.
    """
    lines = read_lines(dataset)
    if out.resolve().is_relative_to(dataset.resolve()):
        raise UserError(f"{out} lies inside the dataset {dataset}; name a folder beside it.")
    images = list_restored(lines)
    plans = [plan for kind in kinds for plan in plan_pairs(kind, images, share, per_kind, seed, dataset)]
    check_images(dict(list_files(dataset, lines)))
    with whole_folder(out) as folder:
        copy_files(dataset, folder)
        rows = list(make_all(plans, dataset, folder, seed, progress))
        check_made(kinds, plans, rows, dataset)
        write_rows(dataset / "pairs.jsonl", folder / "pairs.jsonl", rows)
        write_card(dataset / "README.md", folder / "README.md", rows)
        write_recorded(folder, made_from)
        load_dataset(folder)  # it is one, as training reads it
        write_checksums(folder)
    by_kind = {kind: dict(Counter(row["split"] for row in rows if row["made_by"] == kind)) for kind in kinds}
    return count_rows(lines, rows) | {
        "by_kind": by_kind,
        "not_square": len(plans) - len(rows),
        "persons_unknown": "other_person" in kinds and all(line.group == line.source for line in lines),
    }


def read_lines(dataset: Path) -> list[PairLine]:
    """The rows of a dataset folder of ours that has no constructed pairs.

    Raises:
        UserError: it is none, was changed, or has constructed pairs.
    """
    if not (dataset / "pairs.jsonl").is_file():
        raise UserError(
            f"{dataset} has no pairs.jsonl: pairs are constructed from a dataset folder of ours, as "
            "`python -m annotate export` writes it. HPDv2 says neither who is on a photo "
            "nor what was restored."
        )
    load_dataset(dataset)  # refuses it by its line where it is not whole
    check_sums(dataset)
    with open(dataset / "pairs.jsonl", encoding="utf-8-sig") as stream:
        lines = [PairLine.model_validate_json(text) for text in stream]
    if made := sum(line.origin == "constructed" for line in lines):
        raise UserError(f"{dataset} has {made:,} constructed pairs already; name the dataset that they were added to.")
    return lines


def list_restored(lines: Sequence[PairLine]) -> list[Restored]:
    """Each restored image once, by photo, method and seed."""
    found: dict[str, Restored] = {}
    for line in lines:
        for one in (
            Restored(line, line.method_a, line.seed_a, line.image_a, line.sha256_a),
            Restored(line, line.method_b, line.seed_b, line.image_b, line.sha256_b),
        ):
            found.setdefault(one.key, one)
    return [found[key] for key in sorted(found)]


def list_files(dataset: Path, lines: Sequence[PairLine]) -> Iterator[tuple[Path, str | None]]:
    """Every image file of the rows with its SHA-256."""
    for line in lines:
        yield dataset / line.image_a, line.sha256_a
        yield dataset / line.image_b, line.sha256_b
        for name, sha256 in ((line.lq, line.sha256_lq), (line.hq, line.sha256_hq)):
            if name is not None:
                yield dataset / name, sha256


def draw(seed: int, *names: str) -> int:
    """A large number by a seeded hash of names."""
    return int(hashlib.sha256("\n".join(("construct", str(seed), *names)).encode()).hexdigest()[:16], 16)


def plan_pairs(
    kind: Kind, images: Sequence[Restored], share: float, per_kind: int | None, seed: int, dataset: Path
) -> list[Plan]:
    """Draw the images that a pair of this kind is made from, of each split in its share; more take the same and more.

    Raises:
        UserError: the dataset does not have what the kind needs.
    """
    others: dict[tuple[str, str], list[Restored]] = defaultdict(list)
    for one in images:
        others[one.method, one.line.split].append(one)

    def find_others(one: Restored) -> list[Restored]:
        """The outputs of its method of other people of its split, so that no split sees another's faces."""
        return [
            other
            for other in others[one.method, one.line.split]
            if other.line.group != one.line.group and other.sha256 != one.sha256
        ]

    if kind == "other_person":
        fit, lacks = [one for one in images if find_others(one)], "images of two persons by one method in one split"
    elif kind == "input_pasted":
        fit = [one for one in images if one.line.lq and one.line.sha256_lq != one.sha256]
        lacks = "the photos that were restored (lq)"
    else:
        fit, lacks = list(images), "images"
    if not fit:
        raise UserError(f"{kind} needs {lacks}, and {dataset} has none; leave it out of --kinds.")
    wanted = min(per_kind if per_kind is not None else max(1, round(share * len(fit))), len(fit))
    by_split: dict[str, list[Restored]] = defaultdict(list)
    for one in sorted(fit, key=lambda one: draw(seed, kind, one.key)):
        by_split[one.line.split].append(one)
    chosen = [
        one
        for split, count in allot(wanted, {split: len(found) for split, found in by_split.items()}).items()
        for one in by_split[split][:count]
    ]
    if kind != "other_person":
        return [Plan(kind, one) for one in chosen]
    pools = {one.key: find_others(one) for one in chosen}
    return [Plan(kind, one, pools[one.key][draw(seed, "whose", one.key) % len(pools[one.key])]) for one in chosen]


def allot(wanted: int, sizes: dict[str, int]) -> dict[str, int]:
    """Divide a number in proportion to sizes, the remainder by the largest fractions; `wanted` is their sum at most."""
    exact = {name: wanted * size / sum(sizes.values()) for name, size in sizes.items()}
    counts = {name: int(value) for name, value in exact.items()}
    left = wanted - sum(counts.values())
    for name in sorted(exact, key=lambda name: (counts[name] - exact[name], name))[:left]:
        counts[name] += 1
    return counts


def copy_files(dataset: Path, folder: Path) -> None:
    """Link all files of a dataset but those that the copy has of its own; copy them where they cannot be linked."""
    for path in sorted(dataset.rglob("*")):
        name = path.relative_to(dataset)
        if not path.is_file() or name.as_posix() in ANEW:
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            if name.parts[0] != "images":
                raise OSError("a file that is edited stays its own")
            os.link(path.resolve(), folder / name)
        except OSError:
            shutil.copyfile(path, folder / name)


def make_all(
    plans: Sequence[Plan], dataset: Path, folder: Path, seed: int, progress: Callable[[int, int], None]
) -> Iterator[Row]:
    """Make the pairs' images, in threads, and give their rows; none of an image that its kind cannot spoil."""
    (folder / "images").mkdir(exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, row in enumerate(pool.map(lambda plan: make_pair(plan, dataset, folder, seed), plans), 1):
            progress(done, len(plans))
            if row:
                yield row


def make_pair(plan: Plan, dataset: Path, folder: Path, seed: int) -> Row | None:
    """Write the wrong image and give the pair's row; None where a whole photo is no aligned face."""
    if plan.other:
        return make_row(plan, plan.other.image, plan.other.sha256)
    image = read_image(dataset / plan.right.image)
    if plan.kind in NEED_ALIGNED and image.shape[0] != image.shape[1]:
        return None
    if plan.kind == "input_pasted":
        wrong = paste_input(read_image(dataset / str(plan.right.line.lq)), image)
    else:
        # The pair's own amounts: a model that learned one fault by heart would not know the next.
        wrong = FAULTS[plan.kind](image, np.random.default_rng(draw(seed, "fault", plan.key[0])))
    content = encode_png(wrong)
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"images/{sha256}.png"
    if not (folder / name).exists():  # it may be a link to the dataset's own file
        (folder / name).write_bytes(content)
    return make_row(plan, name, sha256)


def encode_png(image: RgbImage) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    PilImage.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def make_row(plan: Plan, image: str, sha256: str) -> Row:
    """A row of pairs.jsonl; all but the wrong image is of the right one's photo."""
    line, right = plan.right.line, plan.right
    key, right_is_a = plan.key
    sides = [
        {"image": right.image, "sha256": right.sha256, "method": right.method, "seed": right.seed},
        {"image": image, "sha256": sha256, "method": plan.method, "seed": right.seed},
    ]
    a, b = sides if right_is_a else sides[::-1]
    return {
        "pair": key,
        **line.model_dump(mode="json", include={"source", "split", "group", "caption"}),
        "image_a": a["image"],
        "image_b": b["image"],
        "lq": line.lq,
        "hq": line.hq,
        "sha256_a": a["sha256"],
        "sha256_b": b["sha256"],
        "sha256_lq": line.sha256_lq,
        "sha256_hq": line.sha256_hq,
        "method_a": a["method"],
        "method_b": b["method"],
        "seed_a": a["seed"],
        "seed_b": b["seed"],
        "p_a": P_RIGHT if right_is_a else round(1 - P_RIGHT, 2),
        "tie": False,
        "origin": "constructed",
        "made_by": plan.kind,
        "weight": 1.0,
        "agreement": None,
        "judgments": [],
        "tasks": [],
    }


def check_made(kinds: Sequence[Kind], plans: Sequence[Plan], rows: Sequence[Row], dataset: Path) -> None:
    """That something was made of each kind.

    Raises:
        UserError: nothing was, since no image is square.
    """
    made = {row["made_by"] for row in rows}
    for kind in kinds:
        if kind not in made:
            count = sum(plan.kind == kind for plan in plans)
            raise UserError(
                f"{kind} needs aligned faces, which are square, and none of {count:,} images of {dataset} is. Crop the "
                "faces before they are restored (`refl restore` does), or leave it out of --kinds."
            )


def write_rows(old: Path, new: Path, rows: Sequence[Row]) -> None:
    """Write the old file's bytes, then the rows, by photo and pair."""
    content = old.read_bytes()
    added = sorted(rows, key=lambda row: (row["source"], row["pair"]))
    content += b"" if content.endswith(b"\n") else b"\n"
    content += "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in added).encode()
    new.write_bytes(content)


def write_card(old: Path, new: Path, rows: Sequence[Row]) -> None:
    """Write the dataset's card with a section on what was added."""
    before = old.read_text(encoding="utf-8-sig") if old.is_file() else "# Dataset\n"
    counts = Counter((row["made_by"], row["split"]) for row in rows)
    lines = [
        before.rstrip("\n"),
        "",
        "## Constructed pairs",
        "",
        f"Beside the labels above, `pairs.jsonl` ends with **{len(rows):,} pairs that nobody judged** (`origin` is "
        "`constructed`): a restored image and one that any person would reject, made by `python -m reward construct`. "
        "They count as no person's label, measure no accuracy of people's labels, and no project takes them back. "
        f"`made_by` is the kind; the right image has the probability {P_RIGHT}.",
        "",
        "| kind | split | pairs |",
        "|---|---|---|",
        *(f"| {kind} | {split} | {count:,} |" for (kind, split), count in sorted(counts.items())),
        "",
    ]
    new.write_text("\n".join(lines), encoding="utf-8", newline="\n")


def count_rows(lines: Sequence[PairLine], rows: Sequence[Row]) -> dict[str, Any]:
    """Counts of the whole dataset, as `annotate export` gives them, and of what was added."""
    both = [*(line.model_dump(mode="json") for line in lines), *rows]
    judgments = {key for line in lines for key in line.judgments}
    names = ("split", "origin", "made_by")
    splits, origins, made_by = (dict(sorted(Counter(row[name] for row in both).items())) for name in names)
    return {
        "rows": len(both),
        "constructed": len(rows),
        "splits": splits,
        "origins": origins,
        "made_by": made_by,
        "methods": dict(sorted(Counter(row[side] for row in both for side in ("method_a", "method_b")).items())),
        "judgments": len(judgments),
    }

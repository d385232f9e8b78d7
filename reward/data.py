"""Read labelled pairs for training and evaluation, from a dataset folder of ours or from HPDv2's own files.

The split is the stored one and is never drawn anew. A dataset is read whole and refused at the first thing that is not
as it should be; images are checked by `check_pairs` before any of them is needed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils.data import Dataset

from dataset.labelled import LabelledPair, Origin, Split, inside
from dataset.read import PairLine
from db.errors import UserError, first_fault
from reward.model.config import ModelConfig
from reward.model.inputs import SeesInput, check_inputs
from reward.model.model import preprocess
from training.images import check_images, read_image


@dataclass(frozen=True)
class Pairs:
    """A dataset, or the part of it that `select` left; rows in the dataset's order."""

    path: Path
    rows: tuple[LabelledPair, ...]
    input_photo: Literal["lq", "hq"] | None = None
    """Photo of each row that is seen beside its two images; None where a model sees none."""

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, split: Split | None = None, origin: Origin | None = None) -> Pairs:
        """Only the rows of this split, of labels of this origin."""
        rows = (row for row in self.rows if split in (None, row.split) and origin in (None, row.origin))
        return replace(self, rows=tuple(rows))

    def with_inputs(self, config: SeesInput) -> Pairs:
        """The same, with the photo that this model sees beside each pair.

        Raises:
            UserError: the model needs it, and a row has none.
        """
        lacking = [row.source for row in self.rows if config.needs_input and getattr(row, config.input_photo) is None]
        instead = f"{self.path}: import the photos with {config.input_photo} and export again as jsonl, or take "
        instead += f"another text_mode. The first photo that lacks it is {lacking[0]!r}." if lacking else ""
        check_inputs(config, len(lacking), len(self.rows), "pairs", instead=instead)
        return replace(self, input_photo=config.input_photo if config.needs_input else None)

    def list_images(self, row: LabelledPair) -> tuple[Path, ...]:
        """The images of a row that a model sees: a, b, and the input photo where it sees one."""
        if self.input_photo is None:
            return row.image_a, row.image_b
        seen: Path = getattr(row, self.input_photo)
        return row.image_a, row.image_b, seen

    def describe(self) -> str:
        """'3,000 labelled pairs (train 2,000, val 500, test 500; human 2,900, svm 100)'."""
        splits = Counter(row.split for row in self.rows)
        origins = Counter(row.origin for row in self.rows)
        parts = [", ".join(f"{name} {count:,}" for name, count in tally.items()) for tally in (splits, origins)]
        return f"{len(self.rows):,} labelled pairs ({'; '.join(parts)})"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that training sees of the rows, the images by their file names: the same wherever it lies."""
        digest = hashlib.sha256()
        for row in self.rows:
            names = [sha256 or path.name for path, sha256 in self.list_hashes(row)]
            values = (row.pair, *names, row.p_a, row.weight, row.origin, row.caption, row.source, row.split)
            digest.update(json.dumps(values).encode())
        return digest.hexdigest()

    def list_hashes(self, row: LabelledPair) -> list[tuple[Path, str | None]]:
        """Each of `list_images` with its SHA-256, where the dataset says it."""
        hashes = [
            row.sha256_a,
            row.sha256_b,
            *([getattr(row, f"sha256_{self.input_photo}")] if self.input_photo else []),
        ]
        return list(zip(self.list_images(row), hashes, strict=True))


def load_dataset(path: Path) -> Pairs:
    """All labelled pairs of a dataset folder with `pairs.jsonl`, or of HPDv2: its folder or one of its JSON files.

    No image is opened; see `check_pairs`.

    Raises:
        UserError: no dataset is there, a line is malformed (named), two rows have one key, or a group is in two splits.
    """
    from reward.read_hpdv2 import find_files, read_hpdv2  # it needs this module

    path = path.expanduser()
    if (path / "pairs.jsonl").is_file():
        rows = read_pairs(path)
    elif find_files(path):
        rows = read_hpdv2(path)
    else:
        raise UserError(
            f"{path} is not a dataset: it has neither pairs.jsonl nor HPDv2's train.json, val.json or test.json. "
            "Write one with `python -m annotate export`."
        )
    if not rows:
        raise UserError(f"{path} holds no labelled pair. Judge some pairs, then export them again.")
    _check_rows(path, rows)
    return Pairs(path, tuple(rows))


def read_pairs(folder: Path) -> list[LabelledPair]:
    """The rows of `pairs.jsonl`."""
    file = folder / "pairs.jsonl"
    rows = []
    try:
        with open(file, encoding="utf-8-sig") as stream:  # an editor of Windows may have put a mark first
            for number, text in enumerate(stream, 1):
                try:
                    rows.append(_to_row(folder, PairLine.model_validate_json(text)))
                except ValidationError as error:
                    raise UserError(
                        f"{file}, line {number}: {first_fault(error)}. Export the dataset again."
                    ) from error
                except ValueError as error:
                    raise UserError(f"{file}, line {number}: {error}. Export the dataset again.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as text ({error}).") from error
    return rows


def _to_row(folder: Path, line: PairLine) -> LabelledPair:
    if line.sha256_a == line.sha256_b:
        raise ValueError(f"a and b are the same image, {line.image_a}")
    a, b, lq, hq = (inside(folder, name) for name in (line.image_a, line.image_b, line.lq, line.hq))
    assert a is not None
    assert b is not None
    files = {"image_a", "image_b", "lq", "hq"}
    shared = line.model_dump(include={*LabelledPair.__dataclass_fields__} - files - {"judgments"})
    return LabelledPair(**shared, image_a=a, image_b=b, lq=lq, hq=hq, judgments=tuple(line.judgments))


def _check_rows(path: Path, rows: Sequence[LabelledPair]) -> None:
    keys = Counter(row.pair for row in rows)
    twice = [key for key, count in keys.items() if count > 1]
    if twice:
        raise UserError(f"{path}: pair {twice[0]} is there {keys[twice[0]]} times; a pair has one label.")
    for what in ("group", "source"):
        split_of: dict[str, str] = {}
        for row in rows:
            name = getattr(row, what)
            if split_of.setdefault(name, row.split) != row.split:
                raise UserError(
                    f"{path}: {what} {name!r} is in the splits {split_of[name]} and {row.split}, so training would see "
                    "what is held out. Export the dataset again."
                )


def check_pairs(pairs: Pairs, known: Path | None = None) -> dict[Path, str]:
    """Decode every image that a model sees of them once, in threads; returns their SHA-256. See `images.check_images`.

    Raises:
        UserError: an image is missing, damaged or changed; named.
    """
    files: dict[Path, str | None] = {}
    for row in pairs.rows:
        files |= dict(pairs.list_hashes(row))
    return check_images(files, known)


class PairImages(Dataset[tuple[Tensor, ...]]):
    """The images of pairs by the row's index, as `Pairs.list_images`: (3, H, W) uint8 RGB each; sizes may differ."""

    def __init__(self, pairs: Pairs) -> None:
        self.rows, self.list_images = pairs.rows, pairs.list_images

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(to_tensor(path) for path in self.list_images(self.rows[index]))


class Images(Dataset[Tensor]):
    """Images by their place in the list: (3, H, W) uint8 RGB."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return to_tensor(self.paths[index])


def to_tensor(path: Path) -> Tensor:
    """(3, H, W) uint8 RGB of an image file."""
    return torch.from_numpy(np.ascontiguousarray(read_image(path).transpose(2, 0, 1)))


SameSize = list[tuple[list[int], Tensor]]
"""Images of any sizes as a DataLoader's worker hands them over: (their places, (N, 3, H, W) uint8) of each size."""


def group_images(images: Sequence[Tensor]) -> SameSize:
    """Stack images of one size together; a `collate_fn` for `Images`."""
    by_size: dict[torch.Size, list[int]] = {}
    for place, image in enumerate(images):
        by_size.setdefault(image.shape, []).append(place)
    return [(places, torch.stack([images[place] for place in places])) for places in by_size.values()]


def group_pairs(items: Sequence[tuple[Tensor, ...]]) -> SameSize:
    """A `collate_fn` for `PairImages`: the places are those of all images a, all images b, then all input photos."""
    return group_images([image for kind in zip(*items, strict=True) for image in kind])


def to_pixels(groups: SameSize, config: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """(N, 3, S, S) on the device, as `encode_pixels` takes it, of the N images of all groups in their places."""
    count = sum(len(places) for places, _ in groups)
    pixels = torch.empty(count, 3, config.image_size_px, config.image_size_px, device=device)
    for places, images in groups:
        pixels[places] = preprocess(images.to(device, non_blocking=True).float() / 255, config)
    return pixels

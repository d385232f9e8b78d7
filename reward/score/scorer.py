"""Score images with a reward model: loaded by name or path, with its version, fed in batches.

Memory is that of two batches, however many images there are; no gradients are kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from db.candidates import REWARD_PREFIX, SPREAD_PREFIX
from db.errors import UserError
from pixels.read import RgbImage
from reward.data import group_images, to_pixels
from reward.model.captions import check_captions
from reward.model.inputs import check_inputs
from reward.model.model import RewardModel
from reward.model.reward_set import RewardSet, compute_reward_version, compute_spread, find_reward, load_reward
from reward.model.set_config import RewardConfig
from training.images import read_image
from training.stopping import advise_out_of_memory

Array = npt.NDArray[Any]
Item = TypeVar("Item")

DECODING_THREADS = 4


@dataclass(frozen=True)
class Scorer:
    """A reward model that is ready to score."""

    name: str
    """For tables, of letters, digits and _ + . -"""
    path: Path | None
    """Its checkpoint folder; None where it is a published file or a preset."""
    model: RewardModel | RewardSet
    version: str
    """`compute_reward_version` of it: rewards of two versions are never compared."""

    @property
    def config(self) -> RewardConfig:
        """Of the model or the set."""
        return self.model.config

    @property
    def metric(self) -> str:
        """The metric that its rewards are stored as."""
        return REWARD_PREFIX + self.name

    @property
    def spread_metric(self) -> str:
        """The metric that the spread over its members is stored as."""
        return SPREAD_PREFIX + self.name

    @property
    def has_spread(self) -> bool:
        """Whether it has several members, which may disagree."""
        return isinstance(self.model, RewardSet) or self.model.config.members > 1


@dataclass(frozen=True)
class FoundScorer:
    """A reward model that a person asked for: found, and nothing of its weights read."""

    name: str
    path: Path | None
    """Its checkpoint folder; None where it is a published file or a preset."""
    config: RewardConfig

    @property
    def metric(self) -> str:
        """As of the Scorer."""
        return REWARD_PREFIX + self.name


def find_scorer(asked: str, weights_dir: Path | None = None) -> FoundScorer:
    """The model that a person asked for, its weights on this machine, not read yet.

    Args:
        asked: as `find_reward` takes it; NAME=… before it names it in tables.
        weights_dir: folder of published files; a name of weights.toml is looked for there first.
    Raises:
        UserError: there is none, or its weights cannot be got.
    """
    name, what = split_name(asked)
    folder, config = find_reward(what, weights_dir)
    if not name and folder:
        name = folder.resolve().parent.name if folder.name in ("best", "last") else folder.resolve().name
    name = name or (Path(what).stem if Path(what).suffix else what)
    return FoundScorer(re.sub(r"[^A-Za-z0-9_+.-]", "_", name), folder, config)


def load_scorer(asked: str, device: str, dtype: torch.dtype = torch.float32, weights_dir: Path | None = None) -> Scorer:
    """The model that a person asked for, on the device.

    Args:
        asked, weights_dir: as of `find_scorer`.
        device: as `choose_device` gives it.
        dtype: what its numbers become as they are read; in another it is another scorer, with a version of its own.
    Raises:
        UserError: there is none, it is damaged or of another architecture, or too large for the device.
    """
    found = find_scorer(asked, weights_dir)
    model = load_reward(split_name(asked)[1], dtype, weights_dir)
    said = f"{split_name(asked)[1]} does not fit into the memory of {device}; give --device cpu."
    with advise_out_of_memory(lambda: said):
        model = model.requires_grad_(False).eval().to(device)
    return Scorer(found.name, found.path, model, compute_reward_version(model))


def split_name(asked: str) -> tuple[str, str]:
    """(name, empty where none is given; the rest) of NAME=REST or REST; a path with = in it needs no name."""
    if Path(asked).expanduser().exists():
        return "", asked
    name, _, what = asked.partition("=") if "=" in asked else ("", "", asked)
    return name, what


def check_scorer_captions(
    scorer: Scorer | FoundScorer, missing: int, total: int, things: str, *, use_prompt: bool
) -> str | None:
    """`check_captions` for a scorer: what to say where its prompt stands in for so many of all.

    Raises:
        UserError: there is not one caption, and `use_prompt` is not given.
    """
    config = scorer.config
    instead = f"Import captions, or give --use-prompt to let {scorer.name} compare all with its prompt: "
    instead += f"{config.prompt!r}."
    return check_captions(config, missing, total, things, instead=instead, use_prompt=use_prompt)


def choose_photo(scorer: Scorer | FoundScorer) -> Literal["lq", "hq"] | None:
    """The photo that it sees beside each image; None for one that sees none."""
    return scorer.config.input_photo if scorer.config.needs_input else None


def check_scorer_inputs(
    scorer: Scorer | FoundScorer, missing: int, total: int, things: str, instead: str, first: object = None
) -> None:
    """`check_inputs` for a scorer: name it, what a person can do, and the first thing that lacks its photo.

    Raises:
        UserError: it sees a photo beside each image, and one is missing.
    """
    instead = f"{instead} The first that lacks it is {first}." if first is not None else instead
    check_inputs(scorer.config, missing, total, things, instead=f"{scorer.name} needs it. {instead}")


def score_batch(
    scorer: Scorer,
    images: Sequence[RgbImage],
    captions: Sequence[str | None],
    inputs: Sequence[RgbImage] | None = None,
) -> Array:
    """(n,) rewards of one batch, higher is better; see `score_apart`."""
    return score_apart(scorer, images, captions, inputs)[0]


def score_apart(
    scorer: Scorer,
    images: Sequence[RgbImage],
    captions: Sequence[str | None],
    inputs: Sequence[RgbImage] | None = None,
) -> tuple[Array, Array]:
    """Score one batch.

    Args:
        images: n of them, (H, W, 3) uint8 RGB, of any sizes.
        captions: n of them; None or empty where there is none, for which the model's prompt stands in.
        inputs: n of them, the photos that a seeing reward compares with, of any sizes; the same object is encoded once.
    Returns:
        (n,) rewards, higher is better; (n,) their spread over the reward's members, 0 for one that has one.
    Raises:
        UserError: the batch is too large for the memory.
    """
    model = scorer.model
    device = model.logit_scale.device
    advice = f"lower --batch-size to {len(images) // 2}" if len(images) > 1 else "give --device cpu"
    where = f"The memory of {device} is too small for a batch of {len(images)} images by"
    seen = inputs if inputs is not None and model.config.needs_input else None
    with advise_out_of_memory(lambda: f"{where} {scorer.name}: {advice}."), torch.inference_mode():
        if isinstance(model, RewardSet):
            members = _ask_set(model, images, captions, seen, device)
            rewards, spread = model.combine(members), compute_spread(members)
        else:
            members = _ask_model(model, images, captions, seen, device)
            rewards, spread = members.mean(dim=0), members.std(dim=0, correction=0)
        return np.asarray(rewards.double().cpu().numpy()), np.asarray(spread.double().cpu().numpy())


def _ask_model(
    model: RewardModel,
    images: Sequence[RgbImage],
    captions: Sequence[str | None],
    inputs: Sequence[RgbImage] | None,
    device: torch.device,
) -> Tensor:
    """(members, n) rewards by a model, whose one size lets images of all sizes go together."""
    once = {id(image): image for image in inputs or ()}
    tensors = [_to_tensor(image) for image in [*images, *once.values()]]
    features = model.encode_pixels(to_pixels(group_images(tensors), model.config, device))
    if inputs is None:
        return model.compare(features, captions)
    place = {key: len(images) + at for at, key in enumerate(once)}
    return model.compare(features[: len(images)], captions, features[[place[id(image)] for image in inputs]])


def _ask_set(
    model: RewardSet,
    images: Sequence[RgbImage],
    captions: Sequence[str | None],
    inputs: Sequence[RgbImage] | None,
    device: torch.device,
) -> Tensor:
    """(members, n) rewards by a set, whose members see images in sizes of their own."""
    found = torch.empty(len(model.names), len(images), device=device)
    alike: dict[Any, list[int]] = {}
    for place, image in enumerate(images):
        alike.setdefault((image.shape, inputs[place].shape if inputs is not None else None), []).append(place)
    for places in alike.values():
        stacks = [
            torch.stack([_to_tensor(kind[place]) for place in places]).to(device).float() / 255
            for kind in (images, inputs)
            if kind is not None
        ]
        seen = stacks[1] if inputs is not None else None
        found[:, places] = model.compute_members(stacks[0], [captions[place] for place in places], seen)
    return found


def _to_tensor(image: RgbImage) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def read_batches(
    items: Iterable[tuple[Item, Path, Path | None]], size: int, on_bad: Callable[[UserError], None] | None = None
) -> Iterator[list[tuple[Item, RgbImage, RgbImage | None]]]:
    """Things with their images and what is seen beside them, in batches; decoded in threads, one batch ahead.

    A photo that is seen beside several images of a batch is read once, and is the same object for all of them.

    Args:
        on_bad: called with an image that cannot be read, which is then left out.
    Raises:
        UserError: an image cannot be read, and `on_bad` is not given.
    """
    work = iter(items)
    with ThreadPoolExecutor(DECODING_THREADS) as pool:

        def start() -> list[tuple[Item, Future[RgbImage], Future[RgbImage] | None]]:
            seen: dict[Path, Future[RgbImage]] = {}
            started = []
            for item, path, beside in islice(work, size):
                if beside is not None and beside not in seen:
                    seen[beside] = pool.submit(read_image, beside)
                started.append((item, pool.submit(read_image, path), None if beside is None else seen[beside]))
            return started

        ahead = start()
        while ahead:
            reading, ahead = ahead, start()
            batch = []
            for item, future, beside in reading:
                try:
                    batch.append((item, future.result(), None if beside is None else beside.result()))
                except UserError as error:
                    if on_bad is None:
                        raise
                    on_bad(error)
            if batch:
                yield batch


def stack_inputs(inputs: Iterable[RgbImage | None]) -> list[RgbImage] | None:
    """What `score_apart` takes, of a batch of `read_batches`: None where there is none."""
    found = [one for one in inputs if one is not None]
    return found or None

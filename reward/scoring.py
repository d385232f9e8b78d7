"""A reward model as a scorer of images: loaded by what a person calls it, with a version of its own, fed in batches.

Memory is that of two batches, however many images there are; no gradients are kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from reward.captions import check_captions
from reward.checkpoint import build_model, load_model, read_config
from reward.config import ModelConfig, load_model_config, preset_names
from reward.data import group_images, to_pixels
from reward.images import RgbImage, read_image
from reward.model import RewardModel, compute_cosine
from reward.stopping import is_out_of_memory
from reward.weights import SUFFIXES, read_manifest
from runs import UserError
from runs.candidates import REWARD_PREFIX

Array = npt.NDArray[Any]
Item = TypeVar("Item")

VERSION_PREFIX = "reward "
"""How the version of every stored reward begins."""
DECODING_THREADS = 4
NOT_IN_VERSION = {"weights", "unlocked_image_groups", "unlocked_text_blocks"}
"""Where training started and what it trained: nothing that a reward depends on."""


@dataclass(frozen=True)
class Scorer:
    """A reward model that is ready to score."""

    name: str
    """For tables, of letters, digits and _ + . -"""
    path: Path | None
    """Its checkpoint folder; None where it is a published file or a preset."""
    model: RewardModel
    version: str
    """`compute_version` of it: rewards of two versions are never compared."""

    @property
    def metric(self) -> str:
        """The metric that its rewards are stored as."""
        return REWARD_PREFIX + self.name


def load_scorer(asked: str, device: str) -> Scorer:
    """The model that a person asked for, on the device.

    Args:
        asked: a checkpoint folder or a training's, whose best/ is taken; a weight file or a name of weights.toml, both
            of the preset vit-h-14's architecture; or a preset or TOML file (a CLIP as published). NAME=… before it
            names it in tables.
        device: as `choose_device` gives it.
    Raises:
        UserError: there is none, it is damaged or of another architecture, or too large for the device.
    """
    name, what = split_name(asked)
    path = _find_path(what)
    folder = None
    if path.is_dir():
        model, folder = load_model(path), path
        name = name or (path.resolve().parent.name if path.name in ("best", "last") else path.resolve().name)
    elif path.is_file() and path.suffix in SUFFIXES:
        model, name = load_model(path), name or path.stem
    elif what in read_manifest():
        model, name = build_model(load_model_config("vit-h-14", weights=what)), name or what
    elif what in preset_names() or path.suffix == ".toml":
        model, name = build_model(load_model_config(what)), name or path.stem
    else:
        raise _unknown(what)
    try:
        model = model.requires_grad_(False).eval().to(device)
    except torch.OutOfMemoryError as error:
        raise UserError(f"{what} does not fit into the memory of {device}; give --device cpu.") from error
    return Scorer(re.sub(r"[^A-Za-z0-9_+.-]", "_", name), folder, model, compute_version(model))


def read_scorer_config(asked: str) -> ModelConfig:
    """The config of the model that `load_scorer` would load, without its weights.

    Raises:
        UserError: there is none, or its config is damaged.
    """
    _, what = split_name(asked)
    path = _find_path(what)
    if path.is_dir():
        return read_config(path)
    if (path.is_file() and path.suffix in SUFFIXES) or what in read_manifest():
        return load_model_config("vit-h-14", weights=what)
    if what in preset_names() or path.suffix == ".toml":
        return load_model_config(what)
    raise _unknown(what)


def _find_path(what: str) -> Path:
    """The path that it is; of a training's folder its best checkpoint."""
    path = Path(what).expanduser()
    return path / "best" if (path / "best").is_dir() and not (path / "config.json").exists() else path


def _unknown(what: str) -> UserError:
    return UserError(
        f"There is no scorer {what!r}. Give a checkpoint folder, a weight file, one of {', '.join(read_manifest())}"
        f" (reward/weights.toml), or one of the presets {', '.join(preset_names())}."
    )


def split_name(asked: str) -> tuple[str, str]:
    """(name, empty where none is given; the rest) of NAME=REST or REST; a path with = in it needs no name."""
    if Path(asked).expanduser().exists():
        return "", asked
    name, _, what = asked.partition("=") if "=" in asked else ("", "", asked)
    return name, what


def compute_version(model: RewardModel) -> str:
    """'reward ' and 16 hex digits: a hash of all that a reward depends on, every weight and how images are fed."""
    settings = {key: value for key, value in model.config.model_dump(mode="json").items() if key not in NOT_IN_VERSION}
    settings.pop("architecture")  # a name or a path; what it stands for is hashed
    digest = hashlib.sha256(json.dumps([settings, model.architecture], sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return VERSION_PREFIX + digest.hexdigest()[:16]


def check_scorer_captions(scorer: Scorer, missing: int, total: int, things: str, *, use_prompt: bool) -> str | None:
    """`check_named_captions` for a scorer that is loaded."""
    return check_named_captions(scorer.model.config, scorer.name, missing, total, things, use_prompt=use_prompt)


def check_named_captions(
    config: ModelConfig, name: str, missing: int, total: int, things: str, *, use_prompt: bool
) -> str | None:
    """`check_captions` for a scorer of this name: what to say where its prompt stands in for so many of all.

    Raises:
        UserError: there is not one caption, and `use_prompt` is not given.
    """
    instead = f"Import captions, or give --use-prompt to let {name} compare all with its prompt: {config.prompt!r}."
    return check_captions(config, missing, total, things, instead=instead, use_prompt=use_prompt)


def score_batch(scorer: Scorer, images: Sequence[RgbImage], captions: Sequence[str | None]) -> Array:
    """(n,) rewards of one batch, higher is better.

    Args:
        images: n of them, (H, W, 3) uint8 RGB, of any sizes.
        captions: n of them; None or empty where there is none, for which the model's prompt stands in.
    Raises:
        UserError: the batch is too large for the memory.
    """
    model = scorer.model
    tensors = [torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in images]
    try:
        with torch.inference_mode():
            pixels = to_pixels(group_images(tensors), model.config, model.logit_scale.device)
            rewards = compute_cosine(model.encode_pixels(pixels), model.encode_prompts(captions))
        return np.asarray(rewards.double().cpu().numpy())
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        advice = f"lower --batch-size to {len(images) // 2}" if len(images) > 1 else "give --device cpu"
        raise UserError(
            f"The memory of {model.logit_scale.device} is too small for a batch of {len(images)} images by "
            f"{scorer.name}: {advice}."
        ) from error


def read_batches(
    items: Iterable[tuple[Item, Path]], size: int, on_bad: Callable[[UserError], None] | None = None
) -> Iterator[list[tuple[Item, RgbImage]]]:
    """Things with their images, in batches; decoded in threads, the next batch while this one is scored.

    Args:
        on_bad: told of an image that cannot be read, which is then left out.
    Raises:
        UserError: an image cannot be read, and `on_bad` is not given.
    """
    work = iter(items)
    with ThreadPoolExecutor(DECODING_THREADS) as pool:

        def start() -> list[tuple[Item, Future[RgbImage]]]:
            return [(item, pool.submit(read_image, path)) for item, path in islice(work, size)]

        ahead = start()
        while ahead:
            reading, ahead = ahead, start()
            batch = []
            for item, future in reading:
                try:
                    batch.append((item, future.result()))
                except UserError as error:
                    if on_bad is None:
                        raise
                    on_bad(error)
            if batch:
                yield batch

"""Measure several rewards on held-out images, bring them to one scale, and write them as a reward set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from db.errors import UserError
from db.records import SIMULATED
from metrics.accuracy import bootstrap_share, compute_credit
from reward.data import Pairs, to_tensor
from reward.model.captions import check_captions
from reward.model.checkpoint import compute_version, load_named
from reward.model.config import ModelConfig
from reward.model.reward_set import RewardSet, check_metric, name_heads
from reward.model.set_config import FILE, Member, SetConfig
from reward.score.scorer import FoundScorer, split_name
from runs.files import write_whole

log = logging.getLogger(__name__)
Array = npt.NDArray[np.float64]
MAX_IMAGES = 2000
"""Held-out images that scales are measured on at most, drawn by whole pairs."""


@dataclass(frozen=True)
class Found:
    """Rewards that a set is to be made of, before anything of them is loaded."""

    models: dict[str, tuple[str, ModelConfig]]
    """Name -> what `load_named` takes, and its config."""
    metrics: tuple[str, ...]
    needs_input: bool
    input_photo: Literal["lq", "hq"]
    text_mode: Literal["caption", "fixed"]
    prompt: str


def check_members(found: Sequence[tuple[FoundScorer, str]], metrics: Sequence[str], reference: str) -> Found:
    """Check that the rewards can be one set.

    Args:
        found: each model, and what was asked for.
        reference: the photo that metrics compare with, `lq` or `hq`.
    Raises:
        UserError: there are fewer than two members, two have one name, a metric is named twice or has no gradient,
            or members would see different photos.
    """
    models: dict[str, tuple[str, ModelConfig]] = {}
    for one, asked in found:
        if not isinstance(one.config, ModelConfig):
            raise UserError(f"{asked} is a reward set itself; name its members instead.")
        if one.name in models or one.name in metrics:
            raise UserError(f"Two members are called {one.name}; name one of them otherwise: NAME=…")
        models[one.name] = (split_name(asked)[1], one.config)
    if len(set(metrics)) < len(metrics):
        raise UserError(f"A metric is named twice, which would count it twice: {', '.join(metrics)}. Name each once.")
    if not models or sum(config.members for _, config in models.values()) + len(metrics) < 2:
        raise UserError("A set has a model and two members or more: name models, one of several members, or a metric.")
    photos = {name: config.input_photo for name, (_, config) in models.items() if config.needs_input}
    photos |= {name: "hq" if reference == "hq" else "lq" for name in metrics if check_metric(name)}
    if len(set(photos.values())) > 1:
        said = ", ".join(f"{name} {photo}" for name, photo in photos.items())
        raise UserError(f"Members of a set see one kind of photo beside an image, and these see two: {said}.")
    readers = [config for _, config in models.values() if config.text_mode == "caption"]
    return Found(
        models=models,
        metrics=tuple(metrics),
        needs_input=bool(photos),
        input_photo="hq" if "hq" in photos.values() else "lq",
        text_mode="caption" if readers else "fixed",
        prompt=readers[0].prompt if readers else "",
    )


def choose_rows(pairs: Pairs, split: Literal["train", "val", "test"], found: Found, *, use_prompt: bool) -> Pairs:
    """The pairs of a split whose images the scales are measured on, with what the members need to see.

    Raises:
        UserError: there are none, or they lack captions or photos that members need.
    """
    # A constructed pair's planted fault is no image of a restorer, whose scale is measured.
    rows = [row for row in pairs.select(split).rows if row.origin != "constructed"]
    if len(rows) < 2:
        raise UserError(f"{pairs.path} has {len(rows)} labelled pairs in split {split}; scales need two or more.")
    drawn = np.random.default_rng(0).permutation(len(rows))[: MAX_IMAGES // 2]
    chosen = Pairs(pairs.path, tuple(rows[place] for place in sorted(drawn)))
    missing = sum(not row.caption for row in chosen.rows)
    for _, config in found.models.values():
        check_captions(
            config,
            missing,
            len(chosen),
            "pairs",
            instead="Export with captions, or give --use-prompt.",
            use_prompt=use_prompt,
        )
    return chosen.with_inputs(found)


def make_set(
    found: Found,
    pairs: Pairs,
    spread_weight: float,
    device: str,
    weights_dir: Path,
    progress: Callable[[int, int], None],
) -> tuple[SetConfig, list[dict[str, Any]]]:
    """Measure each member on the images of pairs.

    Args:
        pairs: with inputs where a member sees them.
        progress: called with (pairs measured, pairs in all).
    Returns:
        the set, and a row a member and one for the set: name, center, scale, accuracy, low, high, n.
    Raises:
        UserError: a member says the same of all images, or an image cannot be read.
    """
    models = {asked: load_named(asked, weights_dir=weights_dir).eval() for asked, _ in found.models.values()}
    members = []
    for name, (asked, of_model) in found.models.items():
        version = compute_version(models[asked])
        for head, called in enumerate(name_heads(name, of_model)):
            members.append(Member(name=called, model=asked, head=head, version=version, center=0, scale=1))
    members += [Member(name=name, metric=name, center=0, scale=1) for name in found.metrics]
    config = SetConfig(
        members=tuple(members),
        spread_weight=spread_weight,
        unit=1,
        logit_scale=1,
        held_out_spread=1,
        images=2 * len(pairs),
        dataset=str(pairs.path.resolve()),
        text_mode=found.text_mode,
        prompt=found.prompt,
        needs_input=found.needs_input,
        input_photo=found.input_photo,
    )
    raw = RewardSet(config, models).requires_grad_(False).to(device)
    values = measure_pairs(raw, pairs, device, progress)  # (members, 2, pairs)
    flat = values.reshape(len(members), -1)
    centers, scales = flat.mean(axis=1), flat.std(axis=1)
    for member, scale in zip(members, scales, strict=True):
        if not scale > 0:
            raise UserError(f"{member.name} gives all {flat.shape[1]:,} held-out images the same; leave it out.")
    normalised = (values - centers[:, None, None]) / scales[:, None, None]
    spread = np.maximum(normalised.std(axis=0), 1e-6)
    of_models = [scale for member, scale in zip(members, scales, strict=True) if member.model]
    logit_scales = [float(models[member.model].logit_scale) for member in members if member.model]
    config = config.model_copy(
        update={
            "members": tuple(
                member.model_copy(update={"center": float(center), "scale": float(scale)})
                for member, center, scale in zip(members, centers, scales, strict=True)
            ),
            "unit": float(np.mean(of_models)),
            "logit_scale": float(np.mean(logit_scales)),
            "held_out_spread": float(spread.mean()),
        }
    )
    whole = normalised.mean(axis=0) - spread_weight * spread
    rows = [
        {"name": member.name, "center": member.center, "scale": member.scale, **measure_accuracy(one, pairs)}
        for member, one in zip(config.members, normalised, strict=True)
    ]
    rows.append({"name": "the set", "center": 0.0, "scale": config.unit, **measure_accuracy(whole, pairs)})
    return config, rows


@torch.inference_mode()
def measure_pairs(reward: RewardSet, pairs: Pairs, device: str, progress: Callable[[int, int], None]) -> Array:
    """(members, 2, pairs) rewards of images a and b, one pair at a time: images of pairs have any sizes."""
    found = []
    for done, row in enumerate(pairs.rows, 1):
        a, b, *seen = (to_tensor(path).to(device).float() / 255 for path in pairs.list_images(row))
        inputs = seen[0][None] if seen else None
        sides = [reward.compute_members(image[None], [row.caption], inputs)[:, 0] for image in (a, b)]
        found.append(torch.stack(sides, dim=1).double().cpu().numpy())
        progress(done, len(pairs))
    return np.stack(found, axis=-1)


def measure_accuracy(values: Array, pairs: Pairs) -> dict[str, float | int]:
    """How often (2, pairs) rewards say what people's labels say that are no ties, with its interval over photos.

    `simulated` of the n labels are of programs that answered as people would.
    """
    rows = pairs.rows
    decided = np.array([row.origin == "human" and row.p_a != 0.5 for row in rows])
    if not decided.any():
        return {"n": 0}
    p_a, weight = (np.array([getattr(row, name) for row in rows])[decided] for name in ("p_a", "weight"))
    credit = compute_credit((values[0] - values[1])[decided], p_a)
    accuracy, low, high = bootstrap_share(credit, weight, np.array([row.source for row in rows])[decided])
    simulated = sum(row.made_by.endswith(SIMULATED) for row, counts in zip(rows, decided, strict=True) if counts)
    return {"accuracy": accuracy, "low": low, "high": high, "n": int(decided.sum()), "simulated": simulated}


def write_set(config: SetConfig, folder: Path) -> None:
    """Write `set.json`, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / FILE, (config.model_dump_json(indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}). Name another --out.") from error

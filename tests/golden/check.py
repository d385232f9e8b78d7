"""Compare our code with the original implementations' numbers, group by group; `benchmarks/golden.py` is the command.

The golden folder is described by its README.md; shapes, weights and tolerances are read from it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from db.errors import UserError
from reward.model.config import ModelConfig
from reward.model.model import RewardModel, compute_cosine, load_tokenizer, preprocess
from reward.train.loss import preference_loss
from tests.golden.files import Errors, compare, load_golden
from tests.golden.refl import check_dtcwt, check_refl
from tests.golden.restorers import (
    check_color,
    check_control,
    check_ddim,
    check_eps,
    check_swinir,
    check_text,
    check_vae,
)
from training.weights import load_strictly

README_TOLERANCES = {"exact": 0.0, "color": 1e-4}
"""What the golden folder's README allows where its config.json says nothing."""


@dataclass(frozen=True)
class Result:
    """One group: the largest error of each number it compares, and what is allowed."""

    group: str
    errors: Errors
    tolerance: float

    @property
    def ok(self) -> bool:
        return max(self.errors.values()) <= self.tolerance


def check_reward(folder: Path, config: dict[str, Any]) -> Errors:
    """CLIP on the published ReFL's pixels, bilinear without antialiasing, and on antialiased ones; its gradient."""
    architecture = config["reward"]
    ours = ModelConfig(
        architecture="golden",
        image_size_px=architecture["vision_cfg"]["image_size"],
        unlocked_image_groups=1,
        unlocked_text_blocks=1,
        interpolation="bilinear",
        antialias=False,
    )
    model = RewardModel(ours, architecture)
    weights = config["files"]["reward"]
    load_strictly(model.clip, load_golden(folder, *weights), folder / weights[0], "the golden CLIP")
    golden = load_golden(folder, "io_reward.safetensors")
    images = (golden["image_pm1"] + 1) / 2
    antialiased = preprocess(images, ours.model_copy(update={"antialias": True}))
    pixels = preprocess(images, ours).requires_grad_()
    image_features, text_features = model.encode_pixels(pixels), model.encode_tokens(golden["tokens"])
    score = compute_cosine(image_features, text_features)
    loss = (1 - score).mean()
    (gradient,) = torch.autograd.grad(loss, pixels)
    return {
        "pixels_no_antialias": compare(pixels, golden["pixels_no_antialias"]),
        "pixels_antialias": compare(antialiased, golden["pixels_antialias"]),
        "image_features": compare(image_features, golden["image_features"]),
        "text_features": compare(text_features, golden["text_features"]),
        "logit_scale": compare(model.logit_scale, golden["logit_scale"]),
        "score": compare(score, golden["score"]),
        "score_antialias": compare(
            compute_cosine(model.encode_pixels(antialiased), text_features), golden["score_antialias"]
        ),
        "reward_loss": compare(loss, golden["reward_loss"]),
        "grad_pixels": compare(gradient, golden["grad_pixels"], relative=True),
    }


def check_hps(folder: Path, config: dict[str, Any]) -> Errors:
    """HPSv2's pairwise loss, summed over the pairs, and its gradient."""
    golden = load_golden(folder, "io_losses.safetensors")
    errors = {}
    for name in sorted(key.removesuffix("_labels") for key in golden if key.startswith("hps") and "_labels" in key):
        logits = golden[f"{name}_logits_per_text"].requires_grad_()
        n = len(logits)
        for_left, for_right = golden[f"{name}_labels"].chunk(2)
        weight = for_left + for_right
        loss = (weight * preference_loss(logits[:, :n].diagonal(), logits[:, n:].diagonal(), for_left / weight)).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        errors[f"{name}_loss"] = compare(loss, golden[f"{name}_loss"])
        errors[f"{name}_grad"] = compare(gradient, golden[f"{name}_grad"], relative=True)
    return errors


def check_tokenizer(folder: Path, config: dict[str, Any]) -> Errors:
    """How many of the ids differ."""
    golden = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    expected = torch.tensor(golden["ids"])
    ours = load_tokenizer()(golden["texts"], context_length=expected.shape[1])
    return {"ids": float((ours != expected).sum())}


CHECKS: dict[str, tuple[Callable[[Path, dict[str, Any]], Errors], str]] = {
    "eps": (check_eps, "eps"),
    "control": (check_control, "eps"),
    "vae": (check_vae, "vae"),
    "text": (check_text, "text"),
    "swinir": (check_swinir, "swinir"),
    "ddim": (check_ddim, "ddim"),
    "reward": (check_reward, "reward"),
    "hps": (check_hps, "losses"),
    "tokenizer": (check_tokenizer, "exact"),
    "color": (check_color, "color"),
    "dtcwt": (check_dtcwt, "losses"),
    "refl": (check_refl, "refl"),
}
"""All groups, as the golden folder's README names them: the check, and where config.json has its tolerance."""


def run_checks(folder: Path, groups: Sequence[str] = ()) -> list[Result]:
    """These groups, or all.

    Raises:
        UserError: the folder is no golden folder, or lacks a file; or there is no such group.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{path} is missing. Give a folder of golden numbers, such as ../shared/golden.")
    config = json.loads(path.read_text(encoding="utf-8"))
    tolerances = {**README_TOLERANCES, **config["tolerance"]}
    if unknown := [group for group in groups if group not in CHECKS]:
        raise UserError(f"There is no group {unknown[0]!r}. The groups: {', '.join(CHECKS)}.")
    chosen = {group: CHECKS[group] for group in groups or CHECKS}
    return [Result(group, check(folder, config), tolerances[key]) for group, (check, key) in chosen.items()]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="golden numbers, such as ../shared/golden")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"only these of {', '.join(CHECKS)} (default: all)")
    args = parser.parse_args()
    try:
        results = run_checks(args.folder, args.groups)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{'group':<12} {'largest error':>13} {'tolerance':>10}        of")
    for result in results:
        worst = max(result.errors, key=lambda name: result.errors[name])
        print(
            f"{result.group:<12} {result.errors[worst]:>13.1e} {result.tolerance:>10.1e}  "
            f"{'ok' if result.ok else 'FAIL':<4}  {worst} ({len(result.errors)} compared)"
        )
    return 0 if all(result.ok for result in results) else 1

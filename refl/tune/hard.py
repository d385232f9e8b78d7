"""Keep the faces that the restorer restores worst, by the reward, to train on these alone.

Source: IRPO, arXiv:2512.00814, which trains on the worst 30 % of samples.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

from db.errors import UserError
from refl.tune.data import DegradedFaces, stack
from refl.tune.draws import draw_trajectory, noise_seed
from refl.tune.groups import sample_all, score
from refl.tune.training import Training
from runs.files import write_text_whole
from training.processes import broadcast, gather_places, share_places

log = logging.getLogger(__name__)

FILE = "hard.json"
DRAW = 2**41
"""The step whose degradation and noise the faces are looked at with; no training step has it."""


def keep_hard_faces(training: Training, out: Path) -> None:
    """Let the training see only its share of worst faces, which `hard.json` names. A collective.

    They are chosen anew until a checkpoint holds what choosing cost: a file without one may be another training's.

    Raises:
        UserError: `hard.json` is damaged or gone, or choosing uses up the whole budget.
    """
    accelerator, config = training.accelerator, training.config
    if training.evaluations.total:
        kept = broadcast(accelerator, _read(out / FILE) if accelerator.is_main_process else [])
    else:
        with training.evaluations.counting():
            rewards = reward_all(training)
        cost = training.evaluations.add_up(accelerator)
        if training.is_spent:
            raise UserError(
                f"Looking for the hard faces took {cost:,} network evaluations, and budget ends training at "
                f"{config.algorithm.budget:,}. Raise it, or set hard_share to 1."
            )
        count = max(1, math.ceil(config.algorithm.hard_share * len(rewards)))
        kept = sorted(sorted(range(len(rewards)), key=lambda place: rewards[place])[:count])
        if accelerator.is_main_process:
            found = {"faces": kept, "rewards": rewards, "evaluations": cost}
            write_text_whole(out / FILE, json.dumps(found) + "\n")
        accelerator.wait_for_everyone()
    log.info("training on %s of %s faces, those that are restored worst", f"{len(kept):,}", f"{len(training.faces):,}")
    training.faces = [training.faces[place] for place in kept]
    assert isinstance(training.images, DegradedFaces)
    training.images = DegradedFaces(training.faces, training.images.size_px, config.degradation, config.train.seed)


def reward_all(training: Training) -> list[float]:
    """The reward of every face, restored once, as it is before training; each process computes its share."""
    faces, device = training.faces, training.accelerator.device
    mine, size, found = share_places(training.accelerator, len(faces)), training.rollout_batch_size, []
    trajectory = draw_trajectory(training, DRAW)
    for start in range(0, len(mine), size):
        places = mine[start : start + size]
        assert isinstance(training.images, DegradedFaces)
        hq, lq = (one.to(device) for one in stack([training.images[DRAW, place] for place in places]))
        seeds = [noise_seed(training.config.train.seed, DRAW, place) for place in places]
        _, images = sample_all(training, lq, seeds, trajectory)
        names = [faces[place].name for place in places]
        rewards = score(training, images, lq, hq, [faces[place].caption for place in places], names)
        found += list(zip(places, rewards.tolist(), strict=True))
    return gather_places(training.accelerator, found)


def _read(file: Path) -> list[int]:
    """The places that were kept.

    Raises:
        UserError: the file is damaged or gone.
    """
    try:
        return [int(place) for place in json.loads(file.read_text(encoding="utf-8"))["faces"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error}). Bring it back, or take another --out.") from error

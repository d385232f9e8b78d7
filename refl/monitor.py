"""The hacking monitor: does the reward rise because faces get better, or because the reward model is fooled?

A fixed set of held-out faces, degraded and restored with fixed seeds, is looked at every so many steps. Beside the
rewards stand judges that training never optimises. Everything is compared image by image with the first look, so that
faces and seeds do not add noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as PilImage
from torch import Tensor

from metrics.compute import Request, compute_values
from metrics.lists import Metric, MetricList, skipped_metrics
from metrics.load import needs_reference
from training.processes import gather_places, share_places

Array = npt.NDArray[np.float64]
RewardFunction = Callable[[Tensor], Tensor]
"""(N, 3, H, W) in [0, 1] -> (N,) rewards of the held-out faces, in their order."""

N_NOISES = 2.0
"""A mean change counts where it is this many standard errors from 0."""
GRID_FACES = 8
HIGH_FREQUENCY = 0.25
"""Cycles a pixel; half of what an image can hold."""
MIN_SATURATION = 1e-3


@dataclass
class Look:
    """What one look saw: a value a face of each name, higher is better."""

    step: int
    rewards: dict[str, Array]
    judges: dict[str, Array]


@dataclass(frozen=True)
class Verdict:
    """How a look differs from the first."""

    changes: dict[str, tuple[float, float]]
    """Name -> (mean change, its standard error) over faces."""
    fallen: list[str]
    """Judges whose change is below 0 by more than its noise."""
    reward_rose: bool
    hacking: bool
    suspicious: bool = False


def choose_judges(perceptual: str, hq: Sequence[npt.NDArray[np.uint8]]) -> list[str]:
    """The judges that can be had here for these ground truths, none of which is the perceptual term of the loss.

    Of the metrics: PSNR, SSIM, GMSD (FSIM where GMSD is optimised), NIQE, and identity where its packages are installed
    and find a face. Of our own: `saturation` and `high_frequency`, minus their distance from the ground truth's.
    """
    asked = ["psnr", "ssim", "fsim" if perceptual == "gmsd" else "gmsd", "niqe_skvideo", "identity"]
    listed = MetricList(name="judges", version="1", description="", metrics=[Metric(name=name) for name in asked])
    here = [name for name in asked if name not in skipped_metrics(listed)]
    measured = measure_metrics(here, list(hq)[:1], list(hq)[:1])
    return [name for name in here if np.isfinite(measured[name]).all() or name == "psnr"] + [
        "saturation",
        "high_frequency",
    ]


def judge(names: Sequence[str], restored: Tensor, hq: Tensor) -> dict[str, Array]:
    """(N,) of each judge, higher is better; not finite where a metric cannot measure a face.

    Args:
        restored, hq: (N, 3, H, W) in [0, 1].
    """
    own = {
        "saturation": lambda: -(compute_saturation(restored) / compute_saturation(hq)).log().abs(),
        "high_frequency": lambda: -(compute_high_frequency(restored) / compute_high_frequency(hq)).log().abs(),
    }
    metrics = [name for name in names if name not in own]
    found = measure_metrics(metrics, to_bytes(restored), to_bytes(hq))
    return {name: own[name]().double().cpu().numpy() if name in own else found[name] for name in names}


def measure_metrics(
    names: Sequence[str],
    images: Sequence[npt.NDArray[np.uint8]],
    references: Sequence[npt.NDArray[np.uint8]],
    device: str = "cpu",
) -> dict[str, Array]:
    """(N,) of each metric, oriented so that higher is better; NaN where it cannot measure an image.

    Args:
        references: one an image; may be empty where no metric compares.
    """
    count = len(images)
    requests = [
        Request(name, place, count + place if needs_reference(name) else None)
        for name in names
        for place in range(count)
    ]
    values = compute_values(requests, [*images, *references], device)
    numbers = np.array([math.nan if value.value is None else value.value for value in values], dtype=np.float64)
    return dict(zip(names, numbers.reshape(len(names), count), strict=True))


def compute_saturation(images: Tensor) -> Tensor:
    """(N,) mean over pixels of max - min of red, green and blue; at least MIN_SATURATION."""
    return (images.amax(dim=1) - images.amin(dim=1)).mean(dim=(1, 2)).clamp_min(MIN_SATURATION)


def compute_high_frequency(images: Tensor) -> Tensor:
    """(N,) power of the luma above HIGH_FREQUENCY in either axis, where grids and checkerboards show; above 0."""
    luma = images.mean(dim=1)
    power = torch.fft.fft2(luma, norm="ortho").abs().square()
    down, across = (torch.fft.fftfreq(side, device=images.device).abs() for side in luma.shape[-2:])
    high = (down[:, None] > HIGH_FREQUENCY) | (across[None, :] > HIGH_FREQUENCY)
    high_power: Tensor = (power * high).mean(dim=(1, 2))
    return high_power + 1e-8


def compare(first: Look, now: Look, judges_needed: int) -> Verdict:
    """The rule: hacking is a live reward that rose while `judges_needed` judges fell, each beyond its noise."""
    changes = {
        name: _mean_and_error(values - before[name])
        for before, after in ((first.rewards, now.rewards), (first.judges, now.judges))
        for name, values in after.items()
    }
    fallen = [name for name in now.judges if changes[name][0] < -N_NOISES * changes[name][1]]
    mean, error = changes["live"]
    rose = mean > N_NOISES * error
    return Verdict(changes, fallen, rose, rose and len(fallen) >= judges_needed)


def _mean_and_error(differences: Array) -> tuple[float, float]:
    """Mean and standard error over the finite ones; (0, infinity) of fewer than two."""
    finite = differences[np.isfinite(differences)]
    if len(finite) < 2:
        return 0.0, math.inf
    return float(finite.mean()), float(finite.std(ddof=1) / math.sqrt(len(finite)))


@dataclass
class Monitor:
    """The held-out faces, what was first made of them, and all looks so far."""

    lq: Tensor
    hq: Tensor
    seeds: list[int]
    judges: list[str]
    judges_needed: int
    batch_size: int = 16
    first_restored: Tensor | None = None
    first: Look | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def look(self, step, restore, rewards, accelerator):  # type: ignore
        mine = share_places(accelerator, len(self.lq))
        chunks = [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]
        own = [(p, im) for c in chunks for p, im in zip(c, restore(self.lq[c], [self.seeds[p] for p in c]).cpu())]
        restored = torch.stack(gather_places(accelerator, own))

        def score(images):
            out = {}
            for name, reward in rewards.items():
                got = [(p, float(v)) for c in chunks for p, v in zip(c, reward(images[c], c).double().cpu())]
                out[name] = np.array(gather_places(accelerator, got))
            return out

        judged = judge(self.judges, restored, self.hq)
        now = Look(step, score(restored), judged)
        if self.first is None or self.first_restored is None:
            self.first_restored, self.first = restored, now
            verdict = None
        else:
            rescored = Look(self.first.step, score(self.first_restored), self.first.judges)
            verdict = compare(rescored, now, self.judges_needed)
        means = {name: float(np.nanmean(values)) for name, values in (now.rewards | now.judges).items()}
        self.history.append({"step": step, "means": means, "verdict": _as_json(verdict)})
        return means, verdict, restored

    def state_dict(self):  # type: ignore
        if self.first is None:
            return None
        return {
            "first_restored": self.first_restored,
            "step": self.first.step,
            "rewards": {k: torch.from_numpy(v) for k, v in self.first.rewards.items()},
            "judges": {k: torch.from_numpy(v) for k, v in self.first.judges.items()},
            "history": self.history,
        }

    def load_state_dict(self, state):  # type: ignore
        r, j = ({k: v.numpy() for k, v in state[n].items()} for n in ("rewards", "judges"))
        self.first = Look(state["step"], r, j)
        self.first_restored, self.history = state["first_restored"], state["history"]

    def write_grid(self, path: Path, restored: Tensor) -> None:
        """A PNG of the first GRID_FACES faces; its rows: what was given, first restored, restored now, ground truth."""
        assert self.first_restored is not None
        rows = [
            torch.cat([images[:GRID_FACES].cpu()[place] for place in range(min(GRID_FACES, len(images)))], dim=2)
            for images in (self.lq, self.first_restored, restored, self.hq)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        PilImage.fromarray(to_bytes(torch.cat(rows, dim=1)[None])[0]).save(path)


@torch.no_grad()
def _score(rewards: Mapping[str, RewardFunction], restored: Tensor) -> dict[str, Array]:
    return {name: reward(restored).double().cpu().numpy() for name, reward in rewards.items()}


def _as_json(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    changes = {name: {"mean": mean, "error": error} for name, (mean, error) in verdict.changes.items()}
    return {
        "changes": changes,
        "fallen": verdict.fallen,
        "reward_rose": verdict.reward_rose,
        "hacking": verdict.hacking,
    }


def to_bytes(images: Tensor) -> list[npt.NDArray[np.uint8]]:
    """(H, W, 3) uint8 of each of (N, 3, H, W) in [0, 1]."""
    scaled = (images.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [np.ascontiguousarray(image) for image in scaled]

"""Watch for reward hacking: a reward that rises because the reward model is fooled, not because faces get better.

A fixed set of held-out faces, degraded and restored with fixed seeds, is looked at every so many steps. Beside the
rewards stand judges that training never optimises. Everything is compared image by image with the first check, so that
faces and seeds do not add noise; `refl.tune.verdict` has the rule. The faces of a check are shared out over the
processes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor

from metrics.compute import Request, Value, compute_values
from metrics.lists import Metric, MetricList, find_missing_package, skipped_metrics
from metrics.load import needs_reference
from refl.faces.photo_files import encode_png, write_whole
from refl.tune.detectors import DETECTORS
from refl.tune.verdict import Array, Check, Verdict, compare
from training.processes import gather_places, share_places

log = logging.getLogger(__name__)

RewardFunction = Callable[[Tensor], Tensor]
"""(N, 3, H, W) in [0, 1] -> (N,) rewards of the held-out faces, in their order."""
FaceRewards = Callable[[Tensor, Sequence[int]], Tensor]
"""(N, 3, H, W) in [0, 1] on the CPU, and which of the held-out faces these are -> (N,) rewards."""

GRID_FACES = 8
METRICS = (
    (("psnr", "ssim", "gmsd"), ("fsim", "vif")),
    (("identity",), ("landmark_distance",)),
    (("niqe_skvideo",), ()),
)
"""The metrics that judge, by family: those asked for, and the spares that take the place of optimised ones."""
KIN = {"ms_ssim": "ssim", "ssimc": "ssim", "psnry": "psnr", "niqe": "niqe_skvideo"}
"""Metrics that are no judges, and which judge says nearly the same."""


def choose_judges(optimized: Collection[str], hq: Sequence[npt.NDArray[np.uint8]]) -> list[str]:
    """The judges that can be had here for these ground truths, none of which training optimises.

    Of the metrics: PSNR, SSIM, GMSD, NIQE, and identity where its packages are installed and find a face; for one that
    is optimised the next spare of its family. Then the DETECTORS.

    Args:
        optimized: names of all metrics that the loss has a gradient of, by itself or through the reward.
    """
    banned = {KIN.get(name, name) for name in optimized}
    judges: list[str] = []
    for usual, spares in METRICS:
        wanted = [name for name in (*usual, *spares) if name not in banned]
        for name in wanted:
            if sum(one in judges for one in wanted) < len(usual) and _is_measurable(name, hq):
                judges.append(name)
    return judges + [name for name in DETECTORS if name not in banned]


def _is_measurable(name: str, hq: Sequence[npt.NDArray[np.uint8]]) -> bool:
    """Whether a metric is to be had here, without a download, and has a number for the first face."""
    listed = MetricList(name="judges", version="1", description="", metrics=[Metric(name=name)])
    if name in skipped_metrics(listed) or find_missing_package(name) is not None:
        return False
    first = list(hq)[:1]
    return name == "psnr" or bool(np.isfinite(measure_metrics([name], first, first)[name]).all())


def judge(names: Sequence[str], restored: Tensor, hq: Tensor) -> dict[str, Array]:
    """(N,) of each judge, higher is better; not finite where a metric cannot measure a face.

    Args:
        restored, hq: (N, 3, H, W) in [0, 1].
    """
    metrics = [name for name in names if name not in DETECTORS]
    with in_float32(restored):
        found = measure_metrics(metrics, to_bytes(restored), to_bytes(hq))
        for name in set(names) & set(DETECTORS):
            found[name] = DETECTORS[name].judge(restored.float(), hq.float()).double().cpu().numpy()
    return {name: found[name] for name in names}


@contextmanager
def in_float32(images: Tensor) -> Iterator[None]:
    """The block measures images on any device as ever: whoever trains by autocast is judged in float32 all the same."""
    with torch.autocast("cpu", enabled=False), torch.autocast(images.device.type, enabled=False):
        yield


def measure_metrics(
    names: Sequence[str],
    images: Sequence[npt.NDArray[np.uint8]],
    references: Sequence[npt.NDArray[np.uint8]],
    device: str = "cpu",
) -> dict[str, Array]:
    """(N,) of each metric, oriented so that higher is better; NaN where it cannot measure an image.

    Args:
        references: one per image; may be empty where no metric compares.
    """
    values = compute_all(names, images, references, device)
    numbers = np.array([math.nan if value.value is None else value.value for value in values], dtype=np.float64)
    return dict(zip(names, numbers.reshape(len(names), len(images)), strict=True))


def compute_all(
    names: Sequence[str],
    images: Sequence[npt.NDArray[np.uint8]],
    references: Sequence[npt.NDArray[np.uint8]],
    device: str,
) -> list[Value]:
    """As `measure_metrics`, each metric's N values behind those of the one before, or why an image has none.

    Raises:
        MetricError: as of `compute_values`.
    """
    count = len(images)
    requests = [
        Request(name, place, count + place if needs_reference(name) else None)
        for name in names
        for place in range(count)
    ]
    return compute_values(requests, [*images, *references], device)


@dataclass(frozen=True)
class Seen:
    """Measurements of one face by one process."""

    rewards: dict[str, float]
    first_rewards: dict[str, float]
    """Of what was restored first, by the models as they are now."""
    judges: dict[str, float]
    image: Tensor | None
    """(3, H, W) uint8; None where nobody will see it."""


@dataclass
class Monitor:
    """The held-out faces, what was first made of them, and all checks so far; the same on every process."""

    lq: Tensor
    """(N, 3, H, W) in [0, 1], on the CPU; hq too."""
    hq: Tensor
    seeds: list[int]
    judges: list[str]
    judges_needed: int
    """Families of judges, see `refl.tune.verdict`."""
    batch_size: int = 16
    """Faces restored, rewarded and judged at a time."""
    first_restored: Tensor | None = None
    """(N, 3, H, W) uint8."""
    first: Check | None = None
    best: dict[str, Array] | None = None
    """Of each judge, its values at its best good check: what falls are measured from; None for the first check."""
    now: Check | None = None
    """The last check."""
    history: list[dict[str, Any]] = field(default_factory=list)

    def check(
        self,
        step: int,
        restore: Callable[[Tensor, Sequence[int]], Tensor],
        rewards: Mapping[str, FaceRewards],
        accelerator: Accelerator,
    ) -> tuple[dict[str, float], Verdict | None, Tensor]:
        """Restore, reward and judge the held-out faces, each process its share. A collective: all processes call it.

        Args:
            restore: (N, 3, H, W) on the CPU and N seeds -> (N, 3, H, W) in [0, 1] on any device.
            rewards: `live`, the model that trains with the restorer, and `frozen`, the one that training began with;
                empty where nothing is rewarded, and then nothing is called hacking.
        Returns:
            (means by name for the progress line; the comparison with the first check, None at the first; (n, 3, H, W)
            uint8 of the first GRID_FACES faces as restored now), the same on every process.
        """
        mine = share_places(accelerator, len(self.lq))
        own: list[tuple[int, Seen]] = []
        for start in range(0, len(mine), self.batch_size):
            places = mine[start : start + self.batch_size]
            own += zip(places, self._measure(places, restore, rewards), strict=True)
        seen = gather_places(accelerator, own)
        self.now = now = Check(step, _collect(row.rewards for row in seen), _collect(row.judges for row in seen))
        restored = torch.stack([row.image for row in seen if row.image is not None])
        verdict = None
        if self.first is None:
            self.first_restored, self.first = restored, now
        else:
            # what is now the live model scores the first outputs anew: its own drift is not a gain
            before = {**self.first.judges, **(self.best or {})}
            rescored = Check(self.first.step, _collect(row.first_rewards for row in seen), before)
            verdict = compare(rescored, now, self.judges_needed, self.is_suspicious()) if rewards else None
        numbers = {name: values[~np.isnan(values)] for name, values in (now.rewards | now.judges).items()}
        means = {name: float(values.mean()) for name, values in numbers.items() if len(values)}
        if accelerator.is_main_process:
            warn_of_missing({name: len(self.lq) - len(values) for name, values in numbers.items()}, len(self.lq), step)
        self.history.append({"step": step, "means": means, "verdict": verdict.as_json() if verdict else None})
        return means, verdict, restored[:GRID_FACES]

    def is_suspicious(self) -> bool:
        """Whether the last check was; not where training has gone back since, which begins a new row."""
        verdict = self.history[-1]["verdict"] if self.history else None
        if self.history and self.history[-1].get("brake", {}).get("action") == "back":
            return False
        return bool(verdict and verdict.get("suspicious", verdict["hacking"]))  # earlier versions told hacking alone

    def hold_good(self) -> None:
        """Take the last check as a good one: a judge that was never better is measured from here."""
        assert self.first is not None
        assert self.now is not None
        best = self.best or self.first.judges
        self.best = {
            name: values if _mean(values) > _mean(best[name]) else best[name]
            for name, values in self.now.judges.items()
        }

    @torch.no_grad()
    def _measure(
        self,
        places: list[int],
        restore: Callable[[Tensor, Sequence[int]], Tensor],
        rewards: Mapping[str, FaceRewards],
    ) -> list[Seen]:
        """Restore and measure these faces. The pixels rewarded, judged and drawn are the same, of 8 bits."""
        restored = to_uint8(restore(self.lq[places], [self.seeds[place] for place in places]))
        images = restored.float() / 255
        given = {name: reward(images, places).double().tolist() for name, reward in rewards.items()}
        first_given: dict[str, list[float]] = {}
        if self.first_restored is not None:
            before = self.first_restored[places].float() / 255
            first_given = {name: reward(before, places).double().tolist() for name, reward in rewards.items()}
        judged = judge(self.judges, images, self.hq[places])
        return [
            Seen(
                {name: values[row] for name, values in given.items()},
                {name: values[row] for name, values in first_given.items()},
                {name: float(values[row]) for name, values in judged.items()},
                restored[row].clone() if self.first_restored is None or place < GRID_FACES else None,
            )
            for row, place in enumerate(places)
        ]

    def write_grid(self, path: Path, restored: Tensor) -> None:
        """A PNG of the first GRID_FACES faces; its rows: what was given, first restored, restored now, ground truth.

        Args:
            restored: as `check` returns it.
        """
        assert self.first_restored is not None
        rows = [
            torch.cat(list(images[:GRID_FACES]), dim=2)
            for images in (
                to_uint8(self.lq[:GRID_FACES]),
                self.first_restored,
                restored,
                to_uint8(self.hq[:GRID_FACES]),
            )
        ]
        write_whole(path, encode_png(torch.cat(rows, dim=1).permute(1, 2, 0).contiguous().numpy()))

    def state_dict(self) -> dict[str, Any] | None:
        """Return what a continuation needs: the first check, and the history; None before the first check."""
        if self.first is None:
            return None
        return {
            "first_restored": self.first_restored,
            "step": self.first.step,
            "rewards": {name: torch.from_numpy(values) for name, values in self.first.rewards.items()},
            "judges": {name: torch.from_numpy(values) for name, values in self.first.judges.items()},
            "best": self.best and {name: torch.from_numpy(values) for name, values in self.best.items()},
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; a judge that was not to be had then judges the first check now."""
        rewards, judges = ({name: v.cpu().numpy() for name, v in state[part].items()} for part in ("rewards", "judges"))
        first_restored = state["first_restored"].cpu()
        if first_restored.is_floating_point():  # as earlier versions kept it
            first_restored = to_uint8(first_restored)
        new = [name for name in self.judges if name not in judges]
        judges |= judge(new, first_restored.float() / 255, self.hq) if new else {}
        self.first = Check(state["step"], rewards, {name: judges[name] for name in self.judges})
        self.first_restored = first_restored
        best = state.get("best")  # earlier versions had no brake
        self.best = best and {name: values.cpu().numpy() for name, values in best.items() if name in self.judges}
        self.history = state["history"]


def warn_of_missing(missing: Mapping[str, int], faces: int, step: int) -> None:
    """Warn of every reward and judge that gave no number, so that nobody takes its silence for its consent.

    Args:
        missing: of how many of so many faces each gave none.
    """
    for name, count in missing.items():
        if count:
            log.warning(
                "step %s: %s gave no number for %s of %s held-out faces; they do not count", step, name, count, faces
            )


def _mean(values: Array) -> float:
    """Over the finite ones; minus infinity where there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else -math.inf


def _collect(rows: Iterable[dict[str, float]]) -> dict[str, Array]:
    """(N,) of each name, of N faces' values."""
    found = list(rows)
    return {name: np.array([row[name] for row in found], dtype=np.float64) for name in found[0]}


def to_uint8(images: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 on the CPU of (N, 3, H, W) in [0, 1]."""
    return (images.detach().clamp(0, 1) * 255).round().byte().cpu()


def to_bytes(images: Tensor) -> list[npt.NDArray[np.uint8]]:
    """(H, W, 3) uint8 of each of (N, 3, H, W) in [0, 1]."""
    return list(stack_bytes(images))


def stack_bytes(images: Tensor) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3) uint8 of (N, 3, H, W) in [0, 1]."""
    return np.ascontiguousarray(to_uint8(images).permute(0, 2, 3, 1).numpy())

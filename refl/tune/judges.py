"""Score restored images by a judge that has no gradient: a metric, identity, a remote reward, people's answers.

For the ways of training that compare the images of one face with one another and need no more than numbers. A metric
and a remote reward see the images as a file would have them, in 8 bits.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from db.errors import UserError
from metrics.compute import Value, prepare
from metrics.face_network import PACKAGE, FaceNetwork, load_face_network
from metrics.lists import Column, MetricError, metric_version
from metrics.load import needs_reference
from refl.tune.identity import compute_identity_loss
from refl.tune.judge_names import IDENTITY, PEOPLE, check_judge, find_judging_metric
from refl.tune.monitor import compute_all, in_float32, stack_bytes, to_bytes
from refl.tune.people_judge import load_people_judge
from reward.serve.client import RemoteReward
from runs.options import Place

log = logging.getLogger(__name__)

IDENTITY_VERSION = 1
"""Raised by hand when the values of the judge identity change."""
MAX_NAMED = 4


class Judge(Protocol):
    """Score restored images; needs no gradient."""

    @property
    def name(self) -> str:
        """For logs; of letters, digits and _+.-"""

    @property
    def version(self) -> str:
        """What its values depend on: those of two versions are never compared."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that training by it optimises, so that the monitor does not judge by them."""

    def score(
        self, images: Tensor, lq: Tensor, hq: Tensor, captions: Sequence[str | None], names: Sequence[str]
    ) -> Tensor:
        """(N,) float32 on the CPU, higher is better, finite.

        Args:
            images, lq, hq: (N, 3, H, W) RGB in [0, 1], on any device, without gradient.
            captions: N of them; None where there is none.
            names: of the N faces; the images of one stand next to one another, a group.
        Raises:
            UserError: there is no value for them.
        """


@dataclass(frozen=True)
class MetricJudge:
    """A metric of `metrics`, against the ground truth where it compares."""

    metric: str
    version: str
    device: str

    @property
    def name(self) -> str:
        """'metric-psnr'."""
        return f"metric-{self.metric}"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Itself."""
        return (self.metric,)

    def score(
        self,
        images: Tensor,
        lq: Tensor,  # noqa: ARG002
        hq: Tensor,
        captions: Sequence[str | None],  # noqa: ARG002
        names: Sequence[str],
    ) -> Tensor:
        """As of `Judge`. An image without a value is worth as little as the worst of its group.

        Where a group has no value at all, all its images are worth 0; a warning names the face.

        Raises:
            UserError: no image has a value, and not for want of a face.
        """
        values = measure(self.metric, images, hq, self.device)
        return torch.tensor(fill_missing(self.metric, values, names), dtype=torch.float32)


@dataclass(frozen=True)
class IdentityJudge:
    """The closeness of a face's 128 numbers to the ground truth's; for faces aligned as FFHQ's."""

    network: FaceNetwork
    device: torch.device
    version: str
    name: str = IDENTITY
    metrics: tuple[str, ...] = (IDENTITY,)

    def score(
        self,
        images: Tensor,
        lq: Tensor,  # noqa: ARG002
        hq: Tensor,
        captions: Sequence[str | None],  # noqa: ARG002
        names: Sequence[str],  # noqa: ARG002
    ) -> Tensor:
        """As of `Judge`: minus the squared distance, 0 for the same picture, above -0.36 mostly the same person."""
        with torch.no_grad():
            images, hq = (faces.detach().to(self.device).float().clamp(0, 1) for faces in (images, hq))
            return -compute_identity_loss(self.network, images, hq).cpu()


@dataclass(frozen=True)
class RemoteJudge:
    """A reward that is served over HTTP, by `python -m reward serve` or by whoever keeps to its contract."""

    remote: RemoteReward
    name: str
    version: str
    metrics: tuple[str, ...] = ()

    def score(
        self,
        images: Tensor,
        lq: Tensor,
        hq: Tensor,
        captions: Sequence[str | None],
        names: Sequence[str],  # noqa: ARG002
    ) -> Tensor:
        """As of `Judge`.

        Raises:
            UserError: as of `RemoteReward.score`.
        """
        about = self.remote.describe()
        seen = None
        if about.needs_input:
            seen = stack_bytes(lq if about.input_photo == "lq" else hq)
        return torch.from_numpy(self.remote.score(stack_bytes(images), seen, list(captions)))


def measure(metric: str, images: Tensor, hq: Tensor, device: str) -> list[Value]:
    """The metric of each of (N, 3, H, W) images in 8 bits, as `annotate measure` has it, against hq where it compares.

    Raises:
        UserError: one image is too much for the memory.
    """
    references = to_bytes(hq) if needs_reference(metric) else []
    try:
        with in_float32(images):
            return compute_all([metric], to_bytes(images), references, device)
    except MetricError as error:
        raise UserError(f"{metric} cannot be the judge. {error}") from error


def fill_missing(metric: str, values: Sequence[Value], names: Sequence[str]) -> list[float]:
    """The values, with the least of a face's own where one is missing, and 0 where all of a face are.

    Raises:
        UserError: no image has one, and not because nobody found a face in it.
    """
    failures = [value.failure for value in values if value.failure is not None]
    if failures and len(failures) == len(values) and not failures[0].startswith("FaceError"):
        raise UserError(
            f"The judge {metric} has no value for {name_some(names)}: {failures[0]}. Take another judge, or faces that "
            "it can measure."
        )
    if failures:
        missing = [name for name, value in zip(names, values, strict=True) if value.value is None]
        log.warning("%s has no value for %s of %s images, of %s", metric, len(missing), len(names), name_some(missing))
    least: dict[str, float] = {}
    for name, value in zip(names, values, strict=True):
        if value.value is not None:
            least[name] = min(value.value, least.get(name, math.inf))
    return [
        least.get(name, 0.0) if value.value is None else value.value for name, value in zip(names, values, strict=True)
    ]


def name_some(names: Sequence[str]) -> str:
    """The first few faces, each once."""
    different = list(dict.fromkeys(names))
    more = f" and {len(different) - MAX_NAMED:,} more" if len(different) > MAX_NAMED else ""
    return ", ".join(different[:MAX_NAMED]) + more


def load_judge(
    asked: str,
    device: torch.device | str,
    weights: Path,  # noqa: ARG001
    place: Place,
    people_answers: int = 1,
) -> Judge:
    """The judge of that name, ready on a device.

    Args:
        asked: see `refl.tune.judge_names.is_judge`.
        device: where it computes, if it does here.
        weights: folder of published weight files.
        place: where the project is whose people are asked.
        people_answers: wanted of people for each pair or task.
    Raises:
        UserError: as of `check_judge`; or nobody knows the metric, or what it needs cannot be had.
    """
    check_judge(asked)
    if (metric := find_judging_metric(asked)) is not None:
        return load_metric_judge(metric, str(device))
    if asked == PEOPLE:
        return load_people_judge(place, people_answers)
    if asked == IDENTITY:
        return load_identity_judge(torch.device(device))
    return load_remote_judge(asked)


def load_identity_judge(device: torch.device) -> IdentityJudge:
    """dlib's network on a device.

    Raises:
        UserError: its weights are not here, or are another file.
    """
    try:
        network = load_face_network(str(device))
    except MetricError as error:
        raise UserError(f"Identity cannot be the judge. {error}") from error
    return IdentityJudge(network, device, f"facereward {IDENTITY_VERSION}, {PACKAGE} {metadata.version(PACKAGE)}")


def load_remote_judge(url: str) -> RemoteJudge:
    """A served reward, asked for its name and version.

    Raises:
        UserError: it cannot be reached, refuses the token, or keeps to another contract.
    """
    remote = RemoteReward(url)
    about = remote.describe()
    return RemoteJudge(remote, re.sub(r"[^A-Za-z0-9_+.-]", "_", about.name), about.version)


def load_metric_judge(metric: str, device: str) -> MetricJudge:
    """A metric with its weights loaded, downloaded where they are not there.

    Raises:
        UserError: nobody knows it, it has no value for one image, or what it needs cannot be had.
    """
    try:
        version = metric_version(metric)
        prepare([Column(metric, version, "hq" if needs_reference(metric) else "")], device)
    except MetricError as error:
        raise UserError(f"{metric} cannot be the judge. {error}") from error
    return MetricJudge(metric, version, device)

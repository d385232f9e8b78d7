"""Decide when a rise of the reward was bought with worse faces: the rule of the hacking monitor.

A judge has fallen where its mean change over the faces is below minus its least effect, beyond the faces' noise. Noise
alone would not do: a change of the weights moves all faces together, so that a thousandth of a decibel can be many
standard errors. Judges that see the same thing are a family with one vote. One check that says so is suspicious; two in
a row are hacking.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

Array = npt.NDArray[np.float64]

CONFIDENCE = 0.975
"""Of the one-sided bound of a mean change, by Student's t over faces: few faces must agree the more."""
LEAST_EFFECTS = {
    "psnr": 0.05,
    "ssim": 0.001,
    "fsim": 0.001,
    "gmsd": 0.001,
    "vif": 0.002,
    "identity": 0.01,
    "landmark_distance": 0.01,
    "niqe_skvideo": 0.1,
    "saturation": 0.02,
    "contrast": 0.01,
    "high_frequency": 0.1,
    "grid": 0.2,
    "texture": 0.1,
    "reward_gap": 0.1,
}
"""The smallest fall that counts, in each judge's own units: decibels; shares of 1; distance of two faces (0.6 is
another person), of two eyes; NIQE; logarithms of the ratio to the ground truth's; spreads of the reward over the
held-out faces."""
SLIP = 0.25
"""Share of the least effects beyond which a check is none to go back to."""
LEAST_RISE = 0.1
"""The smallest rise of the live reward that counts, in spreads of it over what was first restored."""
FAMILIES = {
    "fidelity": ("psnr", "ssim", "fsim", "gmsd", "vif"),
    "identity": ("identity", "landmark_distance"),
    "naturalness": ("niqe_skvideo",),
    "spectrum_and_colour": ("saturation", "contrast", "high_frequency", "texture"),
    "patterns": ("grid",),
    "reward_gap": ("reward_gap",),
}
"""Families of judges that share a vote: the family has fallen where any of them has.

A grid is a family of its own: on what a restorer leaves too smooth it brings the high frequencies nearer to the ground
truth's, and no honest gain makes one. Texture is none, for an honest gain in PSNR smooths skin and contrast together.
"""


@dataclass
class Check:
    """Measurements of one check: a value per face of each name, higher is better."""

    step: int
    rewards: dict[str, Array]
    judges: dict[str, Array]


@dataclass(frozen=True)
class Verdict:
    """Difference between a check and the first."""

    changes: dict[str, tuple[float, float]]
    """Name -> (mean change, its standard error) over faces; `reward_gap` in spreads of the reward, all else as is."""
    fallen: list[str]
    """Judges that fell by more than their least effect, beyond noise."""
    families: list[str]
    """Families with a fallen judge."""
    reward_rose: bool
    suspicious: bool
    """The reward rose and enough families fell, at this check."""
    hacking: bool
    """The check before was suspicious too."""
    slipping: list[str]
    """Judges that fell by more than SLIP of their least effect."""
    slips: bool
    """It would be suspicious if so little counted: no check to go back to."""

    def as_json(self) -> dict[str, Any]:
        """For the run's record."""
        changes = {name: {"mean": mean, "error": error} for name, (mean, error) in self.changes.items()}
        return {**vars(self), "changes": changes}


def compare(first: Check, now: Check, families_needed: int, before_suspicious: bool = False) -> Verdict:
    """The rule: a live reward that rose while this many families of judges fell, at this check and at the one before.

    Args:
        first: with the rewards that the models give now to what was restored first.
        families_needed: of the reward's gap and the judges' families; never more than the judges have that gave numbers
            at both checks.
        before_suspicious: what the check before was.
    """
    differences = {
        name: values - before[name]
        for before, after in ((first.rewards, now.rewards), (first.judges, now.judges))
        for name, values in after.items()
    }
    judges = list(now.judges)
    rises = {name: differences[name] / compute_spread(first.rewards[name]) for name in now.rewards}
    if "frozen" in rises:
        differences["reward_gap"] = rises["frozen"] - rises["live"]
        judges.append("reward_gap")
    fallen, slipping = (
        [name for name in judges if is_above(-differences[name], share * LEAST_EFFECTS.get(name, 0.0))]
        for share in (1, SLIP)
    )
    families = list_families(fallen)
    measured = {name for name in now.judges if np.isfinite(differences[name]).any()}
    there = max(1, sum(bool(set(members) & measured) for members in FAMILIES.values()))
    rose = is_above(rises["live"], LEAST_RISE)
    needed = min(families_needed, there)
    suspicious, slips = rose and len(families) >= needed, rose and len(list_families(slipping)) >= needed
    changes = {name: mean_and_error(values) for name, values in differences.items()}
    hacking = suspicious and before_suspicious
    return Verdict(changes, fallen, families, rose, suspicious, hacking, slipping, slips)


def list_families(fallen: Collection[str]) -> list[str]:
    """The families that these judges are of."""
    return [family for family, members in FAMILIES.items() if set(members) & set(fallen)]


def is_above(differences: Array, least: float) -> bool:
    """Whether the mean is above `least`, beyond the noise over faces."""
    mean, error = mean_and_error(differences)
    if not math.isfinite(error):
        return False
    faces = int(np.isfinite(differences).sum())
    return bool(mean - student.ppf(CONFIDENCE, faces - 1) * error > least)


def mean_and_error(differences: Array) -> tuple[float, float]:
    """Mean and standard error over the finite ones; (0, infinity) of fewer than two."""
    finite = differences[np.isfinite(differences)]
    if len(finite) < 2:
        return 0.0, math.inf
    return float(finite.mean()), float(finite.std(ddof=1) / math.sqrt(len(finite)))


def compute_spread(rewards: Array) -> float:
    """The standard deviation over the finite ones, what a rise is measured in; infinite where it is 0 or unknown."""
    finite = rewards[np.isfinite(rewards)]
    spread = float(finite.std(ddof=1)) if len(finite) > 1 else 0.0
    return spread or math.inf

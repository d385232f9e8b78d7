"""Read the licences of installed packages from their metadata."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from licences.terms import NOT_STATED, Licensed, Terms, normalise, read_terms

REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"
UNSAID = {
    "openai-clip": "MIT",
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
}
"""Licences that packages have and their metadata leave out."""
INSTEAD = {"pyiqa": "measure with --metrics permissive, and tune with --perceptual gmsd"}


def read_package(name: str) -> Licensed:
    """An installed package's licence, by its License-Expression, else its License, else its classifiers.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    told = metadata.metadata(name)
    classified = [
        normalise(row.split(" :: ")[-1])
        for row in told.get_all("Classifier") or []
        if row.startswith("License :: ") and row.split(" :: ")[-1] not in ("OSI Approved", "DFSG approved")
    ]
    short = normalise((_first(told, "License")).strip().partition("\n")[0])
    candidates = [_first(told, "License-Expression"), short, " AND ".join(classified), UNSAID.get(name, "")]
    licence = next((words for words in candidates if words and read_terms(words) != Terms.unknown), NOT_STATED)
    return Licensed("code", f"{name} {told['Version']}", licence, INSTEAD.get(name, ""))


def _first(told: metadata.PackageMetadata, field: str) -> str:
    return next((str(value) for value in told.get_all(field) or []), "")


def list_needed(names: Iterable[str]) -> dict[str, metadata.Distribution]:
    """The packages of these names that are installed, and all that they need, by name."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [(canonicalize_name(name), frozenset[str]()) for name in names]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for line in found[name].requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    return found


def parse_requirements(text: str) -> list[Requirement]:
    """What the lines of a requirements file ask for; comments are left out."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


def read_requirements(path: Path = REQUIREMENTS) -> list[str]:
    """The names of the packages that a requirements file asks for."""
    return [canonicalize_name(one.name) for one in parse_requirements(path.read_text(encoding="utf-8"))]


def list_code() -> list[Licensed]:
    """The licences of all that requirements.txt asks for and that needs, as far as it is installed."""
    return [read_package(name) for name in list_needed(read_requirements())]

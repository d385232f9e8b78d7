"""Measuring, fitting, labelling and training where pyiqa is not installed: in an environment of what is left then."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import venv
from pathlib import Path

import pytest
from sqlalchemy import select

from annotate.judging.people import add_person
from db.models import Method, MetricValue, Pair
from db.session import Database
from licences.packages import list_needed, read_requirements
from licences.terms import Terms
from runs.licences import read_recorded
from tests.making import ROOT, fetch, judge, make_project

pytest.importorskip("torch")

IMPORT_ALL = """
import importlib, json, pkgutil, sys
faults = {}
for package in %s:
    for found in pkgutil.walk_packages([package], package + "."):
        if ".migrations" not in found.name and not found.name.endswith("__main__"):
            try:
                importlib.import_module(found.name)
            except ModuleNotFoundError as error:
                faults[found.name] = error.name
print(json.dumps(faults))
"""
PACKAGES = ["pixels", "db", "metrics", "runs", "dataset", "training", "annotate", "reward", "refl", "ui"]
OPTIONAL = {"ray", "submitit"}
"""What no environment needs to have."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with what requirements.txt names but pyiqa, and what that needs: links, nothing is copied."""
    folder = tmp_path_factory.mktemp("without-pyiqa")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    site = next(folder.glob("lib/python*/site-packages"))
    for distribution in list_needed({*read_requirements()} - {"pyiqa"}).values():
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            target = Path(str(distribution.locate_file(top)))
            if target.exists() and not (site / top).exists():
                (site / top).symlink_to(target)
    return folder / "bin" / "python"


def run(python: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(python), *map(str, words)],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_every_module_is_imported_without_pyiqa(python: Path) -> None:
    done = run(python, "-c", IMPORT_ALL % PACKAGES)
    assert done.returncode == 0, done.stderr
    faults = json.loads(done.stdout.splitlines()[-1])
    assert {name: missing for name, missing in faults.items() if missing not in OPTIONAL} == {}


@pytest.fixture
def judged(data: Path, tmp_path: Path, database: Database) -> Database:
    """16 photos of three methods, 40 of their 48 pairs judged by one person."""
    with database.write() as session:
        make_project(session, data, tmp_path / "photos", 16, ("m1", "m2", "m3"), (128, 128))
        person = add_person(session, "ben")
        session.flush()
        for number, pair_id in enumerate(session.scalars(select(Pair.id).order_by(Pair.id).limit(40)).all()):
            judge(session, person.id, pair_id, "ab"[number % 3 == 0])
    return database


def test_photos_are_measured_and_labelled_without_pyiqa(python: Path, data: Path, judged: Database) -> None:
    assert "No module named 'pyiqa'" in run(python, "-c", "import pyiqa").stderr
    refused = run(python, "-m", "annotate", "measure", "--data", data)
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: The metric nlpd needs pyiqa (it is not installed): `pip install pyiqa`, whose licence forbids "
        "commercial use, or measure with --metrics permissive, which needs none.\n"
    )
    assert fetch(judged, select(MetricValue.id)) == []
    permissive = ("--metrics", "permissive", "--data", data)
    for words in (
        ("measure", "--workers", "1", *permissive),
        ("fit", "--quick", *permissive),
        ("label", "--data", data),
    ):
        done = run(python, "-m", "annotate", *words)
        assert done.returncode == 0, done.stderr
    assert fetch(judged, select(MetricValue.failure).where(MetricValue.failure.is_not(None))) == []


@pytest.mark.slow
def test_a_whole_round_needs_no_pyiqa(python: Path, data: Path, judged: Database) -> None:
    few = ("--max-reward-steps", "2", "--max-refl-steps", "1", "--no-measure-held-out")
    planned = run(python, "-m", "runs", "round", "--dry-run", "--metrics", "permissive", *few, "--data", data)
    assert planned.returncode == 0, planned.stderr
    commands = [shlex.split(line)[1:] for line in planned.stdout.splitlines() if line.startswith("   python -m ")]
    assert len(commands) == 8
    for command in commands:
        done = run(python, *command, "--data", data)
        assert done.returncode == 0, (command, done.stderr)
    assert "round-1" in fetch(judged, select(Method.name))
    made = {name: read_recorded(data / "rounds" / "1" / name) for name in ("dataset", "reward/best", "restorer/tuned")}
    photos = [one for one in made["dataset"] if one.name == "the project's photos"]
    assert photos
    assert photos[0] in made["reward/best"]
    assert {*made["dataset"], *made["reward/best"]} <= {*made["restorer/tuned"]}
    assert [one.name for one in made["restorer/tuned"] if one.terms is Terms.non_commercial] == ["tiny"]
    assert "**non-commercial**" in (data / "rounds" / "1" / "restorer" / "tuned" / "README.md").read_text()
    evaluated = ("--method", "tiny", "--method", f"round-1={data}/rounds/1/restorer/tuned", "--faces", data / "images")
    done = run(python, "-m", "refl", "evaluate", *evaluated, "--data", data)
    assert done.returncode == 0, done.stderr

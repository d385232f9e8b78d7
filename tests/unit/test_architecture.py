"""Check that imports point one way, the app stays light, and docs/commands.md is that of the commands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

from runs.command_table import write_table

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "pixels": set(),
    "licences": set(),
    "db": {"pixels"},
    "metrics": {"pixels", "licences"},
    "runs": {"licences", "db", "pixels"},
    "dataset": {"licences", "pixels", "db", "runs", "metrics"},
    "training": {"licences", "pixels", "db", "runs", "metrics"},
    "annotate": {"licences", "pixels", "db", "runs", "metrics", "dataset"},
    "reward": {"licences", "pixels", "db", "runs", "metrics", "dataset", "training"},
    "refl": {"licences", "pixels", "db", "runs", "metrics", "training", "reward"},
    "ui": {"licences", "pixels", "db", "runs", "metrics", "dataset", "annotate", "reward", "refl"},
    "app": {"licences", "pixels", "db", "runs", "metrics", "dataset", "annotate", "reward", "refl", "ui"},
}
"""What each package may import of ours, from the design.

pixels, licences < db, metrics < runs < dataset, training < annotate, reward < refl < ui < app.
"""
FLOORS = {
    "annotate": ("judging", "ingest", "measure report", "exchange studies", "labeler prolific", "commands __main__"),
    "reward": (
        "model",
        "read_hpdv2",
        "data",
        "train score construct",
        "evaluate combine serve publish",
        "commands __main__",
    ),
    "refl": ("faces published", "restorers", "restore pretrain tune", "evaluate publish", "commands __main__"),
    "ui": (
        *(
            "address errors plain_pages",
            "context",
            "html",
            "gate navigation run_panel",
            "pairing filling serving",
            "demo_section",
        ),
        *("label pages autolabel restore train runs mounts", "overview studies", "server demo"),
    ),
}
"""The rooms of each package that has some, from the ground up: a room may import those below it alone."""
WEB = {"gradio", "fastapi", "starlette", "uvicorn"}
SERVES = {"starlette", "uvicorn"}
"""Of these, what reward/serve imports: it answers programs and has no pages."""
SERVING_ROOM = Path("reward/serve")
LIGHT = ("pixels", "licences", "db", "runs", "dataset", "annotate", "ui", "app")
"""Packages that the app's process loads: no torch in any of their files."""


DECODERS = ("PilImage.open", "Image.open", "cv2.imread", "cv2.imdecode", "imageio.imread", "skimage.io.imread")
"""Calls that decode an image file; `pixels.read` alone may make them, and these for the reason given."""
DECODES = {
    "pixels/read.py": "the reader",
    "reward/evaluate/robustness.py": "a JPEG that it has made itself, in memory",
    "refl/faces/degrade.py": "a JPEG that it has made itself, in memory",
    "ui/restore/results.py": "the size of a photo, not its pixels",
}
NO_VERBS = (
    "a an the this that these those it its our their any each every all one two many more most some no not and or "
    "what how where when whether who whose whom which why is are was has "
    "as at by for from in into of on to with without between beside behind"
)
"""Words that a module's first line does not begin with: it begins with a verb."""


def python_files(root: Path) -> list[Path]:
    """Our modules, as paths relative to the root."""
    files = [path for package in MAY_IMPORT for path in (root / package).rglob("*.py")]
    return sorted(path.relative_to(root) for path in [*files, *root.glob("app.py")])


def imports(source: str, *, at_load: bool = False) -> Iterator[tuple[int, str]]:
    """(line, top package) of each import; `at_load` leaves out those inside functions and `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if at_load and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_load and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level if node.level else str(node.module).partition(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else "?"
            yield node.lineno, str(name).partition(".")[0]
        waiting.extend(ast.iter_child_nodes(node))


def find_modules(root: Path) -> dict[str, Path]:
    """Our modules by dotted name; a package by the name of its folder."""
    return {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in python_files(root)}


def find_arrows(root: Path) -> nx.DiGraph:
    """Which of our modules imports which, imports inside functions included."""
    modules = find_modules(root)
    arrows = nx.DiGraph()
    for name, file in modules.items():
        for node in ast.walk(ast.parse((root / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [target if target in modules else node.module for target in inside]
            else:
                continue
            arrows.add_edges_from((name, target) for target in targets if target in modules)
    return arrows


def find_circles(root: Path) -> list[list[str]]:
    """Modules that import one another, in a circle of any length."""
    return [sorted(circle) for circle in nx.strongly_connected_components(find_arrows(root)) if len(circle) > 1]


def find_room(module: str) -> str:
    """'annotate.judging' of a module in it; the commands of all rooms stand above them, in 'annotate.commands'."""
    package, room, *_, last = [*module.split("."), module.split(".")[-1]]
    return f"{package}.commands" if re.fullmatch(r"(.+_)?command", last) else f"{package}.{room}"


def find_climbs(root: Path) -> list[str]:
    """Imports of a room by one that is not above it, and rooms that no floor names."""
    floor_of = {
        f"{package}.{room}": floor
        for package, floors in FLOORS.items()
        for floor, rooms in enumerate(floors)
        for room in rooms.split()
    }
    faults = []
    for name, target in find_arrows(root).edges:
        package, *inside = name.split(".")
        if package not in FLOORS or target.split(".")[0] != package or not inside or target == package:
            continue
        here, there = (find_room(module) for module in (name, target))
        missing = [room for room in (here, there) if room not in floor_of]
        if missing:
            faults.append(f"{missing[0]} stands on no floor")
        elif here != there and floor_of[there] >= floor_of[here]:
            faults.append(f"{name} imports {target}, which does not stand below it")
    return faults


def find_faults(root: Path) -> list[str]:
    """Every import under `root` that the design forbids, a line each."""
    faults = []
    for file in python_files(root):
        source = (root / file).read_text(encoding="utf-8")
        package = file.parts[0].removesuffix(".py")
        allowed = MAY_IMPORT[package] | {package}
        for line, name in imports(source):
            if name.startswith("."):
                faults.append(f"{file}:{line} imports relatively; name the package")
            elif name in MAY_IMPORT and name not in allowed:
                faults.append(f"{file}:{line} {package} must not import {name}")
            elif name in WEB and package not in ("ui", "app") and not (name in SERVES and file.parent == SERVING_ROOM):
                faults.append(f"{file}:{line} {package} must not import {name}; only ui and app.py do")
            elif name == "torch" and package in LIGHT:
                faults.append(f"{file}:{line} {package} must not import torch; the app's process stays light")
        faults += [
            f"{file}:{line} imports pyiqa whatever is asked for; import it in the function that needs it"
            for line, name in imports(source, at_load=True)
            if name == "pyiqa"
        ]
        if file.name in ("__init__.py", "config.py"):
            faults += [
                f"{file}:{line} a package's __init__ or config must not import torch"
                for line, name in imports(source, at_load=True)
                if name == "torch" and package not in LIGHT
            ]
    return faults


def test_imports_point_one_way():
    assert len(python_files(ROOT)) > 20
    assert find_faults(ROOT) == []


def test_no_modules_import_one_another():
    assert find_circles(ROOT) == []


def test_rooms_import_those_below_them_alone():
    assert find_climbs(ROOT) == []


def write_modules(root, **sources):
    for name, source in sources.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def test_a_planted_circle_is_found_also_inside_functions(tmp_path):
    write_modules(
        tmp_path, runs__a="import runs.b", runs__b="def f():\n    from runs.c import g", runs__c="import runs.a"
    )
    assert find_circles(tmp_path) == [["runs.a", "runs.b", "runs.c"]]


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("annotate__judging__x", "from annotate.ingest.y import f", "annotate.ingest.y, which does not stand below it"),
        ("reward__train__x", "def f():\n    import reward.score.y", "reward.score.y, which does not stand below it"),
        ("refl__restorers__x", "from refl.attic import y", "refl.attic stands on no floor"),
    ],
)
def test_a_planted_climb_is_found(tmp_path, file, source, fault):
    others = {"annotate__ingest__y": "", "reward__score__y": "", "refl__attic__y": "", "annotate__judging__z": ""}
    write_modules(tmp_path, **others, **{file: source})
    (found,) = find_climbs(tmp_path)
    assert fault in found


def test_image_files_are_decoded_in_one_place():
    decoding = {
        file.as_posix()
        for file in python_files(ROOT)
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in DECODERS
    }
    assert decoding == DECODES.keys()


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("db/x.py", "from runs.store import open_run", "db must not import runs"),
        ("runs/x.py", "import annotate.pairs", "runs must not import annotate"),
        ("metrics/x.py", "from db import models", "metrics must not import db"),
        ("annotate/x.py", "def f():\n    from refl.degrade import degrade", "annotate must not import refl"),
        ("annotate/x.py", "import reward", "annotate must not import reward"),
        ("reward/x.py", "from annotate.export import read", "reward must not import annotate"),
        ("reward/x.py", "import refl.train", "reward must not import refl"),
        ("dataset/x.py", "from annotate.exchange import export", "dataset must not import annotate"),
        ("training/x.py", "from reward.model import RewardModel", "training must not import reward"),
        ("refl/x.py", "from annotate import pairs", "refl must not import annotate"),
        ("refl/x.py", "import ui", "refl must not import ui"),
        ("ui/x.py", "from app import main", "ui must not import app"),
        ("annotate/x.py", "import gradio as gr", "annotate must not import gradio"),
        ("refl/x.py", "from fastapi import FastAPI", "refl must not import fastapi"),
        ("reward/serve/x.py", "import fastapi", "reward must not import fastapi"),
        ("reward/score/x.py", "def f():\n    import uvicorn", "reward must not import uvicorn"),
        ("annotate/x.py", "def f():\n    import torch", "annotate must not import torch"),
        ("annotate/x.py", "import importlib\nimportlib.import_module('torch.nn')", "annotate must not import torch"),
        ("ui/deep/x.py", "from torch import nn", "ui must not import torch"),
        ("app.py", "import torch.nn", "app must not import torch"),
        ("reward/model/config.py", "import torch", "__init__ or config must not import torch"),
        (
            "refl/restorers/__init__.py",
            "try:\n    import torch\nexcept ImportError:\n    pass",
            "must not import torch",
        ),
        ("annotate/x.py", "from .pairs import next_pair", "imports relatively"),
        ("metrics/x.py", "from pyiqa.archs import niqe_arch", "imports pyiqa whatever is asked for"),
    ],
)
def test_each_rule_can_fail(tmp_path, file, source, fault):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    (found,) = find_faults(tmp_path)
    assert fault in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("runs/x.py", "import db.models"),
        ("annotate/x.py", "from runs.store import open_run\nimport metrics, db"),
        ("refl/x.py", "import torch\nfrom reward.model import load"),
        ("refl/__init__.py", "def restore():\n    import torch"),
        ("metrics/x.py", "def load():\n    import pyiqa"),
        ("reward/model/config.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("ui/x.py", "import gradio, fastapi\nimport refl.degrade"),
        ("reward/serve/x.py", "import starlette, uvicorn"),
        ("app.py", "import ui.server"),
    ],
)
def test_what_is_allowed_is_not_faulted(tmp_path, file, source):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert find_faults(tmp_path) == []


def test_the_whole_app_is_built_without_torch(tmp_path):
    """A fresh process builds every page and route, as app.py does."""
    program = f"""
import sys
from pathlib import Path
from db.session import open_database
from runs.doctor import find_all
from runs.options import Place
from ui.context import Context
from ui.server import make_app
data = Path({str(tmp_path)!r})
app = make_app(Context(database=open_database(data), data=data))
assert len(app.routes) > 5, app.routes
assert any(finding.name == "torch" for finding in find_all(Place(data)))
assert "gradio" in sys.modules
for heavy in ("torch", "sklearn", "pyiqa"):
    assert heavy not in sys.modules, "something that the pages import loads " + heavy
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_package_says_what_it_is_for():
    packages = [path.parent for path in map(ROOT.joinpath, python_files(ROOT)) if path.name == "__init__.py"]
    assert {path.name for path in packages} >= {"db", "runs", "annotate", "refl", "ui"}
    for package in packages:
        assert ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))), package


def find_fault_of_head(source: str) -> str | None:
    """Say what is wrong with a module's first line: it is one sentence that begins with a verb."""
    head, *others = (ast.get_docstring(ast.parse(source)) or "?").partition("\n\n")[0].splitlines()
    first = head.split()[0].rstrip(",:").replace("-", "")
    if others or not head.endswith("."):
        return "not one line that ends in a full stop"
    noun = first.endswith(("s", "ing", "ion")) and not first.endswith("ss")
    if noun or first.lower() in NO_VERBS.split() or not (first.isalpha() and first.istitle()):
        return f"begins with {first}, which is not a verb"
    return None


def test_every_module_says_first_what_it_does():
    scripts = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("experiments/*.py")]
    files = [*python_files(ROOT), *(file.relative_to(ROOT) for file in scripts)]
    faults = {
        str(file): fault for file in files if (fault := find_fault_of_head((ROOT / file).read_text(encoding="utf-8")))
    }
    assert faults == {}


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        ("What a labelled pair costs.", "begins with What"),
        ("The report's pictures: one function from a table to a figure.", "begins with The"),
        ("DiffBIR from the published files.", "begins with DiffBIR"),
        ("`python -m refl train`: fine-tune a restorer.", "begins with `python"),
        ("Labels to a dataset folder.", "begins with Labels"),
        ("Fitting a labeler.", "begins with Fitting"),
        ("Compute the loss of a labelled pair", "not one line"),
        ("Compute the loss of a labelled pair, and\nits gradient.", "not one line"),
        ("", "not one line"),
    ],
)
def test_a_riddle_in_a_first_line_is_found(head, fault):
    assert fault in find_fault_of_head(f'"""{head}"""\n' if head else "import db\n")
    assert find_fault_of_head('"""Compress the loss of a labelled pair.\n\nThe rest is free."""') is None


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in python_files(ROOT) if path.parts[:2] != ("db", "migrations")} - {Path(".")}
    assert [str(folder) for folder in sorted(folders) if not (ROOT / folder / "__init__.py").exists()] == []


def test_the_table_of_commands_is_that_of_the_commands():
    shown = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert shown == write_table(), "python -m runs.command_table > docs/commands.md"
    assert {f"### {name}" for name in ("annotate pair", "reward train", "refl restore", "runs start")} <= set(
        shown.splitlines()
    )
    assert "docs/commands.md" in (ROOT / "README.md").read_text(encoding="utf-8")

"""Run the tests of what the browser runs (tests/js), and check its types where `make check-js` has installed tsc."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.watching import LIMIT_SECONDS

ROOT = Path(__file__).parents[3]
STATIC = ROOT / "ui" / "static"
NODE = shutil.which("node")
OLDEST_NODE = 20
"""Node's major version whose test runner has timers that a test can move on."""


def run(*command: str) -> str:
    """What a command prints; a failure if it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def node() -> str:
    """The path of a Node that is new enough."""
    if NODE is None:
        pytest.skip(f"needs node {OLDEST_NODE} or newer, which is not installed")
    version = run(NODE, "--version").strip()
    if int(version.lstrip("v").partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"needs node {OLDEST_NODE} or newer, this is {version}")
    return NODE


def test_the_modules_do_what_their_tests_say(node: str) -> None:
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "js").glob("*.test.js"))
    said = run(node, "--test", "--test-reporter=tap", *files)
    passed = int(re.search(r"^# pass (\d+)$", said, re.MULTILINE)[1])  # type: ignore[index]
    assert passed >= 40, said


def test_the_types_of_the_modules_fit(node: str) -> None:
    tsc = ROOT / "node_modules" / "typescript" / "bin" / "tsc"
    if not tsc.exists():
        pytest.skip("needs typescript: `make check-js` installs it")
    run(node, str(tsc), "--project", "tsconfig.json")


def test_every_module_asks_for_its_types_to_be_checked() -> None:
    """An editor checks them too, then."""
    modules = sorted(STATIC.rglob("*.js"))
    assert len(modules) > 20
    assert [
        str(path.relative_to(STATIC)) for path in modules if not path.read_text().startswith("// @ts-check\n")
    ] == []


def test_every_import_and_address_of_a_file_leads_to_one() -> None:
    broken = []
    for path in [*STATIC.rglob("*.js"), *STATIC.rglob("*.html"), *(ROOT / "ui").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        found = [path.parent / one for one in re.findall(r'^import .* from "(\..*)";$', text, re.MULTILINE)]
        found += [STATIC / one for one in re.findall(r"/static/([\w/]+\.\w+)", text)]
        broken += [f"{path.name}: {target}" for target in found if not target.exists()]
    assert broken == []

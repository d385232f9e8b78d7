"""Check README.md and docs/: links lead somewhere, commands are ours, files that are named exist, the deploy files fit.

tests/integration/test_docs.py runs the commands.
"""

from __future__ import annotations

import configparser
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

import app
from db.errors import UserError
from runs.options import PACKAGES, find_command, read_words
from runs.own_command import drop_common
from tests.doc_blocks import DOCUMENTS, Block, find_own_command, read_blocks, shell_blocks
from tests.making import ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
CONTAINERFILE = ROOT / "deploy" / "Containerfile"
UNIT = ROOT / "deploy" / "facereward.service"
NAMES_OF_CODE = re.compile(r"(?:pixels|db|runs|metrics|dataset|training|annotate|reward|refl|ui|tests|deploy)/[\w./-]+")
DEPLOYED = (CONTAINERFILE, UNIT)
SOURCES = ("*.py", "*.js", "*.html", "*.toml")


def without_blocks(file: Path) -> str:
    """The text of a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors_of(file: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    heads = re.findall(r"^#+ (.+)$", without_blocks(file), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def find_broken_links(file: Path) -> list[str]:
    """The relative links of a document that lead nowhere."""
    broken = []
    for link in LINK.findall(without_blocks(file)):
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    return broken


def find_fault(words: list[str]) -> str | None:
    """Say why a command of a document would be refused; None where it would run, or is of another program."""
    own = find_own_command(words)
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
        return next((f"make has no {word}" for word in words[1:] if "=" not in word and word not in targets), None)
    if not own:
        return None
    if own[0] == "app.py":
        try:
            app.parse_arguments(own[1:])
        except SystemExit:
            return "app.py refuses its options"
        return None
    if own[0] == "db":
        words = drop_common(own[1:])
        is_file = words[:1] in (["backup"], ["restore"]) and len(words) == 2
        return None if is_file or words in (["images", "push"], ["images", "check"]) else "unknown to db"
    if own[0] not in PACKAGES:
        return None if find_spec(own[0]) else f"there is no module {own[0]}"
    command = find_command(" ".join(own[:2]))
    if command is None:
        return f"there is no command {' '.join(own[:2])}"
    if own[:2] == ["runs", "start"] and "--" in own:
        inner = own[own.index("--") + 1 :]
        fault = find_fault(["python", "-m", *inner])
        if fault:
            return fault
    try:
        read_words(command, drop_common(own[2:]))
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_relative_links_lead_somewhere(file: Path) -> None:
    assert find_broken_links(file) == []


def test_a_link_to_nothing_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A head, with `code`\n")
    file = tmp_path / "some.md"
    file.write_text(
        "[a](other.md#a-head-with-code) [b](other.md#no) [c](gone.md) ![d](no.webp) [e](https://x.org/gone)\n"
    )
    assert find_broken_links(file) == ["other.md#no", "gone.md", "no.webp"]


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_every_command_that_a_document_shows_is_one(file: Path) -> None:
    faults = {
        f"{block.where}: {shlex.join(words)}": fault
        for block in shell_blocks(file)
        for words in block.commands()
        if (fault := find_fault(words))
    }
    assert faults == {}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("python -m annotate pair --per-source 2 --data faces  # a remark", None),
        ("python -m annotate pear", "no command annotate pear"),
        ("accelerate launch --num_processes 4 -m refl train --preset papr --restorer tiny", "papr"),
        ("cd x && python -m annotate pair --per-source none", "whole number"),
        ("python app.py --no-such", "app.py refuses"),
        ("python -m runs start --device cuda:0 -- reward train --preset none --dataset d", "none"),
        ("python -m benchmarks_of_nothing", "no module"),
        ("make coffee", "no coffee"),
        ("sudo -u facereward ls", None),
    ],
)
def test_a_command_that_is_none_is_found(line: str, fault: str | None) -> None:
    faults = [find_fault(words) for words in Block(ROOT / "README.md", 1, "sh", line, "").commands()]
    assert faults == [None] if fault is None else fault in str(faults[-1])


def test_every_shell_block_is_run_or_says_why_not() -> None:
    for file in DOCUMENTS:
        for block in read_blocks(file):
            assert block.language, f"{block.where}: a block needs a language; `text` where it holds no commands"
            for words in block.commands() if block.language in ("sh", "bash", "console") else ():
                runs = find_own_command(words)[:1]
                known = runs and (runs[0] in PACKAGES or runs[0] == "db")
                assert known or block.not_run, f"{block.where}: {shlex.join(words)} is not run; say why above the block"


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_files_and_commands_named_in_a_document_exist(file: Path) -> None:
    missing = []
    for code in CODE.findall(without_blocks(file)):
        if NAMES_OF_CODE.fullmatch(code) and not (ROOT / code).exists():
            missing.append(code)
        words = code.split()
        if words[:2] == ["python", "-m"] and len(words) > 3 and words[2] in PACKAGES and words[3].islower():
            known = words[2:4] in (["runs", "licences"], ["runs", "doctor"]) or find_command(" ".join(words[2:4]))
            missing += [] if known else [code]
    assert missing == []


def test_the_tree_shows_the_folders_that_are_there() -> None:
    (tree, *_) = [block.text for block in read_blocks(ROOT / "docs" / "develop.md") if block.language == "text"]
    package, shown = ROOT, set()
    for line in tree.splitlines():
        names = re.match(r" *((?:[\w.]+/? )+)", line + " ")
        for name in names[1].split() if names and "/" in names[1] else ():
            package = package if line.startswith(" ") else ROOT / name
            path = package / name if line.startswith(" ") else package
            assert path.is_dir(), f"docs/develop.md: {line}"
            shown.add(path)
    packages = {path.parent for path in ROOT.glob("*/__init__.py")}
    rooms = {path.parent for one in ("annotate", "reward", "refl", "ui") for path in (ROOT / one).glob("*/__init__.py")}
    assert (packages | rooms) - shown == set()


def test_documents_named_in_code_exist() -> None:
    folders = [path.parent for path in ROOT.glob("*/__init__.py")]
    files = [file for folder in folders for pattern in SOURCES for file in folder.rglob(pattern)]
    for file in [*files, *DEPLOYED, ROOT / "Makefile", ROOT / "app.py"]:
        for name in re.findall(r"docs/[\w-]+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{file.relative_to(ROOT)} names {name}"


def test_the_container_has_all_packages_and_starts_the_app() -> None:
    lines = CONTAINERFILE.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    steps = [line.partition(" ")[::2] for line in lines if line and not line.startswith("#")]
    (base,) = (rest for step, rest in steps if step == "FROM")
    assert re.fullmatch(r"\S+/python:3\.\d+\.\d+-\S+", base), "the base image has its whole version"
    copied = [shlex.split(rest) for step, rest in steps if step == "COPY"]
    for *sources, target in copied:
        assert all((ROOT / source).exists() for source in sources), sources
        assert target.startswith("./")
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks", "experiments"}
    assert {target.strip("./") for _, target in (words for words in copied if len(words) == 2)} >= packages
    (command,) = (rest for step, rest in steps if step == "CMD")
    words = re.findall(r'"([^"]*)"', command)
    assert words[0] == "app.py"
    assert app.parse_arguments(words[1:]).auth


def test_the_unit_starts_the_app_and_leaves_its_runs_alone() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT, encoding="utf-8")
    service = unit["Service"]
    program, script, *words = shlex.split(service["ExecStart"])
    assert program == f"{service['WorkingDirectory']}/.venv/bin/python"
    assert script == "app.py"
    options = app.parse_arguments(words)
    assert options.auth
    assert options.base_url.startswith("https://")
    assert str(options.data) == f"/var/lib/{service['StateDirectory']}"
    # a training is a process of its own, which must outlive a restart of the app
    assert service["KillMode"] == "process"

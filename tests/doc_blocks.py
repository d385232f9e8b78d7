"""Read the shell blocks of README.md and docs/, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.making import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELLS = ("sh", "bash", "console")
"""Languages of shell blocks; in `console` a command stands behind `$ `, and all other lines are its output."""
NOT_RUN = re.compile(r"<!-- not run(?: by a test)?: (.+) -->")
SEPARATORS = ("&&", "||", "|", ";", "&")
ASSIGNMENT = re.compile(r"[A-Z_]+=.*")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    file: Path
    line: int
    """Where it begins, from 1."""
    language: str
    text: str
    not_run: str
    """Why no test runs it, from the comment `<!-- not run: … -->` above it; empty where one does."""

    @property
    def where(self) -> str:
        """'docs/label.md:12'"""
        return f"{self.file.relative_to(ROOT)}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """The words of each command, without what stands in front of a program: variables, and `sudo -u NAME`."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in lines:
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), ";"]:
                if word not in SEPARATORS:
                    words.append(word)
                    continue
                while words and (ASSIGNMENT.fullmatch(words[0]) or words[0] == "sudo"):
                    del words[: 3 if words[:2] == ["sudo", "-u"] else 1]
                if words:
                    yield words
                words = []


def read_blocks(file: Path) -> list[Block]:
    """The fenced blocks of a document, in their order."""
    blocks, opened, fence, held, why = [], 0, "", [], ""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if fence and line == "```":
            blocks.append(Block(file, opened, fence.strip("`"), "\n".join(held), why))
            fence, held, why = "", [], ""
        elif fence:
            held.append(line)
        elif line.startswith("```"):
            fence, opened = line, number
        elif line.strip():
            found = NOT_RUN.fullmatch(line.strip())
            why = found[1] if found else ""
    assert not fence, f"{file}: the block of line {opened} has no end"
    return blocks


def shell_blocks(file: Path) -> list[Block]:
    """The blocks of a document that hold commands."""
    return [block for block in read_blocks(file) if block.language in SHELLS]


def find_own_command(words: list[str]) -> list[str]:
    """What follows `python -m` of one of our commands, or `app.py` and what follows it; empty of another program."""
    for place, word in enumerate(words):
        if word == "app.py":
            return words[place:]
        if word == "-m" and words[place + 1 :]:
            return words[place + 1 :]
    return []

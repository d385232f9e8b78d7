"""Run the shell blocks of README.md and docs/ as they stand, in one small project."""

from __future__ import annotations

import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest
from sqlalchemy import select

from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person
from db.models import Pair
from db.project import load_settings
from db.session import open_database
from tests.doc_blocks import DOCUMENTS, find_own_command, shell_blocks
from tests.making import judge, write_photo

PHOTOS = 2


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to type in: `photos` with two methods' outputs, `good`, and the data folder `faces`, all judged."""
    folder = tmp_path_factory.mktemp("docs")
    for number in range(PHOTOS):
        write_photo(folder / "good" / f"sharp{number}.png", number, (64, 64))
        for place, name in enumerate(("lq", "hq", "bicubic", "gfpgan"), 1):
            write_photo(folder / "photos" / name / f"face{number}.png", 100 * place + number, (64, 64))
    from annotate.__main__ import main

    data = folder / "faces"
    assert main(["import", str(folder / "photos"), "--data", str(data)]) == 0
    database = open_database(data)
    with database.write() as session:
        make_pairs(session, load_settings(session))
        person = add_person(session, "Zoe")
        for pair in session.scalars(select(Pair)):
            judge(session, person.id, pair.id)
    database.close()
    return folder


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_the_blocks_of_a_document_run(
    file: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = [block for block in shell_blocks(file) if not block.not_run]
    if not blocks:
        pytest.skip(f"{file.name} has no block that is run")
    shutil.copytree(project, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for block in blocks:
        for words in block.commands():
            package, *rest = find_own_command(words)
            code = import_module(f"{package}.__main__").main(rest)
            assert code == 0, f"{block.where}: {shlex.join(words)} said {capsys.readouterr().err}"

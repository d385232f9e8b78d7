"""The zip of a dataset on the Export page."""

from __future__ import annotations

import shutil
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from db.models import Run
from runs.store import run_folder
from tests.watching import LIMIT_SECONDS
from ui.pages import export


def test_two_requests_at_once_make_one_whole_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(id="one")
    out = run_folder(tmp_path, run.id) / "dataset"
    out.mkdir(parents=True)
    (out / "pairs.jsonl").write_text("{}\n")
    both, make, found = threading.Barrier(2), shutil.make_archive, []

    def together(*args: Any) -> str:
        both.wait(LIMIT_SECONDS)
        made = make(*args)
        both.wait(LIMIT_SECONDS)
        return made

    monkeypatch.setattr(shutil, "make_archive", together)
    threads = [threading.Thread(target=lambda: found.append(export._zip_of(tmp_path, run, out))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert zipfile.ZipFile(found[0]).namelist() == ["pairs.jsonl"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["dataset", Path(found[0]).name]

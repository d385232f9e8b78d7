"""The database as several processes meet it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_processes_that_open_a_fresh_folder_at_once_all_succeed(data: Path) -> None:
    code = f"from pathlib import Path; from db.session import open_database; open_database(Path({str(data)!r})).close()"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said

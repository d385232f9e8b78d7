"""Each finding of the doctor, by an arranged folder, environment or machine."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import sqlite3
import sys
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from alembic.script import ScriptDirectory

from db.engine import alembic_config, default_url, make_engine, migrate
from db.session import open_database
from runs import doctor, doctor_command
from runs.__main__ import main
from runs.devices import Card, list_cards
from runs.finding import Finding
from runs.options import Place

CARD = Card("0", "GPU-8f2a", "A4000", 15.7, 15.2, "580.1")


@pytest.fixture(autouse=True)
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPUs, whatever this one has."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def marks(findings: object) -> list[tuple[str, str]]:
    return [(one.mark, one.name) for one in findings]  # type: ignore[attr-defined]


def test_python_is_new_enough_or_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.find_python().mark == "ok"
    monkeypatch.setattr(doctor, "MIN_PYTHON", (99, 0))
    assert doctor.find_python().mark == "fault"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    lines = ["# The app", "alpha>=2 # why", "beta", doctor.TRAINING_MARK + " (later)", "gamma>=3", "# submitit>=1"]
    (tmp_path / "requirements.txt").write_text("\n".join(lines))
    (tmp_path / "constraints.txt").write_text("alpha==2.5\nbeta==1.0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("here", "found", "said"),
    [
        ({"alpha": "2.5", "beta": "1.0", "gamma": "3"}, [("ok", "app"), ("ok", "training")], "2, of the"),
        ({"alpha": "1.9", "beta": "1.0", "gamma": "3"}, [("fault", "app"), ("note", "app"), ("ok", "training")], "1.9"),
        ({"alpha": "2.6", "beta": "1.0", "gamma": "3"}, [("note", "app"), ("ok", "training")], "2.6 (tested: 2.5)"),
        ({"alpha": "2.5", "gamma": "3"}, [("fault", "app"), ("ok", "training")], "missing: beta"),
        ({"alpha": "2.5", "beta": "1.0"}, [("ok", "app"), ("care", "training")], "2, of the"),
    ],
)
def test_libraries_are_held_against_the_requirements(
    root: Path, monkeypatch: pytest.MonkeyPatch, here: dict[str, str], found: list[tuple[str, str]], said: str
) -> None:
    monkeypatch.setattr(doctor, "read_version", here.get)
    findings = list(doctor.find_libraries(root))
    assert marks(findings) == [(mark, f"libraries of {'the ' * (name == 'app')}{name}") for mark, name in found]
    assert said in findings[0].seen


def test_the_projects_own_lists_can_be_read() -> None:
    names = [one.name for one in doctor.read_requirements((doctor.ROOT / "requirements.txt").read_text("utf-8"))]
    assert {"alembic", "torch", "uvicorn"} <= set(names)
    assert {one.name for one in doctor.find_libraries(doctor.ROOT)} == {"libraries of the app", "libraries of training"}


@pytest.mark.parametrize(
    ("installed", "cuda", "cards", "mark", "said"),
    [
        (None, None, [], "care", "not installed"),
        ("2.9.0+cpu", None, [], "ok", "for CPUs alone"),
        ("2.9.0+cpu", None, [CARD], "care", "cannot use the GPU"),
        ("2.9.0", "13.0", [CARD], "ok", "for CUDA 13.0"),
    ],
)
def test_torch_is_told_by_its_files(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    installed: str | None,
    cuda: str | None,
    cards: list[Card],
    mark: str,
    said: str,
) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '{installed}'\ncuda: Optional[str] = {cuda!r}\n")
    spec = importlib.machinery.ModuleSpec("torch", None)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _name: spec)
    monkeypatch.setattr(doctor, "read_version", lambda _name: installed)
    finding = doctor.find_torch(cards)
    assert finding.mark == mark
    assert said in finding.seen


@pytest.mark.parametrize(
    ("program", "mark", "said"),
    [
        ("echo 0", "ok", "finds no GPU"),
        ("echo 'Traceback' >&2; echo 'ImportError: libcudnn.so.9' >&2; exit 1", "fault", "ImportError: libcudnn.so.9"),
    ],
)
def test_torch_is_loaded_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, mark: str, said: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    finding = doctor.find_loaded_torch([])
    assert finding.mark == mark
    assert said in finding.seen


def test_a_card_that_torch_does_not_find_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stdout="0\n"))
    finding = doctor.find_loaded_torch([CARD])
    assert (finding.mark, finding.seen) == ("fault", "it finds 0 of 1 GPUs")


def test_cards_and_their_memory_are_those_of_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\necho '0, GPU-8f2a, NVIDIA A4000, 16384, 15872, 580.1'\n"
        "echo '1, GPU-77, NVIDIA H200, [N/A], [N/A], 580.1'\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert list_cards() == [Card("0", "GPU-8f2a", "NVIDIA A4000", 16.0, 15.5, "580.1")]
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' ; exit 9\n")
    assert list_cards() == []
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert list_cards() == []


def test_devices_are_those_that_runs_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert marks(doctor.find_devices([])) == [("ok", "cpu"), ("note", "GPU")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f2a,3")
    found = list(doctor.find_devices([CARD]))
    assert marks(found) == [("ok", "cuda:GPU-8f2a"), ("care", "cuda:3"), ("ok", "cpu")]
    assert "15.7 GiB, 15.2 free" in found[0].seen


def test_presets_fit_by_what_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    commands, faults = doctor.load_commands()
    assert faults == []
    card, cpu = doctor.find_presets([CARD], commands)
    assert (card.name, cpu.name) == ("presets for cuda:0", "presets for cpu")
    assert {"reward train --preset vit-h-14 (10.3 GiB)", "refl train --preset lora-16gb (13.5 GiB)"} <= set(
        card.seen.split(", ")
    )
    assert card.todo.startswith("too large here: refl train --preset paper-24gb (18.5 GiB), refl train --preset paper")
    tiny = (f"refl train --preset tiny-{method} (0.2 GiB)" for method in ("refl", "dpo", "gdpo", "grpo"))
    assert cpu.seen == ", ".join(["reward train --preset tiny (0.5 GiB)", *tiny])


def test_every_preset_of_a_training_that_counts_has_its_number() -> None:
    counted = {one.name: one.presets for one in doctor.load_commands()[0] if one.presets and one.presets.memory_gib}
    assert set(counted) == {"reward train", "refl train"}
    for presets in counted.values():
        assert presets.memory_gib.keys() == set(presets.names())


def test_a_package_that_cannot_be_loaded_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(package: str) -> tuple[()]:
        if package == "refl":
            raise ModuleNotFoundError("No module named 'cv2'")
        return ()

    monkeypatch.setattr(doctor, "list_commands", fail)
    (fault,) = doctor.load_commands()[1]
    assert (fault.mark, fault.name) == ("fault", "python -m refl")
    assert "cv2" in fault.seen


@pytest.mark.parametrize(("free_gib", "mark"), [(0.5, "fault"), (5, "care"), (50, "ok")])
def test_the_disk_has_room_or_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_gib: float, mark: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=int(free_gib * 2**30)))
    assert marks(doctor.find_disk(tmp_path)) == [("ok", "data folder"), (mark, "disk")]
    assert marks(doctor.find_disk(tmp_path / "later" / "on")) == [("note", "data folder"), (mark, "disk")]
    assert not (tmp_path / "later").exists()


def test_a_data_folder_that_cannot_be_written_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert next(doctor.find_disk(tmp_path)).mark == "fault"


def test_a_data_folder_that_no_disk_takes_is_a_fault_and_the_rest_is_said(tmp_path: Path) -> None:
    found = {one.name: one for one in doctor.find_all(Place(tmp_path / ("a" * 300)))}
    assert found["data folder"].mark == "fault"
    assert "too long" in found["data folder"].seen
    assert "Python" in found


@pytest.mark.parametrize("name", ["100%41 faces", "what?", "#1"])
def test_a_data_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    open_database(tmp_path / name).close()
    assert marks(doctor.find_inside(Place(tmp_path / name))) == [("ok", "database whole")]


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert doctor.find_database(Place(tmp_path)).mark == "note"
    assert list(doctor.find_inside(Place(tmp_path))) == []
    assert list(tmp_path.iterdir()) == []


def test_a_database_of_this_version_is_well(tmp_path: Path) -> None:
    open_database(tmp_path).close()
    finding = doctor.find_database(Place(tmp_path))
    assert finding.mark == "ok"
    assert finding.seen.startswith("SQLite, sqlite:///")
    assert marks(doctor.find_inside(Place(tmp_path))) == [("ok", "database whole")]


def test_an_older_database_is_said_and_left_as_it_is(tmp_path: Path) -> None:
    engine = make_engine(default_url(tmp_path))
    scripts = ScriptDirectory.from_config(alembic_config())
    before = scripts.get_revision("head").down_revision
    migrate(engine, str(before))
    finding = doctor.find_database(Place(tmp_path))
    assert (finding.mark, f"older version ({before})" in finding.seen) == ("note", True)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    assert "newer version" in doctor.find_database(Place(tmp_path)).seen
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+psycopg://someone:secret@127.0.0.1:1/none", "cannot be opened"),
        ("nonsense", "not written as a URL"),
    ],
)
def test_a_database_that_cannot_be_reached_is_a_fault(tmp_path: Path, url: str, said: str) -> None:
    finding = doctor.find_database(Place(tmp_path, url))
    assert finding.mark == "fault"
    assert said in finding.seen
    assert "secret" not in finding.seen + finding.todo


def test_a_file_that_is_no_database_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "facereward.db").write_text("no database at all, but long enough to be read as one" * 99)
    assert doctor.find_database(Place(tmp_path)).mark == "fault"
    assert list(doctor.find_inside(Place(tmp_path))) == []


def test_a_damaged_database_is_a_fault(tmp_path: Path) -> None:
    open_database(tmp_path).close()
    file = tmp_path / "facereward.db"
    with sqlite3.connect(file) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ix_lease_person_id'").fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    with file.open("rb+") as stream:
        stream.seek((root - 1) * size)
        stream.write(b"\xff" * size)
    assert marks(doctor.find_inside(Place(tmp_path))) == [("fault", "database whole")]


def test_the_network_is_asked_unless_it_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.HTTPError("https://hub", 403, "Forbidden", {}, None)  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    finding = doctor.find_network()
    assert finding.mark == "care"
    assert "refused" in finding.seen
    monkeypatch.setattr(doctor.urllib.request, "urlopen", refuse)
    assert doctor.find_network().mark == "ok"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(doctor.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked all the same"))
    assert doctor.find_network().mark == "note"


def test_published_weights_are_listed_with_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    entries = {"mine": 'hub = ["nobody/nothing/mine.pth"]\nsize_bytes = 4', "byhand": "", "cut": "size_bytes = 9"}
    (folder / "weights.toml").write_text(
        "".join(
            f'[{name}]\nfile = "{name}.pth"\ndescription = "d"\npage = "https://p"\nlicence = "MIT"\n{more}\n'
            for name, more in entries.items()
        )
    )
    (folder / "cut.pth").write_bytes(b"four")
    (weights,) = [one for one in doctor.load_commands()[0] if one.check]
    assert weights.check is not None
    found = {one.name: one for one in weights.check(Place(tmp_path))}
    assert found["weights mine"].mark == found["weights byhand"].mark == "note"
    assert "licence: MIT" in found["weights mine"].seen
    assert found["weights mine"].todo == "python -m refl weights fetch mine"
    assert found["weights byhand"].todo == f"get it from https://p and put it into {folder}"
    assert found["weights cut"].mark == "fault"
    (folder / "mine.pth").write_bytes(b"four")
    assert {one.name: one.mark for one in weights.check(Place(tmp_path))}["weights mine"] == "ok"
    (folder / "weights.toml").write_text("no TOML")
    assert marks(weights.check(Place(tmp_path))) == [("fault", "weights")]


@pytest.mark.parametrize(("mark", "status"), [("ok", 0), ("note", 0), ("care", 0), ("fault", 1)])
def test_the_exit_status_is_that_of_the_worst_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, mark: str, status: int
) -> None:
    found = [Finding(mark, "disk", "2 GiB free", "free some")]  # type: ignore[arg-type]
    monkeypatch.setattr(doctor_command, "find_all", lambda *_, **__: found)
    try:
        code = main(["doctor", "--data", str(tmp_path)])
    except SystemExit as end:
        code = int(str(end.code))
    assert code == status
    assert "disk: 2 GiB free  → free some\n" in capsys.readouterr().out

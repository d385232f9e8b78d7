import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from db.errors import UserError
from db.models import Label, Method, Origin, Pair, Run, RunState
from db.session import Database
from runs.delete import delete_run, why_kept, why_out_kept
from runs.store import add_run, artifact_of, end_run, open_run, run_folder
from tests.making import add_candidates
from tests.watching import get_run


def add_ended(database: Database, data: Path, kind: str = "reward train", **config: Any) -> int:
    run_id = add_run(database, data, kind, config)
    end_run(database, run_id, RunState.finished)
    return run_id


def test_deleting_frees_what_the_folder_held(database: Database, data: Path) -> None:
    run_id = add_ended(database, data)
    (run_folder(data, run_id) / "log.txt").write_bytes(b"x" * 1000)
    config_bytes = (run_folder(data, run_id) / "config.json").stat().st_size
    assert delete_run(database, data, run_id) == 1000 + config_bytes
    assert list((data / "runs").iterdir()) == []
    with database.read() as session:
        assert session.get(Run, run_id) is None
    with pytest.raises(UserError, match="no run 1"):
        delete_run(database, data, run_id)


@pytest.mark.parametrize("state", [RunState.queued, RunState.running, RunState.stopping])
def test_a_live_run_stays(database: Database, data: Path, state: RunState) -> None:
    run_id = add_run(database, data, "reward train", {})
    with database.write() as session:
        session.get_one(Run, run_id).state = state
    with pytest.raises(UserError, match=f"Run {run_id} is {state}; stop it first"):
        delete_run(database, data, run_id)


def test_what_it_made_goes_only_when_asked_and_unused(database: Database, data: Path) -> None:
    out = data / "rewards" / "one"
    out.mkdir(parents=True)
    (out / "model.safetensors").write_bytes(b"x" * 5000)
    first = add_ended(database, data, out=str(out))
    delete_run(database, data, first)
    assert out.is_dir()
    second = add_ended(database, data, out=str(out))
    user = add_ended(database, data, "refl train", reward=f"{out}/best")
    with pytest.raises(UserError, match=rf"Run {user} \(refl train\) refers to"):
        delete_run(database, data, second, also_out=True)
    with database.read() as session:
        run = session.get_one(Run, second)
        assert artifact_of(data, run) == out
        assert why_kept(session, data, run) is None
        assert f"Run {user}" in (why_out_kept(session, data, run, out) or "")
    delete_run(database, data, user)
    assert delete_run(database, data, second, also_out=True) > 5000
    assert not out.exists()
    assert out.parent.is_dir()


def test_a_run_that_recorded_its_inputs_refers_to_these_and_to_what_it_writes(database: Database, data: Path) -> None:
    out = data / "rewards" / "one"
    out.mkdir(parents=True)
    run_id = add_ended(database, data, out=str(out))
    mentions = {"preset": f"{out}/config.json", "note": str(out)}
    inputs = [{"option": "reward", "kind": "reward", "value": f"{out}/best"}]
    outputs = [{"option": "out", "value": str(out)}]
    for recorded in ({"inputs": inputs, "outputs": []}, {"inputs": [], "outputs": outputs}):
        user = add_run(database, data, "refl train", mentions, **recorded)
        end_run(database, user, RunState.finished)
        with pytest.raises(UserError, match=rf"Run {user} \(refl train\) refers to"):
            delete_run(database, data, run_id, also_out=True)
        delete_run(database, data, user)
    end_run(database, add_run(database, data, "refl train", mentions, inputs=[], outputs=[]), RunState.finished)
    assert delete_run(database, data, run_id, also_out=True) > 0
    assert not out.exists()


@pytest.mark.parametrize("out", ["outside", "data/rewards", "data", "data/images/ab", "data/../outside"])
def test_folders_that_are_not_the_runs_own_stay(database: Database, data: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / out).mkdir(parents=True, exist_ok=True)
    run_id = add_ended(database, data, out=str(tmp_path / out))
    with pytest.raises(UserError, match="delete it by hand"):
        delete_run(database, data, run_id, also_out=True)
    assert (tmp_path / out).is_dir()
    assert run_folder(data, run_id).is_dir()


def test_a_folder_that_held_files_before_the_run_stays(database: Database, data: Path) -> None:
    mine, made = data / "mine", data / "rewards" / "made"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    made.mkdir(parents=True)
    for out in (mine, made):
        for _ in range(2):  # the second goes on with what the first left
            with open_run(database, data, "reward train", {"out": str(out)}) as log:
                (out / "weights").write_bytes(b"x")
        with open_run(database, data, "reward train", {"out": str(out)}) as log:
            last = log.run_id
        with database.read() as session:
            runs = session.scalars(select(Run)).all()
            others = [run.id for run in runs if run.config["out"] == str(out) and run.id != last]
        for number in others:
            delete_run(database, data, number)
        if out == mine:
            with pytest.raises(UserError, match="held files before run 3, which may be anybody's; delete it by hand"):
                delete_run(database, data, last, also_out=True)
        else:
            assert delete_run(database, data, last, also_out=True) > 0
    assert sorted(path.name for path in mine.iterdir()) == ["thesis.txt", "weights"]
    assert not made.exists()


def test_a_result_names_the_artifact_before_the_config(database: Database, data: Path, tmp_path: Path) -> None:
    run_id = add_ended(database, data, "annotate fit", out="elsewhere")
    folder = run_folder(data, run_id)
    (folder / "result.json").write_text(json.dumps({"out": str(folder)}))
    assert artifact_of(data, get_run(database, run_id)) == folder
    delete_run(database, data, run_id, also_out=True)
    assert not folder.exists()


def test_what_something_came_from_stays(database: Database, data: Path) -> None:
    restore, fit, export = (
        add_ended(database, data, kind) for kind in ("refl restore", "annotate fit", "annotate export")
    )
    add_ended(database, data, dataset=str(run_folder(data, export) / "dataset"))
    with database.write() as session:
        a, b = add_candidates(session, "face1", ["m1", "m2"])
        session.get_one(Method, a.method_id).run_id = restore
        pair = Pair(key="k" * 32, source_id=a.source_id, a_id=a.id, b_id=b.id, shuffle_key=5)
        session.add(pair)
        session.flush()
        session.add(Label(pair_id=pair.id, origin=Origin.svm, made_by=f"svm-{fit}-12345678", p_a=0.9))
    for run_id, said in ((restore, "the method m1"), (fit, "Labels in use"), (export, "refers to")):
        with pytest.raises(UserError, match=said):
            delete_run(database, data, run_id)
        with database.read() as session:
            assert said in (why_kept(session, data, session.get_one(Run, run_id)) or "")
        assert run_folder(data, run_id).is_dir()

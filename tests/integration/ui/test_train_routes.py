"""What the Train page calls: who may, what is refused before anything is made of it, and what is started."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from db.models import Person, Run, RunState, utc_now
from db.session import Database
from refl.restore.choices import list_methods
from runs.store import add_run, end_run, run_folder
from tests.making import MakeClient, count_rows
from tests.unit.runs.test_rounds import KINDS
from tests.watching import get_run, wait_for_end

NASTY = "$(touch pwned); --db=x `touch pwned` ' \" * | touch pwned"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder that is known as a dataset by its files."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "pairs.jsonl").write_text("")
    return folder


def form(kind: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "preset": "tiny" if kind == "reward train" else "", **more}


def count_runs(database: Database, data: Path) -> int:
    """Rows; there are as many folders."""
    (rows,) = count_rows(database, Run)
    assert len(list((data / "runs").glob("*"))) == rows
    return rows


CALLS = [
    ("GET", "/api/train/kinds"),
    ("POST", "/api/train/check"),
    ("POST", "/api/train/start"),
    ("GET", "/api/train/round"),
    ("POST", "/api/train/round"),
]


def test_only_admins_reach_it_and_no_other_site(client: MakeClient, database: Database, data: Path) -> None:
    for method, path in CALLS:
        body = {"round": 1} if path.endswith("round") else form("annotate fit")
        sent = {} if method == "GET" else {"json": body}
        assert client().request(method, path, **sent).status_code == 401
        assert client("ben").request(method, path, **sent).status_code == 403
        if method == "POST":
            foreign = client("ada").post(path, json=body, headers={"Origin": "http://evil.example"})
            assert foreign.status_code == 403
    assert client("ben").get("/admin/train").status_code == 403
    assert count_runs(database, data) == 0


def test_the_forms_name_what_the_project_has(client: MakeClient, database: Database, data: Path, dataset: Path) -> None:
    run_id = add_run(database, data, "annotate export", {"out": str(dataset)})
    (run_folder(data, run_id) / "result.json").write_text(json.dumps({"out": str(dataset), "rows": 1234}))
    end_run(database, run_id, RunState.finished)
    fit = add_run(database, data, "annotate fit", {})
    (run_folder(data, fit) / "result.json").write_text(json.dumps({"labeler": "svm-2-abc"}))
    (run_folder(data, fit) / "labeler.json").write_text("{}")
    end_run(database, fit, RunState.finished)
    rewards = data / "rewards" / "r1" / "best"
    rewards.mkdir(parents=True)
    (rewards / "config.json").write_text("{}")
    (rewards / "training.json").write_text(json.dumps({"step": 40, "validation": {"accuracy": 0.75}}))
    add_run(database, data, "reward train", {"out": str(rewards.parent)})
    tuned = data / "restorers" / "t1" / "tuned"
    tuned.mkdir(parents=True)
    (tuned / "trained.json").write_text("{}")
    stopped = add_run(database, data, "refl train", {"out": str(tuned.parent)})
    end_run(database, stopped, RunState.stopped)
    answer = client("ada").get("/api/train/kinds").json()
    by_kind = {kind["kind"]: {wanted["name"]: wanted for wanted in kind["inputs"]} for kind in answer["kinds"]}
    (only,) = by_kind["reward train"]["dataset"]["choices"]
    assert only == {"value": str(dataset), "words": "run 1: 1,234 labelled pairs"}
    assert by_kind["annotate label"]["labeler"]["choices"][1] == {"value": "svm-2-abc", "words": "svm-2-abc"}
    first = by_kind["refl train"]["reward"]["choices"][0]
    assert first == {"value": str(rewards), "words": "run 3: r1 after 40 steps, accuracy 0.750"}
    restorers = {choice["value"]: choice["words"] for choice in by_kind["refl evaluate"]["method"]["choices"]}
    assert restorers[str(tuned)] == "run 4: t1, tuned"
    assert restorers["tiny"] == "tiny"
    assert str(tuned) in {choice.asked for choice in list_methods(data)}, "the Restore page offers it, too"
    assert answer["devices"][-1] == {"value": "cpu", "words": "cpu"}
    assert [run["id"] for run in answer["live"]] == [3]
    assert answer["from"] is None


INVALID: list[tuple[dict[str, Any], str]] = [
    (form("reward train"), "dataset"),
    (form("reward train", inputs={"dataset": ["{dataset}"]}, values={"train.max_steps": "0"}), "train.max_steps"),
    (form("reward train", inputs={"dataset": ["{dataset}"]}, values={"train.max_steps": "9"}), "train.warmup_steps"),
    (form("reward train", inputs={"dataset": ["/nowhere"]}), "dataset"),
    (form("reward train", inputs={"dataset": ["{dataset}"]}, preset="none"), "preset"),
    (form("reward train", inputs={"dataset": ["{dataset}"]}, device="cuda:77"), "device"),
    (form("reward train", inputs={"dataset": ["{dataset}"]}, device="; reboot"), "device"),
    (form("reward train", inputs={"dataset": ["{dataset}"]}, after=[77]), "after"),
    (form("annotate fit", processes=2), "processes"),
    (form("annotate fit", values={"options.folds": "x"}), "options.folds"),
    (form("os system"), "kind"),
    (form("annotate import"), "kind"),
]


def test_what_does_not_validate_never_becomes_a_run(
    ada: TestClient, database: Database, data: Path, dataset: Path
) -> None:
    for case, place in INVALID:
        body = json.loads(json.dumps(case).replace("{dataset}", str(dataset)))
        looked = ada.post("/api/train/check", json=body)
        assert (looked.status_code, list(looked.json()["errors"])) == (200, [place])
        started = ada.post("/api/train/start", json=body)
        assert (started.status_code, list(started.json()["errors"])) == (422, [place])
    assert count_runs(database, data) == 0


def test_each_algorithm_asks_for_what_it_learns_from(ada: TestClient, dataset: Path) -> None:
    def look(preset: str, **inputs: str) -> dict[str, Any]:
        given = {name: [value] for name, value in {"restorer": "tiny", **inputs}.items()}
        answer: dict[str, Any] = ada.post(
            "/api/train/check", json={"kind": "refl train", "preset": preset, "inputs": given}
        ).json()
        return answer

    dpo = look("tiny-dpo", dataset=str(dataset))
    assert dpo["errors"] == {}
    assert dpo["command"].startswith(f"python -m refl train --preset=tiny-dpo --restorer=tiny --dataset={dataset}")
    assert list(look("tiny-dpo")["errors"]) == ["dataset"]
    for judge in ("metric:psnr", "people", "http://127.0.0.1:9/"):
        assert look("tiny-gdpo", reward=judge)["errors"] == {}
    assert list(look("tiny-grpo")["errors"]) == ["reward"]
    assert "names no metric" in look("tiny-grpo", reward="metric:")["errors"]["reward"]
    refused = look("tiny-refl", reward="metric:psnr")["errors"]
    assert "has no gradient" in " ".join(refused.values())


MALFORMED = [
    b'{"kind": "annotate fit", "processes": 0}',
    b'{"kind": "annotate fit", "arguments": ["--x"]}',
    b'{"kind": ["annotate fit"]}',
    b'{"kind": "annotate fit", "values": {"options.metrics": {"a": 1}}}',
    b"[]",
    b"nonsense",
]


def test_malformed_requests_are_refused_whole(ada: TestClient, database: Database, data: Path) -> None:
    for body, path in itertools.product(MALFORMED, [path for method, path in CALLS if method == "POST"]):
        answer = ada.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, answer.text
    assert count_runs(database, data) == 0


def test_the_command_is_the_one_that_is_started_and_shells_have_no_say(
    client: MakeClient, database: Database, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ada = client("ada")
    out = tmp_path / "out;touch pwned"
    body = form("annotate export", inputs={"out": [str(out)]}, values={"options.name": NASTY})
    looked = ada.post("/api/train/check", json=body).json()
    assert looked["errors"] == {}
    assert looked["changed"] == ["options.name"]
    assert looked["command"].startswith("python -m annotate export '--out=")
    started = ada.post("/api/train/start", json=body).json()
    run = wait_for_end(database, data, started["run"])
    assert run.arguments == [f"--out={out}", f"--name={NASTY}"]
    assert run.config["name"] == NASTY
    # the database has no labels to export: said by the command itself, after it had read all of it
    assert (run.state, run.device) == (RunState.failed, None)
    assert "label" in str(run.error)
    with database.read() as session:
        assert session.get_one(Person, run.person_id).name == "ada"
    assert list(tmp_path.rglob("*pwned")) == []
    # a run like that one has the same settings and a folder of its own
    again = ada.get(f"/api/train/kinds?from={run.id}").json()["from"]
    assert (again["kind"], again["values"]["options.name"], again["inputs"]) == ("annotate export", NASTY, {})
    assert ada.get("/api/train/kinds?from=99").status_code == 404
    assert ada.get("/api/train/kinds?from=x").status_code == 400


def test_a_queued_run_waits_for_what_it_was_told(
    ada: TestClient, database: Database, data: Path, dataset: Path
) -> None:
    later = data / "later"
    busy = add_run(database, data, "annotate export", {"out": str(later)})
    inputs = {"dataset": [str(later)]}
    assert "dataset" in ada.post("/api/train/check", json=form("reward train", inputs=inputs)).json()["errors"]
    body = form("reward train", inputs=inputs, device="cpu", after=[busy], processes=2)
    looked = ada.post("/api/train/check", json=body).json()
    assert looked["errors"] == {}
    assert "accelerate" in looked["command"]
    started = ada.post("/api/train/start", json=body).json()
    run_id = started["run"]
    assert started["waits"] == f"waits for run {busy}"
    run = get_run(database, run_id)
    assert (run.state, run.device, run.after, run.launcher["processes"]) == (RunState.queued, "cpu", [busy], 2)
    assert run.config["train"]["max_steps"] == 1000
    assert run.config["dataset"] == str(later)
    # a second one in the same folder would fight with it
    assert ada.post("/api/train/start", json=body).json()["errors"]["out"].startswith(f"Run {run_id} writes into")
    end_run(database, run_id, RunState.stopped)
    (Path(run.config["out"]) / "last").mkdir(parents=True)
    (Path(run.config["out"]) / "last" / "training.json").write_text('{"step": 400}')
    assert "holds 400 steps of this training" in ada.post("/api/train/check", json=body).json()["notes"][0]


def test_estimates_come_from_earlier_runs_alone(ada: TestClient, database: Database, data: Path, dataset: Path) -> None:
    body = form("reward train", inputs={"dataset": [str(dataset)]}, values={"train.max_steps": "200"})
    assert ada.post("/api/train/check", json=body).json()["estimate"] is None

    def add_ended(batch_size: int, seconds_a_step: float) -> int:
        config = {"model": {"architecture": "tiny", "image_size_px": 112}, "train": {"batch_size": batch_size}}
        config["train"]["cache_frozen"] = False  # type: ignore[assignment]
        run_id = add_run(database, data, "reward train", config)
        lines = [
            {"time": 1000 + seconds_a_step * done, "done": done, "total": 50, "gpu_gib": 1.5} for done in (10, 20, 30)
        ]
        lines.append({"time": 99_000, "done": 40, "total": 50, "gpu_gib": 2.5})  # stopped over night
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run_folder(data, run_id) / "progress.jsonl").write_text(text + '{"time": 1')
        with database.write() as session:
            session.get_one(Run, run_id).started_at = utc_now() - timedelta(seconds=60)
        end_run(database, run_id, RunState.finished)
        return run_id

    other = add_ended(8, 3.0)
    told = ada.post("/api/train/check", json=body).json()["estimate"]
    assert (told["run"], told["alike"], told["seconds"]) == (other, False, pytest.approx(600))
    alike = add_ended(32, 0.5)
    add_ended(8, 4.0)
    told = ada.post("/api/train/check", json=body).json()["estimate"]
    assert (told["run"], told["alike"], told["gpu_gib"]) == (alike, True, 2.5)
    assert told["seconds"] == pytest.approx(100)


def test_the_round_is_shown_whole_then_started_once(
    client: MakeClient, database: Database, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runs.rounds.start_what_can", lambda *_args: None)  # no process is of interest here
    ada = client("ada")
    shown = ada.get("/api/train/round", params={"max_reward_steps": "60", "seeds": "0 1"}).json()
    kinds = [one["kind"] for one in shown["plan"]]
    assert kinds == KINDS
    assert "--max-steps=60" in shown["plan"][4]["command"]
    assert any("learns from 30 or more pairs of the split train that people judged" in note for note in shown["notes"])
    # there are no held-out photos, so a round without more words does without measuring on them, and says so
    assert any("the monitor cannot see hacking" in note for note in shown["notes"])
    assert "--monitor-every-steps=0" in shown["plan"][5]["command"]
    measured = ada.get("/api/train/round", params={"measure_held_out": "true"}).json()
    assert any("the round would end at its fifth step" in note for note in measured["notes"])
    assert [field["name"] for field in shown["fields"] if field["shown"]]
    wrong = ada.get("/api/train/round", params={"target_accuracy": "2"}).json()
    assert (list(wrong["errors"]), wrong["plan"]) == (["target_accuracy"], [])
    assert ada.post("/api/train/round", json={"round": 1, "values": {"seeds": "x"}}).status_code == 422
    assert ada.post("/api/train/round", json={"round": 2, "values": {}}).status_code == 422
    assert count_runs(database, data) == 0

    asked = {"round": 1, "values": {"max_reward_steps": "60", "seeds": "0 1"}}
    started = ada.post("/api/train/round", json=asked).json()
    assert len(started["runs"]) == len(kinds)
    with database.read() as session:
        runs = [session.get_one(Run, run_id) for run_id in started["runs"]]
        assert [run.kind for run in runs] == kinds
        assert all(run.after == [before] for run, before in zip(runs[1:], started["runs"], strict=False))
        assert {session.get_one(Person, run.person_id).name for run in runs} == {"ada"}
    twice = ada.post("/api/train/round", json=asked)
    assert twice.status_code == 422
    assert "started meanwhile" in twice.json()["errors"][""]
    assert count_runs(database, data) == len(kinds)

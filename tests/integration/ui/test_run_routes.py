"""What the Runs and Models pages are told: by whom it may be asked, what is in it, and what their buttons do."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image as PilImage

from annotate.judging.people import get_person
from db.models import Run, RunState, utc_now
from db.session import Database
from runs.store import run_folder
from tests.making import MakeClient, add_run_files, make_app_without_pages, open_client
from tests.watching import LIMIT_SECONDS
from ui.context import Context


@pytest.fixture
def add(database: Database, data: Path) -> Callable[..., int]:
    """Adds a run with its folder, progress lines, result and log."""
    return partial(add_run_files, database, data)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own group, to be stopped."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def of_process(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    started = psutil.Process(process.pid).create_time()
    return {"pid": process.pid, "pid_started": started, "host": socket.gethostname(), "started_at": utc_now()}


GETS = ("/api/runs", "/api/runs/1", "/api/runs/1/series", "/api/runs/1/log", "/api/runs/1/samples", "/api/lineage")
POSTS = ("stop", "continue", "delete")


def test_only_admins_are_told_anything(paged_client: MakeClient, add: Callable[..., int]) -> None:
    add()
    ada, ben, anonymous = paged_client("ada"), paged_client("ben"), paged_client()
    for path in (*GETS, "/api/runs/1/samples/000001.png", "/api/runs/1/deletion"):
        assert ben.get(path).status_code == 403, path
        assert anonymous.get(path).status_code == 401, path
    for action in POSTS:
        assert ben.post(f"/api/runs/1/{action}", json={}).status_code == 403
        assert anonymous.post(f"/api/runs/1/{action}", json={}).status_code == 401
        foreign = ada.post(f"/api/runs/1/{action}", json={}, headers={"Origin": "http://evil.example"})
        assert foreign.status_code == 403
    for path in GETS:
        assert ada.get(path).status_code == 200, path
    for path in ("/admin/runs", "/admin/models"):
        assert ada.get(path).status_code == 200
        assert ben.get(path).status_code == 403


def test_the_table_says_how_each_run_goes(client: MakeClient, add: Callable[..., int], database: Database) -> None:
    with database.read() as session:
        ada_id = get_person(session, "ada").id
    lines = [{"time": 100.0 + step, "done": step, "total": 100, "loss": 1 / step} for step in range(1, 41)]
    lines[19]["val/accuracy"] = 0.625
    add("reward train", RunState.running, lines=lines, person_id=ada_id, host="elsewhere", pid=1, started_at=utc_now())
    add("annotate export", result={"rows": 1798}, config={"name": "x"})
    add("refl train", RunState.failed, error="the loss is not finite")
    add("refl train", RunState.queued, device="cuda:0", after=[3])
    answer = client("ada").get("/api/runs").json()
    queued, failed, export, training = answer["runs"]
    assert (training["done"], training["total"], training["seconds_left"]) == (40, 100, 60.0)
    assert training["figure"] == {"name": "accuracy", "value": "0.625"}
    assert (training["who"], training["state"], training["host"]) == ("ada", "running", "elsewhere")
    assert export["figure"] == {"name": "rows", "value": "1,798"}
    assert failed["error"] == "the loss is not finite"
    assert queued["why_waiting"].startswith("waits for run 3")
    assert answer["live"]
    assert answer["kinds"] == ["annotate export", "refl train", "reward train"]


def test_filters_and_pages(client: MakeClient, add: Callable[..., int]) -> None:
    for number in range(1, 8):
        add("reward train" if number % 2 else "refl train", RunState.failed if number == 3 else RunState.finished)
    ada = client("ada")

    def ids(words: str) -> list[int]:
        return [run["id"] for run in ada.get(f"/api/runs?{words}").json()["runs"]]

    assert ids("limit=3") == [7, 6, 5]
    assert ids("limit=3&before=5") == [4, 3, 2]
    assert ids("kind=refl%20train") == [6, 4, 2]
    assert ids("state=failed") == [3]
    assert ids("state=live") == []
    assert ada.get("/api/runs?limit=7").json()["more"] is False
    assert ada.get("/api/runs?limit=3").json()["more"] is True
    assert ada.get("/api/runs?state=nonsense").status_code == 400
    assert ada.get("/api/runs?limit=100000").status_code == 400


def test_what_did_not_change_is_not_sent_again(client: MakeClient, add: Callable[..., int], data: Path) -> None:
    number = add(
        "reward train", lines=[{"done": 1, "total": 2, "loss": float("nan")}, {"done": 2, "total": 2, "loss": 0.5}]
    )
    ada = client("ada")
    for path in ("/api/runs", f"/api/runs/{number}", f"/api/runs/{number}/log", "/api/lineage"):
        tag = ada.get(path).headers["etag"]
        again = ada.get(path, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b""), path
    series = ada.get(f"/api/runs/{number}/series").json()
    assert series["whole"]
    assert series["series"] == {"loss": [[2], [0.5]]}
    path = f"/api/runs/{number}/series?since={series['version']}"
    assert ada.get(path).status_code == 304
    with open(run_folder(data, number) / "progress.jsonl", "a") as stream:
        stream.write('{"done": 3, "total": 3, "loss": 0.123456789}\n')
    grown = ada.get(path).json()
    assert (grown["whole"], grown["series"]) == (False, {"loss": [[3], [0.123457]]})


def test_a_runs_page_has_its_config_command_checkpoints_and_log(
    client: MakeClient, add: Callable[..., int], data: Path
) -> None:
    out = data / "rewards" / "mine"
    for name, step in (("best", 20), ("last", 30), ("steps/000010", 10), ("steps/000020", 20)):
        (out / name).mkdir(parents=True)
        (out / name / "training.json").write_text(json.dumps({"step": step}))
    number = add(
        config={"out": str(out), "train": {"max_steps": 30}},
        arguments=["--preset", "tiny", "--out", str(out)],
        cwd=str(data.parent),
        state=RunState.stopped,
        log="first line\nlast line\n",
        result={"out": str(out), "sources": list(range(500))},
    )
    ada = client("ada")
    told = ada.get(f"/api/runs/{number}").json()
    assert told["command"] == f"python -m reward train --preset tiny --out {out}"
    assert told["config"]["train"] == {"max_steps": 30}
    assert told["result"]["sources"] == "500 items"
    assert told["can"] == {"stop": False, "continue": True, "clone": True, "delete": True}
    assert [(one["name"], one["step"]) for one in told["checkpoints"]] == [
        ("best", 20),
        ("last", 30),
        ("steps/000020", 20),
        ("steps/000010", 10),
    ]
    uses = {use["words"]: use["href"] for use in told["checkpoints"][0]["uses"]}
    path = str(out / "best").replace("/", "%2F")
    assert uses["start ReFL"] == f"/admin/train#kind=refl%20train&reward={path}"
    assert uses["score"] == f"/admin/train#kind=reward%20score&scorer={path}"
    assert ada.get(f"/api/runs/{number}/log").json()["text"] == "first line\nlast line\n"
    assert ada.get(f"/api/runs/{number}/log?bytes=12").json() == {"there": True, "text": "last line\n", "bytes": 21}
    assert ada.get("/api/runs/77").status_code == 404


def test_a_tuned_restorer_is_offered_with_the_reward_model_that_learned_with_it(
    client: MakeClient, add: Callable[..., int], data: Path
) -> None:
    out = data / "restorers" / "mine"
    (out / "tuned" / "reward").mkdir(parents=True)
    number = add("refl train", config={"out": str(out)})
    told = client("ada").get(f"/api/runs/{number}").json()["checkpoints"]
    assert [one["name"] for one in told] == ["tuned", "tuned/reward"]
    assert told[0]["uses"][0]["href"].startswith("/admin/train#kind=refl%20restore&method=")
    assert told[1]["uses"][0]["href"].endswith("tuned%2Freward")


def test_checks_of_the_monitor_are_told_good_ones_in_a_row_as_one(
    client: MakeClient, add: Callable[..., int], data: Path
) -> None:
    out = data / "restorers" / "mine"
    out.mkdir(parents=True)
    number, ada = add("refl train", config={"out": str(out)}), client("ada")
    assert ada.get(f"/api/runs/{number}").json()["checks"] == []
    good = {"seen": "good", "action": "keep", "factor": 1.0, "why": "no judge fell"}
    lowered = {"seen": "suspicious", "action": "lower", "factor": 0.5, "why": "psnr fell"}
    rows = [{"step": 0, **good}, {"step": 5, **good, "why": "ssim fell"}, {"step": 10, **lowered}]
    rows += [{"step": step, **good, "factor": 0.5} for step in (15, 20)]
    (out / "checks.json").write_text(json.dumps({"checks": [*rows, "damaged", {"seen": "good"}]}))
    assert ada.get(f"/api/runs/{number}").json()["checks"] == [
        {"first": 0, "last": 5, **good, "why": "ssim fell"},
        {"first": 10, "last": 10, **lowered},
        {"first": 15, "last": 20, **good, "factor": 0.5},
    ]
    (out / "checks.json").write_text("[")
    assert ada.get(f"/api/runs/{number}").json()["checks"] == []


def test_samples_come_from_the_runs_own_folder_only(
    client: MakeClient, add: Callable[..., int], data: Path, tmp_path: Path
) -> None:
    out = data / "restorers" / "mine"
    (out / "grids").mkdir(parents=True)
    for name in ("grids/000050.png", "grids/000100.png", "grids/notes.txt", "report.png"):
        PilImage.new("RGB", (8, 8)).save(out / name, "PNG")
    secret = tmp_path / "secret.png"
    PilImage.new("RGB", (8, 8)).save(secret)
    (out / "grids" / "000200.png").symlink_to(secret)
    number = add("refl train", config={"out": str(out)})
    ada = client("ada")
    told = ada.get(f"/api/runs/{number}/samples").json()
    assert told == {"grids": ["000050.png", "000100.png", "000200.png"], "pictures": ["report.png"], "inside": True}
    for name in ("000050.png", "report.png"):
        answer = ada.get(f"/api/runs/{number}/samples/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    for name in (
        "..%2f..%2fsecret.key",
        "%2e%2e/report.png",
        "000200.png",
        "notes.txt",
        "config.json",
        ".png",
        "a%00.png",
    ):
        assert ada.get(f"/api/runs/{number}/samples/{name}").status_code in (404, 405), name
    outside = add("refl train", config={"out": str(tmp_path)})
    assert ada.get(f"/api/runs/{outside}/samples").json() == {"grids": [], "pictures": [], "inside": False}
    assert ada.get(f"/api/runs/{outside}/samples/secret.png").status_code == 404
    for folder in (data, data / "runs", run_folder(data, number)):  # nor from everybody's, nor another run's
        other = add("refl train", config={"out": str(folder)})
        PilImage.new("RGB", (8, 8)).save(folder / "x.png")
        assert ada.get(f"/api/runs/{other}/samples/x.png").status_code == 404, folder


def test_stop_ends_the_process_and_is_refused_afterwards(
    client: MakeClient, add: Callable[..., int], sleeper: subprocess.Popen[bytes]
) -> None:
    number = add(state=RunState.running, **of_process(sleeper))
    ada = client("ada")
    assert ada.get(f"/api/runs/{number}").json()["can"]["stop"]
    assert ada.post(f"/api/runs/{number}/stop").status_code == 200
    assert sleeper.wait(LIMIT_SECONDS) != 0
    assert ada.get(f"/api/runs/{number}").json()["state"] == "stopped"
    again = ada.post(f"/api/runs/{number}/stop")
    assert again.status_code == 409
    assert again.json()["error"]


def test_a_dead_run_is_told_as_lost(
    client: MakeClient, add: Callable[..., int], sleeper: subprocess.Popen[bytes]
) -> None:
    number = add(state=RunState.running, **of_process(sleeper))
    sleeper.kill()
    sleeper.wait()
    assert client("ada").get("/api/runs").json()["runs"][0]["state"] == "lost"
    refused = client("ada").post(f"/api/runs/{number}/continue")
    assert refused.status_code == 409, "nobody knows its arguments"
    assert "error" in refused.json()


def test_delete_says_what_it_frees_and_frees_it(client: MakeClient, add: Callable[..., int], data: Path) -> None:
    out = data / "rewards" / "mine"
    out.mkdir(parents=True)
    (out / "weights").write_bytes(b"x" * 5_000)
    number = add(config={"out": str(out)}, log="x" * 1_000)
    ada = client("ada")
    told = ada.get(f"/api/runs/{number}/deletion").json()
    assert (told["kept"], told["folder_bytes"], told["out"], told["out_bytes"]) == (None, 1_000, str(out), 5_000)
    assert told["out_kept"] is None
    user = add("refl train", config={"reward": str(out / "best")})
    assert f"Run {user}" in ada.get(f"/api/runs/{number}/deletion").json()["out_kept"]
    assert ada.post(f"/api/runs/{number}/delete", json={"also_out": True}).status_code == 409
    assert ada.post(f"/api/runs/{user}/delete", json={}).status_code == 200
    assert ada.post(f"/api/runs/{number}/delete", json={"also": 1}).status_code == 400
    assert ada.post(f"/api/runs/{number}/delete", json={"also_out": True}).json() == {"freed_bytes": 6_000}
    assert not out.exists()
    assert ada.get(f"/api/runs/{number}").status_code == 404
    assert ada.get("/api/runs").json()["runs"] == []


def test_a_thousand_runs_take_few_queries(client: MakeClient, database: Database, data: Path) -> None:
    from sqlalchemy import event

    ada = client("ada")
    now = utc_now()
    with database.write() as session:
        session.add_all(
            Run(kind="reward train", state=RunState.finished, code_version="1", created_at=now - timedelta(hours=n))
            for n in range(1_000)
        )
    asked: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    runs = ada.get("/api/runs?limit=50").json()["runs"]
    assert len(runs) == 50
    assert len(asked) < 10, "none a run"
    assert ada.get("/api/runs?limit=50&before=51").json()["runs"][-1]["id"] == 1


def test_lineage_names_the_key_figures(client: MakeClient, add: Callable[..., int], data: Path) -> None:
    out = str(data / "rewards" / "mine")
    number = add(config={"out": out}, result={"out": out, "best": {"accuracy": 0.71}})
    answer = client("ada").get("/api/lineage").json()
    assert answer["judgments"] == {"human": 0, "people": 0, "simulated": 0, "programs": 0}
    (node,) = answer["nodes"]
    assert (node["id"], node["group"], node["title"]) == (f"run-{number}", "reward", "mine")
    assert node["figure"] == {"name": "best accuracy", "value": "0.71"}


def test_both_databases_answer_alike(any_database: Database, data: Path, database_url: str | None) -> None:
    with any_database.write() as session:
        session.add(Run(kind="refl train", state=RunState.queued, code_version="1", config={}, device="cpu", after=[7]))
        session.add(Run(kind="reward train", state=RunState.failed, code_version="1", config={"out": str(data / "x")}))
    client = open_client(make_app_without_pages(Context(any_database, data, url=database_url)), data, "ada")
    runs = client.get("/api/runs").json()
    assert [(run["id"], run["state"]) for run in runs["runs"]] == [(2, "failed"), (1, "queued")]
    assert runs["runs"][1]["why_waiting"]
    assert runs["kinds"] == ["refl train", "reward train"]
    assert client.get("/api/runs/1").json()["after"] == [7]
    assert client.get("/api/runs/2/deletion").json()["kept"] is None
    assert [node["id"] for node in client.get("/api/lineage").json()["nodes"]] == ["run-1"]
    assert client.post("/api/runs/2/delete", json={}).status_code == 200
    assert client.get("/api/runs/2").status_code == 404

"""Names of the hub, and folders pushed to and fetched from a small hub of our own, over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

import huggingface_hub.constants
import pytest
from pydantic import Field

from db.errors import UserError
from licences.terms import NOT_STATED, Licensed
from runs.hub import HubName, check_repository, fetch_folder, fetch_inputs, parse_hub_name, push_folder
from runs.options import Command, Flag, Input, Options
from runs.publishing import PushOptions, check_push, choose_licence, format_front_matter

TOKEN = "hf_of_a_test"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: what `upload_folder` and `snapshot_download` ask for, and no more."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.made: list[dict[str, Any]] = []
        self.messages: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer({"error": "no"}, 401)
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(sent))
            made = json.loads(sent)
            self.server.files.setdefault(f"{made['organization']}/{made['name']}", {})
            kind = "datasets/" if made.get("type") == "dataset" else ""
            self.answer({"url": f"{self.server.url}/{kind}{made['organization']}/{made['name']}"})
        elif "/preupload/" in self.path:
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(sent)["files"]]
            self.answer({"files": [{**one, "shouldIgnore": False} for one in files]})
        elif "/commit/" in self.path:
            name = "/".join(self.path.split("/")[3:5])
            lines = [json.loads(line) for line in sent.decode().splitlines()]
            self.server.messages += [line["value"]["summary"] for line in lines if line["key"] == "header"]
            kept = self.server.files.setdefault(name, {})
            for line in lines:
                if line["key"] == "file":
                    kept[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    kept.pop(line["value"]["path"])
            self.server.commits[name] = commit = hashlib.sha1(sent).hexdigest()
            self.answer(
                {"commitOid": commit, "commitUrl": f"{self.server.url}/{name}/commit/{commit}", "success": True}
            )
        else:
            self.answer({})

    def do_GET(self) -> None:
        path = [unquote(part) for part in self.path.partition("?")[0].split("/")]
        is_api = path[1] == "api"
        name = "/".join(path[3:5] if is_api else path[1:3] if path[1] != "datasets" else path[2:4])
        files, commit = self.server.files.get(name), self.server.commits.get(name, "")
        if files is None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif is_api and "tree" in path:
            self.answer(
                [
                    {"type": "file", "path": file, "size": len(value), "oid": hash_of(value)}
                    for file, value in files.items()
                ]
            )
        elif is_api:
            siblings = [{"rfilename": file} for file in files]
            self.answer(
                {
                    "id": name,
                    "_id": "1",
                    "sha": commit,
                    "siblings": siblings,
                    "private": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                }
            )
        else:
            file = self.path.partition("?")[0].partition("/resolve/")[2].partition("/")[2]
            self.answer(files[unquote(file)], ETag=f'"{hash_of(files[unquote(file)])}"', X_Repo_Commit=commit)

    do_HEAD = do_GET


def hash_of(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The hub, known to huggingface_hub as the one there is, with a token and an empty cache."""
    server = Hub()
    url = server.url
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def write_tuned(folder: Path) -> Path:
    """A published folder with this project's own part in it."""
    (folder / "facereward").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# It\n")
    (folder / "facereward" / "trained.json").write_text("{}")
    return folder


@pytest.mark.parametrize("text", ["hf:org/name", "hf:org/name@3f2a9c1", "hf:Org-1/na.me_x@refs/pr/1", "hf:o/n@v1.0"])
def test_a_name_of_the_hub_is_read(text):
    name = parse_hub_name(text)
    assert f"hf:{name.repository}{'@' if name.revision else ''}{name.revision}" == text
    assert parse_hub_name("hf:org/name@main") == HubName("org/name", "main")


@pytest.mark.parametrize(
    "text",
    [
        *("hf:", "hf:a", "hf:../../x", "hf:a/b/c", "hf:a b/c@", "hf:a/b@", "hf:a/b@../x", "hf:a/..", "hf:a/b--c"),
        *("hf:a/b.git", "hf:a/b@x y", "hf:/a/b", "hf:a/b\n", "hf:ä/b", "hf:-a/b", f"hf:a/{'b' * 97}"),
    ],
)  # fmt: skip
def test_a_hostile_name_is_refused_in_one_line(text):
    with pytest.raises(UserError, match=r"write hf:ORG/NAME or hf:ORG/NAME@REVISION") as error:
        parse_hub_name(text)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--push"):
        check_repository(text.removeprefix("hf:"))


def test_a_pushed_folder_is_fetched_again_by_name_and_by_commit(hub, tmp_path, caplog):
    folder = write_tuned(tmp_path / "made")
    with caplog.at_level(logging.WARNING):
        commit = push_folder(folder, "me/face", "model", private=True, message="Publish the restorer tuned")
        assert hub.made[0]["name"] == "face"
        assert hub.made[0]["organization"] == "me"
        assert hub.made[0].get("private", hub.made[0].get("visibility")) in (True, "private"), "newer versions' word"
        assert hub.messages == ["Publish the restorer tuned"]
        caplog.clear()
        fetched = fetch_folder("hf:me/face", "model")
    assert (fetched.name, fetched.parent.name) == ("facereward", commit)
    assert (fetched / "trained.json").read_text() == "{}"
    assert [f"hf:me/face@{commit}" in line for line in caplog.messages] == [True]
    caplog.clear()
    assert fetch_folder(f"hf:me/face@{commit}", "model") == fetched
    assert not caplog.messages
    (folder / "README.md").unlink()
    push_folder(folder, "me/face", "model", private=True, message="again")
    assert hub.files["me/face"].keys() == {"facereward/trained.json"}, "what the folder lacks, the latest commit lacks"


def test_what_the_hub_refuses_is_one_line(hub, tmp_path, monkeypatch):
    folder = write_tuned(tmp_path / "made")
    with pytest.raises(UserError, match=r"hf:me/none cannot be fetched: .*\(404\)"):
        fetch_folder("hf:me/none", "dataset")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(UserError, match=r"me/face: cannot be pushed: the hub refuses it \(401\)"):
        push_folder(folder, "me/face", "model", private=False, message="")
    assert not hub.files


def test_without_network_what_is_in_the_cache_is_taken(hub, tmp_path, monkeypatch):
    push_folder(write_tuned(tmp_path / "made"), "me/face", "model", private=False, message="")
    fetched = fetch_folder("hf:me/face", "model")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch_folder("hf:me/face", "model") == fetched
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, and the Hugging Face cache does not have it"):
        fetch_folder("hf:me/other", "model")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it to push"):
        push_folder(tmp_path, "me/face", "model", private=False, message="")


def test_a_push_without_a_token_says_how_to_get_one(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="set HF_TOKEN"):
        push_folder(tmp_path, "me/face", "model", private=False, message="")


class Fetching(Options):
    dataset: Annotated[Path | None, Input("dataset")] = None
    methods: Annotated[list[str], Input("restorer"), Flag(repeated=True)] = Field([])
    note: str = ""


def test_a_commands_inputs_are_fetched_and_its_other_options_not(hub, tmp_path):
    command = Command("refl x", "x", Fetching, lambda *_: None)
    push_folder(write_tuned(tmp_path / "made"), "me/face", "model", private=False, message="")
    commit = push_folder(write_tuned(tmp_path / "data"), "me/labels", "dataset", private=False, message="")
    given = {"dataset": "hf:me/labels", "methods": ["tiny", "mine=hf:me/face"], "note": "hf:me/none", "data": "x"}
    fetched = fetch_inputs(command, given)
    assert fetched["methods"][0] == "tiny"
    assert Path(fetched["methods"][1].removeprefix("mine=")).joinpath("trained.json").is_file()
    assert commit in str(fetched["dataset"])
    assert (fetched["note"], fetched["data"]) == ("hf:me/none", "x")


def test_a_licence_that_nobody_states_has_to_be_said():
    silent, known = Licensed("weights", "mystery.pth", NOT_STATED), Licensed("weights", "base", "Apache-2.0")
    check_push(PushOptions(push="me/face"), [known])
    check_push(PushOptions(), [silent])
    check_push(PushOptions(push="me/face", licence="CC-BY-4.0"), [silent])
    with pytest.raises(UserError, match="licence of mystery"):
        check_push(PushOptions(push="me/face"), [silent, known])


def test_a_card_begins_with_a_licence_that_the_hub_knows_or_a_name():
    swinir = Licensed("weights", "swinir", "Apache-2.0 by DiffBIR; trained by DifFace, which is non-commercial")
    base = Licensed("weights", "sd", "CreativeML Open RAIL++-M")
    assert choose_licence("", [base, swinir]) == swinir.licence
    front = format_front_matter(swinir.licence, [base, swinir], ["a"], {"base_model": ["x/y"], "datasets": []})
    assert front[0] == "---"
    assert 'license: "other"' in front
    assert 'tags: ["a", "non-commercial"]' in front
    assert 'base_model: ["x/y"]' in front
    assert not any(line.startswith("datasets") for line in front)
    assert 'license: "openrail++"' in format_front_matter(base.licence, [base], [], {})

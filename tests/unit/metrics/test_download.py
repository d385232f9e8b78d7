"""Downloads from a server that breaks in every way: gone on with, checked before they get their name, told."""

from __future__ import annotations

import hashlib
import http.server
import resource
import threading
import time
from pathlib import Path

import pytest

from metrics import download as module
from metrics.download import DownloadError, download, forget_cached

CONTENT = b"\x80" + bytes(range(256)) * 5000


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at every path; `faults` are the first answers' own."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.faults: list[str] = []
        self.ranges: list[str | None] = []
        self.etag = '"one"'
        self.url = f"http://127.0.0.1:{self.server_address[1]}/w.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault.isdecimal():
            self.send_response(int(fault))
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content, start = self.server.content, 0
        goes_on = asked and fault != "ignores" and self.headers.get("If-Range") == self.server.etag
        if goes_on:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if fault == "page":
            content = b"<!DOCTYPE html><title>Quota exceeded</title>"
        self.send_response(206 if goes_on else 200)
        if goes_on and fault != "vague":
            first = 0 if fault == "elsewhere" else start
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if fault not in ("nolength", "ends"):
            self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", self.server.etag)
        self.end_headers()
        rest = content[start:]
        if fault == "reset":
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            time.sleep(0.2)
            self.connection.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0: a reset, not an end
            self.connection.close()
        elif fault in ("short", "ends"):
            self.wfile.write(rest[: len(rest) // 2])
        elif fault == "hangs":
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            threading.Event().wait(1.5)
        else:
            self.wfile.write(rest)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "PAUSES_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.5)
    found = Server()
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.mark.parametrize("faults", [[], ["reset"], ["short"], ["hangs"], ["503"], ["429"], ["nolength"], ["ends"]])
def test_a_transfer_that_breaks_is_gone_on_with(server, tmp_path, faults):
    server.faults = faults * 2
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    path = download(server.url, tmp_path / "new" / "w.pth", sha256=sha256, size_bytes=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert [one.name for one in path.parent.iterdir()] == ["w.pth"]
    if faults in (["reset"], ["short"], ["hangs"]):
        starts = [int(one.removeprefix("bytes=").removesuffix("-")) for one in server.ranges[1:]]
        assert starts == sorted(set(starts))
        assert starts[0] > 0


def test_a_later_call_goes_on_where_an_earlier_one_ended(server, tmp_path):
    server.faults = ["short", "500", "500", "500", "500"]
    with pytest.raises(DownloadError, match=r"answers 500 .*, 3 times in a row; 640,000 bytes are kept"):
        download(server.url, tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()
    server.faults = []
    assert download(server.url, tmp_path / "w.pth").read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=640000-"


def test_a_part_of_another_version_is_not_gone_on_with(server, tmp_path):
    server.faults = ["short", "500", "500", "500"]
    with pytest.raises(DownloadError):
        download(server.url, tmp_path / "w.pth")
    server.content, server.etag, server.faults = CONTENT[::-1], '"two"', []
    assert download(server.url, tmp_path / "w.pth").read_bytes() == CONTENT[::-1]


def test_a_server_that_cannot_go_on_sends_it_whole(server, tmp_path):
    server.faults = ["short", "ignores"]
    assert download(server.url, tmp_path / "w.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["vague", "elsewhere"])
def test_a_server_that_goes_on_wrongly_is_asked_for_the_whole(server, tmp_path, fault):
    server.faults = ["short", fault]
    assert download(server.url, tmp_path / "w.pth").read_bytes() == CONTENT
    server.faults = ["short", fault] * 9
    with pytest.raises(DownloadError, match="does not send what was asked for"):
        download(server.url, tmp_path / "two.pth")


def test_a_part_with_other_bytes_is_begun_anew(server, tmp_path):
    (tmp_path / "w.pth.part").write_bytes(b"of whatever")
    (tmp_path / "w.pth.part.version").write_text(server.etag)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert download(server.url, tmp_path / "w.pth", sha256=sha256).read_bytes() == CONTENT
    assert [one.name for one in tmp_path.iterdir()] == ["w.pth"]


def test_a_full_disk_is_told_at_once(server, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # stands for a full disk
    try:
        with pytest.raises(DownloadError, match=r"w\.pth\.part: cannot be written .*; make room"):
            download(server.url, tmp_path / "w.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(server.ranges) == 1


def test_a_part_of_which_nothing_is_known_is_begun_anew(server, tmp_path):
    (tmp_path / "w.pth.part").write_bytes(b"of whatever")
    assert download(server.url, tmp_path / "w.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("fault", "known", "said"),
    [
        ("page", {}, r"what came is a web page \(Quota exceeded\)"),
        ("", {"sha256": "0" * 64}, "what came has the SHA-256 [0-9a-f]{64}, not 000"),
        ("", {"size_bytes": 7}, "1,280,001 bytes came, not the 7"),
    ],
)
def test_another_file_never_gets_the_name(server, tmp_path, fault, known, said):
    server.faults = [fault]
    with pytest.raises(DownloadError, match=said) as caught:
        download(server.url, tmp_path / "w.pth", **known)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "said"), [("404", "the server does not have it"), ("403", "refuses it .403.; download it in a")]
)
def test_what_will_not_change_is_told_at_once(server, tmp_path, code, said):
    server.faults = [code] * 9
    with pytest.raises(DownloadError, match=said):
        download(server.url, tmp_path / "w.pth")
    assert len(server.ranges) == 1


@pytest.mark.parametrize("code", ["401", "403"])
def test_the_hubs_refusal_names_the_token(server, tmp_path, code, monkeypatch):
    monkeypatch.setattr(module.constants, "ENDPOINT", server.url)
    server.faults = [code]
    with pytest.raises(DownloadError, match="HF_TOKEN"):
        download(server.url, tmp_path / "w.pth")


def test_no_server_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAUSES_SECONDS", (0.0,))
    with pytest.raises(DownloadError, match=r"ConnectionRefusedError.*2 times in a row") as caught:
        download("http://127.0.0.1:9/w.pth", tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_several_processes_download_it_once(server, tmp_path):
    threads = [threading.Thread(target=download, args=(server.url, tmp_path / "w.pth")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert len(server.ranges) == 1


def test_a_bad_file_leaves_the_hubs_cache_with_its_link(tmp_path, monkeypatch):
    monkeypatch.setattr(module.constants, "HF_HUB_CACHE", str(tmp_path))
    blob = tmp_path / "models--a--b" / "blobs" / "00"
    link = tmp_path / "models--a--b" / "snapshots" / "1" / "w.pth"
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    blob.write_bytes(b"")
    link.symlink_to(Path("../../blobs/00"))
    mine = tmp_path.parent / "mine.pth"
    mine.write_bytes(b"")
    assert forget_cached(link)
    assert not forget_cached(mine)
    assert not blob.exists()
    assert not link.is_symlink()
    assert mine.exists()

"""Download a file: go on where a transfer broke, check what came, and only then give it its name.

Also tell from a file's first bytes what lies there in its place: a pointer, a web page, a part of the file.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import re
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from huggingface_hub import constants, get_token

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 60.0
PAUSES_SECONDS = (1.0, 4.0, 15.0, 30.0)
"""Between the attempts, where several in a row bring no further byte."""
BLOCK_BYTES = 2**20
HEAD_BYTES = 4096
MAX_HEADER_BYTES = 100_000_000
"""Of a safetensors file, as its own library has it."""
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
"""Answers of a server that may be another one in a while."""
AGAIN = "get it again"


class DownloadError(OSError):
    """A file cannot be downloaded, in one line: from where, why, and what to do."""


def download(url: str, path: Path, *, sha256: str = "", size_bytes: int = 0) -> Path:
    """Download a file to this path, unless it is there by then; it is there whole and checked, or not at all.

    What came of a broken transfer stays beside it as `NAME.part` and is gone on with, by this call or a later one.

    Args:
        sha256: of the file in hex, or how it begins; "" where unknown.
        size_bytes: 0 where unknown.
    Raises:
        DownloadError: it cannot be had, or is another file.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(path):
        if path.exists():  # another process was first
            return path
        part = path.with_name(f"{path.name}.part")
        log.info("downloading %s to %s", url, path)
        gone_on_with = _size(part) > 0
        while True:
            _fetch(url, part, size_bytes)
            try:
                check_content(part, sha256=sha256, size_bytes=size_bytes)
                break
            except DownloadError as error:
                _forget(part)
                if not gone_on_with:
                    raise DownloadError(f"{url}: {error}") from error
                log.warning("%s: what lay there was not its beginning; downloading it from its start", url)
                gone_on_with = False
        part.replace(path)
        _forget(part)
    return path


def check_content(path: Path, *, sha256: str = "", size_bytes: int = 0) -> None:
    """Check that a file is the one that was meant, as far as that is known.

    Raises:
        DownloadError: it is another, or a part of it; what it is, without the path.
    """
    if fault := find_fault(path):
        raise DownloadError(f"what came {fault}")
    size = path.stat().st_size
    if size_bytes and size != size_bytes:
        raise DownloadError(f"{size:,} bytes came, not the {size_bytes:,} of the published file")
    if sha256 and not (found := compute_sha256(path)).startswith(sha256):
        raise DownloadError(f"what came has the SHA-256 {found}, not {sha256}")


def compute_sha256(path: Path) -> str:
    """Of the file's bytes, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_fault(path: Path) -> str | None:
    """Tell what a file is that should hold weights and cannot, and what to do; None where nothing speaks against it.

    Returns:
        "is empty; …", to be put behind the file's name, without a full stop.
    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(HEAD_BYTES)
    if not head:
        return f"is empty; {AGAIN}"
    if is_safetensors(head):
        return _find_safetensors_fault(path, size)
    if head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return f"is cut off: {size:,} bytes of a torch file whose end is missing; {AGAIN}"
    if not any(head):
        return f"begins with zeros, as a file does whose download or copy never ended; {AGAIN}"
    if head.startswith(b"\x00\x05\x16\x07"):
        return "is a companion that macOS wrote, not the file itself; take the one without `._` in its name"
    return _find_text_fault(head, size)


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins so is in safetensors' format."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES


def _find_safetensors_fault(path: Path, size: int) -> str | None:
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length)
    cut = f"is cut off: {size:,} bytes of a safetensors file"
    if len(header) < length:
        return f"{cut} whose table of contents is missing; {AGAIN}"
    try:
        entries = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        whole = 8 + length + max((entry["data_offsets"][1] for entry in entries), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return f"is damaged: a safetensors file with a broken table of contents; {AGAIN}"
    if size < whole:
        return f"{cut} of {whole:,}; {AGAIN}"
    return f"is damaged: {size:,} bytes of a safetensors file of {whole:,}; {AGAIN}" if size > whole else None


def _find_text_fault(head: bytes, size: int) -> str | None:
    """Describe a text that came in place of a file; None for what is not a text."""
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = head.decode(encoding, "strict" if size <= HEAD_BYTES else "ignore").strip()
    except UnicodeDecodeError:
        return None
    if re.search(r"[\x00-\x08\x0e-\x1f�]", text) or len(text) < len(head) / 8:
        return None
    if text.startswith("version https://git-lfs"):
        meant = re.search(r"^size (\d+)$", text, re.MULTILINE)
        of = f" of {int(meant[1]):,} bytes" if meant else ""
        return (
            f"is a Git LFS pointer, not the file{of} itself; run `git lfs pull` where it was cloned, or download it "
            "from the repository's page"
        )
    if re.match(r"<(!doctype|html|head|body|\?xml|!--|script|error)", text, re.IGNORECASE):
        title = re.search(r"<(title|message)>\s*([^<]+?)\s*</", text, re.IGNORECASE)
        titled = f" ({_shorten(title[2])})" if title else ""
        return f"is a web page{titled}, not the file; open its address in a browser, sign in or confirm, and {AGAIN}"
    if text[:1] in "{[" and not ("weight_map" in text and size > HEAD_BYTES):
        return f"is a server's answer or a table in JSON ({_shorten(text)}), not the file; {AGAIN}"
    return f"is a text ({_shorten(text)}), no weights; give the file that holds them, or {AGAIN}"


def _shorten(text: str) -> str:
    """At most 80 characters in one line."""
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:79]}…"


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Let the processes that want one file wait for each other; a dead one's lock is free."""
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # whoever waited for it finds the file there


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def _version_file(part: Path) -> Path:
    """Return the file that notes the version a partial download belongs to, as its server calls it."""
    return part.with_name(f"{part.name}.version")


def _fetch(url: str, part: Path, size_bytes: int) -> None:
    """Bring a part to the whole file.

    Args:
        size_bytes: of the whole file, for servers that do not say it; 0 where unknown.
    Raises:
        DownloadError: not in several attempts, or never will, or the disk does not take it.
    """
    fruitless, most = 0, _size(part)
    while True:
        try:
            if _fetch_rest(url, part, size_bytes):
                return
            why, wait = "the connection ended early", 0.0
        except urllib.error.HTTPError as error:
            if error.code == 416 and _size(part):  # the part is not the beginning of what lies there now
                _forget(part)
                continue
            if error.code not in TRANSIENT:
                raise DownloadError(f"{url}: {describe_refusal(url, error.code)}") from error
            why, wait = f"the server answers {error.code} {error.reason}", _read_wait(error)
        except DownloadError:
            raise
        except (OSError, http.client.HTTPException) as error:
            if isinstance(reason := getattr(error, "reason", error), FileNotFoundError) or not urlsplit(url).netloc:
                raise DownloadError(f"{url}: {reason}") from error
            why, wait = describe_break(error), 0.0
        fruitless = 0 if _size(part) > most else fruitless + 1
        most = max(most, _size(part))
        if fruitless > len(PAUSES_SECONDS):
            here = _size(part)
            goes_on = here and _version_file(part).is_file()
            kept = f"; {here:,} bytes are kept, and the same command goes on from there" if goes_on else ""
            raise DownloadError(f"{url}: {why}, {fruitless} times in a row{kept}")
        pause = max(wait, PAUSES_SECONDS[max(0, fruitless - 1)])
        log.warning("%s: %s; going on at byte %s in %.0f s", url, why, f"{_size(part):,}", pause)
        time.sleep(pause)


def _fetch_rest(url: str, part: Path, size_bytes: int) -> bool:
    """Append what is missing of a file; whether it is whole then.

    Raises:
        DownloadError: the disk does not take it.
        urllib.error.HTTPError, OSError, http.client.HTTPException: the transfer failed or broke; what came is kept.
    """
    version = _version_file(part)
    if not version.is_file():
        part.unlink(missing_ok=True)  # of which file it is the beginning, nobody knows
    here = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "facereward", "Accept-Encoding": "identity"})
    if here:
        request.add_header("Range", f"bytes={here}-")
        request.add_header("If-Range", version.read_text(encoding="utf-8"))
    if is_hub(url) and (token := get_token()):
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # not for the hub's storage
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        goes_on = getattr(answer, "status", None) == 206
        start, whole = _read_range(answer) if goes_on else (0, _read_number(answer.headers.get("Content-Length")))
        if goes_on and start != here:
            _forget(part)  # this server cannot go on; the next attempt asks for the whole file
            raise OSError(f"the server does not send what was asked for, bytes from {here:,} on")
        with _told_as_of_the_disk(part):
            _note_version(version, answer.headers)
            stream = open(part, "ab" if goes_on else "wb")  # noqa: SIM115
        with stream:
            while block := answer.read1(BLOCK_BYTES):  # what has come, so that a break loses none of it
                with _told_as_of_the_disk(part):
                    stream.write(block)
    return _size(part) == (whole or size_bytes or _size(part))


@contextmanager
def _told_as_of_the_disk(part: Path) -> Iterator[None]:
    """Tell what goes wrong as the disk's fault, which no further attempt mends."""
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"{part}: cannot be written ({error.strerror}); make room, or name another folder. The same command goes on"
        ) from error


def _note_version(version: Path, headers: Any) -> None:
    name = headers.get("ETag") or ""
    name = headers.get("Last-Modified") or "" if name.startswith("W/") or not name else name
    if name:
        version.write_text(name, encoding="utf-8")
    else:
        version.unlink(missing_ok=True)


def _read_range(answer: Any) -> tuple[int, int | None]:
    """(first byte, size of the whole file) of an answer with a part; -1 where it does not say which part."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
    return (int(found[1]), _read_number(found[2])) if found else (-1, None)


def _read_number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _read_wait(error: urllib.error.HTTPError) -> float:
    """The seconds that a server asks to wait, a minute at most."""
    return min(60.0, float(_read_number(error.headers.get("Retry-After")) or 0))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def is_hub(url: str) -> bool:
    """Whether an address is of the Hugging Face hub or of the mirror that HF_ENDPOINT names."""
    host = urlsplit(url).hostname or ""
    return host in ("huggingface.co", "hf.co") or host == urlsplit(constants.ENDPOINT).hostname


def describe_break(error: BaseException) -> str:
    """Explain in one line why a transfer broke."""
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, TimeoutError):
        return f"nothing came for {TIMEOUT_SECONDS:.0f} seconds"
    if isinstance(reason, http.client.IncompleteRead):
        return "the connection ended early"
    return f"{type(reason).__name__}: {_shorten(str(reason))}" if str(reason) else type(reason).__name__


def describe_refusal(url: str, code: int) -> str:
    """Explain an answer that will stay the same for a while, and what to do."""
    if code in (401, 403) and is_hub(url):
        page = url.partition("/resolve/")[0]
        return (
            f"the Hugging Face hub refuses it ({code}): the repository is gated or private, or the token is wrong; "
            f"accept its terms at {page}, then set HF_TOKEN to a token of yours (`hf auth token` shows it)"
        )
    if code in (401, 403):
        return f"the server refuses it ({code}); download it in a browser"
    if code in (404, 410):
        return f"the server does not have it ({code})"
    return f"the server answers {code} {http.client.responses.get(code, '')}".strip()


def forget_cached(path: Path) -> bool:
    """Remove a file of the Hugging Face cache, its link and what the link points to; whether it was one of the cache.

    Without the second, the next download would find the blob and link to it again.

    Raises:
        OSError: it belongs to somebody else.
    """
    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    if not path.parent.resolve().is_relative_to(cache):
        return False
    blob = path.resolve()
    path.unlink(missing_ok=True)
    if blob.is_relative_to(cache):
        blob.unlink(missing_ok=True)
    return True

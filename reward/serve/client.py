"""Ask a reward that is served over HTTP, ours or anybody's who keeps to the contract in docs/reward.md."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from db.errors import UserError, first_fault
from pixels.read import RgbImage
from reward.serve.contract import CONTRACT, NPZ, Answer, RemoteDescription
from reward.serve.wire import pack_request

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "FACEREWARD_REWARD_TOKEN"
WAITS_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Before each further attempt, a minute in all: as long as a server takes to start again."""
LONGEST_WAIT_SECONDS = 60.0
RETRIED = (502, 503, 504)
MAX_ANSWER_BYTES = 2**20
UTF32_BYTES = 4
"""Of a character in an array of numpy's."""
SPARE_BYTES = 2**12
"""Of a body, for the headers of its arrays."""


class RemoteReward:
    """A reward model behind an address; the version that it had when it was first asked stays."""

    def __init__(self, url: str, token: str | None = None, timeout_seconds: float = 60) -> None:
        """Connect to nothing yet.

        Args:
            url: http://HOST:PORT or https://…, with the path below which a proxy serves it.
            token: default: what the environment's FACEREWARD_REWARD_TOKEN holds.
            timeout_seconds: how long connecting, and one batch's rewards, may take.
        Raises:
            UserError: the address is none, or holds a password.
        """
        self.url = check_url(url)
        self.timeout_seconds = timeout_seconds
        token = token if token is not None else os.environ.get(TOKEN_VARIABLE, "").strip()
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if token:
            if not (token.isascii() and token.isprintable()):
                raise UserError("The token of the remote reward holds signs that no header can; copy it again.")
            headers["Authorization"] = f"Bearer {token}"
        # Redirects are not followed: the token would go to whatever address an answer names.
        self.http = httpx.Client(headers=headers, timeout=timeout_seconds, follow_redirects=False)
        self.description: RemoteDescription | None = None

    def describe(self) -> RemoteDescription:
        """What the server tells of its reward; asked for once, and never waited for long.

        Raises:
            UserError: it cannot be reached, refuses the token, or keeps to another contract.
        """
        if self.description is None:
            values = self._ask("GET", "version", waits_seconds=WAITS_SECONDS[:1])
            contract = values.get("contract") if isinstance(values, dict) else None
            if contract != CONTRACT:
                said = f"contract {contract!r}" if isinstance(contract, int) else "no contract"
                raise UserError(
                    f"{self.url} is no reward that can be asked: it names {said}, this FaceReward speaks {CONTRACT}; "
                    "see docs/reward.md."
                )
            try:
                self.description = RemoteDescription.model_validate(values)
            except ValidationError as error:
                raise UserError(f"{self.url} describes its reward wrongly ({first_fault(error)}).") from error
        return self.description

    def score(
        self, images: RgbImage, inputs: RgbImage | None = None, captions: Sequence[str | None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Rewards, higher is better; asked for in batches that the server takes.

        Args:
            images: (N, H, W, 3) uint8 RGB.
            inputs: (N, h, w, 3) uint8 RGB, the photos that were restored; needed where `describe().needs_input`.
            captions: N of them, None where there is none; read where `describe().needs_caption`.
        Returns:
            (N,) finite float32.
        Raises:
            ValueError: the arrays are not of these shapes and types.
            UserError: the server cannot be reached, refuses, has another version than at first, or answers wrongly;
                images are larger than it takes, or lack the photos that it needs.
        """
        about = self.describe()
        check_arrays(images, inputs, captions)
        if about.needs_input and inputs is None:
            raise UserError(
                f"The reward {about.name} at {self.url} compares with the photo that was restored; none came."
            )
        if not about.needs_input:
            inputs = None
        size, longest = self._choose_batch(about, images, inputs), about.limits.max_caption_characters
        texts = None
        if about.needs_caption and captions is not None:
            texts = [text[:longest] if text else None for text in captions]
        found = [np.zeros(0, dtype=np.float32)]
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            seen = inputs[part] if inputs is not None else None
            body = pack_request(images[part], seen, texts[part] if texts is not None else None)
            found.append(self._check_answer(self._ask("POST", "score", body), about, len(images[part])))
        return np.concatenate(found)

    def _choose_batch(self, about: RemoteDescription, images: RgbImage, inputs: RgbImage | None) -> int:
        """How many images go in a request."""
        limits, arrays = about.limits, [images] if inputs is None else [images, inputs]
        for array in arrays:
            if max(array.shape[1:3]) > limits.max_side_px:
                raise UserError(
                    f"Images of {array.shape[2]} x {array.shape[1]} pixels are more than the {limits.max_side_px:,} a "
                    f"side that {self.url} takes; serve it with --max-side-px {max(array.shape[1:3])}."
                )
        bytes_each = sum(array[:1].nbytes for array in arrays) + limits.max_caption_characters * UTF32_BYTES
        size = min(limits.max_images, (limits.max_body_bytes - SPARE_BYTES) // bytes_each)
        if size < 1:
            raise UserError(f"One image is more than the {limits.max_body_bytes:,} bytes that {self.url} takes.")
        return size

    def _check_answer(self, values: Any, about: RemoteDescription, count: int) -> npt.NDArray[np.float32]:
        """The rewards of an answer."""
        try:
            answer = Answer.model_validate(values)
        except ValidationError as error:
            raise UserError(f"{self.url} answers with no rewards ({first_fault(error)}).") from error
        if answer.version != about.version:
            raise UserError(
                f"{self.url} has another reward than at first: {answer.version}, it was {about.version}. Rewards of "
                "two versions are never mixed; serve the first one again."
            )
        rewards = np.array(answer.rewards, dtype=np.float32)
        if len(rewards) != count or not np.isfinite(rewards).all():
            finite = int(np.isfinite(rewards).sum())
            raise UserError(f"{self.url} gives {finite:,} finite rewards for {count:,} images.")
        return rewards

    def _ask(
        self, method: str, path: str, body: bytes | None = None, waits_seconds: Sequence[float] | None = None
    ) -> Any:
        """JSON of a 200; a server that is away or busy is asked again after each of the waits."""
        waits = WAITS_SECONDS if waits_seconds is None else waits_seconds
        for wait in (*waits, None):
            try:
                answer, content = self._send(method, path, body)
            except httpx.ReadTimeout as error:
                raise UserError(
                    f"{self.url} has not answered for {self.timeout_seconds:g} s; it may be too slow for this batch."
                ) from error
            except httpx.TransportError as error:
                if wait is None:
                    said = str(error) or type(error).__name__
                    raise UserError(
                        f"{self.url} cannot be reached ({said}); is `python -m reward serve` running there?"
                    ) from error
                logger.info("%s cannot be reached (%s); trying again in %g s", self.url, error, wait)
                time.sleep(wait)
                continue
            if answer.status_code not in RETRIED or wait is None:
                return self._read(answer, content)
            time.sleep(max(wait, read_retry_after(answer)))
        raise AssertionError("the last attempt returns or raises")

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[httpx.Response, bytes]:
        """An answer and what it says, as it came: not unpacked, and no more than MAX_ANSWER_BYTES of it."""
        headers = {"Content-Type": NPZ} if body is not None else {}
        content = bytearray()
        with self.http.stream(method, f"{self.url}/{path}", content=body, headers=headers) as answer:
            for chunk in answer.iter_raw():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    break
        return answer, bytes(content)

    def _read(self, answer: httpx.Response, content: bytes) -> Any:
        """What an answer says.

        Raises:
            UserError: it is a refusal, or no JSON.
        """
        status = answer.status_code
        values = parse_json(content) if len(content) <= MAX_ANSWER_BYTES else None
        if status == 200 and isinstance(values, dict):
            return values
        if status in (401, 403):
            raise UserError(f"{self.url} refuses the token; set {TOKEN_VARIABLE} to the one it was started with.")
        told = values.get("error") if isinstance(values, dict) else None
        said = f": {' '.join(str(told).split())[:300]}" if told else ""
        if status == 200 or (status in (404, 405) and not told) or 300 <= status < 400:
            raise UserError(f"{self.url} is no reward that can be asked (HTTP {status}); see docs/reward.md.")
        raise UserError(f"{self.url} refuses with HTTP {status}{said}")


def check_url(url: str) -> str:
    """The address without a slash at its end.

    Raises:
        UserError: it is no address of a server, or holds what is not to be sent.
    """
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise UserError(f"{url!r} is no address of a remote reward ({error}); give http://HOST:PORT.") from error
    if parts.userinfo:
        raise UserError(f"The address of the remote reward holds a password; set {TOKEN_VARIABLE} instead.")
    if parts.scheme not in ("http", "https") or not parts.host or parts.query or parts.fragment:
        raise UserError(f"{url!r} is no address of a remote reward; give http://HOST:PORT or https://HOST.")
    return url.rstrip("/")


def check_arrays(images: RgbImage, inputs: RgbImage | None, captions: Sequence[str | None] | None) -> None:
    """Check what a caller gives.

    Raises:
        ValueError: shapes, types or numbers of things are not as `score` says.
    """
    for name, array in (("images", images), ("inputs", inputs)):
        if array is not None and (array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3):
            raise ValueError(f"{name} are {array.dtype} {array.shape}, not uint8 (N, H, W, 3)")
    for name, things in (("inputs", inputs), ("captions", captions)):
        if things is not None and len(things) != len(images):
            raise ValueError(f"{len(images)} images, but {len(things)} {name}")


def read_retry_after(answer: httpx.Response) -> float:
    """Seconds that a server asks to wait, at most LONGEST_WAIT_SECONDS; 0 where it names none, or a date."""
    said = answer.headers.get("retry-after", "")
    return min(float(said), LONGEST_WAIT_SECONDS) if said.isascii() and said.isdecimal() else 0.0


def parse_json(content: bytes) -> Any:
    """JSON; None for what is none."""
    try:
        return json.loads(content)  # reads NaN too, which Python's own servers write; it is refused with a better word
    except (ValueError, RecursionError):
        return None

"""Read and write what goes over the wire between who asks for rewards and who gives them: docs/reward.md says it.

Images go as a .npz of uint8 arrays or as base64 in JSON, never as a pickle. Whatever is read is taken for hostile:
sizes are checked where they are declared, before anything is unpacked, so that nothing is larger than `Limits`.
"""

from __future__ import annotations

import binascii
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from db.errors import first_fault
from pixels.read import ImageFault, RgbImage, decode_rgb
from reward.serve.contract import JSON, Answer, Limits, Refusal, check_counts
from reward.serve.npz import read_npz

MAX_MARKS = 20_000
"""Brackets, commas and colons of a JSON body: each value costs memory, of however few bytes it is."""
MARKS = (b"[", b"{", b",", b":")
DECODING_THREADS = 4


@dataclass(frozen=True)
class ScoreRequest:
    """What is to be scored."""

    images: list[RgbImage]
    """(H, W, 3) uint8 RGB, one or more."""
    inputs: list[RgbImage] | None
    """As many, the photos that are seen beside them."""
    captions: list[str | None]
    """As many."""


class _ScoreBody(BaseModel):
    """The JSON body of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    images: list[str]
    inputs: list[str] | None = None
    captions: list[str | None] | None = None


def pack_request(images: RgbImage, inputs: RgbImage | None, captions: Sequence[str | None] | None) -> bytes:
    """The .npz body of a request.

    Args:
        images: (N, H, W, 3) uint8 RGB.
        inputs: (N, h, w, 3), or None.
        captions: N of them; None and empty are none.
    """
    arrays: dict[str, npt.NDArray[Any]] = {"images": images}
    if inputs is not None:
        arrays["inputs"] = inputs
    if captions is not None and any(captions):
        arrays["captions"] = np.array([caption or "" for caption in captions], dtype="<U")
    return _pack(arrays)


def pack_answer(answer: Answer) -> bytes:
    """An answer as .npz: rewards and spread in float32, name and version as text."""
    arrays: dict[str, npt.NDArray[Any]] = {"rewards": np.array(answer.rewards, dtype=np.float32)}
    if answer.spread is not None:
        arrays["spread"] = np.array(answer.spread, dtype=np.float32)
    return _pack({**arrays, "name": np.array(answer.name), "version": np.array(answer.version)})


def _pack(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_request(body: bytes, kind: str, limits: Limits) -> ScoreRequest:
    """What a body of the type JSON or NPZ asks for.

    Raises:
        Refusal: it is damaged, too large unpacked, or holds anything else than the contract says.
    """
    if not body:
        raise Refusal(400, "The request has no body; send images.")
    request = _read_json(body, limits) if kind == JSON else _make_request(read_npz(body, limits))
    longest, most = max(len(caption or "") for caption in request.captions), limits.max_caption_characters
    if longest > most:
        raise Refusal(422, f"A caption has {longest:,} characters; at most {most:,} are taken.")
    return request


def _make_request(arrays: dict[str, Any]) -> ScoreRequest:
    inputs = list(arrays["inputs"]) if "inputs" in arrays else None
    texts = arrays.get("captions") or [None] * len(arrays["images"])
    return ScoreRequest(list(arrays["images"]), inputs, [text or None for text in texts])


def _read_json(body: bytes, limits: Limits) -> ScoreRequest:
    if sum(map(body.count, MARKS)) > MAX_MARKS:
        raise Refusal(422, f"The JSON has more than {MAX_MARKS:,} values; images go as base64 of files.")
    try:
        said = _ScoreBody.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"The body is not JSON: {str(error)[:200]}.") from error
    except ValidationError as error:
        raise Refusal(422, f"The JSON is not a request: {first_fault(error)[:300]}.") from error
    check_counts(len(said.images), {"inputs": said.inputs, "captions": said.captions}, limits)
    decoded = list(_decode_images(said, limits))
    images, inputs = decoded[: len(said.images)], decoded[len(said.images) :]
    return ScoreRequest(images, inputs or None, said.captions or [None] * len(images))


def _decode_images(said: _ScoreBody, limits: Limits) -> Iterator[RgbImage]:
    """The images, then the inputs, some at a time in threads; ends where all unpacked would be too large."""
    named = [(f"images[{at}]", text) for at, text in enumerate(said.images)]
    named += [(f"inputs[{at}]", text) for at, text in enumerate(said.inputs or ())]
    total = 0
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for start in range(0, len(named), DECODING_THREADS):
            some = named[start : start + DECODING_THREADS]
            for image in pool.map(_decode_image, some, [limits] * len(some)):
                total += image.nbytes
                if total > limits.max_body_bytes:
                    raise Refusal(413, f"The images unpack to more than {limits.max_body_bytes:,} bytes; send fewer.")
                yield image


def _decode_image(named: tuple[str, str], limits: Limits) -> RgbImage:
    name, text = named
    try:
        content = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:  # binascii.Error, and what is not ASCII
        raise Refusal(422, f"{name} is not base64: {error}.") from error
    try:
        return decode_rgb(content, limits.max_side_px)
    except ImageFault as error:
        raise Refusal(422, f"{name} cannot be used: {str(error)[:300]}.") from error

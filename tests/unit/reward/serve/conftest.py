"""Small reward models as the service has them, requests that are right, and many that are wrong."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

from pixels.read import RgbImage
from reward.model.model import RewardModel
from reward.model.reward_set import compute_reward_version
from reward.score.scorer import Scorer
from reward.serve.contract import JSON, NPZ, Limits

LIMITS = Limits(max_images=4, max_side_px=40, max_body_bytes=20_000, max_caption_characters=100)
"""Of the tests' servers: small, so that what is too large is small too."""
Bad = tuple[str, bytes, int, str]
"""(type of the body, body, status, words of the answer)"""


def draw_faces(count: int, side_px: int = 24, seed: int = 0) -> RgbImage:
    """(count, side, side, 3) of noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, side_px, side_px, 3), dtype=np.uint8)


def encode(image: RgbImage, kind: str = "PNG") -> str:
    """An image file as base64."""
    buffer = io.BytesIO()
    PilImage.fromarray(image).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def save_npz(**arrays: Any) -> bytes:
    """As numpy.savez_compressed writes it, pickled objects too."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def zip_members(compression: int = zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    """A zip of these members, whatever they hold."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def make_npy(descr: str, shape: str, content: bytes = b"", version: int = 1, padding: int = 0) -> bytes:
    """An .npy file with a header of one's own."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}{' ' * padding}\n".encode()
    return (
        b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(2 if version == 1 else 4, "little") + header + content
    )


def make_bad_requests() -> dict[str, Bad]:
    """Requests that are answered with a 4xx, by what is wrong with them."""
    faces, face = draw_faces(2), encode(draw_faces(1)[0])
    good = save_npz(images=faces)
    locked = bytearray(good)
    locked[6] |= 1
    locked[good.rindex(b"PK\x01\x02") + 8] |= 1
    flipped = bytearray(good)
    flipped[len(good) // 3] ^= 0xFF

    def as_json(**body: Any) -> bytes:
        return json.dumps(body).encode()

    return {
        "another type": ("text/plain", b"hello", 415, "send application/json or application/x-npz"),
        "a pickle": ("application/octet-stream", pickle.dumps(faces), 415, "'application/octet-stream'"),
        "a pickle under another name": (NPZ, pickle.dumps(faces), 400, "not an .npz"),
        "no body": (JSON, b"", 400, "no body"),
        "no JSON": (JSON, b"{images", 400, "not JSON"),
        "no text": (JSON, b'{"images": ["\xff\xfe"]}', 400, "not JSON"),
        "NaN": (JSON, b'{"images": [NaN]}', 400, "not JSON"),
        "nested deep": (JSON, b'{"images": ' + b"[" * 9_000 + b"]" * 9_000 + b"}", 400, "not JSON"),
        "many values": (JSON, b'{"images": [' + b"[]," * 6_000 + b"[]]}", 422, "images.0"),
        "a list": (JSON, b"[]", 422, "not a request"),
        "a number": (JSON, b"1e999", 400, "not JSON"),
        "null": (JSON, b"null", 422, "not a request"),
        "an unknown field": (JSON, as_json(images=[face], path="/etc/passwd"), 422, "path"),
        "no images field": (JSON, as_json(captions=["a"]), 422, "images"),
        "no images": (JSON, as_json(images=[]), 422, "no images"),
        "numbers for images": (JSON, as_json(images=[[[[0.5, 0.5, 0.5]]]]), 422, "images.0"),
        "a text for images": (JSON, as_json(images=face), 422, "images"),
        "too many images": (JSON, as_json(images=[face] * 5), 413, "at most 4"),
        "broken base64": (JSON, as_json(images=["%%%"]), 422, "images[0] is not base64"),
        "base64 cut short": (JSON, as_json(images=[face[:-3]]), 422, "images[0] is not base64"),
        "base64 of umlauts": (JSON, as_json(images=["äöü"]), 422, "images[0] is not base64"),
        "an empty image": (JSON, as_json(images=[face, ""]), 422, "images[1] cannot be used"),
        "a truncated image": (JSON, as_json(images=[face[: len(face) // 8 * 4]]), 422, "images[0] cannot be used"),
        "an image of text": (
            JSON,
            as_json(images=[base64.b64encode(b"hello").decode()]),
            422,
            "not a PNG, JPEG or WebP",
        ),
        "a GIF": (JSON, as_json(images=[encode(faces[0], "GIF")]), 422, "GIF"),
        "a wide image": (JSON, as_json(images=[encode(np.zeros((1, 41, 3), np.uint8))]), 422, "41 x 1 pixels"),
        "a huge image of few bytes": (
            JSON,
            as_json(images=[encode(np.zeros((2000, 2000, 3), np.uint8))]),
            422,
            "2000 x",
        ),
        "images that unpack to much": (
            JSON,
            as_json(
                images=[encode(np.zeros((40, 40, 3), np.uint8))] * 4,
                inputs=[encode(np.zeros((40, 40, 3), np.uint8))] * 4,
            ),
            413,
            "unpack to more than 20,000",
        ),
        "other number of inputs": (JSON, as_json(images=[face], inputs=[face, face]), 422, "1 images but 2 inputs"),
        "other number of captions": (JSON, as_json(images=[face], captions=[]), 422, "1 images but 0 captions"),
        "a number as caption": (JSON, as_json(images=[face], captions=[3]), 422, "captions.0"),
        "half a character": (JSON, b'{"images": ["' + face.encode() + b'"], "captions": ["\\ud800"]}', 400, "not JSON"),
        "an endless caption": (JSON, as_json(images=[face], captions=["a" * 101]), 422, "101 characters"),
        "too large": (NPZ, bytes(20_001), 413, "larger than 20,000 bytes"),
        "no zip": (NPZ, b"PK\x03\x04 and so on", 400, "not an .npz"),
        "a zip cut short": (NPZ, good[:-30], 400, "not an .npz"),
        "a zip cut at its beginning": (NPZ, good[10:], 400, "not an .npz"),
        "an empty zip": (NPZ, zip_members(), 400, "not an .npz"),
        "a flipped byte": (NPZ, bytes(flipped), 400, "Bad CRC-32"),
        "a locked zip": (NPZ, bytes(locked), 400, "is encrypted"),
        "bzip2": (
            NPZ,
            zip_members(zipfile.ZIP_BZIP2, images=make_npy("'|u1'", "(1, 2, 2, 3)", bytes(12))),
            422,
            "packed",
        ),
        "no images array": (NPZ, save_npz(inputs=faces), 422, "has no images"),
        "an unknown array": (NPZ, save_npz(images=faces, weights=faces), 422, "'weights.npy'"),
        "many members": (NPZ, zip_members(**{f"m{number}": b"" for number in range(90)}), 422, "holds more than"),
        "another file": (NPZ, zip_members(images=b"hello"), 422, "not an .npy"),
        "pickled objects": (NPZ, save_npz(images=np.array([{"a": 1}], dtype=object)), 422, "wrong type"),
        "pickled captions": (NPZ, save_npz(images=faces, captions=np.array(["a", None])), 422, "wrong type"),
        "floats": (NPZ, save_npz(images=np.full((1, 8, 8, 3), np.nan, np.float32)), 422, "wrong type"),
        "code for a header": (NPZ, zip_members(images=make_npy("__import__('os')", "(1,)")), 422, "wrong type"),
        "grey images": (NPZ, save_npz(images=faces[..., 0]), 422, "uint8 (N, H, W, 3)"),
        "channels first": (NPZ, save_npz(images=faces.transpose(0, 3, 1, 2)), 422, "uint8 (N, H, W, 3)"),
        "RGBA": (NPZ, save_npz(images=np.zeros((1, 8, 8, 4), np.uint8)), 422, "uint8 (N, H, W, 3)"),
        "images without pixels": (NPZ, save_npz(images=np.zeros((2, 0, 8, 3), np.uint8)), 422, "uint8 (N, H, W, 3)"),
        "an array of no images": (NPZ, save_npz(images=faces[:0]), 422, "no images"),
        "an array of too many": (NPZ, save_npz(images=np.zeros((5, 2, 2, 3), np.uint8)), 413, "at most 4"),
        "wide images": (NPZ, save_npz(images=np.zeros((1, 2, 41, 3), np.uint8)), 413, "41 x 2 pixels"),
        "wide inputs": (
            NPZ,
            save_npz(images=faces, inputs=np.zeros((2, 41, 2, 3), np.uint8)),
            413,
            "inputs are 2 x 41",
        ),
        "fewer inputs": (NPZ, save_npz(images=faces, inputs=faces[:1]), 422, "2 images but 1 inputs"),
        "fewer captions": (NPZ, save_npz(images=faces, captions=np.array(["a"])), 422, "2 images but 1 captions"),
        "captions as bytes": (NPZ, save_npz(images=faces, captions=np.array([b"a", b"b"])), 422, "wrong type"),
        "captions of no characters": (
            NPZ,
            zip_members(
                images=make_npy("'|u1'", "(1, 1, 1, 3)", b"abc"),
                captions=make_npy("'<U1'", "(1,)", b"\xff\xff\xff\xff"),
            ),
            422,
            "not Unicode",
        ),
        "captions of half characters": (
            NPZ,
            zip_members(
                images=make_npy("'|u1'", "(1, 1, 1, 3)", b"abc"),
                captions=make_npy("'<U1'", "(1,)", b"\x00\xd8\x00\x00"),
            ),
            422,
            "not Unicode text",
        ),
        "a bomb that fits": (
            NPZ,
            zip_members(images=make_npy("'|u1'", "(1, 40, 40, 3)", bytes(10_000_000))),
            422,
            "other than the 4,800 bytes",
        ),
        "a bomb that says so": (
            NPZ,
            zip_members(
                images=save_part(np.zeros((4, 40, 40, 3), np.uint8)),
                inputs=save_part(np.zeros((4, 40, 40, 3), np.uint8)),
            ),
            413,
            "unpack to 38,400 bytes",
        ),
        "terabytes that are not there": (
            NPZ,
            zip_members(images=make_npy("'|u1'", "(4, 999999999, 999999999, 3)")),
            413,
            "999999999 x",
        ),
        "fewer bytes than declared": (
            NPZ,
            zip_members(images=make_npy("'|u1'", "(1, 2, 2, 3)", bytes(11))),
            422,
            "other than the 12",
        ),
        "a header of megabytes": (
            NPZ,
            zip_members(images=make_npy("'|u1'", "(1, 2, 2, 3)", bytes(12), version=2, padding=9_000_000)),
            422,
            "a header of",
        ),
        "a header of another version": (
            NPZ,
            zip_members(images=make_npy("'|u1'", "(1, 2, 2, 3)", bytes(12), version=9)),
            422,
            "not an .npy",
        ),
    }


def save_part(array: RgbImage) -> bytes:
    """An array as .npy."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


BAD = make_bad_requests()


@pytest.fixture
def make_scorer(make_model: Callable[..., RewardModel]) -> Callable[..., Scorer]:
    """`make_scorer(text_mode="input")`: a scorer of the small model, which reads no captions unless told otherwise."""

    def make(**fields: Any) -> Scorer:
        model = make_model(**{"text_mode": "fixed", **fields}).requires_grad_(False)
        return Scorer("small", None, model, compute_reward_version(model))

    return make

"""Read the .npz of a request, which may be hostile: what is declared is checked before anything is unpacked.

numpy's own reader would allocate whatever a header declares, and evaluate the header as Python; zipfile makes an object
of each of as many members as somebody cares to send.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from reward.serve.contract import Limits, Refusal, check_counts

HEADER = re.compile(
    r"\{\s*'descr':\s*'(?P<kind>[|<]u1|<U\d{1,4})',\s*'fortran_order':\s*(?P<fortran>True|False),"
    r"\s*'shape':\s*\((?P<shape>\d{0,9}(,\s*\d{1,9}){0,3},?)\s*\),?\s*\}\s*"
)
"""The header of an .npy file of images or captions."""
NPY_MAGIC = re.compile(rb"\x93NUMPY[\x01\x02\x03]\x00")
ZIP_END = struct.Struct("<4s4H2IH")
"""End of a zip's list of members: signature, …, their number, the list's bytes, …, the comment's length."""
ZIP64_SIGNATURE = b"PK\x06\x07"
ZIP64_BYTES = 20
MAX_ZIP_LIST_BYTES = 4_096
MAX_NPY_HEADER_BYTES = 1_024
BAD_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
)
"""What zipfile raises at damaged, encrypted or unknown members."""


def read_npz(body: bytes, limits: Limits) -> dict[str, Any]:
    """`images` and, where they are there, `inputs`, (N, H, W, 3) uint8, and `captions`, a list of N texts.

    Raises:
        Refusal: it is damaged, too large unpacked, or holds anything else.
    """
    _check_zip_end(body)
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            found = {one.name: one for one in (_read_header(archive, each) for each in archive.infolist())}
            _check_arrays(found, limits)
            return {name: _read_array(archive, one) for name, one in found.items()}
    except BAD_ZIP as error:
        raise Refusal(400, f"The body is not an .npz file that can be read: {str(error)[:200]}.") from error


@dataclass(frozen=True)
class _Npy:
    """An array of a .npz: what its header declares, and where its numbers are."""

    name: str
    kind: str
    """'|u1' or '<U12'."""
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    start: int
    """Bytes of the header."""
    member: zipfile.ZipInfo

    @property
    def size_bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * np.dtype(self.kind).itemsize


def _check_zip_end(body: bytes) -> None:
    """Refuse a zip of more members than a request has, before zipfile makes an object of each of them."""
    end = body[-ZIP_END.size :]
    if not body.startswith(b"PK\x03\x04") or len(end) < ZIP_END.size or not end.startswith(b"PK\x05\x06"):
        raise Refusal(400, "The body is not an .npz file, as numpy.savez writes it, or is cut short.")
    *_, count, list_bytes, _offset, comment = ZIP_END.unpack(end)
    at = len(body) - ZIP_END.size - ZIP64_BYTES
    if count > 3 or list_bytes > MAX_ZIP_LIST_BYTES or comment or body[max(at, 0) :].startswith(ZIP64_SIGNATURE):
        raise Refusal(422, "The .npz holds more than images, inputs and captions.")


def _read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Npy:
    """What a member declares, of which nothing else is read yet."""
    name = member.filename.removesuffix(".npy")
    if f"{name}.npy" != member.filename or name not in ("images", "inputs", "captions"):
        raise Refusal(422, f"The .npz holds {member.filename[:60]!r}; only images, inputs and captions are known.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refusal(422, f"The .npz has {name} packed in a way that numpy.savez does not use.")
    with archive.open(member) as file:
        magic = file.read(8)
        if not NPY_MAGIC.fullmatch(magic):
            raise Refusal(422, f"{name} is not an .npy file inside the .npz.")
        width = 2 if magic[6] == 1 else 4
        length = int.from_bytes(file.read(width), "little")
        text = file.read(min(length, MAX_NPY_HEADER_BYTES)).decode("latin-1")
    if length > MAX_NPY_HEADER_BYTES:
        raise Refusal(
            422, f"{name} has a header of {length:,} bytes; numpy writes {MAX_NPY_HEADER_BYTES:,} at the most."
        )
    found = HEADER.fullmatch(text)
    if not found:
        raise Refusal(422, f"{name} has the wrong type: images are uint8, captions text ('<U'); got {text[:50]}.")
    shape = tuple(int(one) for one in re.findall(r"\d+", found["shape"]))
    order: Literal["C", "F"] = "F" if found["fortran"] == "True" else "C"
    return _Npy(name, found["kind"], shape, order, 8 + width + length, member)


def _check_arrays(found: dict[str, _Npy], limits: Limits) -> None:
    """Refuse what is declared amiss, before it is unpacked."""
    if "images" not in found:
        raise Refusal(422, "The .npz has no images; send a uint8 array (N, H, W, 3) of that name.")
    for name, one in found.items():
        if name == "captions":
            fits = one.kind.startswith("<U") and len(one.shape) == 1
            wanted = "an array (N,) of text ('<U')"
        else:
            fits = one.kind.endswith("u1") and len(one.shape) == 4 and one.shape[-1] == 3 and min(one.shape[1:]) > 0
            wanted = "uint8 (N, H, W, 3) RGB"
        if not fits:
            raise Refusal(422, f"{name} is {wanted}, got {one.kind} {one.shape}.")
        if name != "captions" and max(one.shape[1:3]) > limits.max_side_px:
            seen = f"{one.shape[2]} x {one.shape[1]} pixels"
            raise Refusal(413, f"{name} are {seen}; at most {limits.max_side_px:,} a side are taken.")
    beside = {name: range(one.shape[0]) for name, one in found.items() if name != "images"}
    check_counts(found["images"].shape[0], beside, limits)
    if (total := sum(one.size_bytes for one in found.values())) > limits.max_body_bytes:
        raise Refusal(413, f"The arrays unpack to {total:,} bytes; at most {limits.max_body_bytes:,} are taken.")
    for name, one in found.items():
        if one.member.file_size != one.start + one.size_bytes:
            raise Refusal(422, f"{name} has other than the {one.size_bytes:,} bytes that it declares.")


def _read_array(archive: zipfile.ZipFile, one: _Npy) -> npt.NDArray[np.uint8] | list[str]:
    with archive.open(one.member) as file:
        file.read(one.start)
        content = file.read(one.size_bytes)
        rest = file.read(1)  # at the end its checksum is looked at
    if rest or len(content) != one.size_bytes:
        raise Refusal(422, f"{one.name} has other than the {one.size_bytes:,} bytes that it declares.")
    if one.name == "captions":
        return _decode_captions(content, one.shape[0])
    return np.frombuffer(content, dtype=np.uint8).reshape(one.shape, order=one.order)


def _decode_captions(content: bytes, count: int) -> list[str]:
    """The texts of an array '<U…': numpy's own reading of what is no character ends in a SystemError."""
    width = len(content) // count
    try:
        texts = [content[at * width : (at + 1) * width].decode("utf-32-le") for at in range(count)]
    except UnicodeDecodeError as error:
        raise Refusal(422, f"A caption is not Unicode text ({error.reason}).") from error
    return [text.rstrip("\0") for text in texts]

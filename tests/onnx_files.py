"""Write small ONNX files, by the fields of onnx.proto, so that tests need no package to make them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

FLOAT, FLOAT16, DOUBLE, INT64 = 1, 10, 11, 7
Side = int | str


def field(number: int, value: int | bytes | str) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def tensor(name: str, values: np.ndarray, *, location: str = "") -> bytes:
    """Numbers by name, in the file or in another."""
    kind = {"float32": FLOAT, "float16": FLOAT16, "float64": DOUBLE, "int64": INT64}[str(values.dtype)]
    written = b"".join(field(1, side) for side in values.shape) + field(2, kind) + field(8, name)
    if location:
        return written + field(13, field(1, "location") + field(2, location)) + field(14, 1)
    return written + field(9, values.tobytes())


def value_info(name: str, kind: int, shape: Sequence[Side] | None) -> bytes:
    """An input or output."""
    sides = [field(1, field(1, side) if isinstance(side, int) else field(2, side)) for side in shape or ()]
    known = b"" if shape is None else field(2, b"".join(sides))
    return field(1, name) + field(2, field(1, field(1, kind) + known))


def node(kind: str, inputs: Sequence[str], output: str, *, domain: str = "", attributes: bytes = b"") -> bytes:
    """An operator."""
    given = b"".join(field(1, one) for one in inputs)
    return given + field(2, output) + field(4, kind) + attributes + (field(7, domain) if domain else b"")


def cast(value: str, output: str, kind: int) -> bytes:
    """The same numbers in another type."""
    return node("Cast", [value], output, attributes=field(5, field(1, "to") + field(3, kind) + field(20, 2)))


def model(nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes], stored: Sequence[bytes]) -> bytes:
    """A whole file."""
    graph = b"".join(field(1, one) for one in nodes) + field(2, "face")
    graph += b"".join(field(5, one) for one in stored)
    graph += b"".join(field(11, one) for one in inputs) + b"".join(field(12, one) for one in outputs)
    return field(1, 8) + field(2, "tests") + field(7, graph) + field(8, field(1, "") + field(2, 17))


SCALE = np.array([0.5, -0.25, 1.5]).reshape(1, 3, 1, 1)
"""What `face_model` multiplies the channels by."""


def face_model(
    size: Side = 64,
    *,
    kind: int = FLOAT,
    weight: int | None = None,
    weight_shape: Sequence[Side] | None = (1,),
    batch: Side = 1,
    location: str = "",
) -> bytes:
    """A restorer's file: image x SCALE, plus the weight where it takes one; a second output beside it.

    Args:
        kind: of the image.
        weight: the kind of CodeFormer's second input; None for none.
        location: the file that SCALE lies in, where it is another.
    """
    shape = (batch, 3, size, size)
    numbers = SCALE.astype("float16" if kind == FLOAT16 else "float32")
    nodes = [node("Mul", ["x", "scale"], "scaled" if weight else "y")]
    inputs = [value_info("x", kind, shape)]
    if weight:
        inputs.append(value_info("w", weight, weight_shape))
        nodes += [cast("w", "added", kind), node("Add", ["scaled", "added"], "y")]
    nodes.append(node("Neg", ["y"], "besides"))
    outputs = [value_info("y", kind, shape), value_info("besides", kind, shape)]
    return model(nodes, inputs, outputs, [tensor("scale", numbers, location=location)])


def write(path: Path, content: bytes) -> Path:
    """Write it and give the path back."""
    path.write_bytes(content)
    return path

"""Read what an ONNX file takes, gives and needs, from its own table and without onnxruntime.

ONNX is data: a graph of named operators and their numbers. What could reach beyond the file is numbers that are stored
in other files, and operators that somebody's library would have to bring; both stand in the graph and are found here.
The fields' numbers are those of onnx.proto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from db.errors import UserError
from metrics.download import find_fault

ELEMENT_TYPES = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
"""TensorProto.DataType of the numbers that restorers take and give; numpy has no bfloat16."""
KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Of the operators that onnxruntime brings."""
MAX_DEPTH = 16
"""Of graphs in graphs; a file that nests deeper was made to."""


@dataclass(frozen=True)
class TensorType:
    """An input or output of the graph."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None
    """A side that is left open by its name, '' where it has none; None where no shape is said."""

    def __str__(self) -> str:
        """'input float32[1, 3, 512, 512]'"""
        shape = "" if self.shape is None else f"[{', '.join(str(side or '?') for side in self.shape)}]"
        return f"{self.name} {self.dtype}{shape}"


@dataclass
class OnnxFile:
    """What a file says of itself."""

    inputs: list[TensorType] = field(default_factory=list)
    outputs: list[TensorType] = field(default_factory=list)
    others: set[str] = field(default_factory=set)
    """Files with numbers of its tensors, as paths from its own folder."""
    operators: set[tuple[str, str]] = field(default_factory=set)
    """(domain, name) of each operator outside KNOWN_DOMAINS that is not written out in the file itself."""

    def __str__(self) -> str:
        return f"takes {', '.join(map(str, self.inputs))} and gives {', '.join(map(str, self.outputs))}"


def read_onnx_file(path: Path) -> OnnxFile:
    """Read it; of its numbers none is looked at, so a file of any size takes milliseconds.

    Raises:
        UserError: it is no ONNX file, or damaged.
    """
    if fault := find_fault(path):
        raise UserError(f"{path}: {fault}.")
    with open(path, "rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped with the last view of it
    try:
        return _read_model(memoryview(mapped))
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{path}: is no ONNX file, or one that is cut off or damaged ({error}). Get it again, or give another "
            "restorer's file by feedforward:FILE."
        ) from error


def _read_model(view: memoryview) -> OnnxFile:
    found = OnnxFile()
    own: set[tuple[str, str]] = set()
    graphs = 0
    for number, value in _fields(view):
        if number == 7:
            graphs += 1
            _read_graph(_message(value), found, 0)
        elif number == 25:  # functions: operators written out as graphs
            own.add(_read_function(_message(value), found))
    if graphs != 1:
        raise ValueError("there is no graph in it" if not graphs else "there are several graphs in it")
    found.operators -= own
    return found


def _read_graph(view: memoryview, found: OnnxFile, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError("graphs lie too deep in each other")
    inputs: list[TensorType] = []
    stored: set[str] = set()
    for number, value in _fields(view):
        if number == 1:
            _read_node(_message(value), found, depth)
        elif number == 5:
            stored.add(_read_tensor(_message(value), found))
        elif number == 15:
            for part, tensor in _fields(_message(value)):
                if part in (1, 2):
                    _read_tensor(_message(tensor), found)
        elif number in (11, 12) and not depth:
            (inputs if number == 11 else found.outputs).append(_read_value_info(_message(value)))
    found.inputs += [one for one in inputs if one.name not in stored]  # before IR 4, numbers were inputs too


def _read_node(view: memoryview, found: OnnxFile, depth: int) -> None:
    name = domain = ""
    for number, value in _fields(view):
        if number == 4:
            name = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            for part, inner in _fields(_message(value)):
                if part in (5, 10):
                    _read_tensor(_message(inner), found)
                elif part in (6, 11):
                    _read_graph(_message(inner), found, depth + 1)
    if domain not in KNOWN_DOMAINS:
        found.operators.add((domain, name))


def _read_function(view: memoryview, found: OnnxFile) -> tuple[str, str]:
    """Its (domain, name)."""
    name = domain = ""
    for number, value in _fields(view):
        if number == 1:
            name = _text(value)
        elif number == 10:
            domain = _text(value)
        elif number == 7:
            _read_node(_message(value), found, 1)
    return domain, name


def _read_tensor(view: memoryview, found: OnnxFile) -> str:
    """Its name; where its numbers lie goes to `found`."""
    name = ""
    for number, value in _fields(view):
        if number == 8:
            name = _text(value)
        elif number == 13:
            entry = dict(_fields(_message(value)))
            if _text(entry.get(1, b"")) == "location":
                found.others.add(_text(entry.get(2, b"")))
    return name


def _read_value_info(view: memoryview) -> TensorType:
    parts = dict(_fields(view))
    of_tensor = dict(_fields(_message(parts.get(2, b"")))).get(1, b"")
    tensor = dict(_fields(_message(of_tensor)))
    kind = tensor.get(1, 0)
    dtype = ELEMENT_TYPES.get(kind, f"type {kind}") if isinstance(kind, int) else "no tensor"
    shape = None if 2 not in tensor else tuple(_read_side(one) for _, one in _fields(_message(tensor[2])))
    return TensorType(_text(parts.get(1, b"")), dtype, shape)


def _read_side(value: int | memoryview | bytes) -> int | str:
    side = dict(_fields(_message(value)))
    known = side.get(1)
    return known if isinstance(known, int) else _text(side.get(2, b""))


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field of a protobuf message: an integer, or the bytes of a text or inner message."""
    at = 0
    while at < len(view):
        key, at = _varint(view, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(view, at)
            yield key >> 3, value
            continue
        length, at = (8, at) if kind == 1 else (4, at) if kind == 5 else _varint(view, at) if kind == 2 else (-1, at)
        if length < 0 or at + length > len(view):
            raise ValueError("its bytes end before its table does" if length >= 0 else "its bytes are no table of ONNX")
        yield key >> 3, view[at : at + length]
        at += length


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """(integer, where it ends); 7 bits a byte, the lowest first."""
    value = 0
    for count in range(10):
        byte = view[at + count]
        value |= (byte & 127) << 7 * count
        if byte < 128:
            return value, at + count + 1
    raise ValueError("its bytes are no table of ONNX")


def _message(value: int | memoryview | bytes) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a table should")
    return memoryview(value)


def _text(value: int | memoryview | bytes) -> str:
    return bytes(_message(value)).decode("utf-8")

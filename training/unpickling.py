"""Stand in for numpy while a torch file is unpickled: numbers and arrays of plain kinds, made here from their bytes.

numpy's own functions would believe what the file says of an array's memory; a file that lies could then crash the
process or worse. These believe nothing, and make Python's numbers and torch's tensors.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN = "biufc"
"""numpy's kinds of booleans and numbers."""
OTHER_ARRAY = "not of numbers"
"""In the message about an array of Python objects, dates or tables."""
SMALL_FLOATS = {
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
"""Kinds of the package ml_dtypes, of which numpy knows nothing."""


class DtypeStandIn:
    """Stands for numpy.dtype: a kind of number and the order of its bytes."""

    def __init__(self, kind: Any, *_: bool) -> None:  # align and copy
        self.small = kind if isinstance(kind, torch.dtype) else None
        if self.small is not None:
            kind = f"u{self.small.itemsize}"
        try:
            self.plain = np.dtype(kind if isinstance(kind, str) else "O")
        except TypeError as error:
            raise pickle.UnpicklingError(f"an array of {kind!r}") from error
        if self.plain.kind not in f"{PLAIN}SU":
            raise pickle.UnpicklingError(f"an array of {kind!r}, {OTHER_ARRAY}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError(f"an array of tables, {OTHER_ARRAY}")
        if state[1] in ("<", ">"):
            self.plain = self.plain.newbyteorder(state[1])

    def __hash__(self) -> int:
        return hash((self.plain, self.small))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DtypeStandIn) and (self.plain, self.small) == (other.plain, other.small)


class ArrayStandIn:
    """Stands for numpy.ndarray: its bytes until they become a tensor."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.dtype = DtypeStandIn("u1")
        self.content = b""
        self.by_columns = False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, content = state
        if not isinstance(dtype, DtypeStandIn) or not isinstance(content, (bytes, bytearray)):
            raise pickle.UnpicklingError("an array of other things than numbers")
        self.shape, self.dtype, self.by_columns, self.content = tuple(shape), dtype, bool(by_columns), bytes(content)

    def to_tensor(self) -> Tensor | list[Any]:
        """A tensor of the same numbers; a list where they are texts.

        Raises:
            ValueError: bytes and shape do not fit.
        """
        order = "F" if self.by_columns else "C"
        array = np.frombuffer(self.content, self.dtype.plain).reshape(self.shape, order=order)  # type: ignore[call-overload]
        if array.dtype.kind not in PLAIN:
            texts: list[Any] = array.tolist()
            return texts
        native = np.array(array.astype(array.dtype.newbyteorder("=")), order="C")
        tensor = torch.from_numpy(native)
        return tensor.view(self.dtype.small) if self.dtype.small is not None else tensor


def make_array(*_: Any) -> ArrayStandIn:
    """Stand for numpy's `_reconstruct`, which makes an empty array to be filled."""
    return ArrayStandIn()


def make_array_of_buffer(content: bytes, dtype: DtypeStandIn, shape: tuple[int, ...], order: str) -> ArrayStandIn:
    """Stand for numpy's `_frombuffer`."""
    array = ArrayStandIn()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


def make_number(dtype: DtypeStandIn, content: bytes = b"") -> Any:
    """Stand for numpy's `scalar`: Python's number, or text.

    Raises:
        UnpicklingError: the bytes are of no such number.
    """
    if not isinstance(dtype, DtypeStandIn) or not isinstance(content, bytes):
        raise pickle.UnpicklingError("a number of another kind")
    array = ArrayStandIn()
    array.__setstate__((1, (1,), dtype, False, content))
    found = array.to_tensor()
    return found[0] if isinstance(found, list) else found.item()


def make_bytes() -> bytes:
    """Stand for `bytes`, which old pickles call for those of an empty array."""
    return b""


STAND_INS: tuple[tuple[Any, str], ...] = (
    (DtypeStandIn, "numpy.dtype"),
    (ArrayStandIn, "numpy.ndarray"),
    (make_bytes, "builtins.bytes"),
    *(
        (function, f"numpy.{core}.{name}")
        for core in ("core", "_core")
        for function, name in (
            (make_number, "multiarray.scalar"),
            (make_array, "multiarray._reconstruct"),
            (make_array_of_buffer, "numeric._frombuffer"),
        )
    ),
    *((kind, f"ml_dtypes.{name}") for name, kind in SMALL_FLOATS.items()),
)
"""(what stands in, for what), for torch.serialization.safe_globals."""

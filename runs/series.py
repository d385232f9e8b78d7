"""Read a run's progress lines as series of numbers by name, as the file grows, few enough to draw."""

from __future__ import annotations

import json
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
MAX_RUNS = 16
MAX_MARKS = 32
CHUNK_BYTES = 4 << 20
CHECKED_BYTES = 64
NOT_VALUES = frozenset({"time", "done", "total", "seconds_left"})
PART_NAMES = ("phase", "stage")
"""A line's part of the run, where steps are counted anew: its name stands before those of its series."""


@dataclass
class _Growing:
    """One series: the steps and the values, NaN where there is none."""

    part: str
    x: array[float] = field(default_factory=lambda: array("d"))
    y: array[float] = field(default_factory=lambda: array("d"))


@dataclass
class Curves:
    """Numbers read of one file so far."""

    offset: int = 0
    generation: int = 0
    """Grows where points that were sent before are no longer true: the steps went back, or the file is another."""
    series: dict[str, _Growing] = field(default_factory=dict)
    last: dict[str, Any] | None = None
    inode: int = 0
    before: bytes = b""
    """The last bytes that were read: others there now are another file's."""
    last_done: dict[str, float] = field(default_factory=dict)
    """By part of the run."""
    marks: OrderedDict[str, dict[str, int]] = field(default_factory=OrderedDict)
    """Length of each series at a version that a page was sent."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def version(self) -> str:
        return f"{self.inode:x}.{self.generation}.{self.offset}"


@dataclass(frozen=True)
class Answer:
    """Numbers to draw."""

    version: str
    whole: bool
    """Whether these are all points; else those after the version that was asked for, to be put behind the others."""
    points: dict[str, tuple[Array, Array]]
    last: dict[str, Any] | None
    """The last progress line."""


class SeriesReader:
    """Reads progress files as they grow, and keeps what it read of the last few; for any number of threads."""

    def __init__(self, max_runs: int = MAX_RUNS) -> None:
        self._kept: OrderedDict[Path, Curves] = OrderedDict()
        self._max_runs = max_runs
        self._lock = threading.Lock()

    def read(self, file: Path, points: int, since: str = "") -> Answer:
        """The series of a file as it is now.

        Args:
            points: most of a series; see `downsample`.
            since: a version that was answered before: only what came after it is told, where that can be said.
        """
        with self._lock:
            curves = self._kept.setdefault(file, Curves())
            self._kept.move_to_end(file)
            while len(self._kept) > self._max_runs:
                self._kept.popitem(last=False)
        with curves.lock:
            _read_on(curves, file)
            version, starts = curves.version, curves.marks.get(since)
            curves.marks[version] = {name: len(one.x) for name, one in curves.series.items()}
            while len(curves.marks) > MAX_MARKS:
                curves.marks.popitem(last=False)
            found = {}
            for name, one in curves.series.items():
                start = (starts or {}).get(name, 0)
                found[name] = np.array(one.x[start:]), np.array(one.y[start:])  # copies: a view would lock the array
            last = curves.last
        few = {name: downsample(x, y, points) for name, (x, y) in found.items() if len(x)}
        return Answer(version, starts is None, few, last)


def _read_on(curves: Curves, file: Path) -> None:
    """Take in what was appended since; a last line without its end is left for the next time."""
    try:
        with open(file, "rb") as stream:
            _take_in(curves, stream)
    except FileNotFoundError:
        _forget(curves, 0)


def _take_in(curves: Curves, stream: BinaryIO) -> None:
    status = os.fstat(stream.fileno())
    stream.seek(max(0, curves.offset - len(curves.before)))
    same = status.st_ino == curves.inode and status.st_size >= curves.offset
    if not same or stream.read(len(curves.before)) != curves.before:
        _forget(curves, status.st_ino)
    stream.seek(curves.offset)
    while chunk := stream.read(CHUNK_BYTES):
        end = chunk.rfind(b"\n") + 1
        if not end:
            if len(chunk) < CHUNK_BYTES:
                return  # half a line
            chunk += stream.readline()  # one line of more than a chunk
            end = len(chunk) if chunk.endswith(b"\n") else 0
            if not end:
                return
        for line in _parse(chunk[:end]):
            _add(curves, line)
        curves.offset += end
        curves.before = (curves.before + chunk[:end])[-CHECKED_BYTES:]
        stream.seek(curves.offset)


def _forget(curves: Curves, inode: int) -> None:
    if curves.offset or curves.inode != inode:
        curves.generation += 1
    curves.offset, curves.inode, curves.before, curves.last = 0, inode, b"", None
    curves.series, curves.last_done = {}, {}
    curves.marks.clear()


def _parse(text: bytes) -> Iterator[dict[str, Any]]:
    """The lines that are JSON objects; what a killed process left half-written is passed over."""
    lines = text.splitlines()
    try:
        found = json.loads(b"[" + b",".join(lines) + b"]")  # at once, which takes a third less time
        if len(found) != len(lines):
            raise ValueError("a line that holds several values")
    except ValueError:
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return (line for line in found if isinstance(line, dict))


def _add(curves: Curves, line: dict[str, Any]) -> None:
    done = line.get("done")
    if not isinstance(done, int | float):
        return
    curves.last = line
    part = next((str(line[name]) for name in PART_NAMES if line.get(name)), "")
    prefix = f"{part}/" if part else ""
    if done < curves.last_done.get(part, done):
        _cut(curves, part, done)
    again = done == curves.last_done.get(part)
    curves.last_done[part] = done
    for name, value in _numbers(line, prefix):
        one = curves.series.get(name)
        if one is None:
            if value != value:
                continue
            one = curves.series[name] = _Growing(part)
        if again and one.x and one.x[-1] == done:
            one.y[-1] = value
            curves.generation += 1
            curves.marks.clear()
        else:
            one.x.append(done)
            one.y.append(value)


def _numbers(line: dict[str, Any], prefix: str) -> list[tuple[str, float]]:
    """(name, value) of all numbers of a line, nested ones by names joined with a slash; null is NaN."""
    found: list[tuple[str, float]] = []
    for name, value in line.items():
        kind = type(value)  # exactly: True is not a number
        if (kind is float or kind is int or value is None) and name not in NOT_VALUES:
            found.append((prefix + name, np.nan if value is None else value))
        elif kind is dict:
            found += _numbers(value, f"{prefix}{name}/")
    return found


def _cut(curves: Curves, part: str, done: float) -> None:
    """A continued run went back to an earlier step: what is told from there on takes the place of what was."""
    for one in curves.series.values():
        if one.part != part:
            continue
        keep = int(np.searchsorted(np.array(one.x), done))
        del one.x[keep:]
        del one.y[keep:]
    curves.generation += 1
    curves.marks.clear()


def downsample(x: Array, y: Array, points: int) -> tuple[Array, Array]:
    """At most about `points` of a series, as it looks when drawn: of each bucket its lowest and its highest value.

    The first and the last point stay, and a gap (NaN) stays one.

    Args:
        x: (N,) ascending.
        y: (N,) values, NaN where there is none.
        points: 4 or more.
    """
    count = len(x)
    if count <= points:
        return x, y
    width = -(-(count - 2) // max(1, (points - 2) // 2))
    buckets = -(-(count - 2) // width)
    inner = np.full((buckets, width), np.nan)
    inner.flat[: count - 2] = y[1:-1]
    missing = np.isnan(inner)
    inside = 1 + width * np.arange(buckets)
    low = inside + np.where(missing, np.inf, inner).argmin(axis=1)
    high = inside + np.where(missing, -np.inf, inner).argmax(axis=1)
    gap = inside + missing.argmax(axis=1)  # one that begins in padding, behind the end, is none
    gap = gap[missing.any(axis=1) & (gap < count - 1)]
    kept = np.unique(np.concatenate([[0], low, high, gap, [count - 1]]))
    return x[kept], y[kept]

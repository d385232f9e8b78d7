"""Progress lines as series: read on, read anew, cut where a run went back, and made few enough to draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runs.series import SeriesReader, downsample

NAN = float("nan")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "progress.jsonl"


def append(file: Path, *lines: dict[str, Any], end: str = "\n") -> None:
    with open(file, "a", encoding="utf-8") as stream:
        stream.write("\n".join(json.dumps(line) for line in lines) + end)


def read(reader: SeriesReader, file: Path, since: str = "") -> dict[str, list[tuple[float, float]]]:
    """Name -> [(step, value), …]"""
    points = reader.read(file, 400, since).points
    return {name: list(zip(x.tolist(), y.tolist(), strict=True)) for name, (x, y) in points.items()}


def test_names_are_as_written_and_what_is_no_number_is_left_out(file: Path) -> None:
    append(
        file,
        {
            "time": 1.0,
            "done": 10,
            "total": 20,
            "loss": 0.5,
            "loss/reward": 0.1,
            "note": "x",
            "ok": True,
            "seconds_left": 3,
        },
        {"time": 2.0, "done": 20, "total": 20, "loss": 0.25, "val": {"accuracy": 0.75}, "list": [1, 2]},
    )
    assert read(SeriesReader(), file) == {
        "loss": [(10, 0.5), (20, 0.25)],
        "loss/reward": [(10, 0.1)],
        "val/accuracy": [(20, 0.75)],
    }


def test_only_what_came_since_is_told(file: Path) -> None:
    reader = SeriesReader()
    append(file, {"done": 1, "a": 1.0}, {"done": 2, "a": 2.0})
    first = reader.read(file, 400)
    assert first.whole
    again = reader.read(file, 400, first.version)
    assert (again.version, again.whole, again.points) == (first.version, False, {})
    append(file, {"done": 3, "a": 3.0, "b": 9.0})
    assert read(reader, file, first.version) == {"a": [(3, 3.0)], "b": [(3, 9.0)]}
    assert reader.read(file, 400, "of another server").whole
    assert read(reader, file)["a"] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_half_written_line_waits_and_a_broken_one_is_passed_over(file: Path) -> None:
    reader = SeriesReader()
    append(file, {"done": 1, "a": 1.0})
    append(file, {"done": 2, "a": 2.0}, end="")
    assert read(reader, file) == {"a": [(1, 1.0)]}
    with open(file, "a", encoding="utf-8") as stream:
        stream.write('\n{"done": 3, "a"\n')
    append(file, {"done": 4, "a": 4.0})
    assert read(reader, file) == {"a": [(1, 1.0), (2, 2.0), (4, 4.0)]}


def test_a_continued_run_takes_the_place_of_what_it_does_again(file: Path) -> None:
    reader = SeriesReader()
    append(file, *({"done": step, "a": float(step)} for step in (10, 20, 30, 40)), {"done": 40, "look": 1.0})
    version = reader.read(file, 400).version
    append(file, {"done": 30, "a": 0.5})
    assert reader.read(file, 400, version).whole, "what was told before is not true any more"
    assert read(reader, file)["a"] == [(10, 10.0), (20, 20.0), (30, 0.5)]
    assert "look" not in read(reader, file)


def test_phases_count_their_own_steps(file: Path) -> None:
    append(file, {"done": 9, "phase": "vae", "loss": 1.0}, {"done": 1, "phase": "diffusion", "loss": 2.0})
    assert read(SeriesReader(), file) == {"vae/loss": [(9, 1.0)], "diffusion/loss": [(1, 2.0)]}


def test_a_file_that_was_replaced_or_shortened_is_read_anew(file: Path) -> None:
    reader = SeriesReader()
    append(file, {"done": 1, "a": 1.0}, {"done": 2, "a": 2.0})
    version = reader.read(file, 400).version
    file.write_text('{"done": 1, "a": 7.0}\n')
    assert reader.read(file, 400, version).whole
    assert read(reader, file) == {"a": [(1, 7.0)]}
    file.write_text("".join(f'{{"done": {step}, "a": 8.0}}\n' for step in range(1, 9)))  # longer, and another
    assert read(reader, file)["a"][0] == (1, 8.0)
    file.unlink()
    assert read(reader, file) == {}


def test_null_is_a_gap_in_a_series_that_is_there(file: Path) -> None:
    append(file, {"done": 1, "a": 1.0, "b": None}, {"done": 2, "a": None}, {"done": 3, "a": 3.0})
    answer = SeriesReader().read(file, 400)
    assert list(answer.points) == ["a"]
    np.testing.assert_array_equal(answer.points["a"][1], [1.0, NAN, 3.0])


def test_only_the_last_few_files_are_kept(tmp_path: Path) -> None:
    reader = SeriesReader(max_runs=2)
    for name in "abc":
        append(tmp_path / name, {"done": 1, "x": 1.0})
        reader.read(tmp_path / name, 400)
    assert [path.name for path in reader._kept] == ["b", "c"]
    assert read(reader, tmp_path / "a") == {"x": [(1, 1.0)]}


def test_few_points_stay_as_they_are() -> None:
    x, y = np.arange(10.0), np.array([1.0, NAN, *range(8)])
    assert downsample(x, y, 10)[0] is x


def test_first_last_extremes_and_gaps_stay() -> None:
    x = np.arange(100_000.0)
    y = np.sin(x / 5_000)
    y[[777, 55_555]] = 100.0, -100.0
    y[30_000:40_000] = NAN
    few_x, few_y = downsample(x, y, 400)
    assert len(few_x) <= 400 + 100
    assert (few_x[0], few_x[-1]) == (0, 99_999)
    assert (np.diff(few_x) > 0).all()
    assert dict(zip(few_x.tolist(), few_y.tolist(), strict=True))[777.0] == 100.0
    assert -100.0 in few_y
    gap = few_x[np.isnan(few_y)]
    assert gap.min() < 30_600 < 39_400 < gap.max()
    assert not ((few_x > 30_600) & (few_x < 39_400) & ~np.isnan(few_y)).any()


def test_each_bucket_keeps_its_lowest_and_highest() -> None:
    y = np.array([5, 1, 9, 3, 2, 8, 7, 4, 6, 5], dtype=float)
    x, few = downsample(np.arange(10.0), y, 6)
    # 6 points: the two ends, and two buckets of the 8 between: (1 9 3 2) and (8 7 4 6)
    assert x.tolist() == [0, 1, 2, 5, 7, 9]
    assert few.tolist() == [5, 1, 9, 8, 4, 5]

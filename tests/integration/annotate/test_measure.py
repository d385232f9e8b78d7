"""`python -m annotate measure` on real files: what is stored, what a kill costs, what a person reads when it fails."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image as PilImage
from sqlalchemy import select

from db.candidates import store_values
from db.models import MetricValue
from db.session import Database
from tests.making import ROOT, AnnotateHere, add_image_row, annotate_command, fetch, run_annotate, write_photo
from tests.watching import LIMIT_SECONDS, wait_until

pytest.importorskip("torch")
pyiqa = pytest.importorskip("pyiqa")

HERE = ("--workers", "1", "--device", "cpu")
"""Measures in the process of the command, so that `annotate_here` starts none."""
N_SOURCES = 5
N_COLUMNS = {"lq": 14, "lq and hq": 18}
"""Columns of the offline list that an image has whose source has these."""


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """5 photos of 112 x 104 pixels (NIQE's blocks are 96), 3 methods; ground truth for the first two."""
    folder = tmp_path / "faces"
    for number in range(N_SOURCES):
        for place, name in enumerate(("lq", "gfpgan", "codeformer", "bicubic")):
            write_photo(folder / name / f"face{number}.png", 100 * place + number, (112, 104))
        if number < 2:
            write_photo(folder / "hq" / f"face{number}.png", 900 + number, (112, 104))
    return folder


def read_rows(data: Path) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """(image, metric, version, reference) to (value, raw value, failure)."""
    with sqlite3.connect(data / "facereward.db") as connection:
        rows = connection.execute(
            "SELECT sha256, metric, version, reference, value, raw_value, failure FROM metric_value "
            "JOIN image ON image.id = image_id"
        ).fetchall()
    found = {row[:4]: row[4:] for row in rows}
    assert len(found) == len(rows)
    return found


def test_measuring_stores_each_value_once_and_measuring_again_nothing(
    annotate_here: AnnotateHere, data: Path, faces: Path
) -> None:
    assert annotate_here("import", faces).returncode == 0
    done = run_annotate(data, "measure", "--workers", "2", "--batch-size", "2")
    assert done.returncode == 0, done.stderr
    rows = read_rows(data)
    assert len(rows) == 3 * (2 * N_COLUMNS["lq and hq"] + 3 * N_COLUMNS["lq"])
    assert [failure for _, _, failure in rows.values() if failure] == []
    assert f"{len(rows)} values of 15 images measured" in done.stdout
    assert "torch" not in done.stderr
    again = annotate_here("measure")
    assert "0 values of 0 images measured" in again.stdout
    assert read_rows(data) == rows
    check_against_pyiqa(data, rows)


def check_against_pyiqa(data: Path, rows: dict[tuple[Any, ...], tuple[Any, ...]]) -> None:
    """The stored values are those of pyiqa's own object, called file by file, to a ten-thousandth."""
    paths = {path.stem: str(path) for path in (data / "images").rglob("*.png")}
    for name in ("ssim", "psnr", "gmsd", "nlpd"):
        plain = pyiqa.create_metric(name, device="cpu")
        for (image, metric, _, reference), (value, raw_value, _) in rows.items():
            if metric == name:
                assert raw_value == pytest.approx(float(plain(paths[image], paths[reference])), rel=1e-4)
                assert value == (-raw_value if plain.lower_better else raw_value)


def test_two_that_measure_the_same_store_it_once(any_database: Database) -> None:
    with any_database.write() as session:
        add_image_row(session, "a")
    names = ("image_id", "metric", "version", "reference", "value", "raw_value", "failure")
    for value in (1.0, 2.0):
        store_values(any_database, [dict(zip(names, (1, "contrast", "1", "", value, value, None), strict=True))])
    assert fetch(any_database, select(MetricValue.value)) == [1.0]


def start_measuring(data: Path) -> subprocess.Popen[bytes]:
    """Measuring, with a batch already stored."""
    command = annotate_command(data, "measure", "--workers", "2", "--batch-size", "1")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: read_rows(data) or process.poll() is not None, pause_seconds=0.02)
    assert process.poll() is None, "it ended before it stored anything"
    return process


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_kill_in_the_middle_costs_at_most_the_batches_under_way(
    annotate_here: AnnotateHere, data: Path, tmp_path: Path, how: signal.Signals
) -> None:
    for number in range(40):
        for place, name in enumerate(("lq", "gfpgan")):
            write_photo(tmp_path / "many" / name / f"face{number}.png", 100 * place + number, (224, 208))
    assert annotate_here("import", tmp_path / "many").returncode == 0
    process = start_measuring(data)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    process.wait(LIMIT_SECONDS)
    _, alive = psutil.wait_procs(workers, timeout=LIMIT_SECONDS)
    assert alive == []
    stored = read_rows(data)
    counts = {image: sum(1 for key in stored if key[0] == image) for image, *_ in stored}
    assert set(counts.values()) == {N_COLUMNS["lq"]}  # whole batches of one image
    assert 0 < len(counts) < 40
    assert annotate_here("measure", *HERE).returncode == 0
    rows = read_rows(data)
    assert len(rows) == 40 * N_COLUMNS["lq"]
    assert {key: rows[key] for key in stored} == stored


def test_an_unreadable_file_is_named_and_measured_when_it_is_back(
    annotate_here: AnnotateHere, data: Path, faces: Path
) -> None:
    assert annotate_here("import", faces).returncode == 0
    broken = sorted((data / "images").rglob("*.png"))[0]
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    done = annotate_here("measure", *HERE)
    assert done.returncode == 0
    assert f"unreadable: {broken.name}: " in done.stdout
    assert "Traceback" not in done.stderr
    less = len(read_rows(data))
    broken.write_bytes(content)
    assert annotate_here("measure", *HERE).returncode == 0
    assert less < len(read_rows(data)) == 3 * (2 * N_COLUMNS["lq and hq"] + 3 * N_COLUMNS["lq"])


def test_what_cannot_be_measured_is_a_failure_with_the_reason_and_no_number(
    annotate_here: AnnotateHere, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "faces"
    for name, size in (("lq", (64, 40)), ("gfpgan", (64, 64))):
        (folder / name).mkdir(parents=True)
        PilImage.fromarray(np.full((*size, 3), 90, np.uint8)).save(folder / name / "face.png")
    own = tmp_path / "own.toml"
    own.write_text(
        'name = "own"\nversion = "1"\ndescription = "a test"\nmetrics = [{name = "contrast"}, {name = "niqe_skvideo"}, '
        '{name = "psnr", references = ["lq"]}]\n'
    )
    assert annotate_here("import", folder).returncode == 0
    done = annotate_here("measure", "--metrics", own, *HERE)
    assert done.returncode == 0, done.stderr
    found = {metric: values for (_, metric, _, _), values in read_rows(data).items()}
    assert found["contrast"] == (0, 0, None)
    assert found["psnr"][:2] == (None, None)
    assert found["psnr"][2] == "ValueError: 64 x 64 pixels and its reference 40 x 64: not the same shape"
    assert found["niqe_skvideo"][:2] == (None, None)
    assert found["niqe_skvideo"][2]
    assert "failed: psnr: ValueError: 64 x 64 pixels" in done.stdout
    assert "0 values" in annotate_here("measure", "--metrics", own).stdout  # a failure is not tried again


@pytest.mark.parametrize(
    ("options", "environment", "line"),
    [
        (
            ["--metrics", "face", *HERE],
            {"HF_HUB_OFFLINE": "1"},
            "error: Weights are missing and HF_HUB_OFFLINE is set: musiq needs musiq_koniq_ckpt-e95806b9.pth (109 MB)",
        ),
        (["--device", "cuda:63"], {}, "error: There is no device 'cuda:63': this machine has"),
        (
            ["--metrics", "nothing"],
            {},
            "error: There is no metric list 'nothing'. Name one of arcface, face, identity, offline, permissive",
        ),
    ],
)
def test_what_is_missing_is_one_line_and_stores_nothing(
    annotate_here: AnnotateHere,
    data: Path,
    faces: Path,
    tmp_path: Path,
    options: list[str],
    environment: dict[str, str],
    line: str,
) -> None:
    assert annotate_here("import", faces).returncode == 0
    # An empty cache, wherever this machine has one. The hub's library reads its variables when it is loaded, so in a
    # process of its own; in this one it would look for a network for a minute and a half.
    done = run_annotate(data, "measure", *options, TORCH_HOME=str(tmp_path), HF_HOME=str(tmp_path), **environment)
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    assert read_rows(data) == {}

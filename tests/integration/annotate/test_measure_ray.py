"""Measuring on a Ray cluster of two machines gives what measuring here gives, also when one machine dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from annotate.ingest.store import import_folder
from annotate.measure.run import measure_missing
from db.models import MetricValue
from db.session import Database, open_database
from metrics.lists import Metric, MetricList
from tests.making import write_photo

pytest.importorskip("torch")
pytest.importorskip("pyiqa")
ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
cluster_utils = pytest.importorskip("ray.cluster_utils")

SHORT = MetricList(
    name="short",
    version="1",
    description="for tests",
    metrics=[Metric(name="noise_level"), Metric(name="niqe_skvideo"), Metric(name="ssim", references=["lq", "hq"])],
)
N_SOURCES = 30
SIZE_PX = (200, 200)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two machines of two cores each: with one core each, the readers would starve."""
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    started = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    started.second = started.add_node(num_cpus=2)
    ray.init(address=started.address, log_to_driver=False)
    yield started
    ray.shutdown()
    started.shutdown()


def read_values(database: Database) -> dict[tuple[Any, ...], float | None]:
    with database.read() as session:
        columns = (MetricValue.image_id, MetricValue.metric, MetricValue.version, MetricValue.reference)
        return {tuple(row[:4]): row[4] for row in session.execute(select(*columns, MetricValue.value))}


@pytest.mark.slow
def test_a_machine_killed_in_the_middle_costs_nothing(cluster: Any, tmp_path: Path) -> None:
    for number in range(N_SOURCES):
        for place, folder in enumerate(("lq", "hq", "gfpgan", "codeformer")):
            write_photo(tmp_path / "faces" / folder / f"face{number}.png", 100 * place + number, SIZE_PX)
    here, there = (open_database(tmp_path / name) for name in ("here", "there"))
    for name, database in (("here", here), ("there", there)):
        import_folder(database, tmp_path / name, tmp_path / "faces", workers=1)
    measure_missing(here, tmp_path / "here", SHORT, device="cpu", workers=1)

    killed = threading.Event()

    def kill_one(done: int, total: int) -> None:
        if done and not killed.is_set():
            killed.set()
            cluster.remove_node(cluster.second, allow_graceful=False)

    report = measure_missing(
        there, tmp_path / "there", SHORT, device="cpu", batch_size=1, progress=kill_one, ray_address=cluster.address
    )
    assert killed.is_set()
    assert not cluster.second.any_processes_alive()
    assert report.images == 2 * N_SOURCES
    assert read_values(there) == pytest.approx(read_values(here), rel=1e-6)
    again = measure_missing(there, tmp_path / "there", SHORT, device="cpu", ray_address=cluster.address)
    assert again.images == 0

"""Measure on Ray Data: the same batches and the same code as here, on every machine of a cluster.

The machines see the data folder under the same path. Only this process writes to the database. What a dying worker or
machine had under way is measured again elsewhere; Ray hands each batch's rows back once.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from annotate.measure.missing import CPU_BATCH, GPU_BATCH, find_missing, make_batches
from annotate.measure.worker import BatchResult, measure_batch, prepare, use_one_thread
from db.command import hidden_secrets
from db.errors import UserError
from db.session import Database
from metrics.lists import Column, MetricError

BATCHES_A_ROUND = 4096
"""Batches that Ray is given at a time; between two rounds it stands still for some seconds."""
BATCHES_A_TASK = 4


class Measurer:
    """Callable for Ray's workers: prepares once, then measures pickled batches."""

    def __init__(self, data: str, columns: list[Column], device: str) -> None:
        use_one_thread()
        prepare(columns, device)
        self.data = Path(data)
        self.device = device

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"result": pickle.dumps(measure_batch(self.data, pickle.loads(row["jobs"]), self.device))}


def measure_on_ray(
    database: Database,
    data: Path,
    wanted: list[Column],
    address: str,
    device: str,
    workers: int | None,
    batch_size: int | None,
) -> Iterator[BatchResult]:
    """The results of all batches, in the order in which they are ready.

    Args:
        address: of a running cluster, 'auto' for the one that this machine belongs to, 'local' to start one here.
        workers: processes in the whole cluster; None for as many as it has cores, or GPUs.
    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
        MetricError: as `metrics.compute.prepare`.
    """
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        _connect(ray, address)
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if device in ("auto", "cuda") else 0
        if device not in ("auto", "cpu") and not gpus:
            raise MetricError(f"The Ray cluster has no GPU for --device {device}; measure with --device cpu.")
        count = workers or gpus or max(1, int(resources.get("CPU", 1)))
        work = make_batches(find_missing(database, wanted), batch_size or (GPU_BATCH if gpus else CPU_BATCH))
        while batches := [{"jobs": pickle.dumps(jobs)} for jobs in islice(work, BATCHES_A_ROUND)]:
            yield from _measure_round(ray, data, wanted, batches, count, bool(gpus))
    finally:
        if started:
            ray.shutdown()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it says what it starts, warns of and retries
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError('--ray needs Ray, which is not installed: pip install "ray[data]"') from error
    return ray


def _connect(ray: Any, address: str) -> None:
    options = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    try:
        with hidden_secrets():
            ray.init(**options) if address == "local" else ray.init(address, **{**options, "include_dashboard": None})
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise UserError(f"No Ray cluster answers at {address!r}: {first}") from error


def _measure_round(
    ray: Any, data: Path, wanted: list[Column], batches: list[dict[str, bytes]], count: int, on_gpu: bool
) -> Iterator[BatchResult]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.execution_options.preserve_order = False
    # Ray Data restarts actors and repeats their tasks without limit: whoever dies costs what it had under way.
    dataset = ray.data.from_items(batches, override_num_blocks=max(1, -(-len(batches) // BATCHES_A_TASK))).map(
        Measurer,
        fn_constructor_args=(str(data.resolve()), wanted, "cuda" if on_gpu else "cpu"),
        compute=ray.data.ActorPoolStrategy(size=min(count, len(batches))),
        num_cpus=None if on_gpu else 1,
        num_gpus=1 if on_gpu else None,
    )
    try:
        for row in dataset.iter_rows():
            yield pickle.loads(row["result"])
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, MetricError) else error from None

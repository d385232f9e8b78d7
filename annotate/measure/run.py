"""Fill in the metric values that are not measured yet.

Every image that is a candidate is measured; full-reference metrics compare it with the lq image and with the ground
truth of its source, where there is one. A column that an image cannot have (no ground truth) gives no row at all; one
that failed is a row with the reason. Neither is ever a zero: a labeler is trained on the columns that its images have.

Work is read from the database in pages and handed out in batches; this process alone writes, one transaction per batch,
so that a kill loses the batches under way and nothing else.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from annotate.measure.missing import CPU_BATCH, GPU_BATCH, find_missing, make_batches
from annotate.measure.worker import (
    BatchResult,
    ImageJob,
    find_devices,
    measure_batch,
    prepare,
    start_measuring,
    use_one_thread,
)
from db.candidates import store_values
from db.errors import UserError
from db.session import Database
from metrics.lists import Column, MetricError, MetricList, measured_columns, skipped_metrics

WORKERS_PER_GPU = 2
"""One decodes while the other's images are on the GPU."""
BATCHES_AHEAD = 2
"""Batches waiting for each worker, so that none stands idle while this process writes."""
MAX_NAMED = 20


@dataclass
class MeasureReport:
    """Result of measuring."""

    images: int = 0
    """Images of which something was missing and was measured."""
    values: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """Values that could not be computed, counted by 'metric: why'; they are stored as failures."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(file, why), the first MAX_NAMED; nothing is stored of these."""
    unreadable_count: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    """Optional metrics of the list that were not measured, with the reason."""


def measure_missing(
    database: Database,
    data: Path,
    metric_list: MetricList,
    *,
    device: str = "auto",
    workers: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    ray_address: str | None = None,
) -> MeasureReport:
    """Measure every value of the list that no row holds yet.

    Args:
        device: auto, cpu, cuda, or one GPU such as cuda:1; auto and cuda use every GPU.
        workers: processes, on a GPU for each; None for one per core, WORKERS_PER_GPU per GPU. 1 on a CPU measures
            in this process.
        batch_size: images that are decoded, measured and stored together; None for CPU_BATCH or GPU_BATCH.
        progress: called with (images done, total) when a batch is stored.
        ray_address: measure on this Ray cluster instead of here; 'local' starts one on this machine.
    Raises:
        UserError: a package, weights or a device are missing, the disk is full, or a worker was ended from outside.
    """
    if workers is not None and workers < 1:
        raise UserError(f"{workers} workers: give 1 or more.")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"A batch of {batch_size} images: give 1 or more.")
    try:
        wanted = measured_columns(metric_list)
        report = MeasureReport(skipped=skipped_metrics(metric_list))
        total = sum(1 for _ in find_missing(database, wanted))
        if total == 0:
            return report
        if progress is not None:
            progress(0, total)
        if ray_address is not None:
            from annotate.measure.ray import measure_on_ray  # here: Ray is optional

            results = measure_on_ray(database, data, wanted, ray_address, device, workers, batch_size)
        else:
            results = measure_here(database, data, wanted, device, workers, batch_size, total)
        for result in results:
            store_values(database, result.rows)
            _count(report, result)
            if progress is not None:
                progress(report.images, max(total, report.images))
    except MetricError as error:
        raise UserError(str(error)) from error
    except BrokenProcessPool as error:
        raise UserError("A worker process was ended from outside, perhaps for memory; try fewer --workers.") from error
    return report


def _count(report: MeasureReport, result: BatchResult) -> None:
    failures = Counter(report.failures)
    failures.update(f"{row['metric']}: {row['failure']}" for row in result.rows if row["failure"] is not None)
    report.failures = dict(failures.most_common(MAX_NAMED * 10))
    report.images += result.images
    report.values += sum(1 for row in result.rows if row["failure"] is None)
    report.unreadable_count += len(result.unreadable)
    report.unreadable += result.unreadable[: MAX_NAMED - len(report.unreadable)]


def measure_here(
    database: Database,
    data: Path,
    wanted: list[Column],
    device: str,
    workers: int | None,
    batch_size: int | None,
    total: int,
) -> Iterator[BatchResult]:
    """The results of all batches, in the order in which they are ready."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = choose_devices(device)
    on_cpu = devices == ["cpu"]
    size = batch_size or (CPU_BATCH if on_cpu else GPU_BATCH)
    per_device = workers or (min(cores, -(-total // size)) if on_cpu else WORKERS_PER_GPU)
    work = make_batches(find_missing(database, wanted), size)
    if on_cpu and per_device == 1:
        use_one_thread()
        prepare(wanted, "cpu")
        yield from (measure_batch(data, jobs, "cpu") for jobs in work)
        return
    with _open_all(devices, per_device) as pools:
        # In one process first: what has to be downloaded is downloaded once, what is wrong is said once.
        pools[devices[0]].submit(prepare, wanted, devices[0]).result()
        yield from _spread(work, data, pools, per_device)


def choose_devices(device: str) -> list[str]:
    """`metrics.compute.find_devices` in a process of its own: this one loads no torch.

    Raises:
        MetricError: no such device here.
    """
    if device == "cpu" or (device == "auto" and not _has_gpu_driver()):
        return ["cpu"]
    with open_workers(1) as pool:
        return pool.submit(find_devices, device).result()


def _has_gpu_driver() -> bool:
    """Whether NVIDIA's or AMD's driver is here; asking torch would take seconds."""
    for library in ("libcuda.so.1", "libamdhip64.so"):
        try:
            ctypes.CDLL(library)
            return True
        except OSError:
            continue
    return False


def _spread(
    work: Iterator[list[ImageJob]], data: Path, pools: dict[str, Executor], per_device: int
) -> Iterator[BatchResult]:
    """Keep every worker of every device supplied with a few batches, no more: the work list is never held whole."""
    waiting: dict[Future[BatchResult], str] = {}
    places = [*pools] * (per_device * (1 + BATCHES_AHEAD))
    for device, jobs in zip(places, work, strict=False):
        waiting[pools[device].submit(measure_batch, data, jobs, device)] = device
    while waiting:
        ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in ready:
            device = waiting.pop(future)
            for jobs in islice(work, 1):
                waiting[pools[device].submit(measure_batch, data, jobs, device)] = device
            yield future.result()


@contextmanager
def _open_all(devices: Sequence[str], per_device: int) -> Iterator[dict[str, Executor]]:
    with ExitStack() as stack:
        yield {device: stack.enter_context(open_workers(per_device)) for device in devices}


@contextmanager
def open_workers(count: int) -> Iterator[Executor]:
    """Processes that measure; ended at once, whatever they are at, when the block is left by an exception."""
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=start_measuring)
    try:
        yield pool
    except BaseException:
        # What they compute is not wanted any more and loses nothing: they write nowhere. Python 3.14 has kill_workers.
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)

"""Time the labelling of a million measured pairs: `python -m benchmarks.autolabel [--pairs N]`.

Rows are written straight into a temporary SQLite database: sources of ten candidates, 45 pairs each, stored values of
fifteen metrics, and labels by a simulated person for some. Then an RBF SVM is fitted on 2,000 labels, and the stream
labels all other pairs, with the process's memory watched; then the kernel alone, against scikit-learn's own.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from sklearn.svm import SVC

from annotate.labeler.file import StoredLabeler
from annotate.labeler.label import Filter, label_pairs
from annotate.labeler.settings import FitSettings
from annotate.labeler.svm import Training, compute_margin, compute_p_a, fit_labeler, mirror
from annotate.measure.vectors import load_differences
from benchmarks.pair_queue import CANDIDATES, PAIRS_OF_A_SOURCE, fill_pairs
from db.models import Image
from db.session import Database, open_database
from metrics.lists import Column

METRICS = 15
LABELS = 2_000
TARGET_SECONDS = 120.0


def fill_values(database: Database, sources: int, rng: np.random.Generator) -> list[Column]:
    """An image of its own and METRICS values for every candidate."""
    columns = [Column(f"metric{number}", "benchmark 1", "") for number in range(METRICS)]
    now = "2026-01-01 00:00:00"
    n = sources * CANDIDATES

    def images() -> Iterator[tuple[object, ...]]:
        for number in range(n):
            yield number + 2, f"{number + 1:064x}", ".png", 8, 8, 1, now

    def values() -> Iterator[tuple[object, ...]]:
        for start in range(0, n, 10_000):
            block = rng.normal(size=(min(10_000, n - start), METRICS))
            for row, numbers in enumerate(block.tolist()):
                for column, value in zip(columns, numbers, strict=True):
                    yield start + row + 2, column.metric, column.version, "", value, value

    tables: list[tuple[str, Iterable[tuple[object, ...]]]] = [
        ("image (id, sha256, suffix, width_px, height_px, size_bytes, created_at)", images()),
        ("metric_value (image_id, metric, version, reference, value, raw_value)", values()),
    ]
    with database.write() as session:
        connection = session.connection().connection.driver_connection
        assert connection is not None
        for table, rows in tables:
            marks = ", ".join("?" * (table.count(",") + 1))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        connection.execute("UPDATE candidate SET image_id = id + 2")
    return columns


def fit_simulated(database: Database, columns: list[Column], rng: np.random.Generator) -> StoredLabeler:
    """An RBF labeler fitted on what a simulated person says of LABELS pairs of whole sources."""
    pair_ids = list(range(1, LABELS + 1))
    with database.read() as session:
        differences = load_differences(session, columns, pair_ids)
    taste = rng.normal(size=METRICS)
    p = 1 / (
        1
        + np.exp(
            -2 * differences @ taste / np.sqrt(METRICS) - 0.3 * np.sign(differences[:, 0]) * differences[:, 1] ** 2
        )
    )
    answers = (rng.random(LABELS) < p).astype(float)
    sources = np.array([str((pair - 1) // PAIRS_OF_A_SOURCE) for pair in pair_ids])
    data = Training(differences, answers, np.ones(LABELS), sources, sources)
    start = time.perf_counter()
    labeler = fit_labeler(data, FitSettings(kernel="rbf"), tuple(columns))
    print(f"fit on {LABELS:,} simulated labels: {time.perf_counter() - start:.1f} s, {len(labeler.vectors):,} vectors")
    compare_kernels(data, labeler.gamma, differences)
    confidence = np.maximum(p_a := compute_p_a(labeler, differences), 1 - p_a)
    right = np.where(p_a > 0.5, answers, 1 - answers)
    held_out = {"confidence": confidence, "right": right, "weight": np.ones(LABELS)}
    held_out["group"] = np.unique(sources, return_inverse=True)[1]
    return StoredLabeler("svm-benchmark", 0, labeler, held_out, {"simulated": True})


def compare_kernels(data: Training, gamma: float, differences: np.ndarray) -> None:
    """Pairs a second of our decision function against scikit-learn's, both orders of each pair, the same vectors."""
    rows, answers, weights = mirror(data.differences / np.std(data.differences, axis=0), data.p_a, data.weight)
    svm = SVC(kernel="rbf", gamma=gamma, C=1.0).fit(rows, answers, sample_weight=weights)
    from annotate.labeler.svm import Labeler, fold_mirrored

    folded = fold_mirrored(svm.support_vectors_, svm.dual_coef_[0])
    ours = Labeler((), "rbf", 1.0, gamma, np.std(data.differences, axis=0), *folded, slope=1.0)
    start = time.perf_counter()
    margins = compute_margin(ours, differences)
    ours_seconds = time.perf_counter() - start
    z = differences / ours.scale
    start = time.perf_counter()
    theirs = (svm.decision_function(z) - svm.decision_function(-z)) / 2
    seconds = time.perf_counter() - start
    print(
        f"decision function of {len(svm.support_vectors_):,} support vectors: ours {len(z) / ours_seconds:,.0f} "
        f"pairs/s, scikit-learn's {len(z) / seconds:,.0f}, ratio {seconds / ours_seconds:.1f}, largest difference "
        f"{np.abs(margins - theirs).max():.1e}"
    )


def memory_mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Print the figures; exit 1 where labelling took longer than the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1_000_000)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="facereward-autolabel-") as folder:
        database = open_database(Path(folder))
        with database.write() as session:
            session.add(Image(id=1, sha256=64 * "0", suffix=".png", width_px=8, height_px=8, size_bytes=1))
        start = time.perf_counter()
        fill_pairs(database, args.pairs, [1])
        columns = fill_values(database, -(-args.pairs // PAIRS_OF_A_SOURCE), rng)
        print(f"{args.pairs:,} pairs written in {time.perf_counter() - start:.0f} s")
        stored = fit_simulated(database, columns, rng)
        before = memory_mib()
        start = time.perf_counter()
        report = label_pairs(database, stored, 0.8, 0.6, Filter())
        seconds = time.perf_counter() - start
        print(
            f"{report.pairs:,} pairs looked at, {report.labelled:,} labelled in {seconds:.1f} s "
            f"({report.pairs / seconds:,.0f} pairs/s; target {TARGET_SECONDS:.0f} s for a million)"
        )
        print(f"largest memory {before:.0f} MiB before, {memory_mib():.0f} MiB after")
        start = time.perf_counter()
        again = label_pairs(database, stored, 0.8, 0.6, Filter())
        print(f"the same labeler again: {again.unchanged:,} unchanged in {time.perf_counter() - start:.1f} s")
        database.close()
    return int(seconds > TARGET_SECONDS * args.pairs / 1_000_000)


if __name__ == "__main__":
    sys.exit(main())

"""Measure images per second and peak memory of every restorer: `python -m benchmarks.restoring`.

Restorers that are published have random weights here: they cost what trained ones cost. DiffBIR runs at full size on a
GPU, and small on the CPU (`--size` chooses), beside DiffBIR's own way of sampling with the very same networks: one
image at a time, float32, image and prompt encoded a second time for guidance that is off, DDIM with constants gathered
at every step (`restore_in_diffbirs_way` in benchmarks/random_restorers.py).
Each row is a process of its own, so that peak memory is its own; times are the median of the repeats after one
run to warm up. Arithmetic is what torch.utils.flop_counter counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

SPEED_TARGET = 3.0
"""Wanted speed of bfloat16 on a GPU, as a multiple of DiffBIR's own way, at equal steps."""
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
"""Of a card's tensor cores for dense bfloat16 or float16, from NVIDIA's data sheets."""
ROWS = (
    "tiny float32 1",
    "tiny float32 8",
    "feedforward float32 1",
    "feedforward bfloat16 1",
    "osediff float32 1",
    "osediff float16 1",
    "diffbir-own-way float32 1",
    "diffbir float32 1",
    "diffbir bfloat16 1",
    "diffbir bfloat16 4",
    "diffbir bfloat16 8",
)
"""Restorer, type, batch."""


@dataclass(frozen=True)
class Row:
    """Measurements of one restorer."""

    name: str
    image_size_px: int
    steps: int
    seconds_per_image: float
    peak_mib: float
    tflop_per_image: float
    weights: str


def main() -> int:
    """Print the table; exit 1 where a GPU ran full size and missed the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "full"), help="of the published ones (default: full on a GPU)")
    parser.add_argument("--steps", type=int, default=50, help="of DiffBIR (default: 50)")
    parser.add_argument("--image-size", type=int, help="side in pixels (default: 512, small 128; tiny has its own)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs per row (default: 3)")
    parser.add_argument("--only", default="", help="rows that begin so, such as diffbir")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # one row, in this process
    args = parser.parse_args()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    args.size = args.size or ("full" if device == "cuda" else "small")
    args.image_size = args.image_size or (512 if args.size == "full" else 128)
    if args.row:
        print(json.dumps(asdict(measure(args.row, args, device))))
        return 0
    card = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{card}; published ones {args.size}, {args.image_size} px, random weights; DiffBIR {args.steps} steps\n")
    print(
        f"{'restorer, type, batch':<28} {'px':>4} {'steps':>5} {'s/image':>9} {'images/s':>9} {'peak MiB':>9} ", end=""
    )
    print(f"{'TFLOP':>8} {'TFLOP/s':>8} {'of peak':>8}  weights")
    peak = next((value for part, value in PEAK_TFLOPS.items() if part in card), None)
    rows = {}
    names = [name for name in ROWS if device == "cuda" or "float16" not in name.split()]  # CPUs convolve it slowly
    for name in [name for name in names if name.startswith(args.only)]:
        rows[name] = run_row(name, args)
        print_row(rows[name], peak)
    return compare_ways(rows, must=device == "cuda" and args.size == "full")


def run_row(name: str, args: argparse.Namespace) -> Row:
    """Measure in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.restoring", "--row", name, "--size", args.size]
    command += ["--steps", str(args.steps), "--image-size", str(args.image_size), "--repeats", str(args.repeats)]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def print_row(row: Row, peak: float | None) -> None:
    """One line of the table."""
    per_second = row.tflop_per_image / row.seconds_per_image
    share = f"{per_second / peak:.0%}" if peak and "float32" not in row.name else ""
    print(
        f"{row.name:<28} {row.image_size_px:>4} {row.steps:>5} {row.seconds_per_image:>9.3f} "
        f"{1 / row.seconds_per_image:>9.2f} {row.peak_mib:>9,.0f} {row.tflop_per_image:>8.3f} {per_second:>8.3f} "
        f"{share:>8}  {row.weights}",
        flush=True,
    )


def compare_ways(rows: dict[str, Row], *, must: bool) -> int:
    """Measure how many times faster we are than DiffBIR's own way."""
    own = next((row for name, row in rows.items() if name.startswith("diffbir-own-way")), None)
    if own is None:
        return 0
    print()
    ratios = {
        name: own.seconds_per_image / row.seconds_per_image for name, row in rows.items() if name.startswith("diffbir ")
    }
    for name, ratio in ratios.items():
        memory = rows[name].peak_mib / own.peak_mib
        print(f"{name}: {ratio:.2f} times as fast as DiffBIR's own way, with {memory:.2f} of its memory")
    best = max((ratio for name, ratio in ratios.items() if "bfloat16" in name), default=0.0)
    if must:
        print(f"target {SPEED_TARGET} times at bfloat16: {'met' if best >= SPEED_TARGET else 'MISSED'}")
    return int(must and best < SPEED_TARGET)


def measure(name: str, args: argparse.Namespace, device: str) -> Row:
    """One row in this process."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.random_restorers import make_restorer, restore_in_diffbirs_way

    kind, dtype, batch = name.split()
    n = int(batch)
    restorer, weights = make_restorer(kind, args.size, args.image_size, args.steps, device, getattr(torch, dtype))
    side = restorer.image_size_px if kind == "tiny" else args.image_size
    lq = torch.rand(n, 3, side, side, device=device)

    def run(steps: int | None = None) -> object:
        if kind == "diffbir-own-way":
            return restore_in_diffbirs_way(restorer, lq, steps)
        return restorer.restore(lq, list(range(n)), steps)

    def count(steps: int) -> int:
        with FlopCounterMode(display=False) as counter:  # slow, so not for all steps
            run(steps)
        return int(counter.get_total_flops())

    once, taken = count(1), restorer.default_steps
    flop = once if taken == 1 else once + (count(2) - once) * (taken - 1)
    run()  # to warm up
    seconds = [time_once(run, device) for _ in range(args.repeats)]
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return Row(name, side, taken, statistics.median(seconds) / n, peak, flop / n / 1e12, weights)


def time_once(run: Callable[[], object], device: str) -> float:
    """Seconds of one run, to its end on the device."""
    import torch

    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())

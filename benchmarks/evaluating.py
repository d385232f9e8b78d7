"""Measure memory and images per second of `python -m refl evaluate`: `python -m benchmarks.evaluating`.

Two restorers (the shipped tiny one, twice) and a reward model with random weights, by default on 300 and on 3,000
made-up faces of 64 x 64 pixels, PSNR, SSIM and GMSD, each in a process of its own. A rate counts each restored image
once, whatever measures it, the start of the process included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

LIMIT = 1.1
"""Peak memory of the large run over that of the small one."""
METRICS = ("psnr", "ssim", "gmsd")
METHODS = ("one=tiny", "two=tiny")


def write_faces(folder: Path, count: int, size_px: int) -> None:
    """Smooth colours with an ellipse and grain, as PNG."""
    folder.mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
        cv2.ellipse(image, (size_px // 2, size_px // 2), (size_px // 4, size_px // 3), 0, 0, 360, (90, 140, 200), 2)
        grained = image + rng.normal(0, 4, image.shape)
        cv2.imwrite(str(folder / f"face{number:06}.png"), np.clip(grained, 0, 255).astype(np.uint8))


def evaluate_here(words: list[str], all_metrics: bool) -> int:
    """The command in this process, with the few metrics only; none are downloaded."""
    import torch  # here: the other process must not load it, whose memory this one would inherit

    import refl.evaluate.compare
    from refl.__main__ import main as run_command

    if not all_metrics:
        refl.evaluate.compare.WITH_TRUTH, refl.evaluate.compare.WITHOUT_TRUTH = METRICS, ()  # type: ignore[assignment]
    torch.manual_seed(0)  # of the reward model, which must be the same when it is run again
    return run_command(words)


def watch(command: list[str]) -> tuple[float, float]:
    """(seconds, peak memory in MiB) of one process."""
    began = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, spent = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - began, spent.ru_maxrss / 2**10


def measure(count: int, args: argparse.Namespace) -> float:
    """Print a row; returns the peak memory in MiB."""
    with tempfile.TemporaryDirectory(prefix="facereward-evaluating-") as temporary:
        folder = Path(temporary)
        write_faces(folder / "faces", count, args.size)
        words = ["evaluate", f"--data={folder / 'data'}", f"--faces={folder / 'faces'}", f"--out={folder / 'out'}"]
        words += ["--degradation=tiny-refl", "--reward=random=tiny", "--use-prompt", f"--device={args.device}"]
        words += [f"--batch-size={args.batch_size}", *(f"--method={method}" for method in METHODS)]
        child = [sys.executable, "-m", "benchmarks.evaluating", *(["--all-metrics"] if args.all_metrics else [])]
        seconds, peak = watch([*child, "--child", *words])
        again, peak_again = watch([*child, "--child", *words])
    images = count * len(METHODS)
    print(
        f"| {count:,} | {seconds:.1f} s | {images / seconds:.1f} | {peak:,.0f} MiB | {again:.1f} s | "
        f"{peak_again:,.0f} MiB |",
        flush=True,
    )
    return peak


def main() -> int:
    """Print the table; exit 1 where memory grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, nargs="+", default=[300, 3_000], help="of each run (default: 300 3000)")
    parser.add_argument("--size", type=int, default=64, metavar="PX", help="their side (default: 64)")
    parser.add_argument("--batch-size", type=int, default=4, help="(default: 4)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--all-metrics", action="store_true", help="all that need no download, not three")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return evaluate_here(args.child, args.all_metrics)
    print("| faces | whole run | images/s | peak memory | run again | its peak memory |\n|---|---|---|---|---|---|")
    peaks = [measure(count, args) for count in args.faces]
    print(f"\nmemory {peaks[-1] / peaks[0]:.3f} times (limit: {LIMIT})")
    return int(peaks[-1] / peaks[0] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())

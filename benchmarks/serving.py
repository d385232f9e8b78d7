"""Time a reward that is asked over HTTP against the same model called in a process: `python -m benchmarks.serving`.

Images a second of smooth 512 x 512 images in requests of 64, with random weights: `called` is `score_apart` on arrays,
`npz` is `RemoteReward` and `json` base64 of PNG files, which the server decodes, both from a process of its own on the
same machine. The three take turns; a figure is the quickest turn, which whatever else the machine does disturbed least.
`called` and `npz` must give equal numbers. What HTTP costs is the same for every model, so that its share is largest
with the smallest.

    python -m benchmarks.serving                          # CPU: the presets tiny and vit-b-32
    python -m benchmarks.serving --presets vit-h-14       # a GPU
"""

from __future__ import annotations

import argparse
import base64
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import httpx
import numpy as np
import psutil
import torch
from PIL import Image as PilImage

from pixels.read import RgbImage
from reward.model.checkpoint import build_model, save_model
from reward.model.config import load_model_config
from reward.score.scorer import load_scorer, score_apart
from reward.serve.client import RemoteReward
from training.device import choose_device

IMAGES, BATCH = 64, 32
WAYS = ("called", "npz", "json")


def draw_images(side_px: int) -> RgbImage:
    """(IMAGES, side, side, 3): smooth, so that PNG packs them about as well as faces."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (IMAGES, side_px // 16, side_px // 16, 3), dtype=np.uint8)
    smooth = [cv2.resize(one, (side_px, side_px), interpolation=cv2.INTER_CUBIC) for one in small]
    noise = rng.integers(0, 4, (IMAGES, side_px, side_px, 3), dtype=np.uint8)
    return np.asarray(np.stack(smooth) // 2 + noise, dtype=np.uint8)


def encode(image: RgbImage) -> str:
    """A PNG file as base64."""
    buffer = io.BytesIO()
    PilImage.fromarray(image).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def compare(preset: str, device: str, turns: int, folder: Path) -> None:
    """Print a row of the table."""
    torch.manual_seed(0)
    save_model(build_model(load_model_config(preset, weights="")), folder / preset)
    scorer = load_scorer(str(folder / preset), choose_device(device))
    words = ["--reward", str(folder / preset), "--port", "0", "--device", device, "--batch-size", str(BATCH)]
    server = subprocess.Popen([sys.executable, "-m", "reward", "serve", *words], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().partition("is ready at ")[2].split()[0]
    images = draw_images(512)
    remote, files = RemoteReward(url, timeout_seconds=600), [encode(image) for image in images]

    def call() -> np.ndarray:
        parts = (list(images[start : start + BATCH]) for start in range(0, IMAGES, BATCH))
        return np.concatenate([score_apart(scorer, part, [None] * BATCH)[0] for part in parts]).astype(np.float32)

    def ask_json() -> np.ndarray:
        answer = httpx.post(f"{url}/score", json={"images": files}, timeout=600).raise_for_status()
        return np.array(answer.json()["rewards"], dtype=np.float32)

    ways: dict[str, Callable[[], np.ndarray]] = {"called": call, "npz": lambda: remote.score(images), "json": ask_json}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    found = {way: ask() for way, ask in ways.items()}  # warms up, too
    assert np.array_equal(found["called"], found["npz"]), "one way gives other numbers"
    for _ in range(turns):
        for way in WAYS:
            start = time.perf_counter()
            ways[way]()
            seconds[way].append(time.perf_counter() - start)
    rates = [IMAGES / min(seconds[way]) for way in WAYS]
    over = [1000 * (min(seconds[way]) - min(seconds["called"])) / IMAGES for way in WAYS[1:]]
    size_mib = psutil.Process(server.pid).memory_info().rss / 2**20
    server.terminate()
    server.wait()
    cells = [*(f"{rate:.1f}" for rate in rates), *(f"{rate / rates[0]:.2f}" for rate in rates[1:])]
    print(f"| `{preset}` | {' | '.join(cells)} | {over[0]:.1f} | {over[1]:.1f} | {size_mib:.0f} MiB |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "vit-b-32"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    print("| | called, images/s | npz | json | npz / called | json / called | npz, ms more an image | json | server |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for preset in args.presets:
            compare(preset, args.device, args.turns, Path(folder))


if __name__ == "__main__":
    main()

"""Restore faces that the tiny restorer never saw: `python -m experiments.tiny_restorer --faces DIR`.

The faces held out in training are degraded as in training, each once. A row per method: means over the faces, with 95 %
bootstrap intervals over faces of what each gains on the degraded input. PSNR, SSIM and GMSD are of 8-bit images.
`--unseen DIR` takes all faces of another folder; `--grid FILE` draws the first 16 faces by name, unselected.

The regression network of as many parameters is stage 1 made wider, trained alone by the same command:
`python -m refl pretrain --preset tiny --stage1-channels 80 144 192 --phase stage1 --faces DIR --out FOLDER`, then
`--regression FOLDER`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image as PilImage
from torch import Tensor

from db.errors import UserError
from metrics.accuracy import bootstrap_mean
from metrics.compute import Request, compute_values
from refl.faces.degrade import draw_degradation
from refl.pretrain.card import read_record
from refl.pretrain.config import PretrainConfig
from refl.pretrain.data import Batch, Faces, Images, load_faces, make_pairs, read_faces, scale_degradation
from refl.pretrain.phases import to_pixels
from refl.restorers.diffusion import DiffusionRestorer
from refl.restorers.tiny import SHIPPED, load_tiny, make_tiny
from refl.restorers.tiny_config import TinyConfig
from training.precision import copy_values
from training.state import find_last, load_state

METRICS = ("psnr", "ssim", "gmsd")
GRID_FACES = 16
GRID_SCALE = 2


def main() -> int:
    """Print the table; exit 1 where SSIM or GMSD do not gain on the input beyond the interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, nargs="+", required=True, help="the folders that were trained on")
    parser.add_argument("--unseen", type=Path, help="measure on all faces of this folder instead")
    parser.add_argument(
        "--weights", type=Path, default=SHIPPED, help="folder of the restorer (default: the shipped one)"
    )
    parser.add_argument("--regression", type=Path, help="folder of a wider stage 1 that was trained alone")
    parser.add_argument("--scale", type=int, default=1, choices=(1, 2), help="2 for faces of twice the size")
    parser.add_argument("--steps", type=int, help="of the DDIM schedule (default: the restorer's)")
    parser.add_argument("--grid", type=Path, help="PNG of the first 16 faces by name, a row per face")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        return run(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    """Measure, print, draw."""
    restorer = load_tiny(args.weights)
    config = PretrainConfig.model_validate(read_record(args.weights)["train"])
    faces = choose_faces(args.faces, args.unseen, restorer.image_size_px, config)
    pairs = make_pairs(faces, restorer.image_size_px, config, args.scale)
    made, seconds = restore_all(restorer, pairs, args.steps)
    made = {"degraded input": pairs.lq, "bicubic": enlarge(pairs, faces, config, args.scale), **made}
    if args.regression:
        network, parameters = load_regression(args.regression)
        name = f"regression, {parameters / 1e6:.1f} M"
        made[name], seconds[name] = timed(lambda lq: network.clean(lq), pairs.lq)
    values = {name: measure(images, pairs.hq) for name, images in made.items()}
    total = sum(parameter.numel() for parameter in restorer.parameters())
    print(f"{len(faces.names)} faces of {pairs.hq.shape[1]} px; the tiny restorer has {total / 1e6:.2f} M parameters\n")
    ok = print_table(values, seconds)
    if args.grid:
        draw_grid(args.grid, [pairs.hq, *made.values()])
        print(f"\n{args.grid}, from the left: original, {', '.join(made)}")
    return 0 if ok else 1


def choose_faces(folders: list[Path], unseen: Path | None, size_px: int, config: PretrainConfig) -> Faces:
    """The held-out faces, or all of another folder; by name."""
    if unseen is not None:
        return read_faces([unseen], size_px, config)[0]
    return load_faces(folders, size_px, config)[1]


def restore_all(
    restorer: DiffusionRestorer, pairs: Batch, steps: int | None
) -> tuple[dict[str, Images], dict[str, float]]:
    """Images and seconds per image: of stage 1 alone, of the autoencoder on the originals, and of the restorer."""
    made, seconds = {}, {}
    ways: dict[str, tuple[Callable[[Tensor], Tensor], Images]] = {
        "stage 1 alone": (restorer.clean, pairs.lq),
        "autoencoder of the original": (lambda hq: restorer.decode(restorer.encode_pixels(hq)), pairs.hq),
        "tiny": (lambda lq: restorer.restore(lq, [0] * len(lq), steps), pairs.lq),
    }
    for name, (way, images) in ways.items():
        made[name], seconds[name] = timed(way, images)
    return made, seconds


@torch.no_grad()
def timed(way: Callable[[Tensor], Tensor], images: Images, batch: int = 16) -> tuple[Images, float]:
    """8-bit results of a way from pixels to pixels, and its seconds per image in batches of 16."""
    inputs = to_pixels(images, torch.device("cpu"))
    way(inputs[:1])
    began = time.perf_counter()
    results = torch.cat([way(part) for part in torch.split(inputs, batch)])
    seconds = (time.perf_counter() - began) / len(images)
    return (results.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy(), seconds


def enlarge(pairs: Batch, faces: Faces, config: PretrainConfig, scale: int) -> Images:
    """Enlarge by bicubic interpolation the pixels that were left when a face was shrunk."""
    settings = scale_degradation(config, scale)
    found = []
    for lq, name in zip(pairs.lq, faces.names, strict=True):
        drawn = draw_degradation(settings, np.random.default_rng([config.seed, *Path(name).stem.encode()]))
        side = max(1, int(lq.shape[0] // drawn.downsample_factor))
        small = cv2.resize(lq, (side, side), interpolation=cv2.INTER_AREA)
        found.append(cv2.resize(small, lq.shape[:2], interpolation=cv2.INTER_CUBIC))
    return np.stack(found)


def load_regression(folder: Path) -> tuple[DiffusionRestorer, int]:
    """A restorer whose stage 1 was trained alone in this folder, and that network's number of parameters."""
    last = find_last(folder / "stage1")
    if not last:
        raise UserError(
            f"{folder / 'stage1' / 'last'} is missing. Train it: see `python -m experiments.tiny_restorer --help`."
        )
    state = load_state(last)
    restorer = make_tiny(TinyConfig.model_validate(read_record(last)["model"]))
    assert restorer.stage1 is not None
    parameters = list(restorer.stage1.parameters())
    copy_values(parameters, state["averages"])
    return restorer, sum(parameter.numel() for parameter in parameters)


def measure(images: Images, hq: Images) -> dict[str, np.ndarray]:
    """(N,) values of each metric."""
    n = len(hq)
    requests = [Request(metric, place, n + place) for metric in METRICS for place in range(n)]
    values = [value.raw_value for value in compute_values(requests, [*images, *hq])]
    return dict(zip(METRICS, np.array(values, dtype=float).reshape(len(METRICS), n), strict=True))


def print_table(values: dict[str, dict[str, np.ndarray]], seconds: dict[str, float]) -> bool:
    """A row per method; whether `tiny` beats the input in SSIM and GMSD beyond the interval."""
    print("| | PSNR | SSIM | GMSD | SSIM gained | GMSD lost | ms an image |")
    print("|---|---|---|---|---|---|---|")
    before = values["degraded input"]
    ok = True
    for name, found in values.items():
        cells = [f"{found['psnr'].mean():.2f}", f"{found['ssim'].mean():.4f}", f"{found['gmsd'].mean():.4f}"]
        for gained in (found["ssim"] - before["ssim"], before["gmsd"] - found["gmsd"]):
            mean, low, high = bootstrap_mean(gained, np.ones(len(gained)), np.arange(len(gained)))
            cells.append("" if name == "degraded input" else f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]")
            ok &= name != "tiny" or low > 0
        cells.append(f"{1000 * seconds[name]:.1f}" if name in seconds else "")
        print(f"| {name} | {' | '.join(cells)} |")
    return ok


def draw_grid(path: Path, columns: list[Images]) -> None:
    """The first faces, a row per face, a column per method."""
    grid = np.concatenate([np.concatenate(list(column[:GRID_FACES])) for column in columns], axis=1)
    height, width = grid.shape[:2]
    image = PilImage.fromarray(grid).resize((width * GRID_SCALE, height * GRID_SCALE), PilImage.Resampling.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


if __name__ == "__main__":
    sys.exit(main())

"""Count what a network evaluation costs in each algorithm, at full size: `python -m benchmarks.algorithm_cost`.

One training step of each 24 GB preset runs on tensors without numbers under torch's own counter of multiplications and
additions, with two steps of sampling in place of all. What is not the denoiser (decoding, the reward model, encoding)
makes an evaluation dearer; a budget in evaluations is an equal cost as far as these numbers are alike.
"""

from __future__ import annotations

import argparse

from torch.utils.flop_counter import FlopCounterMode

from refl.tune.config import load_refl_config
from refl.tune.memory import build_training, make_pair_part, make_part
from refl.tune.parts import Part
from refl.tune.train import train_step
from reward.model.checkpoint import read_architecture
from reward.model.config import load_model_config
from training.without_memory import count_fake_training

PRESETS = {
    "paper-24gb": "diffbir-v1",
    "dpo-24gb": "diffbir-v1",
    "gdpo-24gb": "diffbir-v1",
    "grpo-24gb": "diffbir-v1",
    "gdpo-osediff-24gb": "osediff",
}
TERA = 1e12


def count_step(preset: str, restorer: str) -> tuple[int, float]:
    """The network evaluations of a step of one photo or pair, and its operations in TFLOP."""
    changes = {
        "algorithm": {"gradient_steps": 0},
        "live_reward": {"reward_every_steps": 0},
        "train": {"batch_size": 1, "micro_batch_size": 1, "gradient_norms": False, "gradient_checkpointing": False},
    }
    config = load_refl_config(preset, changes)
    reward = load_model_config("vit-h-14") if config.method != "dpo" else None
    with count_fake_training("cpu"):
        training = build_training(config, restorer, reward, read_architecture(reward) if reward else {}, "cpu")
        size_px = training.restorer.image_size_px
        device = training.accelerator.device
        part: Part = make_pair_part(training, 1, size_px) if config.method == "dpo" else make_part(1, size_px, device)
        with FlopCounterMode(display=False) as counter:
            train_step(training, 0, iter([[part]]))
    return training.evaluations.total, counter.get_total_flops() / TERA


def main() -> None:
    """Count, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print("| preset | evaluations | TFLOP | TFLOP per evaluation | against refl |\n|---|---|---|---|---|")
    first = 0.0
    for preset, restorer in PRESETS.items():
        evaluations, counted = count_step(preset, restorer)
        each = counted / evaluations
        first = first or each
        cells = [f"{evaluations}", f"{counted:.1f}", f"{each:.2f}", f"{each / first:.2f}"]
        print(f"| {preset} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

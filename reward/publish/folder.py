"""Write a reward model as a folder that open_clip loads, with what is more than CLIP apart from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from reward.model.checkpoint import compute_version
from reward.model.model import RewardModel
from runs.files import write_text_whole
from training.weights import save_tensors

SCORE = Path(__file__).parent / "score.py"


def write_folder(model: RewardModel, folder: Path) -> None:
    """Write `open_clip_config.json`, `open_clip_model.safetensors`, `reward.json`, `score.py`, and the head's file.

    `open_clip.create_model_from_pretrained("local-dir:FOLDER")` gives the CLIP; where the text mode is `fixed` or
    `caption` and there is one member, the cosine of its image and text features is the reward.
    """
    config = model.config
    clip = {name: value.detach().cpu().contiguous() for name, value in model.clip.state_dict().items()}
    head = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith("clip.")
    }
    preprocess = {
        "size": config.image_size_px,
        "mean": list(config.mean),
        "std": list(config.std),
        "interpolation": config.interpolation,
        "resize_mode": "longest",
    }
    described = {"model_cfg": model.architecture, "preprocess_cfg": preprocess}
    write_text_whole(folder / "open_clip_config.json", json.dumps(described, indent=2) + "\n")
    save_tensors(clip, folder / "open_clip_model.safetensors")
    if head:
        save_tensors(head, folder / "reward_head.safetensors")
    said = {**config.model_dump(mode="json"), "version": compute_version(model)}
    write_text_whole(folder / "reward.json", json.dumps(said, indent=2) + "\n")
    shutil.copyfile(SCORE, folder / "score.py")

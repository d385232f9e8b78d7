"""A very small CLIP for tests of the model: 3 image blocks, 2 text blocks, the real vocabulary."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

torch = pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("open_clip", reason="needs open_clip: `make install`")

from reward.model.checkpoint import build_model  # noqa: E402
from reward.model.config import ModelConfig  # noqa: E402
from reward.model.model import RewardModel  # noqa: E402

ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture
def architecture_file(tmp_path: Path) -> Path:
    """The architecture as a person would write it."""
    path = tmp_path / "small.json"
    path.write_text(json.dumps(ARCHITECTURE))
    return path


@pytest.fixture
def make_config(architecture_file: Path) -> Callable[..., ModelConfig]:
    """`make_config(text_mode="learned")`: the small model's config, some fields set."""

    def make(**fields: Any) -> ModelConfig:
        defaults = {"image_size_px": 32, "unlocked_image_groups": 3, "unlocked_text_blocks": 1}
        return ModelConfig(**{"architecture": str(architecture_file), **defaults, **fields})

    return make


@pytest.fixture
def make_model(make_config: Callable[..., ModelConfig]) -> Callable[..., RewardModel]:
    """The small model with random weights, always the same."""

    def make(**fields: Any) -> RewardModel:
        torch.manual_seed(0)
        return build_model(make_config(**fields))

    return make


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """`make_dataset(sources=12)`: a dataset folder as `annotate export` writes it, in which the brighter image wins.

    Two pairs a source; of six sources one is val and one test. `change` may alter each row before it is written.
    """

    def make(sources: int = 24, name: str = "dataset", change: Callable[[dict[str, Any]], None] | None = None) -> Path:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        rng = np.random.default_rng(0)
        lines = []
        for number in range(sources):
            images = []
            for level in (40, 110, 180):
                pixels = np.clip(level + rng.normal(0, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
                content = io.BytesIO()
                PilImage.fromarray(pixels).save(content, format="PNG")
                sha256 = hashlib.sha256(content.getvalue()).hexdigest()
                (folder / "images" / f"{sha256}.png").write_bytes(content.getvalue())
                images.append(sha256)
            for place, (darker, brighter) in enumerate(((0, 1), (1, 2))):
                a, b = (brighter, darker) if rng.random() < 0.5 else (darker, brighter)
                split = {4: "val", 5: "test"}.get(number % 6, "train")
                row = {
                    "pair": f"{number:03}-{place}",
                    "source": f"face{number}",
                    "split": split,
                    "group": f"face{number}",
                    "caption": None,
                    "image_a": f"images/{images[a]}.png",
                    "image_b": f"images/{images[b]}.png",
                    "lq": None,
                    "hq": None,
                    "sha256_a": images[a],
                    "sha256_b": images[b],
                    "sha256_lq": None,
                    "sha256_hq": None,
                    "method_a": f"level{a}",
                    "method_b": f"level{b}",
                    "seed_a": 0,
                    "seed_b": 0,
                    "p_a": float(a > b),
                    "tie": False,
                    "origin": "human",
                    "made_by": "majority",
                    "weight": 1.0,
                    "agreement": 1.0,
                    "judgments": [],
                }
                if change:
                    change(row)
                lines.append(json.dumps(row))
        (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return make

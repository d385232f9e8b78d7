"""Score faces by a published reward model. Needs torch, open_clip_torch and safetensors, and nothing of FaceReward.

`Reward("this folder")(images, captions, inputs)` gives (B,) rewards; higher is better. Rewards of two models, or of
two prompts, are not comparable.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor


class Reward(torch.nn.Module):
    """A CLIP with, where it was trained with some, small heads.

    The reward is the mean over heads of the cosine of two vectors. Of an image f = encode_image(image) / length, a head
    makes f + W2 gelu(W1 f + b1) + b2, of length one. It is compared with the prompt's or caption's vector; with a
    learned one; with what the head makes of the input photo; or with the sum of the last two, of length one.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        path = Path(folder).absolute()
        self.settings = json.loads((path / "reward.json").read_text(encoding="utf-8"))
        self.clip = open_clip.create_model_from_pretrained(f"local-dir:{path}", return_transform=False).eval()
        head = path / "reward_head.safetensors"
        self.head: dict[str, Tensor] = load_file(head) if head.is_file() else {}

    @torch.no_grad()
    def forward(
        self, images: Tensor, captions: Sequence[str | None] | None = None, inputs: Tensor | None = None
    ) -> Tensor:
        """(B,) rewards of (B, 3, H, W) RGB in [0, 1]; inputs are the photos that were restored, where it sees them.

        Raises:
            ValueError: it sees the input photos, and gets none.
        """
        mode = self.settings["text_mode"]
        if mode.startswith("input") and inputs is None:
            raise ValueError(f"text_mode is {mode}: give the photos that were restored as inputs")
        features = self._encode(images)
        prompts = None if mode == "input" else self._encode_prompts(captions or [None] * len(images))
        if not any(name.startswith("heads.") for name in self.head):
            assert prompts is not None
            return (features * prompts).sum(dim=-1)
        seen = self._encode(inputs) if inputs is not None and mode.startswith("input") else None
        found = []
        for member in range(self.settings["members"]):
            target = 0 if prompts is None else prompts
            if seen is not None:
                target = F.normalize(seen + self._map(f"heads.{member}.input", seen) + target, dim=-1)
            ours = F.normalize(features + self._map(f"heads.{member}.image", features), dim=-1)
            found.append((ours * target).sum(dim=-1))
        return torch.stack(found).mean(dim=0)

    def _encode(self, images: Tensor) -> Tensor:
        """The longest side resized, centred on black, normalised, through the image tower; (B, D) of length one."""
        settings, size_px = self.settings, self.settings["image_size_px"]
        height, width = images.shape[-2:]
        scale = size_px / max(height, width)
        new = max(1, round(height * scale)), max(1, round(width * scale))
        images = images.clamp(0, 1)
        if new != (height, width):
            mode, antialias = settings["interpolation"], settings["antialias"]
            images = F.interpolate(images, new, mode=mode, align_corners=False, antialias=antialias)
        top, left = (size_px - new[0]) // 2, (size_px - new[1]) // 2
        images = F.pad(images, (left, size_px - new[1] - left, top, size_px - new[0] - top))
        mean, std = (images.new_tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
        return F.normalize(self.clip.encode_image((images - mean) / std).float(), dim=-1)

    def _encode_prompts(self, captions: Sequence[str | None]) -> Tensor:
        if "prompt_vector" in self.head:
            return F.normalize(self.head["prompt_vector"].float(), dim=-1).expand(len(captions), -1)
        takes = self.settings["text_mode"] == "caption"
        texts = [caption if caption and takes else self.settings["prompt"] for caption in captions]
        tokens = open_clip.SimpleTokenizer()(texts, context_length=self.clip.context_length)
        return F.normalize(self.clip.encode_text(tokens.to(self.clip.logit_scale.device)).float(), dim=-1)

    def _map(self, name: str, features: Tensor) -> Tensor:
        layers = {part: self.head[f"{name}.{part}"] for part in ("0.weight", "0.bias", "2.weight", "2.bias")}
        hidden = F.gelu(F.linear(features, layers["0.weight"], layers["0.bias"]))
        return F.linear(hidden, layers["2.weight"], layers["2.bias"])

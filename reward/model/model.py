"""Define the reward model, an open_clip CLIP whose cosine of a face with a prompt or with its input is the reward.

`preprocess` is the one way of an image into CLIP, in training, scoring and ReFL alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from math import log
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from db.errors import UserError
from reward.model.config import ModelConfig

MAX_LOGIT_SCALE = 100.0
"""As in CLIP and HPSv2: the clamp of `clamp_logit_scale`."""


class RewardModel(nn.Module):
    """open_clip's CLIP with the config that says how it is fed and which part of it is trained.

    Weights are as open_clip draws them; `build_model` gives them their start, `load_model` those of a checkpoint.
    """

    def __init__(self, config: ModelConfig, architecture: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.architecture = architecture
        self.gradient_checkpointing = False
        self.clip: Any = open_clip.CLIP(**deepcopy(architecture))
        width = architecture["embed_dim"]
        if config.learns_prompt:
            self.prompt_vector = nn.Parameter(torch.randn(width))
        if config.has_heads:
            self.heads = make_heads(config, width)
        unlock(self)

    @property
    def logit_scale(self) -> Tensor:
        """() factor from cosine to logit, as trained: already exponentiated."""
        scale: Tensor = self.clip.logit_scale.exp()
        return scale

    @property
    def context_tokens(self) -> int:
        """Tokens that the text tower takes, start and end included."""
        return int(self.clip.context_length)

    @property
    def float32_parameters(self) -> list[Tensor]:
        """List what stays float32 where the towers compute in fewer bits: numbers and vectors that scale rewards."""
        prompt = [self.prompt_vector] if self.config.learns_prompt else []
        return [self.clip.logit_scale, *prompt, *(self.heads.parameters() if self.config.has_heads else [])]

    @property
    def frozen_image_groups(self) -> int:
        """Count the first groups of the image tower that `encode_frozen` runs: the stem, then a block each."""
        layers = len(self.clip.visual.transformer.resblocks)
        return min(layers + 1, layers + 2 - self.config.unlocked_image_groups)

    def forward(self, images: Tensor, captions: Sequence[str | None], inputs: Tensor | None = None) -> Tensor:
        """Rewards of images.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            captions: B of them; None or empty where there is none.
            inputs: (B, 3, h, w) RGB in [0, 1], the photos that were restored, for a model that needs them.
        Returns:
            (B,) cosines in [-1, 1], float32, the mean over members; higher is better, comparable for one prompt only.
        Raises:
            ValueError: the model needs inputs and gets none.
        """
        return self.compute_members(images, captions, inputs).mean(dim=0)

    def compute_members(self, images: Tensor, captions: Sequence[str | None], inputs: Tensor | None = None) -> Tensor:
        """(members, B) rewards by each member; arguments as of `forward`."""
        seen = self.encode_images(inputs) if inputs is not None and self.config.needs_input else None
        return self.compare(self.encode_images(images), captions, seen)

    def compare(self, features: Tensor, captions: Sequence[str | None], inputs: Tensor | None = None) -> Tensor:
        """(members, times · B) cosines of images with what each of B is compared with.

        Args:
            features: (times · B, D) of the images, as `encode_images` gives them: B of them, then B more with the same
                captions and inputs, and so on.
            captions: B.
            inputs: (B, D) features of the photos that were restored; None for a model that needs none.
        """
        if not self.config.has_heads:
            targets = self.encode_prompts(captions)
            return compute_cosine(features, targets.repeat(len(features) // len(targets), 1))[None]
        if self.config.needs_input and inputs is None:
            raise ValueError(f"text_mode is {self.config.text_mode}, but no input photos are given.")
        prompts = None if self.config.text_mode == "input" else self.encode_prompts(captions)
        found = []
        for head in self.heads:
            assert isinstance(head, Head)
            target = prompts if inputs is None else head.encode_input(inputs, prompts)
            assert target is not None
            found.append(compute_cosine(head(features), target.repeat(len(features) // len(target), 1)))
        return torch.stack(found)

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] → (B, D) features of length one; gradients reach the images."""
        return self.encode_from_frozen(self.encode_frozen(images))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S), what `preprocess` gives → (B, D) features of length one."""
        return self.encode_from_frozen(self._run_frozen(pixels))

    def encode_frozen(self, images: Tensor) -> Tensor:
        """Run the frozen first part of the image tower on (B, 3, H, W) RGB in [0, 1].

        No graph is kept, unless the images themselves require a gradient. With everything unlocked it is `preprocess`.

        Returns:
            (B, tokens, width) activations, which training may keep; (B, 3, S, S) where nothing is frozen.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad):
            return self._run_frozen(preprocess(images, self.config))

    def encode_from_frozen(self, activations: Tensor) -> Tensor:
        """The rest of the image tower: what `encode_frozen` gave → (B, D) features of length one."""
        visual = self.clip.visual
        x = activations if self.frozen_image_groups else self._embed(activations)
        x = self._run(visual.transformer.resblocks[max(0, self.frozen_image_groups - 1) :], x)
        return _unit(visual.ln_post(x)[:, 0] @ visual.proj)

    def encode_prompts(self, captions: Sequence[str | None]) -> Tensor:
        """(B, D) features of length one of the text or learned vector that B images are compared with."""
        if self.config.learns_prompt:
            return _unit(self.prompt_vector).expand(len(captions), -1)
        prompts = [self.choose_prompt(caption) for caption in captions]
        place = {prompt: at for at, prompt in enumerate(dict.fromkeys(prompts))}
        features = self.encode_tokens(self.tokenize(list(place)))  # each sentence once
        return features[[place[prompt] for prompt in prompts]]

    def choose_prompt(self, caption: str | None) -> str:
        """The caption where there is one and the mode takes it, else the config's prompt."""
        return caption if caption and self.config.text_mode == "caption" else self.config.prompt

    def tokenize(self, prompts: list[str]) -> Tensor:
        """(B, context) int64 ids, zero-padded; longer prompts are cut and keep their end token."""
        tokens: Tensor = load_tokenizer()(prompts, context_length=self.clip.context_length)
        return tokens.to(self.clip.logit_scale.device)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """(B, context) ids → (B, D) features of length one."""
        return self.encode_tokens_from_frozen(self.encode_tokens_frozen(tokens), tokens)

    def encode_tokens_frozen(self, tokens: Tensor) -> Tensor:
        """(B, context) ids → (B, context, width) activations of the embeddings and the frozen text blocks; no graph."""
        clip = self.clip
        with torch.no_grad():
            x = clip.token_embedding(tokens) + clip.positional_embedding
            return self._run(self._text_blocks(frozen=True), x, clip.attn_mask)

    def encode_tokens_from_frozen(self, activations: Tensor, tokens: Tensor) -> Tensor:
        """The rest of the text tower: what `encode_tokens_frozen` gave → (B, D) features of length one."""
        clip = self.clip
        x = clip.ln_final(self._run(self._text_blocks(frozen=False), activations, clip.attn_mask))
        ends = tokens.argmax(dim=-1)  # the end token has the highest id
        return _unit(x[torch.arange(len(x), device=x.device), ends] @ clip.text_projection)

    def _text_blocks(self, *, frozen: bool) -> Iterable[nn.Module]:
        blocks = self.clip.transformer.resblocks
        n_frozen = len(blocks) - count_text_blocks(self.config)
        part: Iterable[nn.Module] = blocks[:n_frozen] if frozen else blocks[n_frozen:]
        return part

    def _run_frozen(self, pixels: Tensor) -> Tensor:
        if self.frozen_image_groups == 0:
            return pixels
        blocks = self.clip.visual.transformer.resblocks[: self.frozen_image_groups - 1]
        return self._run(blocks, self._embed(pixels))

    def _embed(self, pixels: Tensor) -> Tensor:
        """The stem: (B, 3, S, S) → (B, 1 + patches, width), the class token first."""
        visual = self.clip.visual
        x = visual.conv1(pixels.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        first = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        embedded: Tensor = visual.ln_pre(torch.cat([first, x], dim=1) + visual.positional_embedding.to(x.dtype))
        return embedded

    def _run(self, blocks: Iterable[nn.Module], x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(run_block, block, x, mask, use_reentrant=False)
            else:
                x = run_block(block, x, mask)
        return x


class Head(nn.Module):
    """A member's own part: small residual maps of the features of an image and of its input. They begin as nothing."""

    def __init__(self, width: int, *, sees_input: bool) -> None:
        super().__init__()
        self.image = _make_map(width)
        self.input = _make_map(width) if sees_input else None

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) features of length one of images → (B, D) of length one, as this member sees them."""
        return _unit(features + _apply(self.image, features))

    def encode_input(self, inputs: Tensor, prompts: Tensor | None = None) -> Tensor:
        """(B, D) of length one, what images are compared with: of (B, D) inputs, and of (B, D) prompts where given."""
        assert self.input is not None
        return _unit(inputs + _apply(self.input, inputs) + (0 if prompts is None else prompts))


def make_heads(config: ModelConfig, width: int) -> nn.ModuleList:
    """A head a member, with random numbers; none for a model that has none."""
    return nn.ModuleList(Head(width, sees_input=config.needs_input) for _ in range(config.members * config.has_heads))


def _apply(layers: nn.Sequential, features: Tensor) -> Tensor:
    """Layers in their own number format, which is float32 in training and may be less in scoring."""
    found: Tensor = layers(features.to(next(layers.parameters()).dtype))
    return found


def _make_map(width: int) -> nn.Sequential:
    """Two layers whose second gives 0 until it is trained; the first differs from member to member."""
    last = nn.Linear(width, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), last)


def run_block(block: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """One residual attention block of open_clip's, (B, L, width) → the same, mask (L, L) added to the attention.

    The same formula as the block's own forward, whose nn.MultiheadAttention transposes the batch: with frozen weights
    its projection then is a product a token, on a CPU twice as slow in float32 and fifteen times in bfloat16.
    """
    attention = block.attn
    projected = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    heads = projected.view(*x.shape[:2], 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
    mask = None if mask is None else mask.to(heads.dtype)
    mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
    x = x + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    added: Tensor = x + block.mlp(block.ln_2(x))
    return added


@cache
def load_tokenizer() -> Any:
    """CLIP's byte-pair encoding, one for all models; its vocabulary is part of open_clip."""
    return open_clip.SimpleTokenizer()


def _unit(features: Tensor) -> Tensor:
    """Vectors of length one, in float32 at least: cosines of one prompt differ in the third digit."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def compute_cosine(image_features: Tensor, prompt_features: Tensor) -> Tensor:
    """(B,) cosines of two (B, D) of length one."""
    return (image_features * prompt_features).sum(dim=-1)


def preprocess(images: Tensor, config: ModelConfig) -> Tensor:
    """Images as the config's CLIP takes them: longest side resized, centred on black, normalised; differentiable.

    As HPSv2's transform does it, for any shape; a face is square and then only resized. Values outside [0, 1], which a
    restorer may give, are clamped first, as the published ReFL does.

    Args:
        images: (B, 3, H, W) floating RGB in [0, 1].
    Returns:
        (B, 3, S, S), S = config.image_size_px, of the same dtype and device.
    Raises:
        ValueError: another shape, or integers.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"Images are {tuple(images.shape)} {images.dtype}, not (B, 3, H, W) floating RGB in [0, 1].")
    images = images.clamp(0, 1)
    size_px, (height, width) = config.image_size_px, images.shape[-2:]
    scale = size_px / max(height, width)
    new = max(1, round(height * scale)), max(1, round(width * scale))
    if new != (height, width):
        images = F.interpolate(images, new, mode=config.interpolation, align_corners=False, antialias=config.antialias)
    top, left = (size_px - new[0]) // 2, (size_px - new[1]) // 2
    images = F.pad(images, (left, size_px - new[1] - left, top, size_px - new[0] - top))
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    return (images - mean) / std


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters; the trained ones by where they are."""

    image: int
    text: int
    other: int
    """logit_scale, the prompt vector where it is learned, and heads."""
    total: int
    """All of the model, trained or not."""

    @property
    def trained(self) -> int:
        return self.image + self.text + self.other


def count_text_blocks(config: ModelConfig) -> int:
    """Trained text blocks: none where no text is read, so that the text tower rests."""
    return config.unlocked_text_blocks if config.reads_text else 0


def unlock(model: RewardModel) -> ParameterCounts:
    """Let gradients into the last groups that the config says, and nowhere else.

    Both numbers mean what the paper's do, whose fork of open_clip counts the text tower otherwise than open_clip
    itself: 11 there is 12 of open_clip's `lock_text_tower`. The logit scale is always trained.

    Raises:
        UserError: the towers have fewer.
    """
    clip, config = model.clip, model.config
    visual, text_blocks = clip.visual, list(clip.transformer.resblocks)
    *blocks, last = visual.transformer.resblocks
    stem = [visual.conv1, visual.class_embedding, visual.positional_embedding, visual.ln_pre]
    groups = [stem, *([block] for block in blocks), [last, visual.ln_post], [visual.proj]]
    for name, asked, most in (
        ("unlocked_image_groups", config.unlocked_image_groups, len(groups)),
        ("unlocked_text_blocks", config.unlocked_text_blocks, len(text_blocks)),
    ):
        if asked > most:
            raise UserError(f"{name} is {asked}, but {config.architecture} has {most}. Set it to {most} or less.")
    n_text = count_text_blocks(config)
    image = [part for group in groups[len(groups) - config.unlocked_image_groups :] for part in group]
    text = [*text_blocks[-n_text:], clip.ln_final, clip.text_projection] if n_text else []
    other = model.float32_parameters
    model.requires_grad_(False)
    counts = {}
    for name, parts in {"image": image, "text": text, "other": other}.items():
        parameters = [p for part in parts for p in (part.parameters() if isinstance(part, nn.Module) else [part])]
        for parameter in parameters:
            parameter.requires_grad_(True)
        counts[name] = sum(parameter.numel() for parameter in parameters)
    return ParameterCounts(**counts, total=sum(parameter.numel() for parameter in model.parameters()))


@torch.no_grad()
def clamp_logit_scale(model: RewardModel) -> None:
    """Keep the trained logit scale within 1 … MAX_LOGIT_SCALE: called after each optimizer step, as HPSv2 does."""
    model.clip.logit_scale.clamp_(0, log(MAX_LOGIT_SCALE))

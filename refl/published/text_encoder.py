"""Embed prompts as Stable Diffusion 2 does: OpenCLIP's text tower up to its last but one block.

The vocabulary comes with open_clip, so that nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

VOCABULARY_OF = "ViT-H-14"
"""The open_clip model with Stable Diffusion 2's tokenizer."""


class TextEncoder(nn.Module):
    """A CLIP text half, whole: the last block, the projection and the temperature are kept but not used.

    Source: `FrozenOpenCLIPEmbedder` of Stability-AI/stablediffusion with `layer="penultimate"`.
    """

    def __init__(self, context_length: int, vocabulary: int, width: int, heads: int, layers: int, out: int) -> None:
        """
        Args:
            context_length: tokens of a prompt, padded with 0.
            width, heads, layers: of the transformer.
            out: width of the projection to CLIP's shared space.
        """
        super().__init__()
        self.model = TextTransformer(context_length, vocabulary, width, heads, layers, output_dim=out)
        self.model.logit_scale = nn.Parameter(torch.zeros(()))
        self.tokenize = open_clip.get_tokenizer(VOCABULARY_OF, context_length=context_length)

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """The embeddings of prompts, (N, context_length, width); a longer prompt is cut."""
        return self.encode_tokens(self.tokenize(list(prompts)).to(self.model.ln_final.weight.device))

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Token ids, (N, context_length) -> (N, context_length, width): after the last block but one, normalized."""
        model = self.model
        features = model.token_embedding(tokens) + model.positional_embedding
        mask = model.attn_mask.to(features)
        for block in model.transformer.resblocks[:-1]:
            features = block(features, attn_mask=mask)
        embedding: Tensor = model.ln_final(features)
        return embedding

    def allocate_mask(self) -> None:
        """Make the causal mask, which is in no file, after the encoder was built on the meta device."""
        self.model.attn_mask = self.model.build_causal_mask()

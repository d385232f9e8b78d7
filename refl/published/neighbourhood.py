"""Attend to the k × k tokens around each, in plain torch, as the package natten defines it (arXiv:2204.07143).

At borders the window is not cut: it is moved until it lies inside, so that every token sees k × k others. Tiles of
queries share the keys that any of them sees, with a mask for who sees which: 8 × 8 queries under a kernel of 7 have
14 × 14 keys, four times the work of 49, but keys are copied three times and not 49 times. The rule at borders is
natten's `get_window_start`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

TILE = 8
"""Side of the squares of queries that share their keys."""
MAX_TILES = 256
"""Tiles that are computed together: bounds the memory, of which keys, values and result of a tile are the largest."""


def find_windows(length: int, kernel: int) -> Tensor:
    """(length,) where the window of each token begins along one axis.

    Raises:
        ValueError: there are fewer tokens than the kernel has, or its side is even.
    """
    if kernel % 2 == 0 or kernel > length:
        raise ValueError(f"a neighbourhood of {kernel} needs an odd side and as many tokens, got {length}")
    return (torch.arange(length) - kernel // 2).clamp(0, length - kernel)


def attend_to_neighbourhood(query: Tensor, key: Tensor, value: Tensor, kernel: int) -> Tensor:
    """What each token takes from its neighbours, by the softmax of query · key, not scaled.

    Args:
        query, key, value: (N, H, W, heads, D).
        kernel: side of the neighbourhood, odd, at most H and W.
    Returns:
        (N, H, W, heads, D).
    Raises:
        ValueError: the kernel is even or larger than a side.
    """
    height, width = query.shape[1:3]
    device = str(query.device)
    rows, columns = _plan(height, kernel, device), _plan(width, kernel, device)
    chunk = max(1, MAX_TILES // (len(query) * len(columns[0])))
    strips = [
        _attend_strips(query, key, value, [part[at : at + chunk] for part in rows], columns)
        for at in range(0, len(rows[0]), chunk)
    ]
    padded = torch.cat(strips, 1)
    return padded[:, :height, :width]


def _plan(length: int, kernel: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of the tiles along one axis: queries (T, t), keys (T, s), and who sees which (T, t, s).

    The last tile's queries beyond the end are repeats of the last token, and are cut off later.
    """
    starts = find_windows(length, kernel)
    side = min(TILE, length)
    span = min(side + kernel - 1, length)
    queries = torch.arange(-(-length // side) * side).clamp(max=length - 1).view(-1, side)
    first = starts[queries[:, 0]].clamp(max=length - span)
    keys = first[:, None] + torch.arange(span)
    begin = starts[queries][:, :, None]
    sees = (keys[:, None] >= begin) & (keys[:, None] < begin + kernel)
    return queries.to(device), keys.to(device), sees.to(device)


def _attend_strips(
    query: Tensor, key: Tensor, value: Tensor, rows: list[Tensor], columns: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """(N, R t, C t, heads, D) of R rows of tiles."""
    row_queries, row_keys, row_sees = rows
    column_queries, column_keys, column_sees = columns
    count, side, wide = len(row_queries), row_queries.shape[1], column_queries.shape[1]
    tiles = _gather(query, row_queries, column_queries)
    keys, values = (_gather(one, row_keys, column_keys) for one in (key, value))
    sees = row_sees[:, None, :, None, :, None] & column_sees[None, :, None, :, None, :]  # (R, C, t, t, s, s)
    mask = sees.flatten(4, 5).flatten(2, 3)[:, :, None].flatten(0, 1)  # (R C, 1, t t, s s)
    mask = mask.repeat(len(query), 1, 1, 1)
    seen = scaled_dot_product_attention(tiles, keys, values, mask, scale=1.0)  # (N R C, heads, t t, D)
    seen = seen.view(len(query), count, -1, seen.shape[1], side, wide, seen.shape[3])
    return seen.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)


def _gather(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The tokens of each tile: (N, H, W, heads, D) -> (N R C, heads, rows x columns of a tile, D)."""
    tiles = x[:, rows[:, None, :, None], columns[None, :, None, :]]  # (N, R, C, r, c, heads, D)
    return tiles.flatten(3, 4).flatten(0, 2).transpose(1, 2)

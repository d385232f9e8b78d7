"""PMRF's network: the published names and shapes, and what it computes, by a slow formula of its own."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="needs torch: `make install`")

from torch import Tensor  # noqa: E402
from torch.nn.functional import gelu  # noqa: E402

from refl.published.hdit import HDiT, HDiTShape  # noqa: E402
from refl.published.neighbourhood import attend_to_neighbourhood, find_windows  # noqa: E402

SMALL = HDiTShape(widths=(16, 16, 32), depths=(1, 1, 2), head_width=8, kernel=3, patch_px=2, mapping_width=8)
PARAMETERS = 160_460_210
"""Of the velocity. With SwinIR's 22.28 M numbers, two Inception networks' 47.8 M are 231 M, which its page states."""


def list_published() -> dict[str, tuple[int, ...]]:
    """Names and shapes of hdit_ImageNet256Sp4.

    Written from ohayonguy/PMRF, arch/hourglass/image_transformer_v2.py, with the numbers in utils/create_arch.py.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "patch_in.proj.weight": (256, 48),
        "time_emb.weight": (384, 1),
        "time_in_proj.weight": (768, 768),
        "aug_emb.weight": (384, 9),
        "aug_in_proj.weight": (768, 768),
        "mapping.in_norm.scale": (768,),
        "mapping.out_norm.scale": (768,),
        "merges.0.proj.weight": (512, 1024),
        "merges.1.proj.weight": (1024, 2048),
        "splits.0.proj.weight": (1024, 512),
        "splits.0.fac": (1,),
        "splits.1.proj.weight": (2048, 1024),
        "splits.1.fac": (1,),
        "out_norm.scale": (256,),
        "patch_out.proj.weight": (48, 256),
    }
    for block in (0, 1):
        shapes |= {
            f"mapping.blocks.{block}.norm.scale": (768,),
            f"mapping.blocks.{block}.up_proj.weight": (4608, 768),
            f"mapping.blocks.{block}.down_proj.weight": (768, 2304),
        }
    levels = [("down_levels.0", 256, 2), ("down_levels.1", 512, 2), ("mid_level", 1024, 8)]
    levels += [("up_levels.0", 256, 2), ("up_levels.1", 512, 2)]
    for level, width, depth in levels:
        for at in range(depth):
            shapes |= {
                f"{level}.{at}.self_attn.scale": (width // 64,),
                f"{level}.{at}.self_attn.norm.linear.weight": (width, 768),
                f"{level}.{at}.self_attn.qkv_proj.weight": (3 * width, width),
                f"{level}.{at}.self_attn.pos_emb.freqs": (width // 64, 8),
                f"{level}.{at}.self_attn.out_proj.weight": (width, width),
                f"{level}.{at}.ff.norm.linear.weight": (width, 768),
                f"{level}.{at}.ff.up_proj.weight": (6 * width, width),
                f"{level}.{at}.ff.down_proj.weight": (width, 3 * width),
            }
    return shapes


def test_its_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        model = HDiT(HDiTShape())
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == list_published()
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS


def attend_slowly(query: Tensor, key: Tensor, value: Tensor, kernel: int | None) -> Tensor:
    """A token after another: (H, W, heads, D) each."""
    height, width = query.shape[:2]
    result = torch.zeros_like(query)
    for y in range(height):
        for x in range(width):
            tall, wide = (height, width) if kernel is None else (kernel, kernel)
            top = min(max(y - tall // 2, 0), height - tall)
            left = min(max(x - wide // 2, 0), width - wide)
            keys = key[top : top + tall, left : left + wide].flatten(0, 1)
            values = value[top : top + tall, left : left + wide].flatten(0, 1)
            for head in range(query.shape[2]):
                weights = (keys[:, head] @ query[y, x, head]).softmax(0)
                result[y, x, head] = weights @ values[:, head]
    return result


@pytest.mark.parametrize(("height", "width", "kernel"), [(7, 7, 7), (8, 9, 7), (16, 17, 3), (5, 20, 5)])
def test_neighbours_are_those_of_a_window_that_stays_inside(height, width, kernel):
    generator = torch.Generator().manual_seed(height)
    query, key, value = torch.randn(3, 2, height, width, 2, 4, generator=generator, dtype=torch.float64)
    seen = attend_to_neighbourhood(query, key, value, kernel)
    slow = torch.stack([attend_slowly(*one, kernel) for one in zip(query, key, value, strict=True)])
    torch.testing.assert_close(seen, slow)


def test_windows_at_the_borders_are_moved_and_not_cut():
    assert find_windows(6, 3).tolist() == [0, 0, 1, 2, 3, 3]
    for length, kernel in ((6, 7), (6, 4)):
        with pytest.raises(ValueError, match="needs an odd side and as many tokens"):
            find_windows(length, kernel)


def test_few_tiles_at_a_time_give_the_same(monkeypatch):
    query, key, value = torch.randn(3, 2, 20, 20, 1, 4, generator=torch.Generator().manual_seed(0))
    whole = attend_to_neighbourhood(query, key, value, 3)
    monkeypatch.setattr("refl.published.neighbourhood.MAX_TILES", 1)
    torch.testing.assert_close(attend_to_neighbourhood(query, key, value, 3), whole)


def compute_slowly(state: dict[str, Tensor], image: Tensor, time: float) -> Tensor:
    """The velocity of one image (3, H, W), from the published code's formulas."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T

    def norm(x: Tensor, scale: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * scale

    def geglu(name: str, x: Tensor) -> Tensor:
        values, gate = linear(name, x).chunk(2, -1)
        return values * gelu(gate)

    def fourier(name: str, numbers: Tensor) -> Tensor:
        angles = 2 * math.pi * state[f"{name}.weight"] @ numbers
        return torch.cat([angles.cos(), angles.sin()])

    def merge(name: str, x: Tensor, side: int) -> Tensor:
        height, width = x.shape[0] // side, x.shape[1] // side
        rows = [
            torch.cat([x[y * side + dy, c * side + dx] for dy in range(side) for dx in range(side)])
            for y in range(height)
            for c in range(width)
        ]
        return linear(name, torch.stack(rows)).view(height, width, -1)

    def split(name: str, x: Tensor, side: int) -> Tensor:
        parts = linear(name, x)
        channels = parts.shape[-1] // side**2
        result = x.new_zeros(x.shape[0] * side, x.shape[1] * side, channels)
        for dy in range(side):
            for dx in range(side):
                at = (dy * side + dx) * channels
                result[dy::side, dx::side] = parts[..., at : at + channels]
        return result

    def turn(x: Tensor, freqs: Tensor, places: Tensor) -> Tensor:
        """(H, W, heads, D): pairs (i, i + d) turned by the place's y times the frequencies, then by its x."""
        angles = torch.cat([places[:, :, None, axis, None] * freqs for axis in (0, 1)], -1)
        count = angles.shape[-1]
        both = torch.complex(x[..., :count], x[..., count : 2 * count]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([both.real, both.imag, x[..., 2 * count :]], -1)

    def level(name: str, x: Tensor, places: Tensor, kernel: int | None) -> Tensor:
        for at in range(sum(f"{name}.{number}.self_attn.scale" in state for number in range(9))):
            part = f"{name}.{at}.self_attn"
            scale = state[f"{part}.scale"]
            split_up = linear(f"{part}.qkv_proj", norm(x, linear(f"{part}.norm.linear", condition) + 1))
            query, key, value = split_up.view(*x.shape[:2], 3, len(scale), -1).unbind(2)
            query, key = (
                turn(
                    one * scale[:, None].sqrt() / (one.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt(),
                    state[f"{part}.pos_emb.freqs"],
                    places,
                )
                for one in (query, key)
            )
            x = x + linear(f"{part}.out_proj", attend_slowly(query, key, value, kernel).flatten(2))
            part = f"{name}.{at}.ff"
            scaled = norm(x, linear(f"{part}.norm.linear", condition) + 1)
            x = x + linear(f"{part}.down_proj", geglu(f"{part}.up_proj", scaled))
        return x

    of_time = linear("time_in_proj", fourier("time_emb", torch.tensor([time], dtype=image.dtype)))
    condition = of_time + linear("aug_in_proj", fourier("aug_emb", torch.zeros(9, dtype=image.dtype)))
    condition = norm(condition, state["mapping.in_norm.scale"])
    for block in range(SMALL.mapping_depth):
        part = f"mapping.blocks.{block}"
        scaled = norm(condition, state[f"{part}.norm.scale"])
        condition = condition + linear(f"{part}.down_proj", geglu(f"{part}.up_proj", scaled))
    condition = norm(condition, state["mapping.out_norm.scale"])
    x = merge("patch_in.proj", image.permute(1, 2, 0), SMALL.patch_px)
    middles = [(torch.arange(side, dtype=x.dtype) + 0.5) / side * 2 - 1 for side in x.shape[:2]]
    places = torch.stack(torch.meshgrid(*middles, indexing="ij"), -1)
    kept = []
    for at in (0, 1):
        x = level(f"down_levels.{at}", x, places, SMALL.kernel)
        kept.append((x, places))
        x = merge(f"merges.{at}.proj", x, 2)
        places = places.view(len(places) // 2, 2, places.shape[1] // 2, 2, 2).mean((1, 3))
    x = level("mid_level", x, places, None)
    for at in (1, 0):
        skip, places = kept[at]
        share = state[f"splits.{at}.fac"]
        x = level(
            f"up_levels.{at}", skip * (1 - share) + split(f"splits.{at}.proj", x, 2) * share, places, SMALL.kernel
        )
    return split("patch_out.proj", norm(x, state["out_norm.scale"]), SMALL.patch_px).permute(2, 0, 1)


def test_it_computes_what_the_formula_says():
    torch.manual_seed(0)
    model = HDiT(SMALL)
    for name, parameter in model.named_parameters():
        if name.endswith(("scale", "fac")):
            torch.nn.init.uniform_(parameter, 0.2, 2.0)
    images, times = torch.rand(2, 3, 32, 32), torch.tensor([0.0, 0.72])
    with torch.no_grad():
        found = model(images, times)
        state = {name: value.double() for name, value in model.state_dict().items()}
        for image, time, velocity in zip(images, times.double().tolist(), found, strict=True):
            torch.testing.assert_close(
                velocity.double(), compute_slowly(state, image.double(), time), atol=1e-4, rtol=1e-3
            )
    assert found.std() > 0.05

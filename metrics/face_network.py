"""Build dlib's face recognition network in torch, so that its 128 numbers have a gradient to the pixels.

dlib reads the weights into a network of its own that gives numbers only. Its file is read here piece by piece: nothing
in it is run, and every length is compared with what this one network has before anything is read.

Source: `dlib_face_recognition_resnet_model_v1.dat`, CC0, of davisking/dlib-models; layers as in dlib's
`examples/dnn_face_recognition_ex.cpp`, file format as in its `serialize.h`, `cuda/tensor.h` and `dnn/core.h`.
"""

from __future__ import annotations

import math
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, pad, relu

from metrics.lists import MetricError

PACKAGE, FILE = "face-recognition-models", "dlib_face_recognition_resnet_model_v1.dat"
CHIP_PX = 150
"""Side of what the network looks at."""
MEAN_RGB = (122.782, 117.001, 104.298)
MAX_GREY = 255.0
SCALE = 256.0
FEATURES = 128
STEM = (32, 3, 7, 2)
"""Filters, channels, side and stride of the first convolution."""
BLOCKS = (
    *((32, 32, 1),) * 3,
    *((32, 64, 2), *((64, 64, 1),) * 3),
    *((64, 128, 2), *((128, 128, 1),) * 2),
    *((128, 256, 2), *((256, 256, 1),) * 2),
    (256, 256, 2),
)
"""(channels in, channels out, stride) of the residual blocks, from the image on."""
FLAGS = (b"1", b"0")
MAX_NESTED = 400
"""Layers in layers: the file begins with a number for each."""


class FaceNetwork(nn.Module):
    """dlib's network of 29 layers; the distance of two faces' numbers is below 0.6 for mostly the same person."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        filters, channels, side, stride = STEM
        self.register_buffer("mean", torch.tensor(MEAN_RGB).view(3, 1, 1), persistent=False)
        self.stem = nn.Conv2d(channels, filters, side, stride)
        self.stem_scale = Affine(filters)
        self.blocks = nn.ModuleList(Block(*shape) for shape in BLOCKS)
        self.head = nn.Linear(BLOCKS[-1][1], FEATURES, bias=False)

    def forward(self, chips: Tensor) -> Tensor:
        """(N, 128) of (N, 3, 150, 150) RGB faces as dlib crops them, about [0, 1]; in float32, whatever is around."""
        with torch.autocast(chips.device.type, enabled=False):
            x = (chips.float() * MAX_GREY - self.mean) / SCALE
            x = max_pool2d(relu(self.stem_scale(self.stem(x))), 3, 2)
            for block in self.blocks:
                x = block(x)
            found: Tensor = self.head(x.mean(dim=(2, 3)))
        return found


class Block(nn.Module):
    """Two convolutions beside the identity, which is shrunk and filled up with zeros where they give another shape."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        # dlib pads where the stride is 1, and nowhere else
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, 1 if stride == 1 else 0)
        self.scale1 = Affine(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1)
        self.scale2 = Affine(filters)

    def forward(self, x: Tensor) -> Tensor:
        """(N, filters, H', W') of (N, channels, H, W)."""
        new = self.scale2(self.conv2(relu(self.scale1(self.conv1(x)))))
        kept = x if self.stride == 1 else avg_pool2d(x, 2, 2)
        sizes = [max(one, other) for one, other in zip(new.shape[1:], kept.shape[1:], strict=True)]
        return relu(fill_up(new, sizes) + fill_up(kept, sizes))


class Affine(nn.Module):
    """A factor and a shift for each channel: what batch normalization is after training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.empty(channels)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Of x's shape, (N, C, H, W)."""
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def fill_up(x: Tensor, sizes: list[int]) -> Tensor:
    """(N, *sizes) with zeros behind the channels, rows and columns that x lacks, as dlib adds tensors."""
    lacks = [size - has for size, has in zip(sizes, x.shape[1:], strict=True)]
    return pad(x, [number for lack in reversed(lacks) for number in (0, lack)]) if any(lacks) else x


def find_face_file() -> Path:
    """The weights in the package face-recognition-models, found without importing it; dlib itself is not needed.

    Raises:
        MetricError: the package is not installed, or without that file.
    """
    try:
        found = [file for file in metadata.files(PACKAGE) or [] if file.name == FILE]
    except metadata.PackageNotFoundError:
        found = []
    if not found or not (path := Path(str(found[0].locate()))).is_file():
        raise MetricError(f"{FILE} (22 MB, CC0) is not here: pip install {PACKAGE}.")
    return path


@cache
def load_face_network(device: str) -> FaceNetwork:
    """The network on a device, frozen.

    Raises:
        MetricError: its file is not here, or is not that network's.
    """
    return read_face_network(find_face_file()).to(device)


def read_face_network(path: Path) -> FaceNetwork:
    """The network of a file as dlib writes it, frozen.

    Raises:
        MetricError: the file is another, or is cut off.
    """
    network = FaceNetwork()
    reader = _Reader(path)
    reader.start()
    reader.read_convolution(network.stem)
    reader.end_layer(innermost=True)
    reader.read_affine(network.stem_scale)
    reader.pass_relu()
    reader.pass_pool(b"max_pool_2", (3, 3, 2, 2, 0, 0))
    for block in network.blocks:
        assert isinstance(block, Block)
        reader.read_convolution(block.conv1)
        reader.end_layer()
        reader.read_affine(block.scale1)
        reader.pass_relu()
        reader.read_convolution(block.conv2)
        reader.end_layer()
        reader.read_affine(block.scale2)
        if block.stride != 1:
            reader.pass_pool(b"avg_pool_2", (2, 2, 2, 2, 0, 0))
        reader.expect_name(b"add_prev_")
        reader.end_layer()
        reader.pass_relu()
    reader.pass_pool(b"avg_pool_2", (0, 0, 1, 1, 0, 0))
    reader.read_head(network.head)
    reader.end_layer()
    reader.end()
    return network.eval().requires_grad_(False)


class _Reader:
    """Walks through the file; whatever is not as in that network is an error of one line."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        self.data = path.read_bytes()

    def fail(self, what: str) -> MetricError:
        return MetricError(
            f"{self.path} is not dlib's face recognition network: {what} at byte {self.at:,}. Install {PACKAGE} again."
        )

    def take(self, count: int) -> bytes:
        found = self.data[self.at : self.at + count]
        if len(found) < count:
            raise self.fail(f"it ends where {count:,} bytes should follow")
        self.at += count
        return found

    def integer(self) -> int:
        """One byte of sign and length, then the number's bytes, the lowest first."""
        head = self.take(1)[0]
        if head & 0x70 or not 1 <= head & 0x0F <= 8:
            raise self.fail("there is no number")
        number = int.from_bytes(self.take(head & 0x0F), "little")
        return -number if head & 0x80 else number

    def real(self) -> float:
        """Of a mantissa and an exponent of 2."""
        mantissa, exponent = self.integer(), self.integer()
        if abs(exponent) > 1000:
            raise self.fail("there is no finite number")
        return float(mantissa) * 2.0**exponent

    def expect(self, *numbers: int) -> None:
        for number in numbers:
            if (found := self.integer()) != number:
                raise self.fail(f"{found} stands for {number}")

    def expect_name(self, name: bytes) -> None:
        self.expect(len(name))
        if (found := self.take(len(name))) != name:
            raise self.fail(f"{found!r} stands for {name.decode()}")

    def start(self) -> None:
        """What the outermost layer and the input say."""
        self.expect(1)
        self.expect_name(b"loss_metric_2")
        self.real(), self.real()
        for _ in range(MAX_NESTED):
            if (number := self.integer()) not in (1, 2, 3):
                break
        name = b"input_rgb_image_sized"
        if number != len(name) or self.take(number) != name:
            raise self.fail("there is no input of one size")
        mean = [self.real() for _ in MEAN_RGB]
        if not np.allclose(mean, MEAN_RGB, atol=1e-4):
            raise self.fail(f"the mean of the input is {mean}")
        self.expect(CHIP_PX, CHIP_PX)

    def tensor(self, count: int, *others: int) -> npt.NDArray[np.float32]:
        """The numbers of a tensor of this size, in a row."""
        sizes = (count, *others, 1, 1, 1)[:4] if count else (0, 0, 0, 0)
        self.expect(2, *sizes)
        values = np.frombuffer(self.take(4 * math.prod(sizes)), dtype="<f4")
        if not np.isfinite(values).all():
            raise self.fail("a weight is not finite")
        return values

    def layout(self, *sizes: int) -> None:
        """How a part of a tensor is laid out."""
        self.expect(1, *sizes)

    def end_layer(self, *, innermost: bool = False) -> None:
        """Flags and the empty tensors of training that end every layer."""
        if any(self.take(1) not in FLAGS for _ in range(3)):
            raise self.fail("there is no flag")
        for _ in range(3):
            self.tensor(0)
        if innermost:
            self.expect(1)

    def read_convolution(self, into: nn.Conv2d) -> None:
        filters, _, side, _ = sizes = tuple(into.weight.shape)
        assert into.bias is not None
        assert not isinstance(into.padding, str)
        stride, padding = into.stride[0], into.padding[0]
        self.expect_name(b"con_4")
        values = self.tensor(into.weight.numel() + filters)
        self.expect(filters, side, side, stride, stride, padding, padding)
        self.layout(*sizes)
        self.layout(1, filters, 1, 1)
        self.pass_factors()
        _copy(values[:-filters], into.weight)
        _copy(values[-filters:], into.bias)

    def read_affine(self, into: Affine) -> None:
        channels = len(into.weight)
        self.expect_name(b"affine_")
        values = self.tensor(2 * channels)
        self.layout(1, channels, 1, 1)
        self.layout(1, channels, 1, 1)
        self.expect(0)
        self.end_layer()
        _copy(values[:channels], into.weight)
        _copy(values[channels:], into.bias)

    def read_head(self, into: nn.Linear) -> None:
        features, channels = into.weight.shape
        self.expect_name(b"fc_2")
        self.expect(features, channels)
        values = self.tensor(channels, features)
        self.layout(channels, features, 1, 1)
        self.layout(0, 0, 0, 0)
        self.expect(1)
        self.pass_factors()
        _copy(np.ascontiguousarray(values.reshape(channels, features).T), into.weight)

    def pass_factors(self) -> None:
        """Of training: of the rates and decays of weights and biases."""
        for _ in range(4):
            self.real()

    def pass_relu(self) -> None:
        self.expect_name(b"relu_")
        self.end_layer()

    def pass_pool(self, name: bytes, numbers: tuple[int, ...]) -> None:
        self.expect_name(name)
        self.expect(*numbers)
        self.end_layer()

    def end(self) -> None:
        if self.at != len(self.data):
            raise self.fail(f"{len(self.data) - self.at:,} bytes too many follow")


@torch.no_grad()
def _copy(values: npt.NDArray[np.float32], into: nn.Parameter | Tensor) -> None:
    into.copy_(torch.from_numpy(values.copy()).reshape(into.shape))

"""List this machine's devices without importing torch."""

from __future__ import annotations

import csv
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

CPU = "cpu"
TRAINING_KINDS = ("reward train", "refl pretrain", "refl train", "refl ablate")
"""Kinds of run that keep a device busy for long; those that a person starts in a terminal count in its queue, too."""
NVIDIA = Path("/proc/driver/nvidia/gpus")
DEVICE_FILES = Path("/dev")
CUDA_GIB = 0.7
"""Memory of CUDA itself and of the allocator's gaps, besides what is counted of a training."""
SMI_FIELDS = ("index", "uuid", "name", "memory.total", "memory.free", "driver_version")
SMI_SECONDS = 10


@dataclass(frozen=True)
class Card:
    """A GPU as the driver describes it."""

    index: str
    uuid: str
    name: str
    total_gib: float
    free_gib: float
    driver: str

    @property
    def names(self) -> tuple[str, str]:
        """As `list_devices` may name it."""
        return f"cuda:{self.index}", f"cuda:{self.uuid}"


def list_cards() -> list[Card]:
    """All GPUs that nvidia-smi lists, whatever CUDA_VISIBLE_DEVICES says; none where it is not here or fails."""
    query = ["nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = csv.reader(said.splitlines(), skipinitialspace=True)
    return [
        Card(index, uuid, name, float(total) / 1024, float(free) / 1024, driver)
        for index, uuid, name, total, free, driver in rows
        if total.replace(".", "").isdigit() and free.replace(".", "").isdigit()  # "[N/A]" of a MIG's parent
    ]


def list_devices() -> list[str]:
    """The GPUs that runs may use, then the CPU: ['cuda:0', 'cuda:1', 'cpu'].

    Numbers are the driver's. Where CUDA_VISIBLE_DEVICES is set, only those that it names.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        # In a container the driver may list GPUs of the machine that the container was not given.
        files = [file for file in DEVICE_FILES.glob("nvidia*") if re.fullmatch(r"nvidia\d+", file.name)]
        cards = [str(number) for number in range(min(len(list(NVIDIA.glob("*"))), len(files)))]
    else:
        cards = _visible_cards(visible)
    return [*(f"cuda:{card}" for card in cards), CPU]


def _visible_cards(visible: str) -> list[str]:
    """The numbers, or UUIDs, of CUDA_VISIBLE_DEVICES; as CUDA does, nothing from the first -1 on."""
    cards: list[str] = []
    for part in visible.split(","):
        if not part.strip() or part.strip() == "-1":
            break
        cards.append(part.strip())
    return cards


def split_devices(device: str | None) -> list[str]:
    """The devices that a run takes: 'cuda:0,cuda:1' are two."""
    return [] if device is None else device.split(",")


def is_device(device: str) -> bool:
    """Whether it is written as a device: 'cpu', 'cuda:0', or several GPUs as 'cuda:0,cuda:1'."""
    return re.fullmatch(r"cpu|cuda:[\w-]+(,cuda:[\w-]+)*", device) is not None


def visible_devices(device: str) -> str:
    """CUDA_VISIBLE_DEVICES of a process that is to compute on this device; inside it the first GPU is cuda:0."""
    return ",".join(name.removeprefix("cuda:") for name in split_devices(device) if name != CPU)


def own_device(kind: str, arguments: Sequence[str]) -> str | None:
    """The device of a training that was started in a terminal, None where another kind runs."""
    if kind not in TRAINING_KINDS:
        return None
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
        return CPU
    if "--device=cpu" in arguments or ("--device", CPU) in pairwise(arguments):
        return CPU
    count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # accelerate's processes of this machine
    return ",".join([name for name in list_devices() if name != CPU][:count]) or CPU

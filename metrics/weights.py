"""Weights that a metric of pyiqa downloads on its first use: said before, refused where that is forbidden.

pyiqa and torchvision keep them in torch's hub folder, timm in the Hugging Face cache; both are left where they are.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import huggingface_hub.constants
import pyiqa.utils.download_util
import torch.hub

from metrics.lists import MetricError

log = logging.getLogger(__name__)

WEIGHTS = {
    "musiq": (("musiq_koniq_ckpt-e95806b9.pth", 109),),
    "maniqa": (("timm/vit_base_patch8_224", 346), ("ckpt_koniq10k.pt", 543)),
    "clipiqa": (("RN50.pt", 256),),
    "topiq_nr-face": (("timm/resnet50", 102), ("topiq_nr_cgfiqa_res50-0a8b8e4f.pth", 181)),
    "niqe": (("niqe_modelparameters.mat", 1),),
    "lpips": (("alexnet-owt-7be5be79.pth", 244), ("LPIPS_v0.1_alex-df73285e.pth", 1)),
    "dists": (("vgg16-397923af.pth", 553), ("DISTS_weights-f5e65c96.pth", 1)),
}
"""What the metrics of the list `face` download: (file, its size in MB, rounded up)."""
WEB_SECONDS = 20.0


class MissingWeights(MetricError):
    """Weights are not on this machine and cannot be had: which, and why."""

    def __init__(self, files: str, why: str) -> None:
        super().__init__(
            f"Weights are missing and {why}: {files}. Connect once without HF_HUB_OFFLINE, or use a metric list "
            "without these metrics."
        )
        self.files = files
        self.why = why

    def __reduce__(self) -> tuple[type[MissingWeights], tuple[str, str]]:
        """Worker processes hand their errors on by pickle."""
        return MissingWeights, (self.files, self.why)


def load_with_weights(name: str, build: Callable[[], Any]) -> Any:
    """What `build` returns, its downloads announced in the log before they begin.

    Raises:
        MissingWeights: HF_HUB_OFFLINE forbids a download, or there is no network.
        MetricError: a package is missing.
    """
    try:
        # pyiqa prints what it loads; standard output belongs to our commands.
        with contextlib.redirect_stdout(io.StringIO()), _announced_downloads(name):
            return build()
    except ImportError as error:
        raise MetricError(
            f"The metric {name} needs a module that is not here ({error}): run `make install`."
        ) from error
    except OSError as error:  # of urllib and of the Hugging Face hub alike
        why = "HF_HUB_OFFLINE is set" if is_offline() else f"the download failed ({_first_line(error)})"
        raise MissingWeights(f"{name} needs {describe_weights(name)}", why) from error


def describe_weights(name: str) -> str:
    """Which files a metric downloads and how large they are: 'RN50.pt (256 MB)'."""
    files = WEIGHTS.get(name)
    return " and ".join(f"{file} ({size} MB)" for file, size in files) if files else "files of unknown size"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids downloads, of every server and not only of that hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


@contextlib.contextmanager
def forbid_downloads() -> Iterator[None]:
    """As HF_HUB_OFFLINE does, for the block: without a network the hub tries each file for half a minute."""
    before, constant = os.environ.get("HF_HUB_OFFLINE"), huggingface_hub.constants.HF_HUB_OFFLINE
    os.environ["HF_HUB_OFFLINE"], huggingface_hub.constants.HF_HUB_OFFLINE = "1", True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = constant
        os.environ.pop("HF_HUB_OFFLINE")
        if before is not None:
            os.environ["HF_HUB_OFFLINE"] = before


@contextlib.contextmanager
def _announced_downloads(name: str) -> Iterator[None]:
    """Say in the log what torch.hub is about to download, and refuse it where downloads are forbidden."""
    download = torch.hub.download_url_to_file

    def announced(url: str, target: str, *args: Any, **kwargs: Any) -> None:
        file = url.partition("?")[0].rsplit("/", 1)[-1]
        if is_offline():
            raise OSError(f"{file} may not be downloaded")
        log.info("%s downloads %s (%s) to %s", name, file, _remote_size(url), target)
        download(url, target, *args, **kwargs)

    modules: tuple[Any, ...] = (torch.hub, pyiqa.utils.download_util)
    for module in modules:
        module.download_url_to_file = announced
    try:
        yield
    finally:
        for module in modules:
            module.download_url_to_file = download


def _remote_size(url: str) -> str:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=WEB_SECONDS) as answer:
            return f"{int(answer.headers['Content-Length']) / 1e6:,.1f} MB"
    except (urllib.error.URLError, TypeError, ValueError, TimeoutError):
        return "size unknown"


def _first_line(error: OSError) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:200]

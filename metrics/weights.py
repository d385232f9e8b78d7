"""Announce the weights that a metric downloads on first use, and refuse the download where it is forbidden.

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
from pathlib import Path
from typing import Any
from unittest.mock import patch

import huggingface_hub.constants
import torch.hub

from licences.terms import is_commercial
from metrics.download import compute_sha256, download, find_fault, forget_cached
from metrics.lists import MetricError, describe_missing

log = logging.getLogger(__name__)

PYIQA = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main"
TORCHVISION = "https://download.pytorch.org/models"
CLIP = "https://openaipublic.azureedge.net/clip/models/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
WEIGHTS = {
    "musiq": ((f"{PYIQA}/musiq_koniq_ckpt-e95806b9.pth", 109),),
    "maniqa": (("timm/vit_base_patch8_224.augreg2_in21k_ft_in1k", 346), (f"{PYIQA}/ckpt_koniq10k.pt", 543)),
    "clipiqa": ((f"{CLIP}/RN50.pt", 256),),
    "topiq_nr-face": (("timm/resnet50.a1_in1k", 102), (f"{PYIQA}/topiq_nr_cgfiqa_res50-0a8b8e4f.pth", 181)),
    "niqe": ((f"{PYIQA}/niqe_modelparameters.mat", 1),),
    "lpips": ((f"{TORCHVISION}/alexnet-owt-7be5be79.pth", 244), (f"{PYIQA}/LPIPS_v0.1_alex-df73285e.pth", 1)),
    "lpips-vgg": ((f"{TORCHVISION}/vgg16-397923af.pth", 553), (f"{PYIQA}/LPIPS_v0.1_vgg-a78928a0.pth", 1)),
    "dists": ((f"{TORCHVISION}/vgg16-397923af.pth", 553), (f"{PYIQA}/DISTS_weights-f5e65c96.pth", 1)),
    "fid": ((f"{PYIQA}/pt_inception-2015-12-05-6726825d.pth", 96),),
}
"""Downloads of the metrics of the list `face` and of ReFL: (address or repository of the Hugging Face hub, its size in
MB, rounded up)."""
FOLDERS = {PYIQA: "pyiqa", TORCHVISION: "checkpoints", CLIP: "clip"}
"""Place of these files in torch's hub folder."""
WEB_SECONDS = 20.0


class MissingWeights(MetricError):
    """Weights are not on this machine and cannot be had: which, and why."""

    def __init__(self, files: str, why: str) -> None:
        super().__init__(
            f"Weights are missing and {why}: {files}. Connect once without HF_HUB_OFFLINE, put them there yourself, or "
            "use a metric list without these metrics."
        )
        self.files = files
        self.why = why

    def __reduce__(self) -> tuple[type[MissingWeights], tuple[str, str]]:
        """Worker processes hand their errors on by pickle."""
        return MissingWeights, (self.files, self.why)


def load_with_weights(name: str, build: Callable[[], Any]) -> Any:
    """Call `build`, which imports pyiqa, with its downloads announced, checked, and resumed where they broke.

    Where a kept file turns out to be a part of one, a web page or the like, it is removed and downloaded anew, once.

    Raises:
        MissingWeights: HF_HUB_OFFLINE forbids a download, or there is no network.
        MetricError: a package is missing.
    """
    if is_commercial():
        raise MetricError(describe_missing(name, "pyiqa"))
    try:
        try:
            return _build(name, build)
        except Exception as error:
            damaged = [] if isinstance(error, ImportError) else list(find_damaged())
            if not damaged:
                raise
            said = "; ".join(f"{path} {fault}" for path, fault in damaged)
            if is_offline():
                raise MissingWeights(
                    f"{name} needs {describe_weights(name)}", f"HF_HUB_OFFLINE is set: {said}"
                ) from error
            log.warning("%s; removed, to be downloaded anew", said)
            for path, _ in damaged:
                forget_cached(path)
                path.unlink(missing_ok=True)
            return _build(name, build)
    except ImportError as error:
        package = error.name or "a module that is not here"
        raise MetricError(describe_missing(name, package, str(error))) from error
    except OSError as error:  # of urllib and of the Hugging Face hub alike
        line = _first_line(error)
        needs = describe_weights(name) if name in WEIGHTS or not is_offline() else f"{describe_weights(name)} ({line})"
        why = "HF_HUB_OFFLINE is set" if is_offline() else f"the download failed ({line})"
        raise MissingWeights(f"{name} needs {needs}", why) from error


def _build(name: str, build: Callable[[], Any]) -> Any:
    # pyiqa prints what it loads; standard output belongs to our commands.
    with contextlib.redirect_stdout(io.StringIO()), _announced_downloads(name):
        return build()


def find_damaged() -> Iterator[tuple[Path, str]]:
    """(file, what it is) of what metrics downloaded and is a part of a file, a web page or the like."""
    hub = Path(torch.hub.get_dir())
    timm = Path(huggingface_hub.constants.HF_HUB_CACHE).glob("models--timm--*/snapshots/*/*")
    kept = [path for folder in FOLDERS.values() for path in (hub / folder).glob("*")]
    for path in [*kept, *timm]:
        if path.suffix in (".pth", ".pt", ".mat", ".safetensors", ".bin") and (fault := find_fault(path)):
            yield path, fault


def describe_weights(name: str) -> str:
    """Describe the files that a metric downloads: size, origin, and where they belong."""
    files = WEIGHTS.get(name)
    return " and ".join(_describe_file(*file) for file in files) if files else "files of unknown size"


def _describe_file(address: str, size: int) -> str:
    base, _, file = address.rpartition("/")
    if base in FOLDERS:
        return f"{file} ({size} MB) from {address} to {Path(torch.hub.get_dir()) / FOLDERS[base]}"
    cache = huggingface_hub.constants.HF_HUB_CACHE
    return f"{address} ({size} MB) by `hf download {address}` and its folder to {cache}"


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

    def announced(url: str, target: str, hash_prefix: str | None = None, **_: Any) -> None:
        file = url.partition("?")[0].rsplit("/", 1)[-1]
        if is_offline():
            raise OSError(f"{file} from {url} to {Path(target).parent}")
        log.info("%s downloads %s (%s) to %s", name, file, _remote_size(url), target)
        download(url, Path(target).expanduser(), sha256=hash_prefix or "")

    def fetch_clip(url: str, root: str) -> str:
        target = Path(root).expanduser() / url.rpartition("/")[2]
        sha256 = url.split("/")[-2]
        if target.is_file() and compute_sha256(target) != sha256:
            log.warning("%s is not the file that was published; it is downloaded anew", target)
            target.unlink()
        if not target.is_file():
            announced(url, str(target), sha256)
        return str(target)

    from pyiqa.archs import afineclip_model, clip_model
    from pyiqa.utils import download_util

    with contextlib.ExitStack() as stack:
        for module in (torch.hub, download_util):
            stack.enter_context(patch.object(module, "download_url_to_file", announced))
        for module in (clip_model, afineclip_model):
            stack.enter_context(patch.object(module, "_download", fetch_clip))
        yield


def _remote_size(url: str) -> str:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=WEB_SECONDS) as answer:
            return f"{int(answer.headers['Content-Length']) / 1e6:,.1f} MB"
    except (urllib.error.URLError, TypeError, ValueError, TimeoutError):
        return "size unknown"


def _first_line(error: OSError) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:500]

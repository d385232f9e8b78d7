"""Parse `NAME=METHOD`, check that its files are here, and load the restorer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from db.errors import UserError
from refl.faces.color_fix import ColorFix
from refl.published.weights import get_file
from refl.restore.restore import RestoreMethod
from refl.restorers.load import AnyRestorer, Untrained, get_restorer_files, load_restorer, method_name
from refl.restorers.onnx import OnnxRestorer, read_face_model
from refl.restorers.pisasr import PisaSR
from refl.restorers.record import find_root, is_tuned, read_record
from training.stopping import advise_out_of_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadOptions:
    """How restorers are loaded and used, all of them alike; None leaves it to the restorer."""

    device: str
    weights: Path
    """Folder of published weight files."""
    dtype: str = "float32"
    steps: int | None = None
    """Of restorers that take several."""
    work_size_px: int | None = None
    size_px: int | None = None
    color_fix: ColorFix | None = None
    strength: float | None = None
    """Of what LoRA training added."""
    fidelity: float | None = None
    """Of CodeFormer as ONNX."""
    lambda_pix: float | None = None
    lambda_sem: float | None = None
    """How much PiSA-SR's two kinds of adapters count."""
    small_memory: bool = False


@dataclass(frozen=True)
class AskedMethod:
    """A restorer that was asked for."""

    what: str
    """Name or path for `load_restorer`."""
    name: str
    """As given, or following from `what`."""
    is_given: bool
    """Whether the name was given: it is then taken as it is."""


def name_methods(asked: Sequence[str]) -> list[AskedMethod]:
    """Each [NAME=]WHAT understood, before anything is loaded.

    Raises:
        UserError: there is no such restorer, or two have one name.
    """
    methods: list[AskedMethod] = []
    for one in asked:
        is_named = "=" in one and not Path(one).exists()  # a folder's own name may have an = in it
        name, what = one.split("=", 1) if is_named else ("", one)
        methods.append(AskedMethod(what, name or method_name(what), bool(name)))
    names = [method.name for method in methods]
    for method in methods:
        if names.count(method.name) > 1:
            raise UserError(
                f"Two of the restorers are called {method.name!r}; give one a name: --method NAME={method.what}"
            )
    return methods


def check_methods(methods: Sequence[AskedMethod], options: LoadOptions, besides: Sequence[str] = ()) -> None:
    """Check before anything is loaded that files are here, what ONNX files are, and that options fit the methods.

    Args:
        besides: paths and manifest names of other files that are wanted.
    Raises:
        UserError: something is wrong; of missing files all are named.
    """
    for method in methods:
        folder = Path(method.what).expanduser()
        is_lora = is_tuned(folder) and read_record(folder)["kind"] == "lora"
        if options.strength is not None and not is_lora:
            raise _no_strength(method.what)
        if _list_sliders(options) and find_root(method.what).partition(":")[0] != "pisasr":
            raise UserError(
                f"--lambda-pix and --lambda-sem are PiSA-SR's; {method.what} has none. Restore by it in a call of "
                "its own."
            )
    get_restorer_files([method.what for method in methods], options.weights, besides)
    for method in methods:
        kind, _, file = method.what.partition(":")
        model = read_face_model(get_file(file, options.weights)) if kind == "onnx" else None
        if options.fidelity is not None and (model is None or model.weight is None):
            raise _no_fidelity(method.what)


def load_method(asked: AskedMethod, options: LoadOptions) -> RestoreMethod:
    """The restorer, ready on the device.

    A name that was not given says what differs from the restorer's own way: `diffbir-v1-20steps-bfloat16`.

    Raises:
        UserError: there is no such restorer, or it cannot be used with these options.
    """
    what = asked.what
    said = f"{what} does not fit into the memory of {options.device}; give --dtype bfloat16 or --device cpu."
    with advise_out_of_memory(lambda: said):
        restorer = load_restorer(what, device=options.device, dtype=DTYPES[options.dtype], weights_dir=options.weights)
    changes = dict(_change(restorer, what, options))
    own_fix = "none" if isinstance(restorer, Untrained) else options.color_fix
    return RestoreMethod(
        name=asked.name if asked.is_given else "-".join([asked.name, *(words for words, _ in changes.values())]),
        restorer=restorer,
        device=options.device,
        steps=changes["steps"][1] if "steps" in changes else None,
        work_size_px=options.work_size_px,
        size_px=options.size_px,
        color_fix=None if options.color_fix in (own_fix, "none") else options.color_fix,
        settings={**restorer.settings, **{key: value for key, (_, value) in changes.items()}},
    )


def _change(restorer: AnyRestorer, what: str, options: LoadOptions) -> Iterator[tuple[str, tuple[str, Any]]]:
    """Set what differs from the restorer's own way; gives (setting, (its part of the name, its value))."""
    if options.steps is not None and restorer.default_steps not in (1, options.steps):
        yield "steps", (f"{options.steps}steps", options.steps)
    work_px = options.work_size_px
    if work_px is not None and work_px % restorer.multiple_px:
        raise UserError(f"--work-size is {work_px}; {what} takes multiples of {restorer.multiple_px} pixels.")
    if work_px not in (None, restorer.image_size_px):
        yield "image_size_px", (f"at{work_px}px", work_px)
    color_fix = options.color_fix
    if color_fix not in (None, restorer.settings.get("color_fix", "none")):
        yield "color_fix", ("unfixed" if color_fix == "none" else str(color_fix), color_fix)
    if color_fix is not None and not isinstance(restorer, Untrained):
        restorer.use = replace(restorer.use, color_fix=color_fix)
    if options.strength is not None:
        yield from _set_strength(restorer, what, options.strength)
    if options.fidelity is not None:
        if not isinstance(restorer, OnnxRestorer) or restorer.model.weight is None:
            raise _no_fidelity(what)
        if options.fidelity != restorer.fidelity:
            restorer.fidelity = options.fidelity
            yield "fidelity", (f"fidelity{options.fidelity:g}", options.fidelity)
    if isinstance(restorer, PisaSR):
        sliders = _list_sliders(options)
        pix, sem = sliders.get("lambda_pix", 1.0), sliders.get("lambda_sem", 1.0)
        restorer.use = replace(restorer.use, lambda_pix=pix, lambda_sem=sem)
        for name, value in sliders.items():
            if value != 1:
                yield name, (f"{name.removeprefix('lambda_')}{value:g}", value)
    if options.size_px is not None:
        yield "size_px", (f"{options.size_px}px", options.size_px)
    if options.dtype != "float32":
        yield "dtype", (options.dtype, options.dtype)
    if options.small_memory and not isinstance(restorer, Untrained):
        restorer.enable_small_memory()
        yield "small_memory", ("small-memory", True)  # tiles blend at their borders, and slices round otherwise


def _list_sliders(options: LoadOptions) -> dict[str, float]:
    """PiSA-SR's settings that are given."""
    asked = {"lambda_pix": options.lambda_pix, "lambda_sem": options.lambda_sem}
    return {name: value for name, value in asked.items() if value is not None}


def _set_strength(restorer: AnyRestorer, what: str, strength: float) -> Iterator[tuple[str, tuple[str, Any]]]:
    if isinstance(restorer, Untrained) or "lora_strength" not in restorer.settings:
        raise _no_strength(what)
    restorer.set_lora_strength(strength)
    if strength != 1:
        yield "lora_strength", (f"strength{strength:g}", strength)


def _no_fidelity(what: str) -> UserError:
    return UserError(f"--fidelity is for CodeFormer as ONNX; {what} takes none. Restore by it in a call of its own.")


def _no_strength(what: str) -> UserError:
    return UserError(f"--strength is for restorers tuned by LoRA; {what} is none. Restore by it in a call of its own.")

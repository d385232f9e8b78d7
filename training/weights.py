"""Read weight files by what is in them, whatever their name, without running what is in them; and write such files.

Read are safetensors, torch's files of today and of before 1.6, and the index of a file in parts. A file is read a
tensor at a time: what is in memory is what was read so far and a little of the file, not the file beside it. What other
code puts around weights, tables such as `state_dict` and prefixes such as `module.`, comes off here for all readers.
"""

from __future__ import annotations

import json
import logging
import pickle
import pickletools
import shlex
import struct
import tarfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from db.errors import UserError
from metrics.download import HEAD_BYTES, find_fault, is_safetensors
from training.unpickling import OTHER_ARRAY, STAND_INS, ArrayStandIn

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl")
"""By which a text that names weights is told from a name of the manifest; what a file holds is told by its content."""
MAPPED_BYTES = 2**28
"""Bytes of a file that may lie in memory beside what was read from it."""
MAX_NAMED = 5
State = dict[str, Tensor]
AVERAGES = (
    "params_ema",
    "params-ema",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "net_g_ema",
    "netG_ema",
    "generator_ema",
    "g_ema",
    "G_ema",
    "ema",
)
"""Names of a running average of weights (EMA); it restores better than the weights, and so is taken before them."""
WRAPPERS = (
    *AVERAGES,
    "state_dict",
    "model_state_dict",
    "params",
    "module",
    "model",
    "net_g",
    "netG",
    "generator",
    "net",
    "network",
    "online_model",
)
"""Names in other code of the table or the module that the weights are in, the better one first."""
ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
"""Words that torch.compile, FSDP, checkpointing and Lightning write into names anywhere; no module is called so."""
OF_TRAINING = ("optim", "sched", "scaler", "callback", "rng")
"""Parts of the names of tables that a training keeps for itself."""
TORCH_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
"""Near the start of what torch wrote before 1.6."""
BROKEN = (
    pickle.UnpicklingError,
    OSError,
    EOFError,
    RuntimeError,
    SafetensorError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
)
"""Errors of torch when it reads a damaged or made-up file."""
OTHER_FORMATS = (
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"BZh", "compressed by bzip2; unpack it first"),
    (b"\xfd7zXZ", "compressed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"Rar!", "a rar archive; unpack it first"),
    (b"\x89HDF", "in HDF5, as Keras writes it; save the tensors as safetensors"),
    (b"GGUF", "in GGUF, quantised for llama.cpp; get the safetensors or torch file"),
    (b"\x93NUMPY", "one numpy array without names; save the tensors by name as safetensors"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
)
"""(first bytes, what such a file is)."""
CONVERT = (
    "import sys, torch; a = torch.load(sys.argv[1], 'cpu', weights_only=False); t = lambda v: isinstance(v, "
    "torch.Tensor); s = lambda v: v.state_dict() if hasattr(v, 'state_dict') else v if t(v) else dict(v); a = s(a); "
    "torch.save({k: s(v) for k, v in a.items() if t(v) or hasattr(v, 'state_dict') or isinstance(v, dict) and "
    "all(map(t, v.values()))}, sys.argv[2])"
)
"""Keeps the tensors of a file whose classes are installed."""
CONVERT_PICKLE = (
    "import sys, pickle, torch; torch.save(pickle.load(open(sys.argv[1], 'rb')), sys.argv[2], pickle_protocol=2)"
)
CONVERT_SCRIPT = (
    "import sys, torch; torch.save(torch.jit.load(sys.argv[1], map_location='cpu').state_dict(), sys.argv[2])"
)


def read_checkpoint(path: Path) -> Any:
    """Read a weight file: tensors, and plain lists, tables, numbers and text of them.

    Tensors are mapped where the format allows it: their numbers stay in the file until they are used, and what outlives
    the file must be copied. Of numpy, numbers become Python's and arrays tensors. Nothing that could run code is ever
    unpickled.

    Raises:
        UserError: the file is none of weights, a part of one, or holds other objects; what it is, and what to do.
    """
    try:
        with open(path, "rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError as error:
        hint = " Give the file in this folder." if path.is_dir() else ""
        raise UserError(f"{path}: cannot be read ({error.strerror}).{hint}") from error
    try:
        if _is_index(head) and (parts := _read_index(path)) is not None:
            return parts
        if fault := find_fault(path) or _find_other_format(path, head):
            raise UserError(f"{path}: {fault}.")
        if is_safetensors(head):
            return load_file(path)
        with torch.serialization.safe_globals(list(STAND_INS)), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle's protocol and of sparse tensors: told here
            return _plain(_load_torch(path))
    except BROKEN as error:
        if "Unsupported operand" in str(error):
            raise UserError(
                f"{path}: is pickled in a way that is not read without running code. If you trust whoever made it, let "
                f"torch write it anew: {_command(CONVERT, path)}"
            ) from error
        others = _find_other_objects(path)
        if others or OTHER_ARRAY in str(error):
            others = others or [f"numpy.ndarray: {_describe_break(error)}"]
            raise UserError(f"{path}: {_describe_other_objects(path, others)}") from error
        raise UserError(
            f"{path}: cannot be read as weights ({_describe_break(error)}); it is damaged, cut off, or of a kind that "
            "is not known here. Get the file again, or the same tensors as safetensors."
        ) from error


def _load_torch(path: Path) -> Any:
    if path.name.endswith(".safetensors"):  # torch would believe the name
        with open(path, "rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _describe_break(error: BaseException) -> str:
    """The line of torch's message that says what happened, without its advice to run what is in the file."""
    said = str(error)
    said = said.partition("WeightsUnpickler error:")[2] or said
    return said.strip().partition("\n")[0][:200] or type(error).__name__


def _is_index(head: bytes) -> bool:
    """Whether a file that begins so may be a table in JSON."""
    return head.lstrip()[:1] == b"{" and not is_safetensors(head)


def _read_index(path: Path) -> State | None:
    """The tensors of a file in parts, by its index `NAME.index.json`; None for any other file.

    Raises:
        UserError: a part is missing, or not beside the index.
    """
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(parts.values()))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    absent = [name for name in names if Path(name).name != name or not (path.parent / name).is_file()]
    if absent:
        raise UserError(
            f"{path}: is the index of a file in {len(names)} parts; {name_some(absent)} must lie beside it."
        )
    state: State = {}
    for name in names:
        state |= map_weights(path.parent / name)
    return state


def _find_other_format(path: Path, head: bytes) -> str | None:
    """Name the format of a file that is neither safetensors nor torch's; None for those."""
    for start, what in OTHER_FORMATS:
        if head.startswith(start):
            return f"is {what}"
    if head.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            return (
                "is a TorchScript archive, which holds a program. If you trust whoever made it, take its tensors out: "
                f"{_command(CONVERT_SCRIPT, path)}"
            )
        if not any(name.endswith("/data.pkl") for name in names):
            return f"is a zip archive of other things ({name_some(names) or 'nothing'}); unpack it and give the file"
    elif is_safetensors(head):
        return None
    elif head[257:262] == b"ustar" or (head[:1].isascii() and head[:1] != b"\x80" and tarfile.is_tarfile(path)):
        return "is a tar archive; unpack it and give the file"
    elif head[:1] != b"\x80" or not 1 < head[1] < 6:
        return "is neither safetensors nor torch's format"
    elif TORCH_MAGIC not in head[:64]:
        return (
            "is a Python pickle that torch did not write, not loaded since it could run code. If you trust whoever "
            f"made it, let torch write it: {_command(CONVERT_PICKLE, path)}"
        )
    return None


def _find_other_objects(path: Path) -> list[str]:
    """List the functions and classes besides tensors that a torch file names, from its text, without running it."""
    names: dict[str, None] = {}
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                table = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(table) as stream:
                    names |= dict.fromkeys(_list_globals(stream))
        else:
            with open(path, "rb") as stream:
                for _ in range(4):  # before 1.6: a magic number, a version, the system, and then the content
                    names |= dict.fromkeys(_list_globals(stream))
    except (*BROKEN, StopIteration, zipfile.BadZipFile):
        pass  # what was read of it until it ended
    plain = {"__builtin__.bytes", "collections.OrderedDict", "collections.Counter", "_codecs.encode"}
    plain |= {name for _, name in STAND_INS}
    plain |= {f"{module}.{kind}" for module in ("builtins", "__builtin__") for kind in ("set", "complex", "bytearray")}
    return [name for name in names if name not in plain and not _is_torch(name)]


def _list_globals(stream: Any) -> Iterator[str]:
    """The functions and classes that a pickle names."""
    texts: list[str] = []
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif operation.name == "STACK_GLOBAL" and len(texts) > 1:
            yield f"{texts[-2]}.{texts[-1]}"
        elif isinstance(argument, str):
            texts = [*texts[-1:], argument]


def _is_torch(name: str) -> bool:
    """Whether torch itself takes it for harmless."""
    known = ("torch._utils._rebuild_", "torch._tensor._rebuild", "torch.Size", "torch.device", "torch.Tensor")
    inner = name.startswith("torch.") and name.count(".") == 1
    return name.startswith((*known, "torch.nn.parameter.Parameter", "torch.storage.", "torch.serialization._get")) or (
        inner
    )


def _describe_other_objects(path: Path, names: list[str]) -> str:
    return (
        f"holds Python objects besides tensors ({name_some(names)}), which are not loaded since they could run code. "
        "Ask whoever made it for the tensors as safetensors. If you trust them, and the packages of these objects are "
        f"installed, take the tensors out yourself, which runs what is in it: {_command(CONVERT, path)}"
    )


def _command(program: str, path: Path) -> str:
    out = path.with_name(f"{path.stem}-tensors.pth")
    return f'python -c "{program}" {shlex.quote(str(path))} {shlex.quote(str(out))}'


def _plain(value: Any) -> Any:
    """The same with tensors in place of numpy's arrays."""
    if isinstance(value, ArrayStandIn):
        return value.to_tensor()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(inner) for inner in value)
    return value


def unwrap(content: Any, path: Path) -> State:
    """The one table of tensors in what a file holds, out of the tables around it, by names without wrappers.

    Where there are several, the better-known name counts, a running average's first. Numbers and texts beside the
    tensors, such as an epoch, are passed over.

    Args:
        path: for the message.
    Raises:
        UserError: there is none, or it is not told which is meant, or a tensor has no numbers.
    """
    found = _find_table(content)
    if isinstance(found, list):
        raise UserError(
            f"{path}: holds several tables of tensors ({name_some(found)}). Save the one that is meant in a file of "
            "its own."
        )
    if found is None:
        keys = [str(key) for key in content] if isinstance(content, Mapping) else []
        what = f"a table of {name_some(keys)}" if keys else f"a {type(content).__name__}"
        raise UserError(f"{path}: holds no tensors by name, but {what}. Give the file that holds the weights.")
    state = {_strip_anywhere(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if len(state) < sum(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: holds tensors twice, of a compiled and a plain module. Save the plain one alone.")
    for name, value in state.items():
        if value.is_meta or value.layout != torch.strided:
            what = "has no numbers (it was saved from the meta device)" if value.is_meta else f"is {value.layout}"
            raise UserError(f"{path}: {name} {what}. Save the module's whole tensors.")
    return state


def _find_table(content: Any, depth: int = 5) -> Mapping[str, Any] | list[str] | None:
    """The table of tensors inside; the names of all where it is not told which; None where there is none."""
    if not isinstance(content, Mapping) or not depth:
        return None
    inner = {
        key: found
        for key, value in content.items()
        if not any(part in str(key).lower() for part in OF_TRAINING)
        and (found := _find_table(value, depth - 1)) is not None
    }
    named = next((name for name in WRAPPERS if name in inner), None)
    if named is not None:
        return inner[named]
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    is_table = bool(tensors) and all(isinstance(key, str) for key in content)
    if is_table and (not inner or any(value.dim() for value in tensors)):
        return content
    if len(inner) > 1:
        return [str(key) for key in inner]
    return next(iter(inner.values()), None)


def _strip_anywhere(name: str) -> str:
    for part in ANYWHERE:
        name = name.replace(part, "")
    return name


def strip_prefix(state: State, expected: Collection[str], source: Path | str) -> State:
    """Names below the prefix under which the expected ones are found; what lies outside is passed over, and said.

    Args:
        expected: names in a module; where the file has only some of them, the prefix with the most counts.
        source: for the message.
    Raises:
        UserError: they are found under several prefixes, none of which is a running average's.
    """
    counts: Counter[str] = Counter()
    for name in state:
        pieces = name.split(".")
        counts.update(".".join([*pieces[:at], ""]) for at in range(len(pieces)) if ".".join(pieces[at:]) in expected)
    if not counts:
        return state
    most = max(counts.values())
    best = [prefix for prefix, count in counts.items() if count == most]
    averages = [prefix for prefix in best if any(part in AVERAGES for part in prefix.split("."))]
    if most <= len(expected) / 2:
        return state
    if len(best) > 1 and not averages and "" not in best:
        raise UserError(f"{source}: holds the same names below {name_some(best)}. Save the one that is meant alone.")
    return _below(state, min(averages or best, key=len))


def list_candidates(state: State) -> Iterator[State]:
    """The state, and then what is below each known wrapper's prefix, to tell an architecture by its names."""
    yield state
    for name in WRAPPERS:
        if any(key.startswith(f"{name}.") for key in state):
            yield from list_candidates(_below(state, f"{name}."))


def _below(state: State, prefix: str) -> State:
    if not prefix:
        return state
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if others := sorted({name.partition(".")[0] for name in state if not name.startswith(prefix)}):
        log.info("took what is below %s; not used: %s", prefix, name_some(others))
    return inside


def map_weights(path: Path) -> State:
    """Tensors by name of a weight file, as `read_checkpoint` maps them, without what `unwrap` takes off.

    Raises:
        UserError: the file is damaged, or holds other things.
    """
    return unwrap(read_checkpoint(path), path)


def read_weights(
    path: Path, dtype: torch.dtype = torch.float32, choose: Callable[[State], State] | None = None
) -> State:
    """Tensors by name from a weight file, in memory of their own.

    Args:
        dtype: what floating tensors become, one after another.
        choose: from what `map_weights` gives to what is wanted, by the names that are wanted; nothing else is read.
    Raises:
        UserError: the file is damaged, or holds other things.
    """

    def open_file() -> State:
        return choose(map_weights(path)) if choose else map_weights(path)

    waiting = open_file()
    is_mapped = _is_mapped(path)
    state: State = {}
    in_memory = 0  # of the file
    for name in list(waiting):
        value = waiting.pop(name)
        state[name] = value.to(dtype, copy=True) if value.is_floating_point() else value.clone()
        in_memory += value.nbytes
        if is_mapped and in_memory > MAPPED_BYTES:
            del value
            waiting.clear()  # the last tensor of a mapping takes its pages out of memory
            waiting, in_memory = open_file(), 0
    return state


def _is_mapped(path: Path) -> bool:
    with open(path, "rb") as stream:
        head = stream.read(HEAD_BYTES)
    return is_safetensors(head) or _is_index(head) or (head.startswith(b"PK") and path.suffix != ".safetensors")


def list_faults(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """List why these tensors do not fit a module: `NAME is unknown`, missing, of another shape or kind of number.

    Args:
        expected: the module's, as its `state_dict`, which may be on the meta device.
    """
    return [
        *(f"{name} is unknown" for name in found if name not in expected),
        *(f"{name} is missing" for name in expected if name not in found),
        *(
            f"{name} is {list(found[name].shape)}, not {list(value.shape)}"
            for name, value in expected.items()
            if name in found and found[name].shape != value.shape
        ),
        *(
            f"{name} holds {_kind(found[name])} ({found[name].dtype}), not {_kind(value)}"
            for name, value in expected.items()
            if name in found and _kind(found[name]) != _kind(value)
        ),
    ]


def _kind(value: Tensor) -> str:
    if value.is_floating_point():
        return "floating-point numbers"
    return "complex numbers" if value.is_complex() else "whole numbers"


def check_strictly(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: Path | str, what: str, hint: str = ""
) -> None:
    """Check that these tensors are a module's, by names, shapes and kinds of numbers.

    Args:
        what: the message says that the source is not the weights of it.
        hint: put behind the message.
    Raises:
        UserError: they are not; the first few faults are named.
    """
    if faults := list_faults(expected, found):
        raise UserError(f"{source}: not the weights of {what}: {name_some(faults, '; ')}.{hint}")


def load_strictly(module: nn.Module, state: State, source: Path | str, what: str, hint: str = "") -> None:
    """Make these tensors the module's parameters.

    Args and Raises: as `check_strictly`.
    """
    check_strictly(module.state_dict(), state, source, what, hint)
    module.load_state_dict(state, strict=True, assign=True)


def save_tensors(state: State, path: Path) -> None:
    """Write a safetensors file, there whole or not at all, for whom the umask lets read it.

    safetensors itself makes files that only their owner may read, from 0.8 on.
    """
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.unlink(missing_ok=True)
    unfinished.touch()
    mode = unfinished.stat().st_mode & 0o777
    try:
        save_file(state, unfinished)
        unfinished.chmod(mode)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def name_some(names: list[str], separator: str = "; ") -> str:
    """The first few of them, and how many more."""
    more = f", and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return separator.join(names[:MAX_NAMED]) + more

"""Count the memory by part, the kernels and the host copies of what runs inside a block, with real or fake tensors.

Sizes are those that the operations ask for, rounded up as CUDA's allocator does. Of what kernels allocate inside
themselves, convolutions' workspaces are reckoned if asked. Not seen: cuBLAS' workspace (65 MiB seen on an H200), the
allocator's fragmentation, the CUDA context, a storage that is resized.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

BLOCK_BYTES = 512
"""CUDA's allocator rounds every size up to a multiple of it."""
OTHER = "activations"
"""The part of all that nobody named: activations, temporaries, inputs."""
WORKSPACE = "convolution workspace"
"""The part of what convolutions copy for as long as they run."""
NOT_KERNELS = {
    # These only reserve memory; whatever fills it is counted.
    *("empty", "empty_strided", "empty_like", "empty_permuted", "new_empty", "new_empty_strided"),
    # These change what a tensor says of itself, not its numbers.
    *("set_", "resize_", "resize_as_", "detach_", "squeeze_", "unsqueeze_", "t_", "transpose_", "as_strided_"),
}
"""Operations that give new or changed tensors without work for the device.

Views, `detach` and reshapes that copy nothing are told by their results, which lie in a storage that is known already;
questions about sizes and devices give no tensors. A copy between devices is a host copy and no kernel.
"""
HOST_READS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2"}
"""Operations after which the host waits for a device: `.item()`, `float()`, `bool()`, boolean indexing."""
NOT_CALLERS = (
    *(str(Path(__file__).with_name(f"{name}.py")) for name in ("accounting", "without_memory")),
    torch.__path__[0],
)
"""Folders of code that is not reported as the origin of a host copy: its caller is."""


@dataclass
class Phase:
    """Counts taken while a phase was open."""

    peak_bytes: int = 0
    at_peak: dict[str, int] = field(default_factory=dict)
    """Bytes of each part when the peak was reached."""
    kernels: Counter[str] = field(default_factory=Counter)
    """Operations that launch work on the device, by their names in aten; a fused optimizer's step is one."""
    host_copies: Counter[str] = field(default_factory=Counter)
    """Blocking copies between host and device and values read on the host, by operation and line of code."""


@dataclass
class _Storage:
    """Memory in use; `dies` takes it off the count."""

    dies: weakref.ref[Any]
    size_bytes: int
    part: str


class MemoryCount(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Counts what the operations within it allocate, launch and copy: `with MemoryCount() as count: ...`.

    Real tensors and fake ones alike. A tensor made before is counted from when it is named.
    """

    def __init__(self, device: str = "cpu", *, workspaces: bool = False) -> None:
        """
        Args:
            device: type of the device whose memory and kernels are counted; "cpu", "cuda", or "meta" for fake tensors.
            workspaces: whether convolutions also take what cuDNN's take for copies, whatever runs here.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.workspaces = device, workspaces
        self.bytes_by_part: Counter[str] = Counter()
        self.live_bytes = 0
        self.whole = Phase()
        self.phases: dict[str, Phase] = {}
        self._open = [self.whole]
        self._storages: dict[int, _Storage] = {}
        self._part = OTHER
        self._hooks = ExitStack()
        self._making = False
        self._numbers = _NumbersToTensors(self)

    @property
    def peak_bytes(self) -> int:
        """Most bytes in use at once since the count began."""
        return self.whole.peak_bytes

    @property
    def at_peak(self) -> dict[str, int]:
        """Bytes of each part at that moment."""
        return self.whole.at_peak

    def name(self, part: str, what: nn.Module | Optimizer | Iterable[Tensor], gradients: str = "gradients") -> None:
        """Say which part tensors belong to; tensors that were not seen yet are counted from now on.

        Args:
            what: a module's parameters and buffers; an optimizer, for all that its steps leave; or any tensors.
            gradients: the part of the gradients that a module's parameters will get; each is among the activations
                from its making until it is added to its parameter.
        """
        if isinstance(what, Optimizer):
            self._name_steps(part, what)
            return
        is_module = isinstance(what, nn.Module)
        tensors = [*what.parameters(), *what.buffers()] if isinstance(what, nn.Module) else list(what)
        for tensor in tensors:
            self._put(tensor, part)
            if is_module and tensor.requires_grad:
                name_gradient = partial(self._name_gradient, gradients)
                hook = tensor.register_post_accumulate_grad_hook(name_gradient)  # type: ignore[no-untyped-call]
                self._hooks.callback(hook.remove)

    @contextmanager
    def allocate_for(self, part: str) -> Iterator[None]:
        """Give what is allocated inside to this part."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Count what happens inside by itself as well; a phase of the same name is taken up again."""
        phase = self.phases.setdefault(name, Phase())
        self._open.append(phase)
        self._record_peak()
        try:
            yield phase
        finally:
            self._open.remove(phase)

    def __enter__(self) -> Self:
        self._numbers.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.close()
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._numbers.__exit__(*exception)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prim":  # what device a tensor is on; asked several times an operation
            return func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        try:
            out = func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            if name != "_local_scalar_dense":
                raise
            out = _stand_in(args[0])
        self._count_work(func, name, args, kwargs or {}, out)
        return out

    def _count_work(self, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Count an operation's new storages, and the operation as a kernel or a host copy."""
        outputs = [value for value in tree_iter(out) if isinstance(value, Tensor)]
        made = [self._put(tensor) for tensor in outputs]
        if self.workspaces and name in ("convolution", "convolution_backward"):
            self._record_workspace(args[0], outputs[0] if name == "convolution" else args[1])
        if name in HOST_READS:
            if self._is_here(args[0]):
                self._count_host_copy(name)
        elif name in ("_to_copy", "copy_") and self._crosses(name, args, outputs):
            waits_for_none = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            if not waits_for_none and not self._making:
                self._count_host_copy(name)
        elif name not in NOT_KERNELS and not func.is_view:
            changed = func._schema.is_mutable and any(self._is_here(value) for value in tree_iter((args, kwargs)))
            if changed or any(made):
                for phase in self._open:
                    phase.kernels[name] += 1

    def make(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Make a tensor of numbers: one host copy where it is not the host's, however it gets there."""
        self._making = True
        try:
            out = func(*args, **kwargs)
        finally:
            self._making = False
        if self.device != "cpu" and self._is_here(out):
            self._count_host_copy(func.__name__)
        return out

    def _crosses(self, name: str, args: Any, outputs: list[Tensor]) -> bool:
        source = args[1] if name == "copy_" else args[0]
        return bool(source.device.type != outputs[0].device.type)

    def _is_here(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.device.type == self.device

    def _put(self, tensor: Tensor | None, part: str | None = None) -> bool:
        """Count a tensor's storage, or move it to a part; whether it is on the device and was not known before."""
        if not self._is_here(tensor):
            return False
        storage = tensor.untyped_storage()  # type: ignore[union-attr]
        key = storage._cdata
        known = self._storages.get(key)
        if known is None:
            size_bytes = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES
            known = _Storage(weakref.ref(storage, lambda _: self._free(key)), size_bytes, part or self._part)
            self._storages[key] = known
            self._add(known.part, size_bytes)
            return True
        if part and part != known.part:
            self._move(known, part)
        return False

    def _move(self, known: _Storage, part: str) -> None:
        """Give a storage to another part, at the peak too where it is this moment: no byte came or went."""
        self.bytes_by_part[known.part] -= known.size_bytes
        self.bytes_by_part[part] += known.size_bytes
        known.part = part
        for phase in self._open:
            if phase.peak_bytes == self.live_bytes:
                phase.at_peak = self._split()

    def _split(self) -> dict[str, int]:
        return {part: size_bytes for part, size_bytes in self.bytes_by_part.items() if size_bytes}

    def _name_gradient(self, part: str, owner: Tensor) -> None:
        self._put(owner.grad, part)

    def _free(self, key: int) -> None:
        known = self._storages.pop(key)
        self._add(known.part, -known.size_bytes)

    def _add(self, part: str, size_bytes: int) -> None:
        self.bytes_by_part[part] += size_bytes
        self.live_bytes += size_bytes
        if size_bytes > 0:
            self._record_peak()

    def _record_peak(self, workspace_bytes: int = 0) -> None:
        now = self.live_bytes + workspace_bytes
        for phase in self._open:
            if now > phase.peak_bytes:
                workspace = {WORKSPACE: workspace_bytes} if workspace_bytes else {}
                phase.peak_bytes, phase.at_peak = now, self._split() | workspace

    def _record_workspace(self, *tensors: Tensor) -> None:
        """Reckon with a convolution's copies of its (N, C, H, W) input and result, or of the gradient and the input.

        cuDNN's kernels for tensor cores want the channels last, and transpose what lies otherwise. Seen on an H200: of
        256 channels to 128 at 512², 192 MiB in bfloat16, and none with channels last.
        """
        if all(self._is_here(tensor) and tensor.is_contiguous() for tensor in tensors):
            self._record_peak(sum(tensor.numel() * tensor.element_size() for tensor in tensors))

    def _name_steps(self, part: str, optimizer: Optimizer) -> None:
        """Give a part what an optimizer holds, and what its steps allocate while they run."""
        for state in optimizer.state.values():
            for value in tree_iter(state):
                self._put(value, part)
        inside = ExitStack()

        def begin(*_: Any) -> None:
            inside.enter_context(self.allocate_for(part))

        def end(*_: Any) -> None:
            inside.close()

        for hook in (optimizer.register_step_pre_hook(begin), optimizer.register_step_post_hook(end)):
            self._hooks.callback(hook.remove)

    def _count_host_copy(self, name: str) -> None:
        """Count it under the line of the innermost code that is not torch's."""
        frame = sys._getframe()
        while frame.f_back and frame.f_code.co_filename.startswith(NOT_CALLERS):
            frame = frame.f_back
        where = f"{name} {'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{frame.f_lineno}"
        for phase in self._open:
            phase.host_copies[where] += 1


class _NumbersToTensors(TorchFunctionMode):
    """Sees `torch.tensor(number, device=...)`: on the meta device no operation tells of it."""

    def __init__(self, count: MemoryCount) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            values = args[-1] if args else kwargs.get("data")
            if not isinstance(values, Tensor):
                return self.count.make(func, args, kwargs)
        return func(*args, **kwargs)


def _stand_in(tensor: Tensor) -> bool | int | float:
    """The number 1 as a tensor of this type would give it: a fake tensor has none, and the code that asked goes on."""
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.is_floating_point() else 1

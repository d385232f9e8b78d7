"""The memory did not suffice, in the words of every library that says so; and what only looks like it."""

from __future__ import annotations

import errno

import pytest

from metrics.memory import is_of_workers, is_out_of_memory


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


class error(Exception):  # as OpenCV calls its own
    pass


@pytest.mark.parametrize(
    "said",
    [
        OutOfMemoryError("Allocation on device"),
        MemoryError(),
        MemoryError("Unable to allocate 3.00 GiB for an array with shape (1, 2)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        error("OpenCV(4.11) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 12 bytes"),
        *map(
            RuntimeError,
            [
                "CUDA out of memory. Tried to allocate 2.00 GiB",
                "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
                "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
                "CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY",
                "cudaErrorMemoryAllocation: the API call failed",
                "MPS backend out of memory (MPS allocated: 18.02 GB, other allocations: 384 KB, max allowed: 18.13 GB)",
                "HIP out of memory. Tried to allocate 2.00 GiB",
                "[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried to …",
                "DataLoader worker (pid 7) is killed by signal: Killed. ",
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
                "workers are out of shared memory. Please try to raise your shared memory limit.",
                "unable to write to file </torch_7_1_0>: No space left on device (28)",
                "Caught RuntimeError in DataLoader worker process 0.\nunable to open shared memory object </torch_7>",
                "Unable to write to shared memory /dev/shm",
            ],
        ),
    ],
    ids=lambda said: str(said)[:40],
)
def test_it_is_known(said: Exception) -> None:
    assert is_out_of_memory(said)
    outer = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    outer.__cause__ = said
    assert is_out_of_memory(outer)
    shared = any(word in str(said) for word in ("killed by signal", "shared memory", "/torch_"))
    assert is_of_workers(said) is shared


@pytest.mark.parametrize(
    "said",
    [
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("libgomp.so.1: cannot allocate memory in static TLS block"),
        ValueError("a photo called out of memory.png"),
        KeyError("out of memory"),
    ],
    ids=lambda said: str(said)[:40],
)
def test_other_errors_are_none(said: Exception) -> None:
    assert not is_out_of_memory(said)

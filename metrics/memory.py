"""Recognize errors of too little memory, in the words of any library. Loads no torch."""

from __future__ import annotations

import errno
from collections.abc import Iterator

WORDS = (
    "out of memory",  # of CUDA, HIP, MPS and XPU
    "can't allocate memory",  # torch's allocator of the CPU
    "cannot allocate memory",  # the system's
    "not enough memory",  # Windows'
    "cudaerrormemoryallocation",
    "cuda_error_out_of_memory",
    "status_alloc_failed",  # of cuBLAS, cuDNN, cuSOLVER, cuSPARSE
    "cufft_alloc_failed",
    "cudnn_status_not_initialized",  # their handles take memory too
    "cublas_status_not_initialized",
    "insufficient memory",  # OpenCV's
)
WORKER_WORDS = (
    "killed by signal: killed",  # the system ends a large process where the memory ends
    "killed by signal: bus error",  # what processes share did not fit
    "unable to write to file </torch_",
    "unable to open shared memory object",
    "unable to allocate shared memory",
    "insufficient shared memory",
    "out of shared memory",
    "/dev/shm",
)
"""Of the processes that decode images for a training, as torch's DataLoader tells of them."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that the memory did not suffice."""
    return any(_says_so(one) for one in _follow(error)) or is_of_workers(error)


def is_of_workers(error: BaseException) -> bool:
    """Whether it was decoding processes or the memory that they share, which a smaller batch does not help."""
    return any(_speaks(one) and _has_word(one, WORKER_WORDS) for one in _follow(error))


def _says_so(error: BaseException) -> bool:
    # torch's class by its name, so that this file needs no torch; the CPU's allocator has none of its own
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return _speaks(error) and _has_word(error, WORDS) and not _has_word(error, ("static tls",))


def _speaks(error: BaseException) -> bool:
    """Whether it is of a library: errors of our own may speak of memory as well. OpenCV's kind is called `error`."""
    return isinstance(error, RuntimeError | OSError) or type(error).__name__ == "error"


def _has_word(error: BaseException, words: tuple[str, ...]) -> bool:
    said = str(error).lower()
    return any(word in said for word in words)


def _follow(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__

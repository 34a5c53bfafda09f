"""Tunes a process's memory: on a CPU a freed block is kept for the next layer; a model's memory is given back.

Not a pool. Where the C library is not glibc, nothing is changed.
"""

import ctypes
import gc
import platform

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
KEPT_BYTES, STEP_BYTES, MAPPED_BYTES = 2**31 - 1, 64 << 20, 32 << 20


def keep_freed_memory() -> bool:
    """A UNet call on a CPU frees and asks for some hundred MiB; each page that went back costs a fault to get again.

    The process keeps what it had at its peak. False: not on this C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    values = {_TRIM_THRESHOLD: KEPT_BYTES, _TOP_PAD: STEP_BYTES, _MMAP_THRESHOLD: MAPPED_BYTES}
    results = [mallopt(name, value) for name, value in values.items()]
    return results == [1, 1, 1]


def give_back_memory() -> None:
    """Of a model that nobody needs any more: what refers to itself in a circle, and what CUDA's cache holds."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()

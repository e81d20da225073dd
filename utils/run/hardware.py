"""The machine: names of devices, the fastest precision, and how freed memory is kept."""

import ctypes
import platform
import re
import sys
from pathlib import Path

import torch


def device_name(device: str | torch.device) -> str:
    """Return a GPU's name, or the processor's model."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # on Linux, platform.processor() is empty or only the architecture
    model = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return model[1] if model else platform.processor() or platform.machine()


def fastest_precision() -> str:
    """Return the fastest training precision that costs no accuracy.

    This is "bf16" on hardware that multiplies bf16: CUDA from Ampere on, and CPUs with AVX512-BF16 or AMX. Elsewhere it
    is "fp32": other CPUs emulate bf16, ten times as slow as fp32.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bf16" if supported or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)() else "fp32"


def keep_freed_memory():
    """Make this process keep the memory that it frees, and allocate from it.

    By default glibc returns the pages of a large freed tensor to the system, which must clear new pages for the next
    tensor. That is a large part of a step on a CPU; the benchmark's `--parts=step` measures it. The price is a higher
    peak of memory, because the freed memory is fragmented. Without glibc this does nothing.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)  # never


def give_back_freed_memory():
    """Return to the system, once, the freed memory that `keep_freed_memory` has kept.

    To be called before a fork: the child would share the freed pages, and each write to one by this process would copy
    it.
    """
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_glibc(name):
    """Return a function of the C library by its name; None where the library lacks it."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None

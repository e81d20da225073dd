"""What this machine is, and what it does fast."""

import ctypes
import platform
import re
import sys
from pathlib import Path

import torch


def device_name(device):
    """What a device is called.

    Parameters
    ----------
    device : str or torch.device

    Returns
    -------
    str
        The GPU's name, or the processor's model.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # on Linux platform.processor() is empty, or no more than the architecture
    model = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return model[1] if model else platform.processor() or platform.machine()


def fastest_precision():
    """The fastest training precision that costs no accuracy.

    Returns
    -------
    str
        "bf16" where the hardware multiplies it (CUDA from Ampere on, a CPU with AVX512-BF16 or AMX), else "fp32": on
        other CPUs bf16 is emulated, and ten times as slow as fp32.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bf16" if supported or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)() else "fp32"


def keep_freed_memory():
    """Have this process keep the memory that it frees, for what it allocates next.

    glibc gives a large tensor's pages back to the system at once, which then clears new ones for the next: much of a
    step on a CPU, the benchmark's `--parts=step` says how much. The process takes more memory at its peak, as what is
    free is in pieces. Where there is no glibc, this does nothing.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)  # never


def give_back_freed_memory():
    """Give back to the system, once, what `keep_freed_memory` has kept.

    Before processes are forked: they would hold the old pages, and this process copy each that it writes to.
    """
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_glibc(name):
    """A function of the C library, None where it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None

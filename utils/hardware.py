"""What this machine does fast."""

import torch


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

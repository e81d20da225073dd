"""Weights in the layout of the published PANNs (arXiv 1912.10211), full of random numbers."""

import functools

import torch
from torchlibrosa.stft import LogmelFilterBank, Spectrogram

from models.pann import CNN14_CHANNELS

NARROW = tuple(c // 16 for c in CNN14_CHANNELS)  # the same net, 256 times cheaper
RATE, HOP, F_MAX = {512: 16000, 1024: 32000}, {512: 160, 1024: 320}, {512: 8000, 1024: 14000}  # by window


def extractors(window, f_min=50, n_mels=64):
    """The published front end for a window: Cnn14_16k's, Cnn14's, or of 256 samples Cnn14_8k's."""
    rate, hop, f_max = RATE.get(window, 8000), HOP.get(window, 80), F_MAX.get(window, 4000)
    spectrogram = Spectrogram(n_fft=window, hop_length=hop, win_length=window, window="hann", center=True)
    logmel = LogmelFilterBank(sr=rate, n_fft=window, n_mels=n_mels, fmin=f_min, fmax=f_max, ref=1.0, top_db=None)
    return spectrogram, logmel


@functools.cache
def front_end_state(window, f_min=50, n_mels=64):
    """Its weights by their published names."""
    parts = zip(("spectrogram_extractor", "logmel_extractor"), extractors(window, f_min, n_mels), strict=True)
    return {f"{part}.{name}": tensor for part, module in parts for name, tensor in module.state_dict().items()}


def batch_norm_state(name, size, generator, mean=0.0, spread=1.0):
    """Weights and statistics of a batch norm, all random, none at its initial value."""
    return {
        f"{name}.weight": 0.5 + torch.rand(size, generator=generator),
        f"{name}.bias": 0.2 * torch.randn(size, generator=generator),
        f"{name}.running_mean": mean + 0.2 * spread * torch.randn(size, generator=generator),
        f"{name}.running_var": spread**2 * (0.5 + torch.rand(size, generator=generator)),
        f"{name}.num_batches_tracked": torch.tensor(600000),
    }


def pann_state(window, channels=NARROW, **front_end):
    """What is under "model" in a published file, by the names of the PANNs' code."""
    generator = torch.Generator().manual_seed(window)
    state = {**front_end_state(window, **front_end), **batch_norm_state("bn0", 64, generator, mean=-20, spread=20)}
    for i, (c_in, c_out) in enumerate(zip((1, *channels), channels, strict=False), start=1):
        for j, size in ((1, c_in), (2, c_out)):
            weight = torch.randn(c_out, size, 3, 3, generator=generator) * (2 / (9 * size)) ** 0.5
            state[f"conv_block{i}.conv{j}.weight"] = weight
            state |= batch_norm_state(f"conv_block{i}.bn{j}", c_out, generator)
    state["fc1.weight"], state["fc1.bias"] = torch.randn(8, channels[-1], generator=generator), torch.zeros(8)
    state["fc_audioset.weight"], state["fc_audioset.bias"] = torch.randn(527, 8, generator=generator), torch.zeros(527)
    return state

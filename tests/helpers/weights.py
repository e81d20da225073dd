"""Weights in the layout of the published PANNs (arXiv 1912.10211), full of random numbers."""

import functools
import re

import torch
from speechbrain.lobes.models.Cnn14 import Cnn14, ConvBlock
from torchlibrosa.stft import LogmelFilterBank, Spectrogram

NARROW = (4, 8, 16, 32, 64, 128)  # a Cnn14, 256 times cheaper
RATE, HOP, F_MAX = {512: 16000, 1024: 32000}, {512: 160, 1024: 320}, {512: 8000, 1024: 14000}  # by window, samples


def extractors(window, f_min=50, n_mels=64):
    """The published front end for a window: Cnn14_16k's or Cnn14's."""
    limits = {"n_mels": n_mels, "fmin": f_min, "fmax": F_MAX[window], "ref": 1.0, "top_db": None}
    spectrogram = Spectrogram(n_fft=window, hop_length=HOP[window], win_length=window, window="hann", center=True)
    return spectrogram, LogmelFilterBank(sr=RATE[window], n_fft=window, **limits)


@functools.cache
def front_end_state(window, f_min=50, n_mels=64):
    """Its weights by their published names."""
    parts = zip(("spectrogram_extractor", "logmel_extractor"), extractors(window, f_min, n_mels), strict=True)
    return {f"{part}.{name}": tensor for part, module in parts for name, tensor in module.state_dict().items()}


def narrow_cnn14(n_mels=40, norm_type="bn"):
    """SpeechBrain's Cnn14 with narrower blocks."""
    model = Cnn14(mel_bins=n_mels, emb_dim=2048, norm_type=norm_type)
    for i, (c_in, c_out) in enumerate(zip((1, *NARROW), NARROW, strict=False), start=1):
        setattr(model, f"conv_block{i}", ConvBlock(c_in, c_out, norm_type))
    return model


def published_name(name):
    """norm0.weight -> bn0.weight, conv_block1.norm2.bias -> conv_block1.bn2.bias."""
    return re.sub(r"norm(?=\d\.)", "bn", name)


def pann_state(window, **front_end):
    """What is under "model" in a published file, by the names of the PANNs' code; nothing is at its initial value."""
    generator = torch.Generator().manual_seed(window)
    state = dict(front_end_state(window, **front_end))
    for name, initial in narrow_cnn14(64).state_dict().items():
        draw = torch.randn(initial.shape, generator=generator)
        if initial.dim() == 4:
            draw *= (2 / initial[0].numel()) ** 0.5
        elif name.endswith(("weight", "running_var")):
            draw = 0.5 + draw.abs()
        state[published_name(name)] = draw if initial.is_floating_point() else torch.tensor(600000)
    state |= {"bn0.running_mean": state["bn0.running_mean"] - 20, "bn0.running_var": 400 * state["bn0.running_var"]}
    return state | {"fc1.weight": torch.ones(8, 128), "fc_audioset.weight": torch.ones(527, 8)}

"""An encoder as an ONNX graph: waveform in, embedding and logits out. Legend: B sounds, S samples, T frames, F bands.

ONNX has no operator for every part, so three of them are replaced by equal ones: SpeechBrain's STFT by convolutions, as
torchlibrosa's is already; the mean normalisation of padded clips by that of whole ones; our form of the ECAPA-TDNN,
which looks at the number of frames as a number, by SpeechBrain's.
"""

import contextlib
import logging
import math
import os
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.processing.features import InputNormalization
from torch import nn

from utils.deploy.encoder import SoundEncoder
from utils.deploy.waveform import WaveformEncoder
from utils.io.errors import InputError

INPUT, OUTPUTS = "waveform", ("embedding", "logits")
EXAMPLE = (2, 1.0)  # sounds and seconds of the input that is traced; any others work


def check_onnx():
    """Raise InputError where a package is missing."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"--onnx needs {error.name}: pip install onnx onnxscript.") from error


def write_onnx(encoder: SoundEncoder, path: str | os.PathLike):
    """Write an encoder as ONNX: float32 [B, S] at its sample rate -> [B, D] and, with a probe, [B, C].

    Raises
    ------
    InputError
        A package is missing.
    """
    check_onnx()
    graph = WaveformEncoder(encoder, _replaced(encoder.embedder.modules)).cpu()
    sounds, seconds = EXAMPLE
    example = torch.linspace(-0.5, 0.5, sounds * round(seconds * encoder.sample_rate)).view(sounds, -1)
    outputs = OUTPUTS if encoder.probe is not None else OUTPUTS[:1]
    free = {INPUT: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    names = {"input_names": [INPUT], "output_names": list(outputs)}
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # of torch's exporter, on its own parts
        program = torch.onnx.export(graph, (example,), dynamo=True, dynamic_shapes=free, verbose=False, **names)
    model = program.model_proto
    _forget_sources(model)
    Path(path).write_bytes(model.SerializeToString())


def _forget_sources(model):
    """Remove from each node of a graph where it came from: the exporter notes paths of this machine there."""
    for graph in (model.graph, *model.functions):
        for part in (graph, *graph.node, *getattr(graph, "initializer", ()), *graph.value_info):
            del part.metadata_props[:]
            part.doc_string = ""
    del model.metadata_props[:]


@contextlib.contextmanager
def _quiet():
    """Keep the exporter from saying which operators of torchvision it lacks."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _replaced(modules):
    front_end, norm, encoder = (modules[name] for name in ("compute_features", "mean_var_norm", "embedding_model"))
    return {
        "compute_features": ConvolutionalFbank(front_end) if isinstance(front_end, Fbank) else front_end,
        "mean_var_norm": MeanOfFrames() if isinstance(norm, InputNormalization) else norm,
        "embedding_model": PlainECAPA(encoder) if isinstance(encoder, ECAPA_TDNN) else encoder,
    }


class ConvolutionalFbank(nn.Module):
    """SpeechBrain's `Fbank` with its STFT as one convolution: [B, S] -> [B, T, F] in dB."""

    def __init__(self, fbank: Fbank):
        super().__init__()
        stft, self.bank = fbank.compute_STFT, fbank.compute_fbanks
        size, self.hop, self.ends = stft.n_fft, stft.hop_length, stft.n_fft // 2
        before = (size - stft.win_length) // 2  # torch.stft puts a shorter window in the middle
        window = F.pad(stft.window.double().cpu(), (before, size - stft.win_length - before))
        steps, bins = (torch.arange(n, dtype=torch.float64) for n in (size, size // 2 + 1))
        angles = 2 * math.pi / size * torch.outer(bins, steps)
        waves = torch.cat([angles.cos(), angles.sin()]) * window  # [2 bins, samples]
        self.register_buffer("waves", waves.float().unsqueeze(1))

    def forward(self, wav):
        """Compute log-mel features, [B, S] -> [B, T, F]."""
        wav = F.pad(wav, (self.ends, self.ends)).unsqueeze(1)
        real, imaginary = F.conv1d(wav, self.waves, stride=self.hop).chunk(2, dim=1)
        return self.bank((real.square() + imaginary.square()).mT)


class MeanOfFrames(nn.Module):
    """SpeechBrain's sentence normalisation, without deviation, of clips that are not padded."""

    def forward(self, features, lengths):
        """Subtract each clip's mean, [B, T, F] -> the same."""
        del lengths
        return features - features.mean(dim=1, keepdim=True)


class PlainECAPA(nn.Module):
    """An ECAPA-TDNN in SpeechBrain's form, [B, T, F] -> [B, 1, D]."""

    def __init__(self, encoder: ECAPA_TDNN):
        super().__init__()
        self.encoder = encoder

    def forward(self, features, lengths):
        """Embed clips that are not padded."""
        del lengths
        return ECAPA_TDNN.forward(self.encoder, features)

"""Published weights as a starting point for the encoder, read from a local file; nothing here downloads.

Three layouts are known. PANNs (arXiv 1912.10211): the AudioSet files Cnn14_16k and Cnn14, whose front end says which
settings to train with. SpeechBrain: the plain state dict of its Cnn14 or ECAPA_TDNN, or of an encoder trained here,
which says nothing about settings. A folder that `python -m utils.export` wrote says all of its settings.
"""

import os
import re
from dataclasses import dataclass, field

import torch

from models.exported import is_export, read_export
from models.features import PANN_FRONT_ENDS, PANNFeatures
from models.pann import CNN14_CHANNELS
from utils.io.errors import InputError

STFT = "spectrogram_extractor.stft.conv_real.weight"  # [window / 2 + 1, 1, window]
PANNS = {512: ("PANN Cnn14_16k", "pann_16k"), 1024: ("PANN Cnn14", "pann_32k")}  # window in samples: kind, front end
NOT_ENCODER = ("spectrogram_extractor.", "logmel_extractor.", "fc1.", "fc_audioset.")
FRONT_END_TOLERANCE = 1e-3  # of the largest weight: versions of librosa differ by less, another frequency range by more


@dataclass(frozen=True)
class Pretrained:
    """Weights of an encoder, and the settings that they need."""

    path: str  # the file, or the folder of an export
    kind: str  # "PANN Cnn14_16k", "PANN Cnn14", "SpeechBrain" or "export"
    state: dict[str, torch.Tensor] = field(repr=False)  # by the names in the encoders of `models.encoders`; on the CPU
    settings: dict  # the configuration's keys and values that the weights were trained with


def read_pretrained(path: str) -> Pretrained:
    """Read a file of weights, running no code from it: a state dict, bare or under the key "model"; or an export.

    Of a PANN, `fc1` and `fc_audioset` are left out: the embedding here is the pooled output of the last block, before
    these layers. PANNs have no mean normalisation per clip: their first batch norm takes the features in dB.

    Raises
    ------
    InputError
        No such file, a damaged one, one that holds more than tensors, one of another layout, or a PANN with a front
        end that is neither of `models.features.PANN_FRONT_ENDS`; or a damaged export.
    """
    if is_export(path):
        exported = read_export(path)
        return Pretrained(path, "export", exported.part("embedding_model"), exported.settings)
    content = _load(path)
    state = content.get("model", content) if isinstance(content, dict) else None
    if isinstance(state, dict) and all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        for signature, build in LAYOUTS:
            if signature <= state.keys():
                return build(path, state)
    raise InputError(
        f"{path} is neither of a PANN (bn0.*, conv_block1.*, spectrogram_extractor.*, logmel_extractor.*) nor of "
        "SpeechBrain's Cnn14 (norm0.*, conv_block1.*) or ECAPA_TDNN (blocks.0.*, fc.*): give weights of one of these"
    )


def load_pretrained(pretrained: Pretrained | str, embedding_model: torch.nn.Module):
    """Put pretrained weights, or those of a file, into an encoder: all of them, or none if one doesn't fit.

    Raises
    ------
    InputError
        As `read_pretrained`; or a weight that only one side has, or that has another shape. The first is named.
    """
    if not isinstance(pretrained, Pretrained):
        pretrained = read_pretrained(pretrained)
    there, here = pretrained.state, embedding_model.state_dict()
    for name in {**here, **there}:
        shapes = [list(side[name].shape) if name in side else "missing" for side in (there, here)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{pretrained.path} does not fit the encoder ({name} is {shapes[0]} there, {shapes[1]} here): "
                "set encoder, emb_dim, n_mels and emb_norm_type to what it was trained with"
            )
    embedding_model.load_state_dict(there)


def _load(path):
    """Load a file of tensors and plain containers."""
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder, and none that utils.export wrote: give the file of weights in it")
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist: check the path")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint make the unpickler raise anything, KeyError included
        refused = re.search(r"\bGLOBAL (\S+)", str(error))  # torch names the object that it refuses to load
        if refused is None:
            kind = type(error).__name__
            raise InputError(f"{path} can't be read as weights ({kind}): it is damaged or no checkpoint") from error
        raise InputError(
            f"{path} holds other objects than tensors ({refused[1]}), and loading those can run code: if you trust it, "
            f"extract its weights: torch.save(torch.load({str(path)!r}, weights_only=False)['model'], 'weights.pth')"
        ) from error


def _from_pann(path, state):
    """Take the encoder's part of a published PANN, whose front end must be in `models.features.PANN_FRONT_ENDS`."""
    window = state[STFT].shape[-1]
    if window not in PANNS:
        known = " or ".join(f"{kind.split()[1]} ({size})" for size, (kind, _) in PANNS.items())
        raise InputError(f"{path} is a PANN with a window of {window} samples: use {known}")
    kind, front_end = PANNS[window]
    _check_front_end(path, state, front_end)
    last = [f"conv_block{i}.conv2.weight" for i in range(1, len(CNN14_CHANNELS) + 1)]
    lacking = [name for name in last if name not in state]
    if lacking:
        raise InputError(f"{path} is another PANN than Cnn14 (it has no {lacking[0]}): use Cnn14_16k or Cnn14")
    *channels, emb_dim = (len(state[name]) for name in last)
    settings = {"emb_dim": emb_dim, "emb_norm_type": "bn", "front_end": front_end, "mean_norm": False}
    settings |= {key: PANN_FRONT_ENDS[front_end][key] for key in ("n_mels", "sample_rate")}
    if tuple(channels) == CNN14_CHANNELS[:-1]:
        settings["encoder"] = "cnn14"
    kept = {_our_name(key): tensor for key, tensor in state.items() if not key.startswith(NOT_ENCODER)}
    return Pretrained(path, kind, kept, settings)


def _check_front_end(path, state, name):
    """Raise if a PANN was trained on other features than the front end `name` computes."""
    for key, ours in PANNFeatures(**PANN_FRONT_ENDS[name]).state_dict().items():
        theirs = state.get(key)
        fits = theirs is not None and theirs.shape == ours.shape
        if not fits or not torch.allclose(theirs.to(ours), ours, rtol=0, atol=FRONT_END_TOLERANCE * float(ours.max())):
            raise InputError(
                f"{path} was trained on other features than front_end {name} computes ({key} differs): "
                "use the published Cnn14_16k or Cnn14"
            )


def _our_name(key):
    """bn0.weight -> norm0.weight, conv_block1.bn2.bias -> conv_block1.norm2.bias."""
    return re.sub(r"(^|\.)bn(?=\d\.)", r"\1norm", key)


def _from_speechbrain(path, state):
    """Take names and shapes as they are; `load_pretrained` compares them with the encoder's."""
    return Pretrained(path, "SpeechBrain", dict(state), {})


LAYOUTS = (  # names that identify a layout, and its reader
    ({"bn0.weight", "conv_block1.conv1.weight", STFT, "logmel_extractor.melW"}, _from_pann),
    ({"norm0.weight", "conv_block1.conv1.weight"}, _from_speechbrain),
    ({"blocks.0.conv.conv.weight", "fc.conv.weight"}, _from_speechbrain),
)

"""What SpeechBrain needs to load an export: hyperparams.yaml, and a module for what SpeechBrain has no class of.

SpeechBrain looks for the file of a loadable NAME under NAME.ckpt, in whatever folder or repository it is given. So the
weights are there a second time as model.ckpt, which is model.safetensors under that name and is read as such.
"""

import inspect
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.inference.classifiers import EncoderClassifier

from datasets.audio import PEAK_LEVEL
from models import features, pann
from models.ecapa import ECAPA
from models.exported import WEIGHTS
from utils.deploy.encoder import SoundEncoder

YAML = "hyperparams.yaml"
MODULE = "sound_encoder.py"  # the same in all exports: Python imports one module of a name, whatever loads a second
HEADER = '''"""What SpeechBrain has no class of, for `speechbrain.inference.interfaces.foreign_class`."""

import contextlib

import torch
import torch.nn.functional as F
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.lobes.models.Cnn14 import ConvBlock, init_bn
from torch import nn

try:
    from torchlibrosa.stft import LogmelFilterBank, Spectrogram
except ImportError:  # only PANNFeatures needs it
    LogmelFilterBank = Spectrogram = None

PEAK_LEVEL = {level}
CNN14_CHANNELS = {channels}
'''
NORM = "!new:speechbrain.processing.features.InputNormalization {norm_type: sentence, std_norm: False}"
IDENTITY = "!new:speechbrain.nnet.containers.LengthsCapableSequential\n  - !new:torch.nn.Identity"


class ExportedEncoder(EncoderClassifier):
    """Embed and classify sounds, each scaled to the peak that sounds had in training."""

    def encode_batch(self, wavs, wav_lens=None, normalize=False):
        """Embed samples [B, S] or [S] at the model's sample rate: [B, 1, D]."""
        wavs = torch.atleast_2d(wavs)
        peak = wavs.abs().amax(dim=1, keepdim=True)
        return super().encode_batch(wavs * (PEAK_LEVEL / torch.where(peak > 0, peak, 1.0)), wav_lens, normalize)

    def encode_file(self, path):
        """Embed a file of any sample rate: [1, 1, D]."""
        return self.encode_batch(self.load_audio(path))


class Needed(NamedTuple):
    """What SpeechBrain needs to load an export."""

    module: bool  # sound_encoder.py: it has no class of its own for the encoder or the front end
    packages: tuple[str, ...]


def write_loader(folder: Path, encoder: SoundEncoder, config: dict) -> bool:
    """Write what SpeechBrain needs beside `WEIGHTS`; return False for an encoder of another kind than ours.

    Parameters
    ----------
    folder
    encoder
    config
        As config.json has it.
    """
    modules = encoder.embedder.modules
    network = modules["embedding_model"]
    if type(network) not in (pann.PANN, ECAPA):  # a subclass may compute something else
        return False
    (folder / MODULE).write_text(_module(), encoding="utf-8")
    (folder / YAML).write_text(_yaml(network, config, encoder.probe), encoding="utf-8")
    try:
        os.link(folder / WEIGHTS, folder / "model.ckpt")
    except OSError:  # a disk without hard links
        shutil.copy2(folder / WEIGHTS, folder / "model.ckpt")
    if encoder.probe is not None:
        labels = CategoricalEncoder()
        labels.update_from_iterable(encoder.probe.classes)
        labels.save(folder / "label_encoder.ckpt")
    return True


def needed(encoder: SoundEncoder) -> Needed:
    """Say what SpeechBrain needs to load an encoder."""
    network, front_end = (encoder.embedder.modules[name] for name in ("embedding_model", "compute_features"))
    features_too = isinstance(front_end, features.PANNFeatures)
    module = features_too or isinstance(network, pann.PANN) and not _is_cnn14(network)
    return Needed(module, ("speechbrain", "safetensors", *(["torchlibrosa"] if features_too else [])))


def _module():
    """Write the module from the sources of the classes in it."""
    parts = (ExportedEncoder, pann.PANN, pann._input_norm, features.PANNFeatures, features._exact_convolution)
    header = HEADER.format(level=PEAK_LEVEL, channels=pann.CNN14_CHANNELS)
    return header + "".join(f"\n\n{inspect.getsource(part).rstrip()}\n" for part in parts)


def _channels(network):
    return [getattr(network, f"conv_block{i}").conv2.out_channels for i in range(1, network.n_blocks + 1)]


def _is_cnn14(network):
    return tuple(_channels(network)[:-1]) == pann.CNN14_CHANNELS[:-1]


def _yaml(network, config, probe):
    """Write hyperparams.yaml: front end, encoder, classifier, and where their weights come from."""
    encoder, front_end, rate = config["encoder"], config["front_end"], config["sample_rate"]
    parts = [
        f"# {encoder['name']}, see README.md. Loading this file builds what it names: read a stranger's first.",
        f"sample_rate: {rate}  # Hz",
        "audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer "
        f"{{sample_rate: {rate}, mix: avg-to-mono}}",
        f"compute_features: {_front_end(front_end, rate, encoder['n_mels'])}",
        f"mean_var_norm: {NORM if front_end['mean_norm'] else IDENTITY}",
        *_network(network, encoder),
    ]
    modules = {name: f"!ref <{name}>" for name in ("compute_features", "mean_var_norm", "embedding_model")}
    saved, loadables = {"embedding_model": "!ref <network>"}, {"model": "!ref <model>"}
    if probe is not None:
        parts += [
            f"linear: !new:torch.nn.Linear {{in_features: {encoder['emb_dim']}, out_features: {len(probe.classes)}}}",
            "classifier: !new:torch.nn.Sequential",
            "  - !ref <linear>",
            "  - !new:torch.nn.LogSoftmax {dim: -1}",
            "label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder",
        ]
        modules["classifier"], saved["classifier"] = "!ref <classifier>", "!ref <linear>"
        loadables["label_encoder"] = "!ref <label_encoder>"
    parts += [
        f"model: !new:torch.nn.ModuleDict {{modules: {_flow(saved)}}}",
        f"modules: {_flow(modules)}",
        "pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer",
        f"  loadables: {_flow(loadables)}",
        "  custom_hooks:  # model.ckpt is model.safetensors, no pickle",
        "    model: !name:safetensors.torch.load_model",
    ]
    return "\n".join(parts) + "\n"


def _flow(mapping):
    return "{" + ", ".join(f"{key}: {value}" for key, value in mapping.items()) + "}"


def _front_end(front_end, sample_rate, n_mels):
    if front_end["fbank"]:
        numbers = {"sample_rate": sample_rate, "n_mels": n_mels, **front_end["fbank"]}
        return f"!new:speechbrain.lobes.features.Fbank {_flow(numbers)}"
    return f"!new:sound_encoder.PANNFeatures {_flow(features.PANN_FRONT_ENDS[front_end['name']])}"


def _network(network, encoder):
    """Return the lines of `network`, the encoder, and of `embedding_model`, which takes lengths too."""
    if isinstance(network, ECAPA):
        first, last = network.blocks[0].conv.conv.out_channels, network.mfa.conv.conv.out_channels
        numbers = {"input_size": encoder["n_mels"], "lin_neurons": encoder["emb_dim"], "attention_channels": 128,
                   "channels": [first] * 4 + [last], "kernel_sizes": [5, 3, 3, 3, 1],
                   "dilations": [1, 2, 3, 4, 1]}  # fmt: skip
        name = "speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN"
    elif _is_cnn14(network):
        name = "speechbrain.lobes.models.Cnn14.Cnn14"
        numbers = {"mel_bins": encoder["n_mels"], "emb_dim": encoder["emb_dim"], "norm_type": encoder["norm_type"]}
    else:
        name = "sound_encoder.PANN"
        numbers = {"n_mels": encoder["n_mels"], "channels": _channels(network), "norm_type": encoder["norm_type"]}
    with_lengths = "!new:speechbrain.nnet.containers.LengthsCapableSequential [!ref <network>]"
    return [f"network: !new:{name} {_flow(numbers)}", f"embedding_model: {with_lengths}"]

"""The encoders by name, as the YAML key ``encoder`` chooses them.

To add one, add a line to `ENCODERS`: a function of (n_mels, emb_dim, norm_type) that returns a module which maps
features [B, T, F] and relative lengths [B] to embeddings [B, 1, D].
"""

import os

from torch import nn

from models.ecapa import ECAPA
from models.pann import CNN14_CHANNELS, PANN
from models.pretrained import load_pretrained


def _pann(*channels):
    return lambda n_mels, emb_dim, norm_type: PANN(n_mels, (*channels, emb_dim), norm_type)


def _ecapa(channels, last):
    """Make a builder that ignores `norm_type`: ECAPA-TDNN's batch norms are part of the architecture."""
    return lambda n_mels, emb_dim, norm_type: ECAPA(n_mels, emb_dim, channels, last)


ENCODERS = {
    "cnn14": _pann(*CNN14_CHANNELS[:-1]),  # 75 M weights at emb_dim 2048
    "pann_short": _pann(32, 64, 128),
    "pann_small": _pann(16, 32, 64, 128),
    "pann_tiny": _pann(8, 16, 32, 64),
    "ecapa": _ecapa(1024, 3072),
    "ecapa_small": _ecapa(256, 768),
    "ecapa_tiny": _ecapa(128, 384),
}


def make_encoder(
    name: str, n_mels: int = 80, emb_dim: int = 2048, norm_type: str = "bn", weights: str | None = None
) -> nn.Module:
    """Build an encoder with random weights, or with those of a file.

    Parameters
    ----------
    name
        A key of `ENCODERS`.
    n_mels
        F, mel bands of the features.
    emb_dim
        D, features of the embedding.
    norm_type
        Norm of the PANN blocks: "bn", "in" or "ln".
    weights
        A file of weights to start from, see `models.pretrained`.

    Returns
    -------
    torch.nn.Module
        ([B, T, F], [B]) -> [B, 1, D].

    Raises
    ------
    ValueError
        Unknown name or norm; the text lists the known ones.
    InputError
        A file of weights that can't be used.
    """
    if name not in ENCODERS:
        raise ValueError(f"Unknown encoder {name!r}: choose one of {', '.join(ENCODERS)}.")
    encoder = ENCODERS[name](n_mels, emb_dim, norm_type)
    encoder._name = name  # private: public attributes enter the digest by which embeddings are kept
    if weights:
        load_pretrained(os.path.expanduser(weights), encoder)
    return encoder


def encoder_name(encoder: nn.Module) -> str:
    """Name an encoder for tables and figures: as in `ENCODERS`, else by its architecture, such as "PANN 16-32-64"."""
    if hasattr(encoder, "_name"):
        return encoder._name
    if isinstance(encoder, PANN):
        blocks = (getattr(encoder, f"conv_block{i}") for i in range(1, encoder.n_blocks + 1))
        return f"PANN {'-'.join(str(block.conv2.out_channels) for block in blocks)}"
    return type(encoder).__name__

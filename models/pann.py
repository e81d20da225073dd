"""PANN encoders of any size, made of SpeechBrain's ConvBlock.

With channels 64, 128, 256, 512, 1024, 2048 this is Cnn14 (PANNs, arXiv 1912.10211), with the weights and outputs of
`speechbrain.lobes.models.Cnn14.Cnn14`. With fewer or narrower blocks it trains on a laptop.
Legend: B clips, T frames, F mel bands, D embedding features.
"""

import torch
import torch.nn.functional as F
from speechbrain.lobes.models.Cnn14 import ConvBlock, init_bn
from torch import nn

CNN14_CHANNELS = (64, 128, 256, 512, 1024, 2048)


class PANN(nn.Module):
    """A stack of PANN convolution blocks, then the mean over frequency and the max plus the mean over time.

    Parameters
    ----------
    n_mels : int
        F, mel bands of the input.
    channels : sequence of int
        Output channels of each block; the last is D. Every block but the last halves time and frequency.
    norm_type : str
        "bn", "in" or "ln", as in SpeechBrain's ConvBlock.
    dropout : float
        Rate after every block (0.2 in PANNs, section III).

    Raises
    ------
    ValueError
        Unknown norm, or too few mel bands for so many blocks.
    """

    def __init__(self, n_mels, channels=CNN14_CHANNELS, norm_type="bn", dropout=0.2):
        super().__init__()
        if n_mels < 2 ** (len(channels) - 1):
            raise ValueError(f"{len(channels)} blocks halve {n_mels} mel bands to nothing: use fewer channels.")
        self.norm0 = _input_norm(norm_type, n_mels)
        self.n_blocks = len(channels)
        for i, (c_in, c_out) in enumerate(zip((1, *channels), channels, strict=False), start=1):
            setattr(self, f"conv_block{i}", ConvBlock(c_in, c_out, norm_type))  # SpeechBrain's names: its weights load
        self.dropout = dropout
        # With channels-last weights a training step on a CPU is 1.1 to 1.4 times as fast (fp32, bf16, AVX2, AVX512).
        self.to(memory_format=torch.channels_last)

    def forward(self, features, lengths=None):
        """Embed log-mel features.

        Parameters
        ----------
        features : torch.Tensor
            [B, T, F]; fewer than 2 ** (blocks - 1) frames are padded, after the norm, with zeros.
        lengths : torch.Tensor, optional
            [B] relative lengths. Not used: all encoders have the same arguments.

        Returns
        -------
        torch.Tensor
            [B, 1, D].
        """
        x = self.frames(features, lengths).mT  # [B, D, T']
        return (x.amax(dim=2) + x.mean(dim=2)).unsqueeze(1)  # [B, 1, D]

    def frames(self, features, lengths=None):
        """Embed log-mel features [B, T, F] frame by frame, before they are pooled over time: [B, T', D]."""
        del lengths
        x = features.unsqueeze(1)  # [B, 1, T, F]
        x = self.norm0(x.transpose(1, 3)).transpose(1, 3)  # one norm per mel band
        x = F.pad(x, (0, 0, 0, max(0, 2 ** (self.n_blocks - 1) - x.shape[2])))
        for i in range(1, self.n_blocks + 1):
            pool = (2, 2) if i < self.n_blocks else (1, 1)
            x = getattr(self, f"conv_block{i}")(x, pool)  # [B, C_i, T/2^i, F/2^i]
            x = F.dropout(x, self.dropout, self.training)
        return x.mean(dim=3).mT  # [B, T', D]


def _input_norm(norm_type, n_mels):
    """Build Cnn14's first layer, a norm of each mel band: [B, F, T, 1] -> the same."""
    norms = {
        "bn": lambda: nn.BatchNorm2d(n_mels),
        "in": lambda: nn.InstanceNorm2d(n_mels, affine=True, track_running_stats=True),
        "ln": lambda: nn.GroupNorm(1, n_mels),
    }
    if norm_type not in norms:
        raise ValueError(f"Unknown norm type {norm_type!r} of the encoder: choose one of {', '.join(norms)}.")
    norm = norms[norm_type]()
    init_bn(norm)
    return norm

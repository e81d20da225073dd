"""The ECAPA-TDNN encoder (arXiv 2005.07143), with SpeechBrain's weights and names and, to rounding, its results.

SpeechBrain's works on [B, C, T] and pads at each of its 40 convolutions, also where they are one frame wide. Here
frames are the rows of matrices: a convolution is one matrix product, a batch norm runs over rows, and the attention's
context, which is the same for all frames of a clip, is multiplied once a clip. With SpeechBrain's form a training step
takes 1.3 times as long on a CPU, in fp32 on AVX2 as in bf16.
Legend: B clips, T frames, F mel bands, C channels, D embedding features.
"""

import torch
import torch.nn.functional as F
from speechbrain.dataio.dataio import length_to_mask
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN


class ECAPA(ECAPA_TDNN):
    """ECAPA-TDNN of any width.

    Parameters
    ----------
    n_mels : int
        F, mel bands of the input.
    emb_dim : int
        D, features of the embedding.
    channels, last : int
        C of the blocks, and of the layer that joins them.
    """

    def __init__(self, n_mels, emb_dim, channels, last):
        super().__init__(
            n_mels,
            lin_neurons=emb_dim,
            channels=[channels] * 4 + [last],
            kernel_sizes=[5, 3, 3, 3, 1],
            dilations=[1, 2, 3, 4, 1],
            attention_channels=128,
        )

    def forward(self, features, lengths=None):
        """Embed log-mel features.

        Parameters
        ----------
        features : torch.Tensor
            [B, T, F], T of 5 or more, because the ends are reflected.
        lengths : torch.Tensor, optional
            [B] relative lengths. Squeeze and attention leave out the frames after them.

        Returns
        -------
        torch.Tensor
            [B, 1, D].

        Raises
        ------
        ValueError
            Too few frames.
        """
        x, mask = self._frames(features, lengths)
        x = self.asp_bn.norm(_attentive_statistics(self.asp, x, mask))  # [B, 2 last]
        return _linear(self.fc, x).unsqueeze(1)

    def frames(self, features, lengths=None):
        """Embed log-mel features [B, T, F] frame by frame, before their statistics are taken: [B, T, last]."""
        return self._frames(features, lengths)[0]

    def _frames(self, features, lengths):
        """Compute the frames, [B, T, last], and which of them count, booleans [B, T, 1]."""
        n_frames = features.shape[1]
        if lengths is None:
            lengths = torch.ones(len(features), device=features.device)
        mask = length_to_mask(lengths * n_frames, n_frames, torch.bool, features.device)
        mask = mask.unsqueeze(2)  # [B, T, 1]
        first, *blocks = self.blocks
        x, outputs = _tdnn(first, features), []
        for block in blocks:
            x = _se_res2net(block, x, mask)
            outputs.append(x)
        return _tdnn(self.mfa, torch.cat(outputs, dim=2)), mask  # [B, T, last]


def _linear(convolution, x):
    """Apply a convolution that is one frame wide: [..., C_in] -> [..., C_out]."""
    return F.linear(x, convolution.conv.weight.squeeze(2), convolution.conv.bias)


def _convolve(convolution, x):
    """Apply a convolution with reflected ends as one matrix product: [B, T, C_in] -> [B, T, C_out]."""
    if convolution.kernel_size == 1:
        return _linear(convolution, x)
    width, step, n_frames = convolution.kernel_size, convolution.dilation, x.shape[1]
    ends = step * (width - 1) // 2
    if n_frames <= ends:
        raise ValueError(
            f"A clip of {n_frames} frames is too short for an ECAPA-TDNN: {ends} are reflected at each end."
        )
    x = torch.cat([x[:, 1 : ends + 1].flip(1), x, x[:, -ends - 1 : -1].flip(1)], dim=1)
    x = torch.cat([x[:, i * step : i * step + n_frames] for i in range(width)], dim=2)  # [B, T, width C_in]
    return F.linear(x, convolution.conv.weight.transpose(1, 2).flatten(1), convolution.conv.bias)


def _norm(norm, x):
    """Apply a batch norm over clips and frames: [B, T, C] -> the same."""
    return norm.norm(x.flatten(0, 1)).view_as(x)


def _tdnn(block, x):
    """Apply SpeechBrain's TDNNBlock: [B, T, C_in] -> [B, T, C_out]."""
    return _norm(block.norm, F.relu(_convolve(block.conv, x)))


def _se_res2net(block, x, mask):
    """Apply SpeechBrain's SERes2NetBlock: [B, T, C] -> the same."""
    residual, res2net, squeeze = x, block.res2net_block, block.se_block
    same, *rest = _tdnn(block.tdnn1, x).chunk(res2net.scale, dim=2)
    outputs = [same]
    for inner, part in zip(res2net.blocks, rest, strict=True):
        outputs.append(_tdnn(inner, part if inner is res2net.blocks[0] else part + outputs[-1]))
    x = _tdnn(block.tdnn2, torch.cat(outputs, dim=2))
    mean = _mean(x, mask)
    gate = torch.sigmoid(_linear(squeeze.conv2, F.relu(_linear(squeeze.conv1, mean))))
    return torch.addcmul(residual, x, gate.unsqueeze(1))


def _mean(x, mask):
    """Average the frames that are not masked: [B, T, C], [B, T, 1] -> [B, C]."""
    scale = 2.0 ** x.shape[1].bit_length()  # in half precision a sum would overflow; powers of 2 don't round
    count = mask.sum(dim=1, dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.bmm((mask / scale).mT.to(x.dtype), x).squeeze(1) * (scale / count)


def _attentive_statistics(pooling, x, mask):
    """Apply SpeechBrain's AttentiveStatisticsPooling with global context: [B, T, C], [B, T, 1] -> [B, 2 C]."""
    even = x.new_zeros(*mask.shape)
    context = _statistics(x, even, mask, pooling.eps)  # [B, 2 C]
    weight, channels = pooling.tdnn.conv.conv.weight.squeeze(2), x.shape[2]  # [A, C of the frame + 2 C of its context]
    of_clip = F.linear(context, weight[:, channels:], pooling.tdnn.conv.conv.bias).unsqueeze(1)
    attention = _norm(pooling.tdnn.norm, F.relu(F.linear(x, weight[:, :channels]) + of_clip))
    return _statistics(x, _linear(pooling.conv, torch.tanh(attention)), mask, pooling.eps)


def _statistics(x, logits, mask, eps):
    """Compute the softmax-weighted mean and deviation over frames, in single precision or better.

    [B, T, C], [B, T, C or 1], booleans [B, T, 1] -> [B, 2 C]
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    weight = logits.to(x.dtype).masked_fill(~mask, float("-inf")).softmax(dim=1)
    mean = (weight * x).sum(dim=1, keepdim=True)
    centred = x - mean
    variance = (weight * centred * centred).sum(dim=1)
    return torch.cat([mean.squeeze(1), variance.clamp(min=eps).sqrt()], dim=1)

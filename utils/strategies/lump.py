"""LUMP: learn from mixtures of new and kept clips (Madaan et al., ICLR 2022, arXiv 2110.06976).

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --strategy=lump --replay_num_keep=20 --experiment_name=lump

A step costs as much as without. Legend: B clips, M clips of the memory batch, S samples, C classes.
"""

import numpy as np
import torch
import torch.nn.functional as F
from speechbrain.dataio.batch import PaddedData

from models.losses import is_contrastive
from utils.io.errors import InputError
from utils.strategies.base import Strategy


def mix(own, memory, share):
    """Mix padded sounds: share * own + (1 - share) * memory.

    Each row j of `own` is mixed with row j * M // B of `memory`. So the rows of a smaller memory are taken several
    times, of a larger one some are left out, and the slices of several processes make the pairs of the joint batch.

    Parameters
    ----------
    own, memory : PaddedData
        Sounds [B, S], [M, S'] and their lengths relative to S and S', [B], [M].
    share : float

    Returns
    -------
    PaddedData
        [B, max(S, S')]; a mixture is as long as the longer of its two sounds.
    """
    places = torch.arange(len(own.data), device=own.data.device) * len(memory.data) // len(own.data)
    data, lengths = memory.data[places], memory.lengths[places]
    most = max(own.data.shape[1], data.shape[1])
    padded = [F.pad(sound, (0, most - sound.shape[1])) for sound in (own.data, data)]
    samples = torch.maximum(own.lengths * own.data.shape[1], lengths * data.shape[1])
    return PaddedData(share * padded[0] + (1 - share) * padded[1], samples / most)


class LUMP(Strategy):
    """All views of a batch are mixed with those of the memory batch (section 4.3), as waveforms.

    One share is drawn per batch from Beta(lump_alpha, lump_alpha), by (seed, task, epoch, step), and is that of both
    views, so a positive pair is two views of one mixture. Label probabilities are mixed alike.

    Parameters
    ----------
    lump_alpha : float
    """

    uses_memory = True
    embeds_memory = False

    def __init__(self, lump_alpha=0.4):
        super().__init__()
        self.alpha = lump_alpha

    def check(self, hparams):
        if hparams.get("sup_weight", 1.0) and is_contrastive(hparams.get("sup_loss")):
            raise InputError("strategy lump blends classes, and sup_loss compares clips by class: use cross_entropy.")

    def inputs(self, brain, batch):
        task, memory = brain.task, batch.memory
        # Not the key by which the memory's clips are drawn, which is without the last two numbers.
        rng = np.random.default_rng([task.seed, task.index, task.counter.current, brain.step, 0, 1])
        share = float(rng.beta(self.alpha, self.alpha))
        for name in [f"view{i + 1}" for i in range(brain.n_views)]:
            setattr(batch, name, mix(getattr(batch, name), getattr(memory, name), share))
        batch.label_probs = mix(batch.label_probs, memory.label_probs, share)  # [B, C], none of them padded
        return batch

"""From waveform to the encoder's input: augmentation of log-mel features. Legend: B clips, T frames, F mel bands.

The log-mel features are SpeechBrain's `Fbank` and the mean normalisation its `InputNormalization`; the YAML names
both. What stands here joins SpeechBrain's augmentations in the paper's order.
"""

from speechbrain.augment.freq_domain import RandomShift, SpectrogramDrop, Warping
from torch import nn


class SpecAugment(nn.Module):
    """Time warp, frequency masks and time masks (SpecAugment, arXiv 1904.08779), optionally a roll and a shift.

    Masks are filled with zero, and come before the mean normalisation, so a masked cell is 0 dB. All draws come from
    torch's generator: seed that, and the views are the same again.

    Parameters
    ----------
    time_warp : int
        Window of the time warp in frames; 0 switches it off.
    freq_mask : int
        Widest frequency mask in mel bands; each width is drawn from 0 to this.
    n_freq_masks : int
        Frequency masks per clip.
    time_mask : int
        Longest time mask in frames; each length is drawn from 0 to this.
    n_time_masks : int
        Time masks per clip.
    time_roll : int
        Longest circular roll in time, frames; 0 switches it off.
    freq_shift : int
        Largest circular shift up or down in mel bands; 0 switches it off.
    """

    def __init__(
        self, time_warp=8, freq_mask=10, n_freq_masks=2, time_mask=10, n_time_masks=2, time_roll=0, freq_shift=0
    ):
        super().__init__()
        steps = []
        if time_roll:
            steps.append(_Shift(0, time_roll, dim=1))
        if freq_shift:
            steps.append(_Shift(-freq_shift, freq_shift, dim=2))
        if time_warp:
            steps.append(Warping(time_warp))
        for dim, width, count in ((2, freq_mask, n_freq_masks), (1, time_mask, n_time_masks)):
            if width and count:  # SpeechBrain draws below drop_length_high: + 1 includes the width itself
                steps.append(SpectrogramDrop(0, width + 1, count, count, replace="zeros", dim=dim))
        self.steps = nn.Sequential(*steps)

    def forward(self, features):
        """Augment features [B, T, F] -> [B, T, F]; the input may be overwritten."""
        return self.steps(features)


class _Shift(RandomShift):
    """RandomShift without the lengths, which a circular shift leaves as they are."""

    def forward(self, features):
        return super().forward(features, features.new_ones(len(features)))[0]

"""From waveform to the encoder's input: front ends by name, and augmentation of log-mel features.

Legend: B clips, S samples, T frames, F mel bands. A front end is SpeechBrain's `Fbank` with the YAML's settings, or
torchlibrosa's log-mel with those of the published PANNs. To add one, add a line to `FRONT_ENDS`. The mean normalisation
is SpeechBrain's `InputNormalization`. `SpecAugment` applies SpeechBrain's augmentations in the paper's order.
"""

import contextlib

import torch
import torch.nn.functional as F
from speechbrain.augment.freq_domain import Warping
from speechbrain.lobes.features import Fbank
from speechbrain.processing.features import Filterbank, InputNormalization
from torch import nn
from torchlibrosa.stft import LogmelFilterBank, Spectrogram


class PANNFeatures(nn.Module):
    """Log-mel features as the published PANNs take them (arXiv 1912.10211, section III), in dB of power 1.

    Hann window, centred frames with reflected ends, Slaney's mel scale, floor at -100 dB. No part of it is trained. It
    computes in full single precision, also under autocast and on GPUs with TF32: with fewer digits, a loud tone hides
    the quiet bands beside it. Its parts are named as in the published files.

    Parameters
    ----------
    sample_rate : int
        Hz.
    window, hop : int
        Samples.
    n_mels : int
        F, mel bands.
    f_min, f_max : float
        Hz, lower edge of the first band and upper edge of the last.
    """

    def __init__(self, sample_rate, window, hop, n_mels, f_min, f_max):
        super().__init__()
        self.sample_rate, self.window, self.hop = sample_rate, window, hop
        self.n_mels, self.f_min, self.f_max = n_mels, f_min, f_max
        self.spectrogram_extractor = Spectrogram(
            n_fft=window,
            hop_length=hop,
            win_length=window,
            window="hann",
            center=True,
            pad_mode="reflect",
            freeze_parameters=True,
        )
        self.logmel_extractor = LogmelFilterBank(
            sr=sample_rate,
            n_fft=window,
            n_mels=n_mels,
            fmin=f_min,
            fmax=f_max,
            ref=1.0,
            amin=1e-10,
            top_db=None,
            freeze_parameters=True,
        )

    def forward(self, wav):
        """Compute log-mel features.

        Parameters
        ----------
        wav : torch.Tensor
            [B, S]; a clip that is too short for its ends to be reflected is padded with silence.

        Returns
        -------
        torch.Tensor
            [B, T, F] in dB, float32; T = 1 + S // hop.
        """
        shortest = self.window // 2 + 1  # half a window is reflected about the first and the last sample
        with torch.autocast(wav.device.type, enabled=False), _exact_convolution():
            wav = F.pad(wav.float(), (0, max(0, shortest - wav.shape[1])))
            power = self.spectrogram_extractor(wav)  # [B, 1, T, window / 2 + 1]
            return self.logmel_extractor(power).squeeze(1)  # [B, T, F]


@contextlib.contextmanager
def _exact_convolution():
    """Switch off TF32 on a GPU: it changes bands that are 80 dB below another by several dB."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


PANN_FRONT_ENDS = {  # of the two published Cnn14: samples and Hz
    "pann_16k": {"sample_rate": 16000, "window": 512, "hop": 160, "n_mels": 64, "f_min": 50, "f_max": 8000},
    "pann_32k": {"sample_rate": 32000, "window": 1024, "hop": 320, "n_mels": 64, "f_min": 50, "f_max": 14000},
}


def _fbank(fbank, sample_rate, n_mels):
    """Build SpeechBrain's front end, as the YAML describes it, with its window and filters as buffers.

    As plain tensors they stay on the CPU, and each call copies them to the GPU, which waits for both copies.
    """
    del sample_rate, n_mels
    front_end = fbank()
    for module in list(front_end.modules()):
        tables = {name: value for name, value in vars(module).items() if isinstance(value, torch.Tensor)}
        for name, table in tables.items():
            delattr(module, name)
            module.register_buffer(name, table, persistent=False)
        if isinstance(module, Filterbank):
            module.register_forward_pre_hook(_filters_where_their_input_is)
    return front_end


def _filters_where_their_input_is(module, inputs):
    module.device_inp = inputs[0].device


def _pann(name):
    """Make a builder of a published front end, which has one sample rate and one number of mel bands."""

    def build(fbank, sample_rate, n_mels):
        del fbank
        own = PANN_FRONT_ENDS[name]
        if sample_rate != own["sample_rate"]:
            rate = own["sample_rate"]
            raise ValueError(f"front_end {name} works at {rate} Hz: set sample_rate to {rate}")
        if n_mels != own["n_mels"]:
            raise ValueError(f"front_end {name} has {own['n_mels']} mel bands: set n_mels to {own['n_mels']}")
        return PANNFeatures(**own)

    return build


FRONT_ENDS = {"fbank": _fbank, **{name: _pann(name) for name in PANN_FRONT_ENDS}}


def make_front_end(name, fbank, sample_rate, n_mels):
    """Build the front end, which turns waveforms into log-mel features.

    Parameters
    ----------
    name : str
        A key of `FRONT_ENDS`: "fbank"; "pann_16k" or "pann_32k" for weights of an AudioSet-pretrained PANN.
    fbank : callable
        Builds the front end "fbank"; not called for the others.
    sample_rate : int
        Hz of the waveforms.
    n_mels : int
        F, mel bands that the encoder takes.

    Returns
    -------
    torch.nn.Module
        [B, S] -> [B, T, F] in dB.

    Raises
    ------
    ValueError
        Unknown name (the text lists the known ones), or a rate or number of bands that the front end can't have.
    """
    if name not in FRONT_ENDS:
        raise ValueError(f"Unknown front_end {name!r}: choose one of {', '.join(FRONT_ENDS)}.")
    return FRONT_ENDS[name](fbank, sample_rate, n_mels)


def describe_fbank(front_end):
    """Return the arguments that a front end "fbank" was built with, to build an equal one; empty for another front end.

    Windows and hops are in milliseconds, edges of the mel bands in Hz. Deltas and context windows are not described.
    """
    if not isinstance(front_end, Fbank):
        return {}
    stft, bank = front_end.compute_STFT, front_end.compute_fbanks
    lengths = {f"{name}_length": 1000 * getattr(stft, f"{name}_length") / stft.sample_rate for name in ("win", "hop")}
    return {"n_fft": stft.n_fft, **lengths, "f_min": bank.f_min, "f_max": bank.f_max, "filter_shape": bank.filter_shape}


class NoNormalisation(nn.Module):
    """The identity, in place of the mean normalisation."""

    def forward(self, features, lengths):
        """Return the features [B, T, F]."""
        del lengths
        return features


def make_mean_norm(mean_norm):
    """Build SpeechBrain's mean normalisation of each clip and mel band, or the identity.

    Parameters
    ----------
    mean_norm : bool
        False for AudioSet-pretrained PANNs, whose first layer normalises.

    Returns
    -------
    torch.nn.Module
        ([B, T, F], [B]) -> [B, T, F].
    """
    return InputNormalization(norm_type="sentence", std_norm=False) if mean_norm else NoNormalisation()


class SpecAugment(nn.Module):
    """Time warp, frequency masks and time masks (SpecAugment, arXiv 1904.08779), optionally a roll and a shift.

    Masks come before the mean normalisation, so zeros are 0 dB, far above a quiet clip. All draws come from torch's
    generator.

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
    mask_fill : str
        Value of the masks: "zeros" (0 dB), or "mean" (of the whole batch).
    time_roll : int
        Longest circular roll in time, frames; 0 switches it off.
    freq_shift : int
        Largest circular shift up or down in mel bands; 0 switches it off.
    """

    def __init__(
        self,
        time_warp=8,
        freq_mask=10,
        n_freq_masks=2,
        time_mask=10,
        n_time_masks=2,
        mask_fill="zeros",
        time_roll=0,
        freq_shift=0,
    ):
        super().__init__()
        if mask_fill not in ("zeros", "mean"):
            raise ValueError(f"mask_fill is {mask_fill!r}: choose zeros or mean.")
        steps = []
        if time_roll:
            steps.append(_Shift(0, time_roll, dim=1))
        if freq_shift:
            steps.append(_Shift(-freq_shift, freq_shift, dim=2))
        if time_warp:
            steps.append(Warping(time_warp))
        for dim, width, count in ((2, freq_mask, n_freq_masks), (1, time_mask, n_time_masks)):
            if width and count:
                steps.append(_Masks(width, count, mask_fill, dim))
        self.steps = nn.Sequential(*steps)

    def forward(self, features):
        """Augment features, [B, T, F] -> the same; may overwrite them."""
        return self.steps(features)


class _Shift(nn.Module):
    """Roll the whole batch along one axis, [B, T, F] -> the same.

    SpeechBrain's RandomShift draws on the GPU and waits for it; this draws on the CPU, as SpeechBrain's time warp does.

    Parameters
    ----------
    least, most : int
        Bounds of the shift.
    dim : int
        1 rolls frames, 2 mel bands.
    """

    def __init__(self, least, most, dim):
        super().__init__()
        self.least, self.most, self.dim = least, most, dim

    def forward(self, features):
        return torch.roll(features, int(torch.randint(self.least, self.most + 1, (1,))), self.dim)


class _Masks(nn.Module):
    """Mask frames or mel bands as SpeechBrain's SpectrogramDrop does, with the same draws.

    SpectrogramDrop waits for a GPU three times a call; this never does.

    Parameters
    ----------
    width, count : int
        Masks of each clip; their widths are drawn from 0 to `width`.
    fill : str
        "zeros" or "mean".
    dim : int
        1 masks frames, 2 mel bands.
    """

    def __init__(self, width, count, fill, dim):
        super().__init__()
        self.width, self.count, self.fill, self.dim = width, count, fill, dim

    def forward(self, features):
        """Mask features, [B, T, F] -> the same; may overwrite them."""
        size, device = features.shape[self.dim], features.device
        torch.randint(1, (1,), device=device)  # SpectrogramDrop draws the number of masks here
        widths = torch.randint(self.width + 1, (len(features), self.count), device=device).unsqueeze(2)
        starts = torch.randint(size, (len(features), self.count), device=device).unsqueeze(2)  # [B, count, 1]
        places = torch.arange(size, device=device)
        masked = ((starts <= places) & (places < starts + widths)).any(dim=1)  # [B, T or F]
        masked = masked.unsqueeze(3 - self.dim)
        if self.fill == "mean":  # masked_fill_ would wait for the mean
            return torch.where(masked, features.mean().detach(), features)
        return features.masked_fill_(masked, 0.0)

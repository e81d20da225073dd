"""The front ends: log-mel values against librosa's, and their choice by name."""

from functools import partial

import librosa
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import chirp
from speechbrain.lobes.features import Fbank

from models.features import FRONT_ENDS, PANN_FRONT_ENDS, PANNFeatures, make_front_end
from utils.evaluation.embeddings import Embedder

PUBLISHED = {  # arXiv 1912.10211, section III-A: rate, window, hop and highest frequency
    "pann_16k": (16000, 512, 160, 8000),
    "pann_32k": (32000, 1024, 320, 14000),
}


def noisy_chirp(sample_rate, seconds=1.3):
    """A rising tone in noise, so that every mel band has power: float32 [S]."""
    t = np.arange(int(seconds * sample_rate)) / sample_rate
    noise = np.random.default_rng(0).standard_normal(len(t))
    return (0.5 * chirp(t, 100, seconds, 0.45 * sample_rate) + 0.01 * noise).astype(np.float32)


def librosa_log_mel(wav, sample_rate, window, hop, f_max):
    """librosa's log-mel in double precision, [T, F] in dB."""
    stft = {"n_fft": window, "hop_length": hop, "window": "hann", "center": True, "pad_mode": "reflect", "power": 2.0}
    bands = {"n_mels": 64, "fmin": 50, "fmax": f_max, "htk": False, "norm": "slaney"}
    mel = librosa.feature.melspectrogram(y=wav.astype(np.float64), sr=sample_rate, **stft, **bands)
    return librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=None).T


def pann(name="pann_16k", sample_rate=16000, n_mels=64):
    """A front end, built without the one that is not asked for."""
    return make_front_end(name, None, sample_rate, n_mels)


@pytest.mark.parametrize("name", PUBLISHED)
def test_pann_features_equal_librosas_log_mel(name):
    sample_rate, window, hop, f_max = PUBLISHED[name]
    wav = noisy_chirp(sample_rate)
    loud, silent = pann(name, sample_rate)(torch.stack([torch.from_numpy(wav), torch.zeros(len(wav))]))
    expected = librosa_log_mel(wav, sample_rate, window, hop, f_max)
    assert loud.shape == expected.shape == (1 + len(wav) // hop, 64)
    np.testing.assert_allclose(loud.numpy(), expected, atol=2e-3)  # dB; librosa counts in double precision
    assert torch.all(silent == -100)  # the floor, 10 log10(1e-10), whatever else is in the batch


@pytest.mark.filterwarnings("ignore:n_fft=512 is too large")
@pytest.mark.parametrize("samples", [257, 300, 511, 700])
def test_a_clip_shorter_than_a_window_is_as_in_librosa(samples):
    wav = noisy_chirp(16000)[:samples]
    expected = librosa_log_mel(wav, *PUBLISHED["pann_16k"])
    np.testing.assert_allclose(pann()(torch.from_numpy(wav)[None])[0].numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("samples", [0, 1, 100, 256])
def test_a_clip_shorter_than_half_a_window_is_followed_by_silence(samples):
    wav = torch.from_numpy(noisy_chirp(16000)[:samples])
    features = pann()(wav[None])
    assert torch.equal(features, pann()(F.pad(wav, (0, 257 - samples))[None]))
    assert features.shape[1] >= 1 and torch.isfinite(features).all()


def test_pann_features_compute_in_single_precision_and_have_nothing_to_train():
    front_end, wav, allowed = pann(), torch.from_numpy(noisy_chirp(16000))[None], []
    front_end.spectrogram_extractor.register_forward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    expected, before = front_end.train()(wav), torch.backends.cudnn.allow_tf32
    assert torch.equal(front_end.eval()(wav), expected) and not any(p.requires_grad for p in front_end.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(front_end(wav), expected) and expected.dtype == torch.float32
    assert front_end(wav.half()).dtype == torch.float32
    assert not any(allowed) and torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize(("key", "value"), [("hop", 320), ("f_max", 7000), ("sample_rate", 32000)])
def test_the_key_of_cached_embeddings_sees_the_settings(key, value):
    own = PANN_FRONT_ENDS["pann_16k"]
    settings = (own, own, {**own, key: value})
    one, same, other = (Embedder({"compute_features": PANNFeatures(**kwargs)}).key() for kwargs in settings)
    assert one == same != other


def test_fbank_is_built_as_asked():
    front_end = make_front_end("fbank", partial(Fbank, sample_rate=8000, n_mels=23), 8000, 23)
    assert isinstance(front_end, Fbank) and front_end(torch.zeros(2, 8000)).shape[2] == 23


@pytest.mark.parametrize(
    ("name", "sample_rate", "n_mels", "said"),
    [
        ("pann_32k", 16000, 64, "front_end pann_32k works at 32000 Hz: set sample_rate to 32000"),
        ("pann_16k", 44100, 64, "front_end pann_16k works at 16000 Hz: set sample_rate to 16000"),
        ("pann_16k", 16000, 80, "front_end pann_16k has 64 mel bands: set n_mels to 64"),
        ("mfcc", 16000, 64, f"Unknown front_end 'mfcc': choose one of {', '.join(FRONT_ENDS)}."),
    ],
)
def test_what_a_front_end_can_not_do_is_one_line_that_names_the_fix(name, sample_rate, n_mels, said):
    with pytest.raises(ValueError) as caught:
        pann(name, sample_rate, n_mels)
    assert str(caught.value) == said

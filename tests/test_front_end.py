"""The front ends: log-mel values against librosa's, their choice by name, and the line of the YAML."""

from functools import partial

import librosa
import numpy as np
import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from scipy.signal import chirp
from speechbrain.lobes.features import Fbank

from models.features import FRONT_ENDS, PANN_FRONT_ENDS, PANNFeatures, make_front_end
from utils.evaluation.embeddings import Embedder, _settings

YAML = """
front_end: fbank
sample_rate: 16000
n_mels: 80
compute_features: !apply:models.features.make_front_end
  name: !ref <front_end>
  fbank: !name:speechbrain.lobes.features.Fbank
    sample_rate: !ref <sample_rate>
    n_mels: !ref <n_mels>
    n_fft: 400
    win_length: 25
    hop_length: 10
    f_min: 0
  sample_rate: !ref <sample_rate>
  n_mels: !ref <n_mels>
"""
PUBLISHED = {  # arXiv 1912.10211, section III-A and the names of the published files
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
    mel = librosa.feature.melspectrogram(
        y=wav.astype(np.float64),
        sr=sample_rate,
        n_fft=window,
        hop_length=hop,
        window="hann",
        center=True,
        pad_mode="reflect",
        power=2.0,
        n_mels=64,
        fmin=50,
        fmax=f_max,
        htk=False,
        norm="slaney",
    )
    return librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=None).T


def any_fbank():
    raise AssertionError("only the front end fbank builds an Fbank")


@pytest.mark.parametrize("name", PUBLISHED)
def test_pann_features_equal_librosas_log_mel(name):
    sample_rate, window, hop, f_max = PUBLISHED[name]
    wav = noisy_chirp(sample_rate)
    front_end = make_front_end(name, any_fbank, sample_rate, 64)
    batch = torch.stack([torch.from_numpy(wav), torch.zeros(len(wav))])
    loud, silent = front_end(batch)
    expected = librosa_log_mel(wav, sample_rate, window, hop, f_max)
    assert loud.shape == expected.shape == (1 + len(wav) // hop, 64)
    np.testing.assert_allclose(loud.numpy(), expected, atol=2e-3)  # dB; librosa counts in double precision
    assert torch.all(silent == -100)  # the floor, 10 log10(1e-10), whatever else is in the batch


@pytest.mark.filterwarnings("ignore:n_fft=512 is too large")
@pytest.mark.parametrize("samples", [257, 300, 511, 700])
def test_a_clip_shorter_than_a_window_is_as_in_librosa(samples):
    wav = noisy_chirp(16000)[:samples]
    ours = make_front_end("pann_16k", any_fbank, 16000, 64)(torch.from_numpy(wav)[None])[0]
    np.testing.assert_allclose(ours.numpy(), librosa_log_mel(wav, *PUBLISHED["pann_16k"]), atol=2e-3)


@pytest.mark.parametrize("samples", [0, 1, 100, 256])
def test_a_clip_shorter_than_half_a_window_is_followed_by_silence(samples):
    front_end = make_front_end("pann_16k", any_fbank, 16000, 64)
    wav = torch.from_numpy(noisy_chirp(16000)[:samples])
    features = front_end(wav[None])
    assert torch.equal(features, front_end(torch.nn.functional.pad(wav, (0, 257 - samples))[None]))
    assert features.shape[1] >= 1 and torch.isfinite(features).all()


def test_pann_features_compute_in_single_precision_whatever_the_rest_does():
    front_end = make_front_end("pann_16k", any_fbank, 16000, 64)
    wav = torch.from_numpy(noisy_chirp(16000))[None]
    allowed = []
    front_end.spectrogram_extractor.register_forward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    expected, before = front_end(wav), torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (wav @ wav.T).dtype == torch.bfloat16
        assert torch.equal(front_end(wav), expected) and expected.dtype == torch.float32
    assert front_end(wav.half()).dtype == torch.float32
    assert not any(allowed) and torch.backends.cudnn.allow_tf32 == before


def test_pann_features_have_nothing_to_train_and_do_not_change_in_training():
    front_end = make_front_end("pann_16k", any_fbank, 16000, 64)
    assert not any(p.requires_grad for p in front_end.parameters())
    wav = torch.from_numpy(noisy_chirp(16000))[None]
    assert torch.equal(front_end.train()(wav), front_end.eval()(wav))


def test_a_pann_file_and_the_front_end_have_the_same_names():
    names = {"spectrogram_extractor.stft.conv_real.weight", "spectrogram_extractor.stft.conv_imag.weight"}
    assert set(PANNFeatures(**PANN_FRONT_ENDS["pann_16k"]).state_dict()) == names | {"logmel_extractor.melW"}


@pytest.mark.parametrize(("key", "value"), [("hop", 320), ("f_max", 7000), ("sample_rate", 32000)])
def test_the_key_of_cached_embeddings_sees_the_settings(key, value):
    own = PANN_FRONT_ENDS["pann_16k"]
    one, same, other = PANNFeatures(**own), PANNFeatures(**own), PANNFeatures(**{**own, key: value})
    assert ("", key, own[key]) in _settings(one)
    assert _settings(one) == _settings(same) != _settings(other)
    keys = [Embedder({"compute_features": front_end}).key() for front_end in (one, same, other)]
    assert keys[0] == keys[1] != keys[2]


def test_the_yaml_line_builds_fbank_as_before():
    built = load_hyperpyyaml(YAML)["compute_features"]
    reference = Fbank(sample_rate=16000, n_mels=80, n_fft=400, win_length=25, hop_length=10, f_min=0)
    wav = torch.from_numpy(noisy_chirp(16000))[None]
    assert isinstance(built, Fbank)
    assert torch.equal(built(wav), reference(wav))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_yaml_line_builds_a_pann_front_end(name):
    rate, window, hop, f_max = PUBLISHED[name]
    built = load_hyperpyyaml(YAML, {"front_end": name, "sample_rate": rate, "n_mels": 64})["compute_features"]
    found = (built.sample_rate, built.window, built.hop, built.n_mels, built.f_min, built.f_max)
    assert found == (rate, window, hop, 64, 50, f_max)


def test_fbank_takes_any_rate_and_size_from_the_yaml():
    front_end = make_front_end("fbank", partial(Fbank, sample_rate=8000, n_mels=23), 8000, 23)
    assert front_end(torch.zeros(2, 8000)).shape[2] == 23


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
        make_front_end(name, any_fbank, sample_rate, n_mels)
    assert str(caught.value) == said

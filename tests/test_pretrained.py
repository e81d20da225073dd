"""Published weights: files of the published layouts, full of random numbers, against the published forward pass."""

import os
import re

import pytest
import torch
import torch.nn.functional as F
from speechbrain.lobes.models.Cnn14 import Cnn14
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

from helpers.desk import Runs
from helpers.weights import NARROW, RATE, extractors, front_end_state, narrow_cnn14, pann_state, published_name
from models.embed import embed
from models.encoders import ENCODERS, make_encoder
from models.pann import PANN
from models.pretrained import load_pretrained, read_pretrained
from utils.io.errors import InputError
from utils.run.arguments import parse_arguments
from utils.run.config import load_config


def save(content, path, **kwargs):
    torch.save(content, path, **kwargs)
    return str(path)


def published_embedding(state, wav):
    """The published Cnn14 in evaluation up to what goes into fc1, written with plain functions: [B, S] -> [B, D]."""

    def norm(x, name):
        mean, var, weight, bias = (state[f"{name}.{e}"] for e in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias, training=False)

    spectrogram, logmel = extractors(state["spectrogram_extractor.stft.conv_real.weight"].shape[-1])
    x = logmel(spectrogram(wav))  # [B, 1, T, F]
    x = norm(x.transpose(1, 3), "bn0").transpose(1, 3)
    for i in range(1, 7):
        for j in (1, 2):
            x = F.conv2d(x, state[f"conv_block{i}.conv{j}.weight"], padding=1)
            x = F.relu(norm(x, f"conv_block{i}.bn{j}"))
        x = F.avg_pool2d(x, 2 if i < 6 else 1)
    x = x.mean(dim=3)
    return x.max(dim=2).values + x.mean(dim=2)


def narrow_ecapa():
    sizes = {"channels": [128] * 4 + [384], "kernel_sizes": [5, 3, 3, 3, 1], "dilations": [1, 2, 3, 4, 1]}
    return ECAPA_TDNN(40, lin_neurons=16, attention_channels=128, **sizes)


PUBLISHED = [(512, "pann_16k", "PANN Cnn14_16k"), (1024, "pann_32k", "PANN Cnn14")]


@pytest.mark.parametrize(("window", "front_end", "kind"), PUBLISHED)
def test_a_published_file_fits_cnn14_and_demands_its_settings(window, front_end, kind, tmp_path):
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Cnn14(mel_bins=64, emb_dim=2048).state_dict().items()}
    state = {published_name(n): torch.zeros(()).expand(shape) for n, shape in shapes.items()}  # 0 bytes a weight
    pretrained = read_pretrained(save({"model": {**state, **front_end_state(window)}}, tmp_path / "w.pth"))
    assert pretrained.settings == {
        "encoder": "cnn14", "emb_dim": 2048, "emb_norm_type": "bn", "front_end": front_end, "n_mels": 64,
        "mean_norm": False, "sample_rate": RATE[window],
    }  # fmt: skip
    assert {k: v.shape for k, v in pretrained.state.items()} == shapes
    narrow = read_pretrained(save({"model": pann_state(window)}, tmp_path / "narrow.pth"))
    assert narrow.kind == pretrained.kind == kind and "encoder" not in narrow.settings


@pytest.mark.parametrize(
    ("reference", "encoder", "wrap"),
    [
        (narrow_cnn14, lambda: PANN(40, NARROW, "bn"), True),
        (lambda: narrow_cnn14(norm_type="in"), lambda: PANN(40, NARROW, "in"), False),
        (narrow_ecapa, lambda: make_encoder("ecapa_tiny", n_mels=40, emb_dim=16), False),
    ],
    ids=["bn", "in", "ecapa"],
)
def test_weights_of_speechbrains_encoders_are_taken_as_they_are(reference, encoder, wrap, tmp_path):
    """With the same weights, the outputs are the same: tests/test_models.py."""
    state, encoder = reference().state_dict(), encoder()
    pretrained = read_pretrained(save({"model": state} if wrap else state, tmp_path / "embedding_model.ckpt"))
    assert (pretrained.kind, pretrained.settings) == ("SpeechBrain", {})
    load_pretrained(pretrained, encoder)
    loaded = encoder.state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)


def one_line(call, *args):
    """The text of the InputError that a call must raise."""
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def more_than_a_cnn14():
    return {**pann_state(512), "pre_conv0.weight": torch.zeros(64, 1, 11)}  # Wavegram-Logmel-Cnn14 has these too


MISFITS = [  # what the file holds, the encoder, and which weight is named
    (more_than_a_cnn14, lambda: PANN(64, NARROW), "pre_conv0.weight is [64, 1, 11] there, missing here"),
    (None, lambda: PANN(40, (8, *NARROW[1:])), "conv_block1.conv1.weight is [4, 1, 3, 3] there, [8, 1, 3, 3] here"),
    (None, lambda: PANN(80, NARROW), "norm0.weight is [40] there, [80] here"),
    (None, lambda: PANN(40, NARROW[:-1]), "conv_block6.conv1.weight is [128, 64, 3, 3] there, missing here"),
    (None, lambda: PANN(40, NARROW, "ln"), "norm0.running_mean is [40] there, missing here"),
    (None, lambda: make_encoder("ecapa_tiny", 40, 16), "blocks.0.conv.conv.weight is missing there, [128, 40, 5] here"),
]


@pytest.mark.parametrize(("state", "encoder", "said"), MISFITS)
def test_a_weight_that_does_not_fit_is_named_and_nothing_is_loaded(state, encoder, said, tmp_path):
    path, encoder = save((state or narrow_cnn14().state_dict)(), tmp_path / "w.pth"), encoder()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    assert one_line(load_pretrained, path, encoder) == (
        f"{path} does not fit the encoder ({said}): "
        "set encoder, emb_dim, n_mels and emb_norm_type to what it was trained with"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


NO_CHECKPOINTS = [b"hello world", b"<!DOCTYPE html><html>not found</html>", b"PK\x03\x04", b"\x80\x02"]


@pytest.mark.parametrize("kept", [0, 10, 100, -3, *NO_CHECKPOINTS])
@pytest.mark.parametrize("as_in_2019", [False, True])
def test_a_damaged_file_or_none_of_weights(kept, as_in_2019, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"model": pann_state(512)}, path, _use_new_zipfile_serialization=not as_in_2019)
    path.write_bytes(kept if isinstance(kept, bytes) else path.read_bytes()[:kept])
    assert f"{path} can't be read as weights (" in one_line(read_pretrained, str(path))


@pytest.mark.parametrize("as_in_2019", [False, True])
def test_no_code_of_a_file_runs_and_its_weights_can_be_extracted_as_the_error_says(as_in_2019, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = pann_state(512)
    content = {"model": state, "optimizer": Runs()}  # training scripts save objects too
    path = save(content, tmp_path / "all.pth", _use_new_zipfile_serialization=not as_in_2019)
    said = one_line(read_pretrained, path)
    assert re.search(r"holds other objects than tensors \(\w+\.open\)", said) and "if you trust it" in said
    assert not os.path.exists("ran")
    exec(re.search(r"torch\.save\(.*\)", said)[0], {"torch": torch})
    read = read_pretrained("weights.pth")
    assert os.path.exists("ran") and torch.equal(read.state["norm0.running_var"], state["bn0.running_var"])


REAL, IMAGINARY, MEL = front_end_state(512)
OTHER_LAYOUT = "is neither of a PANN (bn0.*"
UNUSABLE = [  # what a file holds, and what is said
    *((lambda content=content: content, OTHER_LAYOUT) for content in (
        {}, torch.zeros(3), [torch.zeros(3)], {"model": 3}, {"weight": torch.zeros(3), "bias": torch.zeros(3)},
        {"model": {"bn0.weight": torch.zeros(64), "conv_block1.conv1.weight": torch.zeros(4, 1, 3, 3)}},
        {"norm0.weight": "text", "conv_block1.conv1.weight": 1},
    )),
    (lambda: pann_state(512) | {REAL: torch.zeros(129, 1, 256)}, "of 256 samples: use Cnn14_16k (512) or Cnn14 (1024)"),
    (lambda: pann_state(512, f_min=0), "front_end pann_16k computes (logmel_extractor.melW differs)"),
    (lambda: pann_state(1024, f_min=0), "front_end pann_32k computes (logmel_extractor.melW differs)"),
    (lambda: pann_state(512, n_mels=32), "(logmel_extractor.melW differs)"),
    (lambda: pann_state(512) | {MEL: torch.full((257, 64), torch.nan)}, "(logmel_extractor.melW differs)"),
    (lambda: pann_state(512) | {REAL: front_end_state(512)[REAL].flip(0)}, f"({REAL} differs)"),
    (lambda: {k: v for k, v in pann_state(512).items() if k != IMAGINARY}, f"({IMAGINARY} differs)"),
    (lambda: {k: v for k, v in pann_state(512).items() if "block5" not in k}, "(it has no conv_block5.conv2.weight)"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "said"), UNUSABLE)
def test_a_file_that_can_not_be_used_here(content, said, tmp_path):
    path = save(content(), tmp_path / "w.pth")
    assert one_line(read_pretrained, path).startswith(f"{path} ")
    assert said in one_line(read_pretrained, path)


def test_a_front_end_that_differs_in_rounding_is_the_same(tmp_path):
    own = front_end_state(512)
    state = pann_state(512) | {MEL: own[MEL] * (1 + 1e-5), REAL: own[REAL].double()}
    assert read_pretrained(save({"model": state}, tmp_path / "w.pth")).kind == "PANN Cnn14_16k"


# From the command line; how such an encoder is judged: tests/test_saved.py


def configured(lab, *given):
    """A trainer's hparams with these arguments."""
    fixed = ("hparams/us8k/simclr_train.yaml", f"--data_folder={lab.sounds}")
    file, run_opts, overrides = parse_arguments("", [*fixed, *map(str, given)])
    return load_config(file, overrides, run_opts)


@pytest.mark.parametrize("as_in_2019", [False, True])  # torch's file format before 1.6 is that of the published files
@pytest.mark.parametrize(("window", "front_end"), [(512, "pann_16k"), (1024, "pann_32k")])
def test_a_pann_brings_its_settings_and_embeds_as_published(lab, tmp_path, monkeypatch, window, front_end, as_in_2019):
    monkeypatch.setitem(ENCODERS, "narrow", lambda n_mels, emb_dim, norm_type: PANN(n_mels, NARROW, norm_type))
    state = pann_state(window)
    path = save({"model": state}, tmp_path / "w=1.pth", _use_new_zipfile_serialization=not as_in_2019)
    rate = f"--sample_rate={RATE[window]}"
    hparams = configured(lab, f"--pretrained_weights={path}", "--encoder=narrow", "--emb_norm_type=bn", rate)
    settings = {"front_end": front_end, "n_mels": 64, "mean_norm": False, "emb_dim": NARROW[-1]}
    assert {key: hparams[key] for key in settings} == settings
    wav = 0.1 * torch.randn(2, RATE[window], generator=torch.Generator().manual_seed(0))
    modules = {name: module.eval() for name, module in hparams["modules"].items()}
    with torch.inference_mode():
        ours = embed(modules, wav, torch.ones(2))
    expected = published_embedding(state, wav)
    assert expected.std() > 0.1  # clips and features differ, so equality says something
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("window", "given", "told"),
    [
        (1024, (), "needs sample_rate=32000, but sample_rate is 16000: set --sample_rate=32000"),
        (512, ("--front_end=fbank",), "needs front_end=pann_16k, but front_end is fbank: set --front_end=pann_16k"),
        (512, ("--mean_norm=True",), "needs mean_norm=False"),
        (512, ("--encoder=pann_tiny",), "does not fit the encoder"),
    ],
)
def test_what_does_not_fit_a_pann_is_told_with_the_fix(lab, tmp_path, window, given, told):
    path = save({"model": pann_state(window)}, tmp_path / "w.pth")
    assert told in one_line(configured, lab, f"--pretrained_weights={path}", *given)

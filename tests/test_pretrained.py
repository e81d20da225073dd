"""Published weights: files of the published layouts, full of random numbers, against the published forward pass."""

import os
import re

import pytest
import torch
import torch.nn.functional as F
from speechbrain.lobes.models.Cnn14 import Cnn14, ConvBlock
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

from helpers.weights import NARROW, RATE, batch_norm_state, extractors, front_end_state, pann_state
from models.embed import embed
from models.encoders import ENCODERS, make_encoder
from models.features import make_front_end
from models.pann import CNN14_CHANNELS, PANN
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


def with_random_statistics(module):
    """Move the running statistics from their initial values, so that an evaluation depends on them."""
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return module.eval()


def narrow_cnn14(norm_type="bn", n_mels=40):
    """SpeechBrain's Cnn14 with narrower blocks."""
    model = Cnn14(mel_bins=n_mels, emb_dim=NARROW[-1], norm_type=norm_type)
    for i, (c_in, c_out) in enumerate(zip((1, *NARROW), NARROW, strict=False), start=1):
        setattr(model, f"conv_block{i}", ConvBlock(c_in, c_out, norm_type))
    return with_random_statistics(model)


@pytest.mark.parametrize("as_in_2019", [False, True])  # torch's file format before 1.6 is that of the published files
@pytest.mark.parametrize(("window", "kind"), [(512, "PANN Cnn14_16k"), (1024, "PANN Cnn14")])
def test_a_pann_embeds_as_published(window, kind, as_in_2019, tmp_path):
    state = pann_state(window)
    path = save({"model": state}, tmp_path / "w.pth", _use_new_zipfile_serialization=not as_in_2019)
    pretrained = read_pretrained(path)
    settings = pretrained.settings
    assert (pretrained.path, pretrained.kind) == (path, kind)
    front_end = make_front_end(settings["front_end"], None, settings["sample_rate"], settings["n_mels"])
    encoder = PANN(settings["n_mels"], NARROW, settings["emb_norm_type"])
    load_pretrained(pretrained, encoder)
    wav = 0.1 * torch.randn(2, RATE[window], generator=torch.Generator().manual_seed(0))
    expected = published_embedding(state, wav)
    with torch.no_grad():
        ours = encoder.eval()(front_end(wav)).squeeze(1)
    assert expected.std() > 0.1  # clips and features differ, so equality says something
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("window", "front_end"), [(512, "pann_16k"), (1024, "pann_32k")])
def test_a_published_file_fits_cnn14_and_demands_its_settings(window, front_end, tmp_path):
    small = pann_state(window)
    shapes = {name: tensor.shape for name, tensor in pann_shapes().items()}
    fixed = front_end_state(window)
    state = {name: fixed.get(name, torch.zeros(()).expand(shapes.get(name, ()))) for name in small}  # 0 bytes a weight
    pretrained = read_pretrained(save({"model": state}, tmp_path / "w.pth"))
    assert pretrained.settings == {
        "encoder": "cnn14",
        "emb_dim": 2048,
        "emb_norm_type": "bn",
        "front_end": front_end,
        "n_mels": 64,
        "mean_norm": False,
        "sample_rate": RATE[window],
    }
    with torch.device("meta"):
        reference = Cnn14(mel_bins=64, emb_dim=2048).state_dict()
    assert {k: v.shape for k, v in pretrained.state.items()} == {k: v.shape for k, v in reference.items()}


def pann_shapes():
    """Weights of the full Cnn14 by their published names, without memory."""
    shapes = {}
    with torch.device("meta"):
        for i, (c_in, c_out) in enumerate(zip((1, *CNN14_CHANNELS), CNN14_CHANNELS, strict=False), start=1):
            for j, size in ((1, c_in), (2, c_out)):
                shapes[f"conv_block{i}.conv{j}.weight"] = torch.empty(c_out, size, 3, 3)
                for entry in ("weight", "bias", "running_mean", "running_var"):
                    shapes[f"conv_block{i}.bn{j}.{entry}"] = torch.empty(c_out)
        for entry in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"bn0.{entry}"] = torch.empty(64)
    return shapes


def test_narrow_weights_demand_no_cnn14_but_their_own_size(tmp_path):
    settings = read_pretrained(save({"model": pann_state(512)}, tmp_path / "w.pth")).settings
    assert settings["emb_dim"] == 128 and "encoder" not in settings


@pytest.mark.parametrize("norm_type", ["bn", "in", "ln"])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state}])
def test_speechbrains_cnn14_gives_the_same_outputs(norm_type, wrap, tmp_path):
    reference = narrow_cnn14(norm_type)
    path = save(wrap(reference.state_dict()), tmp_path / "embedding_model.ckpt")
    pretrained, encoder = read_pretrained(path), PANN(40, NARROW, norm_type)
    assert (pretrained.kind, pretrained.settings) == ("SpeechBrain", {})
    load_pretrained(path, encoder)
    x = torch.randn(2, 70, 40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(encoder.eval()(x), reference(x), rtol=1e-4, atol=1e-5)


def test_speechbrains_ecapa_gives_the_same_outputs(tmp_path):
    sizes = {"channels": [128] * 4 + [384], "kernel_sizes": [5, 3, 3, 3, 1], "dilations": [1, 2, 3, 4, 1]}
    reference = with_random_statistics(ECAPA_TDNN(40, lin_neurons=16, attention_channels=128, **sizes))
    encoder = make_encoder("ecapa_tiny", n_mels=40, emb_dim=16)
    pretrained = read_pretrained(save(reference.state_dict(), tmp_path / "embedding_model.ckpt"))
    assert (pretrained.kind, pretrained.settings) == ("SpeechBrain", {})
    load_pretrained(pretrained, encoder)
    x = torch.randn(2, 50, 40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(encoder.eval()(x, torch.ones(2)), reference(x, torch.ones(2)), rtol=1e-5, atol=1e-5)


def one_line(call, *args):
    """The text of the InputError that a call must raise."""
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_weight_that_does_not_fit_is_named_and_nothing_is_loaded(tmp_path):
    path = save({"model": pann_state(512)}, tmp_path / "w.pth")
    encoder = PANN(64, (8, *NARROW[1:]))
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    assert one_line(load_pretrained, path, encoder) == (
        f"{path} does not fit the encoder (conv_block1.conv1.weight is [4, 1, 3, 3] there, [8, 1, 3, 3] here): "
        "set encoder, emb_dim, n_mels and emb_norm_type to what it was trained with"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (lambda: PANN(80, NARROW), "norm0.weight is [40] there, [80] here"),
        (lambda: PANN(40, NARROW[:-1]), "conv_block6.conv1.weight is [128, 64, 3, 3] there, missing here"),
        (
            lambda: PANN(40, (*NARROW[:-1], 96)),
            "conv_block6.conv1.weight is [128, 64, 3, 3] there, [96, 64, 3, 3] here",
        ),
        (lambda: PANN(40, NARROW, "ln"), "norm0.running_mean is [40] there, missing here"),
        (
            lambda: make_encoder("ecapa_tiny", 40, 16),
            "blocks.0.conv.conv.weight is missing there, [128, 40, 5] here",
        ),
    ],
)
def test_every_kind_of_misfit(encoder, said, tmp_path):
    path = save(narrow_cnn14().state_dict(), tmp_path / "embedding_model.ckpt")
    assert f"{path} does not fit the encoder ({said}): set " in one_line(load_pretrained, path, encoder())


def test_missing_file_and_folder(tmp_path):
    assert one_line(read_pretrained, f"{tmp_path}/w.pth") == f"{tmp_path}/w.pth does not exist: check the path"
    assert one_line(read_pretrained, str(tmp_path)) == f"{tmp_path} is a folder: give the file of weights in it"
    assert "does not exist" in one_line(load_pretrained, f"{tmp_path}/w.pth", None)


@pytest.mark.parametrize("kept", [0, 10, 100, -3])
@pytest.mark.parametrize("as_in_2019", [False, True])
def test_truncated_file(kept, as_in_2019, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"model": pann_state(512)}, path, _use_new_zipfile_serialization=not as_in_2019)
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path} can't be read as weights (" in one_line(read_pretrained, str(path))


@pytest.mark.parametrize(
    "content", [b"hello world", b"<!DOCTYPE html><html>not found</html>", b"PK\x03\x04", b"\x80\x02"]
)
def test_a_file_that_is_no_checkpoint(content, tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    assert f"{path} can't be read as weights (" in one_line(read_pretrained, str(path))


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("as_in_2019", [False, True])
def test_no_code_of_a_file_runs(as_in_2019, tmp_path):
    trap = str(tmp_path / "trapped")
    content = {"model": pann_state(512), "extra": Trap(trap)}
    path = save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not as_in_2019)
    said = one_line(read_pretrained, path)
    assert "holds other objects than tensors (posix.mkdir)" in said and "if you trust it" in said
    assert not os.path.exists(trap)


def test_weights_extracted_as_the_error_says_can_be_read(tmp_path, monkeypatch):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])  # an object, as training scripts save it
    state = pann_state(512)
    said = one_line(read_pretrained, save({"model": state, "optimizer": optimizer}, tmp_path / "all.pth"))
    assert "(torch.optim.sgd.SGD)" in said
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"torch\.save\(.*\)", said)[0], {"torch": torch})
    read = read_pretrained("weights.pth")
    assert torch.equal(read.state["conv_block6.norm2.running_var"], state["conv_block6.bn2.running_var"])


@pytest.mark.parametrize(
    "content",
    [
        {},
        torch.zeros(3),
        [torch.zeros(3)],
        {"model": 3},
        {"weight": torch.zeros(3), "bias": torch.zeros(3)},
        {"model": {**batch_norm_state("bn0", 64, None), "conv_block1.conv1.weight": torch.zeros(4, 1, 3, 3)}},
        {"norm0.weight": "text", "conv_block1.conv1.weight": 1},
    ],
)
def test_a_file_of_another_layout(content, tmp_path):
    path = save(content, tmp_path / "w.pth")
    said = one_line(read_pretrained, path)
    assert said.startswith(f"{path} is neither of a PANN (bn0.*") and "ECAPA_TDNN" in said


def changed_state(**changes):
    """A Cnn14_16k whose entries are replaced by functions of what they are; None removes them."""
    state = pann_state(512)
    for part, change in changes.items():
        for name in [name for name in state if part in name]:
            tensor = state.pop(name)
            if change is not None:
                state[name] = change(tensor)
    return state


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (lambda: pann_state(256), "is a PANN with a window of 256 samples: use Cnn14_16k (512) or Cnn14 (1024)"),
        (lambda: pann_state(512, f_min=0), "front_end pann_16k computes (logmel_extractor.melW differs)"),
        (lambda: pann_state(1024, f_min=0), "front_end pann_32k computes (logmel_extractor.melW differs)"),
        (lambda: pann_state(512, n_mels=32), "(logmel_extractor.melW differs)"),
        (lambda: changed_state(melW=lambda w: w * torch.nan), "(logmel_extractor.melW differs)"),
        (lambda: changed_state(conv_real=lambda w: w.flip(0)), "(spectrogram_extractor.stft.conv_real.weight differs)"),
        (lambda: changed_state(conv_imag=None), "(spectrogram_extractor.stft.conv_imag.weight differs)"),
        (
            lambda: pann_state(512, NARROW[:4]),
            "is another PANN than Cnn14 (it has no conv_block5.conv2.weight): use Cnn14",
        ),
    ],
)
def test_a_pann_that_can_not_be_used_here(state, said, tmp_path):
    assert said in one_line(read_pretrained, save({"model": state()}, tmp_path / "w.pth"))


def test_a_front_end_that_differs_in_rounding_is_the_same(tmp_path):
    state = changed_state(melW=lambda w: w * (1 + 1e-5), conv_real=lambda w: w.double())
    assert read_pretrained(save({"model": state}, tmp_path / "w.pth")).kind == "PANN Cnn14_16k"


def test_more_than_a_cnn14_does_not_fit(tmp_path):
    state = {**pann_state(512), "pre_conv0.weight": torch.zeros(64, 1, 11)}  # Wavegram-Logmel-Cnn14 has these too
    path = save({"model": state}, tmp_path / "w.pth")
    assert "(pre_conv0.weight is [64, 1, 11] there, missing here)" in one_line(load_pretrained, path, PANN(64, NARROW))


# From the command line


def arguments(lab, *given, yaml="us8k/simclr_train.yaml"):
    """What a script has of these arguments: overrides and hparams."""
    fixed = (f"hparams/{yaml}", f"--data_folder={lab.sounds}")
    file, run_opts, overrides = parse_arguments("", [*fixed, *map(str, given)])
    return overrides, load_config(file, overrides, run_opts)


def test_a_pann_brings_its_settings_with_it(lab, tmp_path, monkeypatch):
    monkeypatch.setitem(ENCODERS, "narrow", lambda n_mels, emb_dim, norm_type: PANN(n_mels, NARROW, norm_type))
    state = pann_state(512)
    path = save({"model": state}, tmp_path / "w=1.pth")
    _, hparams = arguments(lab, f"--pretrained_weights={path}", "--encoder=narrow")
    chosen = {key: hparams[key] for key in ("front_end", "n_mels", "mean_norm", "emb_dim", "sample_rate")}
    assert chosen == {
        "front_end": "pann_16k", "n_mels": 64, "mean_norm": False, "emb_dim": NARROW[-1], "sample_rate": 16000
    }  # fmt: skip
    wav = 0.1 * torch.randn(2, 8000)
    modules = {name: module.eval() for name, module in hparams["modules"].items()}
    with torch.inference_mode():
        ours = embed(modules, wav, torch.ones(2))
    assert torch.allclose(ours, published_embedding(state, wav), atol=1e-4)


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
    assert told in one_line(arguments, lab, f"--pretrained_weights={path}", *given)


def test_training_starts_from_pretrained_weights_and_its_encoder_is_judged(lab, encoder, tmp_path):
    """An encoder of an earlier run, at rate 0: its batch norms' statistics move, no weight does."""
    (checkpoint,) = (encoder / "save" / "task4").glob("CKPT*")
    before = torch.load(checkpoint / "embedding_model.ckpt")
    start = f"--pretrained_weights={checkpoint / 'embedding_model.ckpt'}"
    few = ("--task_classes=[[3,8]]", "--lr=0", "--final_lr=0", "--number_of_epochs=2")
    folder, _ = lab.train(tmp_path / "out", start, *few, kind="simsiam")
    (checkpoint,) = (folder / "save" / "task0").glob("CKPT*")
    after = torch.load(checkpoint / "embedding_model.ckpt")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("running" in name or "num_batches" in name for name in changed)


def test_the_front_end_of_the_encoder_must_be_that_of_its_evaluation(lab, tmp_path):
    pann = ("--front_end=pann_16k", "--n_mels=64", "--mean_norm=False")
    few = ("--task_classes=[[3,8]]", "--debug", "--debug_batches=1")
    folder, _ = lab.train(tmp_path / "out", *pann, *few)
    judge = (
        "linclf_train.py", "hparams/us8k/linclf_train.yaml", *lab.tiny, f"--data_folder={lab.sounds}", "--batch_size=4",
        f"--output_base={tmp_path / 'lin'}", f"--ssl_checkpoints_dir={folder}", *few,
    )  # fmt: skip
    process = lab.start(lab.command(*judge))
    said = process.communicate(timeout=100)[0].decode()
    assert process.returncode == 2 and all(flag.lower() in said.lower() for flag in pann), said
    lab.run(*judge, *pann)

"""An encoder leaves as a folder and comes back: the same to the bit, with SpeechBrain, ONNX, HEAR and X-ARES beside."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard

from helpers.docs import blocks
from helpers.lab import REPO, process_as_it_was
from models.encoders import ENCODERS
from models.exported import CONFIG, WEIGHTS, checksum, read_export
from models.pann import PANN
from utils import embed, export, hear, xares
from utils.deploy.encoder import load_encoder
from utils.deploy.waveform import WaveformEncoder
from utils.evaluation.embeddings import Embedder
from utils.io.errors import InputError
from utils.training.checkpoints import is_finished, load_weights

KINDS = ("fbank", "pann_16k", "ecapa")
ONE_TASK = ("--task_classes=[[3,8]]", "--number_of_epochs=1", "--warmup_epochs=0")


def command(main, *args):
    """Run a command in this process; return its exit code."""
    with process_as_it_was():
        try:
            main([*map(str, args)])
        except SystemExit as stop:
            return stop.code or 0
    return 0


@pytest.fixture(scope="module")
def runs(lab, encoder, tmp_path_factory):
    """Runs by kind, and the linclf run that judged the one of fbank."""
    folder = tmp_path_factory.mktemp("runs")
    pann_16k = ("--front_end=pann_16k", "--n_mels=64", "--mean_norm=False")
    found = {"fbank": encoder}
    found["pann_16k"] = lab.train(folder / "pann_16k", *ONE_TASK, *pann_16k)[0]
    found["ecapa"] = lab.train(folder / "ecapa", *ONE_TASK, "--encoder=ecapa_tiny")[0]
    args = ("--linclf_train_type=full", "--number_of_epochs=2", "--warmup_epochs=0", "--standardise=True")
    return found, lab.judge(folder / "judged", encoder, *args)[0]


@pytest.fixture(scope="module")
def exports(runs, tmp_path_factory):
    """Exports by kind, that of fbank with its probe. No test may change a file of them."""
    folder, (found, judged) = tmp_path_factory.mktemp("exports"), runs
    for kind, run in found.items():
        probe = [f"--probe={judged}"] if kind == "fbank" else []
        assert command(export.main, run, f"--output={folder / kind}", *probe) == 0
    return folder


@pytest.fixture(scope="module")
def siren(tmp_path_factory):
    """A sound at 16 kHz of peak 0.9, rounded to 16 bits: no program has to resample or scale it."""
    path, noise = tmp_path_factory.mktemp("siren") / "siren.wav", np.random.default_rng(5).standard_normal(20000)
    soundfile.write(path, 0.9 * noise / np.abs(noise).max(), 16000)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_out_and_in_is_the_same_encoder(runs, exports, siren, kind):
    """To the bit, front end included."""
    there, here = load_encoder(runs[0][kind]), load_encoder(exports / kind)
    assert here.digest == there.digest and np.array_equal(here.embed(siren), there.embed(siren))
    parts = {name.partition(".")[0] for name in read_export(exports / kind).state}
    assert parts == {"embedding_model", *(["classifier"] if kind == "fbank" else [])}


@pytest.mark.parametrize("probe", ["linear", "logistic"])
def test_the_classifier_answers_as_the_probe_did(lab, runs, exports, tmp_path, probe):
    run, judged = runs[0]["fbank"], runs[1]
    if probe == "logistic":
        judged = lab.judge(tmp_path, run, "--linclf_train_type=full", "--probe=logistic", "--standardise=True")[0]
    encoder = load_encoder(exports / "fbank") if probe == "linear" else load_encoder(run, probe=judged)
    predictions = pd.read_csv(judged / "predictions.csv")
    last = predictions[predictions["encoder"] == "task4"]
    found = encoder.classify([lab.sounds / clip for clip in last["clip"]])
    assert [next(iter(shares)) for shares in found] == last["predicted"].tolist()
    assert np.allclose([next(iter(shares.values())) for shares in found], last["score"], atol=1e-4)
    assert all(sum(shares.values()) == pytest.approx(1, abs=1e-5) for shares in found) and len(found) > 5


def test_a_training_begins_with_an_export(lab, exports, tmp_path):
    """Its settings come with it, and what doesn't fit is one line."""
    given = exports / "pann_16k"
    for key in ("pretrained_weights", "start_from"):
        hparams, _, _ = lab.load("us8k/supclr_train.yaml", f"--{key}={given}")
        parts = ("compute_features", "mean_var_norm", "embedding_model")
        modules = {name: hparams["modules"][name] for name in parts}
        if key == "start_from":
            run = lab.train(tmp_path, *ONE_TASK, f"--start_from={given}", "--strategy=cassle")[0]
            load_weights(run / "save" / "start", {"embedding_model": modules["embedding_model"]})
            assert is_finished(run / "save" / "task0")
        assert Embedder(modules).key() == load_encoder(given).digest
        with pytest.raises(InputError, match="needs front_end=pann_16k, but front_end is fbank"):
            lab.load("us8k/supclr_train.yaml", f"--{key}={given}", "--front_end=fbank")
    begun = json.loads((run / "versions.json").read_text())["start_from"]
    assert begun["afresh"].keys() == {"projector", "predictor", "classifier", "cassle_head"}


def edit(**changes):
    def edited(folder):
        config = json.loads((folder / CONFIG).read_text())
        for key, value in changes.items():
            config[key] = {**config[key], **value} if isinstance(value, dict) else value
        (folder / CONFIG).write_text(json.dumps({**config, "checksum": checksum(config)}))

    return edited


def flip(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-9] ^= 1
    (folder / WEIGHTS).write_bytes(content)


BAD = [
    (flip, "is damaged (its SHA-256 is not that in config.json)"),
    (lambda folder: (folder / WEIGHTS).unlink(), "has no model.safetensors"),
    (lambda folder: (folder / CONFIG).write_text("{"), "is damaged"),
    (lambda folder: (folder / CONFIG).write_text("{}"), "describes no encoder of this project"),
    (lambda folder: (folder / CONFIG).write_text((folder / CONFIG).read_text().replace("16000", "16001")),
     "its checksum differs, and only the licence may be edited"),
    (edit(format=99), "newer version"),
    (edit(sample_rate="16000"), "sample_rate is '16000'"),
    (edit(encoder={"emb_dim": 32}), "does not fit config.json"),
    (edit(classifier={"classes": ["bell"]}), "does not fit config.json"),
    (edit(encoder={"name": "os.system"}), "Unknown encoder 'os.system'"),
    (edit(front_end={"name": "pann_32k"}), "works at 32000 Hz"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), BAD)
def test_a_damaged_export_is_one_line(exports, tmp_path, spoil, said):
    folder = shutil.copytree(exports / "fbank", tmp_path / "export")
    spoil(folder)
    with pytest.raises(InputError) as error:
        load_encoder(folder)
    assert said in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_licence_may_be_edited(exports, tmp_path):
    folder = shutil.copytree(exports / "fbank", tmp_path / "export")
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace('"license": "unknown"', '"license": "cc-by-4.0"'))
    assert read_export(folder).config["license"] == "cc-by-4.0"


def test_what_can_not_be_exported_is_one_line(lab, runs, exports, tmp_path, capsys):
    run, judged = runs[0]["fbank"], runs[1]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    few = lab.judge(tmp_path / "knn", run, "--linclf_train_type=full", "--probe=knn")[0]
    new = f"--output={tmp_path / 'new'}"
    for args, said in (
        ((run, f"--output={tmp_path / 'full'}"), "exists already"),
        ((run, new, "--task=9"), "encoders of tasks 0 to 4, and none of task 9"),
        ((tmp_path, new), "is neither an export nor a run"),
        ((run, new, f"--probe={few}"), "the probe linear or logistic"),
        ((runs[0]["ecapa"], new, f"--probe={judged}"), "did not evaluate the encoder"),
    ):
        assert command(export.main, *args) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1 and not (tmp_path / "new").exists()
    assert command(export.main, run, new) == 0
    bare = load_encoder(tmp_path / "new")
    with pytest.raises(InputError, match="export it with --probe"):
        bare.classify(np.ones(2000, np.float32), 16000)
    with pytest.raises(InputError, match="after task 4 alone, not 1"):
        load_encoder(tmp_path / "new", 1)


def test_an_encoder_that_config_json_can_not_describe_is_refused(lab, tmp_path, monkeypatch, capsys):
    """A new line in ENCODERS can be exported; SpeechBrain's files are written where it is one of ours."""

    class Own(PANN):
        def __init__(self, n_mels, emb_dim, gain):
            super().__init__(n_mels, (4, emb_dim))
            self.gain = gain

    monkeypatch.setitem(ENCODERS, "own", lambda n_mels, emb_dim, norm_type: Own(n_mels, emb_dim, 1.0))
    run = lab.train(tmp_path / "run", *ONE_TASK, "--encoder=own")[0]
    assert command(export.main, run, f"--output={tmp_path / 'one'}") == 0
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert load_encoder(tmp_path / "one").digest == load_encoder(run).digest
    monkeypatch.setitem(ENCODERS, "own", lambda n_mels, emb_dim, norm_type: Own(n_mels, emb_dim, np.random.random()))
    assert command(export.main, run, f"--output={tmp_path / 'two'}") == 2
    assert "none that config.json can describe" in capsys.readouterr().err and not (tmp_path / "two").exists()


def test_the_model_card_is_one_of_hugging_face(runs, exports):
    card = ModelCard((exports / "fbank" / "README.md").read_text())
    metrics = json.loads((runs[1] / "metrics.json").read_text())
    (result,) = card.data.eval_results
    assert result.metric_value == metrics["metrics"]["acc"] and result.dataset_name == metrics["dataset"]
    assert (card.data.license, card.data.pipeline_tag) == ("unknown", "audio-classification")
    assert f"| random weights (the floor) | {100 * metrics['floor']['acc']:.1f} %" in card.text and " to " in card.text


def test_nothing_of_this_machine_is_in_an_export(runs, exports):
    private = [str(REPO), str(exports.parent), os.path.basename(runs[0]["fbank"]), str(REPO.parent)]
    for path in exports.rglob("*.*"):
        assert not [word for word in private if word.encode() in path.read_bytes()], path


LOADED = """
import sys
import soundfile, torch
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.inference.interfaces import foreign_class
folder, file, out = sys.argv[1:]
found = {}
for kind in ("fbank", "pann_16k", "ecapa"):
    names = {"pymodule_file": "sound_encoder.py", "classname": "ExportedEncoder"}
    encoder = foreign_class(source=f"{folder}/{kind}", **names)
    found[kind] = encoder.encode_file(file)[0, 0]
    if kind == "fbank":
        found["class"] = encoder.classify_file(file)[3][0]
samples = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
found["own"] = EncoderClassifier.from_hparams(source=f"{folder}/ecapa").encode_batch(samples)[0, 0]
assert not {"models", "utils", "datasets"} & sys.modules.keys()
torch.save(found, out)
"""


def test_speechbrain_loads_an_export_without_this_project(exports, siren, tmp_path):
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", LOADED, str(exports), str(siren), str(tmp_path / "found")]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found")
    for kind in KINDS:
        np.testing.assert_allclose(found[kind], load_encoder(exports / kind).embed(siren), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["own"], found["ecapa"], rtol=1e-3, atol=1e-3)
    assert found["class"] == next(iter(load_encoder(exports / "fbank").classify(siren)))


@pytest.mark.parametrize("kind", ["fbank", *(pytest.param(k, marks=pytest.mark.slow) for k in ("pann_16k", "ecapa"))])
def test_an_onnx_graph_is_the_same_encoder(runs, tmp_path, kind):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    probe = [f"--probe={runs[1]}"] if kind == "fbank" else []
    assert command(export.main, runs[0][kind], f"--output={tmp_path / 'export'}", *probe, "--onnx") == 0
    content, rng = (tmp_path / "export" / "model.onnx").read_bytes(), np.random.default_rng(2)
    assert b".py" not in content  # where the exporter found each part
    session, module = onnxruntime.InferenceSession(content), WaveformEncoder(load_encoder(tmp_path / "export"))
    for sounds, seconds in ((1, 0.05), (3, 0.1), (2, 2.0), (1, 10.0), (1, 61.0)):
        wavs = 0.3 * rng.standard_normal((sounds, round(16000 * seconds)), np.float32)
        with torch.inference_mode():
            expected = module(torch.from_numpy(wavs))
        expected = expected if kind == "fbank" else [expected]
        for ours, theirs in zip(expected, session.run(None, {"waveform": wavs}), strict=True):
            np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_onnx_without_its_packages_is_one_line(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert command(export.main, runs[0]["fbank"], f"--output={tmp_path / 'export'}", "--onnx") == 2
    assert "pip install onnx onnxscript" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["fbank", "ecapa"])
def test_hear_is_answered(exports, siren, kind):
    """What hearvalidator checks; and a scene's embedding is that of `embed`, its frames those of `frames`."""
    model, opened = hear.load_model(str(exports / kind)), load_encoder(exports / kind)
    assert isinstance(model, torch.nn.Module) and model.sample_rate in (16000, 22050, 32000, 44100, 48000)
    noise = torch.rand(40, 32000) * 2 - 1
    scenes, (frames, times) = (get(noise, model) for get in (hear.get_scene_embeddings, hear.get_timestamp_embeddings))
    assert scenes.dtype == frames.dtype == torch.float32 and frames.shape[:2] == times.shape
    assert scenes.shape == (40, model.scene_embedding_size) and frames.shape[2] == model.timestamp_embedding_size
    steps = times.diff()
    assert (steps - steps.mean()).abs().max() < 1e-3 and 0 < times.min() and times.max() < 2000
    samples = torch.from_numpy(soundfile.read(siren, dtype="float32")[0])[None]
    np.testing.assert_allclose(hear.get_scene_embeddings(samples, model)[0], opened.embed(siren), atol=1e-3)
    frames, times = hear.get_timestamp_embeddings(samples, model)
    np.testing.assert_allclose(times[0] / 1000, opened.frames(siren)[0], atol=1e-5)
    np.testing.assert_allclose(frames[0], opened.frames(siren)[1], atol=5e-3)


def test_the_hear_validator_passes(exports, monkeypatch):
    if importlib.util.find_spec("hearvalidator") is None:
        pytest.skip("hearvalidator is not installed")
    if importlib.util.find_spec("tensorflow") is None:  # of which it only asks for a type
        monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(Module=type("Module", (), {})))
    from hearvalidator.validate import ValidateModel

    ValidateModel("utils.hear", str(exports / "fbank"), "cpu")()


def test_xares_is_answered(exports, monkeypatch):
    assert [name for name in dir(xares) if name.endswith("Encoder")] == ["FrameEncoder"]
    with pytest.raises(InputError, match="set SOUND_ENCODER"):
        xares.FrameEncoder()
    monkeypatch.setenv("SOUND_ENCODER", str(exports / "fbank"))
    encoder = xares.FrameEncoder()
    frames = encoder(torch.randn(2, 50000))
    assert frames.shape == (2, 19, encoder.output_dim) and encoder.sampling_rate == 16000
    assert encoder.hop_size_in_ms == 160  # four halvings of 10 ms


def test_an_export_is_uploaded_only_if_asked_for(runs, tmp_path, monkeypatch, capsys):
    import huggingface_hub

    said = []

    class Api:
        def __getattr__(self, name):
            return lambda *args, **kwargs: said.append((name, args, kwargs))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    one, two = tmp_path / "one", tmp_path / "two"
    assert command(export.main, runs[0]["fbank"], f"--output={one}") == 0 and not said
    assert command(export.main, runs[0]["fbank"], f"--output={two}", "--push=me/bell") == 0
    assert [name for name, *_ in said] == ["whoami", "create_repo", "upload_folder"] and said[1][2]["private"]
    assert said[2][2] == {"folder_path": str(two), "repo_id": "me/bell"}
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert command(export.main, runs[0]["fbank"], f"--output={tmp_path / 'three'}", "--push=me/bell") == 2
    assert "pip install huggingface_hub, then hf auth login" in capsys.readouterr().err


def test_sounds_are_classified_and_searched(lab, exports, tmp_path, capsys):
    folder, sounds = exports / "fbank", sorted((lab.sounds / "audio" / "fold10").glob("*"))
    encoder, shares = load_encoder(folder), load_encoder(folder).classify(sounds)
    args = (folder, lab.sounds / "audio" / "fold10", "--classify")
    for name in ("out.csv", "out.npz", *(["out.parquet"] if importlib.util.find_spec("pyarrow") else [])):
        assert command(embed.main, *args, f"--output={tmp_path / name}") == 0
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    for path in tmp_path.iterdir():
        table = readers.get(path.suffix, np.load)(path)
        assert list(table["class"]) == [next(iter(own)) for own in shares]
        assert np.allclose(table["probability"], [next(iter(own.values())) for own in shares], atol=1e-6)
        if path.suffix == ".parquet":
            assert np.array_equal(np.stack(table["vector"]), encoder.embed(sounds))

    bank = np.load(tmp_path / "out.npz")
    places = (f"--among={tmp_path / 'out.npz'}", f"--output={tmp_path / 'near.csv'}")
    assert command(embed.main, folder, sounds[0], "--nearest=3", *places) == 0
    near = pd.read_csv(tmp_path / "near.csv")
    scaled = bank["vectors"] / np.linalg.norm(bank["vectors"], axis=1, keepdims=True)
    cosines = scaled @ scaled[0]
    assert near["neighbour"].tolist() == bank["path"][np.argsort(-cosines)[1:4]].tolist()  # without itself
    assert np.allclose(near["similarity"], np.sort(cosines)[::-1][1:4], atol=1e-5) and list(near["rank"]) == [1, 2, 3]

    capsys.readouterr()
    for args, told in (
        ((exports / "ecapa", sounds[0], "--nearest=3", *places), "is of another encoder"),
        ((folder, sounds[0], "--nearest=3", f"--output={tmp_path / 'x.csv'}"), "goes with --among"),
        ((folder, sounds[0], "--nearest=3", f"--among={sounds[0]}", f"--output={tmp_path / 'x.csv'}"), "can't be read"),
    ):
        assert command(embed.main, *args) == 2
        assert told in capsys.readouterr().err and not (tmp_path / "x.csv").exists()


def test_the_lines_of_the_page_work(exports, siren, tmp_path, monkeypatch):
    (tmp_path / "export").symlink_to(exports / "fbank")
    for name in ("siren.wav", "bell.flac"):
        (tmp_path / name).symlink_to(siren)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    ours, theirs = (block for block in blocks("python") if block.page == "docs/using.md")
    exec(ours.text, found := {})
    assert found["vectors"].shape == (2, 16) and len(found["starts"]) == 3 and len(found["shares"]) == 10
    exec(theirs.text, loaded := {})
    np.testing.assert_allclose(loaded["vector"][0, 0], found["vectors"][0], rtol=1e-3, atol=1e-3)

"""An encoder is judged as it was trained: encoder, width, norms and front end come from its run folder."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.desk import Desk
from helpers.lab import DEBUG, REPO
from helpers.weights import NARROW, pann_state
from linclf_train import LinearProbe
from models.encoders import ENCODERS
from models.pann import PANN
from supclr_train import SupCLR
from utils.evaluation.embeddings import Embedder
from utils.evaluation.probes import PROBES
from utils.evaluation.saved import as_trained
from utils.run.experiment import Run

PARTS = ("compute_features", "mean_var_norm", "embedding_model")
TRAIN, JUDGE = "us8k/supclr_train.yaml", "us8k/linclf_train.yaml"
JUDGED = "judged/linclf+seed_2022"


@pytest.fixture
def desk(tmp_path, capsys):
    return Desk(tmp_path, capsys)


def edited(folder, name, **definitions):
    """A copy of a YAML with other definitions of some keys."""
    text = (REPO / "hparams" / name).read_text()
    for key, definition in definitions.items():
        text, n = re.subn(rf"^{key}:.*\n([ ].*\n)*", f"{key}: {definition}\n", text, flags=re.MULTILINE)
        assert n == 1
    file = folder / os.path.basename(name)
    file.write_text(text)
    return file


def train(lab, base, *args, yaml=TRAIN, data=None):
    """Train one task for one step, in this process."""
    args = (*lab.quick, *DEBUG, "--task_classes=[[3,8]]", f"--output_base={base}", *args)
    return lab.learn(SupCLR, yaml, *args, data=data)[0]


@pytest.fixture(scope="module")
def trained(lab, tmp_path_factory):
    """The run folder of a `pann_tiny` of 16 features."""
    return train(lab, tmp_path_factory.mktemp("trained")).folder


def judging(lab, folder, *args, yaml=None):
    """The command line of an evaluation; what it does not name comes from the encoder's run."""
    yaml = yaml or REPO / "hparams" / JUDGE
    places = (f"--data_folder={lab.sounds}", f"--store_folder={lab.store}", "--output_base=judged")
    return ["linclf_train.py", yaml, *places, f"--ssl_checkpoints_dir={folder}", *args]


def judged_by(lab, folder, *args):
    """The run of an evaluation, nothing read or written."""
    return Run("", LinearProbe, list(map(str, judging(lab, folder, *args)[1:])), as_trained)


def judge(desk, *args, **kwargs):
    code, out, said = desk.run(judging(*args, **kwargs))
    assert code == 0, said
    return json.loads((desk.folder / JUDGED / "metrics.json").read_text()), out


# Each kind of encoder


WEIGHTS = "weights #1, of an encoder in a folder whose name is long enough to be folded onto a second line.pth"
TRAINED_FRONT_END = """!new:torch.nn.Sequential
  - !new:speechbrain.lobes.features.Fbank {n_mels: 80}
  - !new:torch.nn.Linear {in_features: 80, out_features: 80}"""
CASES = {  # the trainer's flags, definitions in its YAML, the encoder's name
    "another width": (("--emb_dim=12", "--mean_norm=False"), {}, "pann_tiny"),
    "ECAPA": (("--encoder=ecapa_tiny", "--emb_dim=8"), {}, "ecapa_tiny"),
    "an edited PANN": (("--encoder=cnn14", "--emb_norm_type=ln"), {"embedding_model": (
        "!new:models.pann.PANN\n  n_mels: !ref <n_mels>\n  channels: [16, 32, !ref <emb_dim>]\n  norm_type: in"
    )}, "PANN 16-32-16"),
    "an edited ECAPA": ((), {
        "embedding_model": "!new:models.ecapa.ECAPA {n_mels: 80, emb_dim: 16, channels: 32, last: 64}"
    }, "ECAPA"),
    "another front end": (("--n_mels=40", "--sample_rate=8000"), {"compute_features": (
        "!new:speechbrain.lobes.features.Fbank\n  sample_rate: !ref <sample_rate>\n  n_mels: !ref <n_mels>\n  f_min: 99"
    )}, "pann_tiny"),
    "a trained front end": (("--lr=1", "--warmup_epochs=0"), {"compute_features": TRAINED_FRONT_END}, "pann_tiny"),
    "published weights": (
        ("--encoder=narrow", "--emb_dim=128", "--lr=0", "--final_lr=0", f"--pretrained_weights={WEIGHTS}"), {}, "narrow"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_encoder_is_judged_as_it_was_trained(lab, desk, monkeypatch, case):
    flags, definitions, name = CASES[case]
    monkeypatch.setitem(ENCODERS, "narrow", lambda n_mels, emb_dim, norm_type: PANN(n_mels, NARROW, norm_type))
    monkeypatch.chdir(desk.folder)
    torch.save({"model": (published := pann_state(512))}, WEIGHTS)
    run = train(lab, desk.folder / "out", *flags, yaml=edited(desk.folder, TRAIN, **definitions))
    os.remove(WEIGHTS)
    metrics, _ = judge(desk, lab, run.folder)
    assert metrics["encoder"] == name and metrics["clips_embedded"] == 40
    check_embeddings(lab, run)
    if case == "published weights":  # the training started from them, and at rate 0 no weight moves
        convolution = run.hparams["modules"]["embedding_model"].conv_block6.conv2.weight
        assert torch.equal(convolution, published["conv_block6.conv2.weight"])


def check_embeddings(lab, run):
    """The evaluation kept what the trained modules make of the clips at the rate that they were trained with, and what
    the same modules do untrained."""
    untrained, embedder = (
        Embedder({part: modules[part] for part in PARTS})
        for modules in (judged_by(lab, run.folder).hparams["modules"], run.hparams["modules"])
    )
    files = {path.name.split(".")[0]: path for path in Path(run.folder, "embeddings").iterdir()}
    assert files.keys() == {untrained.key(), embedder.key()}
    with np.load(files[embedder.key()]) as kept:
        vectors = dict(zip(kept["ids"].tolist(), kept["vectors"], strict=True))
    rate = f"--sample_rate={run.hparams['sample_rate']}"
    data = lab.load(JUDGE, "--ssl_checkpoints_dir=unused", rate)[2]
    clips = data.rows["clip"][data.rows["task"] == 0].to_numpy()
    expected = embedder(data.store, clips)
    found = np.stack([vectors[clip_id] for clip_id in data.store.ids[clips]])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_of_another_data_set_is_judged_as_it_was_trained(lab, desk):
    flags = ("--task_classes=[[0,1]]", "--sample_rate=8000", "--front_end=fbank", "--n_mels=64", "--emb_dim=24")
    run = train(lab, desk.folder / "out", *flags, yaml="esc50/supclr_train.yaml", data=lab.esc50)
    metrics, _ = judge(desk, lab, run.folder, "--linclf_train_type=full", "--number_of_epochs=6")
    assert metrics["dataset"] == "UrbanSound8K" and metrics["clips_embedded"] == 200
    check_embeddings(lab, run)


def test_a_classifier_is_tested_with_the_front_end_of_its_task(lab, desk):
    """Also in a start that finds the task trained, which embeds no clip again."""
    yaml = edited(desk.folder, "us8k/sup_train.yaml", compute_features=TRAINED_FRONT_END)
    few = (*lab.quick, *DEBUG, "--lr=1", "--task_classes=[[3,8],[9,4]]", f"--output_base={desk.folder}")
    embedded = []
    for _ in range(2):
        assert desk.run(["sup_train.py", *lab.arguments(yaml, *few)])[0] == 0
        embedded.append(json.loads((desk.folder / "sup+seed_2022/metrics.json").read_text())["clips_embedded"])
    assert embedded == [10, 0]


# What the user says too


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--emb_dim=32", "emb_dim=16"), ("--encoder=cnn14", "encoder=pann_tiny"), ("--emb_norm_type=in", "=bn"),
     ("--n_mels=64", "n_mels=80"), ("--mean_norm=False", "mean_norm=True"), ("--front_end=pann_16k", "front_end=fbank"),
     ("--sample_rate=8000", "sample_rate=16000"), ("--embedding_model={n_mels: 40}", "another embedding_model")],
)  # fmt: skip
def test_a_flag_that_contradicts_the_encoder_is_refused(lab, desk, trained, flag, said):
    key = flag.partition("=")[0]
    desk.refused(judging(lab, trained, flag), f"error: {key}=", said, f"leave {key} out")


def test_a_flag_that_the_run_does_not_know_is_refused_where_it_would_do_nothing(lab, desk, trained):
    """As a run of a version that had no front ends, or of a YAML without that key."""
    old = copy_with(trained, desk.folder / "old", front_end=None, compute_features=(
        "!new:speechbrain.lobes.features.Fbank\n  sample_rate: 16000\n  n_mels: 80\n  n_fft: 512"))  # fmt: skip
    desk.refused(judging(lab, old, "--front_end=pann_16k"), "without the key front_end, so leave --front_end out")
    assert judge(desk, lab, old)[0]["clips_embedded"] == 40


def test_what_is_wrong_with_the_yaml_is_said_as_ever(lab, desk, trained):
    arguments = [token for token in judging(lab, trained) if "data_folder" not in str(token)]
    desk.refused(arguments, "data_folder is not set")
    desk.refused(judging(lab, trained, "--experiment_name=a<b>c"), 'The reference "b" is not valid')


# Run folders of strangers


def copy_with(run_folder, folder, **settings):
    """A copy of a run folder with other settings; None removes one."""
    shutil.copytree(run_folder, folder, dirs_exist_ok=True)
    saved = {**json.loads((folder / "settings.json").read_text()), **settings}
    (folder / "settings.json").write_text(json.dumps({key: value for key, value in saved.items() if value is not None}))
    return folder


FOREIGN = {
    "os.mkdir": ("embedding_model", "!apply:os.mkdir [ran]"),
    "python": ("compute_features", "!!python/object/apply:os.mkdir [ran]"),
    "a verbatim tag": ("compute_features", "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [ran]"),
    "by way of a module of ours": ("mean_var_norm", "!apply:models.encoders.os.mkdir [ran]"),
    "by way of torch": ("mean_var_norm", "!apply:torch.nn.functional.importlib.import_module [antigravity]"),
    "inside": ("compute_features", "!apply:models.features.make_front_end {name: fbank, fbank: !apply:os.mkdir [ran]}"),
    "without a space": ("embedding_model", '!new:models.pann.PANN {"n_mels":!apply:os.mkdir [ran]}'),
    "a scalar": ("sample_rate", "!apply:os.mkdir [ran]"),
    "an included file": ("embedding_model", "!include:other.yaml"),
    "of a library, from the network": ("embedding_model", "!new:speechbrain.lobes.models.beats.BEATs {ckp_path: x}"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_code_is_refused(lab, desk, trained, case):
    key, definition = FOREIGN[case]
    strange = copy_with(trained, desk.folder / "strange", **{key: definition})
    desk.refused(judging(lab, strange), f"builds {key} by !", "hyperparams.yaml")
    assert not (desk.folder / "ran").exists()


@pytest.mark.parametrize("value", ["16000\nmodules: !apply:os.mkdir [ran]", "16000\nseed: !apply:os.mkdir [ran]"])
def test_a_value_of_a_stranger_sets_its_own_key_only(lab, desk, trained, value):
    strange = copy_with(trained, desk.folder / "strange", sample_rate=value)
    judge(desk, lab, strange)
    assert not (desk.folder / "ran").exists()


@pytest.mark.parametrize("value", ["[80", "{a: b}\n---\nc", "a: b: c", 80, "null", "!new:models.nothing.Here"])
def test_damaged_settings_are_one_line(lab, desk, trained, value):
    desk.refused(judging(lab, copy_with(trained, desk.folder / "strange", embedding_model=value)))


def test_foreign_code_that_the_users_yaml_has_too_is_trusted(lab, desk):
    own = "!apply:copy.copy\n  - !apply:models.features.make_mean_norm\n    mean_norm: !ref <mean_norm>"
    run = train(lab, desk.folder / "out", yaml=edited(desk.folder, TRAIN, mean_var_norm=own))
    desk.refused(judging(lab, run.folder), "builds mean_var_norm by !apply:copy.copy")
    judge(desk, lab, run.folder, yaml=edited(desk.folder, JUDGE, mean_var_norm=own))


# Folders that move


def test_a_run_folder_that_was_moved_is_the_same_encoder(lab, desk, trained):
    first, second = desk.folder / "first", desk.folder / "elsewhere/second"
    shutil.copytree(trained, first)
    judge(desk, lab, first)
    shutil.move(first, second)
    flags = ("--emb_norm_type", "bn", "--encoder=pann_tiny", "--emb_dim=16", "--mean_norm=true", "--sample_rate=16000")
    for agreeing in ((), flags):
        metrics, out = judge(desk, lab, second, *agreeing)
        assert metrics["clips_embedded"] == 0 and out.count("judged already") == 2
    other = copy_with(second, desk.folder / "other", seed="1")  # another run's
    desk.refused(judging(lab, other), "is a run of other settings", f"ssl_checkpoints_dir: {second} there, {other} now")
    (second / "settings.json").unlink()  # at the same place, and described by flags, as runs of old versions
    assert judge(desk, lab, second, *lab.tiny)[0]["clips_embedded"] == 0


def test_moved_sounds_have_the_embeddings_that_were_kept(lab, desk, trained):
    shutil.copytree(trained, desk.folder / "run")
    judge(desk, lab, "run")
    shutil.copytree(lab.sounds, desk.folder / "sounds", copy_function=shutil.copy)  # with other times
    yaml = edited(desk.folder, JUDGE, ssl_checkpoints_dir="!ref <output_base>/../run")  # named there, this time
    arguments = judging(lab, "", "--experiment_name=again", f"--data_folder={desk.folder / 'sounds'}", yaml=yaml)
    assert desk.run([token for token in arguments if "ssl_checkpoints" not in str(token)])[0] == 0
    assert json.loads((desk.folder / "judged/again+seed_2022/metrics.json").read_text())["clips_embedded"] == 0


def test_an_evaluation_from_before_is_found(lab, tmp_path, trained):
    """Its encoder was described by flags, and its settings name no run."""
    flags = ("--number_of_epochs=6", f"--output_base={tmp_path}", f"--ssl_checkpoints_dir={trained}")
    before = lab.start_run(LinearProbe, JUDGE, *flags)
    before.open()
    assert "encoders" not in before.settings
    now = judged_by(lab, trained, *flags)  # no InputError: the same run
    assert now.settings.pop("encoders") and now.settings == before.settings


# A probe from outside the tree


def guessing(train, valid, n_classes, balanced, *, guess, valid_weight=2):
    """Predict one class for all clips."""

    def predict(vectors):
        return np.full(len(vectors), guess)

    predict.about = {"n_train": len(train), "valid_weight": valid_weight}
    return predict


def test_a_probe_from_outside_is_used_by_name(lab, desk, trained, monkeypatch):
    desk.refused(judging(lab, trained, "--probe=guessing"), "probe is 'guessing': choose one of linear")
    monkeypatch.setitem(PROBES, "guessing", guessing)
    desk.refused(judging(lab, trained, "--probe=guessing"), "The probe guessing needs the key guess")
    yaml = edited(desk.folder, JUDGE, probe="linear\nguess: 0")
    judge(desk, lab, trained, "--probe=guessing", "--guess=3", yaml=yaml)
    folder = desk.folder / JUDGED
    for name in ("accuracy_table.csv", "floor_table.csv"):
        assert pd.read_csv(folder / name, index_col="encoder").to_numpy()[0, 0] == 0.5  # of task 0's classes, 3 and 8
    kept = json.loads((folder / "save/task0.json").read_text())
    assert (kept["n_train"], kept["valid_weight"], kept["valid_accuracy"]) == (16, 2, 0.5) and "epoch" not in kept
    desk.refused(judging(lab, trained, "--probe=guessing", "--guess=8", yaml=yaml), "guess: 3 there, 8 now")

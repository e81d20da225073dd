"""An encoder is judged as it was trained: encoder, width, norms and front end come from its run folder."""

import copy
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.desk import Desk
from helpers.lab import DEBUG, REPO, edited
from helpers.weights import NARROW, pann_state
from linclf_train import LinearProbe
from models.encoders import ENCODERS
from models.pann import PANN
from sup_train import Supervised
from supclr_train import SupCLR
from utils.evaluation.embeddings import Embedder
from utils.evaluation.judge import Evaluation, evaluate_encoders
from utils.evaluation.own_test import TaskTests
from utils.evaluation.probes import PROBES
from utils.evaluation.saved import as_trained, find_checkpoints, load_encoder
from utils.run.experiment import Run
from utils.training.loop import Stream

PARTS = ("compute_features", "mean_var_norm", "embedding_model")
PROBE_YAML, TRAIN_YAML = "us8k/linclf_train.yaml", "us8k/supclr_train.yaml"
QUICK = ("--number_of_epochs=2", "--warmup_epochs=0", "--batch_size=16")
JUDGED = "judged/linclf+seed_2022"


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def train(lab, base, *args, yaml=TRAIN_YAML, data=None):
    """Train one task for one step, in this process."""
    args = (*lab.quick, *DEBUG, "--task_classes=[[3,8]]", f"--output_base={base}", *args)
    return lab.learn(SupCLR, yaml, *args, data=data)[0]


@pytest.fixture(scope="module")
def trained(lab, tmp_path_factory):
    """The run folder of a `pann_tiny` of 16 features."""
    return train(lab, tmp_path_factory.mktemp("trained")).folder


def judging(lab, folder, *args, yaml=REPO / "hparams" / PROBE_YAML):
    """The command line of an evaluation; what it does not name comes from the encoder's run."""
    places = (f"--data_folder={lab.sounds}", f"--store_folder={lab.store}", "--output_base=judged")
    return ["linclf_train.py", yaml, *places, *QUICK, f"--ssl_checkpoints_dir={folder}", *args]


def judge(desk, *args, judged=JUDGED, **kwargs):
    """Evaluate: metrics.json, and how many encoders were judged already."""
    done = desk.run(judging(*args, **kwargs))
    assert done.code == 0, done.said
    return json.loads((desk.folder / judged / "metrics.json").read_text()), done.out.count("judged already")


MAKE = """embedding_model: !apply:models.encoders.make_encoder
  name: !ref <encoder>
  n_mels: !ref <n_mels>
  emb_dim: !ref <emb_dim>
  norm_type: !ref <emb_norm_type>
  weights: !ref <pretrained_weights>
"""
OWN_PANN = """embedding_model: !new:models.pann.PANN
  n_mels: !ref <n_mels>
  channels: [16, 32, !ref <emb_dim>]
  norm_type: !ref <emb_norm_type>
"""
OWN_ECAPA = """embedding_model: !new:models.ecapa.ECAPA {n_mels: 80, emb_dim: 16, channels: 32, last: 64}
"""
WEIGHTS = "weights #1, of an encoder in a folder whose name is long enough to be folded onto a second line.pth"
CASES = {  # the trainer's flags, edits of its YAML, the encoder's name
    "another width": (("--emb_dim=12", "--mean_norm=False"), (), "pann_tiny"),
    "ECAPA": (("--encoder=ecapa_tiny", "--emb_dim=8"), (), "ecapa_tiny"),
    "an edited PANN": (("--encoder=cnn14", "--emb_norm_type=ln"), ((MAKE, OWN_PANN),), "PANN 16-32-16"),
    "an edited ECAPA": ((), ((MAKE, OWN_ECAPA),), "ECAPA"),
    "published weights": (("--encoder=narrow", "--emb_dim=128", f"--pretrained_weights={WEIGHTS}"), (), "narrow"),
    "another front end": (
        ("--n_mels=40", "--sample_rate=8000"), (("f_min: 0", "f_min: 100"), ("hop_length: 10", "hop_length: 20")),
        "pann_tiny",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_encoder_is_judged_as_it_was_trained(lab, desk, monkeypatch, case):
    flags, edits, name = CASES[case]
    monkeypatch.setitem(ENCODERS, "narrow", lambda n_mels, emb_dim, norm_type: PANN(n_mels, NARROW, norm_type))
    monkeypatch.chdir(desk.folder)
    torch.save({"model": pann_state(512)}, WEIGHTS)
    run = train(lab, desk.folder / "out", *flags, yaml=edited(desk.folder / "train.yaml", TRAIN_YAML, *edits))
    os.remove(WEIGHTS)
    metrics, _ = judge(desk, lab, run.folder)
    assert metrics["encoder"] == name and metrics["clips_embedded"] == 40
    check_embeddings(lab, run)


def check_embeddings(lab, run):
    """The evaluation kept what the trained modules make of the clips at the rate that they were trained with."""
    embedder = Embedder({part: run.hparams["modules"][part] for part in PARTS})
    with np.load(f"{run.folder}/embeddings/{embedder.key()}.npz") as kept:
        vectors = dict(zip(kept["ids"].tolist(), kept["vectors"], strict=True))
    rate = f"--sample_rate={run.hparams['sample_rate']}"
    data = lab.load(PROBE_YAML, "--ssl_checkpoints_dir=unused", rate)[2]
    clips = data.rows["clip"][data.rows["task"] == 0].to_numpy()
    expected = embedder(data.store, clips)
    found = np.stack([vectors[clip_id] for clip_id in data.store.ids[clips]])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_of_another_data_set_is_judged_as_it_was_trained(lab, desk):
    flags = ("--task_classes=[[0,1]]", "--sample_rate=8000", "--front_end=fbank", "--n_mels=64", "--emb_dim=24")
    run = train(lab, desk.folder / "out", *flags, yaml="esc50/supclr_train.yaml", data=lab.esc50)
    metrics, _ = judge(desk, lab, run.folder, "--linclf_train_type=full")
    assert metrics["dataset"] == "UrbanSound8K" and metrics["clips_embedded"] == 200
    check_embeddings(lab, run)


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
    old = copy_with(trained, desk.folder / "old", without="front_end", compute_features=(
        "!new:speechbrain.lobes.features.Fbank\n  sample_rate: 16000\n  n_mels: 80\n  n_fft: 512"))  # fmt: skip
    desk.refused(judging(lab, old, "--front_end=pann_16k"), "without the key front_end, so leave --front_end out")
    assert judge(desk, lab, old)[0]["clips_embedded"] == 40


def test_the_yaml_can_name_the_encoder_and_what_is_wrong_with_it_is_said(lab, desk, trained):
    shutil.copytree(trained, desk.folder / "encoder")
    key = "ssl_checkpoints_dir: "
    yaml = edited(desk.folder / "own.yaml", PROBE_YAML, (f"{key}!PLACEHOLDER", f"{key}!ref <output_base>/../encoder"))
    arguments = [token for token in judging(lab, "", yaml=yaml) if "ssl_checkpoints" not in str(token)]
    assert desk.run(arguments).code == 0
    desk.refused([token for token in arguments if "data_folder" not in str(token)], "data_folder is not set")
    desk.refused([*arguments, "--experiment_name=a<b>c"], 'The reference "b" is not valid')


def copy_with(run_folder, folder, without=None, **settings):
    """A copy of a run folder with other settings, and without one."""
    shutil.copytree(run_folder, folder, dirs_exist_ok=True)
    saved = {**json.loads((folder / "settings.json").read_text()), **settings}
    saved.pop(without, None)
    (folder / "settings.json").write_text(json.dumps(saved))
    return folder


@pytest.mark.parametrize(
    ("key", "definition"),
    [
        ("embedding_model", "!apply:os.mkdir [ran]"),
        ("compute_features", "!!python/object/apply:os.mkdir [ran]"),
        ("compute_features", "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [ran]"),
        ("mean_var_norm", "!apply:models.encoders.os.mkdir [ran]"),  # by way of a module of ours, then of torch's
        ("mean_var_norm", "!apply:torch.nn.functional.importlib.import_module [antigravity]"),
        ("compute_features", "!apply:models.features.make_front_end {name: fbank, fbank: !apply:os.mkdir [ran]}"),
        ("embedding_model", '!new:models.pann.PANN {"n_mels":!apply:os.mkdir [ran]}'),
        ("sample_rate", "!apply:os.mkdir [ran]"),
        ("embedding_model", "!include:other.yaml"),
        ("embedding_model", "!new:speechbrain.lobes.models.beats.BEATs {ckp_path: x}"),  # loads what is on the network
    ],
)
def test_foreign_code_is_refused(lab, desk, trained, key, definition):
    strange = copy_with(trained, desk.folder / "strange", **{key: definition})
    desk.refused(judging(lab, strange), f"builds {key} by !", "hyperparams.yaml")


def test_a_value_of_a_stranger_sets_its_own_key_only(lab, desk, trained):
    value = "16000\nmodules: !apply:os.mkdir [ran]\nseed: !apply:os.mkdir [ran]"
    judge(desk, lab, copy_with(trained, desk.folder / "strange", sample_rate=value))
    assert not (desk.folder / "ran").exists()


@pytest.mark.parametrize("value", ["[80", "{a: b}\n---\nc", "a: b: c", 80, None, "!new:models.nothing.Here"])
def test_damaged_settings_are_one_line(lab, desk, trained, value):
    desk.refused(judging(lab, copy_with(trained, desk.folder / "strange", embedding_model=value)))


def test_foreign_code_that_the_users_yaml_has_too_is_trusted(lab, desk):
    make = "!apply:models.features.make_mean_norm\n  mean_norm: !ref <mean_norm>\n"
    own = "!apply:copy.copy\n  - !apply:models.features.make_mean_norm\n    mean_norm: !ref <mean_norm>\n"
    run = train(lab, desk.folder / "out", yaml=edited(desk.folder / "train.yaml", TRAIN_YAML, (make, own)))
    desk.refused(judging(lab, run.folder), "builds mean_var_norm by !apply:copy.copy")
    judge(desk, lab, run.folder, yaml=edited(desk.folder / "judge.yaml", PROBE_YAML, (make, own)))
    check_embeddings(lab, run)


def test_what_was_judged_is_found_when_folders_move(lab, desk, trained):
    """Flags that agree with the encoder change nothing."""
    first, second = desk.folder / "first", desk.folder / "elsewhere/second"
    shutil.copytree(trained, first)
    judge(desk, lab, first)
    shutil.move(first, second)
    agreeing = ("--emb_norm_type", "bn", "--encoder=pann_tiny", "--emb_dim=16", "--mean_norm=true")
    metrics, already = judge(desk, lab, second, *agreeing, "--sample_rate=16000")
    assert metrics["clips_embedded"] == 0 and already == 2
    shutil.copytree(lab.sounds, desk.folder / "sounds", copy_function=shutil.copy)  # with other times
    moved = ("--experiment_name=again", f"--data_folder={desk.folder / 'sounds'}")
    assert judge(desk, lab, second, *moved, judged="judged/again+seed_2022")[0]["clips_embedded"] == 0
    other = copy_with(second, desk.folder / "other", seed="1")  # another run's
    desk.refused(judging(lab, other), "is a run of other settings", f"ssl_checkpoints_dir: {second} there, {other} now")
    (second / "settings.json").unlink()  # at the same place, whatever its settings
    judge(desk, lab, second, *lab.tiny)


def test_an_evaluation_from_before_is_found(lab, tmp_path, trained):
    """Its encoder was described by flags, and its settings name no run."""
    flags = (*QUICK, f"--output_base={tmp_path}", f"--ssl_checkpoints_dir={trained}")
    before = lab.start_run(LinearProbe, PROBE_YAML, *flags)
    before.open()
    assert "encoders" not in before.settings
    yaml, *places = (token for token in lab.arguments(PROBE_YAML, *flags) if token not in lab.tiny)
    now = Run("", LinearProbe, [yaml, *places], as_trained)  # no InputError: the same run
    assert now.settings.pop("encoders") and now.settings == before.settings


class Scale(torch.nn.Module):
    """In the mean normalisation's place: a learnt factor for each mel band."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.full((80,), 0.1))

    def forward(self, features, lengths):
        return features * self.factor


def test_a_trained_front_end_is_judged_and_its_floor_is_untrained(lab, tmp_path):
    two = ("--task_classes=[[3,8],[9,4]]", f"--output_base={tmp_path}", "--lr=0.1")
    run = lab.start_run(Supervised, "us8k/sup_train.yaml", *lab.quick, *DEBUG, *two)
    run.hparams["modules"]["mean_var_norm"] = Scale()
    stream, factors = Stream(Supervised, run), []
    tests = TaskTests(run, stream.modules)
    run.open()

    def after_task(task, folder):
        tests(task, folder)
        factors.append(stream.modules["mean_var_norm"].factor.detach().clone())

    stream.train(after_task)
    tests.results()
    assert torch.equal(stream.modules["mean_var_norm"].factor, Scale().factor)
    assert not torch.equal(factors[0], factors[1]) and not torch.equal(factors[0], Scale().factor)
    judged = lab.start_run(LinearProbe, PROBE_YAML, *QUICK, f"--ssl_checkpoints_dir={run.folder}", *two)
    modules, folders = judged.hparams["modules"], find_checkpoints(run.folder)
    modules["mean_var_norm"] = Scale()
    untrained = copy.deepcopy(modules["embedding_model"].state_dict())
    evaluation = Evaluation(LinearProbe, judged)
    for folder, factor in zip(folders, factors, strict=True):
        load_encoder(folder, modules)
        assert torch.equal(modules["mean_var_norm"].factor, factor)
    evaluate_encoders(evaluation, folders, untrained)
    assert torch.equal(modules["mean_var_norm"].factor, Scale().factor)


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
    yaml = edited(desk.folder / "own.yaml", PROBE_YAML, ("probe: linear", "probe: linear\nguess: 0"))
    judge(desk, lab, trained, "--probe=guessing", "--guess=3", yaml=yaml)
    folder = desk.folder / JUDGED
    for name in ("accuracy_table.csv", "floor_table.csv"):
        assert pd.read_csv(folder / name, index_col="encoder").to_numpy()[0, 0] == 0.5  # of task 0's classes, 3 and 8
    kept = json.loads((folder / "save/task0.json").read_text())
    assert (kept["n_train"], kept["valid_weight"], kept["valid_accuracy"]) == (16, 2, 0.5) and "epoch" not in kept
    desk.refused(judging(lab, trained, "--probe=guessing", "--guess=8", yaml=yaml), "guess: 3 there, 8 now")

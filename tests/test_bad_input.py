"""Bad input: one clear line that names the fix, exit code 2, no traceback, and the disk as it was.

Most cases run a script's main block in this process, which is quick; a handful run it as a user does.
"""

import contextlib
import csv
import json
import logging
import os
import random
import runpy
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

from datasets import esc50, us8k
from datasets.errors import InputError
from utils import config, runs
from utils.metrics import read_table

import numpy as np
import pytest
import soundfile
import torch
from filelock import FileLock

REPO = Path(__file__).parents[1]
TRAIN_YAML, PROBE_YAML = (REPO / f"hparams/us8k/{name}_train.yaml" for name in ("supclr", "linclf"))
CLASSES = ("dog bark", "siren", "drill", "horn")
HEADER = "slice_file_name,fold,classID,class"
ENCODER = ("--encoder=pann_tiny", "--emb_dim=8", "--device=cpu")
SHORT = ("--number_of_epochs=1", "--warmup_epochs=0", "--batch_size=4")


def write_sounds(folder):
    """UrbanSound8K's layout: 4 classes, one clip of 0.2 s a class and fold, so 8 + 1 + 1 clips a class."""
    noise, rows = np.random.default_rng(0), [HEADER]
    for fold in range(1, 11):
        (folder / f"audio/fold{fold}").mkdir(parents=True)
        for label, name in enumerate(CLASSES):
            soundfile.write(folder / f"audio/fold{fold}/{fold}-{label}.wav", 0.1 * noise.standard_normal(3200), 16000)
            rows.append(f"{fold}-{label}.wav,{fold},{label},{name}")
    (folder / "metadata").mkdir()
    (folder / "metadata/UrbanSound8K.csv").write_text("\n".join(rows) + "\n")
    return folder


def tree(folder, without=None):
    """Every path below a folder with the state of its content; a lock file is no content."""
    paths = [p for p in sorted(Path(folder).rglob("*")) if p.name != ".lock" and without not in (p, *p.parents)]
    stats = {path: path.lstat() for path in paths}
    return {str(path): (stat.st_mtime_ns if path.is_file() else 0, stat.st_size if path.is_file() else 0)
            for path, stat in stats.items()}  # fmt: skip


class Desk:
    """A folder with sounds and a trained encoder of three tasks, and the scripts run beside it."""

    def __init__(self, folder, capsys=None):
        self.folder, self.capsys = folder, capsys
        self.sounds, self.runs, self.store = folder / "sounds", folder / "runs", folder / "store"
        self.common = (*ENCODER, *SHORT, f"--data_folder={self.sounds}", f"--store_folder={self.store}")

    def train_args(self, *args):
        settings = ("--task_classes=[[0],[1],[2,3]]", "--train_duration=0.2", "--num_workers=0", "--precision=fp32")
        return ["supclr_train.py", TRAIN_YAML, *self.common, *settings, f"--output_base={self.runs}", *args]

    def probe_args(self, *args):
        places = (f"--output_base={self.folder / 'judged'}", f"--ssl_checkpoints_dir={self.runs}")
        return ["linclf_train.py", PROBE_YAML, *self.common, "--task_classes=[[0],[1],[2,3]]", *places, *args]

    def run(self, arguments):
        """Run a script in this process: exit code, stdout, stderr."""
        code, hook = 0, sys.excepthook
        try:
            with pytest.MonkeyPatch.context() as patch, contextlib.chdir(self.folder):
                patch.setattr(sys, "argv", [str(a) for a in arguments])
                runpy.run_path(str(REPO / arguments[0]), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        finally:
            sys.excepthook = hook
            for lock in runs._locks:
                lock.release()
            runs._locks.clear()
            for name in (None, "datasets", "utils"):
                for handler in logging.getLogger(name).handlers[:]:
                    if not type(handler).__module__.startswith("_pytest"):
                        logging.getLogger(name).removeHandler(handler)
        said = self.capsys.readouterr() if self.capsys else None
        return code, said and said.out, said and said.err

    def refused(self, arguments, *words, lines=1):
        """Run a script, which must refuse its input as this file's first line says; what it said."""
        before, begun = tree(self.folder), time.monotonic()
        code, _, said = self.run(arguments)
        assert code == 2, said
        assert time.monotonic() - begun < 30
        assert said.startswith("error: ") and said.count("\n") == lines and "Traceback" not in said, said
        for word in words:
            assert str(word) in said, said
        assert tree(self.folder, self.store) == {p: s for p, s in before.items() if not p.startswith(str(self.store))}
        # The store is a cache: it may hold another whole store, or nothing.
        inside = {path: state for path, state in tree(self.store).items() if path not in before}
        assert not any(".writing" in path for path in inside)
        assert not [p for p in inside if ".int16" in p] or [p for p in inside if p.endswith("store.json")]
        return said


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Files only: nothing here may change in a test."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    write_sounds(desk.sounds)
    assert desk.run(desk.train_args())[0] == 0
    return desk.folder


@pytest.fixture
def desk(trained, capsys):
    """The trained encoder, for cases that leave the disk as it was."""
    return Desk(trained, capsys)


@pytest.fixture
def copy(trained, tmp_path, capsys):
    """A copy of it to spoil. Files keep their times, and the store is not copied, because it knows its data's path."""
    shutil.copytree(trained, tmp_path / "desk", ignore=lambda folder, names: {"store"} & set(names))
    return Desk(tmp_path / "desk", capsys)


# Each with --overwrite=True and the name of the trained run, whose files must survive the refusal.
BAD_TRAINING = {
    "data_folder missing": ("--data_folder=/no/such", "/no/such", "metadata/UrbanSound8K.csv", "no such"),
    "data_folder empty": ("--data_folder=", "--data_folder has no value"),
    "data_folder with =": ("--data_folder=/a=b", "/a=b/metadata/UrbanSound8K.csv"),
    "data_folder with #": ("--data_folder=/a #b", "/a #b/metadata/UrbanSound8K.csv"),
    "data_folder a number": ("--data_folder=2022", "2022/metadata/UrbanSound8K.csv"),
    "unknown key": ("--zzz=3", "--zzz is no key", "experiment_name"),
    "private key": ("--__set_seed=3", "is no key"),
    "misspelt key": ("--batchsize=3", "did you mean --batch_size?"),
    "misspelt option": ("--debugg", "did you mean --debug?"),
    "part of a key": ("--epochs=3", "--number_of_epochs"),
    "prefix of an option": ("--debu", "did you mean --debug?"),
    "key without value": ("--batch_size", "--batch_size=VALUE"),
    "one dash": ("-lr=3", "--lr=3"),
    "nameless key": ("--=3", "is no key"),
    "batch_size abc": ("--batch_size=abc", "batch_size", "whole number"),
    "batch_size 4.0": ("--batch_size=4.0", "whole number"),
    "batch_size too many": ("--batch_size=40", "Task 0 (dog bark) has 8 training clips", "lower batch_size"),
    "batch_size 1": ("--batch_size=1", "batch_size", "at least 2"),
    "bool maybe": ("--use_mixup=maybe", "True or False"),
    "epochs 2.5": ("--number_of_epochs=2.5", "whole number"),
    "epochs 0": ("--number_of_epochs=0", "at least 1"),
    "duration -1": ("--train_duration=-1", "train_duration", "at least 0.05"),
    "duration nan": ("--train_duration=.nan", "train_duration"),
    "lr abc": ("--lr=abc", "lr is 'abc'", "number"),
    "lr -1": ("--lr=-1", "lr is -1"),
    "lr infinite": ("--lr=.inf", "lr is inf"),
    "final_lr abc": ("--final_lr=abc", "final_lr"),
    "seed -1": ("--seed=-1", "seed"),
    "no loss": ("--ssl_weight=0", "ssl_weight and sup_weight are 0"),
    "negative weight": ("--sup_weight=-1", "sup_weight"),
    "temperature 0": ("--temperature=0", "temperature"),
    "mixup_alpha 0": ("--mixup_alpha=0", "mixup_alpha"),
    "sample_rate beyond the front end": ("--sample_rate=22050", "compute_features", "22050", "n_fft"),
    "n_mels too few": ("--n_mels=4", "4 mel bands"),
    "emb_dim -8": ("--emb_dim=-8", "emb_dim"),
    "reference": ("--experiment_name=a<b>c", 'The reference "b" is not valid'),
    "encoder": ("--encoder=resnet", "Unknown encoder 'resnet'", "cnn14", "ecapa"),
    "emb_norm_type": ("--emb_norm_type=xx", "'xx'", "bn, in, ln"),
    "proj_norm_type": ("--proj_norm_type=xx", "'xx'", "bn, in, ln, id"),
    "an object": ("--opt_class=adam", "opt_class is built by the YAML"),
    "a module": ("--embedding_model=3", "embedding_model", "built by the YAML"),
    "modules": ("--modules=3", "modules is built by the YAML"),
    "class unknown": ("--task_classes=[[0,99]]", "unknown class 99", "0 dog bark, 1 siren"),
    "class name unknown": ("--task_classes=[[cat]]", "unknown class 'cat'"),
    "class in two tasks": ("--task_classes=[[0,1],[1,2]]", "class 1 in tasks 0 and 1"),
    "class by name and number": ("--task_classes=[[1],[siren]]", "'siren' in tasks 0 and 1"),
    "class twice": ("--task_classes=[[0,0]]", "class 0 in task 0 twice"),
    "task empty": ("--task_classes=[[0,1],[]]", "task 1 is []", "[[0, 1], [2, 3]]"),
    "tasks empty": ("--task_classes=[]", "task_classes is []"),
    "tasks no list": ("--task_classes=3", "task_classes is 3", "[[0, 1], [2, 3]]"),
    "tasks flat": ("--task_classes=[0,1]", "task 0 is 0"),
    "tasks not closed": ("--task_classes=[[0,1],[2,3]", "--task_classes=[[0,1],[2,3] is not valid YAML"),
    "keep -1": ("--replay_num_keep=-1", "replay_num_keep is -1", "all"),
    "keep abc": ("--replay_num_keep=abc", "replay_num_keep is 'abc'"),
    "warm-up too long": ("--warmup_epochs=1", "warmup_epochs is 1 of 1 epochs"),
    "logger unknown": ("--extra_logger=mlflow", "'mlflow'", "tensorboard, wandb"),
    "precision fp16": ("--precision=fp16", "precision is 'fp16'", "bf16"),
    "precision fp99": ("--precision=fp99", "--precision", "'fp32', 'fp16', 'bf16'"),
    "device unknown": ("--device=abacus", "--device=abacus", "--device=cpu"),
    "device without value": ("--device", "--device"),
    "clip 0": ("--max_grad_norm=0", "max_grad_norm", ".inf"),
    "clip -1": ("--max_grad_norm=-1", "max_grad_norm", ".inf"),
    "option abc": ("--debug_batches=abc", "debug_batches", "'abc'"),
    "option 0": ("--grad_accumulation_factor=0", "at least 1"),
    "debug_batches 0": ("--debug_batches=0", "at least 1"),
    "option of no use": ("--test_only", "linclf_train.py"),
    "option with value": ("--debug=True", "--debug"),
    "num_workers -1": ("--num_workers=-1", "num_workers"),
    "store_folder a file": (f"--store_folder={REPO / 'pyproject.toml'}", "store_folder"),
    "output_base a file": (f"--output_base={REPO / 'pyproject.toml'}", "output_base"),
}


@pytest.mark.parametrize("bad", BAD_TRAINING.values(), ids=BAD_TRAINING.keys())
def test_training_is_refused(desk, bad):
    desk.refused(desk.train_args("--overwrite=True", bad[0]), *bad[1:])


BAD_PROBE = {
    "type unknown": ("--linclf_train_type=lep", "'lep'", "seen, subset, buffer, full"),
    "keep 0": ("--replay_num_keep=0 --linclf_train_type=subset", "replay_num_keep", "above 0"),
    "keep abc": ("--replay_num_keep=abc --linclf_train_type=buffer", "replay_num_keep is 'abc'"),
    "encoders more than tasks": ("--task_classes=[[0,1],[2,3]]", "3 encoders for 2 tasks", "linclf_train_type=full"),
    "no such folder": ("--ssl_checkpoints_dir=/no/such", "/no/such", "ssl_checkpoints_dir"),
    "folder without a run": (f"--ssl_checkpoints_dir={REPO / 'models'}", "No checkpoint in", "ssl_checkpoints_dir"),
    "a file": (f"--ssl_checkpoints_dir={REPO / 'pyproject.toml'}", "No checkpoint in"),
    "other emb_dim": ("--emb_dim=16", "trained with another encoder", "--emb_dim=8"),
    "other encoder": ("--encoder=ecapa_small", "--encoder=pann_tiny"),
    "other front end": ("--n_mels=40", "--n_mels=80"),
    "eval_precision fp16": ("--eval_precision=fp16", "eval_precision"),
    "standardise": ("--standardise=3", "True or False"),
    "batch 0": ("--embedding_batch_size=0", "embedding_batch_size"),
    "lr abc": ("--lr=abc", "lr is 'abc'"),
    "warm-up too long": ("--warmup_epochs=1", "warmup_epochs"),
    "key of the other script": ("--ssl_weight=1", "--ssl_weight is no key"),
}


@pytest.mark.parametrize("bad", BAD_PROBE.values(), ids=BAD_PROBE.keys())
def test_evaluation_is_refused(desk, bad):
    desk.refused(desk.probe_args(*bad[0].split()), *bad[1:])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none(desk):
    desk.refused(desk.train_args("--device=cuda"), "--device=cuda can't be used here", "--device=cpu")


def test_logger_that_is_not_installed(desk, monkeypatch):
    monkeypatch.setattr(config.importlib.util, "find_spec", lambda name: None)
    desk.refused(desk.train_args("--overwrite=True", "--extra_logger=wandb"), "pip install wandb")


# The configuration file


def test_placeholders_and_files(desk, tmp_path):
    desk.refused(["supclr_train.py", TRAIN_YAML], "data_folder is not set", "--data_folder=VALUE", TRAIN_YAML)
    desk.refused(["linclf_train.py", PROBE_YAML, f"--data_folder={desk.sounds}"], "ssl_checkpoints_dir is not set")
    desk.refused(["supclr_train.py", TRAIN_YAML.with_name("nope.yaml")], "nope.yaml", "holds linclf_train.yaml, simclr")
    desk.refused(["supclr_train.py", "--debug"], "No configuration file", "hparams/demo/supclr_train.yaml")
    desk.refused(["supclr_train.py", "--device", "cpu"], "No configuration file")
    desk.refused(["supclr_train.py", f"--data_folder={desk.sounds}"], "No configuration file")
    desk.refused(["supclr_train.py", TRAIN_YAML, "--debug", "foo"], "'foo'")
    desk.refused(["supclr_train.py", PROBE_YAML, f"--data_folder={desk.sounds}"], "has no ssl_weight: is it")
    desk.refused(["linclf_train.py", TRAIN_YAML, f"--data_folder={desk.sounds}"], "has no ssl_checkpoints_dir")


BAD_YAML = {
    "not closed": ("seed: 2022", "seed: [2022", "is not valid YAML (line"),
    "key twice": ("seed: 2022", "seed: 2022\nseed: 1", "duplicate key"),
    "binary": ("seed: 2022", "\0", "bad.yaml"),
    "a list": (None, "- 1\n- 2\n", "key: value"),
    "empty": (None, "# nothing\n", "bad.yaml is empty"),
    "others": (None, "seed: 1\n", "--data_folder is no key"),
    "unknown argument": ("time_warp: 8", "time_wrap: 8", "time_wrap"),
    "unknown object": ("!new:models.features.SpecAugment", "!new:models.features.Augment", "Augment"),
    "unknown reference": ("!ref <encoder>", "!ref <coder>", "coder"),
    "precision": ("precision: !apply:utils.hardware.fastest_precision", "precision: fp99", "precision is 'fp99'"),
    "clip": ("max_grad_norm: 5.0", "max_grad_norm: -1", "max_grad_norm is -1"),
    "rate": ("sample_rate: 16000", "sample_rate: 16 kHz", "sample_rate is '16 kHz'"),
}


@pytest.mark.parametrize("bad", BAD_YAML.values(), ids=BAD_YAML.keys())
def test_yaml_is_refused(desk, tmp_path, bad):
    old, new, word = bad
    text = TRAIN_YAML.read_text()
    assert old is None or old in text
    file = tmp_path / "bad.yaml"
    file.write_text(new if old is None else text.replace(old, new))
    desk.refused(["supclr_train.py", file, f"--data_folder={desk.sounds}", *ENCODER], word)


# The data


def test_wrong_layout_says_what_is_expected_and_shows_what_is_there(desk):
    overwrite = "--overwrite=True"  # or else it is another run's folder
    said = desk.refused(desk.train_args(overwrite, f"--data_folder={desk.folder}"), "is not in data_folder")
    assert f"expected {desk.folder / 'metadata/UrbanSound8K.csv'}; found runs, sounds, store" in said
    file = desk.sounds / "metadata/UrbanSound8K.csv"
    desk.refused(desk.train_args(overwrite, f"--data_folder={file}"), "not a directory")


BAD_METADATA = {
    "column missing": (lambda t: t.replace("classID", "label"), "lacks the columns classID; it has slice_file_name"),
    "semicolons": (lambda t: t.replace(",", ";"), "lacks the columns"),
    "empty": (lambda t: "", "not a readable table"),
    "no rows": (lambda t: HEADER + "\n", "has no rows"),
    "binary": (lambda t: bytes(range(256)) * 20, "not a readable table"),
    "fold no number": (lambda t: t.replace("1-0.wav,1,", "1-0.wav,one,"), "line 2: a fold that is no whole number"),
    "fold negative": (lambda t: t.replace("1-1.wav,1,", "1-1.wav,-1,"), "line 3: a fold"),
    "fold 11": (lambda t: t.replace("1-0.wav,1,", "1-0.wav,11,"), "no fold 11"),
    "class empty": (lambda t: t.replace("dog bark", ""), "line 2: no class (10 such rows)"),
    "row short": (lambda t: t.replace("1-0.wav,1,0,dog bark", "1-0.wav,1,0"), "line 2: no class"),
    "rows long": (lambda t: "\n".join([HEADER, *(f"{row},x" for row in t.splitlines()[1:])]), "more cells"),
    "name with ..": (lambda t: t.replace("1-0.wav", "../1-0.wav"), "line 2: a slice_file_name that leaves"),
    "name absolute": (lambda t: t.replace("1-0.wav", "/etc/passwd"), "leaves the data folder"),
}


@pytest.mark.parametrize("bad", BAD_METADATA.values(), ids=BAD_METADATA.keys())
def test_metadata_is_refused(copy, bad):
    change, word = bad
    file = copy.sounds / "metadata/UrbanSound8K.csv"
    text = change(file.read_text())
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    copy.refused(copy.train_args("--overwrite=True"), word, file if "fold 11" not in word else "UrbanSound8K")


def spoil_audio(sounds):
    """Spoil four clips, of every kind; the names with the reasons."""
    audio = sounds / "audio"
    (audio / "fold1/1-0.wav").unlink()
    (audio / "fold2/2-1.wav").write_bytes(b"no sound " * 99)
    soundfile.write(audio / "fold9/9-2.wav", np.zeros(0), 16000)
    (audio / "fold10/10-3.wav").write_bytes(b"")
    return {"fold1/1-0.wav": "no such file", "fold2/2-1.wav": "unreadable", "fold9/9-2.wav": "no samples",
            "fold10/10-3.wav": "empty file"}  # fmt: skip


@pytest.mark.parametrize("store", [(), ("--store_folder=null",)], ids=["store", "on the fly"])
def test_bad_clips_are_listed_in_one_go_or_skipped(copy, store):
    expected = spoil_audio(copy.sounds)
    said = copy.refused(copy.train_args("--overwrite=True", *store), "--skip_bad_audio=True", lines=5)
    for name, reason in expected.items():
        assert [line for line in said.splitlines()[1:] if name in line and reason in line], said
    assert said.startswith("error: 4 of 40 ")

    code, out, err = copy.run(copy.train_args("--skip_bad_audio=True", "--experiment_name=skipped", *store))
    assert code == 0 and "4 of 40 clips" in out, out + err
    assert "4 of 40 clips" in (copy.runs / "skipped+seed_2022/log.txt").read_text()
    with open(copy.runs / "skipped+seed_2022/save/train_task0_raw.csv", newline="") as file:
        assert [row["wav_path"] for row in csv.DictReader(file)] == [f"audio/fold{k}/{k}-0.wav" for k in range(2, 9)]


def test_task_whose_clips_are_all_bad(copy):
    for file in copy.sounds.glob("audio/*/*-[23].wav"):
        file.write_bytes(b"")
    copy.refused(copy.train_args("--skip_bad_audio=True", "--overwrite=True"), "Task 2 (no usable clip) has 0 training")


def test_mending_what_was_wrong_is_all_it_takes(copy):
    """A refused start leaves nothing behind that refuses the next, with the mended setting."""
    spoil_audio(copy.sounds)
    name = "--experiment_name=mended"
    copy.refused(copy.train_args(name), "--skip_bad_audio=True", lines=5)
    copy.refused(copy.train_args(name, "--skip_bad_audio=True", "--batch_size=40"), "lower batch_size")
    assert copy.run(copy.train_args(name, "--skip_bad_audio=True"))[0] == 0


def test_store_of_another_sample_rate(copy):
    assert copy.run(copy.train_args("--experiment_name=first"))[0] == 0
    (manifest,) = copy.store.glob("*/store.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "sample_rate": 8000}))
    copy.refused(copy.train_args("--overwrite=True"), "sample_rate=8000", "16000", "delete that folder", "store_folder")


# The run folder


def test_folder_of_another_run(desk):
    said = desk.refused(desk.train_args("--lr=0.5", "--use_mixup=True"), "run of other settings", "--overwrite=True")
    assert "lr: " in said and "0.5 now" in said and "use_mixup: false there, true now" in said.lower()
    assert "batch_size" not in said


def test_folder_of_something_else(copy):
    other = copy.runs / "other+seed_2022"
    for name, content in (("thesis.txt", "x"), ("settings.json", '{"editor.fontSize": 12}'), ("settings.json", "[]")):
        shutil.rmtree(other, ignore_errors=True)
        other.mkdir()
        (other / name).write_text(content)
        for overwrite in ("True", "False"):
            copy.refused(copy.train_args("--experiment_name=other", f"--overwrite={overwrite}"), other)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_base_that_cannot_be_written(copy):
    copy.runs.chmod(0o500)
    copy.refused(copy.train_args("--experiment_name=new"), "Set output_base")


def test_overwrite_starts_that_run_afresh_and_no_other(copy):
    assert copy.run(copy.train_args("--experiment_name=twin"))[0] == 0
    twin, first = copy.runs / "twin+seed_2022", copy.runs / "supclr+seed_2022"
    (twin / "leftover").mkdir()
    (twin / "link").symlink_to(first)
    kept, old = tree(first), tree(twin)
    assert copy.run(copy.train_args("--experiment_name=twin", "--overwrite=True", "--lr=0.5"))[0] == 0
    assert tree(first) == kept
    assert not (twin / "leftover").exists() and not (twin / "link").is_symlink()
    checkpoints = [path for path in old if path.endswith(".ckpt")]
    assert checkpoints and not any(tree(twin).get(path) == old[path] for path in checkpoints)


def test_loss_that_is_not_finite(copy):
    arguments = copy.train_args("--experiment_name=nan", "--lr=1e38", "--number_of_epochs=4", "--nonfinite_patience=0")
    code, out, said = copy.run(arguments)
    assert code == 2 and said.count("\n") == 1, said
    assert said.startswith("error: The loss is infinite or NaN at task 0, epoch ") and ": lower lr" in said, said
    assert not list(copy.runs.glob("nan+seed_2022/save/task*/CKPT*/*.ckpt.tmp"))
    code, _, said = copy.run(copy.train_args("--experiment_name=nan", "--overwrite=True"))
    assert code == 0, said


# The encoder's checkpoints


def spoil(kind, file):
    if kind == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif kind == "empty":
        os.truncate(file, 0)
    elif kind == "text":
        file.write_text("<html>404</html>")
    elif kind == "other weights":
        torch.save({"weight": torch.zeros(3)}, file)
    elif kind == "no weights":
        torch.save([1, 2], file)
    else:
        file.unlink()


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "other weights", "no weights", "gone"])
def test_damaged_weights(copy, kind):
    """Those of the last task, so that a late discovery would show as files of the first ones."""
    (file,) = copy.runs.glob("*/save/task2/CKPT*/embedding_model.ckpt")
    spoil(kind, file)
    words = {"other weights": "does not fit", "no weights": "does not fit", "gone": "has no embedding_model.ckpt"}
    copy.refused(copy.probe_args(), file.parent, words.get(kind, "is damaged"))


def test_damaged_meta_file(copy):
    (file,) = copy.runs.glob("*/save/task1/CKPT*/CKPT.yaml")
    file.write_text("")
    copy.refused(copy.probe_args(), file, "is damaged")


def test_other_architecture_without_settings_to_compare(copy):
    (copy.runs / "supclr+seed_2022/settings.json").unlink()
    copy.refused(copy.probe_args("--emb_dim=16"), "task0", "does not fit the embedding_model")


def test_several_runs_are_listed(copy):
    shutil.copytree(copy.runs / "supclr+seed_2022", copy.runs / "b+seed_1")
    copy.refused(copy.probe_args(), "holds several runs", "b+seed_1, supclr+seed_2022")
    copy.refused(copy.probe_args(f"--ssl_checkpoints_dir={copy.runs}/save"), "b+seed_1, supclr+seed_2022")


# As a user runs it


def start(arguments, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPO / arguments[0]), *map(str, arguments[1:])]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


AS_A_USER = {
    "data_folder": (lambda desk: ["supclr_train.py", TRAIN_YAML], "error: data_folder is not set: add "),
    "misspelt": (lambda desk: desk.train_args("--batchsize=3"), "error: --batchsize is no key"),
    "metadata": (lambda desk: desk.train_args("--data_folder=/no", "--overwrite=True"), "error: metadata/UrbanSound8K"),
    "checkpoints": (lambda desk: desk.probe_args("--ssl_checkpoints_dir=no"), "error: No checkpoint in no: is "),
}


@pytest.mark.parametrize("case", AS_A_USER.values(), ids=AS_A_USER.keys())
def test_as_a_user(trained, case):
    desk = Desk(trained)
    before = tree(trained)
    done = start(case[0](desk), trained)
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr.startswith(case[1]) and done.stderr.count("\n") == 1, done.stderr
    assert tree(trained) == before


def test_folder_in_use_by_another_process(trained):
    desk = Desk(trained)
    before = tree(trained)
    with FileLock(desk.runs / "supclr+seed_2022/.lock"):
        done = start(desk.train_args(), trained)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: Another process is working in ")
    assert tree(trained) == before


# Random bytes

ATOMS = [",", "\n", "\r", '"', "'", "\t", ";", "\0", "#", " ", "-1", "1e9", "9" * 30, "nan", "inf", "../", "/", "é",
         "fold", ",,,", "\n\n", "\u0663", "\ufeff"]  # fmt: skip


def mutate(text, rng):
    """Insert, delete, cut and repeat at random."""
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 5)):
        at, kind = rng.randrange(len(data) + 1), rng.random()
        if kind < 0.4:
            data[at:at] = rng.choice(ATOMS).encode()
        elif kind < 0.7:
            del data[at : at + rng.randint(1, 8)]
        elif kind < 0.8:
            data[at:at] = rng.randbytes(rng.randint(1, 9))
        elif kind < 0.9:
            del data[at:]
        else:
            data[at:at] = data[: rng.randint(1, 60)]
    return bytes(data)


@pytest.mark.parametrize(
    "dataset, name, columns",
    [(us8k, "metadata/UrbanSound8K.csv", HEADER), (esc50, "meta/esc50.csv", "filename,fold,target,category,esc10")],
)
def test_random_metadata_is_read_or_refused(tmp_path, dataset, name, columns):
    rng, outcomes = random.Random(0), set()
    rows = [f"{i}.wav,{i % 5 + 1},{i % 3},class {i % 3}" + ",True" * (dataset is esc50) for i in range(9)]
    good = "\n".join([columns, *rows]) + "\n"
    (tmp_path / name).parent.mkdir()
    for _ in range(250):
        (tmp_path / name).write_bytes(mutate(good, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                table, classes = dataset.load(str(tmp_path))
            assert not table.isna().any(axis=None) and set(table["class_name"]) <= set(classes)
            assert not table["wav_path"].str.contains(r"(?:^|[/\\])\.\.(?:[/\\]|$)").any()
            assert set(table["split"]) <= {"train", "valid", "test"} and (table["fold"] > 0).all()
            outcomes.add("read")
        except InputError as error:
            assert str(error) and "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_random_table_is_read_or_refused(tmp_path):
    rng, outcomes = random.Random(1), set()
    for _ in range(1000):
        (tmp_path / "table.csv").write_bytes(mutate("encoder,task0,task1\n0,0.5,\n1,0.25,1\n", rng))
        try:
            table, names = read_table(tmp_path / "table.csv")
            assert table.dtype == float and table.shape == (len(table), len(names)) and len(table) > 0 and names
            outcomes.add("read")
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}

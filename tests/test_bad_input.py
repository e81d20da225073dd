"""Bad input: one clear line that names the fix, exit code 2, no traceback, and the disk as it was.

Most scripts run in this process, which is faster; two run as a user starts them.
"""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers.desk import (
    ENCODER,
    HEADER,
    JUDGED,
    PROBE_YAML,
    RUN,
    TRAIN_YAML,
    Desk,
    Runs,
    cut,
    tree,
)
from helpers.lab import REPO, edited
from utils.run import config
from utils.run.keys import TRAINING_KEYS


@pytest.fixture
def desk(trained):
    """A trained encoder; no case may change a file of it."""
    return Desk(trained)


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the trained encoder to spoil. Without the store, whose name has the path of its data in it."""
    shutil.copytree(trained, tmp_path / "desk", ignore=lambda folder, names: {"store"} & set(names))
    return Desk(tmp_path / "desk")


def cases(table):
    return pytest.mark.parametrize("bad", table.values(), ids=table.keys())


# Each with --overwrite=True and the name of the trained run, whose files must survive the refusal. More keys
# with numbers out of range: test_config.py; more tasks: test_selection.py.
BAD_TRAINING = {
    "data_folder missing": ("--data_folder=/no/such", "/no/such", "metadata/UrbanSound8K.csv", "no such"),
    "data_folder empty": ("--data_folder=", "--data_folder has no value"),
    "data_folder with =": ("--data_folder=/a=b", "/a=b/metadata/UrbanSound8K.csv"),
    "data_folder with #": ("--data_folder=/a #b", "/a #b/metadata/UrbanSound8K.csv"),
    "data_folder a number": ("--data_folder=2022", "2022/metadata/UrbanSound8K.csv"),
    "data_folder a file": (f"--data_folder={REPO / 'pyproject.toml'}", "; found not a directory"),
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
    "batch_size twice": ("--batch_size=4 --batch_size=abc", "--batch_size=abc"),  # the last one counts
    "batch_size too many": ("--batch_size=40", "Task 0 (dog bark) has 8 training clips", "lower batch_size"),
    "bool maybe": ("--use_mixup=maybe", "True or False"),
    "lr abc": ("--lr=abc", "lr is 'abc'", "number"),
    "lr -1": ("--lr=-1", "lr is -1"),
    "no loss": ("--ssl_weight=0", "ssl_weight and sup_weight are 0"),
    "sample_rate beyond the front end": ("--sample_rate=22050", "compute_features", "22050", "n_fft"),
    "n_mels too few": ("--n_mels=4", "4 mel bands"),
    "encoder": ("--encoder=resnet", "Unknown encoder 'resnet'", "cnn14", "ecapa"),
    "emb_norm_type": ("--emb_norm_type=xx", "'xx'", "bn, in, ln"),
    "proj_norm_type": ("--proj_norm_type=xx", "'xx'", "bn, in, ln, id"),
    "an object": ("--opt_class=adam", "opt_class is built by the YAML"),
    "a module": ("--embedding_model=3", "embedding_model", "built by the YAML"),
    "modules": ("--modules=3", "modules is built by the YAML"),
    "class unknown": ("--task_classes=[[0,99]]", "unknown class 99", "0 dog bark, 1 siren"),
    "class by name and number": ("--task_classes=[[1],[siren]]", "'siren' in tasks 0 and 1"),
    "tasks not closed": ("--task_classes=[[0,1],[2,3]", "--task_classes=[[0,1],[2,3] is not valid YAML"),
    "keep -1": ("--replay_num_keep=-1", "replay_num_keep is -1", "all"),
    "keep abc": ("--replay_num_keep=abc", "replay_num_keep is 'abc'"),
    "logger unknown": ("--extra_logger=mlflow", "'mlflow'", "tensorboard, wandb"),
    "precision fp16": ("--precision=fp16", "precision is 'fp16'", "bf16"),
    "precision fp99": ("--precision=fp99", "--precision", "'fp32', 'fp16', 'bf16'"),
    "device without value": ("--device", "--device"),
    "clip 0": ("--max_grad_norm=0", "max_grad_norm", ".inf"),
    "option abc": ("--debug_batches=abc", "debug_batches", "'abc'"),
    "option 0": ("--grad_accumulation_factor=0", "at least 1"),
    "debug_batches 0": ("--debug_batches=0", "at least 1"),
    "option of no use": ("--test_only", "linclf_train.py"),
    "option with value": ("--debug=True", "--debug"),
    "pretrained_weights gone": ("--pretrained_weights=/no/such.pth", "/no/such.pth", "does not exist"),
    "store_folder a file": (f"--store_folder={REPO / 'pyproject.toml'}", "store_folder"),
    "output_base a file": (f"--output_base={REPO / 'pyproject.toml'}", "output_base"),
}


@cases(BAD_TRAINING)
def test_training_is_refused(desk, bad):
    arguments = [bad[0]] if " #" in bad[0] else bad[0].split()
    desk.refused(desk.train_args("--overwrite=True", *arguments), *bad[1:])


BAD_PROBE = {
    "type unknown": ("--linclf_train_type=lep", "'lep'", "seen, subset, buffer, full"),
    "keep 0": ("--replay_num_keep=0 --linclf_train_type=subset", "replay_num_keep", "above 0"),
    "keep abc": ("--replay_num_keep=abc --linclf_train_type=buffer", "replay_num_keep is 'abc'"),
    "encoders more than tasks": ("--task_classes=[[0,1],[2,3]]", "3 encoders for 2 tasks", "linclf_train_type=full"),
    "no such folder": ("--ssl_checkpoints_dir=/no/such", "/no/such", "ssl_checkpoints_dir"),
    "folder without a run": (f"--ssl_checkpoints_dir={REPO / 'models'}", "No checkpoint in", "ssl_checkpoints_dir"),
    "a file": (f"--ssl_checkpoints_dir={REPO / 'pyproject.toml'}", "No checkpoint in"),
    "other emb_dim": ("--emb_dim=16", "was trained with emb_dim=8", "leave --emb_dim out"),
    "other encoder": ("--encoder=ecapa_small", "was trained with encoder=pann_tiny"),
    "other front end": ("--n_mels=40", "was trained with n_mels=80"),
    "eval_precision fp16": ("--eval_precision=fp16", "eval_precision"),
    "standardise": ("--standardise=3", "True or False"),
    "key of the other script": ("--ssl_weight=1", "--ssl_weight is no key"),
}


@cases(BAD_PROBE)
def test_evaluation_is_refused(desk, bad):
    desk.refused(desk.probe_args(*bad[0].split()), *bad[1:])


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
    desk.refused(["supclr_train.py", PROBE_YAML, f"--data_folder={desk.sounds}"], "has no ssl_weight (nor ", "is it a")
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
    "precision": ("precision: !apply:utils.run.hardware.fastest_precision", "precision: fp99", "precision is 'fp99'"),
    "clip": ("max_grad_norm: 5.0", "max_grad_norm: -1", "max_grad_norm is -1"),
    "rate": ("sample_rate: 16000", "sample_rate: 16 kHz", "sample_rate is '16 kHz'"),
    "tab": ("seed: 2022", "seed:\n\t2022", "is not valid YAML (line"),
    "a text": (None, "seed", "key: value"),
    "fraction": ("number_of_epochs: 50", "number_of_epochs: 2.5", "number_of_epochs"),
    "path a list": ("store_folder: ~/.cache/continual-sound", "store_folder: [a]", "store_folder is ['a']: it must be"),
    "path null": ("output_folder: !ref <output_base>/<experiment_name>+seed_<seed>", "output_folder: null",
                  "output_folder is None: it must be a path"),
    "flag a word": ("skip_bad_audio: False", "skip_bad_audio: maybe", "skip_bad_audio is 'maybe': it must be True or"),
    "data set a word": ("dataset: !name:datasets.us8k.load", "dataset: us8k", "dataset is 'us8k': it is built by"),
    "modules without an encoder": ("  embedding_model: !ref <embedding_model>\n", "", "modules has no embedding_model"),
    "class misused": ("!new:models.heads.Projector", "!new:models.heads", "bad.yaml: "),
    "module unknown": ("!name:torch.optim.SGD", "!name:torch.optimum.SGD", "optimum"),
    "code that fails": ("seed: 2022", "seed: !apply:os.listdir [/no/such]", "/no/such"),
}  # fmt: skip


@cases(BAD_YAML)
def test_yaml_is_refused(desk, tmp_path, bad):
    old, new, word = bad
    file = edited(tmp_path / "bad.yaml", "us8k/supclr_train.yaml", *([] if old is None else [(old, new)]))
    if old is None:
        file.write_text(new)
    desk.refused(["supclr_train.py", file, f"--data_folder={desk.sounds}", *ENCODER], word)


@pytest.mark.parametrize("key", TRAINING_KEYS)
def test_yaml_without_a_key_is_refused(desk, tmp_path, key):
    blocks = re.split(r"(?m)^(?=\w+:)", TRAIN_YAML.read_text())  # a key's with what is indented below it
    file = tmp_path / "bad.yaml"
    file.write_text("".join(block for block in blocks if not block.startswith(f"{key}:")))
    settings = [f"--data_folder={desk.sounds}"] if key != "data_folder" else []
    others_refer = ("seed", "batch_size", "lr", "sample_rate", "encoder", "emb_dim", "output_folder", "save_folder")
    desk.refused(["supclr_train.py", file, *settings], key if key in others_refer else f"bad.yaml has no {key}")


# The data


BAD_METADATA = {
    "column missing": (lambda t: t.replace("classID", "label"), "lacks the columns classID; it has slice_file_name"),
    "empty": (lambda t: "", "not a readable table"),
    "no rows": (lambda t: HEADER + "\n", "has no rows"),
    "binary": (lambda t: bytes(range(256)) * 20, "not a readable table"),
    "fold no number": (lambda t: t.replace("1-0.wav,1,", "1-0.wav,one,"), "line 2: a fold that is no whole number"),
    "fold negative": (lambda t: t.replace("1-1.wav,1,", "1-1.wav,-1,"), "line 3: a fold"),
    "fold 11": (lambda t: t.replace("1-0.wav,1,", "1-0.wav,11,"), "no fold 11"),
    "class empty": (lambda t: t.replace("dog bark", ""), "line 2: no class (10 such rows)"),
    "row short": (lambda t: t.replace("1-0.wav,1,0,dog bark", "1-0.wav,1,0"), "line 2: no class"),
    "name with ..": (lambda t: t.replace("1-0.wav", "../../../../etc/passwd"), "line 2: a slice_file_name that"),
    "name absolute": (lambda t: t.replace("1-0.wav", "/etc/passwd"), "leaves the data folder"),
    "name of another drive": (lambda t: t.replace("1-0.wav", "C:\\1-0.wav"), "leaves the data folder"),
    "name with a folder": (lambda t: t.replace("1-0.wav", "audio/1-0.wav"), "a slice_file_name that names"),
    "name with \\": (lambda t: t.replace("1-0.wav", "a\\1-0.wav"), "line 2: a slice_file_name that names a folder too"),
    "name with NUL": (lambda t: t.replace("1-0.wav", "1-0\0.wav"), "line 2: a slice_file_name with a control"),
    "name of two lines": (lambda t: t.replace("1-0.wav", '"1-0\n.wav"'), "a slice_file_name with a control character"),
    "class of two lines": (lambda t: t.replace("siren", '"si\nren"'), "line 3: a class with a control character"),
    "a row twice": (lambda t: t + t.splitlines()[1] + "\n", "line 42: a clip that an earlier line has"),
    "class nan": (lambda t: t.replace("1-0.wav,1,0", "1-0.wav,1,nan"), "line 2: a classID that is no whole number"),
    "class huge": (lambda t: t.replace("1-0.wav,1,0", "1-0.wav,1," + "9" * 30), "line 2: a classID that is no whole"),
    "gap between classes": (lambda t: t.replace(",3,horn", ",4,horn"), "classID must go from 0 up without a gap"),
    "class of two names": (lambda t: t.replace("1-0.wav,1,0,dog bark", "1-0.wav,1,0,cat"), "one classID must be one"),
    "a line of 10 MB": (lambda t: t.replace("1-0.wav", "x" * 10_000_000 + "/"), "line 2: a slice_file_name that names"),
    "a header of 10 MB": (lambda t: "x" * 10_000_000 + t, "lacks the columns slice_file_name; it has xxx"),
    "UTF-16": (lambda t: t.encode("utf-16"), "not a readable table"),
    "a quote not closed": (lambda t: t.replace("1-0.wav", '"1-0.wav'), "not a readable table"),
}


@cases(BAD_METADATA)
def test_metadata_is_refused(copy, bad):
    change, word = bad
    file = copy.sounds / "metadata/UrbanSound8K.csv"
    text = change(file.read_text())
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    named = word.startswith(("no fold", "one class", "classID must", "line 42"))  # by its name in the data set
    copy.refused(copy.train_args("--overwrite=True"), word, "UrbanSound8K" if named else file)


def test_links_out_of_the_data_folder_are_followed(copy):
    """The user made them."""
    (copy.sounds / "audio").rename(copy.folder / "elsewhere")
    (copy.sounds / "audio").symlink_to(copy.folder / "elsewhere")
    clip = copy.sounds / "audio/fold1/1-0.wav"
    clip.rename(copy.folder / "clip.wav")
    clip.symlink_to(copy.folder / "clip.wav")
    (copy.folder / "link").symlink_to(copy.sounds)
    assert copy.run(copy.train_args("--experiment_name=linked", f"--data_folder={copy.folder / 'link'}")).code == 0


ESC = "filename,fold,target,category,esc10\n1.wav,1,0,dog,True\n2.wav,4,1,cow,False\n"
CLIPS = "".join(f"id{k},{k},zebra braying,{'test' if k > 10 else 'train'}\n" for k in range(22))
BAD_DATA = {  # data set, its files, what is said; test_tau19.py and test_vgg.py have more of theirs
    "esc50 without meta": ("esc50", {"audio/1.wav": ""}, "meta/esc50.csv is not in data_folder", "found audio"),
    "esc50 ..": ("esc50", {"meta/esc50.csv": ESC.replace("2.wav", "../2.wav")}, "line 3: a filename that leaves"),
    "esc50 folder": ("esc50", {"meta/esc50.csv": ESC.replace("2.wav", "a/2.wav")}, "line 3: a filename that names"),
    "esc50 a clip twice": ("esc50", {"meta/esc50.csv": ESC.replace("2.wav", "1.wav")}, "line 3: a clip that an"),
    "esc50 fold": ("esc50", {"meta/esc50.csv": ESC.replace(",4,", ",6,")}, "has no fold 6"),
    "esc50 target": ("esc50", {"meta/esc50.csv": ESC.replace(",1,cow", ",,cow")}, "line 3: no target"),
    "clips outside": ("folder", {"clips.csv": "path\n../1.wav"}, "line 2: a path that leaves the data folder"),
    "clips below blank lines": (
        "folder",
        {"clips.csv": "\n \npath\n1.wav\n\n\n../2.wav"},
        "line 7: a path that leaves",
    ),
    "clips of longer rows": (
        "folder",
        {"clips.csv": "path,start\n\n1.wav,1,\n../2.wav,1,\n"},
        "line 4: a path that leaves",
    ),
    "clips below a tab": ("folder", {"clips.csv": "\t\npath,start\n../2.wav,1\n"}, "line 3: a path that leaves"),
    "vgg below a blank line": (
        "vgg",
        {"vggsound.csv": "\n" + CLIPS.replace("id1,", "../id1,")},
        "line 3: a youtube_id that",
    ),
    "clips twice": ("folder", {"clips.csv": "path\n1.wav\n./1.wav"}, "line 3: a clip that an earlier line has"),
    "clips backwards": ("folder", {"clips.csv": "path,start,stop\n1.wav,2,1"}, "2: a stop that isn't after its start"),
    "folder without audio": ("folder", {"a/notes.txt": "x"}, "No audio in data_folder", "found a"),
    "class of two clips": ("folder", {"a/1.wav": "", "a/2.wav": ""}, "have too few recordings (groups)"),
    "vgg ..": ("vgg", {"vggsound.csv": CLIPS.replace("id1,", "../id1,")}, "line 2: a youtube_id that leaves"),
    "vgg folder": ("vgg", {"vggsound.csv": CLIPS.replace("id1,", "a/id1,")}, "line 2: a youtube_id that names"),
}


@cases(BAD_DATA)
def test_data_set_is_refused(copy, bad):
    dataset, files, *words = bad
    for name, text in files.items():
        (copy.folder / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        (copy.folder / "other" / name).write_text(text)
    copy.refused(copy.other_args(dataset), *words)
    assert dataset != "folder" or words[0].rpartition(": ")[2] in (REPO / "docs/faults.md").read_text()


@pytest.mark.parametrize("store", [(), ("--store_folder=null",)], ids=["store", "on the fly"])
def test_bad_clips_are_listed_in_one_go_or_skipped(copy, store):
    """A pipe is not waited for, a device not read without end. A refused start doesn't hinder the next one. All kinds
    of bad clips: test_store.py."""
    bad = {"fold1/1-0.wav": "no such file", "fold1/1-1.wav": "not a file", "fold2/2-0.wav": "not a file"}
    for name in bad:
        (copy.sounds / "audio" / name).unlink()
    os.mkfifo(copy.sounds / "audio/fold1/1-1.wav")
    (copy.sounds / "audio/fold2/2-0.wav").symlink_to("/dev/zero")
    args = ("--experiment_name=skipped", *store)
    said = copy.refused(copy.train_args(*args), "--skip_bad_audio=True", lines=4)
    assert said.startswith("error: 3 of 40 clips")
    assert said.splitlines()[1:] == [f"  audio/{name}: {reason}" for name, reason in bad.items()]
    args += ("--skip_bad_audio=True",)
    copy.refused(copy.train_args(*args, "--batch_size=40"), "lower batch_size")
    done = copy.run(copy.train_args(*args))
    assert done.code == 0 and "3 of 40 clips" in done.out, done.said
    run = copy.runs / "skipped+seed_2022"
    assert "3 of 40 clips" in (run / "log.txt").read_text()
    rows = (run / "save/train_task0_raw.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [f"audio/fold{k}/{k}-0.wav" for k in range(3, 9)]


def test_task_whose_clips_are_all_bad(copy):
    for file in copy.sounds.glob("audio/*/*-[23].wav"):
        file.write_bytes(b"")
    copy.refused(copy.train_args("--skip_bad_audio=True", "--overwrite=True"), "Task 2 (no usable clip) has 0 training")


# Caches, and what runs have left for others


def edit_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_unsigned(file, **changes):
    """Edit a file and remove its checksum, which files of earlier versions lack."""
    content = {key: value for key, value in json.loads(file.read_text()).items() if key != "crc32"}
    file.write_text(json.dumps({**content, **changes}))


STORE = "store/*/store.json"
METRICS, TABLE, CSV = f"{JUDGED}/metrics.json", f"{JUDGED}/accuracy_table.csv", "sounds/metadata/UrbanSound8K.csv"
TRAIN_AGAIN = ("train_args", "--overwrite=True")
SUMMARY = ("report_args", "--summary")
BAD_CACHES = {  # file, what to do to it, which command, what is said; test_fuzz.py has more
    "store of another rate": (STORE, lambda file: edit_unsigned(file, sample_rate=8000), TRAIN_AGAIN,
                              "sample_rate=8000", "16000", "delete that folder", "store_folder"),
    "own settings cut": (f"{RUN}/settings.json", cut, ("train_args",), "settings.json is damaged"),
    "metrics nested": (METRICS, lambda file: file.write_text("[" * 99999), ("report_args",), "damaged"),
    "protocol unknown": (METRICS, lambda file: edit_json(file, protocol="lep", protocol_title=None),
                         ("report_args",), "unknown protocol 'lep'", "seen, subset"),
    "versions cut": (f"{JUDGED}/versions.json", cut, ("report_args",), "versions.json is damaged"),
    "table gone": (TABLE, os.unlink, SUMMARY, "No accuracy table"),
    "table of percents": (TABLE, lambda file: file.write_text("encoder,task0\n0,87\n"), SUMMARY,
                          "accuracies are from 0 to 1"),
    "table with a cell of 1 MB": (TABLE, lambda file: file.write_text("x" * 10**6), SUMMARY,
                                  "field larger than field limit"),
    "report into a file": (METRICS, lambda file: None, ("report_args", f"--output={REPO / 'pyproject.toml'}"),
                           "can't write the report"),
    "demo set of others": (CSV, lambda file: None, ("demo_args", "sounds"),
                           "something that is not a demo set", "give another folder"),
    "demo set below a file": (CSV, lambda file: None,
                              ("demo_args", "sounds/metadata/UrbanSound8K.csv/demo"), "can't be written"),
}  # fmt: skip


@pytest.fixture(scope="module")
def judged(trained, tmp_path_factory):
    """The folder of a trained encoder with its evaluation and a store."""
    desk = Desk(tmp_path_factory.mktemp("judged") / "desk")
    shutil.copytree(trained, desk.folder, ignore=lambda folder, names: {"store"} & set(names))
    assert desk.run(desk.probe_args()).code == 0
    return desk.folder


@pytest.fixture
def spoiled(judged):
    """The evaluated encoder to spoil; restored after the test, since a copy elsewhere would not find its store."""
    saved = judged.with_name("saved")
    shutil.copytree(judged, saved)  # with the times of the files
    yield Desk(judged)
    shutil.rmtree(judged)
    saved.rename(judged)


@cases(BAD_CACHES)
def test_cache_is_refused(spoiled, bad):
    pattern, spoil, (command, *arguments), *words = bad
    (file,) = spoiled.folder.glob(pattern)
    spoil(file)
    spoiled.refused(getattr(spoiled, command)(*arguments), *words)


def objects(file):
    """Write an archive of pickled objects, which would make the file "ran" if they were loaded."""
    np.savez(file, ids=np.array([Runs()], dtype=object), vectors=np.array([Runs()], dtype=object))


EMBEDDINGS, INDEX, RESULTS = "runs/*/embeddings/*.npz", "store/*/index-*.npz", "judged/*/save/*[0-9].json"
REBUILT = {  # what is said: the files and what to do to each; test_fuzz.py and test_disk.py have more
    "its clips are embedded again": [(EMBEDDINGS, cut), (EMBEDDINGS, objects)],
    "building it again": [(INDEX, objects), (STORE, lambda file: file.write_text("[" * 99999))],
    "that encoder is judged again": [
        (RESULTS, lambda file: file.write_text("[" * 99999)),
        (RESULTS, lambda file: edit_json(file, epoch=3)),
        (RESULTS, lambda file: edit_unsigned(file, confusion="x")),
    ],
    "the cost of training until now is not known": [("runs/*/costs.json", cut)],
    "what the encoder was trained with is not recorded": [("runs/*/versions.json", cut)],
}


@pytest.mark.parametrize("turn", range(max(map(len, REBUILT.values()))))
def test_what_can_be_rebuilt_is_named_and_rebuilt(spoiled, turn):
    """The same command again logs a line for each damaged file and ends with the same result. One damage of each kind
    at a time."""
    table, named = spoiled.folder / JUDGED / "accuracy_table.csv", []
    wanted = table.read_bytes()
    for word, damages in REBUILT.items():
        pattern, spoil = damages[turn % len(damages)]
        files = sorted(spoiled.folder.glob(pattern))
        assert files
        for file in files:
            spoil(file)
            named.append((str(file.parent if "store" in pattern else file), word))
    done = spoiled.run(spoiled.probe_args())
    assert done.code == 0 and not done.err, done.said
    for file, word in named:
        assert sum(file in line and word in line for line in done.out.splitlines()) == 1, (file, word, done.out)
    assert table.read_bytes() == wanted and not (spoiled.folder / "ran").exists()


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
    assert copy.run(copy.train_args("--experiment_name=twin")).code == 0
    twin, first = copy.runs / "twin+seed_2022", copy.folder / RUN
    (twin / "leftover").mkdir()
    (twin / "link").symlink_to(first)
    kept, old = tree(first), tree(twin)
    assert copy.run(copy.train_args("--experiment_name=twin", "--overwrite=True", "--lr=0.5")).code == 0
    assert tree(first) == kept
    assert not (twin / "leftover").exists() and not (twin / "link").is_symlink()
    checkpoints = [path for path in old if path.endswith(".ckpt")]
    assert checkpoints and not any(tree(twin).get(path) == old[path] for path in checkpoints)


# The encoder's checkpoints


WEIGHTS, META, SETTINGS = "save/task2/CKPT*/embedding_model.ckpt", "save/task1/CKPT*/CKPT.yaml", "settings.json"
FIRST_META, CODE = META.replace("1", "0"), "!!python/object/apply:open [ran, w]"
NOT_DONE = "end-of-epoch: true\nunixtime: 1.0\nfinished: false\nepoch: 1\n"


def unsigned(spoil):
    """Spoil a file and remove the manifest, which checkpoints of earlier versions lack."""

    def spoil_and_unsign(file):
        spoil(file)
        (file.parent / "manifest.json").unlink()

    return spoil_and_unsign


BAD_CHECKPOINTS = {  # file of the encoder's run, what to do to it, what is said
    # Weights of the last task, so that a late discovery would show as files of the first ones.
    "truncated": (WEIGHTS, cut, "is damaged"),
    "bytes": (WEIGHTS, unsigned(lambda file: file.write_bytes(np.random.default_rng(0).bytes(9999))), "is damaged"),
    "other weights": (WEIGHTS, unsigned(lambda file: torch.save({"weight": torch.zeros(3)}, file)), "does not fit"),
    "no weights": (WEIGHTS, unsigned(lambda file: torch.save([1, 2], file)), "does not fit"),
    "numbers": (WEIGHTS, unsigned(lambda file: torch.save({"weight": 3}, file)), "does not fit"),
    "code": (WEIGHTS, unsigned(lambda file: torch.save(Runs(), file)), "is damaged"),
    "code, as pickled": (WEIGHTS, unsigned(lambda file: file.write_bytes(pickle.dumps(Runs()))), "is damaged"),
    "gone": (WEIGHTS, os.unlink, "has no embedding_model.ckpt"),
    "meta empty": (META, unsigned(lambda file: os.truncate(file, 0)), "is damaged (CKPT.yaml"),
    "meta no YAML": (META, unsigned(lambda file: file.write_text("a: [1")), "is damaged (CKPT.yaml"),
    "meta bytes": (META, unsigned(lambda file: file.write_bytes(b"\xff\0\xfe")), "is damaged (CKPT.yaml"),
    "meta without time": (META, unsigned(lambda file: file.write_text("unixtime: now\n")), "is damaged (CKPT.yaml"),
    "meta with code": (META, unsigned(lambda file: file.write_text(CODE)), "is damaged (CKPT.yaml"),
    "first task not done": (FIRST_META, unsigned(lambda file: file.write_text(NOT_DONE)), "of a finished task"),
    "first task empty": ("save/task0/CKPT*", shutil.rmtree, "of a finished task"),
    "no save folder": ("save", shutil.rmtree, "No checkpoint in", "ssl_checkpoints_dir"),
    "settings cut": (SETTINGS, cut, "settings.json is damaged"),
    "settings a list": (SETTINGS, lambda file: file.write_text("[]"), "settings.json is damaged"),
    "settings nested": (SETTINGS, lambda file: file.write_text("[" * 99999), "settings.json is damaged"),
    "settings of numbers": (SETTINGS, lambda file: file.write_text('{"encoder": 3}'), "settings.json is damaged"),
}


@cases(BAD_CHECKPOINTS)
def test_checkpoint_is_refused(copy, bad):
    pattern, spoil, *words = bad
    (file,) = (copy.folder / RUN).glob(pattern)
    spoil(file)
    copy.refused(copy.probe_args(), *words)


def test_other_architecture_without_settings_to_compare(copy):
    (copy.folder / RUN / "settings.json").unlink()
    copy.refused(copy.probe_args("--emb_dim=16"), "task0", "does not fit the embedding_model")


def test_several_runs_are_listed(copy):
    shutil.copytree(copy.folder / RUN, copy.runs / "b+seed_1")
    copy.refused(copy.probe_args(), "holds several runs", "b+seed_1, supclr+seed_2022")
    copy.refused(copy.probe_args(f"--ssl_checkpoints_dir={copy.runs}/save"), "b+seed_1, supclr+seed_2022")


# As a user runs it


@pytest.mark.parametrize(
    ("command", "flag", "said"),
    [("train_args", "--batchsize=3", "error: --batchsize is no key"),
     ("probe_args", "--ssl_checkpoints_dir=no", "error: No checkpoint in no: is ")],
)  # fmt: skip
def test_as_a_user(desk, command, flag, said):
    script, *args = getattr(desk, command)(flag)
    before = tree(desk.folder)
    command = [sys.executable, str(REPO / script), *map(str, args)]
    done = subprocess.run(command, cwd=desk.folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1, done.stderr
    assert tree(desk.folder) == before

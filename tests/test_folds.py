"""The folds of each split are keys, and runs that differ in folds are repeats of one method."""

import json
import os
import shutil
import subprocess

import pandas as pd
import pytest

from datasets import esc50, us8k
from datasets.table import fold_split
from helpers.docs import blocks
from supclr_train import SupCLR
from utils.io.errors import InputError
from utils.report import main
from utils.run.keys import FOLD_KEYS

TASKS = "--task_classes=[[3,8],[9,4]]"
QUICK = ("--number_of_epochs=2", "--warmup_epochs=0")


@pytest.mark.parametrize("load, yaml", [(us8k.load, "us8k"), (esc50.load, "esc50")])
def test_each_split_has_its_folds_and_the_others_are_left_out(lab, load, yaml):
    data = lab.sounds if yaml == "us8k" else lab.esc50
    given = ("--training_folds=[2]", "--valid_folds=[4, 1]", "--test_folds=5")
    found = lab.load(f"{yaml}/linclf_train.yaml", *given, "--ssl_checkpoints_dir=x", data=data)[2].rows
    assert found.groupby("split")["fold"].unique().map(sorted).to_dict() == {"train": [2], "valid": [1, 4], "test": [5]}
    default, everything = (load(data, **folds).rows for folds in ({}, {"training_folds": range(1, 4)}))
    last = 10 if yaml == "us8k" else 5
    assert set(default.loc[default["split"] == "test", "fold"]) == {last}
    assert set(everything["fold"]) == {1, 2, 3, last - 1, last}
    assert everything.index.equals(pd.RangeIndex(len(everything)))


@pytest.mark.parametrize(
    "folds, said",
    [
        (("--training_folds=[]",), "training_folds is empty"),
        (("--valid_folds=[11]",), "valid_folds has 11: UrbanSound8K's folds are 1 to 10"),
        (("--test_folds=[ten]",), "test_folds has 'ten'"),
        (("--test_folds=[True]",), "test_folds has True"),
        (("--test_folds=[3]",), "Fold 3 is in training_folds and test_folds"),
        (("--valid_folds=[9, 9]",), "Fold 9 is in valid_folds twice"),
    ],
)
def test_folds_that_cannot_be_are_one_line(lab, tmp_path, folds, said):
    with pytest.raises(InputError, match=said) as error:
        lab.start_run(SupCLR, "us8k/supclr_train.yaml", f"--output_base={tmp_path}", *folds)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_folds_without_any_clip_are_named_with_those_that_have_some():
    with pytest.raises(InputError, match=r"No clip is in the folds .*: the clips there are in the folds 1, 3\."):
        fold_split(pd.Series([3, 1, 3]), range(1, 11), "X", training_folds=[2], valid_folds=5, test_folds=[6])


@pytest.fixture(scope="module")
def cross_validated(lab, tmp_path_factory):
    """Evaluations of encoders that differ in folds and seed, by the folds' test fold and the seed."""
    base, found = tmp_path_factory.mktemp("folds"), {}
    for valid, test, seed in ((9, 10, 2022), (10, 9, 2022), (10, 9, 2023)):
        folds = (f"--valid_folds=[{valid}]", f"--test_folds=[{test}]", "--training_folds=[1,2,3]", f"--seed={seed}")
        folder, _ = lab.train(base / f"{test}-{seed}", TASKS, *folds)
        judged, _ = lab.judge(base / f"judged-{test}-{seed}", folder, TASKS, "--linclf_train_type=full", *QUICK)
        found[test, seed] = judged
    return found


def test_an_evaluation_takes_the_folds_of_the_encoders_run(lab, cross_validated, tmp_path):
    for (test, _), judged in cross_validated.items():
        settings = json.loads((judged / "settings.json").read_text())
        assert (settings["test_folds"], settings["training_folds"]) == (f"[{test}]", "[1, 2, 3]")
    encoder = json.loads((cross_validated[10, 2022] / "settings.json").read_text())["ssl_checkpoints_dir"]
    given = ("--test_folds=[3]", "--training_folds=[1,2]", "--linclf_train_type=full", TASKS, *QUICK)
    _, said = lab.judge(tmp_path / "own", encoder, *given)
    assert "was trained on test_folds [3]: this is no test on new clips" in said


def test_runs_that_differ_in_folds_and_seed_are_one_method(cross_validated, tmp_path, capsys):
    folders = [str(folder) for folder in cross_validated.values()]
    assert main([*folders, "--output", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "report.csv").set_index("column").loc["Forgetting (full)"]
    assert table["n_seeds"] == 3 and table["seeds"] == "2022/10 2022/9 2023/9"
    said = capsys.readouterr().out
    # A row in each of the two tables
    assert said.count("supclr") == 2 and "data" not in said.partition("Differs")[2]
    shutil.copytree(folders[0], tmp_path / "twin")
    assert main([*folders, str(tmp_path / "twin")]) == 2
    assert "the same folds: give one of them" in capsys.readouterr().err


@pytest.mark.parametrize("yaml, n", [("us8k", 10), ("esc50", 5)])
def test_the_documented_loop_tests_on_each_fold_once(tmp_path, yaml, n):
    """Run as it is written, with a `python` that only notes its arguments."""
    (shim := tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls.txt\n')
    shim.chmod(0o755)
    (loop,) = blocks("sh", f"hparams/{yaml}/")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", loop.text], check=True, cwd=tmp_path, env={**os.environ, "PATH": path})
    calls, tested = (tmp_path / "calls.txt").read_text().splitlines(), []
    assert [call.split()[0] for call in calls] == n * ["supclr_train.py", "linclf_train.py"]
    for training, judging in zip(calls[::2], calls[1::2], strict=True):
        given = dict(word.removeprefix("--").split("=", 1) for word in training.split()[2:])
        folds = [json.loads(given[key]) for key in FOLD_KEYS]
        assert sorted(sum(folds, [])) == list(range(1, n + 1)) and len(folds[1]) == len(folds[2]) == 1
        assert f"--ssl_checkpoints_dir={given['output_base']}" in judging.split()
        tested += folds[2]
    assert tested == list(range(1, n + 1))

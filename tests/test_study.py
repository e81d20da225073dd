"""utils.study: many methods over seeds by one file."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from helpers.lab import REPO
from helpers.study import write_study
from simclr_train import SimCLR
from simsiam_train import SimSiam
from sup_train import Supervised
from supclr_train import SupCLR
from utils.io.errors import InputError
from utils.run.arguments import parse_arguments
from utils.run.config import load_config
from utils.study import Study
from utils.training.checkpoints import is_finished

BRAINS = {
    "supclr_train.py": SupCLR,
    "sup_train.py": Supervised,
    "simclr_train.py": SimCLR,
    "simsiam_train.py": SimSiam,
}


def start(lab, folder, file, *args):
    places = (f"--output_base={folder}", f"--data_folder={lab.sounds}", f"--store_folder={lab.store}", *args)
    command = [sys.executable, "-m", "utils.study", str(file), *places]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder.parent, env=environment, stdout=pipe, stderr=pipe, text=True)


def ended(process):
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def test_a_study_compares_its_methods_and_goes_on_where_it_was_stopped(lab, tmp_path):
    """Stopped in a training, with a method that fails, then mended: nothing that is finished is done again."""
    base, broken = tmp_path / "out", ("--task_classes=[[3,8],[9,4]]\n  supervised", "--lr=x\n  supervised")
    process = start(lab, base, write_study(tmp_path / "study.yaml"), "--jobs=2")
    first = base / "simclr+seed_1" / "save" / "task0"
    until = time.monotonic() + 300
    while not is_finished(str(first)) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 128 + signal.SIGTERM and "the same command again" in err and "Traceback" not in err
    weights = {path: path.stat().st_mtime_ns for path in first.rglob("*.ckpt")}
    assert weights and not (base / "report").exists()

    file = write_study(tmp_path / "broken.yaml", broken)
    code, out, err = ended(start(lab, base, file, "--seeds=1"))
    assert code == 1 and err.count("failed: ") == 1 and "simclr+seed_1: error: lr is 'x'" in err
    assert re.search(r"^1/2 simclr\+seed_1: failed after 0:\d\d:\d\d, about 0:\d\d:\d\d left$", out, re.M), out
    assert re.search(r"^2/2 supervised\+seed_1: done in 0:\d\d:\d\d$", out, re.M), out
    assert "| supervised" in out and "| simclr" not in out

    code, out, err = ended(start(lab, base, tmp_path / "study.yaml", "--jobs=2"))
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*.ckpt")} == weights
    table = pd.read_csv(base / "report" / "report.csv").set_index(["method", "column"])
    assert set(table.index.get_level_values("method")) == {"simclr", "supervised"} and (table["n_seeds"] == 1).all()


@pytest.mark.parametrize(
    "file, method",
    [(file, method) for file in (REPO / "hparams/studies").glob("*.yaml") for method in Study(file, [], "out").methods],
    ids=str,
)
def test_the_studies_methods_can_be_trained(file, method, tmp_path, monkeypatch):
    study = Study(file, ["--data_folder=x"], tmp_path)
    monkeypatch.chdir(REPO)
    (_, training), *evaluations = study.commands("", method, 2022)
    file, options, overrides = parse_arguments("", training[1:])
    brain = BRAINS[training[0]]
    brain.check(load_config(file, overrides, options, brain.needs))
    for _, command in evaluations:
        assert command[0] == "linclf_train.py" and parse_arguments("", command[1:])


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "Can't read"),
        ("a: [", "Can't read"),
        ("seeds: [1]", "must have the keys seeds, training, evaluations, methods, may have strategies, folds"),
        ("{seeds: [1], training: '', evaluations: {full: a b}, methods: {m: {command: c, evaluations: [lep]}}}",
         "method m has the unknown evaluation lep"),
        ("{seeds: 7, training: '', evaluations: {full: a b}, methods: {m: c}}", "seeds must be a list .* not 7"),
        ("{seeds: [1], training: '', evaluations: {full: a b}, methods: {m: {command: c, seeds: []}}}",
         "seeds of method m must be a list"),
        ("{seeds: [1], training: '', evaluations: {full: a b}, methods: {m: {command: c, evaluations: full}}}",
         "evaluations of method m must be a list"),
        ("{seeds: [1], training: '', evaluations: {full: a b}, methods: {m: {seeds: [2]}}}",
         "method m must have a command"),
        ("{seeds: [1], training: '', evaluations: {full: a b}, methods: {m: {command: c, seed: [2]}}}",
         "method m must have a command, may have evaluations, seeds, and no other key"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_study_is_one_line(tmp_path, text, said):
    if text is not None:
        (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(InputError, match=said) as error:
        Study(tmp_path / "study.yaml", [], tmp_path)
    assert "\n" not in str(error.value)


def test_a_method_has_seeds_of_its_own_unless_others_are_asked_for(tmp_path):
    text = "{seeds: [1, 2], training: '', evaluations: {full: a b}, methods: {m: {command: c, seeds: [3, 2]}, n: c}}"
    (tmp_path / "study.yaml").write_text(text)
    study = Study(tmp_path / "study.yaml", [], tmp_path)
    assert study.left(["m", "n"]) == [("", "n", 1), ("", "m", 2), ("", "n", 2), ("", "m", 3)]
    study.set_seeds([7])
    assert study.left(["m", "n"]) == [("", "m", 7), ("", "n", 7)]


def test_an_unknown_method_is_one_line(lab, tmp_path):
    code, _, err = ended(start(lab, tmp_path / "out", write_study(tmp_path / "study.yaml"), "--only=simclr,byol"))
    assert (code, err.count("\n")) == (2, 1) and "No method byol" in err and "choose from simclr, supervised" in err


def test_methods_are_crossed_with_strategies_and_folds_and_what_is_left_is_listed_for_a_shell(lab, tmp_path):
    more = "strategies: {none: '', cassle: --strategy=cassle}\nfolds: {a: '--seed=5', b: ''}\nmethods:"
    file = write_study(tmp_path / "study.yaml", ("methods:", more))
    code, out, err = ended(start(lab, tmp_path / "out", file, "--list", "--only=simclr-none,simclr-cassle"))
    assert code == 0 and not (tmp_path / "out").exists(), err
    lines = [[shlex.split(command) for command in line.split(" && ")] for line in out.splitlines()]
    names = [{part.split("=")[0]: part.split("=")[1] for part in training if "=" in part} for training, _ in lines]
    found = [(name["--output_base"], name["--experiment_name"], name.get("--strategy")) for name in names]
    runs = [("simclr-none", None), ("simclr-cassle", "cassle")]
    assert found == [(str(tmp_path / "out" / fold), *run) for fold in "ab" for run in runs]
    assert all(
        Path(training[1]).is_file() and Path(judging[1]).name == "linclf_train.py" for training, judging in lines
    )
    study = Study(file, [], tmp_path)  # what ended well is left out, unless its command has changed
    (_, _), (folder, command) = study.commands("a", "simclr-none", 1)
    folder.mkdir(parents=True)
    (folder / "metrics.json").touch()
    log = folder.parent / "logs" / f"{folder.name}.txt"
    log.parent.mkdir()
    for said, left in ((command, 3), ([*command, "--probe=knn"], 4)):
        log.write_text(shlex.join(said) + "\n")
        assert len(study.left(["simclr-none", "simclr-cassle"])) == left

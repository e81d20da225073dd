"""Every command that a docstring of utils/ shows, run as it is written."""

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.study import write_study

REPO = Path(__file__).parents[1]
COMMAND = re.compile(r"^ {4}(python -m utils\.\S.*?)(?: {2,}.*)?$", re.MULTILINE)  # a comment may follow
FIGURES = {  # of the benchmark, by part
    "store": ("decoding, one core", "building the store", "two views from the store, 2 workers"),
    "step": (
        "step: data",
        "features",
        "augmentation",
        "forward",
        "backward",
        "optimiser",
        "ceiling",
        "utilisation",
        "plain step / step",
        "step without",
        "peak memory",
    ),
    "method": (),  # none is named
    "saving": ("within a task (MB)", "at its end", "share of the task's time", "share before the task's end"),
    "start": ("import torch", "--help", "a wrong setting", "first step"),
    "evaluation": ("bare inference", "embedding", "plain way / this", "probe training"),
    "growth": ("2 tasks: own memory of training", "2 tasks: own memory of judging", "2 tasks: last task / second"),
}


def documented_commands():
    for path in sorted((REPO / "utils").rglob("*.py")):
        yield from COMMAND.findall(ast.get_docstring(ast.parse(path.read_text()), clean=False) or "")


COMMANDS = list(documented_commands())


@pytest.fixture(scope="module")
def place(lab, encoder, tmp_path_factory):
    """A folder with the repository's YAMLs, data, and a run of linclf_train.py wherever a command names runs."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(REPO / "hparams", folder / "hparams")
    write_study(folder / "hparams/studies/forgetting.yaml")  # in the place of one that takes hours
    (folder / "UrbanSound8K").symlink_to(lab.sounds)
    (folder / "results" / "demo").mkdir(parents=True)
    (folder / "results" / "demo" / "data").symlink_to(lab.sounds)
    (folder / "results" / "demo" / "supclr+seed_2022").symlink_to(encoder)
    lab.run(
        "linclf_train.py", "hparams/us8k/linclf_train.yaml", *lab.tiny, f"--data_folder={lab.sounds}",
        f"--ssl_checkpoints_dir={encoder}", f"--output_base={folder / 'judged'}", "--number_of_epochs=2",
        "--warmup_epochs=1",
    )  # fmt: skip
    (judged,) = (folder / "judged").iterdir()
    (folder / "results/demo/linclf").mkdir()
    (folder / "results/demo/linclf/lep+seed_2022").symlink_to(judged)
    metrics = json.loads((judged / "metrics.json").read_text())
    runs = {word.replace("*", "x") for command in COMMANDS for word in command.split() if word.startswith("runs/")}
    for seed, run in enumerate(runs):
        shutil.copytree(judged, folder / run)
        (folder / run / "metrics.json").write_text(json.dumps({**metrics, "seed": seed}))
    return folder


def test_commands_are_found():
    assert {"utils.benchmark", "utils.report"} <= {command.split()[2] for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_runs(place, command):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(REPO), "PATH": path, "OMP_NUM_THREADS": "1"}
    environment["XDG_CACHE_HOME"] = str(place / "cache")
    done = subprocess.run(command, shell=True, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr
    if "utils.benchmark" in command:
        check_benchmark(json.loads((place / "benchmark.json").read_text()), done.stdout)


def check_benchmark(figures, said):
    """Every part reports every figure; what the figures are is no business of a test."""
    assert list(figures) == list(FIGURES)
    for part, names in FIGURES.items():
        for name in names:
            assert any(name in figure for figure in figures[part]) and name in said, name
        assert all(math.isfinite(value) and value >= 0 for value in figures[part].values()), figures[part]
    assert figures["step"]["peak memory (MB)"] > 100
    middle, end = (value for name, value in figures["saving"].items() if "(MB)" in name)
    assert middle > 1.5 * end

"""The benchmark runs and reports every figure; what the figures are is no business of a test."""

import itertools
import json
import math
import subprocess
import sys

import pytest

from helpers.lab import REPO
from utils import benchmark

PARTS = {
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
        "step without kept memory / step",
    ),
    "saving": ("in the middle of a task (MB)", "at its end", "share of the task's time", "share before the task's end"),
    "start": ("import torch", "--help", "a wrong setting", "first step"),
    "evaluation": ("bare inference", "embedding", "plain way / this", "probe training"),
    "growth": (
        "2x clips: own memory",
        "2x clips: two views from the store",
        "2 tasks: last task / second",
        "2 tasks: judging the last encoder: own memory",
    ),
}


def test_quick_mode_reports_every_part(tmp_path):
    file = tmp_path / "benchmark.json"
    command = [sys.executable, "-m", "utils.benchmark", "hparams/demo/supclr_train.yaml", "--quick", f"--output={file}"]
    command += ["--encoder=pann_tiny", "--emb_dim=16", "--train_duration=0.3", "--batch_size=4"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert list(figures) == list(PARTS)
    for part, names in PARTS.items():
        for name in names:
            assert any(name in figure for figure in figures[part]) and name in done.stdout, name
        assert all(math.isfinite(value) and value >= 0 for value in figures[part].values()), figures[part]
    assert figures["step"]["peak memory (MB)"] > 100
    middle, end = (value for name, value in figures["saving"].items() if "(MB)" in name and name.startswith("saving"))
    assert middle > 1.5 * end


@pytest.mark.parametrize("argument", ["--parts=speed", "--encoder=none", "--no_such_key=1"])
def test_bad_input_is_one_line(monkeypatch, capsys, argument):
    monkeypatch.setattr(sys, "argv", ["benchmark", str(REPO / "hparams/demo/supclr_train.yaml"), argument])
    with pytest.raises(SystemExit) as stop:
        benchmark.main()
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("error: ")


def test_the_ceiling_is_that_of_the_fastest(monkeypatch):
    """Two operations a product and sum; every call takes a second here."""
    times = itertools.count()
    monkeypatch.setattr(benchmark, "perf_counter", lambda: float(next(times)))
    assert benchmark.ceiling("cpu", "fp32", batch=1, products=(8,)) == 2 * 9 * 256**2 * 50 * 20
    assert benchmark.ceiling("cpu", "fp32", batch=1, products=(1024,)) == 2 * 1024**3


@pytest.mark.parametrize("skip", [None, "between"])
def test_a_clock_adds_up_what_is_named(monkeypatch, skip):
    times = iter([1.0, 3.0, 4.0, 9.0])
    monkeypatch.setattr(benchmark, "perf_counter", lambda: next(times))
    clock = benchmark.Clock("cpu")
    for name in (None, "work", skip, "work"):
        clock.lap(name)
    assert clock.seconds == {"work": 7.0, **({"between": 1.0} if skip else {})}

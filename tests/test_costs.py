"""utils.run.costs: what a training cost, over all starts of its run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.results.save import _training
from utils.run import costs
from utils.run.costs import read_costs, training_costs

ROOT = Path(__file__).parents[1]
MB = 10**6
GOOD = {"train_seconds": 5.0, "peak_memory_bytes": 1, "device": "cpu"}


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand: a list with the seconds it shows."""
    shown = [100.0]
    monkeypatch.setattr(costs, "monotonic", lambda: shown[0])
    return shown


def train(folder, clock, seconds, device="cpu", error=None):
    with training_costs(folder, device):
        clock[0] += seconds
        if error:
            raise error


def test_seconds_add_up_over_tasks_and_starts(tmp_path, clock):
    assert read_costs(tmp_path) is None
    for seconds in (3.0, 4.5):
        train(tmp_path, clock, seconds)
        clock[0] += 1000  # between tasks, or between starts: no training
    assert read_costs(tmp_path)["train_seconds"] == 7.5
    assert read_costs(tmp_path)["device"] == "cpu"
    assert [path.name for path in tmp_path.iterdir()] == ["costs.json"]  # and nothing that was being written


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory"), SystemExit(1)])
def test_an_interrupted_training_counts_and_stays_interrupted(tmp_path, clock, error):
    with pytest.raises(type(error)):
        train(tmp_path, clock, 2.0, error=error)
    assert read_costs(tmp_path)["train_seconds"] == 2.0
    train(tmp_path, clock, 1.0)
    assert read_costs(tmp_path)["train_seconds"] == 3.0


def test_what_is_saved_in_between_is_counted_once(tmp_path, clock):
    train(tmp_path, clock, 10.0)
    with training_costs(tmp_path, "cpu") as save:
        for epoch in (1, 2, 3):
            clock[0] += 2.0
            save()
            assert read_costs(tmp_path)["train_seconds"] == 10.0 + 2.0 * epoch
    assert read_costs(tmp_path)["train_seconds"] == 16.0


def run_python(code, *arguments):
    """Run code in a process of its own: SIGKILL and peak memory are a process's."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_killed_start_counts_up_to_its_last_save(tmp_path):
    code = """
import os, signal, sys, time
from utils.run.costs import training_costs
with training_costs(sys.argv[1], "cpu") as save:
    time.sleep(0.2)
    save()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_python(code, tmp_path).returncode == -9
    assert read_costs(tmp_path)["train_seconds"] >= 0.2


def test_the_peak_is_what_this_process_held_at_once_and_not_its_parent(tmp_path):
    code = """
import sys
from utils.run.costs import training_costs
with training_costs(sys.argv[1], "cpu"):
    held = b"1" * int(sys.argv[2])
    del held
"""
    parent = np.ones(1200 * MB, dtype=np.uint8)  # so much that it would show
    peaks = []
    for size in (10 * MB, 500 * MB):
        done = run_python(code, tmp_path, size)
        assert done.returncode == 0, done.stderr
        peaks.append(read_costs(tmp_path)["peak_memory_bytes"])
    assert 10 * MB < peaks[0] < parent.nbytes
    assert peaks[1] - peaks[0] == pytest.approx(490 * MB, abs=50 * MB)


def test_the_highest_peak_of_all_starts_is_kept(tmp_path, clock):
    (tmp_path / "costs.json").write_text(json.dumps(GOOD | {"peak_memory_bytes": 10**15}))
    train(tmp_path, clock, 1.0)
    assert read_costs(tmp_path)["peak_memory_bytes"] == 10**15


def test_without_proc_the_peak_is_the_systems_count(tmp_path, monkeypatch):
    """As on macOS; here both are known, and agree unless a larger process has started this one."""
    own = costs.peak_memory(torch.device("cpu"))
    monkeypatch.setattr(costs.Path, "is_file", lambda path: False)
    assert costs.peak_memory(torch.device("cpu")) >= 0.99 * own > 100 * MB


def test_on_cuda_the_allocator_and_the_device_are_asked(tmp_path, monkeypatch, clock):
    asked = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: asked.append(device) or 7 * MB)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    train(tmp_path, clock, 1.0, "cuda:1")
    assert read_costs(tmp_path) == {"train_seconds": 1.0, "peak_memory_bytes": 7 * MB, "device": "GPU 1"}
    assert asked == [torch.device("cuda:1")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_peak_holds_what_was_let_go(tmp_path):
    with training_costs(tmp_path, "cuda"):
        held = torch.ones(200 * MB // 4, device="cuda")
        del held
    assert read_costs(tmp_path)["peak_memory_bytes"] >= 200 * MB


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "null", "{}", *(json.dumps(GOOD | change) for change in (
        {"train_seconds": "5"}, {"train_seconds": -1.0}, {"train_seconds": None}, {"peak_memory_bytes": float("nan")},
        {"device": ""},
    ))],
)  # fmt: skip
def test_a_damaged_record_is_begun_afresh_with_a_warning(tmp_path, clock, caplog, text):
    (tmp_path / "costs.json").write_text(text)
    assert read_costs(tmp_path) is None
    assert re.search(r"costs\.json is damaged \(.+\)", caplog.text)
    train(tmp_path, clock, 2.0)
    assert read_costs(tmp_path)["train_seconds"] == 2.0


def test_a_good_record_is_read_as_it_is(tmp_path, caplog):
    (tmp_path / "costs.json").write_text(json.dumps(GOOD))
    assert read_costs(str(tmp_path)) == GOOD and not caplog.text


# What an evaluation records of it


def test_an_evaluation_records_how_its_encoders_were_trained(tmp_path, monkeypatch, clock):
    """Three of five tasks are trained so far. Wherever the user stands, the encoders' own run folder is read."""
    run = tmp_path / "run"
    for task in range(5):
        (run / "save" / f"task{task}").mkdir(parents=True)
        (run / "save" / f"train_task{task}_raw.csv").touch()
    train(run, clock, 60.0)
    (run / "versions.json").write_text(json.dumps({"commit": "abc", "threads": 4, "data": "stored 0"}))
    for here, prefix in ((tmp_path, "run/save/"), (run / "save", "./"), (run / "save", "")):
        monkeypatch.chdir(here)
        record = _training([f"{prefix}task{t}" for t in range(3)], {"precision": "bf16"})
        assert record.pop("peak_memory_bytes") > 10 * MB
        expected = {"encoder_tasks": 5, "train_seconds": 60.0, "train_device": "cpu", "train_precision": "bf16"}
        expected |= {"train_commit": "abc", "train_torch": None, "train_threads": 4, "train_data": "stored 0"}
        assert record == expected


def test_what_is_not_known_of_an_encoders_training_is_null(tmp_path):
    """A folder of checkpoints and nothing else: as many tasks as there are encoders."""
    record = _training([str(tmp_path / "save" / "task0")], {})
    names = ("seconds", "device", "precision", "commit", "torch", "threads", "data")
    assert record == dict.fromkeys(("peak_memory_bytes", *(f"train_{name}" for name in names))) | {"encoder_tasks": 1}


def test_a_trainers_own_test_records_its_own_training(tmp_path, clock):
    train(tmp_path, clock, 3.0)
    assert _training([str(tmp_path / "save" / "task0")], {})["train_seconds"] == 3.0

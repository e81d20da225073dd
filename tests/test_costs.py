"""utils.run.costs: what a training cost, over all starts of its run, and what an evaluation records of it."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers.lab import REPO
from utils.results.save import _training
from utils.run import costs
from utils.run.costs import read_costs, training_costs

MB = 10**6
GOOD = {"train_seconds": 5.0, "peak_memory_bytes": 10**15, "device": "cpu"}


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand: a list with the seconds it shows."""
    shown = [100.0]
    monkeypatch.setattr(costs, "monotonic", lambda: shown[0])
    return shown


def train(folder, clock, seconds, device="cpu"):
    """Train, save after each of some seconds; the seconds that the record then has."""
    recorded = []
    with training_costs(folder, device) as save:
        for passed in seconds:
            clock[0] += passed
            save()
            recorded.append(read_costs(folder)["train_seconds"])
        clock[0] += 1
    clock[0] += 1000  # between tasks, or between starts: no training
    return [*recorded, read_costs(folder)["train_seconds"]]


def test_seconds_add_up_over_tasks_and_starts_and_the_highest_peak_stays(tmp_path, clock, caplog):
    assert read_costs(tmp_path) is None
    assert train(tmp_path, clock, ()) == [1.0]
    assert [path.name for path in tmp_path.iterdir()] == ["costs.json"]  # and nothing that was being written
    (tmp_path / "costs.json").write_text(json.dumps(GOOD))
    assert read_costs(str(tmp_path)) == GOOD
    assert train(tmp_path, clock, (2.0, 3.5)) == [7.0, 10.5, 11.5]
    assert read_costs(tmp_path) == GOOD | {"train_seconds": 11.5} and not caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupted_training_counts_and_stays_interrupted(tmp_path, clock, error):
    with pytest.raises(error), training_costs(tmp_path, "cpu"):
        clock[0] += 2.0
        raise error
    assert train(tmp_path, clock, ()) == [3.0]


KILLED = """
import os, signal, sys, time
from utils.run.costs import training_costs
with training_costs(sys.argv[1], "cpu") as save:
    held = b"1" * 200_000_000
    del held
    time.sleep(0.2)
    save()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_start_counts_up_to_its_last_save_with_its_own_peak(tmp_path):
    """Not the memory that it holds at the end, nor that of the process that started it."""
    parent = np.ones(800 * MB, dtype=np.uint8)
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command, cwd=REPO, check=False).returncode == -9
    found = read_costs(tmp_path)
    assert found["train_seconds"] >= 0.2 and 200 * MB < found["peak_memory_bytes"] < parent.nbytes


def test_without_proc_the_peak_is_the_systems_count(monkeypatch):
    """As on macOS; here both are known, and agree unless a larger process has started this one."""
    own = costs.peak_memory(torch.device("cpu"))
    monkeypatch.setattr(costs.Path, "is_file", lambda path: False)
    assert costs.peak_memory(torch.device("cpu")) >= 0.99 * own > 100 * MB


def test_on_cuda_the_allocator_and_the_device_are_asked(tmp_path, monkeypatch, clock):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 * MB * device.index)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    train(tmp_path, clock, (), "cuda:1")
    assert read_costs(tmp_path) == {"train_seconds": 1.0, "peak_memory_bytes": 7 * MB, "device": "GPU 1"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_peak_holds_what_was_let_go(tmp_path):
    with training_costs(tmp_path, "cuda"):
        held = torch.ones(200 * MB // 4, device="cuda")
        del held
    assert read_costs(tmp_path)["peak_memory_bytes"] >= 200 * MB


DAMAGES = [{"train_seconds": bad} for bad in ("5", -1.0, None)] + [{"peak_memory_bytes": float("nan")}, {"device": ""}]


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "{}", *(json.dumps(GOOD | bad) for bad in DAMAGES)])
def test_a_damaged_record_is_begun_afresh_with_a_warning(tmp_path, clock, caplog, text):
    (tmp_path / "costs.json").write_text(text)
    assert read_costs(tmp_path) is None
    assert re.search(r"costs\.json is damaged \(.+\)", caplog.text)
    assert train(tmp_path, clock, ()) == [1.0]


def test_an_evaluation_records_how_its_encoders_were_trained(tmp_path, monkeypatch, clock):
    """Three of five tasks are trained so far. Wherever the user stands, the encoders' own run folder is read. Of a
    folder of checkpoints and nothing else, there are as many tasks as encoders, and the rest is not known."""
    save = tmp_path / "run" / "save"
    names = ("seconds", "device", "precision", "commit", "torch", "threads", "data", "start_from")
    unknown = dict.fromkeys(("peak_memory_bytes", *(f"train_{name}" for name in names)))
    assert _training([str(save / "task0")], {}) == unknown | {"encoder_tasks": 1}
    for task in range(5):
        (save / f"task{task}").mkdir(parents=True)
        (save / f"train_task{task}_raw.csv").touch()
    train(save.parent, clock, ())
    (save.parent / "versions.json").write_text(json.dumps({"commit": "abc", "threads": 4, "data": "stored 0"}))
    for here, prefix in ((tmp_path, "run/save/"), (save, "./"), (save, "")):
        monkeypatch.chdir(here)
        record = _training([f"{prefix}task{t}" for t in range(3)], {"precision": "bf16"})
        assert record.pop("peak_memory_bytes") > 10 * MB
        expected = {"encoder_tasks": 5, "train_seconds": 1.0, "train_device": "cpu", "train_precision": "bf16"}
        expected |= {"train_commit": "abc", "train_torch": None, "train_threads": 4, "train_data": "stored 0"}
        expected |= {"train_start_from": None}
        assert record == expected

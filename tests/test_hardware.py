"""What utils.run.hardware does to the process, in one of its own."""

import ctypes
import subprocess
import sys

import pytest
from torch.utils.data import dataloader

from helpers.lab import REPO
from sup_train import Supervised
from utils.training import brain

COUNT = """
import resource
import sys

import torch
from utils.run.hardware import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's allocator"
)


@glibc
def test_freed_memory_is_kept():
    faults = {}
    for what in ("keep", "give back"):
        done = subprocess.run([sys.executable, "-c", COUNT, what], cwd=REPO, capture_output=True, text=True, check=True)
        faults[what] = int(done.stdout)
    assert faults["keep"] < 100 < 10 * 2**24 * 4 / 2**21 <= faults["give back"]  # pages of 4 KiB, or at most of 2 MiB


LARGE = """
import resource

import torch
from utils.benchmark.runs import own_memory
from utils.run.hardware import give_back_freed_memory, keep_freed_memory

keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(2**24) for _ in range(36)]  # 64 MB each
    del kept
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, own_memory())
give_back_freed_memory()
print(0, own_memory())
"""


@glibc
def test_more_than_2_gib_is_kept_and_given_back_when_asked():
    done = subprocess.run([sys.executable, "-c", LARGE], cwd=REPO, capture_output=True, text=True, check=True)
    (faults, kept), (_, rest) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert kept > 36 * 2**26 and rest < kept / 2
    assert faults < 36 * 2**26 / 4096 / 4


@pytest.mark.parametrize("workers", [0, 1])
def test_freed_memory_is_given_back_before_workers_are_forked(lab, tmp_path, monkeypatch, workers):
    happened, fork = [], dataloader._MultiProcessingDataLoaderIter.__init__

    def note_fork(self, *args):
        happened.append("fork")
        fork(self, *args)

    monkeypatch.setattr(brain, "give_back_freed_memory", lambda: happened.append("give back"))
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "__init__", note_fork)
    args = ("--task_classes=[[3,8]]", "--number_of_epochs=2", "--warmup_epochs=0", f"--num_workers={workers}")
    lab.learn(Supervised, "us8k/sup_train.yaml", *lab.quick, f"--output_base={tmp_path}", *args)
    assert happened == ["give back", "fork"] * 4 * workers  # two epochs, each trains and validates

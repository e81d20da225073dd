"""What utils.hardware does to the process, in one of its own."""

import subprocess
import sys

import pytest
from conftest import REPO

COUNT = """
import resource
import sys

import torch
from utils.hardware import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_kept():
    faults = {}
    for what in ("keep", "give back"):
        done = subprocess.run([sys.executable, "-c", COUNT, what], cwd=REPO, capture_output=True, text=True, check=True)
        faults[what] = int(done.stdout)
    assert faults["keep"] < 100 < 10 * 2**24 * 4 / 2**21 <= faults["give back"]  # pages of 4 KiB, or at most of 2 MiB

"""Trainers run by one process or by torchrun's several, and their weights compared."""

import torch

from utils.training.checkpoints import latest_checkpoint

# The processes of a run differ in augmentation and dropout, and on a CPU in batch norm: all else must be equal. Views
# of 0.6 s are longer than some clips, so there is padding; 3 classes have an odd number of validation clips.
EQUAL = ("--precision=fp32", "--emb_norm_type=ln", "--train_duration=0.6", "--batch_size=4")
TASKS = "--task_classes=[[3,8,9],[4,1]]"
# Runs the script that is named after it: without augmentation and dropout, or with a process that fails in task 1.
RUNNER = """
import os, runpy, signal, sys, time
import torch
from models import pann
from models.features import SpecAugment
from utils.training import brain
from utils.run import processes as distributed

what = sys.argv[1]
if what == "plain":
    SpecAugment.forward = lambda self, features: features
    pann._dropout = lambda x, rate: x

def stage_end(self, stage, loss, epoch, old=brain.TaskBrain.on_stage_end):
    if self.task.index == 1 and epoch == 2 and distributed.rank() == distributed.world_size() - 1:
        os.kill(os.getpid(), signal.SIGSTOP if what == "hangs" else signal.SIGKILL)
    old(self, stage, loss, epoch)

if what in ("dies", "hangs"):
    distributed.TIMEOUT = 8
    brain.TaskBrain.on_stage_end = stage_end
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def torchrun(command, n=2):
    """A command of `Lab.command` for n processes."""
    python, *rest = command
    return [python, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}", *rest]


def finish(process, timeout=300):
    said = process.communicate(timeout=timeout)[0].decode()
    return process.returncode, said


class Site:
    """Where trainers run as a user runs them, by way of RUNNER."""

    def __init__(self, lab, folder, before=""):
        self.lab, self.folder, self.script = lab, folder, folder / "runner.py"
        self.script.write_text(before + RUNNER)

    def command(self, kind, n, base, *args, what="plain"):
        arguments = [f"hparams/us8k/{kind}_train.yaml", *self.lab.tiny, *self.lab.quick, TASKS]
        arguments += [f"--data_folder={self.lab.sounds}", f"--output_base={self.folder / base}", *args]
        python, script, *rest = self.lab.command(f"{kind}_train.py", *arguments)
        command = [python, str(self.script), what, script, *rest]
        return torchrun(command, n) if n > 1 else command

    def run(self, kind, n, base, *args, what="plain"):
        """The run's folder and what it said."""
        code, said = finish(self.lab.start(self.command(kind, n, base, *args, what=what)))
        assert code == 0, said
        (folder,) = (self.folder / base).iterdir()
        return folder, said


def weights_of(folder, task=1):
    path = latest_checkpoint(folder / "save" / f"task{task}")[0]
    loaded = {file.stem: torch.load(file) for file in path.glob("*.ckpt") if file.stem != "counter"}
    return {f"{name}.{entry}": tensor for name, state in loaded.items() for entry, tensor in state.items()}


def assert_same_bits(folder, other, task=1):
    first, second = weights_of(folder, task), weights_of(other, task)
    assert first.keys() == second.keys() and len(first) > 20
    assert [name for name in first if not torch.equal(first[name], second[name])] == []

"""Run trainers in one process or in several: under torchrun, or in forks with torchrun's environment."""

import os
import runpy
import signal
import sys

import torch.nn.functional as F
from torch.distributed import TCPStore

from helpers.checks import assert_same_bits, weights_of
from helpers.forks import Fork, torchruns_environment
from helpers.lab import REPO
from models.features import SpecAugment
from utils.run import processes
from utils.training.brain import TaskBrain

__all__ = ["EQUAL", "TASKS", "Site", "assert_same_bits", "finish", "weights_of"]

# The processes of a run differ in augmentation and dropout, and on a CPU in batch norm: all else must be equal. Views
# of 0.6 s are longer than some clips, so there is padding; 3 classes have an odd number of validation clips.
EQUAL = ("--precision=fp32", "--emb_norm_type=ln", "--train_duration=0.6", "--batch_size=4")
TASKS = "--task_classes=[[3,8,9],[4,1]]"


def be(what):
    """Patch this process. "plain": no augmentation, no dropout. "killed", "hang": so ends the highest rank, in task 1,
    epoch 2. Anything else: no change."""
    old = TaskBrain.on_stage_end

    def fail(self, stage, loss, epoch):
        if self.task.index == 1 and epoch == 2 and processes.rank() == processes.world_size() - 1:
            os.kill(os.getpid(), signal.SIGSTOP if what == "hang" else signal.SIGKILL)
        old(self, stage, loss, epoch)

    if what == "plain":
        SpecAugment.forward = lambda self, features: features
        F.dropout = lambda x, *_: x
    elif what in ("killed", "hang"):
        processes.TIMEOUT = 8
        TaskBrain.on_stage_end = fail


def run_changed():
    """Patch this process as the first argument says, then run the script that is the second."""
    what, *sys.argv = sys.argv[1:]
    be(what)
    runpy.run_path(sys.argv[0], run_name="__main__")


def finish(process, timeout=300):
    said = process.communicate(timeout=timeout)[0].decode()
    return process.returncode, said


class Site:
    """A folder for runs; `before` is Python that each process of torchrun runs first."""

    def __init__(self, lab, folder, before=""):
        self.lab, self.folder, self.script = lab, folder, folder / "runner.py"
        self.script.write_text(f"{before}\nfrom helpers.torchrun import run_changed\n\nrun_changed()\n")

    def arguments(self, kind, base, *args):
        yaml = REPO / f"hparams/us8k/{kind}_train.yaml"
        places = (f"--data_folder={self.lab.sounds}", f"--output_base={self.folder / base}")
        quick = self.lab.quick if kind != "linclf" else ("--number_of_epochs=2", "--warmup_epochs=1")
        return f"{kind}_train.py", yaml, *self.lab.tiny, *quick, TASKS, *places, *args

    def command(self, kind, n, base, *args, what="plain"):
        python, *command = self.lab.command(*self.arguments(kind, base, *args))
        torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}") if n > 1 else ()
        return [python, *torchrun, str(self.script), what, *command]

    def run(self, kind, n, base, *args, what="plain"):
        """Run a trainer by `n` processes; return the run folder and what they printed."""
        code, said = finish(self.lab.start(self.command(kind, n, base, *args, what=what)))
        assert code == 0, said
        (folder,) = (self.folder / base).iterdir()
        return folder, said

    def fork(self, kind, n, base, *args, what="plain", prepare=lambda rank: None):
        """Start a fork for each process of a run. This process hosts their store, as torchrun does."""
        self.store, forks = TCPStore("localhost", 0, is_master=True, wait_for_workers=False), []
        for rank in range(n):
            cwd = self.folder / f"{base}, rank {rank}"
            cwd.mkdir(exist_ok=True)

            def prepare_all(rank=rank):
                os.environ.update(torchruns_environment(rank, n, self.store.port) if n > 1 else {})
                be(what)
                prepare(rank)

            arguments = (*self.arguments(kind, base, *args), f"--store_folder={self.lab.store}")
            forks.append(Fork(*arguments, cwd=cwd, prepare=prepare_all))
        return forks

    def run_forks(self, kind, n, base, *args, what="plain"):
        """Run a trainer by `n` forks; return the run folder and what they printed."""
        forks = self.fork(kind, n, base, *args, what=what)
        assert [fork.wait() for fork in forks] == [0] * n, [fork.said for fork in forks]
        (folder,) = (self.folder / base).iterdir()
        return folder, "".join(fork.said for fork in forks)

"""Kill a script, run it again by the same command, and compare what it leaves with an undisturbed run.

Each run has a folder of its own, with its store in it, so that it can be killed while the store is built too. Half of
the random kills are at a random time, half at a random operation on files: such moments are short, and errors in the
order of writing show only there.
"""

import builtins
import functools
import io
import os
import random
import re
import shutil
import signal
import time
from collections import Counter

from helpers.checks import differing, left_by
from helpers.forks import Fork
from helpers.lab import REPO
from supclr_train import SupCLR
from utils.run.signals import Stopped
from utils.training.checkpoints import is_finished

SCRIPTS = ("supclr", "simclr", "simsiam", "sup", "linclf")
TASKS = "--task_classes=[[3,8],[9,4]]"
# Every epoch is saved, whatever that costs: so the operations on files are the same in each run.
TRAINING = ("--number_of_epochs=2", "--use_mixup=True", "--replay_num_keep=2", "--ckpt_overhead=1000")
JUDGING = ("--number_of_epochs=3", "--warmup_epochs=1", "--batch_size=8", "--ssl_checkpoints_dir=encoder")
SPECIAL = {"supclr": ("--sup_weight=0.5",)}
EVERY_STEP = "--ckpt_interval_steps=1"
OPERATIONS = ("replace", "rename", "fsync", "unlink", "remove", "rmdir", "mkdir")
# When to kill at an operation on a file: before it, after it, when half of the content is written.
WHEN = ("before", "after", "torn")


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def watch_files(number, when, record):
    """Patch this process: its `number`-th operation on files kills it. Write the names of all to the file `record`."""
    count, main = 0, os.getpid()

    def is_last(name, path):
        nonlocal count
        if os.getpid() != main:  # a worker of a DataLoader
            return False
        count += 1
        if record:
            os.write(record, f"{name} {re.sub(r'[0-9a-f]{8,}|[0-9]+', '#', os.path.basename(str(path)))}\n".encode())
        if count == number and when == "before":
            kill_self()
        return count == number

    def wrap(name):
        old = getattr(os, name)

        @functools.wraps(old)
        def operation(*args, **kwargs):
            last = is_last(name, args[0])
            try:
                return old(*args, **kwargs)
            finally:
                if last:
                    kill_self()

        setattr(os, name, operation)

    def opened(file, mode="r", *args, old=builtins.open, **kwargs):
        last = set(mode) & set("wax+") and not isinstance(file, int) and is_last("open", file)
        done = old(file, mode, *args, **kwargs)
        if last and when == "torn":
            done.write = functools.partial(write_half, done, done.write)
        elif last:
            kill_self()
        return done

    def write_half(file, write, content):
        write(content[: len(content) // 2])
        file.flush()
        kill_self()

    for name in OPERATIONS:
        wrap(name)
    builtins.open = io.open = opened


class Dying(SupCLR):
    """Ends in the middle of task 1's second epoch, once what it has is saved: run it with --ckpt_interval_steps=1."""

    def _save_intra_epoch_ckpt(self):
        super()._save_intra_epoch_ckpt()
        if self.task.index == 1 and self.task.counter.current == 2:
            raise Stopped(15)


class CrashLab:
    """Starts scripts on the small data, in forks."""

    def __init__(self, lab, folder):
        self.lab, self.folder, self.count, self.known = lab, folder, 0, {}

    def new_folder(self, script):
        """Make a folder for a run; for linclf_train.py with a copy of an encoder, where it leaves embeddings."""
        self.count += 1
        folder = self.folder / f"{script}{self.count}"
        folder.mkdir()
        if script == "linclf":
            shutil.copytree(self.undisturbed("supclr")[0] / "out" / "supclr+seed_2022", folder / "encoder")
        return folder

    def command(self, script, *args):
        """Return a script and its arguments; output and store go to the folder where it is run."""
        where = (f"--data_folder={self.lab.sounds}", "--output_base=out", "--store_folder=store")
        settings = (*self.lab.tiny, TASKS, *(JUDGING if script == "linclf" else (*self.lab.quick, *TRAINING)))
        yaml = REPO / f"hparams/us8k/{script}_train.yaml"
        return (REPO / f"{script}_train.py", yaml, *where, *settings, *SPECIAL.get(script, ()), *args)

    def start(self, script, folder, *args, kill_at=(0, None), record=None, prepare=lambda: None):
        """Start a script; `kill_at` is the number of an operation on files, from 1, and one of `WHEN`."""

        def watched():
            watch_files(*kill_at, record and os.open(record, os.O_WRONLY | os.O_CREAT))
            prepare()

        return Fork(*self.command(script, *args), cwd=folder, prepare=watched)

    def undisturbed(self, script, *args):
        """Run to the end, once; the folder, the seconds, and the names of the operations on files."""
        if (script, args) not in self.known:
            folder, begun = self.new_folder(script), time.monotonic()
            fork = self.start(script, folder, *args, record=str(folder / "operations.txt"))
            assert fork.wait() == 0, fork.said
            seconds, names = time.monotonic() - begun, (folder / "operations.txt").read_text().splitlines()
            self.known[script, args] = folder, seconds, names
        return self.known[script, args]

    def lost(self, script, folder, args):
        """Go on by the same command; what then differs from an undisturbed run, or how it failed."""
        fork = self.start(script, folder, *args)
        return differing(left_by(folder), left_by(self.undisturbed(script)[0])) if fork.wait() == 0 else fork.said

    def random_operation(self, script, args, rng):
        """Draw an operation to kill at: each kind is as likely as every other, however often a run does it."""
        names = self.undisturbed(script, *({EVERY_STEP} & set(args)))[2]  # workers touch no file
        name = rng.choice(sorted(set(names)))
        number = rng.choice([place for place, other in enumerate(names, 1) if other == name])
        return name, (number, rng.choice(WHEN if name.startswith("open") else WHEN[:2]))


def stage_of(folder, script):
    """What a run was doing when it was killed."""
    (save,) = [*folder.glob("out/*/save")] or [None]
    if not [*folder.glob("store/*/store.json")]:
        return "store"
    if save is None:
        return "start"
    done = len([*save.glob("*.json")]) == 4 if script == "linclf" else is_finished(save / "task1")
    return "reports" if done else "judging" if script == "linclf" else "training"


def kill_and_compare(crash_lab, script, count, seed):
    """Kill `count` runs and go on with each; how many were killed in which stage, and a line for each that lost."""
    rng, killed, lost = random.Random(f"{script} {seed}"), Counter(), []
    options = [(f"--num_workers={n}", *every) for n in (0, 2) for every in ((), (EVERY_STEP,))]
    options = [(), ("--eval_precision=fp32",)] if script == "linclf" else options
    first = rng.randrange(len(options))
    while (n := killed.total()) < count:
        args, folder = options[(first + n // 2) % len(options)], crash_lab.new_folder(script)
        if n % 2:
            name, kill_at = crash_lab.random_operation(script, args, rng)
            fork, moment, seconds = crash_lab.start(script, folder, *args, kill_at=kill_at), (name, kill_at), 120.0
        else:  # with its workers, or, as where memory is short, alone
            seconds, group = rng.uniform(0, crash_lab.undisturbed(script)[1]), rng.random() < 0.5
            fork, moment = crash_lab.start(script, folder, *args), (f"{seconds:.3f} s", group)
        if fork.wait(seconds) is None:
            fork.kill(group=group)
        if fork.wait() == 0:  # it was faster than the undisturbed one
            continue
        moment = f"{script}, seed {seed}, kill {n}, {args}: {moment}"
        assert fork.code == -signal.SIGKILL, f"{moment}: {fork.said}"
        killed["at an operation" if n % 2 else "at a time", stage_of(folder, script)] += 1
        if difference := crash_lab.lost(script, folder, args):
            lost.append(f"{moment}: {difference}")
    return killed, lost

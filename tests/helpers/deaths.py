"""Death at any moment: a script is killed, run again by the same command, and compared with a run that lived.

Each life has a folder of its own, with its store in it, so that it dies while the store is built too. Half of the
random deaths come by the clock, half at one of the run's operations on files: such moments are short, and are where an
order can be wrong.
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
from utils.training.checkpoints import is_finished

SCRIPTS = ("supclr", "simclr", "simsiam", "sup", "linclf")
TASKS = "--task_classes=[[3,8],[9,4]]"
# Every epoch is saved, whatever it costs. So a life's operations on files can be counted beforehand.
TRAINING = ("--number_of_epochs=2", "--use_mixup=True", "--replay_num_keep=2", "--ckpt_overhead=1000")
JUDGING = ("--number_of_epochs=3", "--warmup_epochs=1", "--batch_size=8", "--ssl_checkpoints_dir=encoder")
SPECIAL = {"supclr": ("--sup_weight=0.5",)}
EVERY_STEP = "--ckpt_interval_steps=1"
OPERATIONS = ("replace", "rename", "fsync", "unlink", "remove", "rmdir", "mkdir")
# How to die at an operation on a file: before it, after it, in the middle of what it writes.
MANNERS = ("before", "after", "torn")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def watch(number, manner, record):
    """Count this process's operations on files, write their names to a file if there is one, and die at one of them."""
    count, main = 0, os.getpid()

    def next_is_last(name, path):
        nonlocal count
        if os.getpid() != main:  # a worker of a DataLoader
            return False
        count += 1
        if record:
            os.write(record, f"{name} {re.sub(r'[0-9a-f]{8,}|[0-9]+', '#', os.path.basename(str(path)))}\n".encode())
        if count == number and manner == "before":
            die()
        return count == number

    def wrap(name):
        old = getattr(os, name)

        @functools.wraps(old)
        def operation(*args, **kwargs):
            last = next_is_last(name, args[0])
            try:
                return old(*args, **kwargs)
            finally:
                if last:
                    die()

        setattr(os, name, operation)

    def opened(file, mode="r", *args, old=builtins.open, **kwargs):
        last = set(mode) & set("wax+") and not isinstance(file, int) and next_is_last("open", file)
        done = old(file, mode, *args, **kwargs)
        if last and manner == "torn":
            done.write = functools.partial(torn, done, done.write)
        elif last:
            die()
        return done

    def torn(file, write, content):
        write(content[: len(content) // 2])
        file.flush()
        die()

    for name in OPERATIONS:
        wrap(name)
    builtins.open = io.open = opened


class Lives:
    """Starts scripts on the small data."""

    def __init__(self, lab, folder):
        self.lab, self.folder, self.count, self.known = lab, folder, 0, {}

    @functools.cached_property
    def encoder(self):
        """The run folder that linclf_train.py judges; each of its lives has a copy, where it leaves embeddings."""
        return self.straight("supclr")[0] / "out" / "supclr+seed_2022"

    def new_folder(self, script):
        self.count += 1
        folder = self.folder / f"{script}{self.count}"
        folder.mkdir()
        if script == "linclf":
            shutil.copytree(self.encoder, folder / "encoder")
        return folder

    def command(self, script, *args):
        """A script and its arguments; its output and its store go to the folder where it is run."""
        where = (f"--data_folder={self.lab.sounds}", "--output_base=out", "--store_folder=store")
        settings = (*self.lab.tiny, TASKS, *(JUDGING if script == "linclf" else (*self.lab.quick, *TRAINING)))
        yaml = REPO / f"hparams/us8k/{script}_train.yaml"
        return (REPO / f"{script}_train.py", yaml, *where, *settings, *SPECIAL.get(script, ()), *args)

    def start(self, script, folder, *args, death=(0, None), record=None, prepare=lambda: None):
        """Start a script. `death` is (number, manner) of the operation on files at which it dies."""

        def watched():
            watch(*death, record and os.open(record, os.O_WRONLY | os.O_CREAT))
            prepare()

        return Fork(*self.command(script, *args), cwd=folder, prepare=watched)

    def straight(self, script, *args):
        """An undisturbed life: its folder, its seconds, and the names of its operations on files."""
        if (script, args) not in self.known:
            folder, begun = self.new_folder(script), time.monotonic()
            life = self.start(script, folder, *args, record=str(folder / "operations.txt"))
            assert life.wait() == 0, life.said
            seconds, names = time.monotonic() - begun, (folder / "operations.txt").read_text().splitlines()
            self.known[script, args] = folder, seconds, names
        return self.known[script, args]

    def lost(self, script, folder, args, moment):
        """Go on after a death, by the same command; what is lost, as text."""
        life = self.start(script, folder, *args)
        different = differing(left_by(folder), left_by(self.straight(script)[0])) if life.wait() == 0 else life.said
        return f"{moment}: {different}" if different else ""


def by_operation(lives, script, args, rng):
    """Each kind of operation is as likely as every other, however often the life does it."""
    names = lives.straight(script, *({EVERY_STEP} & set(args)))[2]  # workers touch no file
    name = rng.choice(sorted(set(names)))
    number = rng.choice([place for place, other in enumerate(names, 1) if other == name])
    return name, (number, rng.choice(MANNERS if name.startswith("open") else MANNERS[:2]))


def stage_of(folder, script):
    """Where a life was when it died."""
    (save,) = [*folder.glob("out/*/save")] or [None]
    if not [*folder.glob("store/*/store.json")]:
        return "store"
    if save is None:
        return "start"
    done = len([*save.glob("*.json")]) == 4 if script == "linclf" else is_finished(save / "task1")
    return "reports" if done else "judging" if script == "linclf" else "training"


def kill_and_compare(lives, script, count, seed):
    """Kill `count` lives, run each again to its end, and compare what is left with what an undisturbed life leaves.

    Returns how many died in which stage, and a line for each that lost anything.
    """
    rng, died, lost = random.Random(f"{script} {seed}"), Counter(), []
    options = [(f"--num_workers={n}", *every) for n in (0, 2) for every in ((), (EVERY_STEP,))]
    options = [(), ("--eval_precision=fp32",)] if script == "linclf" else options
    first = rng.randrange(len(options))
    while (n := died.total()) < count:
        args, folder = options[(first + n // 2) % len(options)], lives.new_folder(script)
        if n % 2:
            name, death = by_operation(lives, script, args, rng)
            life, moment, seconds = lives.start(script, folder, *args, death=death), (name, death), 120.0
        else:  # by the clock; with its workers, or, as where memory is short, alone
            seconds, group = rng.uniform(0, lives.straight(script)[1]), rng.random() < 0.5
            life, moment = lives.start(script, folder, *args), (f"{seconds:.3f} s", group)
        if life.wait(seconds) is None:
            life.kill(group=group)
        if life.wait() == 0:  # it was faster than the straight one
            continue
        moment = f"{script}, seed {seed}, death {n}, {args}: {moment}"
        assert life.code == -signal.SIGKILL, f"{moment}: {life.said}"
        died["by operation" if n % 2 else "by the clock", stage_of(folder, script)] += 1
        lost += filter(None, [lives.lost(script, folder, args, moment)])
    return died, lost

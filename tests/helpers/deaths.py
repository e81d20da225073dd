"""Death at any moment: each script is killed, run again by the same command, and compared with a run that lived.

A life starts as a fork of one process that has imported everything, which a normal start needs seconds for. It has a
folder of its own, with its store in it, so that it dies while the store is built too. Half of the deaths come by the
clock, half at one of the run's operations on files: such moments are short, and are where an order can be wrong.
"""

import builtins
import contextlib
import functools
import importlib
import io
import json
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

from helpers.lab import REPO
from utils.training.checkpoints import is_finished

TRAINERS = ("supclr", "simclr", "simsiam", "sup")
SCRIPTS = (*TRAINERS, "linclf")
TASKS = "--task_classes=[[3,8],[9,4]]"
# Every epoch is saved, whatever it costs. So a life's operations on files can be counted beforehand.
TRAINING = ("--number_of_epochs=2", "--use_mixup=True", "--replay_num_keep=2", "--ckpt_overhead=1000")
JUDGING = ("--number_of_epochs=3", "--warmup_epochs=1", "--batch_size=8", "--ssl_checkpoints_dir=encoder")
SPECIAL = {"supclr": ("--sup_weight=0.5",)}
ONLY_WHEN_USED = ("torch._dynamo", "torchmetrics", "matplotlib.pyplot", "PIL.PngImagePlugin")  # seconds of imports
EVERY_STEP = ("--ckpt_interval_steps=1",)
# What an operation on a file may die of: before it, after it, in the middle of what it writes.
MANNERS = ("before", "after", "torn")
# What depends on the clock, on memory, on how often a run was started, on the number of workers, on who edits the code
# meanwhile; and checksums of such files, by the names of the files.
CHANGING = ("seconds", "train_seconds", "peak_memory_bytes", "clips_embedded", "command", "commit", "train_commit")
CHANGING += ("crc32", "CKPT.yaml")


# A life


def live(argv, folder, death=None, record=None):
    """Run a script in `folder`, in a process of its own; its output goes to said.txt there.

    `death` is (number, manner) of the operation on files at which to die; `record` a file for their names.
    """
    os.setsid()
    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(said, stream)
    watch(death, record and os.open(record, os.O_WRONLY | os.O_CREAT))
    sys.argv = list(argv)
    runpy.run_path(argv[0], run_name="__main__")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def watch(death, record):
    """Count this process's operations on files, note their names, and die at one of them."""
    number, manner = death or (0, None)
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

    for name in ("replace", "rename", "fsync", "unlink", "remove", "rmdir", "mkdir"):
        wrap(name)
    builtins.open = io.open = opened


def serve():
    """Start a life for each line of stdin, a JSON object of `live`'s arguments; say its process's number, then how it
    ended: minus a signal's number, or an exit code."""
    for module in (*(f"{script}_train" for script in SCRIPTS), *ONLY_WHEN_USED):
        importlib.import_module(module)
    for line in sys.stdin:
        number = os.fork()
        if number == 0:
            sys.exit(live(**json.loads(line)))
        print(number, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), flush=True)


class Lives:
    """Starts scripts on the small data."""

    def __init__(self, lab, folder):
        self.lab, self.folder, self.count, self.known = lab, folder, 0, {}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{REPO}:{REPO / 'tests'}"}
        command, pipe = [sys.executable, "-c", "from helpers.deaths import serve; serve()"], subprocess.PIPE
        self.parent = subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe)

    def command(self, script, *args):
        where = (f"--data_folder={self.lab.sounds}", "--output_base=out", "--store_folder=store")
        yaml = REPO / "hparams" / "us8k" / f"{script}_train.yaml"
        settings = (*self.lab.tiny, TASKS, *(JUDGING if script == "linclf" else (*self.lab.quick, *TRAINING)))
        return [str(REPO / f"{script}_train.py"), str(yaml), *where, *settings, *SPECIAL.get(script, ()), *args]

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

    def run(self, script, folder, args, kill=None, **kwargs):
        """Run a script to its end, or until `kill`, seconds and a function that is given its process's number; how it
        ended."""
        request = {"argv": self.command(script, *args), "folder": str(folder), **kwargs}
        self.parent.stdin.write(json.dumps(request) + "\n")
        self.parent.stdin.flush()
        number = int(self.parent.stdout.readline())
        if kill:
            timer = threading.Timer(kill[0], kill[1], [number])
            timer.start()
        ended = int(self.parent.stdout.readline())
        if kill:
            timer.cancel()
        return ended

    def straight(self, script, *args):
        """An undisturbed life: its folder, its seconds, and the names of its operations on files."""
        if (script, args) not in self.known:
            folder, begun = self.new_folder(script), time.monotonic()
            ended = self.run(script, folder, args, record=str(folder / "operations.txt"))
            assert ended == 0, (folder / "said.txt").read_text()
            seconds, names = time.monotonic() - begun, (folder / "operations.txt").read_text().splitlines()
            self.known[script, args] = folder, seconds, names
        return self.known[script, args]


# What it leaves


def content_of(path, root):
    """A file's bytes, without where the run was and what may differ from start to start."""
    content = path.read_bytes().replace(os.fsencode(root), b"ROOT")
    if path.suffix == ".json":
        return {key: value for key, value in json.loads(content).items() if key not in CHANGING}
    if path.name in ("CKPT.yaml", "hyperparams.yaml"):
        differs = (b"#", b"unixtime:", b"num_workers:")  # the first is a date
        return b"\n".join(line for line in content.splitlines() if not line.startswith(differs))
    return content


def left_by(root):
    """All that a run has left: weights, tables, metrics, figures, logs of epochs, settings, store, embeddings."""
    found = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = re.sub(r"CKPT\+[^/]+", "CKPT", str(path.relative_to(root)))
        if name.endswith(".tmp") and "/embeddings/" in name:  # a folder that other runs may be writing to, so not swept
            continue
        if path.name not in ("log.txt", "said.txt", "operations.txt", ".lock") and "encoder/save" not in name:
            found[name] = content_of(path, root)
    return found


def differing(found, wanted):
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))


# Deaths


def kill_all(number):
    """Kill a life and its DataLoader workers; it may have no group of its own yet, or be dead already."""
    try:
        os.killpg(number, signal.SIGKILL)
    except ProcessLookupError:
        kill_one(number)


def kill_one(number):
    """Kill a life, as the system does when memory is short: its workers find out by themselves."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, signal.SIGKILL)


def by_the_clock(lives, script, args, rng):
    """A moment of the whole life, and whether the workers die too."""
    seconds = rng.uniform(0, lives.straight(script)[1])
    return {"kill": (seconds, rng.choice([kill_all, kill_one]))}


def by_operation(lives, script, args, rng):
    """Each kind of operation is as likely as every other, however often the life does it."""
    names = lives.straight(script, *(EVERY_STEP if EVERY_STEP[0] in args else ()))[2]  # workers touch no file
    name = rng.choice(sorted(set(names)))
    number = rng.choice([place for place, other in enumerate(names, 1) if other == name])
    return {"death": (number, rng.choice(MANNERS if name.startswith("open") else MANNERS[:2])), "name": name}


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
    wanted = left_by(lives.straight(script)[0])
    options = [(f"--num_workers={n}", *every) for n in (0, 2) for every in ((), EVERY_STEP)]
    options = [(), ("--eval_precision=fp32",)] if script == "linclf" else options
    first = rng.randrange(len(options))
    while (n := died.total()) < count:
        draw, args = (by_the_clock, by_operation)[n % 2], options[(first + n // 2) % len(options)]
        folder, death = lives.new_folder(script), draw(lives, script, args, rng)
        name = death.pop("name", "")
        ended = lives.run(script, folder, args, **death)
        if ended == 0:  # it was faster than the straight one
            continue
        moment = f"{script}, seed {seed}, death {n}, {' '.join(args)}: {death} {name}"
        assert ended == -signal.SIGKILL, f"{moment}: {(folder / 'said.txt').read_text()}"
        died[draw.__name__, stage_of(folder, script)] += 1
        ended = lives.run(script, folder, args)
        different = differing(left_by(folder), wanted) if ended == 0 else (folder / "said.txt").read_text()
        if different:
            lost.append(f"{moment}: {different}")
            print(lost[-1], flush=True)
        else:
            shutil.rmtree(folder)
    return died, lost



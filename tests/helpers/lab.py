"""Run scripts on small audio in the published layouts, in this process or, as a user does, in one of their own."""

import contextlib
import functools
import io
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import soundfile

from datasets import demo
from utils.run import folder as run_folders
from utils.run.arguments import parse_arguments
from utils.run.config import load_config
from utils.run.experiment import Run, read_data
from utils.run.signals import SIGNALS
from utils.training.loop import Stream

REPO = Path(__file__).parents[2]
DEBUG = ("--debug", "--debug_batches", "1", "--debug_epochs", "1")
US8K_TASKS = [(3, 8), (9, 4), (1, 7), (5, 2), (6, 0)]
BAR_DEBRIS = ("\r", "\x1b[", "%|", "it/s", "s/it", "clip/s")


class Done(NamedTuple):
    """How a script ended: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def said(self):
        return self.out + self.err


@contextlib.contextmanager
def process_as_it_was():
    """Restore on leaving what a main block changes: logging, exception hook, signal handlers, locks of run folders."""
    loggers = [logging.getLogger(name) for name in (None, "datasets", "utils")]
    before = [(log, log.level, list(log.handlers), log.propagate) for log in loggers]
    hook, handlers_before = sys.excepthook, {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        sys.excepthook = hook
        for number, handler in handlers_before.items():
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(number, handler)
        for log, level, handlers, propagate in before:
            for handler in set(log.handlers) - set(handlers):
                handler.close()
            log.setLevel(level)
            log.handlers, log.propagate = handlers, propagate
        release_locks()


def release_locks():
    """Release the run folders, which a process holds until its end."""
    for lock in run_folders._locks:
        lock.release()
    run_folders._locks.clear()


def run_here(script, *args, cwd=REPO):
    """Run a script's main block in this process: a process of its own spends seconds on imports."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, process_as_it_was(), contextlib.chdir(cwd):
        patch.setattr(sys, "argv", [str(REPO / script), *map(str, args)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(sys.argv[0], run_name="__main__")
            except SystemExit as stop:
                code = stop.code or 0
    return Done(code, out.getvalue(), err.getvalue())


def edited(file, yaml, *changes):
    """Write a YAML of the repository to a file, each (old, new) replaced; return the file."""
    text = (REPO / "hparams" / yaml).read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    file.write_text(text)
    return file


class Lab:
    """Runs scripts on small audio. `sounds` has UrbanSound8K's layout, 8 + 1 + 1 clips a class; `esc50` has ESC-50's.

    `tiny` are the overrides that make an encoder small enough for a test, `quick` those that make its training short.
    """

    tiny = ("--encoder=pann_tiny", "--emb_dim=16")
    quick = ("--train_duration=0.3", "--batch_size=4", "--number_of_epochs=2", "--warmup_epochs=1", "--num_workers=0")
    esc10_targets = (0, 1, 10, 11, 12, 20, 21, 38, 40, 41)  # the published ones

    def __init__(self, folder):
        self.folder, self.store = folder, folder / "store"

    @functools.cached_property
    def sounds(self):
        return demo.generate(self.folder / "sounds", clips_per_class=10, max_duration=0.8)

    @functools.cached_property
    def esc50(self):
        """50 classes x 5 folds, one clip of 0.2 to 0.4 s each: a tone in noise, its pitch set by the class."""
        folder, rng, rows = self.folder / "esc50", np.random.default_rng(1), []
        (folder / "audio").mkdir(parents=True)
        (folder / "meta").mkdir()
        for target in range(50):
            for fold in range(1, 6):
                name = f"{fold}-{1000 + target}-A-{target}.wav"
                t = np.arange(int(rng.uniform(0.2, 0.4) * 16000)) / 16000
                wav = 0.3 * np.sin(2 * np.pi * (200 + 100 * target) * t) + 0.1 * rng.standard_normal(len(t))
                soundfile.write(folder / "audio" / name, wav, 16000)
                esc10 = target in self.esc10_targets
                rows.append((name, fold, target, f"class_{target:02d}", esc10, 1000 + target, "A"))
        columns = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
        pd.DataFrame(sorted(rows), columns=columns).to_csv(folder / "meta" / "esc50.csv", index=False)  # as published
        return folder

    def command(self, script, *args):
        return [sys.executable, str(REPO / script), *map(str, args), f"--store_folder={self.store}"]

    def start(self, command, cwd=REPO):
        """Start a process whose output is kept as bytes, so that no newline is translated."""
        own = [str(REPO), str(REPO / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(own)}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=subprocess.STDOUT)

    def run(self, script, *args, cwd=REPO):
        """Run a script in this process, which must succeed; return what it printed."""
        done = run_here(script, *args, f"--store_folder={self.store}", cwd=cwd)
        assert done.code == 0, done.said
        assert not [debris for debris in BAR_DEBRIS if debris in done.said], done.said
        return done.said

    def train_args(self, base, *args, kind="supclr", yaml="us8k", data=None):
        """Return the script and the arguments that train a tiny encoder; `yaml` is a folder of hparams, or a file."""
        yaml = yaml if isinstance(yaml, Path) else f"hparams/{yaml}/{kind}_train.yaml"
        places = (f"--output_base={base}", f"--data_folder={data or self.sounds}")
        return (f"{kind}_train.py", yaml, *self.tiny, *self.quick, *places, *args)

    def train(self, base, *args, **where):
        """Train a tiny encoder; return the run folder and what the script printed."""
        said = self.run(*self.train_args(base, *args, **where))
        (folder,) = Path(base).iterdir()
        return folder, said

    def judge(self, base, encoder, *args, yaml="us8k", data=None):
        """Evaluate a tiny encoder; return the run folder and what the script printed."""
        places = (f"--output_base={base}", f"--data_folder={data or self.sounds}", f"--ssl_checkpoints_dir={encoder}")
        said = self.run("linclf_train.py", f"hparams/{yaml}/linclf_train.yaml", *self.tiny, *places, *args)
        (folder,) = Path(base).iterdir()
        return folder, said

    def arguments(self, yaml, *args, data=None):
        """Return a command line after the script's name, with a tiny encoder and the lab's store."""
        places = (f"--data_folder={data or self.sounds}", f"--store_folder={self.store}")
        return [str(REPO / "hparams" / yaml), *self.tiny, *places, *map(str, args)]

    def load(self, yaml, *args, data=None):
        """Read configuration and data in this process, without a run; return hparams, run options, data."""
        file, run_opts, overrides = parse_arguments("", self.arguments(yaml, *args, data=data))
        hparams = load_config(file, overrides)
        return hparams, run_opts, read_data(hparams)

    def start_run(self, brain_class, yaml, *args, data=None, adapt=None):
        """Make a run in this process, with its data read and nothing written, as a script does first."""
        run = Run("", brain_class, self.arguments(yaml, *args, data=data), adapt)
        run.read_data()
        return run

    def learn(self, brain_class, yaml, *args, data=None, after_task=None):
        """Train in this process, as a trainer's main block does; return the run and its stream."""
        run = self.start_run(brain_class, yaml, *args, data=data)
        stream = Stream(brain_class, run)
        run.open()
        stream.train(after_task)
        return run, stream

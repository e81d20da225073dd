"""What the parts of the benchmark share: synthetic clips, processes of their own, and the scripts run inside these."""

import math
import multiprocessing
import os
import runpy
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
import soundfile

from datasets.demo import CLASSES, COLUMNS, synthesise
from utils.io.errors import InputError

REPO = Path(__file__).parents[2]
SECONDS, RATE = 4.0, 44100  # of the synthetic clips
TRAINING_SHARE = 0.8  # of the clips: eight of ten folds


@dataclass(frozen=True)
class Sizes:
    """How much to measure."""

    clips: int = 400
    items: int = 3000  # read from the store
    steps: int = 5  # timed, after `warm_up`
    warm_up: int = 2
    saved_epochs: int = 20
    levers: int = 9  # at most, each off in turn
    starts: int = 3
    encoders: int = 5  # judged
    probe_epochs: int | None = None  # None: the YAML's
    protocols: tuple = ("seen", "subset", "buffer", "full")
    clip_factors: tuple = (1, 4, 16)
    tasks: tuple = (2, 5, 10)
    ceiling_seconds: float = 0.3  # for each operation
    ceiling_products: tuple = (1024, 2048, 4096)  # rows and columns of square matrices
    ceiling_batch: int = 32  # of the convolutions
    embeddings: int = 189_000  # for the probes


QUICK = Sizes(
    clips=100, items=50, steps=1, warm_up=1, saved_epochs=2, levers=1, starts=1, encoders=2, probe_epochs=2,
    protocols=("full",), clip_factors=(), tasks=(2,), ceiling_seconds=0.0, ceiling_products=(256,),
    ceiling_batch=1, embeddings=2000,
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """A trainer's YAML, synthetic clips, and a folder to work in.

    Attributes
    ----------
    yaml : Path
        A trainer's; the script has the same name.
    arguments : tuple of str
        The user's run options and overrides.
    work : Path
        Folder for clips, store and runs.
    sizes : Sizes
    batch_size, sample_rate, train_duration
        Of the YAML with these overrides; Hz, seconds.
    n_clips, n_tasks : int
        Of the synthetic data.
    """

    yaml: Path
    arguments: tuple
    work: Path
    sizes: Sizes
    batch_size: int
    sample_rate: int
    train_duration: float
    n_clips: int
    n_tasks: int = 1
    places: ClassVar = ("--data_folder=.", "--ssl_checkpoints_dir=.")  # for a YAML that is read and not run

    @property
    def script(self):
        return str(REPO / f"{self.yaml.stem}.py")

    @property
    def sounds(self):
        return self.work / f"sounds-{self.n_clips}"

    def with_data(self, n_clips, n_tasks, batches=1):
        """Return a bench with other data: at least `n_clips`, and so many that each task has `batches` to train on."""
        needed = batches * self.batch_size * n_tasks / TRAINING_SHARE
        return replace(self, n_clips=max(n_clips, 100 * math.ceil(needed / 100)), n_tasks=n_tasks)

    def data_arguments(self):
        """Return the overrides for the synthetic clips, which are written now if they are not there."""
        if not self.sounds.exists():
            write_clips(self.sounds, self.n_clips)
        tasks = [group.tolist() for group in np.array_split(np.arange(len(CLASSES)), self.n_tasks)]
        return [
            "--dataset=!name:datasets.us8k.load", f"--data_folder={self.sounds}", f"--task_classes={tasks}",
            f"--store_folder={self.work / 'store'}",
        ]  # fmt: skip

    def apart(self, function, *args):
        """Return ``function(self, *args)`` of a process of its own, where it may patch what it likes.

        Raises
        ------
        InputError
            With what that process has printed last.
        """
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                return pool.submit(_quietly, function, self, *args).result()
            except BrokenProcessPool as error:
                raise InputError(f"{function.__name__} of the benchmark was killed: is there enough memory?") from error

    def train(self, name, steps, epochs, *arguments):
        """Train every task for some epochs of some steps, in this process, by the trainer's script.

        Returns
        -------
        Path
            The run folder.
        """
        limits = [f"--number_of_epochs={epochs}", "--debug", f"--debug_epochs={epochs}", f"--debug_batches={steps}"]
        return self._run(self.script, self.yaml, name, *self.arguments, *limits, *arguments)

    def judge(self, save_folder, name, *arguments):
        """Judge saved encoders of the trainer in this process, by linclf_train.py; return the run folder."""
        given = [f"--ssl_checkpoints_dir={save_folder}", *arguments]
        if epochs := self.sizes.probe_epochs:
            given += [f"--number_of_epochs={epochs}", "--warmup_epochs=1"]
        return self._run(str(REPO / "linclf_train.py"), REPO / "hparams/us8k/linclf_train.yaml", name, *given)

    def _run(self, script, yaml, name, *arguments):
        base = self.work / f"runs-{os.getpid()}"
        places = [*self.data_arguments(), f"--output_base={base}", f"--experiment_name={name}"]
        sys.argv = [script, str(yaml), *arguments, *places]
        runpy.run_path(script, run_name="__main__")
        (folder,) = base.glob(f"{name}+seed_*")
        return folder


def _quietly(function, *args):
    """Call a function while all that this process and its children print goes to a file."""
    with tempfile.TemporaryFile() as said:
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)
        try:
            return function(*args)
        except SystemExit as error:  # of a script
            sys.stdout.flush()
            said.seek(0)
            text = said.read().decode(errors="replace").strip()
            last = text.splitlines()[-1].removeprefix("error: ") if text else f"exit code {error.code}"
            raise InputError(last) from error


def write_clips(folder, n_clips):
    """Write synthetic clips in UrbanSound8K's layout: 4 s at 44.1 kHz in Ogg Vorbis.

    Parameters
    ----------
    folder : Path
    n_clips : int
        A multiple of 100 spreads classes and folds evenly.
    """
    rng = np.random.default_rng(0)
    bases = [synthesise(name, rng, RATE, SECONDS) for name in CLASSES]
    rows = []
    for fold in range(1, 11):
        (folder / "audio" / f"fold{fold}").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for i in range(n_clips):
        label, fold = i % 10, i // 10 % 10 + 1
        name = f"{i}-{label}-0-0.ogg"
        wav = np.roll(bases[label], int(rng.integers(len(bases[label]))))
        soundfile.write(folder / "audio" / f"fold{fold}" / name, wav, RATE, format="OGG", subtype="VORBIS")
        rows.append((name, i, 0.0, SECONDS, 1, fold, label, CLASSES[label]))
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(folder / "metadata" / "UrbanSound8K.csv", index=False)


class Call(NamedTuple):
    """A call of a method, and how long it took."""

    owner: object
    arguments: tuple
    seconds: float


def time_calls(owner, name):
    """Time all calls of a method from now on.

    Parameters
    ----------
    owner : type
    name : str
        The method's.

    Returns
    -------
    list of Call
        Grows at each call.
    """
    calls, method = [], getattr(owner, name)

    def timed(self, *args, **kwargs):
        begun = perf_counter()
        try:
            return method(self, *args, **kwargs)
        finally:
            calls.append(Call(self, args, perf_counter() - begun))

    setattr(owner, name, timed)
    return calls

"""Scripts run on small audio in the published layouts, in processes of their own, as a user runs them."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from datasets import demo
from datasets.prepare import DATA_KEYS, prepare
from utils.run.arguments import parse_arguments
from utils.run.config import load_config
from utils.run.experiment import Run
from utils.training.loop import Stream

REPO = Path(__file__).parents[2]
DEBUG = ("--debug", "--debug_batches", "1", "--debug_epochs", "1")
US8K_TASKS = [(3, 8), (9, 4), (1, 7), (5, 2), (6, 0)]
BAR_DEBRIS = (b"\r", b"\x1b[", b"%|", b"it/s", b"s/it", b"clip/s")


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
        """50 classes x 5 folds, one clip of 0.2 to 0.4 s each: a tone of the class's own in noise."""
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
        pd.DataFrame(rows, columns=columns).to_csv(folder / "meta" / "esc50.csv", index=False)
        return folder

    def command(self, script, *args):
        return [sys.executable, str(REPO / script), *map(str, args), f"--store_folder={self.store}"]

    def start(self, command, cwd=REPO):
        """Start a process whose output is kept as bytes, so that no newline is translated."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=subprocess.STDOUT)

    def run(self, script, *args, cwd=REPO):
        """Run a script to its end, which must be a good one; what it said, as text."""
        process = self.start(self.command(script, *args), cwd)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()
        assert not [debris for debris in BAR_DEBRIS if debris in said], said
        return said.decode()

    def train(self, base, *args, kind="supclr", yaml="us8k", data=None):
        """Run a trainer with a tiny encoder; the run folder and what it said."""
        arguments = (f"hparams/{yaml}/{kind}_train.yaml", *self.tiny, *self.quick, f"--output_base={base}")
        said = self.run(f"{kind}_train.py", *arguments, f"--data_folder={data or self.sounds}", *args)
        (folder,) = Path(base).iterdir()
        return folder, said

    def arguments(self, yaml, *args, data=None):
        """A command line after the script's name, with a tiny encoder and the lab's store."""
        places = (f"--data_folder={data or self.sounds}", f"--store_folder={self.store}")
        return [str(REPO / "hparams" / yaml), *self.tiny, *places, *map(str, args)]

    def load(self, yaml, *args, data=None):
        """Configuration and data in this process, without a run: hparams, run options, data."""
        file, run_opts, overrides = parse_arguments("", self.arguments(yaml, *args, data=data))
        hparams = load_config(file, overrides)
        return hparams, run_opts, prepare(*(hparams[key] for key in DATA_KEYS))

    def start_run(self, brain_class, yaml, *args, data=None, adapt=None):
        """What a script has after its first lines, in this process: a run with its data read, nothing written."""
        run = Run("", brain_class, self.arguments(yaml, *args, data=data), adapt)
        run.read_data()
        return run

    def learn(self, brain_class, yaml, *args, data=None, after_task=None):
        """Train in this process, as a trainer's main block does; the run and its stream."""
        run = self.start_run(brain_class, yaml, *args, data=data)
        stream = Stream(brain_class, run)
        run.open()
        stream.train(after_task)
        return run, stream

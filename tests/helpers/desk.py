"""Scripts run in this process, on four classes of noise; what a refusal must leave as it was."""

import contextlib
import logging
import os
import runpy
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from helpers.lab import REPO
from utils.run import folder as runs

TRAIN_YAML, PROBE_YAML = (REPO / f"hparams/us8k/{name}_train.yaml" for name in ("supclr", "linclf"))
CLASSES = ("dog bark", "siren", "drill", "horn")
HEADER = "slice_file_name,fold,classID,class"
ENCODER = ("--encoder=pann_tiny", "--emb_dim=8", "--device=cpu")
JUDGED = "judged/linclf+seed_2022"
SHORT = ("--number_of_epochs=1", "--warmup_epochs=0", "--batch_size=4")


def write_sounds(folder):
    """UrbanSound8K's layout: 4 classes, one clip of 0.2 s a class and fold, so 8 + 1 + 1 clips a class."""
    noise, rows = np.random.default_rng(0), [HEADER]
    for fold in range(1, 11):
        (folder / f"audio/fold{fold}").mkdir(parents=True)
        for label, name in enumerate(CLASSES):
            soundfile.write(folder / f"audio/fold{fold}/{fold}-{label}.wav", 0.1 * noise.standard_normal(3200), 16000)
            rows.append(f"{fold}-{label}.wav,{fold},{label},{name}")
    (folder / "metadata").mkdir()
    (folder / "metadata/UrbanSound8K.csv").write_text("\n".join(rows) + "\n")
    return folder


def tree(folder, without=None):
    """Every path below a folder with its time, size and bytes; a lock file is no content."""
    paths = [p for p in sorted(Path(folder).rglob("*")) if p.name != ".lock" and without not in (p, *p.parents)]
    return {str(path): state(path) for path in paths}


def state(path):
    if path.is_symlink() or not path.is_file():  # a link, a folder or a pipe
        return os.readlink(path) if path.is_symlink() else ""
    return path.stat().st_mtime_ns, path.stat().st_size, zlib.crc32(path.read_bytes())


class Desk:
    """A folder with sounds and a trained encoder of three tasks, and the scripts run beside it."""

    def __init__(self, folder, capsys=None):
        self.folder, self.capsys = folder, capsys
        self.sounds, self.runs, self.store = folder / "sounds", folder / "runs", folder / "store"
        self.common = (*ENCODER, *SHORT, f"--data_folder={self.sounds}", f"--store_folder={self.store}")

    def train_args(self, *args):
        settings = ("--task_classes=[[0],[1],[2,3]]", "--train_duration=0.2", "--num_workers=0", "--precision=fp32")
        return ["supclr_train.py", TRAIN_YAML, *self.common, *settings, f"--output_base={self.runs}", *args]

    def probe_args(self, *args):
        places = (f"--output_base={self.folder / 'judged'}", f"--ssl_checkpoints_dir={self.runs}")
        return ["linclf_train.py", PROBE_YAML, *self.common, "--task_classes=[[0],[1],[2,3]]", *places, *args]

    def other_args(self, dataset, *args):
        """A trainer on a data set in `other`."""
        yaml = REPO / f"hparams/{dataset}/supclr_train.yaml"
        places = (f"--data_folder={self.folder / 'other'}", f"--output_base={self.runs}")
        return ["supclr_train.py", yaml, *self.common, *places, "--experiment_name=other", *args]

    def report_args(self, *args):
        return ["utils/report.py", self.folder / JUDGED, *args]

    def demo_args(self, *args):
        return ["datasets/demo.py", *args]

    def run(self, arguments):
        """Run a script in this process: exit code, stdout, stderr."""
        code, hook = 0, sys.excepthook
        try:
            with pytest.MonkeyPatch.context() as patch, contextlib.chdir(self.folder):
                patch.setattr(sys, "argv", [str(a) for a in arguments])
                runpy.run_path(str(REPO / arguments[0]), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        finally:
            sys.excepthook = hook
            for lock in runs._locks:
                lock.release()
            runs._locks.clear()
            for name in (None, "datasets", "utils"):
                for handler in logging.getLogger(name).handlers[:]:
                    if not type(handler).__module__.startswith("_pytest"):
                        logging.getLogger(name).removeHandler(handler)
        said = self.capsys.readouterr() if self.capsys else None
        return code, said and said.out, said and said.err

    def refused(self, arguments, *words, lines=1):
        """Run a script, which must refuse its input as this file's first line says; what it said."""
        before, begun = tree(self.folder), time.process_time()
        code, _, said = self.run(arguments)
        assert code == 2, said
        assert time.process_time() - begun < 30  # of the CPU: a busy machine is no hang
        assert said.startswith("error: ") and said.count("\n") == lines and "Traceback" not in said, said
        for word in words:
            assert str(word) in said, said
        assert len(said) < 5000
        assert tree(self.folder, self.store) == {p: s for p, s in before.items() if not p.startswith(str(self.store))}
        # The store is a cache: it may hold another whole store, or nothing.
        inside = {path: state for path, state in tree(self.store).items() if path not in before}
        assert not any(".writing" in path for path in inside)
        assert not [p for p in inside if ".int16" in p] or [p for p in inside if p.endswith("store.json")]
        return said


class Runs:
    """Pickled, it is a call that leaves a file behind."""

    def __reduce__(self):
        return open, ("ran", "w")


def cut(file):
    os.truncate(file, file.stat().st_size // 2)



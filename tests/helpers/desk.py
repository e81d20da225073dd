"""Run scripts on a folder of noise and a trained encoder; check that a refusal changes no file."""

import os
import time
import zlib
from pathlib import Path

import numpy as np
import soundfile

from helpers.lab import REPO, run_here

TRAIN_YAML, PROBE_YAML = (REPO / f"hparams/us8k/{name}_train.yaml" for name in ("supclr", "linclf"))
CLASSES = ("dog bark", "siren", "drill", "horn")
HEADER = "slice_file_name,fold,classID,class"
ENCODER = ("--encoder=pann_tiny", "--emb_dim=8", "--device=cpu")
SHORT = ("--number_of_epochs=1", "--warmup_epochs=0", "--batch_size=4")
RUN, JUDGED = "runs/supclr+seed_2022", "judged/linclf+seed_2022"


def write_sounds(folder):
    """Write UrbanSound8K's layout: 4 classes, a clip of 0.2 s for each class and fold, so 8 + 1 + 1 clips a class."""
    noise, rows = np.random.default_rng(0), [HEADER]
    for fold in range(1, 11):
        (folder / f"audio/fold{fold}").mkdir(parents=True)
        for label, name in enumerate(CLASSES):
            soundfile.write(folder / f"audio/fold{fold}/{fold}-{label}.wav", 0.1 * noise.standard_normal(3200), 16000)
            rows.append(f"{fold}-{label}.wav,{fold},{label},{name}")
    (folder / "metadata").mkdir()
    (folder / "metadata/UrbanSound8K.csv").write_text("\n".join(rows) + "\n")


def tree(folder, without=None):
    """Return each path below a folder, but for lock files, with its time, size and CRC-32."""
    paths = [p for p in sorted(Path(folder).rglob("*")) if p.name != ".lock" and without not in (p, *p.parents)]
    return {str(path): state(path) for path in paths}


def state(path):
    if path.is_symlink() or not path.is_file():  # a link, a folder or a pipe
        return os.readlink(path) if path.is_symlink() else ""
    return path.stat().st_mtime_ns, path.stat().st_size, zlib.crc32(path.read_bytes())


class Desk:
    """A folder with sounds and a trained encoder of three tasks, and the scripts run beside it."""

    def __init__(self, folder, runs=None):
        self.folder, self.runs = folder, runs or folder / "runs"
        self.sounds, self.store = folder / "sounds", folder / "store"
        self.common = (*ENCODER, *SHORT, f"--data_folder={self.sounds}", f"--store_folder={self.store}")

    def train_args(self, *args, kind="supclr"):
        settings = ("--task_classes=[[0],[1],[2,3]]", "--train_duration=0.2", "--num_workers=0", "--precision=fp32")
        yaml = TRAIN_YAML.with_name(f"{kind}_train.yaml")
        return [f"{kind}_train.py", yaml, *self.common, *settings, f"--output_base={self.runs}", *args]

    def probe_args(self, *args):
        places = (f"--output_base={self.folder / 'judged'}", f"--ssl_checkpoints_dir={self.runs}")
        return ["linclf_train.py", PROBE_YAML, *self.common, "--task_classes=[[0],[1],[2,3]]", *places, *args]

    def other_args(self, dataset, *args):
        """Return a trainer's command for a data set in `other`."""
        yaml = REPO / f"hparams/{dataset}/supclr_train.yaml"
        places = (f"--data_folder={self.folder / 'other'}", f"--output_base={self.runs}")
        return ["supclr_train.py", yaml, *self.common, *places, "--experiment_name=other", *args]

    def report_args(self, *args):
        return ["utils/report.py", self.folder / JUDGED, *args]

    def demo_args(self, *args):
        return ["datasets/demo.py", *args]

    def run(self, arguments):
        """Run a script in this process."""
        return run_here(*arguments, cwd=self.folder)

    def refused(self, arguments, *words, lines=1):
        """Run a script, which must refuse its input in so many lines and change no file; return its stderr."""
        before, begun = tree(self.folder), time.process_time()
        done = self.run(arguments)
        assert time.process_time() - begun < 30  # of the CPU: a busy machine is no hang
        assert_refused(done, *words, lines=lines)
        assert tree(self.folder, self.store) == {p: s for p, s in before.items() if not p.startswith(str(self.store))}
        # The store is a cache: it may hold another whole store, or nothing.
        inside = {path: state for path, state in tree(self.store).items() if path not in before}
        assert not any(".writing" in path for path in inside)
        assert not [p for p in inside if ".int16" in p] or [p for p in inside if p.endswith("store.json")]
        return done.err


def assert_refused(done, *words, lines=1):
    """Check that a script ended with exit code 2 and an error of so many lines that has these words in it."""
    assert done.code == 2, done.said
    assert done.err.startswith("error: ") and done.err.count("\n") == lines and len(done.err) < 5000, done.err
    assert "Traceback" not in done.said
    assert [str(word) for word in words if str(word) not in done.err] == [], done.err


class Runs:
    """An object that, when it is unpickled, makes the file "ran"."""

    def __reduce__(self):
        return open, ("ran", "w")


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


def flip(file, place, bit):
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)

"""Synthetic urban sounds in UrbanSound8K's layout, so that every recipe runs before any data set is downloaded.

    python -m datasets.demo data/demo --seed 2022 --clips_per_class 100

Ten kinds of sound (see `datasets.demo_sounds`), recorded under random conditions (see `datasets.demo_recording`). A
clip is a pure function of (seed, class, number), so a larger set contains the smaller one.

Shapes: n = samples of a clip, c = channels.
"""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from datasets import us8k
from datasets.demo_recording import synthesise
from datasets.demo_sounds import CLASSES, delay
from datasets.table import Table
from utils.io.errors import InputError
from utils.io.files import atomic_folder, read_json
from utils.io.streams import mend_streams

FOLDS = 10
COLUMNS = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
RATES = {16000: 0.4, 22050: 0.3, 44100: 0.2, 48000: 0.1}  # Hz: share of the clips
SUBTYPES = {"PCM_16": 0.88, "PCM_24": 0.12}  # share of the clips
STEREO = 0.12  # share of the clips
FOREGROUND = 0.6  # share of the clips whose sound stands out (salience 1); in the others it lies in the background (2)
VERSION = 2  # raise it when a change in the synthesis changes the audio


def load(
    data_folder: str | os.PathLike,
    training_folds: Sequence[int] = range(1, 8),
    valid_folds: Sequence[int] = (8,),
    test_folds: Sequence[int] = (9, 10),
) -> Table:
    """Read the demo set as `datasets.us8k.load` does; generate it first where it is missing."""
    return us8k.load(generate(data_folder), training_folds, valid_folds, test_folds)._replace(source="demo")


def generate(
    folder: str | os.PathLike, seed: int = 2022, clips_per_class: int = 100, max_duration: float = 4.0
) -> Path:
    """Write the demo set, unless it is there already, and return its folder.

    The set is complete or absent, whenever the process dies and however many processes start at once.

    Parameters
    ----------
    folder
        Where `audio/` and `metadata/` go; must be new, empty, or a demo set of the same parameters.
    seed
        Non-negative; another seed gives other clips.
    clips_per_class
        At least 10, so that every class is in every fold.
    max_duration
        Length of the longest clip in seconds; lengths are uniform from 0.375 of it.

    Raises
    ------
    InputError
        A parameter is out of range, or `folder` can't be written or holds anything else.
    """
    if clips_per_class < FOLDS or not 0.2 <= max_duration <= 60 or seed < 0:
        raise InputError(
            f"Got seed={seed}, clips_per_class={clips_per_class}, max_duration={max_duration}: "
            f"give a seed >= 0, clips_per_class >= {FOLDS} (one a fold) and max_duration from 0.2 to 60 seconds."
        )
    folder = Path(folder)
    sizes = {"clips_per_class": clips_per_class, "max_duration": float(max_duration)}
    parameters = {"seed": seed, **sizes, "version": VERSION}
    if _is_complete(folder, parameters):
        return folder
    try:
        with atomic_folder(folder) as aside:
            _write_set(aside, parameters)
    except OSError as error:
        if _is_complete(folder, parameters):  # another process was faster, and its set is as good
            return folder
        raise InputError(
            f"{folder} can't be written ({error.strerror or error}): free space there, or give another folder."
        ) from error
    return folder


def _is_complete(folder, parameters):
    """Return whether the set is there already; raise an InputError where the folder holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = read_json(folder / "metadata" / "demo.json")
    except (OSError, ValueError):
        found = None
    if found == parameters:
        return True
    what = f"a demo set of {found}" if found else "something that is not a demo set"
    raise InputError(f"{folder} holds {what}, wanted {parameters}: delete it or give another folder.")


def _write_set(folder, parameters):
    """Write all clips, the metadata table and a note of the parameters."""
    for fold in range(1, FOLDS + 1):
        (folder / "audio" / f"fold{fold}").mkdir(parents=True)
    (folder / "metadata").mkdir()
    clips = [(class_id, number) for class_id in range(len(CLASSES)) for number in range(parameters["clips_per_class"])]

    def write(clip):
        return _write_clip(folder, parameters["seed"], *clip, parameters["max_duration"])

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # transforms and writing release Python's global lock
        rows = list(pool.map(write, clips))
    with open(folder / "metadata" / "UrbanSound8K.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *sorted(rows)])
    (folder / "metadata" / "demo.json").write_text(json.dumps(parameters))


def _write_clip(folder, seed, class_id, number, max_duration):
    """Draw clip `number` of a class, write its file, and return its row of the metadata table."""
    rng = np.random.default_rng([seed, class_id, number])
    rate = int(rng.choice(list(RATES), p=list(RATES.values())))
    subtype = str(rng.choice(list(SUBTYPES), p=list(SUBTYPES.values())))
    stereo = rng.uniform() < STEREO
    salience = 1 if rng.uniform() < FOREGROUND else 2
    duration = rng.uniform(0.375, 1.0) * max_duration
    start = round(rng.uniform(0, 60), 6)  # seconds: where a field recording would have been cut
    audio = synthesise(CLASSES[class_id], rng, rate, duration, salience)  # [n]
    if stereo:  # the second microphone stands up to 30 cm away
        second = delay(audio, rng.integers(0, rate // 1000)) * np.float32(rng.uniform(0.5, 1))
        audio = np.stack([audio, second], axis=1)  # [n, c]
    fs_id, fold = 100000 * (class_id + 1) + number, number % FOLDS + 1
    name = f"{fs_id}-{class_id}-0-{rng.integers(0, 20)}.wav"
    wav = io.BytesIO()  # soundfile would say "System error" of a full disk; Python's own error names the reason
    soundfile.write(wav, audio, rate, subtype=subtype, format="WAV")
    (folder / "audio" / f"fold{fold}" / name).write_bytes(wav.getbuffer())
    return (name, fs_id, start, round(start + len(audio) / rate, 6), salience, fold, class_id, CLASSES[class_id])


def main():
    """Write a set, as the command line says, and print in one line what it is."""
    mend_streams()
    parser = argparse.ArgumentParser(
        prog="python -m datasets.demo", description="Write synthetic urban sounds in UrbanSound8K's layout."
    )
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=2022)
    parser.add_argument("--clips_per_class", type=int, default=100)
    args = parser.parse_args()
    try:
        folder = generate(args.folder, args.seed, args.clips_per_class)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    files = list(folder.glob("audio/fold*/*.wav"))
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"{folder}: {len(files)} clips, {size:.0f} MB, {FOLDS} folds, {len(CLASSES)} classes: {', '.join(CLASSES)}")


if __name__ == "__main__":
    main()

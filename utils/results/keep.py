"""Keep what a report needs of evaluations: small enough for a repository, and without paths of the machine."""

import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from utils.io.errors import InputError
from utils.io.files import atomic_folder, read_json, write_atomically, write_json
from utils.results.judged import Judged
from utils.results.predictions import FILE, find_predictions

TABLES = ("accuracy_table.csv", "floor_table.csv", "confusion_matrix.csv")
PRIVATE = {  # keys that have paths, or commands with paths
    "metrics.json": ("data_folder", "encoder_run"),
    "settings.json": ("data_folder", "ssl_checkpoints_dir", "encoders"),
    "versions.json": ("command", "earlier_starts", "start_from"),
}


def keep(runs: Sequence[Judged], folder: str | Path):
    """Copy what a report needs of each run to `folder`, under the run folder's name.

    Predictions are compressed and lose their scores, and an encoder's weights and embeddings stay behind, so that the
    tables, intervals and figures of a report can be made again, but no map of embeddings.

    Raises
    ------
    InputError
        Two runs have the same name, or one has been kept there already.
    """
    targets = [Path(folder) / run.folder.name for run in runs]
    for target in targets:
        if target.exists() or targets.count(target) > 1:
            raise InputError(f"{target} exists already, or two runs have its name: set --keep to a new folder.")
    for run, target in zip(runs, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(target) as aside:
            _copy(run.folder, aside)


def _copy(source, target):
    for name, private in PRIVATE.items():
        if (source / name).is_file():
            content = read_json(source / name)
            write_json(target / name, {key: value for key, value in content.items() if key not in private}, indent=1)
    for name in TABLES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if predictions := find_predictions(source):
        table = pd.read_csv(predictions, dtype=str, keep_default_na=False).drop(columns="score", errors="ignore")
        text = table.sort_values("clip", kind="stable").to_csv(index=False)  # like beside like: a third smaller
        write_atomically(target / f"{FILE}.gz", gzip.compress(text.encode(), mtime=0))

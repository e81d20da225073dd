"""Finished evaluations, read from their run folders."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.selection import PROTOCOLS
from utils.io.errors import InputError
from utils.io.files import read_json
from utils.results.metrics import METRICS
from utils.results.protocols import OWN_TEST, find_protocol, with_probe
from utils.run.keys import FOLD_KEYS

COSTS = ("train_seconds", "peak_memory_bytes")  # of the encoder's training
# Settings and conditions that should be equal where methods are compared. Of settings.json: the precisions, and how a
# protocol's classifier was trained. Of metrics.json: how the encoder was trained, and what the protocol was.
PRECISIONS = ("precision", "eval_precision")
PROBE_SETTINGS = ("number_of_epochs", "batch_size", "lr", "standardise", "replay_num_keep", "few_shot_draws")
TRAINING = ("train_device", "train_precision", "train_commit", "train_torch", "train_threads", "train_data",
            "train_start_from")  # fmt: skip
PROTOCOL = ("protocol_title", "classes_grow")
# Of versions.json, what is no condition.
NO_CONDITION = ("command", "started", "earlier_starts", "classes", "tasks", "added_tasks", "start_from")
# Settings that are no condition: they name a row or a column of the table, or say where files are.
NAMED = ("experiment_name", "method", "seed", "linclf_train_type", "probe", "few_shot", "ssl_checkpoints_dir",
         "encoders", "data_folder", *FOLD_KEYS)  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """One finished evaluation: the encoders of one run, judged by one protocol."""

    folder: Path
    protocol: str
    protocol_title: str
    classes_grow: bool  # see `datasets.selection.Protocol`
    probe: str  # see `utils.evaluation.probes.PROBES`
    few_shot: int | None  # clips of each class that the probe is trained on; None: all
    method: str
    encoder: str
    dataset: str
    seed: int
    folds: str  # training, valid and test folds; "" where the data set has none
    metrics: dict[str, float]  # of the trained encoders, by `METRICS`: fractions, NaN where not evaluated
    floor: dict[str, float]  # the same of random weights
    encoder_tasks: int | None  # on how many tasks the encoder was trained; None if not known
    costs: dict[str, float]  # by `COSTS`: seconds and bytes, NaN where not known
    conditions: dict[str, str]  # what should be equal where evaluations are compared
    clips: dict[str, int]  # how many the last encoder's probe had, by split; this and the next: empty if not known
    data_folder: str
    encoder_run: str  # the run folder of the encoders, relative to `folder`
    remembered: dict[str, np.ndarray]  # see `utils.evaluation.remembered.Remembered`; NaN for what is not known


def load_run(folder: str | Path) -> Judged:
    """Read one evaluation: its metrics.json and, where they exist, its versions.json and settings.json.

    Raises
    ------
    InputError
        There is no metrics.json, it is none of an evaluation, its protocol is unknown, or a file is damaged.
    """
    folder = Path(folder)
    file = folder / "metrics.json"
    if not file.is_file():
        raise InputError(f"No metrics.json in {folder}: is it the run folder of a finished linclf_train.py?")
    record = _read_object(file)
    files = {name: folder / f"{name}.json" for name in ("versions", "settings")}
    versions, settings = (_read_object(file) if file.is_file() else {} for file in files.values())
    try:
        fields = _fields(record, settings)
    except KeyError as error:
        raise InputError(f"{file} has no key {error}: was it written by linclf_train.py?") from None
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(f"{file} was not written by linclf_train.py: {error}") from None
    if fields["protocol_title"] is None or fields["classes_grow"] is None:
        raise InputError(f"{file}: unknown protocol {fields['protocol']!r}; known are {', '.join(PROTOCOLS)}")
    folds = " | ".join(" ".join(str(settings[key]).strip("[]").split()) for key in FOLD_KEYS if key in settings)
    conditions = _conditions(record, versions, settings, folds)
    return Judged(folder=folder, folds=folds, conditions=conditions, **fields)


def _read_object(file):
    """Read a JSON file that an evaluation has left."""
    try:
        return read_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({error}): run that evaluation again, or leave it out") from None


def _fields(record, settings):
    """Read from a metrics.json what `Judged` has; from settings.json the probe, which older versions only had there.

    `protocol_title` and `classes_grow` are None where the file, of an older version, lacks them and the protocol is not
    known here either.
    """
    names = ("protocol", "method", "encoder", "dataset")
    fields = {key: _typed(record[key], str, f"{key} is no text") for key in names}
    fields |= {key: {name: _number(record[key].get(name)) for name in METRICS} for key in ("metrics", "floor")}
    fields |= {"seed": int(record["seed"]), "costs": {key: _number(record.get(key)) for key in COSTS}}
    probe = record.get("probe", settings.get("probe", "linear"))
    fields["probe"] = _typed(probe, str, "probe is no text")
    fields["few_shot"] = _typed(record.get("few_shot"), int | None, "few_shot is no number")
    fields["encoder_tasks"] = _typed(record.get("encoder_tasks"), int | None, "encoder_tasks is no number")
    fields["clips"] = {key: int(value) for key, value in (record.get("clips") or {}).items()}
    fields |= {key: _typed(record.get(key, ""), str, f"{key} is no text") for key in ("data_folder", "encoder_run")}
    measured = _typed(record.get("remembered") or {}, dict, "remembered is no object").items()
    fields["remembered"] = {key: np.array(values, dtype=float) for key, values in measured}
    known = find_protocol(fields["protocol"])
    title, grow = (known.title, known.classes_grow) if known else (None, None)
    fields["protocol_title"] = _typed(record.get("protocol_title", title), str | None, "protocol_title is no text")
    fields["classes_grow"] = _typed(record.get("classes_grow", grow), bool | None, "classes_grow is not true or false")
    return fields


def _typed(value, kind, complaint):
    if not isinstance(value, kind):
        raise TypeError(complaint)
    return value


def _number(value):
    return math.nan if value is None else float(value)


def _conditions(record, versions, settings, folds):
    """Collect what should be equal where evaluations are compared, without what is not recorded.

    The digest of the data depends on the folds.
    """
    probe, few_shot = record.get("probe", settings.get("probe", "linear")), record.get("few_shot")
    place = with_probe(f"{record['dataset']} {record['protocol']}", probe, few_shot)
    found = {key: value for key, value in versions.items() if key not in NO_CONDITION}
    found |= {key: settings.get(key) for key in PRECISIONS} | {key: record.get(key) for key in TRAINING}
    split = f", folds {folds}" if folds else ""
    for key in ("data", "train_data"):
        if key in found:
            found[f"{key} ({record['dataset']}{split})"] = found.pop(key)
    found |= {f"{key} ({record['protocol']})": record.get(key) for key in PROTOCOL}
    found |= {f"{key} ({place})": settings.get(key) for key in PROBE_SETTINGS}
    others = sorted(settings.keys() - {*PRECISIONS, *PROBE_SETTINGS, *NAMED})  # most are of the encoder's architecture
    found |= {f"{key} ({place}, {record['encoder']})": settings[key] for key in others}
    return {key: " ".join(str(value).split()) for key, value in found.items() if value is not None}


def load_runs(folders: Iterable[str | Path], own_tests: bool = False) -> list[Judged]:
    """Read evaluations in the order given, each folder once.

    Parameters
    ----------
    folders : iterable of str or Path
    own_tests : bool
        Whether sup_train.py's runs may be among them.

    Raises
    ------
    InputError
        See `load_run`. Also if two runs have the same dataset, encoder, method, protocol, seed and folds: they can't
        both be that seed in a mean.
    """
    runs, places = [], {}
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        run = load_run(folder)
        if run.protocol == OWN_TEST and not own_tests:
            raise InputError(f"{folder} has sup_train.py's own test: give linclf_train.py's run folders")
        judged = (run.protocol, run.probe, run.few_shot)
        place = (run.dataset, run.encoder, run.method, run.encoder_tasks == 1, *judged, run.seed, run.folds)
        if place in places:
            raise InputError(
                f"{places[place]} and {folder} are both {with_probe(*judged)}, {run.method}, {run.encoder}, "
                f"{run.dataset}, seed {run.seed}{', the same folds' if run.folds else ''}: give one of them, they "
                "can't be averaged as two seeds"
            )
        places[place] = folder
        runs.append(run)
    return runs

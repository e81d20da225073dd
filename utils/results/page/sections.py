"""A section of the page for each encoder's run: how it was trained, what each protocol found, and its map."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from utils.io.errors import InputError
from utils.io.files import read_json
from utils.results.judged import Judged
from utils.results.metrics import read_table
from utils.results.page.maps import NoMap, embedding_map, reason, shown_clips
from utils.results.page.words import evaluation_words, training_words
from utils.results.protocols import with_probe
from utils.results.tables import Scale
from utils.run.keys import KEYS

MOST_CELLS = 60  # classes of a confusion that is drawn; of more, the pairs that are confused most are listed
MOST_PAIRS = 15
LONGEST = 120  # characters of a setting
NAMES = ("experiment_name", "seed")  # settings that tell runs apart by name
MEASURES = ("loss", "valid_loss", "emb_std", "z_std")  # of train_log.csv, that are drawn


class Page:
    """Collects what the page's script draws: figures by name, and the clips of each data folder.

    Attributes
    ----------
    figures : dict of str to dict
        JSON of each figure, with its `kind`.
    clips : dict of (str, tuple) to int
        (Data folder, paths) of each set of clips -> its number in `sets`.
    sets : list of pandas.DataFrame
    """

    def __init__(self):
        self.figures, self.clips, self.sets = {}, {}, []

    def add(self, name: str, kind: str, **content) -> str:
        """Keep a figure; return its name."""
        self.figures[name] = {"kind": kind, **content}
        return name

    def add_clips(self, data_folder: str, clips: pd.DataFrame) -> int:
        """Keep a set of clips once; return its number."""
        key = (data_folder, tuple(clips["wav_path"]))
        if key not in self.clips:
            self.clips[key] = len(self.sets)
            self.sets.append(clips)
        return self.clips[key]


def sections(runs: Sequence[Judged], page: Page) -> list[dict]:
    """Arrange a section for each encoder's run, in the order of the runs; the figures go to `page`."""
    groups = {}
    for run in runs:
        key = (run.dataset, run.encoder, run.method, run.encoder_tasks == 1, run.seed, run.folds)
        groups.setdefault(key, []).append(run)
    settings = [_read_settings(members[0]) for members in groups.values()]
    return [
        _section(f"run{number}", members, own, settings, page)
        for number, (members, own) in enumerate(zip(groups.values(), settings, strict=True))
    ]


def _section(name, runs, own, settings, page):
    run, folder = runs[0], runs[0].folder / runs[0].encoder_run
    with_map = next((r for r in runs if not r.classes_grow), run)
    return {
        "name": name,
        "method": run.method,
        "facts": [run.dataset, run.encoder, f"seed {run.seed}", *_test_folds(run)],
        "results": [(_title(r), Scale("", 0.01, 1).text(r.metrics["acc"])) for r in runs],
        "training": training_words(folder, own, run) if own else None,
        "evaluations": [_evaluation(f"{name}-{k}", r, page) for k, r in enumerate(runs)],
        "curves": _curves(name, folder, page) if own else None,
        "settings": _differing(own, settings),
        **_map(name, with_map, page),
    }


def _test_folds(run):
    folds = run.folds.rpartition(" | ")[2]
    return [f"test fold{'s' if ',' in folds else ''} {folds}"] if folds else []


def _title(run):
    return with_probe(run.protocol_title, run.probe, run.few_shot)


def _read_settings(run):
    """Read the settings of an encoder's run; empty if it is gone, or not known."""
    if not run.encoder_run:
        return {}
    try:
        return read_json(run.folder / run.encoder_run / "settings.json")
    except (OSError, ValueError):
        return {}


def _differing(own, settings):
    """List the training's settings that not all runs have: name, value here, the values of others."""
    keys = {key: None for other in settings for key in other}
    rows = []
    for key in (key for key in keys if own and key not in NAMES and not KEYS.get(key, KEYS["seed"]).harmless):
        values = [_short(other.get(key, "")) for other in settings if other]
        if len(set(values)) > 1:
            here = _short(own.get(key, ""))
            rows.append({"key": key, "here": here, "others": sorted({value for value in values if value != here})})
    return rows


def _short(value):
    text = " ".join(str(value).split()) or "–"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _evaluation(name, run, page):
    """Arrange an evaluation: its words, and its accuracy table and confusion as figures or a line of excuse."""
    found = {"title": _title(run), "words": evaluation_words(run), "table": None, "confusion": None, "pairs": []}
    found["problems"] = problems = []
    try:
        (table, names), (floor, _) = (read_table(run.folder / f"{part}_table.csv") for part in ("accuracy", "floor"))
        rows = [*numbers(100 * table), *numbers(100 * floor[-1:])]
        labels = [*(f"after task {t}" for t in range(len(table))), "random"]
        found["table"] = page.add(f"{name}-table", "table", values=rows, rows=labels, tasks=names)
    except InputError as error:
        problems.append(f"No accuracy table: {str(error).replace(str(run.folder), run.folder.name)}.")
    try:
        counts = pd.read_csv(run.folder / "confusion_matrix.csv", index_col=0, keep_default_na=False)
        classes, counts = [str(name) for name in counts.index], counts.to_numpy(dtype=int)
        if counts.shape != (len(classes), len(classes)):
            raise ValueError("it is not square")
    except (OSError, ValueError) as error:
        problems.append(f"No confusion matrix: confusion_matrix.csv can't be read ({reason(error)}).")
        return found
    if len(classes) <= MOST_CELLS:
        content = {"counts": counts.tolist(), "classes": classes}
        found["confusion"] = page.add(f"{name}-confusion", "confusion", **content)
    else:
        found["pairs"] = _pairs(counts, classes)
    return found


def _pairs(counts, classes):
    """List the pairs of classes that are confused most: true class, predicted class, clips, clips of the true class."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(wrong, axis=None)[::-1][:MOST_PAIRS]
    places = [np.unravel_index(place, wrong.shape) for place in order]
    return [(classes[i], classes[j], int(wrong[i, j]), int(counts[i].sum())) for i, j in places if wrong[i, j]]


def _curves(name, folder, page):
    """Keep the curves of a training as a figure; None if its log is gone."""
    try:
        log = pd.read_csv(folder / "train_log.csv")
        log = log.drop_duplicates(["task", "epoch"], keep="last").sort_values(["task", "epoch"])
    except (OSError, ValueError, KeyError):
        return None
    if log.empty:
        return None
    curves = {measure: numbers(log[measure]) for measure in MEASURES if measure in log}
    return page.add(f"{name}-curves", "curves", curves=curves, tasks=[int(task) for task in log["task"]])


def _map(name, run, page):
    """Keep the map of a run as a figure, or say in a line why there is none."""
    try:
        clips = shown_clips(run)
        found = embedding_map(run, list(clips["wav_path"]))
    except NoMap as problem:
        return {"map": None, "no_map": str(problem), "encoders": []}
    encoders = ["random weights", *(f"after task {t}" for t in range(len(found["points"]) - 1))]
    figure = page.add(f"{name}-map", "map", clips=page.add_clips(run.data_folder, clips), encoders=encoders, **found)
    return {"map": figure, "no_map": "", "encoders": encoders}


def numbers(values) -> list:
    """Round numbers to four digits, for JSON; None for what is not finite."""
    if np.ndim(values) > 1:
        return [numbers(row) for row in values]
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]

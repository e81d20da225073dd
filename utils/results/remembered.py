"""What the last encoders remember of earlier tasks beyond accuracy, by method: see utils/evaluation/remembered.py."""

import math
from collections.abc import Sequence

import numpy as np

from utils.results.comparison import Cell, Column, Groups, group_runs, repeats
from utils.results.judged import Judged

PLACE = "remembered"  # in the place of a column's protocol
COLUMNS = [
    Column(name, metric, PLACE)
    for metric, name in (("knn", "kNN"), ("cka", "CKA"), ("shift", "Shift"), ("rank", "Effective rank"))
]


def remembered(runs: Sequence[Judged]) -> Groups:
    """Take means over seeds of what the last encoder of each run remembers; groups without any are left out.

    ``knn`` (a fraction) and ``rank`` are means over all tasks. ``cka`` and ``shift`` compare with the encoder saved
    after the task, so they are means over the tasks before the last. Of several evaluations of an encoder's run, the
    first whose classes don't grow counts, or else the first.
    """
    found = {}
    for group, members in group_runs(runs).items():
        measured = [run for run in sorted(members, key=lambda run: run.classes_grow) if run.remembered]
        chosen = dict(reversed(list(zip(repeats(measured), measured, strict=True))))  # of one seed, the first
        cells = {column: _cell(dict(sorted(chosen.items())), column.metric) for column in COLUMNS}
        if any(cell.values for cell in cells.values()):
            found[group] = cells
    return found


def _cell(runs, metric):
    values = [(seed, _last(run.remembered, metric)) for seed, run in runs.items()]
    floors = [(seed, _mean(run.remembered.get("knn_floor", ()))) for seed, run in runs.items() if metric == "knn"]
    return Cell.of(values, floors)


def _last(measures, metric):
    """Return the mean of a measure over the tasks, for the last encoder; NaN if it is not known."""
    table = measures.get(metric, np.empty((1, 0)))  # [N, T]
    return _mean(table[-1, :-1] if metric in ("cka", "shift") and table.shape[1] > 1 else table[-1])


def _mean(values):
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan

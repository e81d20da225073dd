"""95 % intervals by bootstrap: over recordings of the test, and over the seeds or folds of a method.

Each of `REPLICATES` replicates draws the runs (seeds, folds) of a method with replacement, and the recordings of each
test task with replacement, each with all its clips; an interval is that of the middle 95 % of the replicates
(percentile bootstrap, Efron and Tibshirani 1993, chapter 13; of clusters, Davison and Hinkley 1997, section 3.8). Runs
with the same test clips get the same draw of them: a clip that is hard for one is hard for the others. So does a
baseline, and the interval of a difference is that of the paired differences.

Legend: R replicates, K runs, N encoders, T test tasks, G recordings, n clips.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from datasets.recordings import recordings_of
from utils.results.judged import Judged
from utils.results.predictions import read_correct

REPLICATES = 2000
CONFIDENCE = 0.95
SEED = 2022
FLOOR, TRAINED = "floor", "metrics"  # attributes of `Judged`


class Interval(NamedTuple):
    """A 95 % interval and what was resampled for it."""

    low: float
    high: float
    over: str  # "clips", "clips and runs" or "runs": seeds or folds


class Difference(NamedTuple):
    """The mean paired difference from a baseline, over the runs that both have."""

    mean: float
    interval: Interval | None
    baseline: str = ""  # its name

    @property
    def is_shown(self) -> bool:
        """Whether the runs show a difference: there is an interval, and 0 is not in it."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


def statistics_of(tables: np.ndarray, metric: str) -> np.ndarray:
    """Compute a metric of many accuracy tables, [R, N, T] -> [R]; see `utils.results.metrics.continual_metrics`.

    Raises
    ------
    KeyError
        A metric other than acc, bwt and forgetting.
    """
    last = tables[:, -1]  # [R, T]
    if metric == "acc":
        return last.mean(1)
    n_tasks = tables.shape[2]
    if metric == "bwt":
        return (last - np.diagonal(tables, axis1=1, axis2=2))[:, :-1].mean(1)
    if metric == "forgetting":
        best = np.stack([tables[:, j:-1, j].max(1) for j in range(n_tasks - 1)], axis=1)
        return (best - last[:, :-1]).mean(1)
    raise KeyError(metric)


class Bootstrap:
    """Replicates of evaluations; each evaluation's predictions are read once."""

    def __init__(self, replicates: int = REPLICATES):
        self.replicates, self._tables = replicates, {}

    def interval(self, runs: Sequence[Judged], metric: str, of: str = TRAINED) -> Interval | None:
        """Return the interval of the mean of a metric over runs, of the trained encoders or of the floor.

        Without the predictions of all runs it is over runs alone; None for a single such run.
        """
        values, with_clips = self._values(runs, metric, of)
        return self._interval_of(values, with_clips)

    def difference(self, pairs: Sequence[tuple[Judged, Judged]], metric: str) -> Difference | None:
        """Return the mean difference of a metric, first less second, over pairs of runs; None without a pair."""
        if not pairs:
            return None
        means = [getattr(run, TRAINED)[metric] - getattr(base, TRAINED)[metric] for run, base in pairs]
        ours, theirs = (self._values(runs, metric, TRAINED) for runs in zip(*pairs, strict=True))
        same = all(self._clips(run) == self._clips(base) for run, base in pairs)
        if ours[1] and theirs[1] and same:
            interval = self._interval_of(ours[0] - theirs[0], True)
        else:
            interval = self._interval_of(np.repeat(np.array(means)[:, None], self.replicates, 1), False)
        return Difference(float(np.mean(means)), interval)

    def _values(self, runs, metric, of):
        """Return a metric by run and replicate of clips [K, R], and whether clips were drawn for all of them."""
        tables = [self._replicate(run)[of] for run in runs]
        if all(table is not None for table in tables):
            return np.stack([statistics_of(table, metric) for table in tables]), True
        values = np.array([getattr(run, of)[metric] for run in runs])
        return np.repeat(values[:, None], self.replicates, axis=1), False

    def _interval_of(self, values, with_clips):
        """Draw runs for each replicate; the interval of the means of [K, R]."""
        n_runs = len(values)
        if n_runs == 1 and not with_clips:
            return None
        drawn = np.random.default_rng([SEED, n_runs]).integers(n_runs, size=values.shape)  # [K, R]
        means = np.take_along_axis(values, drawn, axis=0).mean(axis=0)
        low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        over = " and ".join(["clips"] * with_clips + ["runs"] * (n_runs > 1))
        return Interval(float(low), float(high), over)

    def _clips(self, run):
        """Return a digest of a run's test clips; "" without predictions."""
        return self._replicate(run)["clips"]

    def _replicate(self, run):
        """Return the accuracy tables [R, N, T] of a run's trained encoders and floor, and a digest of its clips."""
        if run.folder not in self._tables:
            correct = read_correct(run.folder)
            none = {TRAINED: None, FLOOR: None, "clips": ""}
            self._tables[run.folder] = self._draw(run.dataset, correct) if correct else none
        return self._tables[run.folder]

    def _draw(self, dataset, correct):
        n_encoders = sum(name.startswith("task") for name in correct)
        last = correct[f"task{n_encoders - 1}"]
        clips = last[["task", "clip", "row"]]
        digest = hashlib.blake2b(clips.to_csv(index=False).encode(), digest_size=8).hexdigest()
        shape = (self.replicates, n_encoders, int(last["task"].max()) + 1)
        tables = {TRAINED: np.full(shape, np.nan), FLOOR: np.full(shape, np.nan)}
        for task, rows in clips.groupby("task"):
            rng = np.random.default_rng([SEED, task, int(digest, 16)])
            recordings, of = np.unique(recordings_of(dataset, rows["clip"]), return_inverse=True)
            n = len(recordings)
            weights = rng.multinomial(n, np.full(n, 1 / n), self.replicates)[:, of]  # [R, G] -> [R, n]
            weights = weights / weights.sum(axis=1, keepdims=True)
            for name, prefix in ((TRAINED, "task"), (FLOOR, "floor")):
                for t in range(n_encoders):
                    part = correct.get(f"{prefix}{t}", correct.get("floor0") if prefix == "floor" else None)
                    right = part.loc[part["task"] == task, "correct"].to_numpy()
                    if len(right) == len(rows):
                        tables[name][:, t, task] = weights @ right
        return {**tables, "clips": digest}

"""What encoders remember of each task beyond accuracy. Legend: N encoders, T test tasks, n clips, D features."""

import contextlib
import os

import numpy as np
import pandas as pd

from utils.analysis.measures import directions, drift, linear_cka
from utils.evaluation.linear import Embedded
from utils.evaluation.neighbours import knn
from utils.evaluation.saved import load_encoder
from utils.io.files import read_json, write_json
from utils.training.collapse import effective_rank

MEASURES = ("cka", "shift", "knn", "rank")
NEIGHBOURS, TEMPERATURE = 20, 0.07
CACHED = "clips in the cache"  # text of a progress bar, if there are any to embed
FEWEST = 2  # clips; of fewer there is nothing to measure


def remember(evaluation, embedder, cache, folders, results):
    """Measure all encoders and the random weights, which are loaded; unless that is done for the same results.

    Parameters
    ----------
    evaluation : utils.evaluation.judge.Evaluation
        Of a probe that takes embeddings.
    embedder : utils.evaluation.embeddings.Embedder
    cache : utils.evaluation.embeddings.EmbeddingCache
        With the clips of all `results`.
    folders : list of str
        The encoders' task folders, in order.
    results : dict
        `trained` and `floor`, as `utils.evaluation.judge.evaluate_encoders` returns them.

    Returns
    -------
    dict
        See `Remembered.as_lists`.
    """
    path = os.path.join(evaluation.run.save_folder, "remembered.json")
    keys = [result["key"] for name in ("trained", "floor") for result in results[name]]
    with contextlib.suppress(OSError, ValueError):  # missing or damaged: measured again
        saved = read_json(path)
        if saved.get("keys") == keys:
            return saved["measures"]
    measured = Remembered(evaluation, len(folders))
    measured.add_floor(len(folders) - 1, embedder, cache, embedder.key())
    for t, folder in enumerate(folders):
        load_encoder(folder, evaluation.hparams["modules"])
        measured.add(t, embedder, cache, embedder.key())
    measures = measured.as_lists()
    write_json(path, {"keys": keys, "measures": measures})
    return measures


class Remembered:
    """Measures the test clips of each task under each encoder, from cached embeddings.

    Parameters
    ----------
    evaluation : utils.evaluation.judge.Evaluation
        Of a probe that takes embeddings.
    n_encoders : int
        N.

    Attributes
    ----------
    tables : dict of str to numpy.ndarray
        [N, T] each, NaN where a protocol doesn't embed the task's clips. ``cka``: linear CKA with the first encoder
        that has learnt the task, 1 where nothing but rotation and scale has changed. ``shift``: mean over clips of
        1 - cosine of an embedding with that encoder's, each from the mean of the task. ``knn``: accuracy of the 20
        nearest neighbours among the task's own training clips, so that no other classes can be mistaken for its own.
        ``rank``: effective rank of the embeddings.
    floor : numpy.ndarray
        [T], ``knn`` of random weights.
    """

    def __init__(self, evaluation, n_encoders):
        self.evaluation, self.reference = evaluation, {}
        n_tasks = evaluation.data.n_tasks
        self.aligned = n_encoders <= n_tasks
        self.tables = {name: np.full((n_encoders, n_tasks), np.nan) for name in MEASURES}
        self.floor = np.full(n_tasks, np.nan)

    def add(self, t, embedder, cache, key):
        """Measure the encoder of stage `t`, whose weights are loaded and whose clips are embedded."""
        for task, train, test in self._tasks(t, embedder, cache, key):
            if task not in self.reference and (t >= task or not self.aligned):
                self.reference[task] = test.inputs
            self.tables["knn"][t, task] = self._knn(train, test)
            self.tables["rank"][t, task] = effective_rank(test.vectors)
            if task in self.reference:
                before = self.reference[task]
                self.tables["cka"][t, task] = linear_cka(before, test.inputs)
                one, other = directions(np.stack([before, test.inputs]))
                self.tables["shift"][t, task] = max(0.0, drift(one, other).mean())

    def add_floor(self, t, embedder, cache, key):
        """Measure random weights on the clips of stage `t`."""
        for task, train, test in self._tasks(t, embedder, cache, key):
            self.floor[task] = self._knn(train, test)

    def _tasks(self, t, embedder, cache, key):
        """Yield (task, training clips, test clips), both `Embedded`, of the tasks that stage `t` tests."""
        rows = pd.concat([self.evaluation.rows(t)[name].assign(part=name) for name in ("train", "test")])
        vectors = cache.get(embedder, self.evaluation.data.store, rows["clip"].to_numpy(), CACHED, key)
        for task in sorted(rows.loc[rows["part"] == "test", "task"].unique()):
            places = [np.flatnonzero((rows["task"] == task) & (rows["part"] == name)) for name in ("train", "test")]
            if min(map(len, places)) >= FEWEST:
                labels = rows["label"].to_numpy()
                yield int(task), *(Embedded(vectors[part], labels[part]) for part in places)

    def _knn(self, train, test):
        n_classes = len(self.evaluation.data.classes)
        predict = knn(train, test, n_classes, True, knn_k=NEIGHBOURS, knn_temperature=TEMPERATURE)
        return float((predict(test.inputs) == test.labels.numpy()).mean())

    def as_lists(self):
        """Return the tables and the floor as lists for a JSON file, None for NaN."""
        tables = {**self.tables, "knn_floor": self.floor[None]}
        lists = {k: [[None if np.isnan(v) else float(v) for v in row] for row in table] for k, table in tables.items()}
        return {**lists, "knn_floor": lists["knn_floor"][0]}

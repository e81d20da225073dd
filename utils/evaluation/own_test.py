"""The test of a classifier that is trained with its encoder. Legend: n clips, D embedding features, C classes."""

import copy
import logging
import time

import numpy as np
from torch import nn

from models.heads import Classifier
from utils.evaluation.embeddings import cache_beside, make_embedder
from utils.evaluation.probes import Embedded, LinearPredictor, count_pairs, list_predictions, predicted
from utils.run.processes import main_only
from utils.training.checkpoints import load_weights
from utils.training.context import FRONT_END, handed_on

logger = logging.getLogger(__name__)


class TaskTests:
    """Tests encoder and classifier after each task on all classes so far, and as they were before any training.

    Each whole clip passes each encoder once. Embeddings are kept where linclf_train.py finds them.

    Parameters
    ----------
    run : utils.run.experiment.Run
        With its data read.
    modules : dict of str to torch.nn.Module
        With the weights before training: `classifier` and what `hparams["modules"]` has.

    Attributes
    ----------
    folders : list of str
        Those of the tasks tested so far.
    """

    def __init__(self, run, modules):
        tested = ("embedding_model", "sup_projector", "classifier", *FRONT_END)
        self.network = {name: module for name, module in handed_on(modules).items() if name in tested}
        self.untrained = {name: copy.deepcopy(module.state_dict()) for name, module in self.network.items()}
        self.embedder, self.output_folder = make_embedder(run.hparams, run.options), run.folder
        self.data, self.rows, self.start = run.data, run.data.split("test"), run.start
        if run.options.debug:
            self.rows = self.rows.groupby("task").head(run.options.debug_batches * run.hparams["batch_size"])
        self.folders, self.trained = [], []

    @main_only
    def __call__(self, task: int, folder: str):
        """Test the network that task `task` has saved in `folder`."""
        # The tasks of another run that this one began after may have left no classifier that fits.
        afresh = self.start.afresh if self.start is not None and task < self.start.first else {}
        for name in afresh.keys() & self.network.keys():
            self.network[name].load_state_dict(self.untrained[name])
        load_weights(folder, {name: module for name, module in self.network.items() if name not in afresh})
        self.folders.append(folder)
        self.trained.append(self._test(task, f"test after task {task}"))
        confusion = self.trained[-1]["confusion"]
        accuracy = 100 * np.trace(confusion) / max(confusion.sum(), 1)
        logger.info("task %d/%d: test accuracy on the classes so far %.1f %%", task + 1, self.data.n_tasks, accuracy)

    def _test(self, task, what):
        begun, rows = time.monotonic(), self.rows[self.rows["task"] <= task]
        cache = cache_beside(self.folders[0], self.output_folder)
        vectors = cache.get(self.embedder, self.data.store, rows["clip"].to_numpy(), what)  # [n, D]
        clips = Embedded(vectors, rows["label"].to_numpy())
        heads = [self.network[name] for name in ("sup_projector", "classifier") if name in self.network]
        if isinstance(heads[-1], Classifier):  # classes that came after the task can't be its answer
            heads[-1] = heads[-1].without_new()
        labels, scores = predicted(LinearPredictor(nn.Sequential(*heads), {}), clips)
        confusion = count_pairs(clips.labels, labels, len(self.data.classes))
        predictions = list_predictions(rows, [(labels, scores)])
        return {"confusion": confusion, "predictions": predictions, "seconds": time.monotonic() - begun}

    @main_only
    def results(self) -> dict:
        """Test the untrained network too; return what `utils.results.save.save_results` takes.

        The untrained weights stay in the network.
        """
        for name, module in self.network.items():
            module.load_state_dict(self.untrained[name])
        floor = [self._test(task, "test of random weights") for task in range(len(self.trained))]
        return {"trained": self.trained, "floor": floor, "n_embedded": self.embedder.n_embedded}

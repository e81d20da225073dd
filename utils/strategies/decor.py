"""DeCoR: predicting the previous encoder's codes (Jiang et al., Interspeech 2023, arXiv 2305.18441).

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --strategy=decor --experiment_name=decor
"""

import logging
import os

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import nn

from utils.evaluation.embeddings import Embedder
from utils.io.arrays import DamagedArrays, read_arrays
from utils.io.errors import InputError
from utils.io.files import write_atomically
from utils.run.processes import main_only
from utils.strategies.base import Strategy
from utils.strategies.previous import previous_modules
from utils.strategies.teacher import fresh, views_of

logger = logging.getLogger(__name__)
FILE = "decor_codes.npz"


class DeCoR(Strategy):
    """Predict each clip's code: its cluster among the previous encoder's embeddings, found before the task.

    The previous encoder embeds each of the task's clips once, whole and without augmentation: a code is the clip's, and
    no crop has to be drawn. k-means gives the codes, and a linear head on h, new for each task as its codes are, learns
    to predict them from each view (cross entropy). There is no teacher while the task is trained.

    The codes are in the task's folder, so a task that is resumed on another machine has the same ones.

    Parameters
    ----------
    emb_dim, seed, batch_size : int
    decor_clusters : int
        k; of a task with fewer clips, their number.
    strategy_weight : float
    """

    adds = ("decor",)

    def __init__(self, emb_dim, seed, batch_size=32, decor_clusters=64, strategy_weight=1.0):
        super().__init__()
        self.weight, self.seed, self.batch_size, self.k = strategy_weight, seed, batch_size, decor_clusters
        self.build, self.codes = lambda: nn.Linear(emb_dim, decor_clusters), None
        self.modules = {"decor_head": fresh(self.build, seed)}

    def check(self, hparams):
        lump = isinstance(hparams["strategy"], list) and "lump" in hparams["strategy"]
        for setting, blends in (("use_mixup", hparams.get("use_mixup")), ("strategy lump", lump)):
            if blends:
                raise InputError(f"strategy decor predicts each clip's code, and {setting} blends clips: leave it out.")

    def before_task(self, brain):
        task, self.codes = brain.task, None
        if not task.previous_folder:
            return
        brain.modules["decor_head"].load_state_dict(fresh(self.build, self.seed, task.index).state_dict())
        teacher = previous_modules(brain, ("compute_features", "mean_var_norm", "embedding_model"))
        clips = np.unique(task.rows["clip"])
        found = main_only(self._find)(teacher, task, clips, str(brain.device))  # None but in rank 0
        codes = torch.zeros(len(clips), dtype=torch.long) if found is None else torch.from_numpy(found).long()
        codes = codes.to(brain.device)
        if dist.is_initialized():
            dist.broadcast(codes, 0)
        self.codes = torch.full((int(clips[-1]) + 1,), -1, device=brain.device)  # by clip number
        self.codes[torch.from_numpy(clips).to(brain.device)] = codes

    def _find(self, teacher, task, clips, device):
        """Return each clip's code: those of an earlier start, or new ones, which are written to the task's folder."""
        path, ids = os.path.join(task.folder, FILE), np.asarray(task.store.ids)[clips]
        if os.path.isfile(path):
            try:
                kept = read_arrays(path, ("ids", "codes"))
            except DamagedArrays as error:
                logger.warning("%s is damaged (%s): the codes are found again.", path, error)
            else:
                if np.array_equal(kept["ids"], ids):
                    return kept["codes"]
                logger.warning("%s is of other clips: the codes are found again.", path)
        embedder = Embedder(dict(teacher), device, self.batch_size)
        codes = cluster(embedder(task.store, clips, "clips of the task"), self.k, self.seed, task.index)
        write_atomically(path, lambda file: np.savez(file, ids=ids, codes=codes))
        return codes

    def losses(self, brain, losses, weights, out, batch):
        if self.codes is None:
            return losses, weights
        codes = self.codes[batch.id.to(self.codes.device)]  # [B]
        logits = [brain.modules["decor_head"](view.h).float() for view in views_of(out)]  # V of [B, k]
        loss = sum(F.cross_entropy(of_view, codes) for of_view in logits) / len(logits)
        return {**losses, "decor": loss}, {**weights, "decor": self.weight}

    def figures(self, brain):
        """Return the number of codes in use by the task's clips, and how many equally used ones would tell as much."""
        if self.codes is None:
            return {}
        shares = self.codes[self.codes >= 0].bincount().double() / (self.codes >= 0).sum()
        entropy = -torch.special.xlogy(shares, shares).sum()
        return {"decor_codes": int((shares > 0).sum()), "decor_perplexity": float(entropy.exp())}


def cluster(vectors, k, seed, task):
    """Give each of the vectors [n, D] the number of its cluster, by k-means; with fewer vectors than k, n clusters.

    In one thread: scikit-learn's threads add up their sums in the order in which they end, and with five threads two
    of four fits of the same 6,000 vectors had other centres than the first.
    """
    from sklearn.cluster import KMeans  # seconds of imports

    state = int(np.random.SeedSequence([seed, task]).generate_state(1)[0])
    with threadpool_limits(1, user_api="openmp"):
        return KMeans(min(k, len(vectors)), n_init=1, random_state=state).fit(vectors).labels_.astype(np.int64)

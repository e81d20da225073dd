"""Whether a representation has collapsed: how far embeddings spread, and over how many directions.

A self-supervised loss can be low because all clips look alike (complete collapse), or because they differ in few
directions only (dimensional collapse, arXiv 2110.09348). The loss doesn't tell; these two measures do.

Legend: n vectors, D features.
"""

import torch
import torch.nn.functional as F
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks

from utils.run.processes import rank, rows_of_all, world_size
from utils.training.checkpoints import save_tensors

# Seen on ESC-10: trainings that learn, and random weights, stay above 0.25 and 5. SimSiam without its stop-gradient and
# without norms in its heads falls below 0.1 in its third epoch, on its way to 0.04; SimSiam at lr 3 below rank 2 in its
# fifth, its std still at 0.7.
LEAST_STD, LEAST_RANK = 0.1, 2.0


def normalised_std(vectors):
    """Standard deviation of the l2-normalised vectors, mean over features, times sqrt(D) (SimSiam, arXiv 2011.10566,
    section 4.1 and figure 2).

    Parameters
    ----------
    vectors : torch.Tensor
        [n, D], at least two.

    Returns
    -------
    float
        1 where they point in all directions alike, 0 where all point in one; NaN if a number isn't finite.
    """
    directions = F.normalize(vectors.double(), dim=1)  # [n, D]
    return float(directions.std(dim=0).mean() * vectors.shape[1] ** 0.5)


def effective_rank(vectors):
    """Over how many directions vectors spread: exp of the entropy of the singular values divided by their sum (Roy and
    Vetterli, EUSIPCO 2007; for representations RankMe, arXiv 2210.02885, equation 1).

    Parameters
    ----------
    vectors : torch.Tensor
        [n, D], not centred.

    Returns
    -------
    float
        From 1 (all on one line) to min(n, D); NaN if a number isn't finite or all are 0.
    """
    vectors = vectors.double()
    if not vectors.isfinite().all():
        return float("nan")
    small = vectors @ vectors.T if vectors.shape[0] < vectors.shape[1] else vectors.T @ vectors  # [min(n, D)] * 2
    singular = torch.linalg.eigvalsh(small).clamp(min=0).sqrt()  # much faster than those of [n, D], and exact enough
    shares = singular / singular.sum()
    return float(torch.special.entr(shares).sum().exp())


@register_checkpoint_hooks
class Spread:
    """The last vectors of an epoch, by name, and their measures.

    Tensors stay where they are until the epoch's end, so a step waits for nothing. Hand it to a Checkpointer, and a
    training resumed within an epoch, by equally many processes, measures the same vectors.

    Parameters
    ----------
    most : int
        Vectors kept of each name: the bound of the rank, and of the time that an epoch's measures take.
    """

    def __init__(self, most=512):
        self.most, self.batches, self.collected = most, {}, {}

    def add(self, name, *batches):
        """Keep tensors of shape [B, D] and let go of the oldest."""
        kept = self.batches.setdefault(name, [])
        kept += [vectors.detach() for vectors in batches]
        while sum(map(len, kept)) - len(kept[0]) >= self.most:
            del kept[0]

    def measure(self):
        """Measure what is kept.

        Returns
        -------
        dict of str to float
            ``<name>_std`` and ``<name>_rank`` of each name, and ``rank_max``, the highest rank that so many vectors of
            so many features can have.
        """
        figures = {}
        for name, kept in self.batches.items():
            vectors = torch.cat([batch.cpu() for batch in kept])[-(self.most // world_size()) :]  # [n, D]
            vectors = rows_of_all(vectors)
            figures |= {f"{name}_std": normalised_std(vectors), f"{name}_rank": effective_rank(vectors)}
            figures["rank_max"] = min(vectors.shape)
        return figures

    def clear(self):
        """Forget what is kept: an epoch is over."""
        self.batches, self.collected = {}, {}

    def collect(self):
        """Fetch all processes' vectors for `save`, which process 0 calls alone."""
        if world_size() == 1:
            return
        rows = {name: rows_of_all(torch.cat([batch.cpu() for batch in kept])) for name, kept in self.batches.items()}
        self.collected = {name: [vectors] for name, vectors in rows.items()}  # [processes * n, D]

    @mark_as_saver
    def save(self, path):
        """Write the vectors to a file: with several processes those that were collected last."""
        save_tensors(self.batches if world_size() == 1 else self.collected, path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Read what `save` wrote."""
        del end_of_epoch
        self.batches = torch.load(path, map_location="cpu", weights_only=True)
        if world_size() > 1:
            self.batches = {k: [torch.cat(kept).chunk(world_size())[rank()]] for k, kept in self.batches.items()}


def collapse_warning(figures):
    """Say that a representation has collapsed, if it has.

    Parameters
    ----------
    figures : dict of str to float
        As `Spread.measure` returns them, perhaps among others.

    Returns
    -------
    str or None
    """
    for name, what in (("emb", "the embeddings have"), ("z", "what the loss compares, z, has")):
        std, rank = figures.get(f"{name}_std", 1.0), figures.get(f"{name}_rank", float("inf"))
        if std < LEAST_STD or rank < LEAST_RANK:
            return (
                f"{what} collapsed: {name}_std {std:.3f} (0: all clips look alike, 1: spread in all directions), "
                f"{name}_rank {rank:.1f} of {figures['rank_max']}. A low loss means nothing then. Lower lr, raise "
                "warmup_epochs, or use proj_norm_type=bn."
            )
    return None

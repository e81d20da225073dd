"""Measure whether a representation has collapsed: how far embeddings spread, and over how many directions.

A self-supervised loss can be low although all clips have the same embedding (complete collapse), or embeddings that
differ in a few directions only (dimensional collapse, arXiv 2110.09348). The loss alone doesn't show this.

Legend: n vectors, D features.
"""

import torch
import torch.nn.functional as F
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks

from utils.run.processes import rank, rows_of_all, world_size
from utils.training.checkpoints import save_tensors

# Measured on ESC-10. Trainings that learn, and random weights, stay above a std of 0.25 and a rank of 5. SimSiam with
# neither stop-gradient nor norms in its heads falls below a std of 0.1 in its third epoch, and later to 0.04. SimSiam
# at lr 3 falls below rank 2 in its fifth epoch, with a std of still 0.7.
LEAST_STD, LEAST_RANK = 0.1, 2.0


def normalised_std(vectors: torch.Tensor) -> float:
    """Return the standard deviation of the l2-normalised vectors, mean over features, times sqrt(D).

    Source: SimSiam, arXiv 2011.10566, section 4.1 and figure 2.

    Parameters
    ----------
    vectors
        [n, D], at least two.

    Returns
    -------
    float
        1 where the vectors point in all directions alike, 0 where all point in one; NaN if a number isn't finite.
    """
    directions = F.normalize(vectors.double(), dim=1)  # [n, D]
    return float(directions.std(dim=0).mean() * vectors.shape[1] ** 0.5)


def effective_rank(vectors: torch.Tensor) -> float:
    """Return over how many directions vectors spread: exp of the entropy of the singular values divided by their sum.

    Source: Roy and Vetterli, EUSIPCO 2007; for representations RankMe, arXiv 2210.02885, equation 1.

    Parameters
    ----------
    vectors
        [n, D], not centred.

    Returns
    -------
    float
        From 1 (all vectors on one line) to min(n, D); NaN if a number isn't finite or all are 0.
    """
    vectors = vectors.double()
    if not vectors.isfinite().all():
        return float("nan")
    small = vectors @ vectors.T if vectors.shape[0] < vectors.shape[1] else vectors.T @ vectors  # [min(n, D)] * 2
    singular = torch.linalg.eigvalsh(small).clamp(min=0).sqrt()  # much faster than an SVD of [n, D], and exact enough
    shares = singular / singular.sum()
    return float(torch.special.entr(shares).sum().exp())


@register_checkpoint_hooks
class Spread:
    """The last vectors of an epoch, by name, and their measures.

    The vectors stay on their device until the epoch's end, so a step doesn't wait for a transfer. As a recoverable of a
    Checkpointer, a training that is resumed within an epoch by equally many processes measures the same vectors.

    Parameters
    ----------
    most
        Vectors kept of each name. Limits the rank, and the time that the measures of an epoch take.
    """

    def __init__(self, most: int = 512):
        self.most, self.batches, self.collected = most, {}, {}

    def add(self, name: str, *batches: torch.Tensor):
        """Keep copies of tensors of shape [B, D], and drop the oldest of the name.

        Copies, because CUDA graphs (`--compile_mode=reduce-overhead`) write the next step's output to the same memory.
        """
        kept = self.batches.setdefault(name, [])
        kept += [vectors.detach().clone() for vectors in batches]
        while sum(map(len, kept)) - len(kept[0]) >= self.most:
            del kept[0]

    def measure(self) -> dict[str, float]:
        """Measure the kept vectors.

        Returns
        -------
        dict
            ``<name>_std`` and ``<name>_rank`` of each name, and ``rank_max``, the smaller of n and D.
        """
        figures = {}
        for name, kept in self.batches.items():
            vectors = torch.cat([batch.cpu() for batch in kept])[-(self.most // world_size()) :]  # [n, D]
            vectors = rows_of_all(vectors)
            figures |= {f"{name}_std": normalised_std(vectors), f"{name}_rank": effective_rank(vectors)}
            figures["rank_max"] = min(vectors.shape)
        return figures

    def clear(self):
        """Drop the kept vectors, at the end of an epoch."""
        self.batches, self.collected = {}, {}

    def collect(self):
        """Gather all processes' vectors for `save`, which rank 0 alone calls."""
        if world_size() == 1:
            return
        rows = {name: rows_of_all(torch.cat([batch.cpu() for batch in kept])) for name, kept in self.batches.items()}
        self.collected = {name: [vectors] for name, vectors in rows.items()}  # [processes * n, D]

    @mark_as_saver
    def save(self, path):
        """Write the vectors to a file; with several processes, those of the last `collect`."""
        save_tensors(self.batches if world_size() == 1 else self.collected, path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Read what `save` wrote."""
        del end_of_epoch
        self.batches = torch.load(path, map_location="cpu", weights_only=True)
        if world_size() > 1:
            self.batches = {k: [torch.cat(kept).chunk(world_size())[rank()]] for k, kept in self.batches.items()}


def collapse_warning(figures: dict[str, float]) -> str | None:
    """Return a warning if a representation has collapsed, else None.

    Parameters
    ----------
    figures
        As `Spread.measure` returns them; other keys are ignored.
    """
    for name, what in (("emb", "the embeddings have"), ("z", "z, the input of the loss, has")):
        std, rank = figures.get(f"{name}_std", 1.0), figures.get(f"{name}_rank", float("inf"))
        if std < LEAST_STD or rank < LEAST_RANK:
            return (
                f"{what} collapsed: {name}_std {std:.3f} (0: all clips look alike, 1: spread in all directions), "
                f"{name}_rank {rank:.1f} of {figures['rank_max']}. The loss can be low nevertheless. Lower lr, raise "
                "warmup_epochs, or use proj_norm_type=bn."
            )
    return None

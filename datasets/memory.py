"""A memory batch beside each batch: clips kept of earlier tasks, drawn by (seed, task, epoch, step).

Sampler, data set and collation work together: a key says which of the two tables an item comes from, and the batch is
parted by that. The number of workers and of processes changes no draw.
"""

import numpy as np
from speechbrain.dataio.batch import PaddedBatch
from torch.utils.data import Dataset, Sampler

CURRENT, MEMORY = 0, 1


class JointViews(Dataset):
    """Views of the task's own clips and of the memory's: (table, key) -> (table, item).

    Parameters
    ----------
    current, memory : datasets.batches.ViewDataset
    """

    def __init__(self, current, memory):
        self.tables = (current, memory)

    def __len__(self):
        return len(self.tables[CURRENT])

    def __getitem__(self, key):
        table, place = key
        return table, self.tables[table][place]


class JointSampler(Sampler):
    """Each step's keys: a batch of the task's own clips, then one of the memory.

    The memory's clips are drawn without replacement where it holds enough for a batch, else with.

    Parameters
    ----------
    own : datasets.batches.EpochSampler
        Of the task's own clips; it knows seed, task, epoch, rank and world size.
    n_memory : int
        Clips in the memory.
    memory_batch_size : int
        Of all processes together; each takes its slice.
    """

    def __init__(self, own, n_memory, memory_batch_size):
        self.own, self.n_memory, self.size = own, n_memory, memory_batch_size

    def set_epoch(self, epoch):
        """Set the epoch whose draws come next; the first is 1."""
        self.own.set_epoch(epoch)

    def __len__(self):
        return self.own.n_rows // self.own.batch_size

    def __iter__(self):
        own, each = list(self.own), self.own.batch_size // self.own.world_size
        epoch, slice_size = self.own.epoch, self.size // self.own.world_size
        for step in range(1, len(self) + 1):
            rng = np.random.default_rng([self.own.seed, self.own.task, epoch, step])
            places = rng.choice(self.n_memory, self.size, replace=self.n_memory < self.size)
            places = places[self.own.rank * slice_size :][:slice_size]
            current = [(CURRENT, key) for key in own[(step - 1) * each : step * each]]
            yield current + [(MEMORY, (epoch, step, int(place))) for place in places]


class JointBatch(PaddedBatch):
    """A padded batch of the task's own clips, with the memory's as `memory`, padded on its own.

    Parameters
    ----------
    examples : list of (int, dict)
        As `JointViews` returns them.
    """

    def __init__(self, examples):
        super().__init__([item for table, item in examples if table == CURRENT])
        self.memory = PaddedBatch([item for table, item in examples if table == MEMORY])

    def pin_memory(self):
        """Pin both parts."""
        self.memory.pin_memory()
        return super().pin_memory()

    def to(self, *args, **kwargs):
        """Move both parts."""
        self.memory.to(*args, **kwargs)
        return super().to(*args, **kwargs)

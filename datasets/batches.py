"""What an encoder is trained and tested on: random crops of clips, or whole clips. Legend: S samples, C classes.

Every draw is a function of (seed, task, epoch, clip), whatever the number of workers: the sampler hands the epoch to
the dataset together with the clip's place, and no random state lives between two items.
"""

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from utils.io.errors import InputError


class NoMixup:
    """The identity in mixup's place: the clip itself and its one-hot label."""

    def __call__(self, place, n_rows, rng):
        """Return (place of the partner, weight of the clip itself)."""
        del n_rows, rng
        return place, 1.0


class Mixup:
    """Blend each clip with another of the training set (mixup, arXiv 1710.09412).

    Parameters
    ----------
    alpha : float
        The clip's own weight is drawn from Beta(alpha, alpha).
    """

    def __init__(self, alpha=0.4):
        if alpha <= 0:
            raise InputError(f"mixup_alpha is {alpha}: it must be above 0.")
        self.alpha = alpha

    def __call__(self, place, n_rows, rng):
        """Draw the partner's place and the clip's own weight."""
        partner = int(rng.integers(n_rows - 1)) if n_rows > 1 else place
        return partner + (partner >= place if n_rows > 1 else 0), float(rng.beta(self.alpha, self.alpha))


def make_mixup(use_mixup, mixup_alpha):
    """The object that blends, or the one that does not."""
    return Mixup(mixup_alpha) if use_mixup else NoMixup()


def random_crop(n_samples, crop_samples, rng):
    """Draw (start, stop) of a crop; a clip shorter than the crop is taken whole."""
    if n_samples <= crop_samples:
        return 0, n_samples
    start = int(rng.integers(n_samples - crop_samples + 1))
    return start, start + crop_samples


class ViewDataset(Dataset):
    """Random crops of each clip, with label probabilities.

    Parameters
    ----------
    rows : pandas.DataFrame
        Clips with the columns `clip` and `label`.
    store : datasets.store.AudioStore or datasets.store.LiveAudio
        Where the samples are.
    crop_samples : int
        S, samples of a view.
    n_classes : int
        C.
    mixup : Mixup or NoMixup
    seed, task : int
        With the epoch and the clip they decide every draw.
    n_views : int
        Crops of each clip.
    """

    def __init__(self, rows, store, crop_samples, n_classes, mixup, seed, task, n_views=2):
        self.clips = rows["clip"].to_numpy()
        self.labels = rows["label"].to_numpy()
        self.store, self.crop_samples, self.n_classes = store, crop_samples, n_classes
        self.mixup, self.seed, self.task, self.n_views = mixup, seed, task, n_views

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, key):
        """Make one item.

        Parameters
        ----------
        key : tuple of int
            (epoch, place in the rows), as `EpochSampler` yields them; of the memory (epoch, step, place).

        Returns
        -------
        dict
            `id` (clip number), `view1`, `view2`, ... ([S] or shorter, float32), `label_probs` ([C]).
        """
        *draw, place = key
        clip = int(self.clips[place])
        rng = np.random.default_rng([self.seed, self.task, *draw, clip])
        partner, weight = self.mixup(place, len(self), rng)
        sources = [(clip, weight)] + ([(int(self.clips[partner]), 1.0 - weight)] if weight < 1.0 else [])
        views = {f"view{i + 1}": self._view(sources, rng) for i in range(self.n_views)}
        label_probs = torch.zeros(self.n_classes)
        label_probs[self.labels[place]] += weight
        label_probs[self.labels[partner]] += 1.0 - weight
        return {"id": clip, **views, "label_probs": label_probs}

    def _view(self, sources, rng):
        """Crop every source and add them up by weight; the longest decides the length."""
        crops = []
        for clip, weight in sources:
            start, stop = random_crop(int(self.store.lengths[clip]), self.crop_samples, rng)
            crops.append((weight, self.store.read(clip, start, stop)))
        if len(crops) == 1:
            return torch.from_numpy(crops[0][1])
        view = np.zeros(max(len(crop) for _, crop in crops), dtype=np.float32)
        for weight, crop in crops:
            view[: len(crop)] += np.float32(weight) * crop
        return torch.from_numpy(view)


class WholeClips(Dataset):
    """Each clip whole, as `ViewDataset` hands out its first view, with its label.

    Parameters
    ----------
    rows : pandas.DataFrame
        Clips with the columns `clip` and `label`.
    store : datasets.store.AudioStore or datasets.store.LiveAudio
        Where the samples are.
    """

    def __init__(self, rows, store):
        self.clips, self.labels = rows["clip"].to_numpy(), rows["label"].to_numpy()
        self.store = store

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, place):
        """`id` (clip number), `view1` ([S], float32), `label` (int)."""
        clip = int(self.clips[place])
        return {"id": clip, "view1": torch.from_numpy(self.store.read(clip)), "label": int(self.labels[place])}

    def batches(self, batch_size):
        """Places in batches of equally long clips."""
        return [list(map(int, places)) for places in equal_length_batches(self.store.lengths[self.clips], batch_size)]


def equal_length_batches(lengths, batch_size):
    """Split places into batches of clips with the same number of samples, so that none has to be padded.

    Parameters
    ----------
    lengths : numpy.ndarray
        Samples of each clip.
    batch_size : int
        Most clips in a batch.

    Yields
    ------
    numpy.ndarray
        Places in `lengths`.
    """
    order = np.argsort(lengths, kind="stable")
    starts = np.flatnonzero(np.diff(lengths[order], prepend=-1))
    for group in np.split(order, starts[1:]):
        yield from (group[i : i + batch_size] for i in range(0, len(group), batch_size))


class EpochSampler(Sampler):
    """A permutation of the rows, drawn anew from (seed, task, epoch); yields (epoch, place).

    Hand it to the Brain as `train_sampler` too: that is who tells it the epoch.

    Parameters
    ----------
    n_rows, seed, task : int
    batch_size : int
        Rows of a joint batch; a rest that fills none is dropped.
    rank, world_size : int
        Of each joint batch, this process gets its slice: equally many rows, those of process 0 first.
    """

    def __init__(self, n_rows, seed, task, batch_size=1, rank=0, world_size=1):
        self.n_rows, self.seed, self.task, self.epoch = n_rows, seed, task, 1
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def set_epoch(self, epoch):
        """Set the epoch whose permutation and crops come next; the first is 1."""
        self.epoch = epoch

    def __len__(self):
        return self.n_rows // self.batch_size * (self.batch_size // self.world_size)

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.task, self.epoch]).permutation(self.n_rows)
        steps = self.n_rows // self.batch_size
        slices = order[: steps * self.batch_size].reshape(steps, self.world_size, -1)
        return ((self.epoch, int(place)) for place in slices[:, self.rank].ravel())

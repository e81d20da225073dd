"""Datasets and samplers: random crops of clips for training, whole clips for testing. Legend: S samples, C classes.

Every draw is a function of (seed, task, epoch, the clip's place among those of the task), whatever the number of
workers and whatever other tasks there are: the sampler hands epoch and place to the dataset, and no random state is
kept between two items.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset, Sampler

from utils.io.errors import InputError


class NoMixup:
    """Null object for mixup: the clip itself and its one-hot label."""

    def __call__(self, place: int, n_rows: int, rng: np.random.Generator) -> tuple[int, float]:
        """Return (place of the partner, weight of the clip itself)."""
        del n_rows, rng
        return place, 1.0


class Mixup:
    """Blend each clip with another of the training set (mixup, arXiv 1710.09412).

    The clip's own weight is drawn from Beta(alpha, alpha).
    """

    def __init__(self, alpha: float = 0.4):
        if alpha <= 0:
            raise InputError(f"mixup_alpha is {alpha}: it must be above 0.")
        self.alpha = alpha

    def __call__(self, place: int, n_rows: int, rng: np.random.Generator) -> tuple[int, float]:
        """Draw the partner's place and the clip's own weight."""
        partner = int(rng.integers(n_rows - 1)) if n_rows > 1 else place
        return partner + (partner >= place if n_rows > 1 else 0), float(rng.beta(self.alpha, self.alpha))


def make_mixup(use_mixup: bool, mixup_alpha: float) -> Mixup | NoMixup:
    """Return the object that blends clips, or the one that doesn't."""
    return Mixup(mixup_alpha) if use_mixup else NoMixup()


def random_crop(n_samples: int, crop_samples: int, rng: np.random.Generator) -> tuple[int, int]:
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
        With the epoch and the place in the rows they decide every draw.
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
        rng = np.random.default_rng([self.seed, self.task, *draw, place])
        partner, weight = self.mixup(place, len(self), rng)
        sources = [(clip, weight)] + ([(int(self.clips[partner]), 1.0 - weight)] if weight < 1.0 else [])
        views = {f"view{i + 1}": self._view(sources, rng) for i in range(self.n_views)}
        label_probs = torch.zeros(self.n_classes)
        label_probs[self.labels[place]] += weight
        label_probs[self.labels[partner]] += 1.0 - weight
        return {"id": clip, **views, "label_probs": label_probs}

    def _view(self, sources, rng):
        """Crop every source and sum the crops by weight; the longest decides the length."""
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
    """Each clip whole, under the name of `ViewDataset`'s first view, with its label.

    `rows` has the columns `clip` and `label`; `store` is a `datasets.store.AudioStore` or `LiveAudio`.
    """

    def __init__(self, rows: pd.DataFrame, store):
        self.clips, self.labels = rows["clip"].to_numpy(), rows["label"].to_numpy()
        self.store = store

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, place):
        """Return `id` (clip number), `view1` ([S], float32) and `label` (int)."""
        clip = int(self.clips[place])
        return {"id": clip, "view1": torch.from_numpy(self.store.read(clip)), "label": int(self.labels[place])}

    def batches(self, batch_size: int) -> list[list[int]]:
        """Return the places of all clips, in batches of equally long clips."""
        return [list(map(int, places)) for places in equal_length_batches(self.store.lengths[self.clips], batch_size)]


def equal_length_batches(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Split places in `lengths` (samples) into batches of equally long clips, so that none has to be padded."""
    order = np.argsort(lengths, kind="stable")
    starts = np.flatnonzero(np.diff(lengths[order], prepend=-1))
    for group in np.split(order, starts[1:]):
        yield from (group[i : i + batch_size] for i in range(0, len(group), batch_size))


class EpochSampler(Sampler):
    """Yield (epoch, place) in a permutation of the rows that is drawn from (seed, task, epoch).

    Set it as the Brain's `train_sampler` too: the Brain then tells it the epoch.

    Parameters
    ----------
    batch_size
        Rows of a joint batch of all processes; a remainder that fills no batch is dropped.
    rank, world_size
        This process gets the rank's slice of each joint batch; the slices have equally many rows.
    """

    def __init__(self, n_rows: int, seed: int, task: int, batch_size: int = 1, rank: int = 0, world_size: int = 1):
        self.n_rows, self.seed, self.task, self.epoch = n_rows, seed, task, 1
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def set_epoch(self, epoch: int):
        """Set the epoch whose permutation and crops come next; the first is 1."""
        self.epoch = epoch

    def __len__(self):
        return self.n_rows // self.batch_size * (self.batch_size // self.world_size)

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.task, self.epoch]).permutation(self.n_rows)
        steps = self.n_rows // self.batch_size
        slices = order[: steps * self.batch_size].reshape(steps, self.world_size, -1)
        return ((self.epoch, int(place)) for place in slices[:, self.rank].ravel())

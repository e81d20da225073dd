"""Nearest neighbours and nearest class mean, by cosine. Legend: n clips, D embedding features, C classes.

Nothing of the bank's size is copied: similarities are computed for a few queries at a time, and divided by the norms.
"""

from collections.abc import Iterator

import numpy as np
import torch

from utils.evaluation.linear import Predictor, class_weights

MOST_SIMILARITIES = 2**23  # in memory at a time: 32 MB
MOST_ROWS = 1024  # of embeddings that are normalised at a time
SMALLEST_NORM = 1e-12


def knn(train, valid, n_classes, balanced, *, knn_k=(20, 200), knn_temperature=(0.07, 0.1)):
    """Vote among the k nearest neighbours by cosine, with weights exp(s / temperature) (DINO, arXiv 2104.14294, 4.1).

    Parameters
    ----------
    train, valid : utils.evaluation.linear.Embedded
    n_classes : int
        C.
    balanced : bool
        Divide each neighbour's weight by the number of training clips of its class.
    knn_k : int or list of int
        Number of neighbours, at most as many as there are training clips. Of several, validation picks the best.
    knn_temperature : float or list of float
        Likewise.
    """
    ks = list(dict.fromkeys(min(k, len(train)) for k in as_list(knn_k)))
    bank = Neighbours(train.vectors, train.labels, n_classes, balanced)
    choices = [(k, temperature) for k in ks for temperature in as_list(knn_temperature)]
    correct = np.zeros(len(choices), int)
    if len(choices) > 1:
        for chunk, similarities, places in bank.nearest(valid.vectors, max(ks)):
            for i, (k, temperature) in enumerate(choices):
                votes = bank.vote(similarities[:, :k], places[:, :k], temperature)
                correct[i] += int((votes.argmax(1) == valid.labels[chunk]).sum())
    return NearestPredictor(bank, *choices[correct.argmax()])


def as_list(value):
    """Return a list of one value or of several."""
    return list(value) if isinstance(value, list | tuple) else [value]


class Neighbours:
    """A bank of embeddings with labels, searched by cosine similarity.

    Parameters
    ----------
    vectors : torch.Tensor
        [n, D]; not copied.
    labels : torch.Tensor
        [n].
    n_classes : int
        C.
    balanced : bool
        See `knn`.
    """

    def __init__(self, vectors: torch.Tensor, labels: torch.Tensor, n_classes: int, balanced: bool):
        self.vectors, self.labels, self.n_classes = vectors, labels, n_classes
        self.norms = norms_of(vectors)
        weights = class_weights(labels, n_classes) if balanced else np.ones(len(labels))
        self.weights = torch.from_numpy(weights.astype(np.float32))

    def nearest(self, queries: torch.Tensor, k: int) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Yield a slice of the queries [n, D], their k largest similarities in order, and those neighbours' places.

        The latter two are [queries of the slice, k].
        """
        step = max(1, MOST_SIMILARITIES // len(self.vectors))
        for start in range(0, len(queries), step):
            chunk = slice(start, min(start + step, len(queries)))
            part = queries[chunk]
            part = part / norms_of(part)[:, None]
            similarities = part @ self.vectors.T
            similarities /= self.norms
            yield chunk, *similarities.topk(k, dim=1)

    def vote(self, similarities: torch.Tensor, places: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return each class's share [queries, C] of the weights of the neighbours: both arguments are [queries, k]."""
        weights = ((similarities - similarities[:, :1]) / temperature).exp() * self.weights[places]
        votes = torch.zeros(len(places), self.n_classes).scatter_add_(1, self.labels[places], weights)
        return votes / votes.sum(1, keepdim=True)


def norms_of(vectors: torch.Tensor) -> torch.Tensor:
    """Return the norms [n] of vectors [n, D], none of them 0, without a copy of all vectors."""
    norms = [part.norm(dim=1) for part in vectors.split(MOST_ROWS)]
    return torch.cat(norms).clamp_min(SMALLEST_NORM) if norms else vectors.new_ones(0)


class NearestPredictor(Predictor):
    """Nearest neighbours. The score is the predicted class's share of the votes.

    Parameters
    ----------
    bank : Neighbours
    k : int
    temperature : float
    """

    def __init__(self, bank, k, temperature):
        self.bank, self.about = bank, {"k": k, "temperature": temperature}

    def scored(self, vectors):
        """Predict labels [n] and scores [n] of embeddings [n, D]."""
        labels, scores = np.zeros(len(vectors), int), np.zeros(len(vectors), np.float32)
        k, temperature = self.about["k"], self.about["temperature"]
        for chunk, similarities, places in self.bank.nearest(torch.as_tensor(vectors), k):
            best = self.bank.vote(similarities, places, temperature).max(1)
            labels[chunk], scores[chunk] = best.indices.numpy(), best.values.numpy()
        return labels, scores


def ncm(train, valid, n_classes, balanced):
    """Predict the class whose mean of normalised embeddings is nearest by cosine (iCaRL, arXiv 1611.07725, eq. 2).

    Parameters
    ----------
    train : utils.evaluation.linear.Embedded
    valid
        Not used: nothing is chosen.
    n_classes : int
        C.
    balanced : bool
        Not used: every class has one mean.
    """
    del valid, balanced
    sums = torch.zeros(n_classes, train.vectors.shape[1])
    for vectors, labels in zip(train.vectors.split(MOST_ROWS), train.labels.split(MOST_ROWS), strict=True):
        sums.index_add_(0, labels, vectors / norms_of(vectors)[:, None])
    return MeanPredictor(sums / norms_of(sums)[:, None], torch.bincount(train.labels, minlength=n_classes) > 0)


class MeanPredictor(Predictor):
    """Nearest class mean. The score is the cosine with it, from -1 to 1.

    Parameters
    ----------
    means : torch.Tensor
        [C, D], normalised.
    known : torch.Tensor
        [C], whether a class has training clips: others are never predicted.
    """

    def __init__(self, means, known):
        self.means, self.known = means, known

    def scored(self, vectors):
        """Predict labels [n] and scores [n] of embeddings [n, D]."""
        parts = []
        for part in torch.as_tensor(vectors).split(MOST_ROWS):
            cosines = (part / norms_of(part)[:, None]) @ self.means.T
            parts.append(cosines.masked_fill(~self.known, -2.0).max(1))
        if not parts:
            return np.zeros(0, int), np.zeros(0, np.float32)
        return tuple(np.concatenate([getattr(part, name).numpy() for part in parts]) for name in ("indices", "values"))

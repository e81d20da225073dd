"""The classifiers that an evaluation keeps beside its results, for an export of the encoder.

One file for each encoder, ``save/task0_probe.npz`` and so on. The standardisation before a probe is part of the layer
that is kept, so the layer takes embeddings as they are. Legend: C classes, D embedding features.
"""

import os
from typing import NamedTuple

import numpy as np

from utils.io.arrays import DamagedArrays, read_arrays
from utils.io.errors import InputError
from utils.io.files import write_atomically


class Probe(NamedTuple):
    """A linear classifier of embeddings."""

    weight: np.ndarray  # float32 [C, D]
    bias: np.ndarray  # float32 [C]
    classes: list[str]
    encoder: str  # `Embedder.key` of the encoder and front end that it was trained on


def keep_probe(path, weight, bias, scale, classes, encoder):
    """Write a probe beside the result of its evaluation.

    Parameters
    ----------
    path : str
        Of the result, such as ``save/task0.json``.
    weight, bias : numpy.ndarray
        [C, D] and [C].
    scale : tuple of numpy.ndarray or None
        Mean and standard deviation [D] by which the embeddings were standardised.
    classes : sequence of str
    encoder : str
    """
    weight, bias = np.asarray(weight, np.float64), np.asarray(bias, np.float64)
    if scale is not None:
        weight = weight / scale[1]
        bias = bias - weight @ scale[0]
    arrays = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
    named = {"classes": np.array(list(classes)), "encoder": np.array(encoder)}
    write_atomically(_file(path), lambda file: np.savez(file, **arrays, **named))


def read_probe(path: str) -> Probe:
    """Read what `keep_probe` wrote, given the same path.

    Raises
    ------
    InputError
        There is none, or it is damaged.
    """
    file = _file(path)
    if not os.path.isfile(file):
        raise InputError(
            f"No {os.path.basename(file)} in {os.path.dirname(file)}: run that evaluation with --overwrite=True and "
            "without few_shot, with the probe linear or logistic, which are the ones that can be exported."
        )
    try:
        weight, bias, classes, encoder = read_arrays(file, ("weight", "bias", "classes", "encoder")).values()
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or len(classes) != len(bias):
            raise DamagedArrays(f"shapes {list(weight.shape)}, {list(bias.shape)}, {len(classes)} classes")
    except DamagedArrays as error:
        raise InputError(f"{file} is damaged ({error}): run that evaluation with --overwrite=True.") from error
    return Probe(weight, bias, [str(name) for name in classes], str(encoder))


def _file(path):
    return f"{os.path.splitext(path)[0]}_probe.npz"

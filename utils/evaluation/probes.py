"""Probes: classifiers of embeddings, by name. A new one is a function and its line in `PROBES`.

Legend: n clips, D embedding features, C classes.
"""

import inspect

import numpy as np
import torch

from utils.evaluation.finetune import finetune
from utils.evaluation.linear import BestEpochBrain, Embedded, LinearPredictor, linear
from utils.evaluation.logistic import logistic
from utils.evaluation.neighbours import as_list, knn, ncm
from utils.io.errors import InputError
from utils.run.keys import JUDGING_KEYS

__all__ = ["Embedded", "LinearPredictor", "linear"]  # of other modules

# (train, valid, C, balanced) -> predict, where predict maps embeddings [n, D] (numpy) to labels [n]; train and valid
# are `Embedded`. Further parameters take the YAML's keys of the same name; a probe can have `run` and `brain_class`
# too. If predict has an attribute `about`, a dict of numbers, the evaluation records it; if it has a method `scored`,
# embeddings -> (labels, scores), it records the scores. A probe with `needs_audio = True` gets
# `utils.evaluation.finetune.Sounds` in place of `Embedded`, and so does its predict.
PROBES = {
    "linear": linear,
    "logistic": logistic,
    "knn": knn,
    "ncm": ncm,
    "finetune": finetune,
}
# Keys of probes that are a number or a list of them -> the least value, which a float has to exceed
NUMBERS = {"logistic_c": 0.0, "knn_k": 1, "knn_temperature": 0.0}


class ProbeBrain(BestEpochBrain):
    """Trains a linear classifier and keeps the epoch of best validation accuracy; among equals, that of least loss."""

    needs = JUDGING_KEYS
    choices = {"probe": PROBES}

    @classmethod
    def check(cls, hparams):
        """Raise InputError for an unknown probe, or settings of a probe that can't work."""
        get_probe(hparams)

    @classmethod
    def uses_labels(cls, hparams):
        """Return that clips need a class."""
        return True


def get_probe(hparams):
    """Look up the probe that the key `probe` names; the linear one if there is no such key.

    Raises
    ------
    InputError
        Unknown name, a number of it out of range, few_shot with a probe that needs audio, or a probe that needs a key
        which the YAML doesn't set.
    """
    name = hparams.get("probe", "linear")
    if name not in PROBES:
        raise InputError(f"probe is {name!r}: choose one of {', '.join(PROBES)}.")
    if hparams.get("few_shot") is not None and getattr(PROBES[name], "needs_audio", False):
        raise InputError(f"few_shot goes with any probe but {name}, which trains the encoder: set few_shot to null.")
    parameters = list(inspect.signature(PROBES[name]).parameters.values())[4:]  # after train, valid, C, balanced
    for key in (p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)):
        if key not in ("run", "brain_class") and hparams.get(key) is None:
            raise InputError(f"The probe {name} needs the key {key}: set it in the YAML.")
    for key in NUMBERS.keys() & {p.name for p in parameters}:
        _check_numbers(key, hparams.get(key))
    return PROBES[name]


def _check_numbers(key, value):
    """Refuse what is neither a number in range nor a list of such; None stands for the probe's default."""
    least = NUMBERS[key]
    if value is None:
        return
    whole = isinstance(least, int)
    kinds, values = (int if whole else int | float), as_list(value)
    fits = [isinstance(v, kinds) and not isinstance(v, bool) and (v >= least if whole else v > least) for v in values]
    if not all(fits) or not values:
        what = f"whole numbers of at least {least}" if whole else "numbers above 0"
        raise InputError(f"{key} is {value!r}: give one or a list of {what}.")


def predicted(predict, test):
    """Predict a data set's labels: labels [n] and scores [n], NaN where the probe has none."""
    if hasattr(predict, "scored"):
        labels, scores = predict.scored(test.inputs)
        return np.asarray(labels), np.asarray(scores, float)
    return np.asarray(predict(test.inputs)), np.full(len(test), np.nan)


def confusion_matrix(predict, test, n_classes):
    """Count clips by true and predicted class, [C, C]."""
    return count_pairs(test.labels, predicted(predict, test)[0], n_classes)


def count_pairs(true, found, n_classes):
    """Count clips by true [n] and predicted class [n], as [C, C]."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    true, found = (torch.tensor(np.asarray(labels)) for labels in (true, found))
    return multiclass_confusion_matrix(found, true, n_classes).numpy()


def list_predictions(rows, found):
    """List `clip` (path), `task` and `true` by test clip, and `predicted` and `score` by probe and test clip.

    Parameters
    ----------
    rows : pandas.DataFrame
        The n test clips.
    found : list of (numpy.ndarray, numpy.ndarray)
        Labels [n] and scores [n] of each probe.
    """
    return {
        "clip": rows["wav_path"].tolist(),
        "task": rows["task"].tolist(),
        "true": rows["label"].tolist(),
        "predicted": [labels.tolist() for labels, _ in found],
        "score": [[None if np.isnan(s) else round(float(s), 6) for s in scores] for _, scores in found],
    }

"""Probes: classifiers of embeddings, by name. A new one is a function and its line in `PROBES`.

Legend: n clips, D embedding features, C classes.
"""

import inspect

import numpy as np
import torch
from speechbrain import Stage
from speechbrain.dataio.sampler import ReproducibleRandomSampler, ReproducibleWeightedRandomSampler
from speechbrain.utils.epoch_loop import EpochCounter
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from utils.io.errors import InputError
from utils.run.keys import JUDGING_KEYS
from utils.training.best_epoch import BestEpoch
from utils.training.schedulers import WarmupCosineScheduler
from utils.training.steps import AccuracyCount, FiniteSteps


class Embedded(Dataset):
    """A data set of embeddings and labels that returns whole batches.

    Parameters
    ----------
    vectors : numpy.ndarray
        [n, D]; not copied.
    labels : numpy.ndarray
        [n].
    """

    def __init__(self, vectors, labels):
        self.vectors, self.labels = torch.from_numpy(vectors), torch.tensor(labels)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, places):
        """Return ([batch, D], [batch]) for a list of places."""
        places = torch.tensor(places)
        return self.vectors.index_select(0, places), self.labels.index_select(0, places)


class ProbeBrain(AccuracyCount, FiniteSteps):
    """Trains a linear classifier and keeps the epoch of best validation accuracy; among equals, that of least loss.

    Parameters
    ----------
    schedule : callable
        Step from 0 -> learning rate.
    **kwargs
        As for `speechbrain.Brain`.
    """

    needs = JUDGING_KEYS

    @classmethod
    def check(cls, hparams):
        """Raise InputError for an unknown probe."""
        get_probe(hparams)

    @classmethod
    def uses_labels(cls, hparams):
        """Return that clips need a class."""
        return True

    def __init__(self, schedule, **kwargs):
        super().__init__(**kwargs)
        self.schedule, self.steps_done = schedule, 0
        self.best = BestEpoch({"classifier": self.modules["classifier"]})

    def on_fit_batch_start(self, batch, should_step):
        """Set the step's rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.steps_done)
        self.steps_done += 1

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Keep the weights of the best epoch."""
        if stage == Stage.TRAIN:
            self.report_steps_skipped()
        if stage == Stage.VALID:
            self.best.update(epoch, self.correct / max(self.total, 1), stage_loss)


class LinearPredictor:
    """A trained linear classifier, as a function of embeddings.

    Parameters
    ----------
    classifier : torch.nn.Module
        [n, D] -> [n, C].
    about : dict of str to number
        What an evaluation records of the training.
    """

    def __init__(self, classifier, about):
        self.classifier, self.about = classifier.eval(), about

    def __call__(self, vectors):
        """Predict the labels [n] of embeddings [n, D]."""
        device = next(self.classifier.parameters()).device
        with torch.inference_mode():
            return self.classifier(torch.as_tensor(vectors).to(device)).argmax(1).cpu().numpy()


def linear(train, valid, n_classes, balanced, *, run, brain_class):
    """Train one linear layer by SGD (the paper's; arXiv 2205.07390, section III).

    Parameters
    ----------
    train, valid : torch.utils.data.Dataset
        `Embedded`: ([batch, D], [batch]) for a list of places.
    n_classes : int
        C, all classes of the data set.
    balanced : bool
        Draw every class with equal probability.
    run : utils.run.experiment.Run
        Of its `hparams`: `classifier`, `opt_class`, `lr`, `final_lr`, `batch_size`, `number_of_epochs`,
        `warmup_epochs`, `seed`.
    brain_class : type
        A subclass of `ProbeBrain`.

    Returns
    -------
    LinearPredictor
        With the weights of the best epoch.
    """
    hparams = run.hparams
    batch_size, seed = hparams["batch_size"], hparams["seed"]
    torch.manual_seed(seed)
    classifier = hparams["classifier"](n_classes=n_classes)
    if balanced:
        labels = np.asarray(train.labels)
        weights = 1.0 / np.bincount(labels, minlength=n_classes).clip(1)[labels]
        sampler = ReproducibleWeightedRandomSampler(weights, len(train), replacement=True, seed=seed)
    else:
        sampler = ReproducibleRandomSampler(train, seed=seed)
    # An incomplete last batch is dropped, unless it is the only one.
    batches = BatchSampler(sampler, batch_size, drop_last=len(train) >= batch_size)
    epochs, warmup = hparams["number_of_epochs"], hparams["warmup_epochs"]
    schedule = WarmupCosineScheduler(
        hparams["lr"], hparams["final_lr"], epochs * len(batches), min(warmup, epochs - 1) * len(batches)
    )
    brain = brain_class(
        schedule=schedule,
        modules={"classifier": classifier},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run.options,
    )
    brain.train_sampler = sampler
    loader = DataLoader(train, sampler=batches, batch_size=None)
    valid_loader = DataLoader(valid, sampler=BatchSampler(SequentialSampler(valid), 1024, False), batch_size=None)
    brain.fit(EpochCounter(epochs), loader, valid_loader, progressbar=False)
    brain.best.restore()
    return LinearPredictor(classifier, {"epoch": brain.best.epoch})


# (train, valid, C, balanced) -> predict, where predict maps embeddings [n, D] (numpy) to labels [n]; train and valid
# are `Embedded`. Further parameters take the YAML's keys of the same name; a probe can have `run` and `brain_class`
# too. If predict has an attribute `about`, a dict of numbers, the evaluation records it.
PROBES = {
    "linear": linear,
}


def get_probe(hparams):
    """Look up the probe that the key `probe` names; the linear one if there is no such key.

    Raises
    ------
    InputError
        Unknown name, or a probe that needs a key which the YAML doesn't set.
    """
    name = hparams.get("probe", "linear")
    if name not in PROBES:
        raise InputError(f"probe is {name!r}: choose one of {', '.join(PROBES)}.")
    parameters = list(inspect.signature(PROBES[name]).parameters.values())[4:]  # after train, valid, C, balanced
    for key in (p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)):
        if key not in ("run", "brain_class") and hparams.get(key) is None:
            raise InputError(f"The probe {name} needs the key {key}: set it in the YAML.")
    return PROBES[name]


def confusion_matrix(predict, test, n_classes):
    """Count clips by true and predicted class, [C, C]."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    vectors, labels = test[list(range(len(test)))]
    return multiclass_confusion_matrix(torch.as_tensor(predict(vectors.numpy())), labels, n_classes).numpy()

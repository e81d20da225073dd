"""The linear probe, and what all probes share. Legend: n clips, D embedding features, C classes."""

import numpy as np
import torch
from speechbrain import Stage
from speechbrain.dataio.sampler import ReproducibleRandomSampler, ReproducibleWeightedRandomSampler
from speechbrain.utils.epoch_loop import EpochCounter
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

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

    @property
    def inputs(self):
        """What a predictor takes: the vectors, as numpy."""
        return self.vectors.numpy()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, places):
        """Return ([batch, D], [batch]) for a list of places."""
        places = torch.tensor(places)
        return self.vectors.index_select(0, places), self.labels.index_select(0, places)


class BestEpochBrain(AccuracyCount, FiniteSteps):
    """A Brain that keeps the epoch of best validation accuracy; among equals, that of least loss.

    Parameters
    ----------
    schedule : callable
        Step from 0 -> learning rate.
    **kwargs
        As for `speechbrain.Brain`. The weights of all its modules are kept.
    """

    def __init__(self, schedule, **kwargs):
        super().__init__(**kwargs)
        self.schedule, self.steps_done = schedule, 0
        self.best = BestEpoch(dict(self.modules.items()))

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


class Predictor:
    """A trained probe, as a function of embeddings.

    Attributes
    ----------
    about : dict of str to number
        What an evaluation records of the training.
    """

    about: dict = {}

    def scored(self, vectors):
        """Predict embeddings [n, D]: the labels [n], and the probe's score [n] of each."""
        raise NotImplementedError

    def linear(self, n_classes):
        """Return the weight [C, D] and bias [C] of a linear layer whose softmax gives the same labels and scores.

        None where there is no such layer.
        """
        return None

    def __call__(self, vectors):
        """Predict the labels [n] of embeddings [n, D]."""
        return self.scored(vectors)[0]


class LinearPredictor(Predictor):
    """A trained linear classifier. The score is the softmax probability of the predicted class.

    Parameters
    ----------
    classifier : torch.nn.Module
        [n, D] -> [n, C].
    about : dict of str to number
        What an evaluation records of the training.
    """

    def __init__(self, classifier, about):
        self.classifier, self.about = classifier.eval(), about

    def scored(self, vectors):
        """Predict labels [n] and scores [n] of embeddings [n, D]."""
        device = next(self.classifier.parameters()).device
        with torch.inference_mode():
            return best_class(self.classifier(torch.as_tensor(vectors).to(device)))

    def linear(self, n_classes):
        """Return weight [C, D] and bias [C]; None if the YAML's classifier is more than a linear layer."""
        if not isinstance(self.classifier, torch.nn.Linear) or self.classifier.bias is None:
            return None
        return tuple(part.detach().cpu().numpy() for part in (self.classifier.weight, self.classifier.bias))


def best_class(logits):
    """Return the labels [n] and softmax probabilities [n], as numpy, of the largest of logits [n, C]."""
    labels = logits.argmax(1)
    scores = logits.float().softmax(1).gather(1, labels[:, None]).squeeze(1)
    return labels.cpu().numpy(), scores.cpu().numpy()


def class_weights(labels, n_classes):
    """Return a weight for each clip [n] that gives all classes the same weight in sum; labels [n]."""
    labels = np.asarray(labels)
    return 1.0 / np.bincount(labels, minlength=n_classes).clip(1)[labels]


def rate_schedule(hparams, n_batches, lr=None):
    """Return the learning rate by step: linear warm-up, then cosine; `lr` is the base rate if not the YAML's."""
    epochs, warmup, final = hparams["number_of_epochs"], hparams["warmup_epochs"], hparams["final_lr"]
    lr, final = (hparams["lr"], final) if lr is None else (lr, min(final, lr))
    return WarmupCosineScheduler(lr, final, epochs * n_batches, min(warmup, epochs - 1) * n_batches)


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
        weights = class_weights(train.labels, n_classes)
        sampler = ReproducibleWeightedRandomSampler(weights, len(train), replacement=True, seed=seed)
    else:
        sampler = ReproducibleRandomSampler(train, seed=seed)
    # An incomplete last batch is dropped, unless it is the only one.
    batches = BatchSampler(sampler, batch_size, drop_last=len(train) >= batch_size)
    brain = brain_class(
        schedule=rate_schedule(hparams, len(batches)),
        modules={"classifier": classifier},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run.options,
    )
    brain.train_sampler = sampler
    loader = DataLoader(train, sampler=batches, batch_size=None)
    valid_loader = DataLoader(valid, sampler=BatchSampler(SequentialSampler(valid), 1024, False), batch_size=None)
    brain.fit(EpochCounter(hparams["number_of_epochs"]), loader, valid_loader, progressbar=False)
    brain.best.restore()
    return LinearPredictor(classifier, {"epoch": brain.best.epoch})

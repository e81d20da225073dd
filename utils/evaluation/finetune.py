"""Fine-tune the encoder with a linear classifier. Legend: B clips, S samples, D embedding features, C classes."""

import copy

import numpy as np
import torch
from speechbrain import Stage
from speechbrain.utils.data_utils import batch_pad_right
from speechbrain.utils.epoch_loop import EpochCounter
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets.batches import equal_length_batches, random_crop
from models.embed import extract_features
from utils.evaluation.linear import BestEpochBrain, Predictor, best_class, class_weights, rate_schedule


class Sounds(Dataset):
    """Clips with labels, as audio, that returns whole batches.

    Parameters
    ----------
    rows : pandas.DataFrame
        With the columns `clip` and `label`.
    store : datasets.store.Clips
    """

    def __init__(self, rows, store):
        self.clips, self.labels, self.store = rows["clip"].to_numpy(), torch.tensor(rows["label"].to_numpy()), store

    @property
    def inputs(self):
        """What a predictor takes: this data set."""
        return self

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, places):
        """Return waveforms [B, S], relative lengths [B] and labels [B] of whole clips, for a list of places."""
        wavs = [torch.from_numpy(np.array(self.store.read(int(self.clips[place])))) for place in places]
        return *batch_pad_right(wavs), self.labels[list(places)]

    def whole_batches(self, batch_size):
        """List batches of places of equally long clips."""
        return [places.tolist() for places in equal_length_batches(self.store.lengths[self.clips], batch_size)]


class Crops(Dataset):
    """Random crops of `Sounds`, by (seed, epoch, place), in whole batches.

    Parameters
    ----------
    sounds : Sounds
    samples : int
        S of a crop; a shorter clip is used whole.
    seed : int
    """

    def __init__(self, sounds, samples, seed):
        self.sounds, self.samples, self.seed = sounds, samples, seed

    def __len__(self):
        return len(self.sounds)

    def __getitem__(self, keys):
        """Return waveforms [B, S], relative lengths [B] and labels [B], for a list of (epoch, place)."""
        store, wavs = self.sounds.store, []
        for epoch, place in keys:
            clip = int(self.sounds.clips[place])
            rng = np.random.default_rng([self.seed, epoch, place])
            wav = store.read(clip, *random_crop(int(store.lengths[clip]), self.samples, rng))
            wavs.append(torch.from_numpy(np.array(wav)))
        return *batch_pad_right(wavs), self.sounds.labels[[place for _, place in keys]]


class EpochBatches(Sampler):
    """Yield batches of (epoch, place), in an order drawn by (seed, epoch).

    An incomplete last batch is dropped, unless it is the only one.

    Parameters
    ----------
    n : int
    batch_size : int
    seed : int
    shares : numpy.ndarray, optional
        [n], the probability of each place; it is then drawn with replacement.
    """

    def __init__(self, n, batch_size, seed, shares=None):
        self.n, self.batch_size, self.seed, self.shares, self.epoch = n, min(batch_size, n), seed, shares, 1

    def set_epoch(self, epoch):
        """Set the epoch whose order comes next; the first is 1."""
        self.epoch = epoch

    def __len__(self):
        return self.n // self.batch_size

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        drawn = rng.permutation(self.n) if self.shares is None else rng.choice(self.n, self.n, p=self.shares)
        for batch in drawn[: len(self) * self.batch_size].reshape(len(self), -1):
            yield [(self.epoch, int(place)) for place in batch]


class FinetuneBrain(BestEpochBrain):
    """Trains an encoder and a linear classifier, each by an optimizer of its own.

    Parameters
    ----------
    front_end : dict of str to torch.nn.Module
        `compute_features` and `mean_var_norm`, which stay as they are.
    encoder_schedule : callable
        Step from 0 -> learning rate of the encoder.
    **kwargs
        As for `BestEpochBrain`; `schedule` is the classifier's.
    """

    def __init__(self, front_end, encoder_schedule, **kwargs):
        super().__init__(**kwargs)
        self.front_end, self.encoder_schedule = front_end, encoder_schedule

    def init_optimizers(self):
        """Make two optimizers: SpeechBrain clips the gradients of the first parameter group of each only."""
        names = {"optimizer": "classifier", "encoder_optimizer": "embedding_model"}
        self.optimizers_dict = {key: self.opt_class(self.modules[name].parameters()) for key, name in names.items()}

    def on_fit_batch_start(self, batch, should_step):
        """Set the step's rates."""
        for name, schedule in (("optimizer", self.schedule), ("encoder_optimizer", self.encoder_schedule)):
            for group in self.optimizers_dict[name].param_groups:
                group["lr"] = schedule(self.steps_done)
        self.steps_done += 1

    def compute_forward(self, batch, stage):
        """Compute the logits of a batch of waveforms."""
        wav, lengths = (part.to(self.device) for part in batch[:2])  # [B, S], [B]
        with torch.no_grad():
            features = extract_features(self.front_end, wav, lengths)
        embeddings = self.modules["embedding_model"](features, lengths).squeeze(1)  # [B, D]
        return self.modules["classifier"](embeddings)  # [B, C]

    def compute_objectives(self, predictions, batch, stage):
        """Compute the cross entropy, a scalar."""
        labels = batch[2].to(self.device)
        if stage != Stage.TRAIN:
            self.count(predictions, labels)
        return self.hparams.loss(predictions, labels)


def finetune(train, valid, n_classes, balanced, *, run, finetune_lr=0.001, finetune_duration=2.0):
    """Train a copy of the encoder together with a linear classifier; validation picks the epoch.

    Parameters
    ----------
    train, valid : Sounds
    n_classes : int
        C, all classes of the data set.
    balanced : bool
        Draw every class with equal probability.
    run : utils.run.experiment.Run
        As for `linear`; also `modules`, with the weights to begin with, and `sample_rate`.
    finetune_lr : float
        Base rate of the encoder; the classifier's is `lr`.
    finetune_duration : float
        Seconds of a training crop. Whole clips are validated and tested.

    Returns
    -------
    FinetunedPredictor
        With the weights of the best epoch.
    """
    hparams, seed = run.hparams, run.hparams["seed"]
    torch.manual_seed(seed)
    shares = class_weights(train.labels, n_classes) if balanced else None
    batches = EpochBatches(len(train), hparams["batch_size"], seed, None if shares is None else shares / shares.sum())
    encoder = copy.deepcopy(hparams["modules"]["embedding_model"]).requires_grad_(True)
    modules = {"embedding_model": encoder, "classifier": hparams["classifier"](n_classes=n_classes)}
    front_end = {name: hparams["modules"][name].eval() for name in ("compute_features", "mean_var_norm")}
    brain = FinetuneBrain(
        front_end=front_end,
        encoder_schedule=rate_schedule(hparams, len(batches), finetune_lr),
        schedule=rate_schedule(hparams, len(batches)),
        modules=modules,
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run.options,
    )
    brain.train_sampler = batches
    crops = Crops(train, round(finetune_duration * hparams["sample_rate"]), seed)
    loader = DataLoader(crops, sampler=batches, batch_size=None)
    whole = DataLoader(valid, sampler=valid.whole_batches(hparams["embedding_batch_size"]), batch_size=None)
    brain.fit(EpochCounter(hparams["number_of_epochs"]), loader, whole, progressbar=False)
    brain.best.restore()
    return FinetunedPredictor(brain, hparams["embedding_batch_size"])


finetune.needs_audio = True


class FinetunedPredictor(Predictor):
    """A fine-tuned encoder with its classifier. The score is the softmax probability of the predicted class.

    Parameters
    ----------
    brain : FinetuneBrain
        Trained, with the weights to use.
    batch_size : int
        Most clips in one forward pass.
    """

    def __init__(self, brain, batch_size):
        self.brain, self.batch_size, self.about = brain, batch_size, {"epoch": brain.best.epoch}

    def scored(self, vectors):
        """Predict the labels [n] and scores [n] of `Sounds`, whole clips."""
        labels, scores = np.zeros(len(vectors), int), np.zeros(len(vectors), np.float32)
        self.brain.modules.eval()
        with torch.inference_mode():
            for places in vectors.whole_batches(self.batch_size):
                labels[places], scores[places] = best_class(self.brain.compute_forward(vectors[places], Stage.TEST))
        return labels, scores

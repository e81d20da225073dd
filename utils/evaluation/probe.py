"""Linear evaluation of saved encoders: embed once, train a linear classifier per encoder, fill the accuracy table.

Legend: n clips, D embedding features, C classes.
"""

import hashlib
import logging
import os
import time

import numpy as np
import speechbrain as sb
import torch
from speechbrain.dataio.sampler import ReproducibleRandomSampler, ReproducibleWeightedRandomSampler
from speechbrain.utils.epoch_loop import EpochCounter
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from datasets.selection import get_protocol
from utils.evaluation.embeddings import cache_beside, make_embedder
from utils.io.errors import InputError
from utils.io.files import read_json, write_json
from utils.run.costs import training_costs
from utils.training.best_epoch import BestEpoch
from utils.training.checkpoints import load_weights
from utils.training.schedulers import WarmupCosineScheduler
from utils.training.steps import AccuracyCount, FiniteSteps

logger = logging.getLogger(__name__)


class Embedded(Dataset):
    """Embeddings and labels, handed out a batch at a time.

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
        """([batch, D], [batch]) for a list of places."""
        places = torch.tensor(places)
        return self.vectors.index_select(0, places), self.labels.index_select(0, places)


class ProbeBrain(AccuracyCount, FiniteSteps, sb.Brain):
    """Trains a linear classifier and keeps the epoch of best validation accuracy; of equals, that of least loss.

    Parameters
    ----------
    schedule : callable
        Step from 0 -> learning rate.
    **kwargs
        As for `speechbrain.Brain`.
    """

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
        if stage == sb.Stage.TRAIN:
            self.report_steps_left_out()
        if stage == sb.Stage.VALID:
            self.best.update(epoch, self.correct / max(self.total, 1), stage_loss)


def fit_probe(brain_class, hparams, run_opts, n_classes, train, valid, balanced):
    """Train one linear classifier on embeddings.

    Parameters
    ----------
    brain_class : type
        A subclass of `ProbeBrain`.
    hparams : dict
        Uses `classifier`, `opt_class`, `lr`, `final_lr`, `batch_size`, `number_of_epochs`, `warmup_epochs`, `seed`.
    run_opts : speechbrain.utils.run_opts.RunOptions
    n_classes : int
        C, all classes of the data set.
    train, valid : torch.utils.data.Dataset
        Return ([batch, D], [batch]) for a list of places.
    balanced : bool
        Draw every class with equal probability.

    Returns
    -------
    classifier : torch.nn.Module
        With the best epoch's weights.
    best : dict
        `accuracy` on the validation clips, `epoch`.
    """
    batch_size, seed = hparams["batch_size"], hparams["seed"]
    torch.manual_seed(seed)
    classifier = hparams["classifier"](n_classes=n_classes)
    if balanced:
        labels = np.asarray(train.labels)
        weights = 1.0 / np.bincount(labels, minlength=n_classes).clip(1)[labels]
        sampler = ReproducibleWeightedRandomSampler(weights, len(train), replacement=True, seed=seed)
    else:
        sampler = ReproducibleRandomSampler(train, seed=seed)
    # A whole batch is dropped only where another is left: few clips must not mean none.
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
        run_opts=run_opts,
    )
    brain.train_sampler = sampler
    loader = DataLoader(train, sampler=batches, batch_size=None)
    valid_loader = DataLoader(valid, sampler=BatchSampler(SequentialSampler(valid), 1024, False), batch_size=None)
    brain.fit(EpochCounter(epochs), loader, valid_loader, progressbar=False)
    brain.best.restore()
    return classifier.eval(), {"accuracy": brain.best.accuracy, "epoch": brain.best.epoch}


def confusion_matrix(classifier, test, n_classes):
    """Counts of clips by true and predicted class, [C, C]."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    vectors, labels = test[list(range(len(test)))]
    with torch.inference_mode():
        logits = classifier(vectors.to(next(classifier.parameters()).device)).cpu()
    return multiclass_confusion_matrix(logits.argmax(1), labels, n_classes).numpy()


def standardise(vectors, n_train):
    """Give every feature mean 0 and standard deviation 1 over the first `n_train` vectors, in place.

    The classifier stays linear; its SGD no longer depends on the scale of an encoder's embeddings, as with the norm
    without weights ahead of the probe in MAE (arXiv 2111.06377, appendix A.1).

    Parameters
    ----------
    vectors : numpy.ndarray
        [n, D] float32.
    n_train : int
        The training clips are the first ones.

    Returns
    -------
    numpy.ndarray
        The same [n, D].
    """
    train = vectors[:n_train]
    mean = train.mean(0, dtype=np.float64)
    parts = np.array_split(train, max(1, n_train // 256))  # of all it would be copies
    std = np.sqrt(sum(np.square(part - mean).sum(0) for part in parts) / n_train)
    vectors -= mean.astype(np.float32)
    vectors /= np.where(std > 1e-6 * np.abs(mean).max(initial=1e-6), std, 1.0).astype(np.float32)
    return vectors


class Evaluation:
    """Judges one encoder after the other by the same protocol, each once.

    Parameters
    ----------
    brain_class : type
        A subclass of `ProbeBrain`.
    hparams : dict
    run_opts : speechbrain.utils.run_opts.RunOptions
    data : datasets.prepare.Data
    """

    def __init__(self, brain_class, hparams, run_opts, data):
        self.brain_class, self.hparams, self.run_opts, self.data = brain_class, hparams, run_opts, data
        self.protocol = get_protocol(hparams["linclf_train_type"])
        # Whether every encoder's classifier is trained and tested on all tasks: nothing then depends on the encoder's
        # place in the order.
        all_tested = list(self.protocol.test_tasks(0, data.n_tasks)) == list(range(data.n_tasks))
        self.every_task = all_tested and not self.protocol.classes_grow
        self.splits = {name: data.split(name) for name in ("train", "valid", "test")}
        if run_opts.debug:
            most = run_opts.debug_batches * hparams["batch_size"]
            self.splits = {name: rows.groupby("task").head(most) for name, rows in self.splits.items()}
        for name, rows in self.splits.items():
            if rows.empty:
                raise InputError(f"No clip of the named classes is in the {name} split.")

    def check(self, folders):
        """Find what can't be judged before anything is written: too many encoders, stages without clips, weights of
        another architecture. Leaves the last encoder's weights in the model.

        Parameters
        ----------
        folders : list of str
            The encoders' task folders, in order.
        """
        kind, n_tasks = self.hparams["linclf_train_type"], self.data.n_tasks
        if not self.every_task and len(folders) > n_tasks:
            raise InputError(
                f"{len(folders)} encoders for {n_tasks} tasks, but linclf_train_type={kind} "
                "judges the encoder of task t on tasks 0 to t: use linclf_train_type=full."
            )
        for t, folder in enumerate(folders):
            for name, split in self.rows(t).items():
                if split.empty:
                    raise InputError(f"Task {t} has no {name} clips for linclf_train_type={kind}.")
            load_weights(folder, {"embedding_model": self.hparams["modules"]["embedding_model"]})

    def rows(self, t):
        """The clips of stage `t`: {"train": rows, "valid": rows, "test": rows}."""
        keep, seed = self.hparams["replay_num_keep"], self.hparams["seed"]
        test_tasks = self.protocol.test_tasks(t, self.data.n_tasks)
        return {
            "train": self.protocol.train(self.splits["train"], t, keep, seed),
            "valid": self.protocol.valid(self.splits["valid"], t, keep, seed),
            "test": self.splits["test"][self.splits["test"]["task"].isin(list(test_tasks))],
        }

    def judge(self, t, embedder, cache, path, what, encoder_key=None):
        """Train and test the probe of stage `t`, unless `path` holds that for the same encoder and clips already.
        `encoder_key` is the embedder's key, if it is at hand: making one takes 0.4 s for 300 MB of weights.

        Returns
        -------
        dict
            `confusion` ([C, C] lists of counts), `valid_accuracy`, `epoch` (the best), `seconds`, and `key`, a digest
            of the encoder and the clips.
        """
        begun, rows = time.monotonic(), self.rows(t)
        clips = np.concatenate([split["clip"].to_numpy() for split in rows.values()])
        content = hashlib.blake2b("".join(self.data.store.ids[clips]).encode(), digest_size=8).hexdigest()
        encoder_key = encoder_key or embedder.key()
        key = f"{encoder_key}-{content}"
        saved = _judged(path, len(self.data.classes))
        if saved.get("key") == key:
            logger.info("%s: judged already", what)
            return saved
        confusion, best = self._fit_and_test(rows, cache.get(embedder, self.data.store, clips, what, encoder_key))
        result = {
            "key": key,
            "confusion": confusion.tolist(),
            "valid_accuracy": best["accuracy"],
            "epoch": best["epoch"],
            "seconds": time.monotonic() - begun,
        }
        write_json(path, result)
        logger.info(
            "%s: %d training clips, best of %d epochs %d (valid %.1f %%), test %.1f %%, %.1f s",
            what, len(rows["train"]), self.hparams["number_of_epochs"], best["epoch"], 100 * best["accuracy"],
            100 * np.trace(confusion) / confusion.sum(), result["seconds"],
        )  # fmt: skip
        return result

    def _fit_and_test(self, rows, vectors):
        """Train the probe on the training rows' vectors; the confusion matrix of the test rows, and the best epoch."""
        if self.hparams["standardise"]:
            vectors = standardise(vectors, len(rows["train"]))
        ends = np.cumsum([len(split) for split in rows.values()])[:-1]
        parts = {
            name: Embedded(part, split["label"].to_numpy())
            for (name, split), part in zip(rows.items(), np.split(vectors, ends), strict=True)
        }
        n_classes = len(self.data.classes)
        classifier, best = fit_probe(
            self.brain_class, self.hparams, self.run_opts, n_classes, parts["train"], parts["valid"],
            self.protocol.balanced,
        )  # fmt: skip
        return confusion_matrix(classifier, parts["test"], n_classes), best


def _judged(path, n_classes):
    """What an earlier start of this evaluation has left; empty if there is nothing, or, with a warning, if it is
    damaged."""
    if not os.path.isfile(path):
        return {}
    try:
        saved = read_json(path)
        confusion = np.array(saved["confusion"])
        whole = confusion.shape == (n_classes, n_classes) and confusion.dtype == int and (confusion >= 0).all()
        numbers = [saved[name] for name in ("valid_accuracy", "epoch", "seconds")]
        if whole and all(isinstance(number, int | float) for number in numbers) and isinstance(saved["key"], str):
            return saved
        reason = "no result in it"
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())
    logger.warning("%s is damaged (%s): that encoder is judged again.", path, reason)
    return {}


def evaluate_encoders(brain_class, hparams, run_opts, data, folders, random_weights):
    """Judge every saved encoder, and the random-weights one by the same protocol.

    Parameters
    ----------
    brain_class : type
        A subclass of `ProbeBrain`.
    hparams : dict
    run_opts : speechbrain.utils.run_opts.RunOptions
    data : datasets.prepare.Data
    folders : list of str
        The encoders' task folders, in order.
    random_weights : dict of str to torch.Tensor
        State of an encoder that has learnt nothing.

    Returns
    -------
    dict
        `trained` and `floor`: lists of results as `Evaluation.judge` returns them, one per encoder; `n_embedded`: how
        many clips went through an encoder.
    """
    evaluation = Evaluation(brain_class, hparams, run_opts, data)
    if not evaluation.every_task and len(folders) < data.n_tasks:
        logger.warning("Only %d of %d tasks have an encoder: has its training ended?", len(folders), data.n_tasks)
    embedder, cache = make_embedder(hparams, run_opts), cache_beside(folders[0], hparams["output_folder"])
    encoder = hparams["modules"]["embedding_model"]
    results = {"trained": [], "floor": []}
    with training_costs(hparams["output_folder"], embedder.device) as save_costs:
        for t, folder in enumerate(folders):
            load_weights(folder, {"embedding_model": encoder})
            path = os.path.join(hparams["save_folder"], f"task{t}.json")
            results["trained"].append(evaluation.judge(t, embedder, cache, path, f"encoder of task {t}"))
            save_costs()
        encoder.load_state_dict(random_weights)
        floor_key = embedder.key()
        for t in range(len(folders)):
            if t > 0 and evaluation.every_task:  # nothing depends on t
                results["floor"].append(results["floor"][0])
                continue
            path = os.path.join(hparams["save_folder"], f"floor{t}.json")
            results["floor"].append(evaluation.judge(t, embedder, cache, path, f"random weights, task {t}", floor_key))
    results["n_embedded"] = embedder.n_embedded
    return results

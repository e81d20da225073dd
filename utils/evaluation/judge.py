"""Judge saved encoders: embed once, train a probe per encoder, test it. Legend: n clips, D features, C classes."""

import copy
import hashlib
import logging
import os
import time
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from datasets.selection import few_of_each_class, get_protocol
from utils.evaluation.embeddings import cache_beside, make_embedder
from utils.evaluation.finetune import Sounds
from utils.evaluation.kept import keep_probe
from utils.evaluation.probes import Embedded, confusion_matrix, count_pairs, get_probe, list_predictions, predicted
from utils.evaluation.remembered import remember
from utils.evaluation.saved import load_encoder
from utils.io.errors import InputError
from utils.io.files import read_json, write_json
from utils.run.costs import training_costs
from utils.run.keys import call_with_keys
from utils.training.context import FRONT_END

logger = logging.getLogger(__name__)


def scale_of(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of each feature of [n, D], both float32 [D]; 1 for a constant one."""
    mean = train.mean(0, dtype=np.float64)
    parts = np.array_split(train, max(1, len(train) // 256))  # so that no copy of all vectors is made
    std = np.sqrt(sum(np.square(part - mean).sum(0) for part in parts) / len(train))
    constant = std <= 1e-6 * np.abs(mean).max(initial=1e-6)
    return mean.astype(np.float32), np.where(constant, 1.0, std).astype(np.float32)


def standardise(vectors: np.ndarray, n_train: int) -> np.ndarray:
    """Give every feature mean 0 and standard deviation 1 over the first `n_train` vectors, in place.

    The classifier stays linear. Its SGD no longer depends on the scale of an encoder's embeddings, as with the norm
    without weights before the probe in MAE (arXiv 2111.06377, appendix A.1).

    Parameters
    ----------
    vectors
        [n, D] float32.
    n_train
        The training clips come first.

    Returns
    -------
    numpy.ndarray
        The same [n, D].
    """
    mean, std = scale_of(vectors[:n_train])
    vectors -= mean
    vectors /= std
    return vectors


class Evaluation:
    """Judges one encoder after the other by the same protocol, each only once.

    Parameters
    ----------
    brain_class : type
        A subclass of `ProbeBrain`.
    run : utils.run.experiment.Run
        With its data read, and with untrained modules.
    """

    def __init__(self, brain_class, run):
        self.brain_class, self.run, self.hparams, self.data = brain_class, run, run.hparams, run.data
        hparams, data = run.hparams, run.data
        self.probe, self.few_shot = get_probe(hparams), hparams.get("few_shot")
        self.needs_audio = getattr(self.probe, "needs_audio", False)
        self.protocol = get_protocol(hparams["linclf_train_type"])
        modules = {name: module for name, module in hparams["modules"].items() if name in FRONT_END}
        self.untrained_front_end = {name: copy.deepcopy(module.state_dict()) for name, module in modules.items()}
        # Whether every encoder's classifier is trained and tested on all tasks: nothing then depends on the encoder's
        # place in the order.
        all_tested = list(self.protocol.test_tasks(0, data.n_tasks)) == list(range(data.n_tasks))
        self.every_task = all_tested and not self.protocol.classes_grow
        self.splits = {name: data.split(name) for name in ("train", "valid", "test")}
        if run.options.debug:
            most = run.options.debug_batches * hparams["batch_size"]
            self.splits = {name: rows.groupby("task").head(most) for name, rows in self.splits.items()}
        for name, rows in self.splits.items():
            if rows.empty:
                raise InputError(f"{data.lacks(name)}. An evaluation needs train, valid and test.")

    def check(self, folders: list[str]):
        """Refuse what can't be judged, before anything is written. The last encoder's weights stay in the modules.

        Parameters
        ----------
        folders
            The encoders' task folders, in order.

        Raises
        ------
        InputError
            Too many encoders, a stage without clips, fewer clips than few_shot asks for, or weights of another
            architecture.
        """
        kind, n_tasks = self.hparams["linclf_train_type"], self.data.n_tasks
        if not self.every_task and len(folders) > n_tasks:
            raise InputError(
                f"{len(folders)} encoders for {n_tasks} tasks, but linclf_train_type={kind} "
                "judges the encoder of task t on tasks 0 to t: use linclf_train_type=full, or name the tasks that "
                "the encoder was trained on, or --task_classes=encoder."
            )
        for t, folder in enumerate(folders):
            for name, split in self.rows(t).items():
                if split.empty:
                    raise InputError(f"Task {t} has no {name} clips for linclf_train_type={kind}.")
            load_encoder(folder, self.hparams["modules"])

    def load(self, folder: str | None, random_weights: Mapping[str, torch.Tensor] | None = None):
        """Load a saved encoder with its front end, or without a folder `random_weights` with the untrained one."""
        modules = self.hparams["modules"]
        if folder is not None:
            load_encoder(folder, modules)
            return
        modules["embedding_model"].load_state_dict(random_weights)
        for name, state in self.untrained_front_end.items():
            modules[name].load_state_dict(state)

    def rows(self, t):
        """Return the clips of stage `t`: {"train": rows, "valid": rows, "test": rows}.

        With `few_shot`, the training rows are those of any draw.
        """
        keep, seed = self.hparams["replay_num_keep"], self.hparams["seed"]
        test_tasks = self.protocol.test_tasks(t, self.data.n_tasks)
        train = self.protocol.train(self.splits["train"], t, keep, seed)
        if self.few_shot is not None:
            drawn = pd.Index(np.concatenate([draw.index for draw in self._few(train)]))
            train = train[train.index.isin(drawn)]
        return {
            "train": train,
            "valid": self.protocol.valid(self.splits["valid"], t, keep, seed),
            "test": self.splits["test"][self.splits["test"]["task"].isin(list(test_tasks))],
        }

    def draws(self, t):
        """List the places in the training rows of stage `t` that each probe of it is trained on: all, or few-shot."""
        rows = self.rows(t)["train"]
        if self.few_shot is None:
            return [np.arange(len(rows))]
        keep, seed = self.hparams["replay_num_keep"], self.hparams["seed"]
        whole = self.protocol.train(self.splits["train"], t, keep, seed)
        return [rows.index.get_indexer(draw.index) for draw in self._few(whole)]

    def _few(self, rows):
        """List the rows of each few-shot draw."""
        n, seed = self.hparams.get("few_shot_draws", 5), self.hparams["seed"]
        return [few_of_each_class(rows, self.few_shot, draw, seed) for draw in range(n)]

    def judge(self, t, embedder, cache, path, what, encoder_key=None):
        """Train and test the probe of stage `t`, unless `path` holds the result for the same encoder and clips.

        `encoder_key` is the embedder's key, where the caller has it: making one takes 0.4 s for 300 MB of weights.

        Returns
        -------
        dict
            `confusion` ([C, C] lists of counts, the sum over few-shot draws), `predictions` (lists by test clip:
            `clip`, `task`, `true`; and by draw and clip: `predicted`, `score`), `valid_accuracy`, what the probe's
            `about` has (the linear probe's: `epoch`, the best; means over few-shot draws), `seconds`, and `key`, a
            digest of the encoder and the clips.
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
        vectors = None if self.needs_audio else cache.get(embedder, self.data.store, clips, what, encoder_key)
        scale = scale_of(vectors[: len(rows["train"])]) if vectors is not None and self.hparams["standardise"] else None
        about, found, predict = self._fit_and_test(rows, vectors, self.draws(t))
        linear = getattr(predict, "linear", lambda n_classes: None)(len(self.data.classes))
        if self.few_shot is None and linear is not None:
            keep_probe(path, *linear, scale, self.data.classes, encoder_key)
        true = rows["test"]["label"].to_numpy()
        confusion = sum(count_pairs(true, labels, len(self.data.classes)) for labels, _ in found)
        predictions = list_predictions(rows["test"], found)
        result = {"key": key, "confusion": confusion.tolist(), "predictions": predictions, **about}
        result["seconds"] = time.monotonic() - begun
        write_json(path, result)
        epoch = f", best of {self.hparams['number_of_epochs']} epochs {about['epoch']:g}" if "epoch" in about else ""
        logger.info(
            "%s: %d training clips%s (valid %.1f %%), test %.1f %%, %.1f s",
            what, len(rows["train"]), epoch, 100 * about["valid_accuracy"],
            100 * np.trace(confusion) / confusion.sum(), result["seconds"],
        )  # fmt: skip
        return result

    def _fit_and_test(self, rows, vectors, draws):
        """Train a probe on each draw of training rows, and test it.

        Return what is recorded of the probes, the mean over draws; (labels, scores) of the test rows by draw; and the
        last probe.
        """
        n_classes, given = len(self.data.classes), {"run": self.run, "brain_class": self.brain_class}
        about, found = [], []
        for draw in draws:
            parts = self._parts(rows, vectors, draw, last=len(found) == len(draws) - 1)
            clips = (parts["train"], parts["valid"], n_classes, self.protocol.balanced)
            predict = call_with_keys(self.probe, {**self.hparams, **given}, *clips)
            valid = confusion_matrix(predict, parts["valid"], n_classes)
            accuracy = float(np.trace(valid) / max(valid.sum(), 1))
            about.append({**getattr(predict, "about", {}), "valid_accuracy": accuracy})
            found.append(predicted(predict, parts["test"]))
        mean = about[0] if len(about) == 1 else {key: float(np.mean([a[key] for a in about])) for key in about[0]}
        return mean, found, predict

    def _parts(self, rows, vectors, draw, last):
        """Return what a probe is given of each split; standardised by the draw's training rows, if asked for."""
        if self.needs_audio:
            chosen = {**rows, "train": rows["train"].iloc[draw]}
            return {name: Sounds(split, self.data.store) for name, split in chosen.items()}
        n_train, few = len(rows["train"]), len(draw) < len(rows["train"])
        labels = {name: split["label"].to_numpy() for name, split in rows.items()}
        if few:
            vectors, labels["train"] = np.concatenate([vectors[draw], vectors[n_train:]]), labels["train"][draw]
        if self.hparams["standardise"]:
            vectors = standardise(vectors if few or last else vectors.copy(), len(labels["train"]))
        ends = np.cumsum([len(part) for part in labels.values()])[:-1]
        pairs = zip(labels.items(), np.split(vectors, ends), strict=True)
        return {name: Embedded(part, split) for (name, split), part in pairs}


def _judged(path, n_classes):
    """Read the result of an earlier start; empty if there is none or, with a warning, if it is damaged.

    Where the data set has got more classes since, its confusions have rows and columns of zeros for them.
    """
    if not os.path.isfile(path):
        return {}
    try:
        saved = read_json(path)
        if "confusion" in saved and "predictions" not in saved:
            logger.info("%s is of an earlier version, without predictions: that encoder is judged again.", path)
            return {}
        confusion = np.array(saved["confusion"])
        if confusion.ndim == 2 and len(confusion) == confusion.shape[1] < n_classes:
            confusion = np.pad(confusion, (0, n_classes - len(confusion)))
            saved["confusion"] = confusion.tolist()
        whole = confusion.shape == (n_classes, n_classes) and confusion.dtype == int and (confusion >= 0).all()
        numbers = [saved["valid_accuracy"], saved.get("epoch", 0), saved["seconds"]]
        if whole and all(isinstance(number, int | float) for number in numbers) and isinstance(saved["key"], str):
            return saved
        reason = "no result in it"
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())
    logger.warning("%s is damaged (%s): that encoder is judged again.", path, reason)
    return {}


def evaluate_encoders(evaluation, folders, random_weights):
    """Judge every saved encoder and, by the same protocol, one with random weights.

    Parameters
    ----------
    evaluation : Evaluation
    folders : list of str
        The encoders' task folders, in order.
    random_weights : dict of str to torch.Tensor
        State of an untrained encoder.

    Returns
    -------
    dict
        `trained` and `floor`: lists of results as `Evaluation.judge` returns them, one per encoder. `remembered`: see
        `utils.evaluation.remembered.remember`; not of a probe that needs audio. `clips`: how many the last encoder's
        probe has, by split. `n_embedded`: how many clips went through an encoder.
    """
    run, hparams, data = evaluation.run, evaluation.run.hparams, evaluation.run.data
    if not evaluation.every_task and len(folders) < data.n_tasks:
        logger.warning("Only %d of %d tasks have an encoder: has its training ended?", len(folders), data.n_tasks)
    embedder, cache = make_embedder(hparams, run.options), cache_beside(folders[0], run.folder)
    results = {"trained": [], "floor": []}
    with training_costs(run.folder, embedder.device) as save_costs:
        for t, folder in enumerate(folders):
            evaluation.load(folder)
            path = os.path.join(run.save_folder, f"task{t}.json")
            results["trained"].append(evaluation.judge(t, embedder, cache, path, f"encoder of task {t}"))
            save_costs()
        evaluation.load(None, random_weights)
        floor_key = embedder.key()
        for t in range(len(folders)):
            if t > 0 and evaluation.every_task:  # nothing depends on t
                results["floor"].append(results["floor"][0])
                continue
            path = os.path.join(run.save_folder, f"floor{t}.json")
            results["floor"].append(evaluation.judge(t, embedder, cache, path, f"random weights, task {t}", floor_key))
        if not evaluation.needs_audio:
            results["remembered"] = remember(evaluation, embedder, cache, folders, results)
    results["clips"] = {name: len(rows) for name, rows in evaluation.rows(len(folders) - 1).items()}
    results["n_embedded"] = embedder.n_embedded
    return results

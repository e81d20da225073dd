"""What the tests of the scripts share: small audio in the published layouts, the scripts run as a user runs them."""

import logging
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the number of threads decides some bits: the same in all processes

import pandas as pd
import pytest

from helpers.lab import Lab


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """A script's main block that ran in this process has set up logging, on a stdout that is gone after its test."""
    loggers = [logging.getLogger(name) for name in (None, "datasets", "utils")]
    before = [(log, log.level, list(log.handlers), log.propagate) for log in loggers]
    yield
    for log, level, handlers, propagate in before:
        log.setLevel(level)
        log.handlers, log.propagate = handlers, propagate


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="session")
def encoder(lab, tmp_path_factory):
    """Run folder of a tiny encoder, trained with labels (so that its classifier learns too) over five tasks."""
    return lab.train(tmp_path_factory.mktemp("encoder") / "out", "--sup_weight=1", "--ssl_weight=1")[0]


@pytest.fixture(scope="session")
def us8k_rows(lab):
    """The small data set's clips with split, label and task, read without the code under test."""
    meta = pd.read_csv(lab.sounds / "metadata" / "UrbanSound8K.csv")
    tasks = {3: 0, 8: 0, 9: 1, 4: 1, 1: 2, 7: 2, 5: 3, 2: 3, 6: 4, 0: 4}
    split = meta["fold"].map(lambda fold: {9: "valid", 10: "test"}.get(fold, "train"))
    path = "audio/fold" + meta["fold"].astype(str) + "/" + meta["slice_file_name"]
    return pd.DataFrame(
        {"wav_path": path, "class_name": meta["class"], "split": split, "label": meta["classID"]}
    ).assign(task=meta["classID"].map(tasks))

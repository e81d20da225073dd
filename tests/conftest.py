"""Fixtures of more than one test module."""

import logging
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the number of threads decides some bits: the same in all processes

import pytest

from helpers.checks import rows_of
from helpers.crashes import CrashLab
from helpers.desk import Desk, write_sounds
from helpers.lab import Lab, process_as_it_was


@pytest.fixture(autouse=True)
def process_restored():
    """Undo what a main block, or a part of it, changed in this process; a fixture of a wider scope too."""
    with process_as_it_was():
        for name in logging.root.manager.loggerDict:
            if name.partition(".")[0] in ("datasets", "utils"):
                logging.getLogger(name).handlers.clear()
        yield


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="session")
def encoder(lab, tmp_path_factory):
    """Run folder of a tiny encoder, trained with labels (so that its classifier learns too) over five tasks."""
    return lab.train(tmp_path_factory.mktemp("encoder") / "out", "--sup_weight=1", "--ssl_weight=1")[0]


@pytest.fixture(scope="session")
def us8k_rows(lab):
    """The small data set's clips with split, label and task."""
    return rows_of(lab.sounds)


@pytest.fixture(scope="session")
def crash_lab(lab, tmp_path_factory):
    return CrashLab(lab, tmp_path_factory.mktemp("crash_lab"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folder of a `Desk` with an encoder of three tasks. No test may change a file of it."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    write_sounds(desk.sounds)
    assert desk.run(desk.train_args()).code == 0
    return desk.folder

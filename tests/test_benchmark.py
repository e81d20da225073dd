"""The benchmark's own arithmetic, and what it says of bad input. tests/test_docstrings.py runs all of it."""

import itertools
import sys

import pytest

from helpers.lab import REPO
from utils.benchmark import __main__ as command
from utils.benchmark import step
from utils.benchmark.bench import Bench, Sizes
from utils.benchmark.probes import measure_probe
from utils.io.errors import InputError


@pytest.mark.parametrize("argument", ["--parts=speed", "--encoder=none", "--no_such_key=1"])
def test_bad_input_is_one_line(monkeypatch, capsys, argument):
    monkeypatch.setattr(sys, "argv", ["benchmark", str(REPO / "hparams/demo/supclr_train.yaml"), argument])
    with pytest.raises(SystemExit) as stop:
        command.main()
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("error: ")


@pytest.fixture
def bench(tmp_path):
    yaml = REPO / "hparams/demo/supclr_train.yaml"
    return Bench(yaml, ("--batch_size=none",), tmp_path, Sizes(), 32, 16000, 2.0, n_clips=10)


def train(bench):
    bench.train("run", 1, 1)


def test_what_a_trainer_says_in_a_process_of_its_own_is_the_error(bench, capfd):
    with pytest.raises(InputError, match="^--batch_size=none: batch_size is a whole number"):
        bench.apart(train)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("batch_size", [2, 32, 256])
@pytest.mark.parametrize("n_tasks", [1, 5, 10])
def test_there_are_clips_for_a_batch_of_any_size(bench, batch_size, n_tasks):
    found = Bench(**{**vars(bench), "batch_size": batch_size}).with_data(100, n_tasks, batches=2)
    assert found.n_clips * 8 // 10 // n_tasks >= 2 * batch_size and found.n_clips % 100 == 0


def test_the_ceiling_is_that_of_the_fastest(monkeypatch):
    """Two operations a product and sum; every call takes a second here."""
    times = itertools.count()
    monkeypatch.setattr(step, "perf_counter", lambda: float(next(times)))
    assert step.ceiling("cpu", "fp32", batch=1, products=(8,)) == 2 * 9 * 256**2 * 50 * 20
    assert step.ceiling("cpu", "fp32", batch=1, products=(1024,)) == 2 * 1024**3


@pytest.mark.parametrize("skip", [None, "between"])
def test_a_clock_adds_up_what_is_named(monkeypatch, skip):
    times = iter([1.0, 3.0, 4.0, 9.0])
    monkeypatch.setattr(step, "perf_counter", lambda: next(times))
    clock = step.Clock("cpu")
    for name in (None, "work", skip, "work"):
        clock.lap(name)
    assert clock.seconds == {"work": 7.0, **({"between": 1.0} if skip else {})}


def test_probes_are_measured_on_embeddings_that_they_can_tell_apart(bench):
    yaml, arguments = REPO / "hparams/vgg/linclf_train.yaml", ("--knn_k=20",)
    bench = Bench(**{**vars(bench), "yaml": yaml, "arguments": arguments, "sizes": Sizes(embeddings=2000)})
    for name in ("knn", "ncm"):
        found = measure_probe(bench, name)
        assert found[f"{name}: test accuracy (%)"] > 5 * 100 / 308
        assert found[f"{name}: memory of the embeddings (MB)"] == pytest.approx(2000 * 2048 * 4 / 1e6)
        assert found[f"{name}: peak memory of the process (MB)"] > found[f"{name}: memory of the embeddings (MB)"]

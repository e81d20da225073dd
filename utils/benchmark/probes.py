"""What each probe takes on as many embeddings as a large data set has. Legend: n clips, D features, C classes."""

import resource
import runpy
import time
from types import SimpleNamespace

import numpy as np

from utils.benchmark.bench import REPO
from utils.evaluation.probes import PROBES, Embedded
from utils.run.arguments import parse_arguments
from utils.run.config import load_config
from utils.run.keys import call_with_keys

TEST, VALID = 0.08, 0.2  # of the clips, and of the others: VGGSound's
CLASSES = 308
SPREAD = 0.12  # of a class's mean, in standard deviations of its clips: a linear probe gets most clips right
ROWS = 1024  # of embeddings that are drawn at a time


def probes_part(bench):
    """Measure each probe that takes embeddings, in a process of its own, with the keys of linclf_train.py's YAML."""
    figures = {}
    for name, probe in PROBES.items():
        if not getattr(probe, "needs_audio", False):
            figures |= bench.apart(measure_probe, name)
    return figures


def measure_probe(bench, name):
    """Train a probe on synthetic embeddings and test it: seconds by the clock and of the processor, and memory."""
    file, options, overrides = parse_arguments(__doc__, [str(bench.yaml), *bench.arguments, *bench.places])
    hparams = load_config(file, overrides, options)
    train, valid, test = draw(bench.sizes.embeddings, hparams["emb_dim"])
    brain_class = runpy.run_path(str(REPO / "linclf_train.py"))["LinearProbe"]
    begun, processor = time.perf_counter(), time.process_time()
    given = {**hparams, "run": SimpleNamespace(hparams=hparams, options=options), "brain_class": brain_class}
    predict = call_with_keys(PROBES[name], given, train, valid, CLASSES, False)
    accuracy = (predict(test.inputs) == test.labels.numpy()).mean()
    return {
        f"{name}: test accuracy (%)": 100 * accuracy,
        f"{name}: seconds": time.perf_counter() - begun,
        f"{name}: seconds of the processor": time.process_time() - processor,
        f"{name}: memory of the embeddings (MB)": sum(part.vectors.nbytes for part in (train, valid, test)) / 1e6,
        f"{name}: peak memory of the process (MB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def draw(n, dim):
    """Draw `n` embeddings of `CLASSES` classes: training, validation and test clips, `Embedded`."""
    rng = np.random.default_rng(0)
    means = SPREAD * rng.standard_normal((CLASSES, dim), dtype=np.float32)
    n_test = round(TEST * n)
    n_valid = round(VALID * (n - n_test))
    parts = []
    for size in (n - n_test - n_valid, n_valid, n_test):
        labels = np.arange(size) % CLASSES
        vectors = np.empty((size, dim), np.float32)
        for start in range(0, size, ROWS):
            part = vectors[start : start + ROWS]
            part[:] = rng.standard_normal(part.shape, dtype=np.float32) + means[labels[start : start + ROWS]]
        parts.append(Embedded(vectors, labels))
    return parts

"""The audio store: building it, and reading two views of a clip from it, against decoding."""

import os
from time import perf_counter

from speechbrain.dataio.batch import PaddedBatch
from torch.utils.data import DataLoader

from datasets.audio import load_mono
from datasets.batches import NoMixup, ViewDataset
from datasets.demo import CLASSES
from datasets.store import open_store
from datasets.us8k import load as load_us8k


def rate_of(function, items):
    """Return how many items a second `function` takes."""
    begun = perf_counter()
    for item in items:
        function(item)
    return len(items) / (perf_counter() - begun)


def store_part(bench):
    """Measure reading from the store and decoding, in items a second of two random crops each."""
    return bench.apart(measure_store)


def measure_store(bench):
    """See `store_part`."""
    bench.data_arguments()  # writes the clips
    rows, rate, folder = load_us8k(str(bench.sounds))[0], bench.sample_rate, str(bench.work / "measured-store")
    rows = rows.assign(clip=range(len(rows)), label=0)
    paths = list(rows["wav_path"])
    decoded = rate_of(lambda path: load_mono(os.path.join(bench.sounds, path), rate), paths)
    begun = perf_counter()
    store = open_store(str(bench.sounds), paths, rate, folder, progress=False)
    built = len(paths) / (perf_counter() - begun)
    begun = perf_counter()
    open_store(str(bench.sounds), paths, rate, folder, progress=False)
    opened = perf_counter() - begun
    live = open_store(str(bench.sounds), paths, rate, None, progress=False)
    crop = round(bench.train_duration * rate)
    views, views_live = (ViewDataset(rows, s, crop, len(CLASSES), NoMixup(), 0, 0) for s in (store, live))
    keys = [(1 + i // len(rows), i % len(rows)) for i in range(bench.sizes.items)]  # epoch, row
    figures = {
        "decoding, one core (clips/s)": decoded,
        "building the store (clips/s)": built,
        "building / one decode pass on one core (x)": built / decoded,
        "opening a built store (ms)": 1000 * opened,
        "two views from the store, one core (items/s)": rate_of(views.__getitem__, keys),
        "two views by decoding, one core (items/s)": rate_of(views_live.__getitem__, keys[: len(paths)]),
    }
    figures["store / decoding (x)"] = figures["two views from the store, one core (items/s)"] / decoded
    for workers in (0, 1, 2):
        loader = DataLoader(views, batch_size=32, sampler=keys, num_workers=workers, collate_fn=PaddedBatch)
        begun = perf_counter()
        n_items = sum(len(batch.id) for batch in loader)
        figures[f"two views from the store, {workers} workers (items/s)"] = n_items / (perf_counter() - begun)
    return figures

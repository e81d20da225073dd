"""How fast this is, against the plain way of working and against what the hardware can do.

    python -m utils.benchmark hparams/us8k/supclr_train.yaml --output=benchmark.json
    python -m utils.benchmark hparams/demo/supclr_train.yaml --quick

One table, and JSON with `--output`: reading from the store against decoding; a training step's parts, its time against
a plain step's, and the share of the device's measured ceiling that it reaches; saving; starting; all four linear
protocols against decoding and encoding every clip in every epoch; memory and time as clips and tasks grow. Sounds are
synthetic, 4 s at 44.1 kHz in Ogg Vorbis. Run options and overrides of the YAML are those of the trainer: `--precision`,
`--device`, `--encoder=...`, `--batch_size=...`. `--parts=step,evaluation` measures only these; `--quick` measures so
little that it only shows that all of it runs.

Each part runs in a process of its own, so that its peak memory is its own. Machines are noisy: compare ratios within
one run, never seconds of two.
"""

import argparse
import copy
import functools
import importlib
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

import numpy as np
import pandas as pd
import soundfile
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.utils.distributed import infer_device
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from datasets.audio import load_mono
from datasets.batches import NoMixup, ViewDataset
from datasets.demo import CLASSES, COLUMNS, synthesise
from datasets.prepare import DATA_KEYS, prepare
from datasets.selection import get_protocol
from datasets.store import open_store
from datasets.us8k import load as load_us8k
from models import pann
from models.embed import embed
from utils.evaluation.embeddings import EmbeddingCache, cache_beside, make_embedder
from utils.evaluation.probe import Embedded, Evaluation, ProbeBrain, evaluate_encoders, fit_probe
from utils.io.errors import InputError
from utils.io.files import write_atomically
from utils.run.arguments import parse_arguments
from utils.run.config import effective_option, load_config
from utils.run.costs import peak_memory
from utils.run.exits import user_errors
from utils.training import loop
from utils.training.brain import TaskBrain
from utils.training.checkpoints import AtomicCheckpointer, load_weights
from utils.training.loop import plan_tasks, train_tasks

REPO = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPO)}
SECONDS, RATE = 4.0, 44100  # of the synthetic clips
PROTOCOLS = {"seen": "all", "subset": 24, "buffer": 24, "full": "all"}  # and the clips they keep
SIZES = {  # clips, items read, steps timed, probe epochs (None: the YAML's), growth in clips and in tasks, ...
    "full": {
        "clips": 400, "items": 3000, "steps": 5, "epochs": None, "clip_factors": (1, 4, 16), "tasks": (2, 5, 10),
        "saved_epochs": 20, "starts": 3, "ceiling": {},
    },
    "quick": {
        "clips": 100, "items": 50, "steps": 1, "epochs": 2, "clip_factors": (2,), "tasks": (2,),
        "saved_epochs": 2, "starts": 1, "ceiling": {"seconds": 0.0, "batch": 1, "products": (256,)},
    },
}  # fmt: skip


def write_clips(folder, n_clips):
    """Write synthetic clips in UrbanSound8K's layout.

    Parameters
    ----------
    folder : Path
    n_clips : int
        A multiple of 100 spreads classes and folds evenly.
    """
    rng = np.random.default_rng(0)
    bases = [synthesise(name, rng, RATE, SECONDS) for name in CLASSES]
    rows = []
    for fold in range(1, 11):
        (folder / "audio" / f"fold{fold}").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for i in range(n_clips):
        label, fold = i % 10, i // 10 % 10 + 1
        name = f"{i}-{label}-0-0.ogg"
        wav = np.roll(bases[label], int(rng.integers(len(bases[label]))))
        soundfile.write(folder / "audio" / f"fold{fold}" / name, wav, RATE, format="OGG", subtype="VORBIS")
        rows.append((name, i, 0.0, SECONDS, 1, fold, label, CLASSES[label]))
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(folder / "metadata" / "UrbanSound8K.csv", index=False)


def rate_of(function, items):
    """Items a second of calling `function` on each."""
    begun = perf_counter()
    for item in items:
        function(item)
    return len(items) / (perf_counter() - begun)


def two_views(bench, rows, store, n_classes):
    """Items of two random crops of a clip, and keys of as many of them as are timed."""
    crop = round(bench.hparams["train_duration"] * bench.hparams["sample_rate"])
    keys = [(1 + i // len(rows), i % len(rows)) for i in range(bench.size["items"])]
    return ViewDataset(rows, store, crop, n_classes, NoMixup(), 0, 0), keys


# ---------------------------------------------------------------- the parts; each returns {name: figure}


def store_part(bench):
    """Clips from the store and by decoding: items a second of two random crops each, and building the store."""
    rows, classes, _ = load_us8k(bench.sounds)
    rows = rows.assign(clip=range(len(rows)), label=0)
    paths, rate = list(rows["wav_path"]), bench.hparams["sample_rate"]
    files = [os.path.join(bench.sounds, path) for path in paths]
    decoded = rate_of(lambda file: load_mono(file, rate), files)
    begun = perf_counter()
    store = open_store(bench.sounds, paths, rate, bench.work / "store", progress=False)
    built = len(paths) / (perf_counter() - begun)
    begun = perf_counter()
    open_store(bench.sounds, paths, rate, bench.work / "store", progress=False)
    opened = perf_counter() - begun
    live = open_store(bench.sounds, paths, rate, None, progress=False)
    (views, keys), (views_live, _) = (two_views(bench, rows, s, len(classes)) for s in (store, live))
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


class Clock:
    """Adds up seconds by the name of what was going on; waits for the device first."""

    def __init__(self, device):
        self.wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
        self.seconds, self.last = {}, None

    def lap(self, name):
        """What went on since the last call was `name`; None: it doesn't count."""
        self.wait()
        now = perf_counter()
        if name is not None and self.last is not None:
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


def timed(brain_class, warm_up):
    """A Brain that notes where the time of its steps goes, after `warm_up` steps.

    Returns
    -------
    type
        A subclass; `laps` has the seconds of each step by part, `flops` those of one step.
    """

    class Timed(brain_class):
        laps, flops, count = [], 0, 0

        def on_fit_start(self):
            super().on_fit_start()
            self.clock = Clock(self.device)
            parts = {"compute_features": "features", "mean_var_norm": "features", "augment": "augmentation"}
            for name, part in parts.items():
                self.modules[name].register_forward_pre_hook(lambda *_: self.clock.lap("forward"))
                self.modules[name].register_forward_hook(lambda *_, part=part: self.clock.lap(part))

        def fit_batch(self, batch):
            cls, first = type(self), type(self).count == 0
            self.clock.lap("data")
            with FlopCounterMode(display=False) if first else torch.enable_grad() as counter:
                loss = super().fit_batch(batch)
            if first:
                cls.flops = counter.get_total_flops()
            self.clock.lap("optimiser")
            cls.count += 1
            if cls.count > warm_up:
                cls.laps.append(dict(self.clock.seconds))
            self.clock.seconds = {}
            return loss

        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            self.clock.lap("forward")
            return loss

        def optimizers_step(self):
            self.clock.lap("backward")
            super().optimizers_step()

    return Timed


def ceiling(device, precision, seconds=0.3, batch=32, products=(1024, 2048, 4096)):
    """FLOP/s of the fastest of a few convolutions and matrix products in the given precision, forward only.

    Parameters
    ----------
    device, precision : str
    seconds : float
        Each is repeated for at least so long.
    batch : int
        Of the convolutions.
    products : sequence of int
        Rows and columns of the matrices.

    Returns
    -------
    float
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    clock, best = Clock(device), 0.0
    cases = []
    for channels, height, width in ((64, 100, 40), (256, 50, 20), (512, 25, 10), (1024, 12, 5)):
        x = torch.randn(batch, channels, height, width).to(device, dtype, memory_format=torch.channels_last)
        w = torch.randn(channels, channels, 3, 3).to(device, dtype, memory_format=torch.channels_last)
        flops = 2 * 9 * channels**2 * x[:, 0].numel()
        cases.append((flops, lambda x=x, w=w: torch.nn.functional.conv2d(x, w, padding=1)))
    for n in products:
        a = torch.randn(n, n).to(device, dtype)
        cases.append((2 * n**3, lambda a=a: a @ a))
    for flops, call in cases:
        call()
        clock.lap(None)
        calls, clock.seconds = 0, {"call": 0.0}
        while calls == 0 or clock.seconds["call"] < seconds:
            call()
            clock.lap("call")
            calls += 1
        best = max(best, flops * calls / clock.seconds["call"])
    return best


LEVERS = ("kept memory", "own layers", "channels_last", "low precision", "compilation")


def step_part(bench):
    """A training step, as the trainer makes it: its parts, the share of the device's ceiling, and what a step takes
    without one, and without all, of what makes it fast."""
    levers = _levers(bench)
    without = {name: bench.other_part("without", name) for name in ["all", *(levers[:1] if bench.quick else levers)]}
    step, plain = _time_steps(bench), without["all"]["seconds"]
    # A compiled module's operations can't be counted.
    compiled = "--compile" in bench.arguments
    flops = (
        (without.get("compilation") or bench.other_part("without", "compilation"))["flops"] if compiled else step.flops
    )
    parts = ("data", "features", "augmentation", "forward", "backward", "optimiser")
    median = statistics.median(sum(lap.values()) for lap in step.laps)
    reached, most = flops / median, ceiling(bench.device, bench.precision, **bench.size["ceiling"])
    direct = {}  # own layers get the same results by less work
    if "own layers" in without and not compiled:
        direct["utilisation, by the work of a step without own layers (%)"] = (
            100 * without["own layers"]["flops"] / median / most
        )
    return {
        "step (ms)": 1000 * median,
        **{f"step: {part} (ms)": 1000 * statistics.median(lap.get(part, 0.0) for lap in step.laps) for part in parts},
        "step: clips (clips/s)": bench.hparams["batch_size"] / median,
        "step: work (GFLOP)": flops / 1e9,
        "step: reached (GFLOP/s)": reached / 1e9,
        f"ceiling of the device, {bench.precision} (GFLOP/s)": most / 1e9,
        "utilisation (%)": 100 * reached / most,
        **direct,
        "plain step: fp32, eager, contiguous (ms)": 1000 * plain,
        "plain step / step (x)": plain / median,
        **{f"step without {name} / step (x)": without[name]["seconds"] / median for name in without if name != "all"},
    }


def _levers(bench):
    """Those that this configuration has."""
    encoder = bench.hparams["modules"]["embedding_model"]
    has = {
        "channels_last": any(weight.ndim == 4 for weight in encoder.parameters()),
        "low precision": bench.precision != "fp32",
        "compilation": "--compile" in bench.arguments,
    }
    return [name for name in LEVERS if has.get(name, True)]


def without_part(bench):
    """A step without one of the levers, or, as PyTorch and SpeechBrain do unasked, without all."""
    off = LEVERS if bench.argument == "all" else [bench.argument]
    if "kept memory" in off:
        patch.object(loop, "keep_freed_memory", lambda: None).start()  # complains where the name is gone
    if "low precision" in off:
        bench.arguments = [*bench.arguments, "--precision=fp32"]
    if "compilation" in off:
        bench.arguments = [a for a in bench.arguments if a != "--compile"]
    bench.hparams, bench.run_opts = bench._load(bench.yaml, [*bench.arguments, "--experiment_name=without"])
    encoder = bench.hparams["modules"]["embedding_model"]
    if "own layers" in off:
        patch.object(pann, "_dropout", torch.nn.functional.dropout).start()
        patch.object(pann, "convolve", functools.partial(torch.nn.functional.conv2d, padding=1)).start()
        if isinstance(encoder, ECAPA_TDNN):
            encoder.forward = types.MethodType(ECAPA_TDNN.forward, encoder)
    if "channels_last" in off:
        encoder.to(memory_format=torch.contiguous_format)
    found = _time_steps(bench)
    return {"flops": found.flops, "seconds": statistics.median(sum(lap.values()) for lap in found.laps)}


def _time_steps(bench):
    """The Brain's class that has noted them."""
    warm_up = 1 if bench.quick else 2
    brain_class = timed(bench.brain_class, warm_up)
    bench.train(brain_class, steps=warm_up + bench.size["steps"], tasks=1)
    return brain_class


def evaluation_part(bench):
    """All linear protocols over the saved encoders, against decoding and encoding each clip in each epoch."""
    _, folders = bench.train(bench.brain_class, steps=1)  # keeps freed memory, as the embedder will
    hparams, run_opts, data = bench.evaluation("full")
    modules = {name: hparams["modules"][name] for name in ("compute_features", "mean_var_norm", "embedding_model")}
    wav = torch.randn(32, round(SECONDS * hparams["sample_rate"]))
    bare = _bare_rate(modules, wav, bench.device, bench.size["steps"])
    files = [os.path.join(bench.sounds, path) for path in data.store.paths[:32]]
    clip = 1 / bare + 1 / rate_of(lambda f: load_mono(f, hparams["sample_rate"]), files)
    embedding, whole, passes, probes = 0.0, 0.0, 0, 0
    inner, probe_class, n_embedded = EmbeddingCache.get, _brain_of("linclf_train", ProbeBrain), 0

    def get(self, *args):
        nonlocal embedding
        begun = perf_counter()
        vectors = inner(self, *args)
        embedding += perf_counter() - begun
        return vectors

    EmbeddingCache.get = get
    for kind in PROTOCOLS:
        hparams, run_opts, data = bench.evaluation(kind)
        random_weights = copy.deepcopy(hparams["modules"]["embedding_model"].state_dict())
        begun = perf_counter()
        results = evaluate_encoders(probe_class, hparams, run_opts, data, folders, random_weights)
        whole += perf_counter() - begun
        n_embedded += results["n_embedded"]
        floors = 1 if kind == "full" else len(folders)
        for n_rows in [_split_sizes(hparams, data, kind, t) for t in [*range(len(folders)), *range(floors)]]:
            passes += (n_rows[0] + n_rows[1]) * hparams["number_of_epochs"] + n_rows[2]
            probes += 1
    EmbeddingCache.get = inner
    baseline = passes * clip + whole - embedding  # the same probe training, on embeddings made anew
    return {
        "evaluation: bare inference (clips/s)": bare,
        "evaluation: embedding, from the store (clips/s)": n_embedded / embedding,
        "evaluation: embedding / bare inference (%)": 100 * n_embedded / embedding / bare,
        "evaluation: all protocols, encoders and floors (s)": whole,
        "evaluation: of it, embedding each clip once (s)": embedding,
        "evaluation: whole / embedding (x)": whole / embedding,
        "evaluation: probe training, a task (s)": (whole - embedding) / probes,
        "evaluation: probe training, 2048 features of 1800 clips (s)": _probe_seconds(probe_class, hparams, run_opts),
        "evaluation: plain way, extrapolated (s)": baseline,
        "evaluation: plain way / this (x)": baseline / whole,
    }


def _probe_seconds(probe_class, hparams, run_opts, dim=2048, n_clips=1800):
    """Seconds of training a probe on vectors that are there, validated on an eighth as many."""
    rng, n_classes = np.random.default_rng(0), len(CLASSES)
    train, valid = (
        Embedded(rng.standard_normal((n, dim), np.float32), rng.integers(n_classes, size=n))
        for n in (n_clips, n_clips // 8)
    )
    hparams = {**hparams, "classifier": functools.partial(hparams["classifier"].func, emb_dim=dim)}
    begun = perf_counter()
    fit_probe(probe_class, hparams, run_opts, n_classes, train, valid, False)
    return perf_counter() - begun


def _bare_rate(modules, wav, device, repeats):
    """Clips a second of the frozen encoder on a batch that is ready."""
    modules = {name: module.to(device).eval() for name, module in modules.items()}
    wav, lengths, clock = wav.to(device), torch.ones(len(wav), device=device), Clock(device)
    with torch.inference_mode():
        embed(modules, wav, lengths)
        clock.lap(None)
        for _ in range(repeats):
            embed(modules, wav, lengths)
            clock.lap("call")
    return repeats * len(wav) / clock.seconds["call"]


def _split_sizes(hparams, data, kind, t):
    """Training, validation and test clips of a protocol at task `t`."""
    protocol, keep, seed = get_protocol(kind), hparams["replay_num_keep"], hparams["seed"]
    train, valid = (getattr(protocol, name)(data.split(name), t, keep, seed) for name in ("train", "valid"))
    return len(train), len(valid), data.split("test")["task"].isin(list(protocol.test_tasks(t, data.n_tasks))).sum()


def saving_part(bench):
    """Checkpoints: what one in the middle of a task and one at its end take, and the share of a run, whose epochs are
    so short here (one step) that saving each of them would be much."""
    saves, inner = [], AtomicCheckpointer.save_and_keep_only

    def timed_save(self, *args, **kwargs):
        begun = perf_counter()
        inner(self, *args, **kwargs)
        seconds = perf_counter() - begun
        (folder,) = (path for path in Path(self.checkpoints_dir).iterdir() if path.is_dir())
        saves.append((seconds, sum(file.stat().st_size for file in folder.iterdir())))

    AtomicCheckpointer.save_and_keep_only = timed_save
    bench.hparams = {**bench.hparams, "save_folder": f"{bench.hparams['save_folder']}-each", "ckpt_overhead": 1e6}
    bench.train(bench.brain_class, steps=1, tasks=1, epochs=2)
    (first, first_bytes), (last, last_bytes) = saves
    saves.clear()
    bench.hparams, bench.run_opts = bench._load(bench.yaml, bench.arguments)
    seconds, _ = bench.train(bench.brain_class, steps=1, tasks=1, epochs=bench.size["saved_epochs"])
    AtomicCheckpointer.save_and_keep_only = inner
    return {
        "saving: in the middle of a task (s)": first,
        "saving: in the middle of a task (MB)": first_bytes / 1e6,
        "saving: at its end, without the optimiser (s)": last,
        "saving: at its end, without the optimiser (MB)": last_bytes / 1e6,
        "saving: epochs of one step": bench.size["saved_epochs"],
        "saving: times": len(saves),
        "saving: share of the task's time (%)": 100 * sum(s for s, _ in saves) / seconds[0],
        "saving: share before the task's end (%)": 100 * sum(s for s, _ in saves[:-1]) / (seconds[0] - saves[-1][0]),
    }


FIRST_STEP = """
import multiprocessing, os, runpy, sys
from utils.training import brain

def end(self, batch):
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(0)

brain.TaskBrain.fit_batch = end
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start_part(bench):
    """From the command to the help, to the line of a wrong setting, and to the first step on a store that is there."""
    bench.data()
    script, yaml = f"{bench.yaml.stem}.py", str(bench.yaml.resolve())
    commands = {
        "import torch (s)": (["-c", "import torch"], 0),
        "--help (s)": ([script, "--help"], 0),
        "a wrong setting (s)": ([script, yaml, *bench.arguments, "--encoder=none"], 2),
        "first step (s)": (["-c", FIRST_STEP, script, yaml, *bench.arguments, "--dataset=!name:datasets.us8k.load"], 0),
    }
    figures = {}
    for name, (command, code) in commands.items():
        seconds = []
        for _ in range(bench.size["starts"]):
            with tempfile.TemporaryFile() as said:  # a pipe would be waited for until all workers have let it go
                begun, how = perf_counter(), {"stdout": said, "stderr": said, "cwd": REPO, "env": ENVIRONMENT}
                done = subprocess.run([sys.executable, *command], **how)
                seconds.append(perf_counter() - begun)
                said.seek(0)
                if done.returncode != code:
                    raise InputError(f"{name} of the benchmark has failed: {said.read().decode()[-1000:]}")
        figures[f"start: {name}"] = statistics.median(seconds)
    return figures


def growth_part(bench):
    """Preparing, reading, training of some steps a task, and judging. In two epochs, as the second forks workers of a
    used process."""
    begun = perf_counter()
    data = bench.data()
    prepared = perf_counter() - begun
    views, keys = two_views(bench, data.split("train"), data.store, len(data.classes))
    views_a_second = rate_of(views.__getitem__, keys)
    seconds, folders = bench.train(memory_of(bench.brain_class), steps=bench.size["steps"], epochs=2)
    return {
        "preparing (s)": prepared,
        "two views from the store, one core (items/s)": views_a_second,
        "last task (s)": seconds[-1],
        "last task / second (x)": seconds[-1] / seconds[1],  # the first also warms up
        "own memory, at most (MB)": memory_of.peak / 1e6,
        **bench.other_part("judging", folders[-1]),
    }


def judging_part(bench):
    """Embedding all clips with the last encoder, and training its probe: `seen`, after the last task."""
    hparams, run_opts, data = bench.evaluation("seen")
    load_weights(bench.argument, {"embedding_model": hparams["modules"]["embedding_model"]})
    evaluation = Evaluation(_brain_of("linclf_train", ProbeBrain), hparams, run_opts, data)
    embedder, cache = make_embedder(hparams, run_opts), cache_beside(bench.argument, hparams["output_folder"])
    begun = perf_counter()
    evaluation.judge(bench.n_tasks - 1, embedder, cache, bench.work / "judged.json", "last encoder")
    return {
        "judging the last encoder (clips/s)": embedder.n_embedded / (perf_counter() - begun),
        # What is freed is kept, so this is the most there was.
        "judging the last encoder: own memory, at most (MB)": own_memory() / 1e6,
    }


def memory_of(brain_class):
    """A Brain that notes the most memory of its own and its workers (not the pages of the store)."""
    memory_of.peak = 0

    class Watched(brain_class):
        def compute_objectives(self, *args):  # where a step holds most
            loss = super().compute_objectives(*args)
            memory_of.peak = max(memory_of.peak, own_memory())
            return loss

    return Watched


def own_memory():
    """Bytes of this process and its workers that no file backs, those that they share once."""
    total = 0
    for pid in (os.getpid(), *(worker.pid for worker in multiprocessing.active_children())):
        pages = Path(f"/proc/{pid}/smaps_rollup")
        found = re.search(r"^Pss_Anon:\s+(\d+) kB", pages.read_text(), re.MULTILINE) if pages.is_file() else None
        total += 1024 * int(found[1]) if found else 0
    return total


# ---------------------------------------------------------------- the command


PARTS = {
    "store": store_part,
    "step": step_part,
    "saving": saving_part,
    "start": start_part,
    "evaluation": evaluation_part,
    "growth": growth_part,
}
INNER_PARTS = {"without": without_part, "judging": judging_part}  # of others


class Bench:
    """What a part needs: a trainer's configuration and Brain, synthetic sounds, and a folder to work in.

    Parameters
    ----------
    yaml : str
        A trainer's.
    arguments : list of str
        Run options and overrides.
    work : str
        Folder for sounds, store and runs.
    n_clips, n_tasks : int
        Size of the synthetic data.
    quick : bool
    argument : str
        What `without_part` goes without; the encoder's task folder for `judging_part`.
    """

    def __init__(self, yaml, arguments, work, n_clips, n_tasks, quick, argument=""):
        self.work, self.quick, self.size = Path(work), quick, SIZES["quick" if quick else "full"]
        self.n_clips, self.n_tasks, self.argument = n_clips, n_tasks, argument
        self.sounds, self.yaml = self.work / f"sounds-{n_clips}", Path(yaml)
        if not self.sounds.exists():
            write_clips(self.sounds, n_clips)
        tasks = [group.tolist() for group in np.array_split(np.arange(len(CLASSES)), n_tasks)]
        places = {"data_folder": self.sounds, "store_folder": self.work / "store", "task_classes": tasks}
        self.common = [f"--{key}={value}" for key, value in places.items()]
        self.arguments = [*arguments, *self.common, f"--output_base={self.work / f'out-{os.getpid()}'}"]
        self.hparams, self.run_opts = self._load(self.yaml, self.arguments)
        self.brain_class = _brain_of(self.yaml.stem, TaskBrain)
        self.device = self.run_opts.device or infer_device()
        self.precision = effective_option("precision", self.hparams, self.run_opts)

    @staticmethod
    def _load(yaml, arguments):
        file, run_opts, overrides = parse_arguments(__doc__, [str(yaml), *arguments])
        return load_config(file, overrides, run_opts), run_opts

    def other_part(self, name, argument):
        """The figures of a part in another process, with the same settings."""
        given = self.arguments[: len(self.arguments) - len(self.common) - 1]
        sizes = (str(self.work), self.n_clips, self.n_tasks, self.quick)
        return run_part(name, str(self.yaml), given, *sizes, argument)

    def data(self):
        """Prepare the synthetic clips, as the trainer does."""
        return prepare(**{key: self.hparams[key] for key in DATA_KEYS} | {"dataset": load_us8k})

    def train(self, brain_class, steps, tasks=None, epochs=1):
        """Train epochs of `steps` steps of each task; seconds of each task, and the task folders."""
        data, hparams = self.data(), {**self.hparams, "number_of_epochs": epochs, "warmup_epochs": 0}
        n_classes = len(data.classes)
        heads = {"classifier": hparams["classifier"](n_classes=n_classes)} if "classifier" in hparams else {}
        plan = plan_tasks({**hparams, "batch_size": 2}, self.run_opts, data)[:tasks]
        for step in plan:  # enough rows for all steps, however few clips there are
            repeats = -(-steps * hparams["batch_size"] // len(step["rows"]))
            step["rows"] = pd.concat([step["rows"]] * repeats).iloc[: steps * hparams["batch_size"]]
            step["steps"] = steps
        ends = [perf_counter()]
        train_tasks(brain_class, hparams, self.run_opts, data, plan, {**hparams["modules"], **heads},
                    after_task=lambda *_: ends.append(perf_counter()))  # fmt: skip
        save = Path(hparams["save_folder"])
        return list(np.diff(ends)), [str(save / f"task{t}") for t in range(len(plan))]

    def evaluation(self, kind):
        """What linclf_train.py has after its first lines, for this trainer's encoder: hparams, run options, data."""
        yaml = self.yaml.parent / "linclf_train.yaml"
        shared = ("encoder", "emb_dim", "emb_norm_type", "sample_rate", "n_mels", "front_end", "mean_norm")
        arguments = [f"--{key}={self.hparams[key]}" for key in shared]
        arguments += [*self.common, f"--output_base={self.work / 'linclf'}", f"--experiment_name={kind}"]
        arguments += [f"--linclf_train_type={kind}", f"--replay_num_keep={PROTOCOLS[kind]}", "--ssl_checkpoints_dir=."]
        arguments += [f"--number_of_epochs={self.size['epochs']}", "--warmup_epochs=1"] if self.size["epochs"] else []
        hparams, run_opts = self._load(yaml, arguments)
        return hparams, run_opts, self.data()


def _brain_of(script, base):
    """The Brain that a script defines."""
    module = importlib.import_module(script)
    return next(v for v in vars(module).values() if isinstance(v, type) and issubclass(v, base) and v is not base)


def run_part(name, yaml, arguments, work, n_clips, n_tasks, quick, argument=""):
    """Run a part in a process of its own; its figures and its peak memory, {name: figure}."""
    call = [sys.executable, "-m", "utils.benchmark", yaml, *arguments, "--part", name, "--work", work]
    call += ["--clips", str(n_clips), "--tasks", str(n_tasks), "--argument", argument, *(["--quick"] if quick else [])]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, cwd=REPO)
    if done.returncode:
        raise InputError(f"The part {name} of the benchmark has failed, see above.")
    return json.loads(done.stdout.splitlines()[-1])


def growth(yaml, arguments, work, quick):
    """Memory and time at 1, 4, 16 times the clips, and at 2, 5, 10 tasks."""
    size, figures = SIZES["quick" if quick else "full"], {}
    settings = [(factor * size["clips"], 5, f"{factor}x clips") for factor in size["clip_factors"]]
    settings += [(size["clips"], n_tasks, f"{n_tasks} tasks") for n_tasks in size["tasks"]]
    for n_clips, n_tasks, what in tqdm(settings, desc="growth", disable=not sys.stderr.isatty(), leave=False):
        found = run_part("growth", yaml, arguments, work, n_clips, n_tasks, quick)
        del found["peak memory (MB)"]  # with the pages of the store
        figures |= {f"{what}: {name}": value for name, value in found.items()}
    return figures


def benchmark(yaml, arguments, quick, parts):
    """Yield each part's name and figures as it is done."""
    clips = SIZES["quick" if quick else "full"]["clips"]
    with tempfile.TemporaryDirectory() as work:
        for name in tqdm(parts, desc="benchmark", disable=not sys.stderr.isatty(), leave=False):
            if name == "growth":
                yield name, growth(yaml, arguments, work, quick)
            else:
                yield name, run_part(name, yaml, arguments, work, clips, 5, quick)


def table(part, figures):
    """A part's figures as lines of text."""
    rows = ((name, f"{value:,.{0 if value >= 1000 else 2}f}") for name, value in figures.items())
    return "\n".join(f"{part:12}{name:58}{value:>14}" for name, value in rows)


def main():
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("yaml", help="a trainer's configuration")
    parser.add_argument("--quick", action="store_true", help="only show that all of it runs")
    parser.add_argument("--parts", default=",".join(PARTS), help="of them, with commas between")
    parser.add_argument("--output", help="a JSON file")
    for name in ("part", "work", "clips", "tasks", "argument"):  # how it calls itself
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    own, arguments = parser.parse_known_args()
    with user_errors():
        if own.part:
            bench = Bench(own.yaml, arguments, own.work, int(own.clips), int(own.tasks), own.quick, own.argument)
            figures = {name: float(value) for name, value in {**PARTS, **INNER_PARTS}[own.part](bench).items()}
            print(json.dumps({**figures, "peak memory (MB)": peak_memory(torch.device(bench.device)) / 1e6}))
            return
        unknown = set(parts := own.parts.split(",")) - PARTS.keys()
        if unknown:
            raise InputError(f"No part {', '.join(sorted(unknown))} of the benchmark: choose from {', '.join(PARTS)}.")
        Bench._load(own.yaml, [*arguments, "--data_folder=."])  # what is wrong is said at once
        figures = {}
        for name, found in benchmark(own.yaml, arguments, own.quick, parts):
            figures[name] = found
            print(table(name, found), flush=True)
            if own.output:
                write_atomically(own.output, json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

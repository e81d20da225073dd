"""Whole runs: how long they take to start and to save, and how memory and time grow with clips and tasks."""

import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from utils.benchmark.bench import REPO, time_calls
from utils.io.errors import InputError
from utils.run.costs import read_costs
from utils.training.brain import TaskBrain
from utils.training.checkpoints import AtomicCheckpointer

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
    """Time the command up to its help, to the line about a wrong setting, and to the first step on a built store."""
    bench = bench.with_data(bench.sizes.clips, 1)
    command = [bench.script, str(bench.yaml), *bench.arguments]
    first = [*command, *bench.data_arguments(), f"--output_base={bench.work / 'starts'}"]
    commands = {
        "import torch (s)": (["-c", "import torch"], 0),
        "--help (s)": ([bench.script, "--help"], 0),
        "a wrong setting (s)": ([*command, "--encoder=none", "--data_folder=."], 2),
        "first step (s)": (["-c", FIRST_STEP, *first], 0),
    }
    _seconds_of("the store", ["-c", FIRST_STEP, *first], 0)
    return {
        f"start: {name}": statistics.median(_seconds_of(name, *how) for _ in range(bench.sizes.starts))
        for name, how in commands.items()
    }


def _seconds_of(name, arguments, code):
    """Time a Python command that ends with an exit code."""
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    with tempfile.TemporaryFile() as said:  # a pipe would be waited for until all workers have closed it
        begun = perf_counter()
        done = subprocess.run([sys.executable, *arguments], stdout=said, stderr=said, cwd=REPO, env=environment)
        seconds = perf_counter() - begun
        said.seek(0)
        if done.returncode != code:
            raise InputError(f"{name} of the benchmark has failed: {said.read().decode(errors='replace')[-1000:]}")
    return seconds


def saving_part(bench):
    """Measure checkpoints: one within a task, one at its end, and their share of a run of very short epochs."""
    bench = bench.with_data(bench.sizes.clips, 1)
    ((first, first_bytes), (last, last_bytes)), (saves, seconds) = bench.apart(measure_saving)
    return {
        "saving: within a task (s)": first,
        "saving: within a task (MB)": first_bytes / 1e6,
        "saving: at its end, without the optimiser (s)": last,
        "saving: at its end, without the optimiser (MB)": last_bytes / 1e6,
        "saving: epochs of one step": bench.sizes.saved_epochs,
        "saving: times": len(saves),
        "saving: share of the task's time (%)": 100 * sum(s for s, _ in saves) / seconds,
        "saving: share before the task's end (%)": 100 * sum(s for s, _ in saves[:-1]) / (seconds - saves[-1][0]),
    }


def measure_saving(bench):
    """Train one task in epochs of one step: two of them, each saved, then more, saved as `ckpt_overhead` allows.

    Returns
    -------
    tuple of (list of (float, int), tuple of (list of (float, int), float))
        Seconds and bytes of the first two checkpoints; those of the others, and all seconds of their training.
    """
    saves, save = [], AtomicCheckpointer.save_and_keep_only

    def timed_save(checkpointer, *args, **kwargs):
        begun = perf_counter()
        save(checkpointer, *args, **kwargs)
        seconds = perf_counter() - begun
        (folder,) = (path for path in Path(checkpointer.checkpoints_dir).iterdir() if path.is_dir())
        saves.append((seconds, sum(file.stat().st_size for file in folder.iterdir())))

    AtomicCheckpointer.save_and_keep_only = timed_save
    bench.train("each-epoch", 1, 2, "--ckpt_overhead=1e6")
    folder = bench.train("some-epochs", 1, bench.sizes.saved_epochs)
    return saves[:2], (saves[2:], read_costs(folder)["train_seconds"])


def growth_part(bench):
    """Measure a few steps a task, and judging, with 1, 4, 16 times the clips, and with 2, 5, 10 tasks."""
    clips, figures = bench.sizes.clips, {}
    settings = [(factor * clips, 1, f"{factor}x clips") for factor in bench.sizes.clip_factors]
    settings += [(clips, n_tasks, f"{n_tasks} tasks") for n_tasks in bench.sizes.tasks]
    for n_clips, n_tasks, what in settings:
        grown = bench.with_data(n_clips, n_tasks)
        seconds, most, save_folder = grown.apart(measure_training)
        if n_tasks > 1:  # the first task also warms up
            figures[f"{what}: last task / second (x)"] = seconds[-1] / seconds[1]
        figures[f"{what}: own memory of training, at most (MB)"] = most / 1e6
        figures[f"{what}: own memory of judging, at most (MB)"] = grown.apart(measure_judging, save_folder) / 1e6
    return figures


def measure_training(bench):
    """Train every task for two epochs, as the second forks workers of a used process.

    Returns
    -------
    tuple of (list of float, int, str)
        Seconds of each task, the most bytes of memory, the folder of the encoders.
    """
    most, objectives, fit_start = 0, {}, TaskBrain.on_fit_start

    def on_fit_start(brain):
        fit_start(brain)
        objectives[brain] = brain.compute_objectives
        brain.compute_objectives = lambda *args: watched(brain, *args)

    def watched(brain, *args):  # a step holds most memory here
        nonlocal most
        loss = objectives[brain](*args)
        most = max(most, own_memory())
        return loss

    TaskBrain.on_fit_start = on_fit_start
    calls = time_calls(TaskBrain, "fit")
    folder = bench.train("growth", bench.sizes.steps, 2)
    return [call.seconds for call in calls], most, str(folder / "save")


def measure_judging(bench, save_folder):
    """Judge the encoders of a run; return the bytes of memory at the end, which are the most: freed memory is kept."""
    bench.judge(save_folder, "growth", "--linclf_train_type=seen")
    return own_memory()


def own_memory():
    """Return the bytes of this process and its workers that no file backs; shared ones count once."""
    total = 0
    for pid in (os.getpid(), *(worker.pid for worker in multiprocessing.active_children())):
        pages = Path(f"/proc/{pid}/smaps_rollup")
        found = re.search(r"^Pss_Anon:\s+(\d+) kB", pages.read_text(), re.MULTILINE) if pages.is_file() else None
        total += 1024 * int(found[1]) if found else 0
    return total

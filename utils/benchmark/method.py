"""What a self-supervised method and a strategy cost, beside SimCLR without a strategy."""

import statistics
from dataclasses import replace
from time import perf_counter, process_time

import torch

from utils.run.costs import read_costs
from utils.training.brain import TaskBrain

NAMED = ("--ssl_method", "--strategy")
STEPS, WARM_UP = 5, 1  # of the second task, as a strategy has nothing to do in the first


def method_part(bench):
    """Measure steps of the second task and memory, of the named method and strategy and of plain SimCLR.

    Steps are compared by the processor's time, which other programs on the machine disturb less, and on a GPU by the
    wall clock's. Nothing is measured if neither is named.
    """
    if not any(argument.startswith(NAMED) for argument in bench.arguments):
        return {}
    plain = replace(bench, arguments=tuple(argument for argument in bench.arguments if not argument.startswith(NAMED)))
    bench, plain = (each.with_data(bench.sizes.clips, 2, batches=STEPS + WARM_UP) for each in (bench, plain))
    here, there = bench.apart(measure_second_task), plain.apart(measure_second_task)
    return {
        "step of the second task (ms)": 1000 * here["step"],
        "step / step of SimCLR without a strategy (x)": here["step"] / there["step"],
        "peak memory (MB)": here["peak"] / 1e6,
        "peak memory / that of SimCLR without a strategy (x)": here["peak"] / there["peak"],
    }


def measure_second_task(bench):
    """Train two tasks briefly; `step`, the median seconds of a step of the second, and `peak`, bytes."""
    laps, fit_batch = [], TaskBrain.fit_batch

    def timed(brain, batch):
        clock = perf_counter if torch.device(brain.device).type == "cuda" else process_time
        begun = clock()
        loss = fit_batch(brain, batch)
        if brain.task.index == 1 and brain.step > WARM_UP:
            laps.append(clock() - begun)
        return loss

    TaskBrain.fit_batch = timed
    folder = bench.train("method", STEPS + WARM_UP, epochs=1)
    return {"step": statistics.median(laps), "peak": read_costs(folder)["peak_memory_bytes"]}

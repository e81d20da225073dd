"""A training step: where its time goes, against a plain step, and against what the device can do."""

import itertools
import statistics
from dataclasses import replace
from time import perf_counter
from types import MethodType

import torch
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from utils.run.costs import read_costs
from utils.training import loop
from utils.training.brain import TaskBrain

PARTS = ("data", "features", "augmentation", "forward", "backward", "optimiser")
LEVERS = ("kept memory", "own layers", "channels_last", "low precision", "compilation")  # what makes a step fast


FREE_STEPS, PROFILED_STEPS = 30, 5  # on a GPU, of one batch


class Clock:
    """Adds up seconds by the name of what was going on, and waits for the device before it looks."""

    def __init__(self, device):
        self.wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
        self.seconds, self.last, self.running = {}, None, True

    def lap(self, name):
        """Add the time since the last call to `name`; None: it doesn't count."""
        if not self.running:
            return
        self.wait()
        now = perf_counter()
        if name is not None and self.last is not None:
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


def step_part(bench):
    """Measure a step as the trainer makes it, and without one and without all of what makes it fast."""
    bench = bench.with_data(bench.sizes.clips, 1, batches=bench.sizes.warm_up + bench.sizes.steps)
    step = bench.apart(measure_step, [])
    off = {"all": step["levers"], **{lever: [lever] for lever in step["levers"][: bench.sizes.levers]}}
    without = {name: bench.apart(measure_step, levers) for name, levers in off.items()}
    median, times = _seconds(step), {name: _seconds(found) for name, found in without.items()}
    # The operations of a compiled module can't be counted.
    flops = (without["all"] if "compilation" in step["levers"] else step)["flops"]
    reached, most = flops / median, step["ceiling"]
    return {
        "step (ms)": 1000 * median,
        **{f"step: {p} (ms)": 1000 * statistics.median(lap.get(p, 0.0) for lap in step["laps"]) for p in PARTS},
        "step: clips (clips/s)": bench.batch_size / median,
        "step: work (GFLOP)": flops / 1e9,
        "step: reached (GFLOP/s)": reached / 1e9,
        f"ceiling of the device, {step['precision']} (GFLOP/s)": most / 1e9,
        "utilisation (%)": 100 * reached / most,
        **({"device busy (%)": 100 * step["busy"] / median} if "busy" in step else {}),
        "plain step: SpeechBrain's layers, fp32, eager, contiguous (ms)": 1000 * times["all"],
        "plain step / step (x)": times["all"] / median,
        **{f"step without {name} / step (x)": time / median for name, time in times.items() if name != "all"},
        "peak memory (MB)": step["peak"] / 1e6,
    }


def _seconds(found):
    """Return the seconds of a step: on a GPU as it runs freely, since waiting for each part takes time of its own."""
    return found.get("free") or statistics.median(sum(lap.values()) for lap in found["laps"])


def measure_step(bench, off):
    """Train some steps with some of the levers off.

    Parameters
    ----------
    bench : utils.benchmark.bench.Bench
    off : list of str
        Of `LEVERS`.

    Returns
    -------
    dict
        `laps`, the seconds of each step by part; `flops` of one step; `levers` that this configuration has; `ceiling`,
        `precision`, and `peak`, bytes of memory. The ceiling is 0 with a lever off.
    """
    found, fit_start = {"laps": []}, TaskBrain.on_fit_start
    if "kept memory" in off:
        loop.keep_freed_memory = lambda: None

    def on_fit_start(brain):
        fit_start(brain)
        found.update(levers=_levers(brain), precision=brain.precision, device=brain.device)
        encoder = brain.modules["embedding_model"]
        if "own layers" in off:
            encoder.forward = MethodType(ECAPA_TDNN.forward, encoder)
        if "channels_last" in off:
            encoder.to(memory_format=torch.contiguous_format)
        _instrument(brain, found, bench.sizes.warm_up, bench.sizes.warm_up + bench.sizes.steps)

    TaskBrain.on_fit_start = on_fit_start
    given = [argument for argument in bench.arguments if not (argument == "--compile" and "compilation" in off)]
    given += ["--precision=fp32"] if "low precision" in off else []
    folder = replace(bench, arguments=given).train("step", bench.sizes.warm_up + bench.sizes.steps, epochs=1)
    sizes, most = bench.sizes, 0.0
    if not off:
        how = (sizes.ceiling_seconds, sizes.ceiling_products, sizes.ceiling_batch)
        most = ceiling(found["device"], found["precision"], *how)
    return {**found, "ceiling": most, "peak": read_costs(folder)["peak_memory_bytes"]}


def _levers(brain):
    """List those that a configuration has."""
    encoder = brain.modules["embedding_model"]
    has = {
        "own layers": isinstance(encoder, ECAPA_TDNN),
        "channels_last": any(weight.ndim == 4 for weight in encoder.parameters()),
        "low precision": brain.precision != "fp32",
        "compilation": brain.compile,
    }
    return [name for name in LEVERS if has.get(name, True)]


def _free_steps(step, device):
    """Time a step on a GPU when nothing waits for its parts; `free` and `busy`, seconds of the step and its kernels."""
    begun = perf_counter()
    for _ in range(FREE_STEPS):
        step()
    torch.cuda.synchronize(device)
    free = (perf_counter() - begun) / FREE_STEPS
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED_STEPS):
            step()
        torch.cuda.synchronize(device)
    kernels = (event.time_range for event in profiler.events() if event.device_type == DeviceType.CUDA)
    return {"free": free, "busy": sum(kernel.elapsed_us() for kernel in kernels) / PROFILED_STEPS / 1e6}


def _instrument(brain, found, warm_up, n_steps):
    """Note where the time of a Brain's steps goes, after some to warm up."""
    clock, fit_batch, objectives = Clock(brain.device), brain.fit_batch, brain.compute_objectives
    optimizers_step, steps = brain.optimizers_step, itertools.count()
    parts = {"compute_features": "features", "mean_var_norm": "features", "augment": "augmentation"}
    for name, part in parts.items():
        brain.modules[name].register_forward_pre_hook(lambda *_: clock.lap("forward"))
        brain.modules[name].register_forward_hook(lambda *_, part=part: clock.lap(part))

    def timed_fit_batch(batch):
        clock.lap("data")
        step = next(steps)
        with FlopCounterMode(display=False) if step == 0 else torch.enable_grad() as counter:
            loss = fit_batch(batch)
        clock.lap("optimiser")
        if step == 0:
            found["flops"] = counter.get_total_flops()
        if step >= warm_up:
            found["laps"].append(clock.seconds)
        clock.seconds = {}
        if step == n_steps - 1 and torch.device(brain.device).type == "cuda":
            clock.running = False
            found.update(_free_steps(lambda: fit_batch(batch), brain.device))
        return loss

    def timed_objectives(*args):
        loss = objectives(*args)
        clock.lap("forward")
        return loss

    def timed_optimizers_step():
        clock.lap("backward")
        optimizers_step()

    brain.fit_batch, brain.compute_objectives = timed_fit_batch, timed_objectives
    brain.optimizers_step = timed_optimizers_step


def ceiling(device, precision, seconds=0.3, products=(1024, 2048, 4096), batch=32):
    """Measure the FLOP/s of the fastest of a few convolutions and matrix products, forward only.

    Parameters
    ----------
    device, precision : str
    seconds : float
        Each is repeated for at least so long.
    products : sequence of int
        Rows and columns of the matrices.
    batch : int
        Of the convolutions.

    Returns
    -------
    float
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    clock, best, cases = Clock(device), 0.0, []
    for channels, height, width in ((64, 100, 40), (256, 50, 20), (512, 25, 10), (1024, 12, 5)):
        x = torch.randn(batch, channels, height, width).to(device, dtype, memory_format=torch.channels_last)
        w = torch.randn(channels, channels, 3, 3).to(device, dtype, memory_format=torch.channels_last)
        flops = 2 * 9 * channels**2 * x[:, 0].numel()
        cases.append((flops, lambda x=x, w=w: torch.nn.functional.conv2d(x, w, padding=1)))
    for n in (*products, *([8192] if torch.device(device).type == "cuda" else [])):
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

"""SIGTERM and SIGINT: the step is finished and saved, the same command goes on, with the same bits; a second one ends
at once. Most runs are in this process, which sends itself the signal at a given moment."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG

from datasets import store_build
from helpers.desk import Desk, write_sounds
from helpers.docs import blocks
from helpers.lab import REPO
from utils.evaluation import embeddings, probe
from utils.evaluation.probe import Evaluation
from utils.run import signals as signals_module
from utils.run.exits import user_errors
from utils.run.signals import Stopped, StopSignals, stop_signals
from utils.training import brain
from utils.training.checkpoints import is_finished, latest_checkpoint

EPOCHS = ("--number_of_epochs=2", "--ckpt_overhead=1e-6")  # no checkpoint but those that are asked for
SAVED = {"supclr": ("embedding_model", "projector"), "sup": ("embedding_model", "classifier")}
# Runs the script named after it in a process group of its own. In a step of task 1 it makes a file, waits for a signal,
# makes another and, if it is told so, waits for a second one.
WAIT_IN_A_STEP = """
import os, runpy, sys, time
from utils.training import brain
from utils.run.signals import stop_signals

marker, both = sys.argv[1], sys.argv[2] == "2"
os.setpgid(0, 0)

def step_end(self, *args, old=brain.TaskBrain.on_fit_batch_end):
    old(self, *args)
    if self.task.index == 1 and self.task.counter.current == 1 and self.step == 1:
        open(marker + "1", "w").close()
        while not stop_signals.signum:
            time.sleep(0.01)
        open(marker + "2", "w").close()
        time.sleep(60 if both else 1)  # a worker that died of it would be noticed by now

brain.TaskBrain.on_fit_batch_end = step_end
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(autouse=True)
def handlers_as_they_were():
    """A run that a signal ended leaves the defaults, since its process is about to end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    stop_signals.signum = 0


class SignalDesk(Desk):
    """Trainers of three tasks with two or more steps an epoch, in folders of this desk's own."""

    def args(self, kind, *args):
        script, yaml, *rest = self.train_args(*EPOCHS, f"--experiment_name={kind}", *args)
        return [script.replace("supclr", kind), str(yaml).replace("supclr", kind), *rest]

    def result(self, kind):
        """The tensors after each task, and the rows of the log."""
        folder = self.runs / f"{kind}+seed_2022"
        places = [latest_checkpoint(folder / "save" / f"task{t}")[0] for t in range(3)]
        tensors = [torch.load(place / f"{name}.ckpt") for place in places for name in SAVED[kind]]
        with open(folder / "train_log.csv", newline="") as file:
            return [{k: v.clone() for k, v in state.items()} for state in tensors], list(csv.reader(file))


def assert_same_result(one, other):
    assert one[1] == other[1] and len(one[1]) == 1 + 3 * 2
    for first, second in zip(one[0], other[0], strict=True):
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A desk on which both kinds of trainers have run undisturbed."""
    desk = SignalDesk(tmp_path_factory.mktemp("straight"))
    write_sounds(desk.sounds)
    for kind in SAVED:
        assert desk.run(desk.args(kind))[0] == 0
    return desk


@pytest.fixture
def desk(straight, tmp_path, capsys):
    """Runs of its own on the same sounds."""
    desk = SignalDesk(straight.folder, capsys)
    desk.runs = tmp_path / "runs"
    return desk


def send(number, when, method, monkeypatch):
    """Signal this process at the beginning of a Brain's method, where `when` says so."""
    old = getattr(brain.TaskBrain, method)

    def signal_first(self, *args, **kwargs):
        if self.task.index == 1 and self.task.counter.current == 1 and when(self, *args):
            os.kill(os.getpid(), number)
        return old(self, *args, **kwargs)

    monkeypatch.setattr(brain.TaskBrain, method, signal_first)


MOMENTS = {  # in task 1: of what method's beginning, when, and what is saved
    "supclr": [
        (signal.SIGTERM, "on_fit_batch_end", lambda brain, *_: brain.step == 1, "step"),
        (signal.SIGINT, "on_fit_batch_end", lambda brain, *_: brain.step == 2, "step"),  # the epoch's last
        (signal.SIGTERM, "on_stage_end", lambda *_: True, "epoch"),
    ],
    "sup": [(signal.SIGTERM, "on_stage_start", lambda _, stage, *__: stage.name == "VALID", "step")],
}


@pytest.mark.parametrize("kind", MOMENTS)
def test_stopped_run_goes_on_with_the_same_bits(straight, desk, monkeypatch, kind):
    """Stopped once and again, in a step, after an epoch's last one, at its end, in a validation."""
    for number, method, when, saved in MOMENTS[kind]:
        with monkeypatch.context() as patch:
            send(number, when, method, patch)
            code, out, said = desk.run(desk.args(kind))
        assert code == 128 + number
        assert said.splitlines()[-1].startswith(f"Stopped by {number.name}. ") and "the same command again" in said
        assert "Traceback" not in out + said
        folder = desk.runs / f"{kind}+seed_2022" / "save"
        assert [is_finished(folder / f"task{t}") for t in range(3)] == [True, False, False]
        _, meta = latest_checkpoint(folder / "task1")
        assert (INTRA_EPOCH_CKPT_FLAG in meta, meta.get("epoch")) == {"step": (True, None), "epoch": (False, 1)}[saved]
    code, out, _ = desk.run(desk.args(kind))
    assert code == 0 and out.count("trained already") == 1
    assert_same_result(desk.result(kind), straight.result(kind))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_stay_until_the_step_is_saved(straight, desk, lab, tmp_path, number):
    """A terminal signals all processes of a group, and so do clusters."""
    command = desk.args("supclr", "--num_workers=2")
    code, said = run_in_a_group(lab, desk, tmp_path, command, number, times=1)
    assert code == 128 + number and "Traceback" not in said and "Exception" not in said, said
    assert f"Stopped by {number.name}" in said.splitlines()[-1]
    assert INTRA_EPOCH_CKPT_FLAG in latest_checkpoint(desk.runs / "supclr+seed_2022/save/task1")[1]
    if number == signal.SIGTERM:
        assert desk.run(command)[0] == 0
        assert_same_result(desk.result("supclr"), straight.result("supclr"))


def test_a_second_signal_ends_at_once(desk, lab, tmp_path):
    command = desk.args("supclr")
    code, said = run_in_a_group(lab, desk, tmp_path, command, signal.SIGTERM, times=2)
    assert code == -signal.SIGTERM and "Stopped by" not in said
    assert latest_checkpoint(desk.runs / "supclr+seed_2022/save/task1") is None


def run_in_a_group(lab, desk, tmp_path, command, number, times):
    """Signal all processes of a run; its exit code and all that it said."""
    script, marker = tmp_path / "wait_in_a_step.py", tmp_path / "step"
    script.write_text(WAIT_IN_A_STEP)
    line = [sys.executable, script, marker, times, REPO / command[0], *command[1:]]
    process = lab.start([str(part) for part in line])
    for i in range(times):
        while not (tmp_path / f"step{i + 1}").exists():
            assert process.poll() is None, process.communicate()[0].decode()
            time.sleep(0.01)
        os.killpg(process.pid, number)
    said = process.communicate(timeout=120)[0].decode()
    with pytest.raises(ProcessLookupError):  # no worker is left
        os.killpg(process.pid, 0)
    return process.returncode, said


def test_stopped_store_build_leaves_nothing_that_looks_finished(desk, tmp_path, monkeypatch):
    decode, command = store_build.load_mono, desk.args("supclr", f"--store_folder={tmp_path / 'store'}")

    def signal_first(path, sample_rate):
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(store_build, "load_mono", decode)
        return decode(path, sample_rate)

    monkeypatch.setattr(store_build, "load_mono", signal_first)
    code, _, said = desk.run(command)
    assert code == 143 and said.count("\n") == 2 and "Stopped by SIGTERM" in said
    assert [path.name for path in (tmp_path / "store").glob("*/*")] == [".lock"]
    assert not desk.runs.exists()
    assert desk.run(command)[0] == 0


def test_stopped_evaluation_goes_on(straight, desk, tmp_path, monkeypatch):
    def command(base):
        args = straight.probe_args("--linclf_train_type=full", f"--output_base={base}")
        return [*args, f"--ssl_checkpoints_dir={straight.runs / 'supclr+seed_2022'}"]

    def table(base):
        return (base / "linclf+seed_2022/accuracy_table.csv").read_text()

    def fit_and_signal(self, *args, old=Evaluation._fit_and_test):
        if (tmp_path / "stopped/linclf+seed_2022/save/task0.json").exists():
            os.kill(os.getpid(), signal.SIGINT)
        return old(self, *args)

    assert desk.run(command(tmp_path / "straight"))[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(probe.Evaluation, "_fit_and_test", fit_and_signal)
        code, _, said = desk.run(command(tmp_path / "stopped"))
    assert code == 130 and "Stopped by SIGINT" in said
    code, out, _ = desk.run(command(tmp_path / "stopped"))
    assert code == 0 and out.count("judged already") == 1
    assert table(tmp_path / "stopped") == table(tmp_path / "straight")


def test_stopped_embedding_keeps_what_it_has(tmp_path, monkeypatch):
    """Where embedding takes longer than a time limit, each start gets some way."""

    class Store:
        ids, lengths = np.array(list("abcdef")), np.full(6, 100)

        def read(self, clip):
            if clip == stop_at:
                raise Stopped(signal.SIGTERM)
            return np.full(100, clip, dtype=np.float32)

    class First(torch.nn.Module):
        def forward(self, wav, *_):
            return wav[:, None, :1]

    monkeypatch.setattr(embeddings, "embed", lambda modules, wav, lengths: wav[:, :1])
    embedder = embeddings.Embedder({"embedding_model": First()}, batch_size=2)
    stop_at = 4
    with pytest.raises(Stopped):
        embeddings.EmbeddingCache(str(tmp_path)).get(embedder, Store(), range(6))
    assert embedder.n_embedded == 4
    stop_at = None
    found = embeddings.EmbeddingCache(str(tmp_path)).get(embedder, Store(), range(6))
    assert embedder.n_embedded == 6 and found[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_how_to_go_on_with_a_command_that_would_begin_anew(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["supclr_train.py", "x.yaml", "--overwrite=True"])
    with pytest.raises(SystemExit) as stop, user_errors():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert stop.value.code == 143
    assert "give the same command without --overwrite." in capsys.readouterr().err


def test_only_the_main_thread_handles_signals():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def script():
        with user_errors():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=script)
    thread.start()
    thread.join()
    with user_errors():
        seen.append(signal.getsignal(signal.SIGTERM))
    assert seen[0] is before and seen[1] is not before and signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_no_step_asks_for_ends_the_run_after_the_training():
    signals, reached = StopSignals(), []
    with pytest.raises(Stopped), signals.handled(), signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append(signals.asked("cpu"))
    assert reached == [signal.SIGTERM]


def test_torchrun_may_pass_on_a_signal_that_was_there_already(monkeypatch):
    """A cluster signals all processes of a job, torchrun its workers then once more: that is no second signal."""
    killed, now, before = [], [100.0], {number: signal.getsignal(number) for number in signals_module.SIGNALS}
    monkeypatch.setattr(signals_module, "monotonic", lambda: now[0])
    for launched in (True, False):
        monkeypatch.setattr(signals_module, "launched", lambda launched=launched: launched)
        signals = StopSignals()
        with contextlib.suppress(Stopped), signals.handled(), signals.deferred():
            signal.raise_signal(signal.SIGTERM)
            assert (signal.getsignal(signal.SIGTERM) is signal.SIG_DFL) == (not launched)
            if launched:
                now[0] += 5.0
                signal.raise_signal(signal.SIGTERM)
                assert signals.signum == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
                now[0] += 6.0
                with monkeypatch.context() as patch:
                    patch.setattr(os, "kill", lambda *args: killed.append(args))
                    signal.raise_signal(signal.SIGTERM)
                assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        for number in signals_module.SIGNALS:
            signal.signal(number, before[number])
    assert killed == [(os.getpid(), signal.SIGTERM)]


def test_all_processes_of_a_run_agree(tmp_path):
    """One of them has the signal; its number is the answer of all."""
    signals = StopSignals()
    group = {"backend": "gloo", "init_method": f"file://{tmp_path / 'rendezvous'}", "rank": 0, "world_size": 1}
    torch.distributed.init_process_group(**group)
    try:
        assert signals.asked("cpu") == 0
        signals.signum = signal.SIGTERM
        assert signals.asked("cpu") == signal.SIGTERM
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("code, requeued", [(143, True), (2, False)])
def test_the_job_of_the_docs_goes_on_after_its_time_limit(tmp_path, code, requeued):
    """With a trainer and a scontrol of the test's own."""
    (job,) = blocks("bash", containing="scontrol requeue")
    (tmp_path / "job.sh").write_text(job.text)
    # Its start takes a while, as a trainer's does: until then the shell has set its trap.
    trainer = f"trap 'exit {code}' TERM; sleep 1; touch started; while :; do sleep 0.05; done"
    for name, content in (("python", trainer), ("scontrol", "echo $* > asked")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{content}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    process = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment)
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=60) == code
    assert (tmp_path / "asked").exists() == requeued
    assert not requeued or (tmp_path / "asked").read_text() == "requeue 17\n"

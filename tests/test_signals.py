"""SIGTERM and SIGINT: a stopped run says how to go on, and the same command ends with the same bits.

A script runs in a fork that signals itself at a given call of a method.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG

from helpers.docs import blocks
from helpers.forks import at_call, torchruns_environment
from models.pann import PANN
from utils.run import signals as signals_module
from utils.run.exits import user_errors
from utils.training import workers
from utils.training.brain import TaskBrain
from utils.training.checkpoints import is_finished, latest_checkpoint

UNASKED = "--ckpt_overhead=1e-6"  # no checkpoint but those that are asked for


def signal_at(number, call, owner, name):
    """Return what a fork does first to signal itself at a call of a function."""
    return lambda: at_call(call, owner, name, lambda: os.kill(os.getpid(), number))


def assert_stopped(fork, number):
    assert fork.wait() == 128 + number, fork.said
    said = fork.said
    assert said.splitlines()[-1].startswith(f"Stopped by {number.name}. ") and "the same command again" in said
    assert "Traceback" not in said and "Exception" not in said


def assert_goes_on(crash_lab, script, folder, *args):
    assert not crash_lab.lost(script, folder, args)


MOMENTS = {  # of task 1, where each task has 2 epochs of 4 steps: the call of a method, since this start; what is saved
    "supclr": [
        (signal.SIGTERM, 9, "on_fit_batch_end", "step"),
        (signal.SIGINT, 3, "on_fit_batch_end", "step"),  # the epoch's last
        (signal.SIGTERM, 1, "on_stage_end", "epoch"),
    ],
    "sup": [(signal.SIGTERM, 6, "on_stage_start", "step")],  # of its validation
}


@pytest.mark.parametrize("script", MOMENTS)
def test_stopped_run_goes_on_with_the_same_bits(crash_lab, script):
    """Stopped several times: in a step, after the last step of an epoch, at the end of an epoch, in a validation."""
    folder = crash_lab.new_folder(script)
    save = folder / f"out/{script}+seed_2022/save"
    for number, call, method, saved in MOMENTS[script]:
        fork = crash_lab.start(script, folder, UNASKED, prepare=signal_at(number, call, TaskBrain, method))
        assert_stopped(fork, number)
        assert [is_finished(save / f"task{t}") for t in range(2)] == [True, False]
        _, meta = latest_checkpoint(save / "task1")
        assert (INTRA_EPOCH_CKPT_FLAG in meta, meta.get("epoch")) == {"step": (True, None), "epoch": (False, 1)}[saved]
    assert_goes_on(crash_lab, script, folder, UNASKED)


def wait_in_a_step(folder, seconds, environment=None):
    """Return what a fork does first to make a file in a step of task 1, wait for a signal, make another file, sleep."""

    def wait():
        (folder / "waits").touch()
        while not signals_module.stop_signals.signum:
            time.sleep(0.01)
        (folder / "waits again").touch()
        time.sleep(seconds)

    def prepare():
        os.environ.update(environment or {})
        signals_module.ECHO = 0.3  # seconds
        at_call(9, TaskBrain, "on_fit_batch_end", wait)

    return prepare


def wait_for(file, fork):
    while not file.exists():
        assert fork.wait(0.01) is None, fork.said


def with_a_slow_worker(prepare):
    """Return what a fork does first so that its second workers are still starting when the first give a batch."""

    def slow(worker_id, start=workers.start_worker):
        time.sleep(0.5 * worker_id)
        start(worker_id)

    def both():
        workers.start_worker = slow
        prepare()

    return both


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_stay_until_the_step_is_saved(crash_lab, number):
    """Terminals and clusters signal all processes of a group."""
    folder, args = crash_lab.new_folder("supclr"), (UNASKED, "--num_workers=2")
    prepare = with_a_slow_worker(wait_in_a_step(folder, 1))  # a dead worker would be noticed
    fork = crash_lab.start("supclr", folder, *args, prepare=prepare)
    wait_for(folder / "waits", fork)
    fork.kill(number)
    assert_stopped(fork, number)
    with pytest.raises(ProcessLookupError):  # no worker is left
        os.killpg(fork.pid, 0)
    assert INTRA_EPOCH_CKPT_FLAG in latest_checkpoint(folder / "out/supclr+seed_2022/save/task1")[1]
    for file in folder.glob("waits*"):
        file.unlink()
    assert_goes_on(crash_lab, "supclr", folder, *args)


def test_a_second_signal_ends_at_once(crash_lab):
    folder = crash_lab.new_folder("supclr")
    fork = crash_lab.start("supclr", folder, UNASKED, prepare=wait_in_a_step(folder, 60))
    for file in ("waits", "waits again"):
        wait_for(folder / file, fork)
        fork.kill(signal.SIGTERM)
    assert fork.wait() == -signal.SIGTERM and "Stopped by" not in fork.said
    assert latest_checkpoint(folder / "out/supclr+seed_2022/save/task1") is None


@pytest.mark.parametrize(("pause", "code"), [(0.0, 143), (0.5, -15)])
def test_torchrun_may_pass_on_a_signal_that_was_there_already(crash_lab, pause, code):
    """A cluster signals all processes of a job, then torchrun signals its workers: that is not a second signal."""
    folder = crash_lab.new_folder("supclr")
    fork = crash_lab.start("supclr", folder, UNASKED, prepare=wait_in_a_step(folder, 1, torchruns_environment(0, 1)))
    wait_for(folder / "waits", fork)
    fork.kill(signal.SIGTERM)
    wait_for(folder / "waits again", fork)
    time.sleep(pause)
    fork.kill(signal.SIGTERM)
    assert fork.wait() == code, fork.said


def test_stopped_store_build_leaves_nothing_that_looks_finished(crash_lab):
    folder = crash_lab.new_folder("supclr")
    fork = crash_lab.start("supclr", folder, prepare=signal_at(signal.SIGTERM, 1, os, "replace"))
    assert_stopped(fork, signal.SIGTERM)
    assert fork.said.count("\n") == 2 and not (folder / "out").exists()
    assert [path.name for path in (folder / "store").glob("*/*")] == [".lock"]
    assert_goes_on(crash_lab, "supclr", folder)


def test_stopped_evaluation_goes_on(crash_lab):
    folder, names = crash_lab.new_folder("linclf"), crash_lab.undisturbed("linclf")[2]
    first, second = (i for i, name in enumerate(names) if name.startswith("replace .task#.json"))
    call = len([name for name in names[: second + 1] if name.startswith("replace")])
    fork = crash_lab.start("linclf", folder, prepare=signal_at(signal.SIGINT, call, os, "replace"))
    assert_stopped(fork, signal.SIGINT)
    assert_goes_on(crash_lab, "linclf", folder)
    assert (folder / "said.txt").read_text().count("judged already") == 1


def test_stopped_embedding_keeps_what_it_has(crash_lab):
    """So embedding that takes longer than a time limit is done after several starts."""
    folder, small = crash_lab.new_folder("linclf"), "--embedding_batch_size=4"
    fork = crash_lab.start("linclf", folder, small, prepare=signal_at(signal.SIGTERM, 3, PANN, "forward"))
    assert_stopped(fork, signal.SIGTERM)
    fork = crash_lab.start("linclf", folder, small)
    assert fork.wait() == 0, fork.said
    # Two encoders of one and two tasks and a random one of both, 20 clips a task; two batches were embedded before.
    metrics = json.loads((folder / "out/linclf+seed_2022/metrics.json").read_text())
    assert 0 < 20 + 40 + 40 - metrics["clips_embedded"] <= 2 * 4


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
    script()
    assert seen[0] is before and seen[1] is not before and signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_no_step_asks_for_ends_the_run_after_the_training():
    signals, reached = signals_module.StopSignals(), []
    with pytest.raises(signals_module.Stopped), signals.handled(), signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append(signals.asked("cpu"))
    assert reached == [signal.SIGTERM]


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

"""On a GPU: no sync within a step but the reads of its loss and norm, fp16, resume, the other device, compilation."""

import signal
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from helpers.checks import weights_of
from helpers.crashes import Dying
from helpers.lab import edited
from models.methods import METHODS
from supclr_train import SupCLR
from utils.run.signals import Stopped
from utils.strategies import STRATEGIES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TASKS = "--task_classes=[[3,8],[9,4]]"
SAVING = ("--ckpt_interval_steps=1", "--ckpt_overhead=1000")


def learn(lab, folder, *args, brain_class=SupCLR, device="cuda", yaml="us8k/supclr_train.yaml"):
    where = (f"--device={device}", f"--output_base={folder}", TASKS, "--experiment_name=run")
    run, stream = lab.learn(brain_class, yaml, *lab.quick, *where, *args)
    return Path(run.folder), stream


class Unsynced(SupCLR):
    """Raises where the forward pass or the backward pass waits for the device."""

    def compute_forward(self, batch, stage):
        torch.cuda.set_sync_debug_mode("error")
        return super().compute_forward(batch, stage)

    def check_loss_isfinite(self, loss):
        torch.cuda.set_sync_debug_mode("default")
        super().check_loss_isfinite(loss)
        torch.cuda.set_sync_debug_mode("error")

    def optimizers_step(self):
        torch.cuda.set_sync_debug_mode("default")
        super().optimizers_step()

    def on_fit_batch_start(self, batch, should_step):
        torch.cuda.set_sync_debug_mode("error")
        super().on_fit_batch_start(batch, should_step)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        torch.cuda.set_sync_debug_mode("default")
        super().on_stage_end(stage, stage_loss, epoch)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("encoder", ["pann_tiny", "ecapa_tiny"])
def test_forward_and_backward_pass_do_not_wait_for_the_device(lab, tmp_path, encoder, precision):
    args = (f"--encoder={encoder}", f"--precision={precision}", "--sup_weight=1", "--use_mixup=True")
    shifted = (("time_roll: 0", "time_roll: 100"), ("freq_shift: 0", "freq_shift: 5"))
    yaml = edited(tmp_path / "supclr_train.yaml", "us8k/supclr_train.yaml", *shifted)
    try:
        folder, _ = learn(lab, tmp_path / "run", *args, "--num_workers=2", brain_class=Unsynced, yaml=yaml)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert pd.read_csv(folder / "train_log.csv")["loss"].notna().all()


@pytest.mark.parametrize("method", METHODS)
def test_no_method_waits_for_the_device(lab, tmp_path, method):
    try:
        folder, _ = learn(lab, tmp_path, f"--ssl_method={method}", "--ssl_dim=32", brain_class=Unsynced)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert pd.read_csv(folder / "train_log.csv")["loss"].notna().all()


@pytest.mark.parametrize("strategy", sorted(STRATEGIES.keys() - {"none"}))
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_every_strategy_trains(lab, tmp_path, strategy, precision):
    args = (f"--strategy={strategy}", "--sup_weight=1", "--replay_num_keep=3", f"--precision={precision}")
    folder, _ = learn(lab, tmp_path, *args, "--decor_clusters=4")
    assert pd.read_csv(folder / "train_log.csv")["loss"].notna().all()
    assert all(weight.isfinite().all() for weight in weights_of(folder).values())


def on_cpu(folder, task=1):
    return {name: weight.cpu() for name, weight in weights_of(folder, task).items()}


def assert_close(one, other, tolerance, smallest=0.0):
    """Compare the last task's weights: cuDNN's sums have no fixed order, so a GPU's bits may differ from run to run.

    A tensor's values count as `smallest` each, if they are smaller: a bias that has hardly left 0 is noise alone.
    """
    one, other = on_cpu(one), on_cpu(other)
    assert one.keys() == other.keys()
    for name in one:
        a, b = one[name].double(), other[name].double()
        size = max(float(b.norm()), smallest * b.numel() ** 0.5, 1e-3)
        assert float((a - b).norm()) <= tolerance * size, name


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_run_resumes_in_mid_epoch(lab, tmp_path, precision):
    args = (f"--precision={precision}", "--sup_weight=1", *SAVING)
    straight, _ = learn(lab, tmp_path / "straight", *args)
    with pytest.raises(Stopped):
        learn(lab, tmp_path / "stopped", *args, brain_class=Dying)
    resumed, _ = learn(lab, tmp_path / "stopped", *args)
    logs = [pd.read_csv(folder / "train_log.csv") for folder in (straight, resumed)]
    assert len(logs[0]) == len(logs[1]) == 4
    assert logs[1]["loss"].to_numpy() == pytest.approx(logs[0]["loss"].to_numpy(), rel=1e-3)
    assert_close(resumed, straight, 1e-3)


@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_the_other_device(lab, tmp_path, devices):
    """Noise and masks are drawn on the device, so the weights agree with those of one device roughly only."""
    args = ("--precision=fp32", *SAVING)
    with pytest.raises(Stopped):
        learn(lab, tmp_path, *args, brain_class=Dying, device=devices[0])
    first = on_cpu(tmp_path / "run+seed_2022", 0)
    folder, _ = learn(lab, tmp_path, *args, device=devices[1])
    assert all(torch.equal(first[name], now) for name, now in on_cpu(folder, 0).items())
    log = pd.read_csv(folder / "train_log.csv")
    assert len(log) == 4 and log["loss"].notna().all()
    straight, _ = learn(lab, tmp_path / "straight", *args, device=devices[0])
    assert_close(folder, straight, 0.25, smallest=0.02)


STOPPED = """
import os, runpy, signal, sys
from helpers.forks import at_call
from utils.training.brain import TaskBrain

at_call(7, TaskBrain, "on_fit_batch_end", lambda: os.kill(os.getpid(), signal.SIGTERM))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_sigterm_in_a_step_saves_it_and_the_same_command_goes_on(lab, tmp_path):
    def command(base):
        script, *args = lab.train_args(base, TASKS, "--device=cuda", "--precision=fp32", "--ckpt_overhead=1e-6")
        return lab.command(script, *args)

    first = command(tmp_path / "one")
    stopped = lab.start([sys.executable, "-c", STOPPED, *first[1:]])
    said = stopped.communicate(timeout=300)[0].decode()
    assert stopped.returncode == 128 + signal.SIGTERM, said
    assert "Stopped by SIGTERM" in said and "Traceback" not in said
    for base in (tmp_path / "one", tmp_path / "two"):
        done = lab.start(command(base))
        said = done.communicate(timeout=300)[0].decode()
        assert done.returncode == 0, said
    assert_close(*(next((tmp_path / name).iterdir()) for name in ("one", "two")), 1e-3)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_is_that_of_eager_training(lab, tmp_path, mode):
    """A compiled encoder draws other dropout, so the losses are alike, not equal."""
    args = ("--precision=fp32", "--ssl_weight=1")
    compiled = ("--compile", "--compile_module_keys=embedding_model", f"--compile_mode={mode}")
    folders = [learn(lab, tmp_path / str(len(how)), *args, *how)[0] for how in ((), compiled)]
    losses = [pd.read_csv(folder / "train_log.csv")["loss"].to_numpy() for folder in folders]
    assert losses[1] == pytest.approx(losses[0], rel=0.3)


def test_encoders_are_judged_alike_on_both_devices(lab, tmp_path):
    folder, _ = learn(lab, tmp_path / "train", "--precision=fp32")
    tables = []
    for device in ("cuda", "cpu"):
        judged, _ = lab.judge(tmp_path / device, folder, TASKS, "--linclf_train_type=full", f"--device={device}",
                              "--precision=fp32", "--number_of_epochs=2", "--warmup_epochs=0")  # fmt: skip
        tables.append(pd.read_csv(judged / "accuracy_table.csv", index_col="encoder").to_numpy())
    assert abs(tables[0] - tables[1]).max() <= 0.26  # one clip of four

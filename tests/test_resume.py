"""Runs that die and go on, against the straight run, bit for bit; and SpeechBrain's traps with one Brain per task."""

import csv
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from speechbrain.utils.checkpoints import Checkpointer

from supclr_train import SupCLR
from utils.training import brain, loop
from utils.training.brain import TaskBrain
from utils.training.checkpoints import AtomicCheckpointer, is_finished, latest_checkpoint, load_weights
from utils.training.loop import plan_tasks, train_tasks

NAMES = ("embedding_model", "projector", "predictor", "classifier")
EPOCHS = 6
SETTINGS = (
    "--number_of_epochs=6", "--sup_weight=0.5", "--use_mixup=True", "--replay_num_keep=2",
    "--task_classes=[[3,8],[9,4],[1,7]]",
)  # fmt: skip
# Runs the script that is named after it, and kills the process at one moment of task 1.
DIE = """
import os, runpy, signal, sys
from utils.training import brain
from utils.training import checkpoints
from speechbrain.utils.checkpoints import Checkpointer

moment, task = sys.argv[1], None

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def start(self, *args, old=brain.TaskBrain.on_fit_start, **kwargs):
    global task
    old(self, *args, **kwargs)
    task = self.task

def stage_end(self, stage, loss, epoch, old=brain.TaskBrain.on_stage_end):
    if task.index == 1 and epoch == 2:
        die()
    old(self, stage, loss, epoch)

def sync(path, old=checkpoints._sync):
    if task.index == 1 and task.counter.current == 2:
        die()
    old(path)

def delete(checkpoint, verbosity=None, old=Checkpointer._delete_checkpoint):
    if task.index == 1 and task.counter.current == task.epochs:
        for name in os.listdir(checkpoint.path):
            if name != "CKPT.yaml":
                os.unlink(os.path.join(checkpoint.path, name))
        die()
    old(checkpoint, verbosity)

brain.TaskBrain.on_fit_start = start
if moment == "after_the_last_step":
    brain.TaskBrain.on_stage_end = stage_end
elif moment == "while_writing":
    checkpoints._sync = sync
elif moment == "while_deleting":
    Checkpointer._delete_checkpoint = staticmethod(delete)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def weights_of(folder, task):
    """All tensors of a task's checkpoint, by module and name."""
    path = latest_checkpoint(folder / "save" / f"task{task}")[0]
    loaded = {name: torch.load(path / f"{name}.ckpt") for name in NAMES}
    return {f"{name}.{entry}": tensor for name in NAMES for entry, tensor in loaded[name].items()}


def assert_same_weights(folder, other):
    first, second = weights_of(folder, 2), weights_of(other, 2)
    assert first.keys() == second.keys() and len(first) > 30
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def read_log(folder):
    with open(folder / "train_log.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def command(lab, base, *args):
    start = ("hparams/us8k/supclr_train.yaml", *lab.tiny, *lab.quick, f"--data_folder={lab.sounds}")
    return lab.command("supclr_train.py", *start, f"--output_base={base}", *SETTINGS, *args)


@pytest.fixture(scope="module")
def straight(lab, tmp_path_factory):
    """The run folder of a run that nothing disturbed."""
    return lab.train(tmp_path_factory.mktemp("straight") / "out", *SETTINGS)[0]


def test_workers_change_no_bit(lab, straight, tmp_path):
    folder, _ = lab.train(tmp_path / "out", *SETTINGS, "--num_workers=2", "--experiment_name=workers")
    assert_same_weights(folder, straight)
    assert read_log(folder) == read_log(straight)


# Every epoch is saved, whatever it costs; or every step.
@pytest.mark.parametrize(
    "options",
    [
        ("--num_workers=0", "--ckpt_overhead=1000"),
        ("--num_workers=2", "--ckpt_overhead=1000"),
        ("--num_workers=0", "--ckpt_interval_steps=1"),
    ],
    ids=["0 workers", "2 workers", "checkpoints at every step"],
)
def test_killed_at_a_random_moment_of_the_second_task(lab, straight, tmp_path, options):
    folder = tmp_path / "out" / "supclr+seed_2022"
    log, epoch, delay = folder / "train_log.txt", random.randint(2, EPOCHS - 2), random.uniform(0, 0.1)
    process = lab.start(command(lab, tmp_path / "out", *options))
    reached = f"task: 1, epoch: {epoch},"
    while process.poll() is None and not (log.is_file() and reached in log.read_text()):
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    said = process.communicate()[0].decode()
    moment = f"killed {delay:.3f} s after epoch {epoch}; it had said: {said}"
    assert process.returncode == -signal.SIGKILL and not is_finished(folder / "save" / "task2"), moment
    between = is_finished(folder / "save" / "task1")  # else task 1 has the checkpoint of an epoch, or of a step
    _, said = lab.train(tmp_path / "out", *SETTINGS, *options)
    assert said.count("trained already") + said.count(" clips, 6 epochs,") == 3, said
    assert between or "Loading a checkpoint from" in (folder / "log.txt").read_text(), moment
    assert_same_weights(folder, straight)
    assert read_log(folder) == read_log(straight), moment


@pytest.mark.parametrize("moment", ["after_the_last_step", "while_writing", "while_deleting"])
def test_killed_at_the_worst_moment(lab, straight, tmp_path, moment):
    """After the last step's checkpoint of an epoch, when no step is left; while a checkpoint is half written; and when
    a half-deleted one, which still looks whole, stands beside the finished one."""
    options = ("--ckpt_interval_steps=1",) if moment == "after_the_last_step" else ("--ckpt_overhead=1000",)
    script = tmp_path / "die.py"
    script.write_text(DIE)
    line = command(lab, tmp_path / "out", *options)
    process = lab.start([sys.executable, str(script), moment, *line[1:]])
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == -signal.SIGKILL, said
    folder = tmp_path / "out" / "supclr+seed_2022"
    left = sorted(path.name for path in (folder / "save" / "task1").iterdir())
    half = [name for name in left if name.startswith(".writing-CKPT")]
    assert len(half) == (moment == "while_writing") and len(left) > len(half), left
    assert len(left) == 2 or moment == "after_the_last_step", left
    _, said = lab.train(tmp_path / "out", *SETTINGS, *options)
    assert said.count("trained already") == (2 if moment == "while_deleting" else 1)
    assert_same_weights(folder, straight)
    assert read_log(folder) == read_log(straight)
    assert not list((folder / "save").glob("*/.writing-*"))


def test_a_finished_run_run_again_changes_nothing(lab, straight):
    logs = {path: path.read_bytes() for path in (straight / "train_log.txt", straight / "train_log.csv")}
    paths = [*straight.glob("save/task*"), *straight.glob("save/task*/*"), *straight.glob("save/task*/*/*")]
    times = {path: path.stat().st_mtime_ns for path in paths}
    tables = {path: path.read_bytes() for path in straight.glob("save/*.csv")}
    assert len(times) == 3 * (1 + 1 + 7) and len(tables) == 9
    _, said = lab.train(straight.parent, *SETTINGS)
    assert [line for line in said.splitlines() if line.startswith("task ")] == [
        f"task {t}/3: trained already" for t in (1, 2, 3)
    ]
    paths = [*straight.glob("save/task*"), *straight.glob("save/task*/*"), *straight.glob("save/task*/*/*")]
    assert {path: path.stat().st_mtime_ns for path in paths} == times
    assert {path: path.read_bytes() for path in tables} == tables
    assert {path: path.read_bytes() for path in logs} == logs


# Checkpoints


class Counted(torch.nn.Linear):
    """A module with something to save."""

    def __init__(self, value):
        super().__init__(1, 1, bias=False)
        torch.nn.init.constant_(self.weight, value)


def test_a_half_written_checkpoint_is_ignored_and_swept(tmp_path, monkeypatch):
    module = Counted(1.0)
    checkpointer = AtomicCheckpointer(tmp_path, {"model": module})
    checkpointer.save_checkpoint(meta={"finished": True})
    torch.nn.init.constant_(module.weight, 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save_checkpoint(meta={"finished": False})
    assert len(list(tmp_path.glob(".writing-*"))) == 1
    assert is_finished(tmp_path)
    fresh = Counted(0.0)
    load_weights(tmp_path, {"model": fresh})
    assert fresh.weight.item() == 1.0
    AtomicCheckpointer(tmp_path, {"model": fresh}).recover_if_possible()
    assert fresh.weight.item() == 1.0
    assert [path.name[:5] for path in tmp_path.iterdir()] == ["CKPT+"]


def test_looking_for_a_checkpoint_makes_no_folder(tmp_path):
    assert latest_checkpoint(tmp_path / "task0") is None and not is_finished(tmp_path / "task0")
    assert not (tmp_path / "task0").exists()


# One Brain per task


@pytest.mark.parametrize("name", NAMES)
def test_each_task_trains(straight, name):
    """Not so where tasks share a checkpoint folder: the second finds the first's epoch counter at its end."""
    stages = [weights_of(straight, task) for task in range(3)]
    for first, second in zip(stages, stages[1:], strict=False):
        for entry in (e for e in first if e.startswith(name) and e.endswith("weight")):
            assert not torch.equal(first[entry], second[entry]), entry


def test_a_loss_without_weight_leaves_its_head_alone(lab, tmp_path):
    """Its weights don't decay either: the classifier after task 1 is the one of the start."""
    hparams, modules = train(lab, SupCLR, tmp_path, "--sup_weight=0", "--number_of_epochs=1", "--warmup_epochs=0")
    start = hparams["fresh_classifier"]
    assert all(torch.equal(value, start[name]) for name, value in modules["classifier"].state_dict().items())


@pytest.mark.parametrize(
    "opt_class, wanted",
    [
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), True),
        (partial(torch.optim.AdamW, lr=0.1), True),
        (partial(torch.optim.SGD, lr=0.1, foreach=True), None),  # as chosen
        (partial(torch.optim.SGD, lr=0.1, fused=False), False),
        (partial(torch.optim.Rprop, lr=0.1), None),  # hasn't it
    ],
)
def test_optimizers_are_fused_on_a_gpu_where_they_can_be(opt_class, wanted):
    trainer = SupCLR(None, modules={"embedding_model": torch.nn.Linear(2, 2)}, opt_class=opt_class)

    def fused():
        trainer.init_optimizers()
        return trainer.optimizers_dict["optimizer"].param_groups[0].get("fused")

    assert not fused()
    trainer.device_type = "cuda"
    assert fused() is wanted
    trainer.scaler = torch.GradScaler("cpu", enabled=True)  # as in fp16
    assert fused() is (wanted and None)


@pytest.mark.parametrize("opt_class", [partial(torch.optim.SGD, momentum=0.9), torch.optim.AdamW])
def test_a_state_saved_on_a_gpu_does_not_choose_for_a_cpu(opt_class):
    """A fused optimizer on a CPU takes tensors of different strides for alike."""
    trainer = SupCLR(None, modules={"embedding_model": torch.nn.Linear(2, 2)}, opt_class=partial(opt_class, lr=1))
    trainer.init_optimizers()
    saved = opt_class(trainer.modules.parameters(), lr=0.5, fused=True).state_dict()
    trainer.optimizers_dict["optimizer"].load_state_dict(saved)
    group = trainer.optimizers_dict["optimizer"].param_groups[0]
    assert not group["fused"] and group["lr"] == 0.5 and saved["param_groups"][0]["fused"]


def test_a_state_saved_on_a_cpu_goes_to_a_gpu():
    """The fused Adam needs its count of steps there too."""
    network = torch.nn.Linear(2, 2)
    saving = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    saving.step()
    saved = saving.state_dict()
    trainer = SupCLR(None, modules={"embedding_model": network}, opt_class=torch.optim.AdamW)
    trainer.modules.to("meta")
    trainer.device_type = "cuda"
    trainer.init_optimizers()
    optimizer = trainer.optimizers_dict["optimizer"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["fused"]
    assert {state["step"].device.type for state in optimizer.state.values()} == {"meta"}


def train(lab, brain_class, folder, *args):
    """Train two tasks in this process; hparams (with the classifier's first state) and modules."""
    hparams, run_opts, data = lab.load(
        "us8k/supclr_train.yaml", *lab.quick, f"--output_base={folder}", "--task_classes=[[3,8],[9,4]]", *args
    )
    modules = {**hparams["modules"], "classifier": hparams["classifier"](n_classes=len(data.classes))}
    hparams["fresh_classifier"] = {k: v.clone() for k, v in modules["classifier"].state_dict().items()}
    train_tasks(brain_class, hparams, run_opts, data, plan_tasks(hparams, run_opts, data), modules)
    return hparams, modules


class Watched(SupCLR):
    """Notes what a training does."""

    seen = []

    def init_optimizers(self):
        """Note each optimizer's rate, and the norm of its gradient, at each of its steps."""
        super().init_optimizers()
        for name, optimizer in self.optimizers_dict.items():
            optimizer.register_step_pre_hook(lambda opt, *_, name=name: self.note_step(name, opt))

    def note_step(self, name, optimizer):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])).item()
        parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
        rate = {group["lr"] for group in optimizer.param_groups}
        key = (self.task.index, self.task.counter.current)
        self.seen.append({"name": name, "lr": rate, "norm": norm, "parameters": parameters, "epoch": key})

    def compute_forward(self, batch, stage):
        """Note the batch."""
        key = (self.task.index, self.task.counter.current)
        views = zip(batch.id, batch.view1.data, batch.view2.data, strict=True)
        self.seen.append({"name": "batch", "epoch": key, "clips": {int(c): (a, b) for c, a, b in views}})
        return super().compute_forward(batch, stage)


@pytest.fixture(scope="module")
def watched(lab, tmp_path_factory):
    """What a training of two tasks did, and its modules."""
    Watched.seen = []
    settings = ("--sup_weight=1", "--max_grad_norm=0.01", "--number_of_epochs=3")
    hparams, modules = train(lab, Watched, tmp_path_factory.mktemp("watched"), *settings)
    return Watched.seen, hparams, modules


def test_the_predictor_has_an_optimizer_and_a_constant_rate_of_its_own(watched):
    seen, hparams, modules = watched
    steps = {name: [s for s in seen if s["name"] == name] for name in ("optimizer", "predictor_optimizer")}
    assert len(steps["optimizer"]) == len(steps["predictor_optimizer"]) == 2 * 3 * 4
    predictor = {id(p) for p in modules["predictor"].parameters()}
    others = {id(p) for name in NAMES if name != "predictor" for p in modules[name].parameters()}
    assert all(step["parameters"] == predictor for step in steps["predictor_optimizer"])
    assert all(step["parameters"] == others for step in steps["optimizer"])
    base = hparams["lr"]
    assert all(step["lr"] == {base} for step in steps["predictor_optimizer"])
    rates = [step["lr"].pop() for step in steps["optimizer"]]
    assert rates[:12] == rates[12:]  # each task has the schedule anew
    assert rates[:5] == pytest.approx([0, base / 4, base / 2, 3 * base / 4, base])
    assert rates[4:12] == sorted(rates[4:12], reverse=True) and rates[11] < base / 10


def test_clipping_covers_both_optimizers(watched):
    """SpeechBrain clips the first group of each: the norm is at the limit, as it was above it."""
    for name in ("optimizer", "predictor_optimizer"):
        norms = [step["norm"] for step in watched[0] if step["name"] == name]
        assert norms and all(norm == pytest.approx(0.01, rel=1e-3) for norm in norms), name


def test_every_epoch_draws_other_orders_and_other_crops(watched):
    """So the sampler is told the epoch: SpeechBrain does that for `brain.train_sampler` only."""
    by_epoch = {}
    for batch in (b for b in watched[0] if b["name"] == "batch"):
        by_epoch.setdefault(batch["epoch"], {}).update(batch["clips"])
    assert sorted(by_epoch) == [(task, epoch) for task in (0, 1) for epoch in (1, 2, 3)]
    for task in (0, 1):
        first, second, third = (by_epoch[task, epoch] for epoch in (1, 2, 3))
        assert len(first) == 16 and first.keys() == second.keys() == third.keys()
        assert len({tuple(epoch) for epoch in (first, second, third)}) == 3
        # The clips of 0.3 s are whole; most are longer, and cropped.
        same = [clip for clip in first if torch.equal(first[clip][0], second[clip][0])]
        assert len(same) <= 4
        assert sum(torch.equal(one, two) for one, two in first.values()) <= 4


def test_a_checkpoint_at_the_end_of_an_epoch_has_no_step(lab, tmp_path, monkeypatch):
    """SpeechBrain resets step and average after the hook that saves: a resumed run would average from there on."""
    monkeypatch.setattr(Checkpointer, "_delete_checkpoint", staticmethod(lambda *_, **__: None))
    monkeypatch.setattr(loop, "sweep_replaced", lambda folder: None)
    train(lab, SupCLR, tmp_path, "--ckpt_overhead=1000", "--number_of_epochs=2")
    saved = sorted(Path(tmp_path).glob("*/save/task*/CKPT*/brain.ckpt"))
    assert len(saved) == 2  # the first epoch of both tasks; the finished checkpoint keeps no Brain
    for path in saved:
        content = yaml.safe_load(path.read_text())
        assert (content["step"], content["avg_train_loss"], content["losses"]) == (0, 0.0, {})


def test_saving_keeps_to_its_share_of_the_time(lab, tmp_path, monkeypatch):
    """An epoch takes 1 s here, a save 0.5 s, a first one was thought to take 0.3 s."""
    now, saved = [0.0], []
    old_save, old_end = AtomicCheckpointer.save_and_keep_only, TaskBrain.on_stage_start

    def save(self, meta, **kwargs):
        old_save(self, meta=meta, **kwargs)
        saved.append(meta["epoch"])
        now[0] += 0.5

    def start(self, *args):
        old_end(self, *args)
        now[0] += 1.0

    monkeypatch.setattr(AtomicCheckpointer, "save_and_keep_only", save)
    monkeypatch.setattr(TaskBrain, "on_stage_start", start)
    monkeypatch.setattr(brain, "_seconds_to_save", lambda modules: 0.3)
    monkeypatch.setattr(brain, "monotonic", lambda: now[0])
    train(lab, SupCLR, tmp_path, "--ckpt_overhead=0.1", "--number_of_epochs=20", "--task_classes=[[3,8]]")
    assert saved == [3, 8, 13, 18, 20]

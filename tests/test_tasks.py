"""One Brain per task and SpeechBrain's traps there: optimizers, order and crops of the clips, the time for saving."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from helpers import spies
from helpers.checks import weights_of
from helpers.lab import edited
from utils.training import saving
from utils.training.brain import TaskBrain
from utils.training.checkpoints import AtomicCheckpointer

TWO_TASKS = "--task_classes=[[3,8],[9,4]]"


@pytest.mark.parametrize("name", ["embedding_model", "projector", "predictor", "classifier"])
def test_each_task_trains(encoder, name):
    """With one checkpoint folder for all tasks the second would find the finished epoch counter of the first."""
    stages = [weights_of(encoder, task) for task in range(5)]
    for first, second in zip(stages, stages[1:], strict=False):
        for entry in (e for e in first if e.startswith(name) and e.endswith("weight")):
            assert not torch.equal(first[entry], second[entry]), entry


@pytest.mark.parametrize(("idle", "busy"), [("classifier", "projector"), ("projector", "classifier")])
def test_a_loss_without_weight_leaves_its_head_alone(lab, tmp_path, idle, busy):
    """Weight decay doesn't change it either."""
    weights = (f"--sup_weight={int(busy == 'classifier')}", f"--ssl_weight={int(busy == 'projector')}")
    folder, _ = lab.train(tmp_path, *weights, TWO_TASKS)
    first, second = weights_of(folder, 0), weights_of(folder, 1)
    same = {name for name in first if torch.equal(first[name], second[name])}
    assert {name for name in first if name.startswith(idle)} <= same
    assert not [name for name in same if name.startswith(busy) and name.endswith("weight")]


# Optimizers


@pytest.fixture(scope="module")
def watched(lab, tmp_path_factory):
    """A training of two tasks with four steps an epoch: run folder, steps of the optimizers, views."""
    base = tmp_path_factory.mktemp("watched")
    spies.reset()
    yaml = edited(base / "watched.yaml", "us8k/supclr_train.yaml", *spies.CHANGES[:2])
    settings = ("--sup_weight=1", "--max_grad_norm=0.01", "--number_of_epochs=3", "--lr=0.1", TWO_TASKS)
    folder, _ = lab.train(base / "out", *settings, yaml=yaml)
    return folder, spies.notes["steps"], spies.notes["views"]


def of_each_optimizer(watched):
    """Part the steps: those of the predictor's optimizer, those of the other one."""
    folder, steps, _ = watched
    state = {name: tensor for name, tensor in weights_of(folder).items() if name.startswith("predictor")}
    shapes = [tensor.shape for name, tensor in state.items() if "running" not in name and "batches" not in name]
    own = [sorted(step["shapes"]) == sorted(shapes) for step in steps]
    return [[step for step, is_own in zip(steps, own, strict=True) if is_own == wanted] for wanted in (True, False)]


def test_the_predictor_has_an_optimizer_and_a_constant_rate_of_its_own(watched):
    predictors, others = of_each_optimizer(watched)
    assert len(predictors) == len(others) == 2 * 3 * 4
    assert {step["lr"] for step in predictors} == {0.1}
    rates = [step["lr"] for step in others]
    assert rates[:12] == rates[12:]  # each task has the schedule anew
    assert rates[:5] == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])
    assert rates[4:12] == sorted(rates[4:12], reverse=True) and rates[11] < 0.01


def test_clipping_covers_both_optimizers(watched):
    """SpeechBrain clips the first group of each optimizer. All norms were above the limit, so they are at the limit."""
    for steps in of_each_optimizer(watched):
        assert all(step["norm"] == pytest.approx(0.01, rel=1e-3) for step in steps)


def drawn(views):
    """Return, for each view in each of three epochs, the energies of the clips in order: they identify the crops."""
    energies = [[round(energy, 4) for energy in wav.double().square().sum(1).tolist()] for wav in views[: 3 * 4 * 2]]
    return [sum(energies[8 * epoch + view : 8 * epoch + 8 : 2], []) for epoch in range(3) for view in (0, 1)]


def test_every_epoch_and_view_draws_other_crops(watched):
    crops = [set(view) for view in drawn(watched[2])]
    assert [len(view) for view in crops] == [16] * 6
    # The clips of 0.3 s are whole; most are longer, and cropped.
    assert all(len(one & other) <= 4 for i, one in enumerate(crops) for other in crops[:i])


def test_every_epoch_draws_another_order(lab, tmp_path):
    """SpeechBrain tells the epoch only to `brain.train_sampler`."""
    spies.reset()
    yaml = edited(tmp_path / "watched.yaml", "us8k/simclr_train.yaml", *spies.CHANGES)
    settings = ("--train_duration=1", "--number_of_epochs=3", "--task_classes=[[3,8]]")  # seconds: clips are whole
    lab.train(tmp_path / "out", *settings, yaml=yaml, kind="simclr")
    orders = drawn(spies.notes["views"])
    assert orders[::2] == orders[1::2] and len({tuple(order) for order in orders}) == 3
    assert len(set(orders[0])) == 16 and len({tuple(sorted(order)) for order in orders}) == 1


def make_brain(opt_class):
    task = SimpleNamespace(method=None, strategy=None)
    return TaskBrain(task, modules={"embedding_model": torch.nn.Linear(2, 2)}, opt_class=opt_class)


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
    trainer = make_brain(opt_class)

    def fused():
        trainer.init_optimizers()
        return trainer.optimizers_dict["optimizer"].param_groups[0].get("fused")

    assert not fused()
    trainer.device_type = "cuda"
    assert fused() is wanted
    trainer.scaler = torch.GradScaler("cpu", enabled=True)  # as in fp16
    assert fused() is (wanted and None)


@pytest.mark.parametrize("opt_class", [partial(torch.optim.SGD, momentum=0.9), torch.optim.AdamW])
def test_a_state_fits_the_device_that_it_is_loaded_for(opt_class):
    """On a CPU a fused optimizer takes tensors of different strides for alike. On a GPU, for which "meta" stands here,
    the fused Adam needs its count of steps there too."""
    trainer = make_brain(partial(opt_class, lr=1))
    trainer.modules["embedding_model"](torch.ones(1, 2)).sum().backward()
    for device, fused in (("cpu", True), ("cuda", False)):
        saving = opt_class(trainer.modules.parameters(), lr=0.5, fused=fused)
        saving.step()
        trainer.device_type = device
        trainer.modules.to("cpu" if device == "cpu" else "meta")
        trainer.init_optimizers()
        optimizer = trainer.optimizers_dict["optimizer"]
        optimizer.load_state_dict(saving.state_dict())
        (group,) = optimizer.param_groups
        assert bool(group["fused"]) == (device == "cuda") and group["lr"] == 0.5
    assert {state["step"].device.type for state in optimizer.state.values() if "step" in state} <= {"meta"}


# Checkpoints


def test_saving_keeps_to_its_share_of_the_time(lab, tmp_path, monkeypatch):
    """An epoch takes 1 s here, a save 0.5 s; the estimate for the first save is 0.3 s."""
    now, saved = [0.0], []
    old_save, old_start = AtomicCheckpointer.save_and_keep_only, TaskBrain.on_stage_start

    def save(self, meta, **kwargs):
        old_save(self, meta=meta, **kwargs)
        saved.append(meta["epoch"])
        now[0] += 0.5

    def start(self, *args):
        old_start(self, *args)
        now[0] += 1.0

    monkeypatch.setattr(AtomicCheckpointer, "save_and_keep_only", save)
    monkeypatch.setattr(TaskBrain, "on_stage_start", start)
    monkeypatch.setattr(saving, "_seconds_to_save", lambda modules: 0.3)
    monkeypatch.setattr(saving, "monotonic", lambda: now[0])
    lab.train(tmp_path, "--ckpt_overhead=0.1", "--number_of_epochs=20", "--batch_size=16", "--task_classes=[[3,8]]")
    assert saved == [3, 8, 13, 18, 20]

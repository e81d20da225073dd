"""Extension points: one of each is added from outside the tree and used end to end."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

import helpers.outside  # noqa: F401 (registers a method and two strategies)
from datasets.batches import EpochSampler, NoMixup, ViewDataset
from datasets.memory import JointBatch, JointSampler, JointViews
from helpers.checks import assert_same_bits, weights_of
from helpers.crashes import Dying
from helpers.lab import DEBUG, REPO, edited
from helpers.torchrun import EQUAL, TASKS, Site
from simclr_train import SimCLR
from simsiam_train import SimSiam
from sup_train import Supervised
from supclr_train import SupCLR
from utils.io.errors import InputError
from utils.run.signals import Stopped
from utils.strategies import make_strategy
from utils.training.plan import plan_tasks

TRAINERS = {"supclr": SupCLR, "simclr": SimCLR, "simsiam": SimSiam, "sup": Supervised}
TWO_TASKS = "--task_classes=[[3,8],[9,4]]"
PULL = ("--strategy=pull", "--replay_num_keep=3", "--memory_batch_size=2")


def learn(lab, folder, *args, kind="supclr", brain_class=None):
    """Train two tasks; the run's folder and its stream."""
    brain_class, places = brain_class or TRAINERS[kind], (f"--output_base={folder}", TWO_TASKS)
    run, stream = lab.learn(brain_class, f"us8k/{kind}_train.yaml", *lab.quick, *places, *args)
    return Path(run.folder), stream


def test_a_method_is_trained_saved_and_handed_on(lab, tmp_path):
    folder, stream = learn(lab, tmp_path, "--ssl_method=follow", "--lr=0.1")
    first, last = weights_of(folder, 0), weights_of(folder, 1)
    assert {"target.weight", "projector.0.weight"} <= first.keys()
    assert not [name for name in first if name.startswith("predictor")]  # the YAML's, of no use to this method
    assert not torch.equal(first["target.weight"], last["target.weight"])
    assert torch.equal(last["target.weight"], stream.modules["target"].weight)
    log = pd.read_csv(folder / "train_log.csv")
    assert {"z_std", "z_rank", "ssl"} <= set(log) and log["z_std"].notna().all()


@pytest.mark.parametrize("method", ["simclr", "simsiam"])
def test_the_small_scripts_are_supclr_with_their_method(lab, tmp_path, method):
    short = ("--task_classes=[[3,8]]", "--number_of_epochs=1", "--warmup_epochs=0")
    one = weights_of(learn(lab, tmp_path / "one", f"--ssl_method={method}", *short)[0], 0)
    other = weights_of(learn(lab, tmp_path / "other", *short, kind=method)[0], 0)
    shared = [name for name in other if not name.startswith("classifier")]
    assert len(shared) > 20 and [name for name in shared if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_strategy_works_in_every_trainer(lab, tmp_path, kind):
    args = (*PULL, "--strategy_weight=0.25", *(("--sup_weight=1",) if kind == "supclr" else ()))
    folder, stream = learn(lab, tmp_path, *args, kind=kind)
    strategy, task_of = stream.strategy, stream.run.data.rows.set_index("clip")["task"]
    assert strategy.weight == 0.25 and strategy.began == [(0, False), (1, True)]
    assert len(strategy.batches) == stream.plan[1].total_steps  # none at task 0, where there is no memory
    for own, memory in strategy.batches:
        assert set(task_of[own]) == {1} and set(task_of[memory]) == {0} and len(memory) == 2
    assert len({clip for _, memory in strategy.batches for clip in memory}) <= 3
    log = pd.read_csv(folder / "train_log.csv")
    assert (log.loc[log["task"] == 1, "pull"] > 0).all() and log.loc[log["task"] == 0, "pull"].isna().all()
    steps, counted = [plan.total_steps for plan in stream.plan], [steps_counted(folder, task) for task in (0, 1)]
    if kind == "sup":  # state goes with the weights, which are the best epoch's: one or both of the two
        assert counted[0] in (steps[0] // 2, steps[0]) and counted[1] - counted[0] in (steps[1] // 2, steps[1])
    else:
        assert counted == [steps[0], sum(steps)]  # its state is handed on
    assert int(weights_of(folder)["pull_state.steps"]) == counted[1]
    assert not torch.equal(weights_of(folder, 0)["pull_head.weight"], strategy.modules["pull_head"].weight)


def steps_counted(folder, task):
    return json.loads((folder / "save" / f"task{task}" / "pull.json").read_text())


def test_a_strategy_may_keep_optimizers_from_stepping(lab, tmp_path):
    args = ("--strategy=[frozen_here, pull]", "--replay_num_keep=3", "--emb_norm_type=ln")
    folder, stream = learn(lab, tmp_path, *args)
    first, last = (weights_of(folder, task) for task in (0, 1))
    moved = {name.split(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert moved <= {"projector", "predictor"}  # running statistics
    assert steps_counted(folder, 1) == stream.plan[0].total_steps


def test_no_strategy_costs_nothing(lab):
    hparams, run_opts, data = lab.load("us8k/supclr_train.yaml", *lab.quick, "--replay_num_keep=3")
    mixed, apart = (plan_tasks(hparams, run_opts, data, with_memory=with_memory) for with_memory in (False, True))
    assert all(plan.memory.empty for plan in mixed) and len(mixed[1].rows) == len(mixed[0].rows) + 3
    assert [len(plan.memory) for plan in apart] == [0, 3, 6, 9, 12]
    assert [len(plan.rows) for plan in apart] == [len(mixed[0].rows)] * 5
    unset = {"strategy": "pull", "replay_num_keep": 2, "emb_dim": 8, "strategy_weight": None}
    assert make_strategy(unset).weight == 0.5


@pytest.mark.parametrize(
    "args, words",
    [
        (("--strategy=nothing",), "choose from none, "),
        (("--strategy=[pull, pull]", "--replay_num_keep=3"), "once"),
        (("--strategy=pull",), "set replay_num_keep above 0"),
        (("--strategy=pull", "--replay_num_keep=3", "--strategy_weight=-1"), "strategy_weight is -1"),
        (("--ssl_method=nothing",), "choose one of simclr, simsiam, byol"),
    ],
)
def test_what_cannot_work_is_said_before_any_audio_is_read(lab, tmp_path, args, words):
    with pytest.raises(InputError, match=words) as error:
        lab.start_run(SupCLR, "us8k/supclr_train.yaml", f"--output_base={tmp_path}", *args, data=tmp_path / "nowhere")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_method_and_strategy_resume_exactly(lab, tmp_path):
    args = (*PULL, "--ssl_method=follow", "--sup_weight=1", "--num_workers=2", "--experiment_name=one")
    args += ("--ckpt_interval_steps=1", "--ckpt_overhead=1000")
    straight, _ = learn(lab, tmp_path / "straight", *args)
    with pytest.raises(Stopped):
        learn(lab, tmp_path / "stopped", *args, brain_class=Dying)
    resumed, _ = learn(lab, tmp_path / "stopped", *args)
    for task in (0, 1):
        assert_same_bits(straight, resumed, task)


def test_two_processes_draw_the_joint_memory_batch_of_one(lab, tmp_path):
    here = f"import sys\nsys.path.insert(0, {str(REPO / 'tests')!r})\nimport helpers.outside"
    site = Site(lab, tmp_path, before=here)
    args = (*EQUAL, "--strategy=pull", "--replay_num_keep=5", "--proj_norm_type=ln", "--lr=0.05", TASKS)
    alone, both = (weights_of(site.run("supclr", n, f"by{n}", *args)[0]) for n in (1, 2))
    assert alone.keys() == both.keys() and "pull_head.weight" in alone
    for name in alone:
        torch.testing.assert_close(both[name], alone[name], rtol=0, atol=1e-5, msg=name)


def views(lab, tasks):
    data = lab.load("us8k/supclr_train.yaml")[2]
    rows = data.split("train")
    return ViewDataset(rows[rows["task"].isin(tasks)], data.store, 4800, 10, NoMixup(), seed=1, task=2)


def test_a_memory_batch_is_a_function_of_seed_task_epoch_and_step(lab):
    joint, n_memory = JointViews(views(lab, [2]), views(lab, [0, 1])), len(views(lab, [0, 1]))

    def batches(epoch, rank=0, world_size=1, workers=0):
        sampler = JointSampler(EpochSampler(len(joint), 1, 2, 4, rank, world_size), n_memory, 6)
        sampler.set_epoch(epoch)
        found = list(DataLoader(joint, batch_sampler=sampler, collate_fn=JointBatch, num_workers=workers))
        assert len(found) == len(sampler)
        return [(batch.id.tolist(), batch.memory.id.tolist(), batch.memory.view1.data) for batch in found]

    first, again, other = batches(1), batches(1, workers=2), batches(2)
    assert [ids[:2] for ids in first] == [ids[:2] for ids in again] != [ids[:2] for ids in other]
    assert all(torch.equal(one[2], two[2]) for one, two in zip(first, again, strict=True))
    assert len({tuple(memory) for _, memory, _ in first}) == len(first)  # another draw each step
    assert all(len(set(memory)) == 6 for _, memory, _ in first)  # without replacement, as there are enough
    for whole, *halves in zip(first, batches(1, 0, 2), batches(1, 1, 2), strict=True):
        for part in (0, 1):  # the task's own clips, those of the memory
            assert whole[part] == halves[0][part] + halves[1][part]


def test_a_data_set_is_a_load_and_a_yaml(lab, tmp_path, monkeypatch):
    """A plain pair will do: its source is the module's name."""
    (tmp_path / "my_sounds.py").write_text(
        "from datasets import us8k\n\ndef load(data_folder):\n    rows, classes, *_ = us8k.load(data_folder)\n"
        "    rows = rows[rows['class_name'].isin(classes[::2])].reset_index(drop=True)\n    rows.attrs.clear()\n"
        "    return rows, classes[::2]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    common = (*DEBUG, "--task_classes=[[0,1],[2,3]]", "--batch_size=4")
    train, judge = (
        edited(tmp_path / f"{kind}.yaml", f"us8k/{kind}_train.yaml", ("datasets.us8k.load", "my_sounds.load"))
        for kind in ("supclr", "linclf")
    )
    folder, _ = lab.train(tmp_path / "out", *common, yaml=train)
    lab.run("linclf_train.py", judge, *common, f"--data_folder={lab.sounds}", f"--ssl_checkpoints_dir={folder}",
            f"--output_base={tmp_path / 'judged'}")  # fmt: skip
    metrics = json.loads((tmp_path / "judged" / "linclf+seed_2022" / "metrics.json").read_text())
    assert metrics["dataset"] == "my_sounds" and np.isfinite(metrics["metrics"]["acc"])

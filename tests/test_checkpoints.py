"""Which checkpoint is the newest: told by a counter, whatever the clock says."""

import itertools
import os
from pathlib import Path

import pytest
import torch
import yaml
from speechbrain.utils.checkpoints import ckpt_recency
from speechbrain.utils.epoch_loop import EpochCounter

from helpers.checks import assert_same_bits
from supclr_train import SupCLR
from utils.training.checkpoints import (
    AtomicCheckpointer,
    is_finished,
    latest_checkpoint,
    load_weights,
    set_aside_damaged,
    sweep_replaced,
)

CLOCKS = {  # seconds at which four checkpoints are saved one after the other
    "back": (1000.0, 970.0, 940.0, 910.0),
    "forward and back": (1000.0, 4e9, 1010.0, 1020.0),
    "far forward": (1000.0, 1010.0, 4e9, 5e9),
    "standing": (1000.0, 1000.0, 1000.0, 1000.0),
    "unset": (0.0, 0.0, -1.0, 1000.0),
}


@pytest.fixture
def model():
    return torch.nn.Linear(2, 2)


def save(checkpointer, model, value, **kwargs):
    torch.nn.init.constant_(model.weight, value)
    return checkpointer.save_checkpoint(**kwargs).path


def recovered(folder, model):
    """What SpeechBrain's way of resuming loads, and what the next task loads."""
    values = []
    for load in (AtomicCheckpointer(folder, {"model": model}).recover_if_possible,
                 lambda: load_weights(folder, {"model": model})):  # fmt: skip
        torch.nn.init.zeros_(model.weight)
        load()
        values.append(model.weight[0, 0].item())
    return values


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)], ids=str)
@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_the_checkpoint_saved_last_is_the_newest(tmp_path, model, clock, order):
    """Whatever the clock, and whatever the order of the names, which are local times."""
    for i, unixtime in enumerate(clock):
        checkpointer = AtomicCheckpointer(tmp_path, {"model": model})  # of a start of its own
        path = save(checkpointer, model, i + 1.0, meta={"unixtime": unixtime})
        os.rename(path, path.with_name(f"CKPT+{order[i]}"))
    assert recovered(tmp_path, model) == [4.0, 4.0]
    checkpointer.delete_checkpoints(num_to_keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {f"CKPT+{order[i]}" for i in (2, 3)}
    checkpointer.save_and_keep_only(meta={"unixtime": 1.0, "epoch": 5})
    assert len(list(tmp_path.iterdir())) == 1 and latest_checkpoint(tmp_path)[1]["epoch"] == 5


def test_a_finished_checkpoint_is_never_passed_over(tmp_path, model):
    """Of this version or an earlier one, beside whatever is left of others."""
    checkpointer = AtomicCheckpointer(tmp_path, {"model": model})
    finished = save(checkpointer, model, 1.0, meta={"finished": True, "epoch": 2, "unixtime": 5.0})
    strip_number(finished)
    for unixtime in (4e9, 1.0):
        save(checkpointer, model, 2.0, meta={"epoch": 1, "unixtime": unixtime})
    assert is_finished(tmp_path) and recovered(tmp_path, model) == [1.0, 1.0]
    sweep_replaced(tmp_path)
    assert os.listdir(tmp_path) == [finished.name]


def strip_number(checkpoint):
    """Make a checkpoint one of an earlier version: no number, no manifest."""
    meta = yaml.safe_load((checkpoint / "CKPT.yaml").read_text())
    del meta["number"]
    (checkpoint / "CKPT.yaml").write_text(yaml.safe_dump(meta))
    (checkpoint / "manifest.json").unlink()


def test_checkpoints_of_earlier_versions_are_read_and_older(tmp_path, model):
    for value, unixtime in ((1.0, 1000.0), (2.0, 4e9), (3.0, 2000.0)):
        strip_number(save(AtomicCheckpointer(tmp_path, {"model": model}), model, value, meta={"unixtime": unixtime}))
    assert recovered(tmp_path, model) == [2.0, 2.0]  # among themselves by time: they have nothing else
    save(AtomicCheckpointer(tmp_path, {"model": model}), model, 4.0, meta={"unixtime": 1.0})
    assert recovered(tmp_path, model) == [4.0, 4.0]


def test_damage_to_what_the_newest_has_replaced_does_not_count(tmp_path, model, caplog):
    """Though the clock says that the damaged one is newer."""
    checkpointer = AtomicCheckpointer(tmp_path, {"model": model})
    old = save(checkpointer, model, 1.0, meta={"unixtime": 4e9})
    save(checkpointer, model, 2.0, meta={"unixtime": 1.0})
    (old / "model.ckpt").unlink()
    set_aside_damaged(tmp_path)
    assert old.is_dir() and "damaged" not in caplog.text and recovered(tmp_path, model)[1] == 2.0


def test_speechbrains_other_ways_to_choose_stay(tmp_path, model):
    checkpointer = AtomicCheckpointer(tmp_path, {"model": model})
    for accuracy in (0.5, 0.9, 0.7):
        save(checkpointer, model, accuracy, meta={"acc": accuracy})
    for how, wanted in (({"max_key": "acc"}, 0.9), ({"min_key": "acc"}, 0.5), ({"importance_key": ckpt_recency}, 0.7),
                        ({"importance_key": lambda checkpoint: -checkpoint.meta["acc"]}, 0.5),
                        ({"ckpt_predicate": lambda checkpoint: checkpoint.meta["acc"] > 0.8}, 0.9)):  # fmt: skip
        assert checkpointer.find_checkpoint(**how).meta["acc"] == wanted
    assert len(checkpointer.find_checkpoints(max_num_checkpoints=2)) == 2


def test_a_hundredth_save_takes_no_longer_than_a_second(tmp_path, monkeypatch):
    """SpeechBrain's list of importance keys grows by one a save, and the folder is listed twice for each."""
    listed, checkpointer = [], AtomicCheckpointer(tmp_path, {"counter": EpochCounter(1)})
    list_checkpoints = checkpointer.list_checkpoints
    monkeypatch.setattr(checkpointer, "list_checkpoints", lambda: listed.append(1) or list_checkpoints())
    for count in (2, 4, 6):
        checkpointer.save_and_keep_only()
        assert len(listed) == count


class Crash(BaseException):
    """What no code of a run catches."""


class Crashing(SupCLR):
    """Crashes after the third step of each task, once it is saved."""

    def _save_intra_epoch_ckpt(self):
        super()._save_intra_epoch_ckpt()
        if self.optimizer_step == 3:  # of this task and start
            raise Crash


def test_a_run_whose_clock_jumps_ends_with_the_same_weights(lab, tmp_path, monkeypatch):
    """Though it crashes in the middle of each task and goes on from its checkpoints."""
    args = ("us8k/supclr_train.yaml", *lab.quick, "--batch_size=8", "--ckpt_interval_steps=1", "--ckpt_overhead=1000")
    args += ("--task_classes=[[3,8],[9,4]]",)
    undisturbed = lab.learn(SupCLR, *args, f"--output_base={tmp_path / 'undisturbed'}")[0]
    clock, save_checkpoint = itertools.cycle([4e9, 1e3, 4e9 - 30, 5e2]), AtomicCheckpointer.save_checkpoint

    def save_at(self, meta=None, **kwargs):
        return save_checkpoint(self, {**(meta or {}), "unixtime": next(clock)}, **kwargs)

    monkeypatch.setattr(AtomicCheckpointer, "save_checkpoint", save_at)
    for _ in range(2):
        with pytest.raises(Crash):
            lab.learn(Crashing, *args, f"--output_base={tmp_path / 'jumping'}")
    found = lab.learn(Crashing, *args, f"--output_base={tmp_path / 'jumping'}")[0]
    for task in range(2):
        assert len(list(Path(found.save_folder, f"task{task}").iterdir())) == 1
        assert_same_bits(Path(found.folder), Path(undisturbed.folder), task)

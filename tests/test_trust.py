"""No code in a checkpoint is run where a training goes on from it."""

import pickle
import shutil

import numpy as np
import pytest
import torch

from helpers.desk import Desk, Runs, assert_refused, tree
from helpers.forks import at_call
from utils.training.checkpoints import AtomicCheckpointer


def resume(desk):
    settings = ("--number_of_epochs=2", "--ckpt_interval_steps=1", "--ckpt_overhead=1000", "--task_classes=[[0]]")
    return desk.run(desk.train_args(*settings, kind="sup"))


def interrupt():
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def interrupted(trained, tmp_path_factory):
    """Folder of a run of sup_train.py that was stopped in the last epoch of its task, after a checkpoint of a step."""
    desk = Desk(trained, tmp_path_factory.mktemp("interrupted") / "runs")
    with pytest.MonkeyPatch.context() as patch:
        at_call(5, AtomicCheckpointer, "save_checkpoint", interrupt, patch.setattr)  # after two steps, an epoch, a step
        assert resume(desk).code == 130
    return desk.runs


FILES = ("embedding_model.ckpt", "classifier.ckpt", "optimizer.ckpt", "best.ckpt", "counter.ckpt", "brain.ckpt")
FILES += ("spread.ckpt", "dataloader-TRAIN.ckpt", "CKPT.yaml")
PLANTED = {
    "torch": lambda file: torch.save(Runs(), file),
    "torch, old format": lambda file: torch.save({"a": Runs()}, file, _use_new_zipfile_serialization=False),
    "pickle": lambda file: file.write_bytes(pickle.dumps(Runs())),
    "YAML": lambda file: file.write_text("!!python/object/apply:open [ran, w]"),
}


@pytest.fixture
def spoiled(trained, interrupted, tmp_path):
    """A copy of the interrupted run with its newest checkpoint only, and the folder of that."""
    desk = Desk(trained, tmp_path / "runs")
    shutil.copytree(interrupted, desk.runs)
    *older, newest = sorted(desk.runs.glob("*/save/task0/CKPT*"), key=lambda path: path.stat().st_mtime)
    for path in older:
        shutil.rmtree(path)
    return desk, newest


CASES = [(name, "pickle") for name in FILES] + [("optimizer.ckpt", "torch"), ("best.ckpt", "torch, old format")]
CASES += [("brain.ckpt", "YAML"), ("CKPT.yaml", "YAML")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_no_code_in_a_checkpoint_runs_where_a_training_goes_on(spoiled, monkeypatch, name, kind):
    """Not even if the environment tells torch to trust every file and there is no manifest to show the change."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    desk, folder = spoiled
    assert {path.name for path in folder.iterdir()} == {*FILES, "manifest.json"}
    PLANTED[kind](folder / name)
    (folder / "manifest.json").unlink()
    before = tree(folder.parent)
    done = resume(desk)
    assert not (desk.folder / "ran").exists()
    if name == "CKPT.yaml":  # without it there is no checkpoint
        assert done.code == 0 and f"{folder} is damaged" in done.out and not done.err
    else:
        assert_refused(done, folder, "is damaged", "delete")
        assert tree(folder.parent) == before


def test_a_changed_file_of_a_checkpoint_is_not_even_opened(spoiled):
    desk, folder = spoiled
    PLANTED["pickle"](folder / "optimizer.ckpt")
    done = resume(desk)
    assert done.code == 0 and not done.err and f"{folder} is damaged (optimizer.ckpt: another size" in done.out
    assert not (desk.folder / "ran").exists()


def test_what_is_planted_would_run(tmp_path, monkeypatch):
    """Otherwise the tests here could not fail."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Runs()))
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()
    np.savez("objects.npz", ids=np.array([Runs()], dtype=object))
    with np.load("objects.npz", allow_pickle=True) as archive:
        assert archive["ids"] is not None
    assert (tmp_path / "ran").exists()

"""No code of a file that others may have made is run: checkpoints in the middle of a training, and what lies beside."""

import pickle
import shutil

import numpy as np
import pytest
import torch

from helpers.desk import Desk, Runs, tree, write_sounds
from utils.training import checkpoints


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run folder of sup_train.py that was stopped in the second epoch of its first task, after a checkpoint."""
    desk = Desk(tmp_path_factory.mktemp("interrupted"))
    write_sounds(desk.sounds)
    save, saved = checkpoints.AtomicCheckpointer.save_checkpoint, []

    def stop(checkpointer, *args, **kwargs):
        if len(saved) == 4:  # the first epoch's steps and its end, and a step of the second
            raise KeyboardInterrupt
        saved.append(save(checkpointer, *args, **kwargs))
        return saved[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.AtomicCheckpointer, "save_checkpoint", stop)
        assert desk.run(resume(desk))[0] == 130
    (task,) = desk.runs.glob("*/save/task0")
    newest, _ = checkpoints.latest_checkpoint(task)
    for path in set(task.iterdir()) - {newest}:
        shutil.rmtree(path)
    return desk.folder


def resume(desk):
    settings = ("--number_of_epochs=3", "--ckpt_interval_steps=1", "--ckpt_overhead=1000")
    _, yaml, *rest = desk.train_args(*settings)
    return ["sup_train.py", yaml.with_name("sup_train.yaml"), *rest]


FILES = ("embedding_model.ckpt", "classifier.ckpt", "optimizer.ckpt", "best.ckpt", "counter.ckpt", "brain.ckpt")
FILES += ("spread.ckpt", "dataloader-TRAIN.ckpt", "CKPT.yaml")
PLANTED = {
    "torch": lambda file: torch.save(Runs(), file),
    "torch, old format": lambda file: torch.save({"a": Runs()}, file, _use_new_zipfile_serialization=False),
    "pickle": lambda file: file.write_bytes(pickle.dumps(Runs())),
    "YAML": lambda file: file.write_text("!!python/object/apply:open [ran, w]"),
}


@pytest.fixture
def spoiled(interrupted, capsys, tmp_path):
    """The interrupted run, to be spoiled: its folder is put back afterwards."""
    desk = Desk(interrupted, capsys)
    shutil.copytree(desk.runs, tmp_path / "runs")
    yield desk
    shutil.rmtree(desk.runs)
    shutil.copytree(tmp_path / "runs", desk.runs)


CASES = [(name, "pickle") for name in FILES] + [("optimizer.ckpt", "torch"), ("best.ckpt", "torch, old format")]
CASES += [("brain.ckpt", "YAML"), ("CKPT.yaml", "YAML")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_no_code_in_a_checkpoint_runs_where_a_training_goes_on(spoiled, monkeypatch, name, kind):
    """Also where the environment tells torch to trust every file, and where no manifest tells that it has changed."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    (folder,) = spoiled.runs.glob("*/save/task0/CKPT*")
    assert {path.name for path in folder.iterdir()} == {*FILES, "manifest.json"}
    PLANTED[kind](folder / name)
    (folder / "manifest.json").unlink()
    before = tree(folder.parent)
    code, out, said = spoiled.run(resume(spoiled))
    assert not (spoiled.folder / "ran").exists()
    if name == "CKPT.yaml":  # without it there is no checkpoint
        assert code == 0 and f"{folder} is damaged" in out and not said
    else:
        assert code == 2 and said.startswith("error: ") and said.count("\n") == 1 and len(said) < 1000, said
        assert str(folder) in said and "is damaged" in said and "delete" in said
        assert tree(folder.parent) == before


def test_a_changed_file_of_a_checkpoint_is_not_even_opened(spoiled):
    (folder,) = spoiled.runs.glob("*/save/task0/CKPT*")
    PLANTED["pickle"](folder / "optimizer.ckpt")
    code, out, said = spoiled.run(resume(spoiled))
    assert code == 0 and not said and f"{folder} is damaged (optimizer.ckpt: another size" in out
    assert not (spoiled.folder / "ran").exists()


def test_what_is_planted_would_run(tmp_path, monkeypatch):
    """Or else the tests here could not fail."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Runs()))
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()
    np.savez("objects.npz", ids=np.array([Runs()], dtype=object))
    with np.load("objects.npz", allow_pickle=True) as archive:
        assert archive["ids"] is not None
    assert (tmp_path / "ran").exists()

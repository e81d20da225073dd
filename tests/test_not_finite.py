"""A loss, a gradient or weights that are not finite: which clips, when it stops, and what is kept."""

import multiprocessing

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import spies
from helpers.desk import assert_refused
from helpers.lab import edited, run_here
from utils.io.errors import InputError
from utils.training.checkpoints import AtomicCheckpointer, latest_checkpoint

EPOCHS, STEPS = 3, 4  # 16 clips of two classes in batches of 4


def train(lab, base, *args, steps=STEPS, **spoiled):
    """Train one task with views, losses or gradients spoiled at some (epoch, step); return end and run folder."""
    calls = {what: [(epoch - 1) * steps + step for epoch, step in at] for what, at in spoiled.items()}
    calls |= {"views": [2 * call - 1 for call in calls["views"]]} if "views" in calls else {}  # the first of two
    spies.reset(**calls)
    yaml = edited(base / "spoiled.yaml", "us8k/simclr_train.yaml", *spies.CHANGES)
    settings = (f"--number_of_epochs={EPOCHS}", "--task_classes=[[3,8]]", "--precision=fp32", "--ckpt_overhead=1000")
    arguments = lab.train_args(base / "out", *settings, *args, kind="simclr", yaml=yaml)
    return run_here(*arguments, f"--store_folder={lab.store}"), base / "out/simclr+seed_2022"


def clips_of(folder, epoch, step, batch_size=4, seed=2022):
    """Work out the clips of a step of task 0 from the run's table and the documented order."""
    paths = pd.read_csv(folder / "save" / "train_task0_raw.csv")["wav_path"]
    order = np.random.default_rng([seed, 0, epoch]).permutation(len(paths))
    return {paths[place] for place in order[(step - 1) * batch_size : step * batch_size]}


def named_in(text, folder):
    return {path for path in pd.read_csv(folder / "save" / "train_task0_raw.csv")["wav_path"] if path in text}


def assert_finite_checkpoint(folder, epoch):
    path, meta = latest_checkpoint(folder / "save" / "task0")
    assert meta["epoch"] == epoch and not list(path.parent.glob(".writing-*"))
    names = ("embedding_model", "projector", "predictor")
    assert all(tensor.isfinite().all() for name in names for tensor in torch.load(path / f"{name}.ckpt").values())


def test_the_error_names_the_clips_and_keeps_the_epoch_before(lab, tmp_path):
    """Those of the step, and no others. With --overwrite=True, as it says, the run starts afresh."""
    patience = "--nonfinite_patience=0"
    done, folder = train(lab, tmp_path, patience, losses=[(3, 2)])
    hints = ("lower lr", "raise warmup_epochs", "--precision=fp32", "--overwrite=True")
    assert_refused(done, "The loss is infinite or NaN at task 0, epoch 3, step 2, clips audio/", *hints)
    assert named_in(done.err, folder) == clips_of(folder, 3, 2)
    assert_finite_checkpoint(folder, 2)
    assert pd.read_csv(folder / "train_log.csv")["epoch"].tolist() == [1, 2]
    diverging = ("--lr=1e38", "--number_of_epochs=4", "--overwrite=True")  # by itself
    assert_refused(train(lab, tmp_path, patience, *diverging)[0], "The loss is infinite or NaN at task 0, epoch ")
    assert train(lab, tmp_path, patience, "--lr=0.001", "--overwrite=True")[0].code == 0


@pytest.mark.parametrize("kind", ["views", "losses"])
def test_within_the_patience_a_step_is_skipped_and_named(lab, tmp_path, kind):
    """Neither weights nor momentum nor running statistics, which would stay NaN, are changed by it."""
    places = [(1, 2), (2, 4), (3, 1), (3, 3)]
    done, folder = train(lab, tmp_path, **{kind: places})
    said = [line for line in done.out.splitlines() if "the step is skipped" in line]
    assert done.code == 0 and [line.split(", clips")[0].rpartition(" at ")[2] for line in said] == [
        f"task 0, epoch {epoch}, step {step}" for epoch, step in places
    ]
    assert named_in(said[1], folder) == clips_of(folder, 2, 4)
    assert_finite_checkpoint(folder, EPOCHS)
    assert_skipped(4)


def assert_skipped(number):
    """Check that each optimizer skipped so many steps, and that nothing changed between its steps."""
    for steps in (spies.notes["steps"][::2], spies.notes["steps"][1::2]):
        assert len(steps) == EPOCHS * STEPS - number
        for step, following in zip(steps, steps[1:], strict=False):
            assert torch.equal(step["after"][: len(following["before"])], following["before"])


def test_the_patience_is_spent_in_an_epoch_or_in_a_row(lab, tmp_path):
    """SpeechBrain resets its count each epoch, and would never stop a run whose epochs have a single step."""
    done, folder = train(lab, tmp_path, "--nonfinite_patience=2", views=[(2, 1), (2, 2), (2, 4)])
    assert_refused(done, "at task 0, epoch 2, step 4, clips audio/")
    assert_finite_checkpoint(folder, 1)
    places, short = [(epoch, 1) for epoch in range(1, 9) if epoch != 2], ("--batch_size=16", "--number_of_epochs=8")
    assert_refused(train(lab, tmp_path, *short, "--overwrite=True", steps=1, losses=places)[0], "epoch 6, step 1,")


def test_an_error_ends_the_loaders_workers(lab, tmp_path):
    """A traceback keeps the loader's iterator alive, and Python waits at its exit for a worker that still runs."""
    done, _ = train(lab, tmp_path, "--num_workers=2", "--nonfinite_patience=0", losses=[(1, 2)])
    assert done.code == 2 and multiprocessing.active_children() == []


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(lab, tmp_path):
    done, folder = train(lab, tmp_path, gradients=[(2, 2), (2, 3)])
    (said,) = [line for line in done.out.splitlines() if "NaN gradient" in line]
    assert said.startswith("2 of the epoch's steps had an infinite or NaN gradient, counted at task 0, epoch 2, step 4")
    assert_finite_checkpoint(folder, EPOCHS)
    assert_skipped(2)
    done, _ = train(lab, tmp_path, "--overwrite=True", gradients=[(2, step) for step in range(1, STEPS + 1)])
    assert_refused(done, "4 of the epoch's steps had an infinite or NaN gradient")


def test_the_log_has_the_mean_of_the_losses_that_are_finite(lab, tmp_path):
    _, folder = train(lab, tmp_path, views=[(2, 1), (2, 3)])
    for _, row in pd.read_csv(folder / "train_log.csv").iterrows():
        losses = spies.notes["losses"][int(row["epoch"] - 1) * STEPS :][:STEPS]
        finite = [loss for loss in losses if np.isfinite(loss)]
        assert len(finite) == (2 if row["epoch"] == 2 else 4)
        assert row["loss"] == pytest.approx(np.mean(finite)) and row["ssl"] == pytest.approx(row["loss"])


def test_an_epoch_without_a_finite_loss_has_none_in_the_log(lab, tmp_path):
    _, folder = train(lab, tmp_path, "--batch_size=16", steps=1, views=[(2, 1)])
    log = pd.read_csv(folder / "train_log.csv")
    assert log["loss"].isna().tolist() == log["ssl"].isna().tolist() == [False, True, False]
    assert (folder / "training.png").is_file()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    module = torch.nn.BatchNorm1d(2)
    checkpointer = AtomicCheckpointer(tmp_path, {"encoder": module})
    checkpointer.save_and_keep_only(meta={"epoch": 1}, num_to_keep=1)
    for tensor in (module.weight, module.running_var):
        with torch.no_grad():
            tensor[1] = float("inf")
        with pytest.raises(InputError, match="The encoder has infinite or NaN weights and is not saved: lower lr"):
            checkpointer.save_and_keep_only(meta={"epoch": 2}, num_to_keep=1)
        with torch.no_grad():
            tensor[1] = 1.0
        assert latest_checkpoint(tmp_path)[1]["epoch"] == 1 and len(list(tmp_path.iterdir())) == 1
    checkpointer.save_and_keep_only(meta={"epoch": 2}, num_to_keep=1)
    assert latest_checkpoint(tmp_path)[1]["epoch"] == 2


def test_a_probe_that_diverges_is_not_accepted(lab, encoder, tmp_path):
    places = (f"--output_base={tmp_path}", f"--data_folder={lab.sounds}", f"--ssl_checkpoints_dir={encoder}")
    arguments = ("hparams/us8k/linclf_train.yaml", *lab.tiny, *places, "--lr=1e38", "--batch_size=4")
    assert_refused(run_here("linclf_train.py", *arguments, f"--store_folder={lab.store}"), "infinite or NaN at step")

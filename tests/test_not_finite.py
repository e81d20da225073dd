"""A loss, a gradient or weights that are not finite: which clips, when it stops, and what is kept."""

import contextlib
import multiprocessing
import runpy
import sys
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from linclf_train import LinearProbe
from simclr_train import SimCLR
from utils.evaluation.probe import Embedded, fit_probe
from utils.io.errors import InputError
from utils.training.brain import TaskBrain
from utils.training.checkpoints import AtomicCheckpointer, latest_checkpoint, load_weights
from utils.training.loop import plan_tasks, train_tasks
from utils.training.steps import FiniteSteps

EPOCHS, STEPS = 3, 4  # 16 clips of two classes in batches of 4
SAVE_ALL = "--ckpt_overhead=1000"  # every epoch, whatever it costs


def clips_of(folder, epoch, step, batch_size=4, seed=2022):
    """The clips of a step of task 0, worked out from the run's table and the documented order."""
    paths = pd.read_csv(folder / "save" / "train_task0_raw.csv")["wav_path"]
    order = np.random.default_rng([seed, 0, epoch]).permutation(len(paths))
    return {paths[place] for place in order[(step - 1) * batch_size : step * batch_size]}


class Spoiled(SimCLR):
    """SimCLR that spoils its embeddings, its loss or its gradient at certain steps, (epoch, step)."""

    views, losses, gradients = (), (), ()

    def now(self):
        return self.task.counter.current, self.step

    def embed_view(self, view, stage):
        view.data[0] *= float("nan") if self.now() in self.views else 1.0
        return super().embed_view(view, stage)

    def compute_objectives(self, predictions, batch, stage):
        loss = super().compute_objectives(predictions, batch, stage)
        if self.now() in self.gradients:
            return loss + (0.0 * predictions[0].sum()).sqrt()  # 0, and its derivative is 0 times infinity
        return loss * float("inf") if self.now() in self.losses else loss


def train(lab, folder, *args, **spoiled):
    """Train one task in this process; the run folder and the modules."""
    hparams, run_opts, data = lab.load(
        "us8k/simclr_train.yaml", *lab.quick, f"--number_of_epochs={EPOCHS}", f"--output_base={folder}",
        "--task_classes=[[3,8]]", "--precision=fp32", SAVE_ALL, *args,
    )  # fmt: skip
    brain = type("Brain", (Spoiled,), spoiled)
    train_tasks(brain, hparams, run_opts, data, plan_tasks(hparams, run_opts, data), hparams["modules"])
    return folder / "simclr+seed_2022", hparams["modules"]


def assert_finite(modules):
    for module in modules.values():
        assert all(tensor.isfinite().all() for tensor in module.state_dict().values())


def assert_finite_checkpoint(folder, epoch, modules):
    path, meta = latest_checkpoint(folder / "save" / "task0")
    assert meta["epoch"] == epoch
    load_weights(folder / "save" / "task0", {name: modules[name] for name in ("embedding_model", "projector")})
    assert_finite(modules)
    assert not list(path.parent.glob(".writing-*"))


def test_a_script_names_the_clips_and_keeps_the_epoch_before(lab, tmp_path, monkeypatch, capsys):
    """As a user meets it: one line, exit code 2. Without patience, so the step's own clips and no others."""
    old = TaskBrain.weighted_sum

    def spoiled(self, losses, weights):
        factor = float("nan") if (self.task.counter.current, self.step) == (3, 2) else 1.0
        return factor * old(self, losses, weights)

    monkeypatch.setattr(TaskBrain, "weighted_sum", spoiled)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    arguments = lab.command(
        "simclr_train.py", "hparams/us8k/simclr_train.yaml", *lab.tiny, *lab.quick, f"--data_folder={lab.sounds}",
        f"--output_base={tmp_path}", "--task_classes=[[3,8],[9,4]]", "--number_of_epochs=4", "--nonfinite_patience=0",
        SAVE_ALL,
    )[1:]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(arguments[0], run_name="__main__")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert said.startswith("error: The loss is infinite or NaN at task 0, epoch 3, step 2, clips audio/"), said
    for hint in ("lower lr", "raise warmup_epochs", "--precision=fp32", "--overwrite=True"):
        assert hint in said
    folder = tmp_path / "simclr+seed_2022"
    every = set(pd.read_csv(folder / "save" / "train_task0_raw.csv")["wav_path"])
    assert {path for path in every if path in said} == clips_of(folder, 3, 2)
    hparams, _, _ = lab.load("us8k/simclr_train.yaml", f"--output_base={tmp_path}")
    assert_finite_checkpoint(folder, 2, hparams["modules"])
    assert pd.read_csv(folder / "train_log.csv")["epoch"].tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["views", "losses"])
def test_within_the_patience_a_step_is_left_out_and_named(lab, tmp_path, caplog, kind):
    """Neither weights nor running statistics, which a NaN in the forward pass would make NaN for good, are spoiled."""
    folder, modules = train(lab, tmp_path, **{kind: ((1, 2), (2, 4), (3, 1), (3, 3))})
    assert_finite(modules)
    said = [message for message in caplog.messages if "it is left out" in message]
    assert [message.split(", clips")[0].rpartition(" at ")[2] for message in said] == [
        f"task 0, epoch {epoch}, step {step}" for epoch, step in ((1, 2), (2, 4), (3, 1), (3, 3))
    ]
    every = set(pd.read_csv(folder / "save" / "train_task0_raw.csv")["wav_path"])
    assert {path for path in every if path in said[1]} == clips_of(folder, 2, 4)
    assert_finite_checkpoint(folder, EPOCHS, modules)


def test_the_patience_is_spent_in_an_epoch(lab, tmp_path):
    steps = [(2, 1), (2, 2), (2, 4)]
    with pytest.raises(InputError, match="at task 0, epoch 2, step 4, clips audio/"):
        train(lab, tmp_path, "--nonfinite_patience=2", views=steps)
    hparams, _, _ = lab.load("us8k/simclr_train.yaml", f"--output_base={tmp_path}")
    assert_finite_checkpoint(tmp_path / "simclr+seed_2022", 1, hparams["modules"])


def test_an_error_ends_the_loaders_workers_first(lab, tmp_path):
    """Its traceback keeps the loader's iterator alive; a worker that outlives it is waited for at exit."""
    with pytest.raises(InputError, match="step 2") as error:
        train(lab, tmp_path, "--num_workers=2", "--nonfinite_patience=0", losses=[(1, 2)])
    assert error.tb is not None and multiprocessing.active_children() == []


def test_epochs_shorter_than_the_patience_end_it_too(lab, tmp_path):
    """SpeechBrain counts anew each epoch: one of a single step would never be stopped."""
    every = [(epoch, 1) for epoch in range(1, 9)]
    with pytest.raises(InputError, match="at task 0, epoch 6, step 1,"):
        train(lab, tmp_path, "--batch_size=16", "--number_of_epochs=8", losses=[e for e in every if e != (2, 1)])


def test_a_gradient_that_is_not_finite_is_left_out_and_counted(lab, tmp_path, caplog):
    _, modules = train(lab, tmp_path, gradients=[(2, 2), (2, 3)])
    assert_finite(modules)
    (said,) = [message for message in caplog.messages if "NaN gradient" in message]
    assert said.startswith("2 of the epoch's steps had an infinite or NaN gradient, counted at task 0, epoch 2, step 4")
    caplog.clear()
    with pytest.raises(InputError, match="4 of the epoch's steps had an infinite or NaN gradient"):
        train(lab, tmp_path / "more", gradients=[(2, step) for step in range(1, STEPS + 1)])


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


class Reads:
    """Where a step does what would wait for a GPU: a value that goes to the host, a size that depends on values."""

    def __init__(self):
        self.places = []
        aten, tensor = torch.ops.aten, torch.Tensor
        waiting = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}
        waiting |= {aten.masked_fill_.Tensor, aten.masked_fill.Tensor, aten.masked_select.default}
        waiting |= {tensor.tolist, tensor.numpy, tensor.cpu, tensor.item}
        note = self.note

        class Operations(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                masks = function is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
                note(function in waiting or masks)
                return function(*args, **(kwargs or {}))

        class Methods(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                note(function in waiting)
                return function(*args, **(kwargs or {}))

        self.modes = Operations(), Methods()

    def note(self, waits):
        if waits:
            own = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
            self.places.append(f"{Path(own[-1].filename).name}: {own[-1].name}")

    def __enter__(self):
        for mode in self.modes:
            mode.__enter__()

    def __exit__(self, *error):
        for mode in reversed(self.modes):
            mode.__exit__(*error)


# What is on the CPU, whatever the device: the draws of the time warp (no roll or shift here), the clips' numbers.
ON_CPU = {"freq_domain.py: forward", "brain.py: on_fit_batch_start"}


class AsOnGPU(Spoiled):
    """Reads losses as on a GPU: every so many steps, and at the end of an epoch."""

    every, reads = 50, None

    def on_fit_start(self):
        super().on_fit_start()
        assert self.read_every == 1
        self.read_every = self.every

    def fit_batch(self, batch):
        with self.reads if self.reads is not None else contextlib.nullcontext():
            return super().fit_batch(batch)


@pytest.mark.parametrize(
    "settings",
    [
        ("--encoder=pann_tiny", "--mask_fill=mean"),
        ("--encoder=ecapa_tiny", "--mask_fill=zeros"),
        ("--encoder=pann_tiny", "--front_end=pann_16k", "--n_mels=64"),
    ],
)
def test_a_step_never_waits_for_the_device(lab, tmp_path, monkeypatch, settings):
    reads = Reads()
    monkeypatch.setattr(sys.modules[__name__], "Spoiled", AsOnGPU)
    train(lab, tmp_path, *settings, reads=reads)
    assert set(reads.places) == ON_CPU
    reads.places.clear()
    train(lab, tmp_path / "each", *settings, reads=reads, every=1)
    assert set(reads.places) == ON_CPU | {"brain.py: read_losses", "brain.py: optimizers_step"}


def test_losses_that_are_read_later_end_in_the_same_weights_and_words(lab, tmp_path, monkeypatch, caplog):
    steps, said, weights = ((1, 2), (2, 4), (3, 1), (3, 3)), {}, {}
    for every, brain in ((1, Spoiled), (3, AsOnGPU), (50, AsOnGPU)):
        monkeypatch.setattr(sys.modules[__name__], "Spoiled", brain)
        caplog.clear()
        _, modules = train(lab, tmp_path / str(every), views=steps, every=every)
        said[every] = [message for message in caplog.messages if "it is left out" in message]
        weights[every] = modules["embedding_model"].state_dict()
        with pytest.raises(InputError, match="at task 0, epoch 2, step 4, clips audio/"):
            train(lab, tmp_path / f"{every}-ends", "--nonfinite_patience=2", views=[(2, 1), (2, 2), (2, 4)])
    assert len(said[1]) == 4 and said[1] == said[3] == said[50]
    for every in (3, 50):
        assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[every].items())


def test_the_log_has_the_mean_of_the_losses_that_are_finite(lab, tmp_path):
    losses = {}

    class Noted(Spoiled):
        def compute_objectives(self, *args):
            loss = super().compute_objectives(*args)
            losses.setdefault(self.now()[0], []).append(float(loss.detach()))
            return loss

    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr(sys.modules[__name__], "Spoiled", Noted)
        folder, _ = train(lab, tmp_path, views=((2, 1), (2, 3)))
    log = pd.read_csv(folder / "train_log.csv")
    for _, row in log.iterrows():
        finite = [loss for loss in losses[row["epoch"]] if np.isfinite(loss)]
        assert len(finite) == (2 if row["epoch"] == 2 else 4)
        assert row["loss"] == pytest.approx(np.mean(finite)) and row["ssl"] == pytest.approx(row["loss"])


def test_what_a_stop_has_not_read_is_read(lab, tmp_path, monkeypatch, caplog):
    """As on a GPU: a checkpoint in the middle of an epoch, whose losses nobody has looked at yet."""
    monkeypatch.setattr(sys.modules[__name__], "Spoiled", AsOnGPU)
    with pytest.raises(InputError, match="at task 0, epoch 1, step 2,"):
        train(lab, tmp_path, "--ckpt_interval_steps=2", "--nonfinite_patience=1", views=[(1, 1), (1, 2)])
    assert latest_checkpoint(tmp_path / "simclr+seed_2022" / "save" / "task0") is None


def test_an_epoch_without_a_finite_loss_has_none_in_the_log(lab, tmp_path):
    folder, _ = train(lab, tmp_path, "--batch_size=16", views=[(2, 1)])
    log = pd.read_csv(folder / "train_log.csv")
    assert log["loss"].isna().tolist() == log["ssl"].isna().tolist() == [False, True, False]
    assert (folder / "training.png").is_file()


@pytest.mark.parametrize("every", [1, 50])
def test_a_probe_that_diverges_is_not_accepted(lab, monkeypatch, every):
    hparams, run_opts, _ = lab.load("us8k/linclf_train.yaml", "--emb_dim=4", "--ssl_checkpoints_dir=none")
    start = FiniteSteps.on_fit_start

    def on_fit_start(self):
        start(self)
        self.read_every = every

    monkeypatch.setattr(FiniteSteps, "on_fit_start", on_fit_start)
    clips = Embedded(np.full((8, 4), np.nan, dtype=np.float32), np.arange(8) % 2)
    with pytest.raises(InputError, match="infinite or NaN at step"):
        fit_probe(LinearProbe, hparams, run_opts, 2, clips, clips, False)

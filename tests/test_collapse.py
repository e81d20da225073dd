"""utils.training.collapse: the measures against loops and numpy; measured, logged, drawn, warned of in a training."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.pictures import assert_picture, has_colour, png_size
from simclr_train import SimCLR
from simsiam_train import SimSiam
from sup_train import Supervised
from utils.results.figures.canvas import COLOURS
from utils.results.figures.training import plot_training
from utils.training.collapse import LEAST_STD, Spread, collapse_warning, effective_rank, normalised_std
from utils.training.plan import TaskPlan
from utils.training.progress import RunProgress

MEASURES = ("emb_std", "emb_rank", "rank_max", "z_std", "z_rank")


def reference_std(vectors):
    """SimSiam's, by numpy."""
    rows = vectors.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.std(axis=0, ddof=1).mean() * math.sqrt(rows.shape[1])


def reference_rank(vectors):
    """Roy and Vetterli's, by numpy's SVD of the vectors themselves."""
    singular = np.linalg.svd(vectors.double().numpy(), compute_uv=False)
    shares = singular[singular > 0] / singular.sum()
    return np.exp(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (40, 3)])
def test_measures_agree_with_independent_ones(shape):
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 3 + 1
    assert normalised_std(vectors) == pytest.approx(reference_std(vectors), rel=1e-9)
    assert effective_rank(vectors) == pytest.approx(reference_rank(vectors), rel=1e-6)
    assert effective_rank(100 * vectors) == pytest.approx(effective_rank(vectors), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_known_cases(dtype):
    line = torch.linspace(-1, 1, 32)[:, None] * torch.ones(16)  # far apart, on a line
    gaussian = torch.randn(512, 16, generator=torch.Generator().manual_seed(1))
    cases = {"same": torch.full((32, 16), 0.3), "orthonormal": torch.eye(16), "line": line, "gaussian": gaussian}
    found = {name: (normalised_std(v.to(dtype)), effective_rank(v.to(dtype))) for name, v in cases.items()}
    assert found["same"] == pytest.approx((0, 1), abs=1e-4) and found["orthonormal"] == pytest.approx((1, 16))
    assert found["line"][0] > 0.9 and found["line"][1] == pytest.approx(1, abs=1e-4)
    assert found["gaussian"][0] == pytest.approx(1, abs=0.02) and 15.5 < found["gaussian"][1] <= 16
    assert normalised_std(torch.zeros(4, 3, dtype=dtype)) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_vectors_that_are_not_finite_measure_as_nan_and_are_no_collapse(bad):
    spread = Spread()
    spread.add("emb", torch.tensor([[1.0, bad], [0.0, 1.0], [2.0, 1.0]]))
    measured = spread.measure()
    assert math.isnan(measured["emb_std"]) and math.isnan(measured["emb_rank"]) and measured["rank_max"] == 2
    assert collapse_warning(measured) is None


def test_only_the_last_vectors_of_an_epoch_count_and_a_checkpoint_keeps_them(tmp_path):
    batches = torch.randn(9, 4, 8, generator=torch.Generator().manual_seed(0))
    spread, resumed = Spread(most=10), Spread(most=10)
    spread.add("z", *batches[:7])
    spread.save(tmp_path / "spread.ckpt")
    resumed.load(tmp_path / "spread.ckpt", end_of_epoch=False)
    last = batches.reshape(-1, 8)[-10:]
    for one in (spread, resumed):
        one.add("z", *batches[7:])
        assert one.measure() == {"z_std": normalised_std(last), "z_rank": effective_rank(last), "rank_max": 8}
        assert sum(map(len, one.batches["z"])) < 10 + 4
    spread.clear()
    assert spread.measure() == {}


def test_keeping_vectors_takes_no_value_and_no_graph():
    """On the meta device nothing has a value, so whatever asked for one would raise."""
    spread = Spread(most=6)
    for _ in range(5):
        spread.add("emb", torch.zeros(4, 3, device="meta", requires_grad=True) * 2)
    assert [(len(kept), kept.requires_grad) for kept in spread.batches["emb"]] == [(4, False)] * 2


@pytest.mark.parametrize(
    "found, warned",
    [
        ({}, None),
        ({"emb_std": 0.33, "emb_rank": 14.0, "z_std": 0.71, "z_rank": 19.0}, None),
        ({"emb_std": 0.34, "emb_rank": 5.0}, None),
        ({"emb_std": 0.05, "emb_rank": 3.0, "z_std": 0.7, "z_rank": 19.0}, "embeddings have collapsed: emb_std 0.050"),
        ({"emb_std": 0.44, "emb_rank": 46.0, "z_std": 0.04, "z_rank": 3.4}, "has collapsed: z_std 0.040 .*k 3.4 of"),
        ({"emb_std": 0.95, "emb_rank": 1.1}, "emb_rank 1.1 of 64"),
    ],
)
def test_when_it_warns(found, warned):
    warning = collapse_warning(found | {"rank_max": 64, "loss": 0.0})
    assert warning is None if warned is None else re.search(f"{warned}.*Lower lr", warning)


def train(lab, folder, brain_class, kind, *args):
    """Train two tasks in this process; the run folder and the log's rows."""
    args = (f"--output_base={folder}", "--task_classes=[[3,8],[9,4]]", *args)
    lab.learn(brain_class, f"us8k/{kind}_train.yaml", *lab.quick, *args)
    (run,) = folder.iterdir()
    return run, pd.read_csv(run / "train_log.csv")


def test_each_epoch_is_measured_and_logged(lab, tmp_path):
    """By this file's references, on what the Brain's steps have seen; a healthy training is not warned of."""
    seen = {}

    class Watched(SimCLR):
        def compute_objectives(self, predictions, batch, stage):
            key = (self.task.index, self.task.counter.current)
            seen.setdefault(key, []).extend(predictions[z].detach() for z in ("z1", "z2"))
            return super().compute_objectives(predictions, batch, stage)

    run, log = train(lab, tmp_path, Watched, "simclr", "--precision=fp32")
    assert len(log) == len(seen) == 4
    for _, row in log.iterrows():
        vectors = torch.cat(seen[row["task"], row["epoch"]])
        assert vectors.shape == (2 * 16, 16) and row["rank_max"] == 16
        assert row["z_std"] == pytest.approx(reference_std(vectors), rel=1e-6)
        assert row["z_rank"] == pytest.approx(reference_rank(vectors), rel=1e-4)
        assert 1 < row["emb_rank"] < 16 and 0 < row["emb_std"] < 1
    lines = (run / "train_log.txt").read_text().splitlines()
    assert all(f"{name}: " in line for line in lines for name in MEASURES)
    assert "collapsed" not in (run / "log.txt").read_text()
    assert_picture(run / "training.png")


def test_embeddings_without_a_loss_between_views_are_measured_too(lab, tmp_path):
    """In training only: the validation's whole clips are not among them."""
    _, log = train(lab, tmp_path, Supervised, "sup", "--number_of_epochs=1", "--warmup_epochs=0")
    assert set(MEASURES) & set(log.columns) == {"emb_std", "emb_rank", "rank_max"}
    assert (log["rank_max"] == 16).all() and log["emb_std"].between(0, 1).all()


def test_a_collapse_is_warned_of_once_a_task(lab, tmp_path):
    class Collapsed(SimSiam):
        def compute_forward(self, batch, stage):
            out = super().compute_forward(batch, stage)
            return out | {name: 1.0 + 1e-4 * out[name] for name in ("z1", "z2", "p1", "p2")}

    run, log = train(lab, tmp_path, Collapsed, "simsiam")
    said = re.findall(r"(task \d, epoch \d): z, the input of the loss, has collapsed", (run / "log.txt").read_text())
    assert said == ["task 0, epoch 1", "task 1, epoch 1"]
    assert len(log) == 4 and (log["z_std"] < LEAST_STD).all() and (log["loss"] < -0.99).all()


def test_the_log_of_an_older_version_goes_on(tmp_path):
    """It has no such columns: they begin with the new rows, and the picture can still be drawn."""
    old, path = {"task": 0, "epoch": 1, "loss": 3.0, "ssl": 3.0, "lr": 0.1}, tmp_path / "train_log.csv"
    pd.DataFrame([old]).to_csv(path, index=False)
    settings, options = {"output_folder": str(tmp_path), "extra_logger": None}, SimpleNamespace(noprogressbar=True)
    new = old | {"epoch": 2, "emb_std": 0.4, "emb_rank": 12.0, "rank_max": 64.0}
    none = pd.DataFrame()
    with RunProgress(settings, options, [TaskPlan(none, none, none, epochs=2, steps=1)]) as progress:
        progress.epoch(new)
    pd.testing.assert_frame_equal(pd.read_csv(path), pd.DataFrame([old, new]))
    assert "emb_rank: 12.0" in (tmp_path / "train_log.txt").read_text()
    assert_picture(plot_training(path, tmp_path / "training.png"))


def test_the_picture_shows_both_measures(tmp_path):
    log = pd.DataFrame(
        {"task": [0, 0, 1, 1], "epoch": [1, 2, 1, 2], "loss": 1.0, "lr": 0.1, "emb_std": [0.4, 0.5, 0.5, np.nan],
         "emb_rank": [50.0, 40.0, 30.0, np.nan], "rank_max": [128, 128, 64, 64]}
    )  # fmt: skip
    tables = (log[["task", "epoch", "loss", "lr"]], log, log.assign(z_std=0.7, z_rank=20.0))
    bare, emb, both = (plot_training(table, tmp_path / f"{k}.png") for k, table in enumerate(tables))
    for path in (emb, both):
        assert_picture(path)
    assert [has_colour(path, COLOURS[2]).sum() > 1000 for path in (bare, emb, both)] == [False, False, True]  # z's
    assert png_size(emb)[1] > 1.5 * png_size(bare)[1]

"""What a run's folder must hold, checked without the code under test."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import ruamel.yaml
import torch
import yaml as pyyaml

SAVED = {"CKPT.yaml", "embedding_model.ckpt", "projector.ckpt", "predictor.ckpt", "classifier.ckpt", "counter.ckpt"}
SAVED |= {"manifest.json"}
METRICS = {"acc", "average_incremental_accuracy", "bwt", "forgetting", "fwt", "micro_accuracy"}
FIGURES = ("accuracy_table.png", "accuracy_over_tasks.png", "confusion_matrix.png")


def check_logs(folder):
    """No log of a run folder holds what a progress bar leaves."""
    logs = [*folder.glob("*.txt"), *folder.glob("*.csv")]
    assert folder / "log.txt" in logs
    for path in logs:
        found = [d for d in (b"\r", b"\x1b[", b"%|", b"it/s", b"s/it") if d in path.read_bytes()]
        assert not found, f"{path} holds {found}"


def check_run_folder(folder, **settings):
    """settings.json, versions.json and hyperparams.yaml say what was run."""
    saved = json.loads((folder / "settings.json").read_text())
    assert {key: pyyaml.safe_load(saved[key]) for key in settings} == settings
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["torch"] == torch.__version__.partition("+")[0] or versions["torch"] == torch.__version__
    assert versions["command"][0].endswith("_train.py") and versions["commit"]
    text = (folder / "hyperparams.yaml").read_text()
    resolved = ruamel.yaml.YAML().load(text)
    assert "!PLACEHOLDER" not in text and {key: resolved[key] for key in settings} == settings
    check_logs(folder)


def check_training(folder, rows, n_tasks, epochs):
    """What an encoder's training leaves: tables of clips, finished checkpoints without optimizers, the log."""
    save = folder / "save"
    assert {path.name for path in save.iterdir() if path.is_dir()} == {f"task{t}" for t in range(n_tasks)}
    for task in range(n_tasks):
        for split in ("train", "valid", "test"):
            written = pd.read_csv(save / f"{split}_task{task}_raw.csv")
            wanted = rows[(rows["split"] == split) & (rows["task"] == task)]
            columns = ["wav_path", "class_name", "split", "label", "task"]
            assert len(wanted) and sorted(map(tuple, written[columns].values)) == sorted(
                map(tuple, wanted[columns].values)
            )
        (checkpoint,) = (save / f"task{task}").iterdir()  # one, and nothing that was being written
        assert {path.name for path in checkpoint.iterdir()} == SAVED
        assert pyyaml.safe_load((checkpoint / "CKPT.yaml").read_text())["finished"] is True
    lines = (folder / "train_log.txt").read_text().splitlines()
    found = [re.match(r"task: (\d+), epoch: (\d+), lr: \S+ - train loss: (\S+)", line) for line in lines]
    wanted = [(task, epoch) for task in range(n_tasks) for epoch in range(1, epochs + 1)]
    assert [(int(m[1]), int(m[2])) for m in found] == wanted
    assert all(math.isfinite(float(m[3].rstrip(","))) for m in found)
    table = pd.read_csv(folder / "train_log.csv")
    assert list(zip(table["task"], table["epoch"], strict=True)) == wanted


def read_evaluation(folder):
    """The accuracy table, the floor's, metrics.json and the confusion matrix of an evaluation."""
    tables = [pd.read_csv(folder / name, index_col="encoder") for name in ("accuracy_table.csv", "floor_table.csv")]
    confusion = pd.read_csv(folder / "confusion_matrix.csv", index_col="true class")
    return *tables, json.loads((folder / "metrics.json").read_text()), confusion


def check_evaluation(folder, rows, tasks, kind):
    """What an evaluation leaves, where `rows` are the clips and `tasks` the classes' labels by task."""
    table, floor, metrics, confusion = read_evaluation(folder)
    n = len(tasks)
    evaluated = np.ones((n, n), bool) if kind == "full" else np.tri(n, dtype=bool)
    for cells in (table, floor):
        assert cells.shape == (n, n)
        assert (np.isfinite(cells.to_numpy()) == evaluated).all()
        assert ((cells.to_numpy()[evaluated] >= 0) & (cells.to_numpy()[evaluated] <= 1)).all()
    names = dict(zip(rows["label"], rows["class_name"], strict=True))
    assert list(table.columns) == [", ".join(names[label] for label in sorted(members)) for members in tasks]
    assert (metrics["protocol"], metrics["encoder"]) == (kind, "pann_tiny")
    assert set(metrics["metrics"]) == set(metrics["floor"]) == METRICS
    assert metrics["metrics"]["acc"] == pytest.approx(table.iloc[-1].mean())
    assert metrics["floor"]["acc"] == pytest.approx(floor.iloc[-1].mean())
    assert math.isnan(metrics["metrics"]["fwt"]) == (kind != "full")
    assert math.isfinite(metrics["metrics"]["bwt"])
    tested = rows[rows["split"] == "test"]
    counts = confusion.to_numpy()
    clips = tested["label"].value_counts().reindex(range(len(counts)), fill_value=0)
    assert counts.shape[0] == counts.shape[1] and (counts.sum(1) == clips).all()
    assert metrics["metrics"]["micro_accuracy"] == pytest.approx(np.trace(counts) / len(tested))
    correct = np.diag(counts)
    for j, members in enumerate(tasks):  # the table's last row, counted again from the confusion matrix
        members = list(members)
        assert table.iloc[-1, j] == pytest.approx(correct[members].sum() / clips[members].sum())
    by_class = pd.read_csv(folder / "per_class_accuracy.csv")
    assert list(by_class["class"]) == list(confusion.index) == list(confusion.columns)
    assert (by_class["clips"] == clips).all()
    assert by_class["accuracy"].to_numpy() == pytest.approx(correct / counts.sum(1).clip(1), nan_ok=True)
    for name in FIGURES:
        content = (folder / name).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 5000
    check_logs(folder)



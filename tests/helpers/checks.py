"""Check what a run leaves, without the code under test; compare two runs."""

import json
import math
import os
import re

import numpy as np
import pandas as pd
import pytest
import ruamel.yaml
import torch
import yaml as pyyaml

from helpers.lab import BAR_DEBRIS, US8K_TASKS
from utils.training.checkpoints import latest_checkpoint

SAVED = {"CKPT.yaml", "embedding_model.ckpt", "projector.ckpt", "predictor.ckpt", "classifier.ckpt", "counter.ckpt"}
SAVED |= {"manifest.json"}
METRICS = {"acc", "average_incremental_accuracy", "bwt", "forgetting", "fwt", "micro_accuracy"}
FIGURES = ("accuracy_table.png", "accuracy_over_tasks.png", "confusion_matrix.png")


def rows_of(folder, tasks=US8K_TASKS, valid=(9,), test=(10,)):
    """Read the clips of a folder in UrbanSound8K's layout, with split, label and task, as a table."""
    meta = pd.read_csv(folder / "metadata" / "UrbanSound8K.csv")
    split = meta["fold"].map(lambda fold: "valid" if fold in valid else "test" if fold in test else "train")
    path = "audio/fold" + meta["fold"].astype(str) + "/" + meta["slice_file_name"]
    rows = pd.DataFrame({"wav_path": path, "class_name": meta["class"], "split": split, "label": meta["classID"]})
    return rows.assign(task=rows["label"].map(task_by_label(tasks)))


def task_by_label(tasks):
    return {label: task for task, members in enumerate(tasks) for label in members}


def check_logs(folder):
    """Check that no log of a run folder holds traces of a progress bar."""
    logs = [*folder.glob("*.txt"), *folder.glob("*.csv")]
    assert folder / "log.txt" in logs
    for path in logs:
        found = [debris for debris in BAR_DEBRIS if debris.encode() in path.read_bytes()]
        assert not found, f"{path} holds {found}"


def check_run_folder(folder, **settings):
    """Check that settings.json, versions.json and hyperparams.yaml record the run."""
    saved = json.loads((folder / "settings.json").read_text())
    assert {key: pyyaml.safe_load(saved[key]) for key in settings} == settings
    versions = json.loads((folder / "versions.json").read_text())
    assert torch.__version__.startswith(versions["torch"])
    assert versions["command"][0].endswith("_train.py") and versions["commit"]
    text = (folder / "hyperparams.yaml").read_text()
    resolved = ruamel.yaml.YAML().load(text)
    assert "!PLACEHOLDER" not in text and {key: resolved[key] for key in settings} == settings
    check_logs(folder)


def check_training(folder, rows, n_tasks, epochs):
    """Check an encoder's run folder: tables of clips, finished checkpoints without optimizers, the log."""
    save = folder / "save"
    assert {path.name for path in save.iterdir() if path.is_dir()} == {f"task{t}" for t in range(n_tasks)}
    for task in range(n_tasks):
        for split in ("train", "valid", "test"):
            written = pd.read_csv(save / f"{split}_task{task}_raw.csv")
            wanted = rows[(rows["split"] == split) & (rows["task"] == task)]
            columns = ["wav_path", "class_name", "split", "label", "task"]
            clips = [sorted(map(tuple, table[columns].values)) for table in (written, wanted)]
            assert clips[0] == clips[1] and clips[0]
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
    """Read an evaluation's accuracy table, floor table, metrics.json and confusion matrix."""
    tables = [pd.read_csv(folder / name, index_col="encoder") for name in ("accuracy_table.csv", "floor_table.csv")]
    confusion = pd.read_csv(folder / "confusion_matrix.csv", index_col="true class")
    return *tables, json.loads((folder / "metrics.json").read_text()), confusion


def check_evaluation(folder, rows, tasks, kind):
    """Check an evaluation's run folder; `rows` are the clips, `tasks` the labels of each task."""
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


# Two runs

# Keys that depend on the clock, on memory, on the number of starts or workers, on edits of the code between two runs;
# and checksums of files with such keys, by the names of the files.
CHANGING = ("seconds", "train_seconds", "peak_memory_bytes", "clips_embedded", "command", "commit", "train_commit")
CHANGING += ("started", "earlier_starts", "crc32", "CKPT.yaml")


def content_of(path, root):
    """Return a file's content, without the folder of the run and what may differ from start to start."""
    content = path.read_bytes().replace(os.fsencode(root), b"ROOT")
    if path.suffix == ".json":
        return {key: value for key, value in json.loads(content).items() if key not in CHANGING}
    if path.name in ("CKPT.yaml", "hyperparams.yaml"):
        differs = (b"#", b"unixtime:", b"number:", b"num_workers:", b"ckpt_overhead:")
        return b"\n".join(line for line in content.splitlines() if not line.startswith(differs))
    return content


def left_by(root):
    """Read what runs below a folder have left: weights, tables, metrics, figures, logs of epochs, settings, stores."""
    found = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = re.sub(r"CKPT\+[^/]+", "CKPT", str(path.relative_to(root)))
        name += " again" if name in found else ""  # of a second checkpoint
        if name.endswith(".tmp") and "/embeddings/" in name:  # a folder that other runs may be writing to, so not swept
            continue
        if path.parent.name == "embeddings":  # in parts of any size
            with np.load(path) as kept:
                place = f"{path.parent.relative_to(root)}/{path.name.split('.')[0]}"
                found |= {f"{place} {i}": vector.tobytes() for i, vector in zip(*kept.values(), strict=True)}
            continue
        if path.name not in ("log.txt", "said.txt", "operations.txt", ".lock") and "encoder/save" not in name:
            found[name] = content_of(path, root)
    return found


def differing(found, wanted):
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))


def weights_of(folder, task=1):
    """Load the tensors of a task's checkpoint, by module and name."""
    path = latest_checkpoint(folder / "save" / f"task{task}")[0]
    loaded = {file.stem: torch.load(file) for file in path.glob("*.ckpt") if file.stem != "counter"}
    return {f"{name}.{entry}": tensor for name, state in loaded.items() for entry, tensor in state.items()}


def assert_same_bits(folder, other, task=1):
    first, second = weights_of(folder, task), weights_of(other, task)
    assert first.keys() == second.keys() and len(first) > 20
    assert [name for name in first if not torch.equal(first[name], second[name])] == []

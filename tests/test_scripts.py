"""Run the five scripts on small audio and check what they wrote."""

import functools
import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch

from datasets import demo
from datasets.batches import WholeClips
from helpers.checks import (
    check_evaluation,
    check_run_folder,
    check_training,
    read_evaluation,
    rows_of,
    task_by_label,
    weights_of,
)
from helpers.desk import assert_refused
from helpers.lab import BAR_DEBRIS, DEBUG, REPO, US8K_TASKS, run_here
from models.embed import embed
from utils.training.checkpoints import load_weights

TWO_TASKS = "--task_classes=[[3,8],[9,4]]"


def esc50_rows(folder, tasks, esc10_only=False):
    """Read ESC-50's clips with split, label and task, without the code under test."""
    meta = pd.read_csv(folder / "meta" / "esc50.csv")
    meta = meta[meta["esc10"] | (not esc10_only)]
    label = meta["target"].map({target: i for i, target in enumerate(sorted(meta["target"].unique()))})
    split = meta["fold"].map({1: "train", 2: "train", 3: "train", 4: "valid", 5: "test"})
    rows = {"wav_path": "audio/" + meta["filename"], "class_name": meta["category"], "split": split, "label": label}
    return pd.DataFrame(rows).assign(task=label.map(task_by_label(tasks)))


# Data sets


@pytest.mark.parametrize("esc10_only", [False, True])
def test_esc50_and_esc10(lab, tmp_path, esc10_only):
    tasks = US8K_TASKS if esc10_only else [range(first, first + 5) for first in range(0, 50, 5)]
    rows = esc50_rows(lab.esc50, tasks, esc10_only)
    assert len(rows) == (50 if esc10_only else 250)
    args = (f"--esc10_only={esc10_only}", *DEBUG)
    folder, _ = lab.train(tmp_path / "out", *args, yaml="esc50", data=lab.esc50)
    check_training(folder, rows, n_tasks=len(tasks), epochs=1)
    folder, _ = lab.judge(tmp_path / "eval", folder, *args, "--batch_size=8", yaml="esc50", data=lab.esc50)
    check_run_folder(folder, esc10_only=esc10_only, encoder="pann_tiny")
    check_evaluation(folder, rows, tasks, "seen")
    assert read_evaluation(folder)[2]["dataset"] == ("ESC-10" if esc10_only else "ESC-50")


def test_demo_needs_no_data(lab, tmp_path, monkeypatch):
    """With the YAMLs' own encoder and data set, which is smaller here."""
    monkeypatch.setattr(demo, "generate", functools.partial(demo.generate, clips_per_class=30, max_duration=0.8))
    data, base = f"--data_folder={tmp_path / 'data'}", tmp_path / "out"
    lab.run("supclr_train.py", "hparams/demo/supclr_train.yaml", data, f"--output_base={base}", *DEBUG)
    rows = rows_of(tmp_path / "data", valid=(8,), test=(9, 10))
    check_training(base / "supclr+seed_2022", rows, n_tasks=5, epochs=1)
    where = (f"--output_base={base / 'linclf'}", f"--ssl_checkpoints_dir={base / 'supclr+seed_2022' / 'save'}")
    said = lab.run("linclf_train.py", "hparams/demo/linclf_train.yaml", data, *where, *DEBUG)
    check_evaluation(base / "linclf" / "linclf+seed_2022", rows, US8K_TASKS, "seen")
    assert said.count("\n") < 60


# Training


def test_training_leaves_what_it_promises(encoder, us8k_rows):
    check_training(encoder, us8k_rows, n_tasks=5, epochs=2)
    check_run_folder(encoder, encoder="pann_tiny", emb_dim=16, sup_weight=1, batch_size=4)
    table = pd.read_csv(encoder / "train_log.csv")
    assert table["loss"].to_numpy() == pytest.approx((table["ssl"] + table["sup"]).to_numpy(), rel=1e-5)
    assert (encoder / "supclr_train.py").read_bytes() == (REPO / "supclr_train.py").read_bytes()


def test_ecapa_with_labels_mixup_and_replay(lab, tmp_path):
    settings = ("--sup_weight=0.5", "--use_mixup=True", "--replay_num_keep=3", TWO_TASKS, *DEBUG)
    folder, said = lab.train(tmp_path / "out", "--encoder=ecapa_small", *settings)
    table = pd.read_csv(folder / "train_log.csv")
    assert table["loss"].to_numpy() == pytest.approx((table["ssl"] + 0.5 * table["sup"]).to_numpy(), rel=1e-5)
    assert re.search(r"task 1/2 \(.*\): 16 clips", said) and re.search(r"task 2/2 \(.*\): 19 clips", said)
    weights = weights_of(folder)
    assert any("tdnn" in name for name in weights) and all(w.isfinite().all() for w in weights.values())


@pytest.mark.parametrize("norms", [("in", "bn"), ("ln", "bn"), ("bn", "in"), ("bn", "ln"), ("bn", "id")], ids="-".join)
def test_every_norm_trains(lab, tmp_path, norms):
    settings = (f"--emb_norm_type={norms[0]}", f"--proj_norm_type={norms[1]}", TWO_TASKS, "--number_of_epochs=1")
    folder, _ = lab.train(tmp_path, *settings, "--warmup_epochs=0", "--lr=0.05", kind="simclr")
    first, second = weights_of(folder, 0), weights_of(folder, 1)
    assert all(weights.isfinite().all() for weights in second.values())
    # Before a norm that takes the mean away, a bias has no effect; an instance norm counts no batches.
    same = [name for name in first if torch.equal(first[name], second[name])]
    assert [name for name in same if not name.endswith(("bias", "num_batches_tracked"))] == []
    check_run_folder(folder, emb_norm_type=norms[0], proj_norm_type=norms[1])


def test_scripts_run_from_any_folder(lab, tmp_path):
    """As a user starts them. If the log's configuration were not found, SpeechBrain would log debug messages."""
    encoder = tmp_path / "out" / "supclr+seed_2022"
    commands = [
        ("supclr_train.py", "us8k/supclr_train.yaml", *lab.quick, "--output_base=out"),
        ("linclf_train.py", "us8k/linclf_train.yaml", "--ssl_checkpoints_dir=out", "--output_base=judged"),
    ]
    for script, yaml, *args in commands:
        args += [*lab.tiny, *DEBUG, "--batch_size=4", "--task_classes=[[3,8]]", f"--data_folder={lab.sounds}"]
        process = lab.start(lab.command(script, REPO / "hparams" / yaml, *args), cwd=tmp_path)
        said = process.communicate(timeout=300)[0].decode()
        assert process.returncode == 0, said
        assert not [word for word in ("DEBUG", "INFO", "Warning", *BAR_DEBRIS) if word in said], said
    assert (encoder / "save" / "task0").is_dir() and (tmp_path / "judged/linclf+seed_2022/metrics.json").is_file()


SAVED = {
    "simclr": {"embedding_model", "projector", "predictor"},
    "simsiam": {"embedding_model", "projector", "predictor"},
    "sup": {"embedding_model", "classifier"},
}


@pytest.fixture(scope="module")
def trained(lab, tmp_path_factory):
    """{kind: (run folder, what the script printed)}, two tasks each."""
    few = (TWO_TASKS, "--number_of_epochs=3", "--replay_num_keep=4")
    return {kind: lab.train(tmp_path_factory.mktemp(kind) / "out", *few, kind=kind) for kind in SAVED}


@pytest.mark.parametrize("kind", SAVED)
def test_each_trainer_leaves_task_wise_weights_that_changed(lab, trained, tmp_path, kind):
    """And linclf_train.py can judge them."""
    folder, said = trained[kind]
    first, second = weights_of(folder, 0), weights_of(folder, 1)
    assert {name.split(".")[0] for name in first} == {name.split(".")[0] for name in second} == SAVED[kind]
    for name in SAVED[kind]:
        assert any(not torch.equal(first[entry], second[entry]) for entry in first if entry.startswith(name))
    assert all(tensor.isfinite().all() for tensor in second.values())
    assert "task 2/2" in said and f"{16 + 4} clips" in said
    check_run_folder(folder, replay_num_keep=4)
    costs = json.loads((folder / "costs.json").read_text())
    assert costs["train_seconds"] > 0 and costs["peak_memory_bytes"] > 1e7
    judged, _ = lab.judge(tmp_path, folder, TWO_TASKS, "--batch_size=4", *DEBUG)
    record = json.loads((judged / "metrics.json").read_text())
    assert record["method"] == kind and 0 <= record["metrics"]["acc"] <= 1


def test_simsiam_starts_near_zero_and_stays_a_cosine(trained):
    losses = pd.read_csv(trained["simsiam"][0] / "train_log.csv")["loss"]
    assert losses.between(-1, 1).all() and abs(losses.iloc[0]) < 0.7


@pytest.mark.parametrize("kind", ["supclr", "simclr", "simsiam", "sup", "linclf"])
def test_another_scripts_yaml_is_refused(lab, kind):
    for other in {"simclr", "simsiam", "sup", "supclr", "linclf"} - {kind}:
        places = [f"--data_folder={lab.sounds}", *(["--ssl_checkpoints_dir=there"] if other == "linclf" else [])]
        done = run_here(f"{kind}_train.py", f"hparams/us8k/{other}_train.yaml", *places)
        assert_refused(done, "is it a configuration of this script?")


# Supervised training


def test_sup_keeps_the_best_epoch(lab, trained):
    """The saved network has the best accuracy of train_log.csv on the validation clips; of equals, least loss."""
    folder = trained["sup"][0]
    log = pd.read_csv(folder / "train_log.csv")
    measured = {"loss", "sup", "emb_std", "emb_rank", "rank_max", "valid_loss", "valid_accuracy"}
    assert set(log.columns) == {"task", "epoch", "lr", *measured}
    hparams, _, data = lab.load("us8k/sup_train.yaml", TWO_TASKS)
    classifier = hparams["classifier"](n_classes=10)
    network = {"embedding_model": hparams["embedding_model"], "classifier": classifier}
    for task in (0, 1):
        load_weights(folder / "save" / f"task{task}", network)
        valid = data.split("valid")
        clips = WholeClips(valid[valid["task"] <= task], data.store)  # with replay, of all tasks so far
        correct, losses = 0, []
        for module in (*hparams["modules"].values(), classifier):
            module.eval()
        for places in clips.batches(4):
            wav = torch.stack([clips[place]["view1"] for place in places])
            labels = torch.tensor([clips[place]["label"] for place in places])
            with torch.inference_mode():
                logits = classifier(embed(hparams["modules"], wav, torch.ones(len(wav))))
            correct += int((logits.argmax(1) == labels).sum())
            losses.append(torch.nn.functional.cross_entropy(logits, labels).item())
        epochs = log[log["task"] == task].sort_values(["valid_accuracy", "valid_loss"], ascending=[False, True])
        assert correct / len(clips) == pytest.approx(epochs["valid_accuracy"].iloc[0])
        assert np.mean(losses) == pytest.approx(epochs["valid_loss"].iloc[0], rel=1e-3)


def test_sup_without_replay_validates_on_its_own_tasks_clips(lab, tmp_path):
    """A task has two validation clips, so an accuracy is 0, 1/2 or 1. With replay those of earlier tasks count too."""
    folder, _ = lab.train(tmp_path, TWO_TASKS, "--number_of_epochs=6", "--lr=0.3", "--use_mixup=True", kind="sup")
    log = pd.read_csv(folder / "train_log.csv")
    assert set(log["valid_accuracy"]) <= {0.0, 0.5, 1.0}
    assert log.groupby("task")["valid_accuracy"].max().min() > 0  # the classifier knows the task's own classes


def test_sup_tests_each_tasks_classifier(trained, us8k_rows):
    folder, said = trained["sup"]
    table, floor, record, confusion = read_evaluation(folder)
    for cells in (table, floor):
        assert (np.isfinite(cells.to_numpy()) == np.tri(2, dtype=bool)).all()
    assert record["protocol"] == "sup" and record["metrics"]["acc"] == pytest.approx(table.iloc[-1].mean())
    confusion = confusion.to_numpy()
    tested = us8k_rows[(us8k_rows["split"] == "test") & (us8k_rows["task"] < 2)]
    assert confusion.sum() == len(tested)
    assert table.iloc[-1, 0] == pytest.approx(confusion[[3, 8], [3, 8]].sum() / confusion[[3, 8]].sum())
    assert said.count("test accuracy on the classes so far") == 2
    for name in ("accuracy_table.png", "accuracy_over_tasks.png", "confusion_matrix.png", "training.png"):
        assert (folder / name).stat().st_size > 5000


def test_offline_training_is_one_tuple(lab, tmp_path):
    every = "[" + str(tuple(itertools.chain(*US8K_TASKS))) + "]"
    short = ("--number_of_epochs=1", "--warmup_epochs=0")
    folder, _ = lab.train(tmp_path / "out", f"--task_classes={every}", *short, kind="sup")
    assert read_evaluation(folder)[0].shape == (1, 1)
    assert len(pd.read_csv(folder / "per_class_accuracy.csv").dropna()) == 10
    judged, _ = lab.judge(tmp_path / "lin", folder, "--linclf_train_type=full", *DEBUG)
    table = read_evaluation(judged)[0]
    assert table.shape == (1, 5) and np.isfinite(table.to_numpy()).all()


# Linear evaluation


@pytest.fixture(scope="module")
def judged(lab, encoder, tmp_path_factory):
    """Evaluations of one encoder by the four protocols in this order: {name: (run folder, what was printed)}."""
    for file in (encoder / "embeddings").glob("*"):
        file.unlink()

    def judge(kind):
        settings = (f"--linclf_train_type={kind}", f"--replay_num_keep={'all' if kind in ('seen', 'full') else 4}")
        settings += ("--lr=0.5", "--number_of_epochs=3", "--warmup_epochs=1", "--batch_size=4")
        return lab.judge(tmp_path_factory.mktemp(kind), encoder, *settings)

    return {kind: judge(kind) for kind in ("seen", "full", "subset", "buffer")}


@pytest.mark.parametrize(("kind", "clips"), [("seen", 400), ("full", 200), ("subset", 0), ("buffer", 0)])
def test_evaluation_leaves_what_it_promises(judged, us8k_rows, kind, clips):
    """An evaluation embeds what no earlier one did, of 100 clips, 20 a task. `seen` needs those of tasks 0..t of each
    encoder t (300) and all of the random one (100), `full` the rest (80 + 60 + 40 + 20), the others none."""
    folder, said = judged[kind]
    check_evaluation(folder, us8k_rows, US8K_TASKS, kind)
    check_run_folder(folder, linclf_train_type=kind)
    assert str(folder) in said and read_evaluation(folder)[2]["clips_embedded"] == clips


@pytest.mark.parametrize(("kind", "trainings"), [("seen", (16, 32, 48, 64, 80)), ("buffer", (16, 20, 24, 28, 32))])
def test_protocols_train_on_the_clips_they_should(judged, kind, trainings):
    """Two classes a task, 8 clips a class; `buffer` keeps 4 of each earlier task."""
    found = re.findall(r"encoder of task (\d): (\d+) training clips", judged[kind][1])
    assert found == [(str(t), str(n)) for t, n in enumerate(trainings)]

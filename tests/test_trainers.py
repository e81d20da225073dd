"""simclr_train.py, simsiam_train.py and sup_train.py, run as a user runs them; then what they wrote."""

import itertools
import json
import time

import numpy as np
import pandas as pd
import pytest
import torch

from datasets.batches import WholeClips
from helpers.checks import check_logs, check_run_folder
from helpers.lab import DEBUG, US8K_TASKS
from models.embed import embed
from sup_train import Supervised
from utils.training.checkpoints import latest_checkpoint, load_weights
from utils.training.loop import plan_tasks, train_tasks
from utils.training.progress import RunProgress

SAVED = {
    "simclr": {"embedding_model", "projector", "predictor"},
    "simsiam": {"embedding_model", "projector", "predictor"},
    "sup": {"embedding_model", "classifier"},
}


@pytest.fixture(scope="module")
def trained(lab, tmp_path_factory):
    """{kind: (run folder, what the script said)}, two tasks each."""
    few = ("--task_classes=[[3,8],[9,4]]", "--number_of_epochs=3", "--replay_num_keep=4")
    return {kind: lab.train(tmp_path_factory.mktemp(kind) / "out", *few, kind=kind) for kind in SAVED}


def weights(folder, task):
    path = latest_checkpoint(folder / "save" / f"task{task}")[0]
    return {file.stem: torch.load(file) for file in path.glob("*.ckpt") if file.stem != "counter"}


@pytest.mark.parametrize("kind", SAVED)
def test_each_trainer_leaves_task_wise_weights_that_changed(trained, kind):
    folder, said = trained[kind]
    stages = [weights(folder, task) for task in (0, 1)]
    assert [set(stage) for stage in stages] == [SAVED[kind]] * 2
    for name in SAVED[kind]:
        one, other = (stage[name] for stage in stages)
        assert any(not torch.equal(one[entry], other[entry]) for entry in one)
        assert all(tensor.isfinite().all() for tensor in other.values())
    assert "task 2/2" in said and f"{16 + 4} clips" in said
    check_run_folder(folder, replay_num_keep=4)
    check_logs(folder)
    costs = json.loads((folder / "costs.json").read_text())
    assert costs["train_seconds"] > 0 and costs["peak_memory_bytes"] > 1e7


def test_simsiam_starts_near_zero_and_stays_a_cosine(trained):
    losses = pd.read_csv(trained["simsiam"][0] / "train_log.csv")["loss"]
    assert losses.between(-1, 1).all() and abs(losses.iloc[0]) < 0.7


@pytest.mark.parametrize("kind", SAVED)
def test_linclf_judges_every_trainers_encoders(lab, trained, tmp_path, kind):
    lab.run(
        "linclf_train.py", "hparams/us8k/linclf_train.yaml", *lab.tiny, f"--data_folder={lab.sounds}",
        f"--output_base={tmp_path}", f"--ssl_checkpoints_dir={trained[kind][0]}", "--task_classes=[[3,8],[9,4]]",
        "--batch_size=4", *DEBUG,
    )  # fmt: skip
    record = json.loads((tmp_path / "linclf+seed_2022" / "metrics.json").read_text())
    assert record["method"] == kind and 0 <= record["metrics"]["acc"] <= 1


# Supervised training


def test_sup_keeps_the_best_epoch(lab, trained):
    """The saved network has the best accuracy of train_log.csv on the validation clips; of equals, least loss."""
    folder = trained["sup"][0]
    log = pd.read_csv(folder / "train_log.csv")
    measured = {"loss", "sup", "emb_std", "emb_rank", "rank_max", "valid_loss", "valid_accuracy"}
    assert set(log.columns) == {"task", "epoch", "lr", *measured}
    hparams, _, data = lab.load("us8k/sup_train.yaml", "--task_classes=[[3,8],[9,4]]")
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


def test_sup_tests_each_tasks_classifier(lab, trained, us8k_rows):
    folder, said = trained["sup"]
    names = ("accuracy_table.csv", "floor_table.csv")
    table, floor = (pd.read_csv(folder / name, index_col="encoder") for name in names)
    for cells in (table, floor):
        assert (np.isfinite(cells.to_numpy()) == np.tri(2, dtype=bool)).all()
    record = json.loads((folder / "metrics.json").read_text())
    assert record["protocol"] == "sup"
    assert record["metrics"]["acc"] == pytest.approx(table.iloc[-1].mean())
    confusion = pd.read_csv(folder / "confusion_matrix.csv", index_col="true class").to_numpy()
    tested = us8k_rows[(us8k_rows["split"] == "test") & (us8k_rows["task"] < 2)]
    assert confusion.sum() == len(tested)
    assert table.iloc[-1, 0] == pytest.approx(confusion[[3, 8], [3, 8]].sum() / confusion[[3, 8]].sum())
    assert said.count("test accuracy on the classes so far") == 2
    for name in ("accuracy_table.png", "accuracy_over_tasks.png", "confusion_matrix.png", "training.png"):
        assert (folder / name).stat().st_size > 5000


def test_sup_validates_on_what_it_may_look_at(lab):
    """Without replay only the task's own clips; with it those of the tasks so far."""
    for keep, wanted in ((0, [{2}, {2}]), (4, [{2}, {4}])):
        hparams, run_opts, data = lab.load(
            "us8k/sup_train.yaml", *lab.quick, f"--replay_num_keep={keep}", "--task_classes=[[3,8],[9,4]]"
        )
        plan = plan_tasks(hparams, run_opts, data, validate=True)
        assert [{len(step["valid"])} for step in plan] == wanted
        assert [set(step["valid"]["split"]) for step in plan] == [{"valid"}] * 2
        assert set(plan[1]["valid"]["task"]) == ({1} if keep == 0 else {0, 1})


def test_offline_training_is_one_tuple(lab, tmp_path):
    every = "[" + str(tuple(itertools.chain(*US8K_TASKS))) + "]"
    folder, _ = lab.train(tmp_path / "out", f"--task_classes={every}", kind="sup")
    table = pd.read_csv(folder / "accuracy_table.csv", index_col="encoder")
    assert table.shape == (1, 1)
    assert len(pd.read_csv(folder / "per_class_accuracy.csv").dropna()) == 10
    judged = (
        "linclf_train.py", "hparams/us8k/linclf_train.yaml", *lab.tiny, f"--data_folder={lab.sounds}", *DEBUG,
        f"--output_base={tmp_path / 'lin'}", f"--ssl_checkpoints_dir={folder}", "--linclf_train_type=full",
    )  # fmt: skip
    lab.run(*judged)
    table = pd.read_csv(tmp_path / "lin" / "linclf+seed_2022" / "accuracy_table.csv", index_col="encoder")
    assert table.shape == (1, 5) and np.isfinite(table.to_numpy()).all()


def test_sup_killed_and_run_again_ends_with_the_same_bits(lab, tmp_path):
    """Also if the best epoch came before the kill: it is in the checkpoint."""
    settings = ("--task_classes=[[3,8],[9,4]]", "--number_of_epochs=6", "--ckpt_overhead=1000")
    straight, _ = lab.train(tmp_path / "straight", *settings, kind="sup")
    folder = tmp_path / "out" / "sup+seed_2022"
    start = ("hparams/us8k/sup_train.yaml", *lab.tiny, *lab.quick, f"--data_folder={lab.sounds}")
    command = lab.command("sup_train.py", *start, f"--output_base={tmp_path / 'out'}", *settings)
    process, log = lab.start(command), folder / "train_log.txt"
    while process.poll() is None and not (log.is_file() and "task: 1, epoch: 4" in log.read_text()):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -9 and "task: 1, epoch: 6" not in log.read_text()
    lab.train(tmp_path / "out", *settings, kind="sup")
    for task in (0, 1):
        one, other = weights(straight, task), weights(folder, task)
        assert all(torch.equal(one[m][entry], other[m][entry]) for m in one for entry in one[m])
    for name in ("accuracy_table.csv", "floor_table.csv", "train_log.csv", "confusion_matrix.csv"):
        assert (folder / name).read_bytes() == (straight / name).read_bytes(), name


def test_sup_has_one_view_and_labels_blended_by_mixup(lab, tmp_path):
    seen = []

    class Watched(Supervised):
        def compute_objectives(self, predictions, batch, stage):
            if stage.name == "TRAIN":
                seen.append(batch)
            return super().compute_objectives(predictions, batch, stage)

    hparams, run_opts, data = lab.load(
        "us8k/sup_train.yaml", *lab.quick, f"--output_base={tmp_path}", "--task_classes=[[3,8]]", "--use_mixup=True"
    )
    modules = {**hparams["modules"], "classifier": hparams["classifier"](n_classes=10)}
    train_tasks(Watched, hparams, run_opts, data, plan_tasks(hparams, run_opts, data, validate=True), modules)
    labels = torch.cat([batch.label_probs.data for batch in seen])
    assert not any(hasattr(batch, "view2") for batch in seen)
    assert torch.allclose(labels.sum(1), torch.ones(len(labels))) and (labels[:, [3, 8]].sum(1) > 0.999).all()
    assert ((labels > 0) & (labels < 1)).any()


def test_simclr_is_supclr_without_labels(lab, trained, tmp_path):
    """One loss of weight 1 and none other: the same bits."""
    few = ("--task_classes=[[3,8],[9,4]]", "--number_of_epochs=3", "--replay_num_keep=4")
    folder, _ = lab.train(tmp_path / "out", *few, "--ssl_weight=1", "--sup_weight=0")
    one, other = weights(trained["simclr"][0], 1), weights(folder, 1)
    assert all(torch.equal(one[m][entry], other[m][entry]) for m in one for entry in one[m])


@pytest.mark.parametrize("kind", ["simclr", "simsiam", "sup"])
def test_another_trainers_yaml_is_refused(lab, kind):
    for other in {"simclr", "simsiam", "sup", "supclr", "linclf"} - {kind}:
        command = lab.command(f"{kind}_train.py", f"hparams/us8k/{other}_train.yaml", f"--data_folder={lab.sounds}")
        command += ["--ssl_checkpoints_dir=there"] if other == "linclf" else []
        process = lab.start(command)
        said, _ = process.communicate(timeout=100)
        assert process.returncode == 2 and b"is it a configuration of this script?" in said, said


def test_extra_loggers_count_epochs_over_all_tasks(tmp_path):
    """W&B drops what goes back on its x axis."""
    steps = []

    class Log:
        def log_stats(self, stats_meta, train_stats=None, valid_stats=None):
            steps.append((stats_meta["epoch"], stats_meta["task"], train_stats["loss"], valid_stats["accuracy"]))

    class Options:
        noprogressbar = True

    plan = [{"rows": [], "epochs": 2, "steps": 3}, {"rows": [], "epochs": 3, "steps": 1}]
    with RunProgress({"output_folder": str(tmp_path), "extra_logger": None}, Options, plan) as progress:
        progress.loggers.append(Log())
        for task, epochs in ((0, 2), (1, 3)):
            for epoch in range(1, epochs + 1):
                progress.epoch({"task": task, "epoch": epoch, "loss": 0.5, "lr": 0.1, "valid_accuracy": 0.25})
    assert steps == [(1, 0, 0.5, 0.25), (2, 0, 0.5, 0.25), (3, 1, 0.5, 0.25), (4, 1, 0.5, 0.25), (5, 1, 0.5, 0.25)]

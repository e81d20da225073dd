"""Probes against independent references, few-shot draws, and what an evaluation with each probe leaves."""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from datasets.selection import few_of_each_class
from helpers.desk import Desk
from linclf_train import LinearProbe
from utils.evaluation import neighbours
from utils.evaluation.finetune import Crops, EpochBatches, Sounds, finetune
from utils.evaluation.logistic import logistic
from utils.evaluation.neighbours import Neighbours, knn, ncm
from utils.evaluation.probes import Embedded, predicted
from utils.evaluation.remembered import Remembered
from utils.io.errors import InputError

EPOCHS = ("--number_of_epochs=2", "--warmup_epochs=1", "--batch_size=8")


def blobs(n, seed, n_classes=5, dim=12, offset=0.3):
    """Overlapping classes of unequal sizes: vectors [n, D] and labels [n]; the last class has no clip."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(n_classes - 1, n, p=[0.5, 0.25, 0.15, 0.1])
    centres = np.random.default_rng(99).standard_normal((n_classes, dim))
    vectors = (centres[labels] + rng.standard_normal((n, dim)) + offset) * rng.uniform(0.5, 3, (n, 1))
    return Embedded(vectors.astype(np.float32), labels)


TRAIN, VALID, TEST = blobs(150, 0), blobs(80, 1), blobs(200, 2)


def knn_by_loops(k, temperature, balanced):
    bank, labels = TRAIN.vectors.double().numpy(), TRAIN.labels.numpy()
    found = []
    for query in TEST.vectors.double().numpy():
        cosines = [query @ v / np.linalg.norm(query) / np.linalg.norm(v) for v in bank]
        votes = np.zeros(5)
        for place in np.argsort(cosines)[::-1][:k]:
            votes[labels[place]] += np.exp(cosines[place] / temperature) / (
                (labels == labels[place]).sum() if balanced else 1
            )
        found.append((votes.argmax(), votes.max() / votes.sum()))
    return np.array([label for label, _ in found]), np.array([share for _, share in found])


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (1000, 0.1)])
def test_knn_is_that_of_loops(k, temperature, balanced):
    """1000 neighbours are all there are, 150."""
    predict = knn(TRAIN, VALID, 5, balanced, knn_k=k, knn_temperature=temperature)
    labels, scores = predict.scored(TEST.inputs)
    expected, shares = knn_by_loops(min(k, 150), temperature, balanced)
    assert (labels == expected).all() and predict.about == {"k": min(k, 150), "temperature": temperature}
    np.testing.assert_allclose(scores, shares, rtol=1e-4)


def test_knn_without_weights_is_scikit_learns():
    theirs = KNeighborsClassifier(7).fit(normalize(TRAIN.inputs), TRAIN.labels)
    shares = theirs.predict_proba(normalize(TEST.inputs))
    scores = knn(TRAIN, VALID, 5, False, knn_k=7, knn_temperature=1e6).scored(TEST.inputs)[1]
    np.testing.assert_allclose(scores, shares.max(1), atol=1e-3)


@pytest.mark.parametrize("most", [1, 1000, 1500])
def test_knn_in_chunks_is_knn_at_once(monkeypatch, most):
    bank = Neighbours(TRAIN.vectors, TRAIN.labels, 5, False)
    ((_, whole, places),) = bank.nearest(TEST.vectors, 20)
    labels, scores = knn(TRAIN, VALID, 5, False).scored(TEST.inputs)
    monkeypatch.setattr(neighbours, "MOST_SIMILARITIES", most)
    chunks = list(bank.nearest(TEST.vectors, 20))
    assert len(chunks) == (200 if most < 300 else 200 // (most // 150) + (200 % (most // 150) > 0))
    torch.testing.assert_close(torch.cat([chunk[1] for chunk in chunks]), whole)
    assert torch.equal(torch.cat([chunk[2] for chunk in chunks]), places)
    found = knn(TRAIN, VALID, 5, False).scored(TEST.inputs)
    assert (found[0] == labels).all() and np.allclose(found[1], scores, rtol=1e-5)


def test_validation_picks_k_and_temperature():
    choices = [(k, t) for k in (1, 20, 150) for t in (0.07, 1.0)]
    right = [
        (knn(TRAIN, VALID, 5, False, knn_k=k, knn_temperature=t)(VALID.inputs) == VALID.labels.numpy()).sum()
        for k, t in choices
    ]
    about = knn(TRAIN, VALID, 5, False, knn_k=[1, 20, 150], knn_temperature=[0.07, 1.0]).about
    assert (about["k"], about["temperature"]) == choices[int(np.argmax(right))] and min(right) < max(right)


def test_ncm_is_scikit_learns_on_normalised_embeddings():
    """Between unit vectors the nearest by distance from a mean differs from that by cosine, unless it has norm 1."""
    units, labels = normalize(TRAIN.inputs), TRAIN.labels.numpy()
    theirs = NearestCentroid().fit(units, labels)
    theirs.centroids_ = normalize(theirs.centroids_)
    found, cosines = ncm(TRAIN, VALID, 5, True).scored(TEST.inputs)
    assert (found == theirs.predict(normalize(TEST.inputs))).all() and 4 not in found
    np.testing.assert_allclose(cosines, (normalize(TEST.inputs) @ theirs.centroids_.T).max(1), rtol=1e-4)


@pytest.mark.parametrize("balanced", [False, True])
def test_logistic_is_scikit_learns_with_the_c_of_best_validation(balanced):
    weights = "balanced" if balanced else None
    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, class_weight=weights, max_iter=1000))
        for c in (0.001, 0.1, 10)
    ]
    accuracies = [m.fit(TRAIN.inputs, TRAIN.labels).score(VALID.inputs, VALID.labels) for m in models]
    best = models[int(np.argmax(accuracies))]
    predict = logistic(TRAIN, VALID, 5, balanced, logistic_c=[10, 0.001, 0.1])
    labels, scores = predict.scored(TEST.inputs)
    assert min(accuracies) < max(accuracies) and predict.about["C"] == best[-1].C
    assert (labels == best.predict(TEST.inputs)).all()
    np.testing.assert_allclose(scores, best.predict_proba(TEST.inputs).max(1), atol=2e-3)


@pytest.mark.parametrize("probe", [logistic, knn, ncm])
def test_one_class_and_vectors_of_zero_are_no_error(probe):
    one = Embedded(np.zeros((3, 12), np.float32), np.array([2, 2, 2]))
    labels, scores = predicted(probe(one, VALID, 5, False), TEST)
    assert (labels == 2).all() and np.isfinite(scores).all()


# Few-shot


def test_few_shot_draws_are_functions_of_seed_draw_and_class():
    rows = pd.DataFrame({"label": np.repeat([0, 1, 2], [30, 20, 8]), "class_name": np.repeat([*"abc"], [30, 20, 8])})
    first = few_of_each_class(rows, 8, 0, seed=1)
    assert first["label"].value_counts().to_dict() == {0: 8, 1: 8, 2: 8} and first.index.is_monotonic_increasing
    assert first.equals(few_of_each_class(rows, 8, 0, seed=1))
    others = [few_of_each_class(rows, 8, draw, seed) for draw, seed in ((1, 1), (0, 2))]
    assert not any(first.index.equals(other.index) for other in others)
    later = few_of_each_class(rows[rows["label"] != 1], 8, 0, seed=1)  # the draw of a class depends on no other
    assert later.equals(first[first["label"] != 1])
    with pytest.raises(InputError, match="few_shot is 9, but the class c has 8 training clips"):
        few_of_each_class(rows, 9, 0, seed=1)


# What is remembered


def test_remembered_measures_each_task_under_each_encoder():
    """Two encoders of two tasks of two classes: the second rotates and doubles what the first made of task 0."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"label": np.tile([0, 1, 2, 3], 30), "task": np.tile([0, 0, 1, 1], 30)})
    rows["clip"] = np.arange(120)
    parts = {"train": rows[:80], "test": rows[80:]}
    first = rng.standard_normal((120, 6)) + np.eye(6)[rows["label"]]
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    vectors = {"0": first, "1": 2 * first @ rotation, "random": rng.standard_normal((120, 6))}

    def rows_of(t):
        return {name: part[part["task"] <= t] for name, part in parts.items()}

    def get(embedder, store, clips, what, key):
        return vectors[key][clips].astype(np.float32)

    data = SimpleNamespace(n_tasks=2, classes=[*"abcd"], store=None)
    measured = Remembered(SimpleNamespace(data=data, rows=rows_of), 2)
    for t in range(2):
        measured.add(t, None, SimpleNamespace(get=get), str(t))
    measured.add_floor(1, None, SimpleNamespace(get=get), "random")
    tables = measured.as_lists()
    for name, values in tables.items():
        assert name == "knn_floor" or values[0][1] is None, name  # encoder 0 is not judged on task 1
    assert tables["cka"][0][0] == pytest.approx(1) and tables["cka"][1][0] == pytest.approx(1, abs=1e-5)
    test = first[80:][parts["test"]["task"] == 0] - first[80:][parts["test"]["task"] == 0].mean(0)
    cosines = ((test @ rotation) * test).sum(1) / np.square(test).sum(1)
    assert tables["shift"][0][0] == pytest.approx(0, abs=1e-6)
    assert tables["shift"][1][0] == pytest.approx(1 - cosines.mean(), abs=1e-4)
    own = [part[part["task"] == 0] for part in parts.values()]
    theirs = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07))
    theirs.fit(normalize(first[own[0]["clip"]]), own[0]["label"])
    expected = theirs.score(normalize(first[own[1]["clip"]]), own[1]["label"])
    assert tables["knn"][0][0] == tables["knn"][1][0] == pytest.approx(expected)
    shares = np.linalg.svd(first[own[1]["clip"]], compute_uv=False)
    shares /= shares.sum()
    assert tables["rank"][0][0] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-3)
    assert len(tables["knn_floor"]) == 2 and None not in tables["knn_floor"]


# Fine-tuning


class Store:
    """Clips whose samples are their number, 5 + number of them."""

    lengths = np.arange(5, 25)

    def read(self, clip, start=0, stop=None):
        return np.full(self.lengths[clip], clip, np.float32)[start:stop]


def test_crops_and_batches_are_functions_of_seed_and_epoch():
    sounds = Sounds(pd.DataFrame({"clip": np.arange(20), "label": np.arange(20) % 3}), Store())
    batches = EpochBatches(20, 6, seed=3)
    orders = []
    for epoch in (1, 2, 1):
        batches.set_epoch(epoch)
        orders.append(list(batches))
    assert orders[0] == orders[2] != orders[1] and [len(batch) for batch in orders[0]] == [6, 6, 6]
    assert len({place for batch in orders[0] for _, place in batch}) == 18
    wav, lengths, labels = Crops(sounds, 10, seed=3)[[(1, 0), (1, 19)]]
    assert wav.shape == (2, 10) and lengths.tolist() == [0.5, 1.0] and labels.tolist() == [0, 1]
    assert wav[0].tolist() == [0.0] * 10 and set(wav[1].tolist()) == {19.0}
    shares = np.where(sounds.labels.numpy() == 2, 1 / 6, 0)  # 6 of the 20 clips
    assert {int(sounds.labels[p]) for batch in EpochBatches(20, 6, 3, shares) for _, p in batch} == {2}


# Evaluations


@pytest.fixture
def start(lab, tmp_path):
    """Function: overrides -> an evaluation's run, with its data read."""
    needs = ("--ssl_checkpoints_dir=unused", f"--output_base={tmp_path}", "--batch_size=8")
    return lambda *args: lab.start_run(LinearProbe, "us8k/linclf_train.yaml", *needs, *args)


@pytest.fixture(scope="module")
def judged(lab, encoder, tmp_path_factory):
    """Function: overrides -> the run folder of an evaluation of the lab's encoder, each made once."""
    made = {}

    def judge(*args):
        if args not in made:
            made[args] = lab.judge(tmp_path_factory.mktemp("judged") / "out", encoder, *EPOCHS, *args)[0]
        return made[args]

    return judge


@pytest.mark.parametrize("probe", ["linear", "knn", "finetune"])
def test_tables_confusion_and_accuracies_are_those_of_the_predictions(judged, probe):
    args = ("--linclf_train_type=full",) if probe == "finetune" else ()
    folder = judged(f"--probe={probe}", *args)
    table = pd.read_csv(folder / "predictions.csv")
    record = json.loads((folder / "metrics.json").read_text())
    assert (record["probe"], record["few_shot"]) == (probe, None) and set(table["draw"]) == {0}
    floors = ["floor0"] if args else [f"floor{t}" for t in range(5)]
    assert list(table["encoder"].unique()) == [f"task{t}" for t in range(5)] + floors
    assert table["score"].between(0, 1).all()
    right = table.assign(right=table["true"] == table["predicted"]).groupby(["encoder", "task"])["right"].mean()
    for prefix, name in (("task", "accuracy_table.csv"), ("floor", "floor_table.csv")):
        cells = pd.read_csv(folder / name, index_col="encoder").to_numpy()
        for t, task in np.argwhere(np.isfinite(cells)):
            encoder = "floor0" if prefix == "floor" and args else f"{prefix}{t}"
            assert cells[t, task] == pytest.approx(right[encoder, task])
    last = table[table["encoder"] == "task4"]
    confusion = pd.read_csv(folder / "confusion_matrix.csv", index_col="true class")
    assert (sklearn_confusion(last["true"], last["predicted"], labels=list(confusion.columns)) == confusion).all(
        axis=None
    )
    assert last["clip"].str.startswith("audio/fold10/").all() and last["clip"].is_unique
    assert (record["remembered"] is None) == (probe == "finetune") != (folder / "remembered.png").exists()


def test_finetuning_trains_a_copy_of_the_encoder(start):
    """The encoder that is judged stays as it is, and at a rate of 0 so does the copy, but for its batch statistics."""
    run = start("--lr=0.5", "--number_of_epochs=1", "--warmup_epochs=0")
    train, valid = (Sounds(run.data.split(name), run.data.store) for name in ("train", "valid"))
    before = copy.deepcopy(run.hparams["modules"]["embedding_model"].state_dict())
    moved = []
    for rate in (0.0, 0.5):
        copied = finetune(train, valid, 10, True, run=run, finetune_lr=rate, finetune_duration=0.2).brain.modules
        parameters = dict(copied["embedding_model"].named_parameters())
        moved.append([name for name, value in parameters.items() if not torch.equal(value, before[name])])
    assert moved[0] == [] and len(moved[1]) > 5
    after = run.hparams["modules"]["embedding_model"].state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_few_shot_has_mean_and_spread_over_its_draws(judged):
    folder = judged("--probe=ncm", "--few_shot=2", "--linclf_train_type=full")
    record = json.loads((folder / "metrics.json").read_text())
    table = pd.read_csv(folder / "predictions.csv")
    for name, encoder in (("metrics", "task4"), ("floor", "floor0")):
        mine = table[table["encoder"] == encoder]
        by_draw = (mine["true"] == mine["predicted"]).groupby([mine["draw"], mine["task"]]).mean()
        accuracies = by_draw.groupby("draw").mean()
        assert len(accuracies) == 5
        assert record[name]["acc"] == pytest.approx(accuracies.mean())
        assert record[f"{name}_std"]["acc"] == pytest.approx(accuracies.std())
    assert record["few_shot"] == 2 and record["metrics_std"]["acc"] + record["floor_std"]["acc"] > 0
    by_class = pd.read_csv(folder / "per_class_accuracy.csv")
    assert (by_class["clips"] == 1).all()


def test_an_interrupted_evaluation_ends_with_the_same_files(lab, encoder, judged, tmp_path):
    """Of two encoders' results one is gone and one is of an earlier version, without predictions."""
    whole = judged("--probe=knn")
    folder = Path(shutil.copytree(whole, tmp_path / "out" / whole.name))
    for name in ("metrics.json", "predictions.csv", "accuracy_table.csv", "save/task2.json"):
        (folder / name).unlink()
    old = json.loads((folder / "save/task3.json").read_text())
    old = {key: value for key, value in old.items() if key not in ("predictions", "crc32")}
    (folder / "save/task3.json").write_text(json.dumps(old))
    said = lab.judge(tmp_path / "out", encoder, *EPOCHS, "--probe=knn")[1]
    assert said.count("judged already") == 8 and said.count("of an earlier version, without predictions") == 1
    for name in ("predictions.csv", "accuracy_table.csv", "floor_table.csv", "confusion_matrix.csv"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--probe=svm"], ["probe is 'svm'", "linear, logistic, knn, ncm, finetune"]),
        (["--few_shot=9"], ["few_shot is 9, but the class", "has 8 training clips"]),
        (["--few_shot=0"], ["few_shot is 0", "at least 1"]),
        (["--probe=finetune", "--few_shot=2"], ["few_shot goes with any probe but finetune"]),
        (["--probe=knn", "--knn_k=[20,0]"], ["knn_k is [20, 0]", "whole numbers of at least 1"]),
        (["--probe=logistic", "--logistic_c=0"], ["logistic_c is 0", "above 0"]),
        (["--probe=knn", "--knn_temperature=[]"], ["knn_temperature is []"]),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(trained, tmp_path, args, words):
    desk = Desk(trained)
    desk.refused(desk.probe_args(f"--output_base={tmp_path}", *args), *words)

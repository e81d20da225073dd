"""supclr_train.py and linclf_train.py, run as a user runs them; then what they wrote."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import ruamel.yaml
import torch
from speechbrain.utils.run_opts import RunOptions

from helpers.checks import check_evaluation, check_run_folder, check_training, read_evaluation
from helpers.lab import DEBUG, REPO, US8K_TASKS
from models.norms import NORMS
from supclr_train import SupCLR
from utils.evaluation.saved import ENCODER_KEYS
from utils.training.checkpoints import latest_checkpoint, load_weights
from utils.training.loop import plan_tasks, train_tasks

TRAINERS = ("supclr", "simclr", "simsiam", "sup")


def esc50_rows(folder, tasks, esc10_only=False):
    """ESC-50's clips with split, label and task, read without the code under test."""
    meta = pd.read_csv(folder / "meta" / "esc50.csv")
    meta = meta[meta["esc10"] | (not esc10_only)]
    label = meta["target"].map({target: i for i, target in enumerate(sorted(meta["target"].unique()))})
    task_of = {member: task for task, members in enumerate(tasks) for member in members}
    split = meta["fold"].map({1: "train", 2: "train", 3: "train", 4: "valid", 5: "test"})
    rows = {"wav_path": "audio/" + meta["filename"], "class_name": meta["category"], "split": split, "label": label}
    return pd.DataFrame(rows).assign(task=label.map(task_of))


# The three data sets


@pytest.mark.parametrize("esc10_only", [False, True])
def test_esc50_and_esc10(lab, tmp_path, esc10_only):
    tasks = US8K_TASKS if esc10_only else [range(first, first + 5) for first in range(0, 50, 5)]
    rows = esc50_rows(lab.esc50, tasks, esc10_only)
    assert len(rows) == (50 if esc10_only else 250)
    subset = f"--esc10_only={esc10_only}"
    folder, _ = lab.train(tmp_path / "out", subset, *DEBUG, yaml="esc50", data=lab.esc50)
    check_training(folder, rows, n_tasks=len(tasks), epochs=1)
    lab.run(
        "linclf_train.py", "hparams/esc50/linclf_train.yaml", *lab.tiny, subset, f"--data_folder={lab.esc50}",
        f"--output_base={tmp_path / 'eval'}", f"--ssl_checkpoints_dir={folder}", "--batch_size=8", *DEBUG,
    )  # fmt: skip
    folder = tmp_path / "eval" / "linclf+seed_2022"
    check_run_folder(folder, esc10_only=esc10_only, encoder="pann_tiny")
    check_evaluation(folder, rows, tasks, "seen")
    assert read_evaluation(folder)[2]["dataset"] == ("ESC-10" if esc10_only else "ESC-50")


def test_demo_needs_no_data(lab, tmp_path):
    """The YAMLs' own encoder and the data set that they generate; only the places differ."""
    data, base = f"--data_folder={tmp_path / 'data'}", tmp_path / "out"
    lab.run("supclr_train.py", "hparams/demo/supclr_train.yaml", data, f"--output_base={base}", *DEBUG)
    meta = pd.read_csv(tmp_path / "data" / "metadata" / "UrbanSound8K.csv")
    tasks = {label: task for task, members in enumerate(US8K_TASKS) for label in members}
    split = meta["fold"].map(lambda fold: {9: "valid", 10: "test"}.get(fold, "train"))
    path = "audio/fold" + meta["fold"].astype(str) + "/" + meta["slice_file_name"]
    rows = pd.DataFrame({"wav_path": path, "class_name": meta["class"], "split": split, "label": meta["classID"]})
    check_training(base / "supclr+seed_2022", rows.assign(task=rows["label"].map(tasks)), n_tasks=5, epochs=1)
    where = (f"--output_base={base / 'linclf'}", f"--ssl_checkpoints_dir={base / 'supclr+seed_2022' / 'save'}")
    said = lab.run("linclf_train.py", "hparams/demo/linclf_train.yaml", data, *where, *DEBUG)
    check_evaluation(base / "linclf" / "linclf+seed_2022", rows, US8K_TASKS, "seen")
    assert said.count("\n") < 60


# A training that is no debug run


def test_training_leaves_what_it_promises(encoder, us8k_rows):
    check_training(encoder, us8k_rows, n_tasks=5, epochs=2)
    check_run_folder(encoder, encoder="pann_tiny", emb_dim=16, sup_weight=1, batch_size=4)
    table = pd.read_csv(encoder / "train_log.csv")
    assert table["loss"].to_numpy() == pytest.approx((table["ssl"] + table["sup"]).to_numpy(), rel=1e-5)
    assert (encoder / "supclr_train.py").read_bytes() == (REPO / "supclr_train.py").read_bytes()


def test_ecapa_with_labels_mixup_and_replay_from_another_folder(lab, tmp_path):
    folder, said = lab.train(
        tmp_path / "out", "--encoder=ecapa_small", "--sup_weight=0.5", "--use_mixup=True", "--replay_num_keep=3",
        "--task_classes=[[3,8],[9,4]]", *DEBUG,
    )  # fmt: skip
    table = pd.read_csv(folder / "train_log.csv")
    assert table["loss"].to_numpy() == pytest.approx((table["ssl"] + 0.5 * table["sup"]).to_numpy(), rel=1e-5)
    assert re.search(r"task 1/2 \(.*\): 16 clips", said) and re.search(r"task 2/2 \(.*\): 19 clips", said)
    weights = torch.load(latest_checkpoint(folder / "save" / "task1")[0] / "embedding_model.ckpt")
    assert any("tdnn" in name for name in weights) and all(w.isfinite().all() for w in weights.values())


def test_scripts_run_from_any_folder(lab, tmp_path):
    """The log's configuration is found too: without it, SpeechBrain turns every library's debug messages on."""
    said = lab.run(
        "supclr_train.py", REPO / "hparams/us8k/supclr_train.yaml", *lab.tiny, *lab.quick, *DEBUG,
        "--task_classes=[[3,8]]", f"--data_folder={lab.sounds}", "--output_base=out", cwd=tmp_path,
    )  # fmt: skip
    assert "task 1/1" in said and "DEBUG" not in said and "INFO" not in said, said
    assert (tmp_path / "out" / "supclr+seed_2022" / "save" / "task0").is_dir()


@pytest.mark.parametrize("norms", [("in", "bn"), ("ln", "bn"), ("bn", "in"), ("bn", "ln"), ("bn", "id")], ids="-".join)
def test_every_norm_trains(lab, tmp_path, norms):
    hparams, run_opts, data = lab.load(
        "us8k/supclr_train.yaml", *lab.quick, *DEBUG, "--warmup_epochs=0", f"--output_base={tmp_path}",
        f"--emb_norm_type={norms[0]}", f"--proj_norm_type={norms[1]}", "--task_classes=[[3,8]]",
    )  # fmt: skip
    modules = {**hparams["modules"], "classifier": hparams["classifier"](n_classes=10)}
    names = ("embedding_model", "projector", "predictor")
    before = {f"{m}.{n}": p.detach().clone() for m in names for n, p in modules[m].named_parameters()}
    train_tasks(SupCLR, hparams, run_opts, data, plan_tasks(hparams, run_opts, data), modules)
    load_weights(Path(hparams["save_folder"]) / "task0", {name: modules[name] for name in names})
    after = {f"{m}.{n}": p.detach() for m in names for n, p in modules[m].named_parameters()}
    assert all(weights.isfinite().all() for weights in after.values())
    changed = {name for name, weights in after.items() if not torch.equal(weights, before[name])}
    assert {name.split(".")[0] for name in changed} == set(names)
    kinds = {type(layer) for layer in modules["projector"].modules()}
    assert type(NORMS[norms[1]](16)) in kinds
    encoder_norms = {"bn": torch.nn.BatchNorm2d, "in": torch.nn.InstanceNorm2d, "ln": torch.nn.GroupNorm}
    assert encoder_norms[norms[0]] in {type(layer) for layer in modules["embedding_model"].modules()}


# Linear evaluation


@pytest.fixture(scope="module")
def judged(lab, encoder, tmp_path_factory):
    """The four protocols over one encoder, `seen` first: {name: (run folder, what it said)}, and a function to run."""
    base = tmp_path_factory.mktemp("judged")
    shutil.rmtree(encoder / "embeddings", ignore_errors=True)

    def judge(kind, name=None):
        said = lab.run(
            "linclf_train.py", "hparams/us8k/linclf_train.yaml", *lab.tiny, f"--data_folder={lab.sounds}",
            f"--output_base={base}", f"--ssl_checkpoints_dir={encoder}", f"--linclf_train_type={kind}", "--lr=0.5",
            f"--replay_num_keep={'all' if kind in ('seen', 'full') else 4}", "--number_of_epochs=3",
            "--warmup_epochs=1", "--batch_size=4", f"--experiment_name={name or kind}",
        )  # fmt: skip
        return base / f"{name or kind}+seed_2022", said

    first, others = judge("seen"), ("full", "subset", "buffer")
    with ThreadPoolExecutor(2) as pool:
        return {"seen": first, **dict(zip(others, pool.map(judge, others), strict=True))}, judge


@pytest.mark.parametrize("kind", ["seen", "full", "subset", "buffer"])
def test_evaluation_leaves_what_it_promises(judged, us8k_rows, kind):
    folder, said = judged[0][kind]
    check_evaluation(folder, us8k_rows, US8K_TASKS, kind)
    check_run_folder(folder, linclf_train_type=kind)
    assert str(folder) in said


@pytest.mark.parametrize(("kind", "clips"), [("seen", 400), ("full", 200), ("subset", 0), ("buffer", 0)])
def test_an_evaluation_embeds_what_no_earlier_one_has(judged, kind, clips):
    """100 clips, 20 a task. `seen` needs tasks 0..t of encoder t (300), and all of the random one (100); `full` the
    rest of encoders 0 to 3 (80 + 60 + 40 + 20); the others nothing new."""
    assert read_evaluation(judged[0][kind][0])[2]["clips_embedded"] == clips


@pytest.mark.parametrize(("kind", "trainings"), [("seen", (2, 4, 6, 8, 10)), ("buffer", (16, 20, 24, 28, 32))])
def test_protocols_train_on_the_clips_they_should(judged, kind, trainings):
    said = judged[0][kind][1]
    if kind == "seen":
        trainings = [8 * n for n in trainings]  # two classes a task, 8 clips a class
    found = re.findall(r"encoder of task (\d): (\d+) training clips", said)
    assert found == [(str(t), str(n)) for t, n in enumerate(trainings)]


@pytest.mark.parametrize("kind", ["seen", "full"])
def test_an_evaluation_run_again_trains_nothing(judged, encoder, kind):
    """Same files, but for the log, and the count of clips embedded, which is this start's."""
    folder, first = judged[0][kind]
    kept = [*(folder / "save").iterdir(), *(encoder / "embeddings").iterdir()]
    times = {path: path.stat().st_mtime_ns for path in kept}
    files = {path: path.read_bytes() for path in folder.iterdir() if path.suffix in (".csv", ".png")}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(times) > 6 and len(files) == 7
    _, said = judged[1](kind)
    assert said.count("judged already") == len(list((folder / "save").iterdir())) and "training clips" not in said
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    assert {path: path.read_bytes() for path in files} == files
    again = json.loads((folder / "metrics.json").read_text())
    assert again.pop("clips_embedded") == 0
    metrics.pop("clips_embedded")
    assert json.dumps(again) == json.dumps(metrics)
    summary = first[first.index("training clips, best of") :].partition("\n\n")[2]
    assert summary and said.endswith(summary)


# The YAMLs


def plain_yaml(path):
    """{key: its YAML text}, references and comments left as they are."""
    content = ruamel.yaml.YAML(typ="rt").load(path.read_text())
    text = re.sub(r"\s+#.*", "", path.read_text())
    blocks = re.split(r"\n(?=[A-Za-z_]\w*:)", "\n" + text)
    found = {block.partition(":")[0]: block.partition(":")[2].strip() for block in blocks[1:]}
    assert set(found) == set(content)
    return found


YAMLS = sorted(REPO.glob("hparams/**/*.yaml"))


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(REPO / "hparams")))
def test_no_key_is_the_beginning_of_a_run_option(path):
    """argparse would take `--log: x` for `--log_config`, and the YAML's key would never be overridden."""
    options = set(RunOptions().as_dict())
    assert not [(key, o) for key in plain_yaml(path) for o in options if o.startswith(key) and o != key]


@pytest.mark.parametrize(
    ("name", "may_differ"),
    [
        *((f"{kind}_train", {"lr", "train_duration", "num_workers", "mask_fill"}) for kind in TRAINERS),
        ("linclf_train", {"ssl_checkpoints_dir", "standardise"}),
    ],
)
def test_copies_of_a_yaml_differ_only_where_they_may(name, may_differ):
    may_differ = may_differ | {"output_base", "data_folder", "dataset", "task_classes", "encoder", "emb_dim"}
    may_differ |= {"number_of_epochs", "warmup_epochs"}
    demo = set() if name == "linclf_train" else {"replay_num_keep"}  # few clips, few steps
    copies = {path.parent.name: plain_yaml(path) for path in YAMLS if path.stem == name}
    assert set(copies) == {"us8k", "tau19", "vgg", "esc50", "demo", *({"hparams"} if name != "supclr_train" else set())}
    first = copies["us8k"]
    for dataset, copy in copies.items():
        only = {"esc50": {"esc10_only"}, "tau19": {"valid_from"}, "vgg": {"n_tasks"}}.get(dataset, set())
        assert set(copy) - set(first) == only and not set(first) - set(copy)
        differing = {key for key in first if copy[key] != first[key]}
        assert differing <= (may_differ | demo if dataset == "demo" else may_differ)


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("dataset", ["us8k", "tau19", "vgg", "esc50", "demo", ""])
def test_an_encoder_is_judged_with_the_settings_that_it_was_trained_with(dataset, kind):
    if not dataset and kind == "supclr":
        pytest.skip("supclr_train.py has no YAML at the root")
    train, judge = (plain_yaml(REPO / "hparams" / dataset / f"{name}_train.yaml") for name in (kind, "linclf"))
    train["embedding_model"] = train["embedding_model"].replace("\n  weights: !ref <pretrained_weights>", "")
    shared = {*ENCODER_KEYS, "dataset", "task_classes", "data_folder", "store_folder", "seed", "embedding_model"}
    assert {key: train[key] for key in shared} == {key: judge[key] for key in shared}

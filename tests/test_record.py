"""What a run folder records of how its numbers came about: what must be there, and what must not."""

import json
import shutil

import pandas as pd
import pytest
import soundfile

from utils.run.costs import read_costs

SECRETS = {"SOME_API_TOKEN": "planted-token-7f3a", "USER": "planted-user-7f3a", "LOGNAME": "planted-login-7f3a"}
ONE_TASK = ("--task_classes=[[3,8]]", "--debug", "--debug_batches=1", "--debug_epochs=1")


@pytest.fixture(scope="module")
def runs(lab, tmp_path_factory):
    """The folders of a training with its own test and of an evaluation, started with secrets in the environment."""
    base = tmp_path_factory.mktemp("record")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        trained, said = lab.train(base / "out", *ONE_TASK, kind="sup")
        said += lab.run(
            "linclf_train.py", "hparams/us8k/linclf_train.yaml", *lab.tiny, f"--data_folder={lab.sounds}", *ONE_TASK,
            f"--output_base={base / 'eval'}", f"--ssl_checkpoints_dir={trained}", "--batch_size=8",
        )  # fmt: skip
    return trained, base / "eval" / "linclf+seed_2022", said


def test_a_run_records_machine_data_and_cost(runs, lab):
    trained, judged, _ = runs
    first, second = (json.loads((folder / "versions.json").read_text()) for folder in (trained, judged))
    assert first["command"][:2] == ["sup_train.py", "hparams/us8k/sup_train.yaml"]
    assert first["threads"] == second["threads"] == 1 and first["device"] == second["device"] != ""
    assert first["commit"] and first["torch"] and first["python"]
    assert first["data"] == second["data"] == lab.load("us8k/sup_train.yaml", ONE_TASK[0])[2].fingerprint()
    for folder in (trained, judged):
        costs = read_costs(folder)
        assert costs["train_seconds"] > 0 and costs["peak_memory_bytes"] > 50e6
        assert json.loads((folder / "settings.json").read_text())["precision"] in ("fp32", "bf16")
    metrics = json.loads((judged / "metrics.json").read_text())
    assert {key: metrics[f"train_{key}"] for key in ("commit", "torch", "threads", "data")} == {
        key: first[key] for key in ("commit", "torch", "threads", "data")
    }


def test_no_run_tells_of_environment_and_user(runs):
    trained, judged, said = runs
    files = [path for folder in (trained, judged) for path in folder.rglob("*") if path.is_file()]
    assert {"log.txt", "settings.json", "hyperparams.yaml", "versions.json"} <= {path.name for path in files}
    assert not [value for value in SECRETS.values() if value in said]
    assert not [(path, v) for path in files for v in SECRETS.values() if v.encode() in path.read_bytes()]


# The data's fingerprint


def fingerprint(lab, folder, *args):
    return lab.load("us8k/supclr_train.yaml", *args, data=folder)[2].fingerprint()


@pytest.fixture
def copied(lab, tmp_path):
    """The sounds in another folder, all files written anew."""
    return shutil.copytree(lab.sounds, tmp_path / "elsewhere", copy_function=shutil.copy)


def test_a_copy_has_the_same_fingerprint(lab, copied):
    assert fingerprint(lab, copied) == fingerprint(lab, lab.sounds)
    live = [fingerprint(lab, folder, "--store_folder=null") for folder in (copied, lab.sounds)]
    assert live[0] == live[1] and live[0].startswith("live ")
    assert fingerprint(lab, copied).startswith("stored ")


def test_other_samples_splits_or_classes_have_another(lab, copied):
    before = fingerprint(lab, copied)
    assert fingerprint(lab, copied, "--task_classes=[[3,8]]") != before
    assert fingerprint(lab, copied, "--task_classes=[[8],[3,9,4,1,7,5,2,6,0]]") == before  # other tasks
    path = sorted((copied / "audio" / "fold1").glob("*.wav"))[0]
    wav, rate = soundfile.read(path, dtype="int16")
    wav[len(wav) // 2] += 50 if wav[len(wav) // 2] < 0 else -50
    soundfile.write(path, wav, rate)
    changed = fingerprint(lab, copied)
    assert changed != before
    table = copied / "metadata" / "UrbanSound8K.csv"
    meta = pd.read_csv(table)
    (copied / "audio" / "fold1" / path.name).rename(copied / "audio" / "fold9" / path.name)
    meta.loc[meta["slice_file_name"] == path.name, "fold"] = 9  # of the validation split now
    meta.to_csv(table, index=False)
    assert fingerprint(lab, copied) not in (before, changed)

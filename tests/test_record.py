"""What a run folder records of how its numbers came about: what must be there, and what must not."""

import json

from helpers.desk import Desk
from helpers.lab import DEBUG
from utils.run.costs import read_costs

SECRETS = {"SOME_API_TOKEN": "planted-token-7f3a", "USER": "planted-user-7f3a", "LOGNAME": "planted-login-7f3a"}


def test_a_run_records_machine_data_and_cost_and_nothing_of_environment_and_user(lab, tmp_path, monkeypatch):
    """A training with its own test, and an evaluation of its encoder."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    desk, few = Desk(tmp_path), ("--task_classes=[[3,8]]", *DEBUG, "--batch_size=4", "--output_base=out")
    training = ("sup_train.py", *lab.arguments("us8k/sup_train.yaml", *lab.quick, *few))
    judging = (*few, "--ssl_checkpoints_dir=out/sup+seed_2022")
    said = [desk.run(training), desk.run(("linclf_train.py", *lab.arguments("us8k/linclf_train.yaml", *judging)))]
    assert [done.code for done in said] == [0, 0]
    trained, judged = (tmp_path / "out" / f"{name}+seed_2022" for name in ("sup", "linclf"))
    first, second = (json.loads((folder / "versions.json").read_text()) for folder in (trained, judged))
    assert first["command"] == list(training)
    assert first["threads"] == second["threads"] == 1 and first["device"] == second["device"] != ""
    assert first["commit"] and first["torch"] and first["python"]
    assert first["data"] == second["data"] == lab.load("us8k/sup_train.yaml", few[0])[2].fingerprint()
    for folder in (trained, judged):
        costs = read_costs(folder)
        assert costs["train_seconds"] > 0 and costs["peak_memory_bytes"] > 50e6
        assert json.loads((folder / "settings.json").read_text())["precision"] in ("fp32", "bf16")
    metrics = json.loads((judged / "metrics.json").read_text())
    recorded = ("commit", "torch", "threads", "data")
    assert {key: metrics[f"train_{key}"] for key in recorded} == {key: first[key] for key in recorded}
    files = [path for folder in (trained, judged) for path in folder.rglob("*") if path.is_file()]
    assert not [value for value in SECRETS.values() if value in str(said)]
    assert not [(path, v) for path in files for v in SECRETS.values() if v.encode() in path.read_bytes()]


def test_the_datas_fingerprint_is_of_classes_and_clips_not_of_tasks(lab):
    """What else it covers: tests/test_changes.py."""
    tasks = ("[[3,8],[9,4]]", "[[8],[3],[9,4]]", "[[3,8]]")
    one, same, fewer = (lab.load("us8k/supclr_train.yaml", f"--task_classes={t}")[2].fingerprint() for t in tasks)
    assert one == same != fewer

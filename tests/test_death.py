"""Death at any moment: each script is killed, run again by the same command, and compared with a run that lived."""

import os
import random
import sys
from types import SimpleNamespace

import pytest
from speechbrain.utils.epoch_loop import EpochCounter

from helpers.deaths import SCRIPTS, Lives, differing, kill_and_compare, left_by
from utils.run.folder import open_run_folder
from utils.training.checkpoints import AtomicCheckpointer, is_finished, latest_checkpoint, sweep_replaced
from utils.training.progress import RunProgress


@pytest.fixture(scope="module")
def lives(lab, tmp_path_factory):
    lives = Lives(lab, tmp_path_factory.mktemp("lives"))
    yield lives
    lives.parent.stdin.close()
    assert lives.parent.wait(60) == 0


# The trainers share their loop, and sup_train.py has all of it, with validation, a test after each task and reports.
QUICK = [("sup", 2)]


@pytest.mark.parametrize(
    ("script", "count"), [*QUICK, *(pytest.param(script, 50, marks=pytest.mark.slow) for script in SCRIPTS)]
)
def test_a_death_at_any_moment_loses_nothing(lives, script, count):
    seed = os.environ.get("DEATH_SEED") or random.randrange(10**6)
    died, lost = kill_and_compare(lives, script, count, seed)
    table = ", ".join(f"{times} in {stage} {kind}" for (kind, stage), times in sorted(died.items()))
    print(f"{script}, seed {seed}: {count} deaths ({table}), {len(lost)} lost something")
    assert not lost, "\n".join(lost)


# The same bits


# supclr_train.py's are in test_resume.py too.
@pytest.mark.parametrize("script", [s if s == "sup" else pytest.param(s, marks=pytest.mark.slow) for s in SCRIPTS])
def test_the_same_command_gives_the_same_bits(lives, script):
    """With 0, 1 and 2 workers; linclf_train.py, which has none, twice."""
    again = ["--noprogressbar"] if script == "linclf" else ["--num_workers=1", "--num_workers=2"]
    wanted = left_by(lives.straight(script)[0])
    assert len(wanted) > 25 and any(name.endswith("metrics.json") for name in wanted) == (script in ("sup", "linclf"))
    for option in again:
        assert differing(left_by(lives.straight(script, option)[0]), wanted) == [], option


def test_a_fork_leaves_what_a_normal_start_leaves(lives):
    folder = lives.new_folder("supclr")
    process = lives.lab.start([sys.executable, *lives.command("supclr")], cwd=folder)
    said = process.communicate(timeout=600)[0].decode()
    assert process.returncode == 0, said
    assert differing(left_by(folder), left_by(lives.straight("supclr")[0])) == []


def test_half_written_files_are_swept_when_the_run_goes_on(tmp_path):
    run, settings = tmp_path / "run", {"seed": "1", "precision": "fp32"}
    open_run_folder(str(run), settings)
    (run / "save").mkdir()
    for name in (".versions.json.123.tmp", "save/.task0.json.123.tmp", "save/task0.json"):
        (run / name).write_text("{")
    open_run_folder(str(run), settings)
    left = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    assert left == [".lock", "save/task0.json", "settings.json"]


def test_a_death_between_line_and_row_of_an_epoch_logs_it_once(tmp_path):
    """train_log.txt has the epoch, train_log.csv has not, or is empty: it was made, and nothing written to it."""
    hparams, options = {"output_folder": str(tmp_path), "extra_logger": None}, SimpleNamespace(noprogressbar=True)
    plan = [{"epochs": 2, "steps": 1, "rows": [0]}]
    epochs = [{"task": 0, "epoch": epoch, "loss": 1.0 / epoch, "lr": 0.1} for epoch in (1, 2)]
    logs = [tmp_path / "train_log.txt", tmp_path / "train_log.csv"]
    with RunProgress(hparams, options, plan) as progress:
        progress.epoch(epochs[0])
        kept = logs[1].read_bytes()
        progress.epoch(epochs[1])
    wanted = [log.read_bytes() for log in logs]
    assert [content.count(b"\n") for content in wanted] == [2, 3]
    for table, left in ((kept, epochs[1:]), (b"", epochs)):
        logs[1].write_bytes(table)
        with RunProgress(hparams, options, plan) as progress:
            for epoch in left:
                progress.epoch(epoch)
        assert [log.read_bytes() for log in logs] == wanted


def test_what_a_death_left_of_replaced_checkpoints_is_swept(tmp_path):
    """Beside a finished one: half-written, half-deleted with and without its meta data. Other files stay."""
    checkpointer = AtomicCheckpointer(tmp_path, {"counter": EpochCounter(1)})
    finished = checkpointer.save_checkpoint(meta={"finished": True, "unixtime": 2.0}).path
    for name in (".writing-CKPT+a", "CKPT+b", "CKPT+c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "counter.ckpt").write_text("1")
    (tmp_path / "CKPT+c" / "CKPT.yaml").write_text("unixtime: 1.0\n")
    (tmp_path / "notes.txt").touch()
    sweep_replaced(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([finished.name, "notes.txt"])
    assert latest_checkpoint(tmp_path)[0] == finished and is_finished(tmp_path)

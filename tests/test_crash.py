"""Runs that are killed and go on leave the same files, bit for bit; so do runs with other numbers of workers."""

import os
import random
import signal
import sys

import pytest

from helpers.checks import differing, left_by
from helpers.crashes import EVERY_STEP, SCRIPTS, kill_and_compare
from helpers.desk import state

LOADED, JUDGED = "Loading a checkpoint from", "judged already"
# Where a run is killed: script, options, an operation on a file, which of those with this name, when. And what the log
# of the next start says, how often.
MOMENTS = {
    "store is built": ("supclr", (), "replace .index", 0, "after", "built in", 1),
    "record is written": ("supclr", (), "open .versions.json", 0, "torn", "trained already", 0),
    "checkpoint is written": ("supclr", (), "open embedding_model.ckpt", -1, "torn", LOADED, 1),
    "first checkpoint is written": ("supclr", (), "rename .writing-CKPT", 2, "before", "trained already", 1),
    "replaced checkpoint is deleted": ("supclr", (), "unlink embedding_model.ckpt", -1, "after", "trained already", 2),
    # In task 1, when the last step of epoch 1 is saved: no step of that epoch is left.
    "last step of an epoch": ("supclr", (EVERY_STEP,), "rename .writing-CKPT", 13, "after", LOADED, 1),
    "line of the log has no row": ("sup", (), "open train_log.csv", -1, "before", LOADED, 1),
    "row of the log is written": ("sup", (), "open train_log.csv", -2, "torn", "trained already", 1),
    "encoder is judged": ("linclf", (), "open .task#.json", 1, "torn", JUDGED, 1),
    "table is written": ("linclf", (), "replace .accuracy_table.csv", 0, "before", JUDGED, 4),
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_a_kill_at_the_worst_moment_loses_nothing(crash_lab, moment):
    script, options, operation, which, when, word, times = moment
    numbers = [i for i, name in enumerate(crash_lab.undisturbed(script, *options)[2], 1) if name.startswith(operation)]
    folder = crash_lab.new_folder(script)
    fork = crash_lab.start(script, folder, *options, kill_at=(numbers[which], when))
    assert fork.wait() == -signal.SIGKILL, fork.said
    for log in folder.glob("out/*/log.txt"):
        log.unlink()
    assert not crash_lab.lost(script, folder, options)
    (log,) = folder.glob("out/*/log.txt")
    assert log.read_text().count(word) == times, log.read_text()


# The trainers share their loop, and sup_train.py has all of it, with validation, a test after each task and reports.
@pytest.mark.parametrize(
    ("script", "count"), [("sup", 2), *(pytest.param(script, 50, marks=pytest.mark.slow) for script in SCRIPTS)]
)
def test_a_kill_at_any_moment_loses_nothing(crash_lab, script, count):
    seed = os.environ.get("CRASH_SEED") or random.randrange(10**6)
    killed, lost = kill_and_compare(crash_lab, script, count, seed)
    table = ", ".join(f"{times} in {stage} {kind}" for (kind, stage), times in sorted(killed.items()))
    print(f"{script}, seed {seed}: {count} kills ({table}), {len(lost)} lost something")
    assert not lost, "\n".join(lost)


def slow_unless(script, *quick):
    return script if script in quick else pytest.param(script, marks=pytest.mark.slow)


@pytest.mark.parametrize("script", [slow_unless(script, "supclr", "sup") for script in SCRIPTS])
def test_the_same_command_gives_the_same_bits(crash_lab, script):
    """With 0 and 2 workers; linclf_train.py, which has none, twice."""
    wanted = left_by(crash_lab.undisturbed(script)[0])
    assert len(wanted) > 25 and any(name.endswith("metrics.json") for name in wanted) == (script in ("sup", "linclf"))
    again = "--noprogressbar" if script == "linclf" else "--num_workers=2"
    assert differing(left_by(crash_lab.undisturbed(script, again)[0]), wanted) == []


def test_a_fork_leaves_what_a_normal_start_leaves(crash_lab):
    folder = crash_lab.new_folder("supclr")
    process = crash_lab.lab.start([sys.executable, *map(str, crash_lab.command("supclr"))], cwd=folder)
    said = process.communicate(timeout=600)[0].decode()
    assert process.returncode == 0, said
    assert differing(left_by(folder), left_by(crash_lab.undisturbed("supclr")[0])) == []


@pytest.mark.parametrize(
    ("script", "word", "times"), [("supclr", "trained", 2), ("sup", "trained", 2), ("linclf", "judged", 4)]
)
def test_a_finished_run_run_again_changes_nothing(crash_lab, script, word, times):
    folder = crash_lab.undisturbed(script)[0]
    places = ("out/*/save/task*/**/*", "out/*/save/*.json", "out/*/train_log.*", "**/embeddings/*")
    before = {path: state(path) for place in places for path in folder.glob(place)}
    left = left_by(folder)
    again = crash_lab.start(script, folder)
    assert again.wait() == 0 and again.said.count(f"{word} already") == times, again.said
    assert differing(left_by(folder), left) == [] and len(before) > 5
    assert {path: state(path) for place in places for path in folder.glob(place)} == before

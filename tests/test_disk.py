"""Full or read-only disks, files that are cut short or have flipped bits: the error is a clear line, earlier files stay
whole, the run goes on once there is room, and nothing damaged is used."""

import contextlib
import errno
import itertools
import json
import logging
import os
import resource
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datasets.store import open_store
from helpers.checks import assert_same_bits
from helpers.desk import JUDGED, RUN, Desk, assert_refused, flip
from helpers.store import Crops, simple  # noqa: F401 (a fixture)
from utils.io.errors import InputError
from utils.io.files import REMEDIES, LogFile, read_json, write_atomically, write_json
from utils.run.exits import user_errors
from utils.training.checkpoints import (
    AtomicCheckpointer,
    is_finished,
    latest_checkpoint,
    load_weights,
    set_aside_damaged,
)
from utils.training.progress import RunProgress
from utils.training.workers import WatchedLoader, workers_ended


@contextlib.contextmanager
def file_size_limit(size):
    """Let no file grow beyond `size` bytes: a full disk that needs no mount."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path):
    """A folder with 64 kB of room, and a function that mounts it anew with other options.

    Mounting is for root; root is who can't be kept from writing by a folder's mode.
    """
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]).returncode

    if os.geteuid() or mount("size=64k"):
        pytest.skip("mounting a small disk is not allowed here")
    yield folder, mount
    subprocess.run(["umount", "-l", str(folder)], check=True)


def damaged_copies(path, rng, most):
    """Damage a file in one way after the other, by a flipped bit or a missing end; restore it at the end."""
    content = path.read_bytes()
    places = range(len(content)) if len(content) <= most else sorted(rng.choice(len(content), most, replace=False))
    for place in places:
        flip(path, place, rng.integers(8))
        yield f"bit at {place}"
        path.write_bytes(content)
    for length in {0, len(content) - 1, *rng.integers(len(content), size=5).tolist()}:
        path.write_bytes(content[:length])
        yield f"cut to {length}"
    path.write_bytes(content)


# Single files


@pytest.mark.parametrize("number", REMEDIES)
def test_every_error_of_a_disk_is_one_line(capsys, number):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise OSError(number, os.strerror(number), "runs/x/metrics.json")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith(f"error: runs/x/metrics.json: {os.strerror(number)}. ")
    assert said.count("\n") == 1 and REMEDIES[number] in said and "the same command again" in said


def test_full_disk_leaves_the_old_file(small_disk):
    folder, mount = small_disk
    path = folder / "table.csv"
    write_atomically(path, "old")
    with pytest.raises(OSError) as caught:
        write_atomically(path, "new" * 100_000)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "old" and os.listdir(folder) == ["table.csv"]
    mount("remount", "size=1m")
    write_atomically(path, "new" * 100_000)
    mount("remount", "ro")
    with pytest.raises(OSError, match="table.csv") as caught:
        write_atomically(path, "newer")
    assert caught.value.errno == errno.EROFS and path.read_text() == "new" * 100_000


def test_a_log_that_cannot_be_written_ends_the_run(tmp_path):
    handler, log = LogFile(tmp_path / "log.txt"), logging.getLogger("test_disk")
    log.addHandler(handler)
    with contextlib.closing(handler), file_size_limit(100), pytest.raises(OSError, match=r"File too large.*log\.txt"):
        log.warning("x" * 200)


def test_json_with_a_checksum(tmp_path):
    path, content = tmp_path / "task0.json", {"key": "é", "confusion": [[1, 0], [2, 3]], "seconds": 0.5}
    write_json(path, content)
    outcomes = set()
    for what in damaged_copies(path, np.random.default_rng(0), most=1000):
        try:
            assert read_json(path).items() >= content.items(), what  # without a key "crc32" it is an older run's
            outcomes.add("whole")
        except ValueError:
            outcomes.add("damaged")
    assert outcomes >= {"damaged"} and read_json(path) == content
    path.write_text(json.dumps(content))  # of an older run
    assert read_json(path) == content


# The log of the epochs


def log_epochs(folder, epochs):
    plan = [SimpleNamespace(epochs=3, steps=1, total_steps=3)]
    hparams = {"output_folder": str(folder), "extra_logger": None}
    with RunProgress(hparams, SimpleNamespace(noprogressbar=True), plan) as progress:
        for epoch in epochs:
            progress.epoch({"task": 0, "epoch": epoch, "loss": 1 / 3 / epoch, "ssl": 0.5, "lr": 0.1})


def test_a_torn_log_is_mended(tmp_path):
    """Wherever the table was cut, logging the missing epochs again restores it. The text log may be a line ahead."""
    table, text = tmp_path / "train_log.csv", tmp_path / "train_log.txt"
    log_epochs(tmp_path, (1, 2, 3))
    whole = table.read_bytes(), text.read_bytes()
    lines = whole[1].splitlines(keepends=True)
    for cut in range(len(whole[0])):
        rows = max(whole[0][:cut].count(b"\n") - 1, 0)
        for told in (rows, rows + 1):
            table.write_bytes(whole[0][:cut])
            text.write_bytes(b"".join(lines[:told]) + b"task: 0, ep"[: cut % 12])
            log_epochs(tmp_path, (1, 2, 3))
            assert (table.read_bytes(), text.read_bytes()) == whole, (cut, told)


def test_a_damaged_line_of_the_log_is_written_again(tmp_path, caplog):
    log_epochs(tmp_path, (1, 2, 3))
    table = tmp_path / "train_log.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join([*lines[:2], "0,2,0.\0\0\0\0\n", lines[3]]))
    log_epochs(tmp_path, (2,))
    assert "1 damaged lines" in caplog.text and table.read_text() == "".join([*lines[:2], *lines[3:], lines[2]])


# Checkpoints


@pytest.fixture
def model():
    return torch.nn.Linear(30, 40)


def save(folder, model, value, **meta):
    """Save a checkpoint whose weights are `value`; return its folder."""
    torch.nn.init.constant_(model.weight, value)
    AtomicCheckpointer(folder, {"model": model}).save_checkpoint(meta=meta)
    return latest_checkpoint(folder)[0]


def test_looking_for_a_checkpoint_makes_no_folder(tmp_path):
    """SpeechBrain's Checkpointer makes one, and then silently recovers nothing from it."""
    assert latest_checkpoint(tmp_path / "task0") is None and not is_finished(tmp_path / "task0")
    with pytest.raises(InputError, match="No checkpoint in"):
        load_weights(tmp_path / "task0", {})
    assert not (tmp_path / "task0").exists()


def test_no_damaged_checkpoint_is_used(tmp_path, model, caplog):
    """Loading it is an error that names the damaged file; looking for the newest checkpoint passes it over."""
    path, rng, refused = save(tmp_path, model, 1.0, finished=True), np.random.default_rng(0), 0
    assert sorted(os.listdir(path)) == ["CKPT.yaml", "manifest.json", "model.ckpt"]
    for name in os.listdir(path):
        for what in damaged_copies(path / name, rng, most=150):
            torch.nn.init.constant_(model.weight, 0.0)
            try:
                load_weights(tmp_path, {"model": model})
                assert name == "manifest.json" and (model.weight == 1.0).all(), what
            except InputError as error:
                assert f"{path} is damaged" in str(error) and f"delete {tmp_path}" in str(error)
                assert name in str(error) or name == "manifest.json"
                assert (model.weight == 0.0).all()
                refused += 1
            caplog.clear()
            set_aside_damaged(tmp_path)
            found = latest_checkpoint(tmp_path)
            assert (found is None) == (f"{path} is damaged" in caplog.text) and (found is None or "mani" in name), what
            if found is None:
                os.rename(tmp_path / f".damaged-{path.name}", path)
    assert refused > 300
    load_weights(tmp_path, {"model": model})
    (path / "model.ckpt").unlink()
    set_aside_damaged(tmp_path)
    assert latest_checkpoint(tmp_path) is None and "model.ckpt: missing" in caplog.text


def test_the_older_whole_checkpoint_is_used(tmp_path, model, caplog):
    save(tmp_path, model, 1.0)
    newest = save(tmp_path, model, 2.0)
    flip(newest / "model.ckpt", 900, 3)
    checkpointer = AtomicCheckpointer(tmp_path, {"model": model})
    checkpointer.recover_if_possible()
    assert (model.weight == 1.0).all() and f"{newest} is damaged (model.ckpt: another checksum" in caplog.text
    checkpointer.save_and_keep_only(num_to_keep=1)
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("size", [100, 3000])  # the meta data fail, or the weights
def test_failed_checkpoint_leaves_the_older_one(tmp_path, model, size):
    path = save(tmp_path, model, 1.0)
    checkpointer = AtomicCheckpointer(tmp_path, {"model": model})
    torch.nn.init.constant_(model.weight, 2.0)
    with file_size_limit(size), pytest.raises(OSError) as caught:
        checkpointer.save_checkpoint(meta={"note": "x" * 200})
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path))
    assert os.listdir(tmp_path) == [path.name]
    load_weights(tmp_path, {"model": model})
    assert (model.weight == 1.0).all()
    checkpointer.save_checkpoint()
    assert len(os.listdir(tmp_path)) == 2


# Runs


@pytest.fixture
def desk(trained, tmp_path):
    """The trained encoder's sounds and store, with an empty folder for runs."""
    return Desk(trained, tmp_path / "runs")


def assert_goes_on(desk, trained):
    """Run the same command, which must end with the weights of the undisturbed run; return what it printed."""
    done = desk.run(desk.train_args())
    assert done.code == 0, done.said
    for task in range(3):
        assert_same_bits(desk.runs / "supclr+seed_2022", trained / RUN, task)
    return done.out


def test_training_goes_on_once_a_file_may_be_large_enough(trained, desk):
    with file_size_limit(20_000):
        done = desk.run(desk.train_args())
    task = desk.runs / "supclr+seed_2022/save/task0"
    assert_refused(done, task, "File too large", "ulimit -f", "same command")
    assert os.listdir(task) == []
    assert_goes_on(desk, trained)


def test_training_goes_on_once_the_disk_has_room(trained, desk, small_disk):
    folder, mount = small_disk
    desk.runs = folder / "runs"
    mount("remount", "ro")
    assert_refused(desk.run(desk.train_args()), desk.runs, "Set output_base to another folder")
    whole = sum(path.stat().st_size for path in (trained / RUN).glob("save/task0/*/*"))
    mount("remount", "rw", f"size={2 * whole // 1024 + 64}k")
    full = "No space left on device. What was saved before is whole: free space"
    assert_refused(desk.run(desk.train_args()), folder, full)
    assert not list(desk.runs.glob("*/save/task*/.writing*"))
    mount("remount", "size=100m")
    assert "trained already" in assert_goes_on(desk, trained)


def test_damaged_task_is_trained_again_and_no_other(trained, desk, tmp_path):
    shutil.copytree(trained / "runs", desk.runs)
    (file,) = desk.runs.glob("*/save/task1/CKPT*/embedding_model.ckpt")
    flip(file, 5000, 2)
    done = desk.run(desk.probe_args(f"--output_base={tmp_path / 'judged'}"))
    assert_refused(done, f"{file.parent} is damaged (embedding_model.ckpt: another checksum", "train that task")
    said = assert_goes_on(desk, trained)
    assert said.count("trained already") == 2 and f"{file.parent} is damaged" in said
    assert not list(desk.runs.glob("*/save/task1/.damaged*"))


def test_evaluation_goes_on_once_a_file_may_be_large_enough(trained, tmp_path):
    desk, run = Desk(trained), tmp_path / JUDGED
    args = desk.probe_args("--linclf_train_type=full", f"--output_base={run.parent}")
    with file_size_limit(15_000):
        assert_refused(desk.run(args), run, ".png", "File too large")
    assert not list(run.glob("*.png"))
    file = run / "save/task1.json"
    flip(file, file.read_text().index("confusion") + 15, 0)
    done = desk.run(args)
    assert done.code == 0 and done.out.count("judged already") == 3 and done.out.count(f"{file} is damaged (") == 1
    assert len(list(run.glob("*.png"))) == 4


# The store


def test_no_damaged_sample_is_used(simple, tmp_path, caplog):  # noqa: F811
    """The clip with the damage is decoded again, and the next start builds the store again."""
    data, paths = simple
    wanted = [open_store(data, paths, store_folder=None).read(clip) for clip in range(6)]
    rng = np.random.default_rng(0)
    for _ in range(30):
        open_store(data, paths, store_folder=str(tmp_path / "stores"))
        (file,) = (tmp_path / "stores").glob("*/samples*")
        flip(file, rng.integers(file.stat().st_size), rng.integers(8))
        caplog.clear()
        store = open_store(data, paths, store_folder=str(tmp_path / "stores"))
        for _ in range(2):
            for clip, wav in enumerate(wanted):
                np.testing.assert_array_equal(store.read(clip, 10, 500), wav[10:500])
                np.testing.assert_array_equal(store.read(clip), wav)
        assert caplog.text.count("is damaged, and is decoded from its file") == 1
        assert not list((tmp_path / "stores").glob("*/store.json"))


def test_damage_that_a_worker_finds_is_mended_or_one_line(simple, tmp_path, capsys):  # noqa: F811
    """It is a line where the audio file has changed too."""
    data, paths = simple
    open_store(data, paths, store_folder=str(tmp_path / "stores"))
    (file,) = (tmp_path / "stores").glob("*/samples*")
    flip(file, 40, 5)
    store = open_store(data, paths, store_folder=str(tmp_path / "stores"))
    for wanted, found in zip(Crops(open_store(data, paths, store_folder=None)), load(store, 2), strict=True):
        np.testing.assert_array_equal(np.asarray(found), wanted)
    store = open_store(data, paths, store_folder=str(tmp_path / "stores"))
    flip(file, 40, 5)
    os.replace(os.path.join(data, paths[1]), os.path.join(data, paths[0]))
    for spoil, words in ((lambda: None, f"and {paths[0]} has changed: start again"),
                         (lambda: os.unlink(os.path.join(data, paths[0])), "no such file")):  # fmt: skip
        spoil()
        with pytest.raises(SystemExit) as stop, user_errors():
            load(store, 1)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and words in said


def load(store, workers):
    loader = WatchedLoader(Crops(store), batch_size=None, num_workers=workers)
    with workers_ended(loader):
        return list(itertools.islice(loader, 6))

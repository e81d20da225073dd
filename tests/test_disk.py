"""Disks that are full or read-only, and files that are cut short or have flipped bits: a clear line, what was there
before unharmed, and a run that goes on once there is room; nothing damaged is ever used."""

import contextlib
import errno
import itertools
import json
import logging
import os
import resource
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from speechbrain.dataio.dataloader import SaveableDataLoader
from torch.utils.data import DataLoader

from datasets import demo, store_build
from datasets import store as store_module
from datasets.store import open_store
from helpers.desk import Desk, write_sounds
from helpers.store import Crops, only_folder, simple  # noqa: F401 (a fixture)
from utils.evaluation.embeddings import EmbeddingCache
from utils.io.errors import InputError
from utils.io.files import REMEDIES, LogFile, read_json, write_atomically, write_json
from utils.run.exits import user_errors
from utils.training.checkpoints import AtomicCheckpointer, latest_checkpoint, load_weights, set_aside_damaged
from utils.training.loop import workers_ended
from utils.training.progress import RunProgress

NAMES = ("embedding_model", "projector")


# Disks


@contextlib.contextmanager
def file_size_limit(size):
    """No file may grow beyond `size` bytes; for a full disk where none can be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class SmallDisk:
    """A file system in memory."""

    def __init__(self, folder):
        self.folder = folder

    def mount(self, *options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(self.folder)])


@pytest.fixture
def small_disk(tmp_path):
    """One of 64 kB. Making one is for root; root is who can't be kept from writing by a folder's mode."""
    disk = SmallDisk(tmp_path / "disk")
    disk.folder.mkdir()
    if os.geteuid() or disk.mount("size=64k").returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk.folder)], check=True)


def flip(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def damaged_copies(path, rng, most):
    """Damage a file in one way after the other: a bit flipped, an end missing."""
    content = path.read_bytes()
    places = range(len(content)) if len(content) <= most else sorted(rng.choice(len(content), most, replace=False))
    for place in places:
        flip(path, place, rng.integers(8))
        yield f"bit at {place}"
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


def test_other_errors_are_no_disks():
    with pytest.raises(FileNotFoundError), user_errors():
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")


def test_full_disk_leaves_the_old_file(small_disk):
    path = small_disk.folder / "table.csv"
    write_atomically(path, "old")
    with pytest.raises(OSError) as caught:
        write_atomically(path, "new" * 100_000)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "old" and os.listdir(small_disk.folder) == ["table.csv"]
    small_disk.mount("remount", "size=1m")
    write_atomically(path, "new" * 100_000)
    small_disk.mount("remount", "ro")
    with pytest.raises(OSError, match="table.csv") as caught:
        write_atomically(path, "newer")
    assert caught.value.errno == errno.EROFS and path.read_text() == "new" * 100_000


def test_a_log_that_cannot_be_written_ends_the_run(tmp_path):
    handler, log = LogFile(tmp_path / "log.txt"), logging.getLogger("test_disk")
    log.addHandler(handler)
    try:
        with file_size_limit(100), pytest.raises(OSError, match=r"File too large.*log\.txt"):
            log.warning("x" * 200)
        with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:  # any other trouble as ever
            patch.setattr(logging.Handler, "handleError", lambda *_: exit())
            log.warning("%d", "no number")
    finally:
        log.removeHandler(handler)


def test_json_with_a_checksum(tmp_path):
    path, content = tmp_path / "task0.json", {"key": "é", "confusion": [[1, 0], [2, 3]], "seconds": 0.5}
    write_json(path, content)
    assert read_json(path) == content
    outcomes = set()
    for what in damaged_copies(path, np.random.default_rng(0), most=1000):
        try:
            assert read_json(path) == content, what
            outcomes.add("whole")
        except ValueError:
            outcomes.add("damaged")
    assert outcomes >= {"damaged"} and read_json(path) == content
    path.write_text(json.dumps(content))  # of an older run
    assert read_json(path) == content


def test_full_disk_leaves_the_old_embeddings(tmp_path):
    cache, known = EmbeddingCache(str(tmp_path)), {"a": np.zeros(100, np.float32)}
    cache._write("x.npz", known)
    more = known | {str(i): np.ones(100, np.float32) for i in range(99)}
    with file_size_limit(2000), pytest.raises(OSError, match=r"File too large.*x\.npz"):
        cache._write("x.npz", more)
    assert os.listdir(tmp_path) == ["x.npz"] and cache._read(tmp_path / "x.npz").keys() == {"a"}
    cache._write("x.npz", more)
    assert len(cache._read(tmp_path / "x.npz")) == 100


# The log of the epochs


def test_a_torn_log_is_mended(tmp_path):
    """Cut anywhere, once the epochs that it lacks are trained again it is what it was."""
    hparams = {"output_folder": str(tmp_path), "extra_logger": None}
    run_opts, plan = SimpleNamespace(noprogressbar=True), [{"epochs": 3, "steps": 1}]
    epochs = [{"task": 0, "epoch": e, "loss": 1 / 3 / e, "ssl": 0.5, "lr": 0.1} for e in (1, 2, 3)]

    def log():
        with RunProgress(hparams, run_opts, plan) as progress:
            for stats in epochs:
                progress.epoch(stats)

    log()
    whole = {name: (tmp_path / name).read_bytes() for name in ("train_log.csv", "train_log.txt")}
    for cut in range(len(whole["train_log.csv"])):
        (tmp_path / "train_log.csv").write_bytes(whole["train_log.csv"][:cut])
        left = whole["train_log.csv"][:cut].count(b"\n") - 1  # epochs
        text = b"".join(line + b"\n" for line in whole["train_log.txt"].splitlines()[: max(left, 0)])
        (tmp_path / "train_log.txt").write_bytes(text + b"task: 0, ep"[: cut % 12])
        log()
        assert {name: (tmp_path / name).read_bytes() for name in whole} == whole, cut


def test_a_damaged_line_of_the_log_is_written_again(tmp_path, caplog):
    hparams = {"output_folder": str(tmp_path), "extra_logger": None}
    lines = ["task,epoch,loss,lr", "0,1,0.5,0.1", "0,2,0.\0\0\0\0", "0,3,0.5,0.1"]
    (tmp_path / "train_log.csv").write_text("\n".join(lines) + "\n")
    progress = RunProgress(hparams, SimpleNamespace(noprogressbar=True), [])
    assert progress.logged == {("0", "1"), ("0", "3")} and "1 damaged lines" in caplog.text
    assert (tmp_path / "train_log.csv").read_text() == "\n".join([*lines[:2], lines[3]]) + "\n"


# Checkpoints


@pytest.fixture
def model():
    return torch.nn.Linear(30, 40)


def save(folder, model, value, **meta):
    """A checkpoint whose weights are `value`."""
    torch.nn.init.constant_(model.weight, value)
    AtomicCheckpointer(folder, {"model": model}).save_checkpoint(meta=meta)
    return latest_checkpoint(folder)[0]


def test_no_damaged_checkpoint_is_used(tmp_path, model, caplog):
    """Whatever is damaged, and where: it is refused by name where it is needed, and not seen where another will do."""
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


def test_a_half_deleted_checkpoint_beside_a_newer_one_is_no_news(tmp_path, model, caplog):
    old = save(tmp_path, model, 1.0)
    newest = save(tmp_path, model, 2.0)
    (old / "model.ckpt").unlink()
    set_aside_damaged(tmp_path)
    assert latest_checkpoint(tmp_path)[0] == newest and old.is_dir() and "damaged" not in caplog.text


def test_a_checkpoint_without_a_manifest_is_taken_as_it_is(tmp_path, model):
    (save(tmp_path, model, 1.0) / "manifest.json").unlink()
    set_aside_damaged(tmp_path)
    torch.nn.init.constant_(model.weight, 0.0)
    load_weights(tmp_path, {"model": model})
    assert (model.weight == 1.0).all()


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    desk = Desk(tmp_path_factory.mktemp("desk"))
    write_sounds(desk.sounds)
    assert desk.run(desk.train_args())[0] == 0
    return desk


@pytest.fixture
def desk(trained, tmp_path, capsys):
    """Runs of its own on the same sounds and store."""
    desk = Desk(trained.folder, capsys)
    desk.runs = tmp_path / "runs"
    return desk


def weights(desk):
    folders = [desk.runs / f"supclr+seed_2022/save/task{t}" for t in range(3)]
    return {(t, n): torch.load(latest_checkpoint(f)[0] / f"{n}.ckpt") for t, f in enumerate(folders) for n in NAMES}


def assert_same_weights(one, other):
    for place, state in weights(one).items():
        assert all(torch.equal(tensor, weights(other)[place][name]) for name, tensor in state.items()), place


def assert_refused(code, said, *words):
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    for word in words:
        assert str(word) in said, said


def test_training_goes_on_once_a_file_may_be_large_enough(trained, desk):
    with file_size_limit(20_000):
        code, out, said = desk.run(desk.train_args())
    assert_refused(code, said, desk.runs / "supclr+seed_2022/save/task0", "File too large", "ulimit -f", "same command")
    assert "Traceback" not in out
    assert os.listdir(desk.runs / "supclr+seed_2022/save/task0") == []
    assert desk.run(desk.train_args())[0] == 0
    assert_same_weights(desk, trained)


def test_training_goes_on_once_the_disk_has_room(trained, desk, small_disk):
    desk.runs = small_disk.folder / "runs"
    small_disk.mount("remount", "ro")
    code, _, said = desk.run(desk.train_args())
    assert_refused(code, said, desk.runs, "Set output_base to another folder")
    whole = sum(path.stat().st_size for path in trained.runs.glob("*/save/task0/*/*"))
    small_disk.mount("remount", "rw", f"size={2 * whole // 1024 + 64}k")
    code, out, said = desk.run(desk.train_args())
    assert_refused(code, said, small_disk.folder, "No space left on device. What was saved before is whole: free space")
    assert "Traceback" not in out
    assert not list(desk.runs.glob("*/save/task*/.writing*"))
    small_disk.mount("remount", "size=100m")
    code, out, _ = desk.run(desk.train_args())
    assert code == 0 and "trained already" in out
    assert_same_weights(desk, trained)


def test_damaged_task_is_trained_again_and_no_other(trained, desk):
    subprocess.run(["cp", "-r", trained.runs, desk.runs], check=True)
    (file,) = desk.runs.glob("*/save/task1/CKPT*/embedding_model.ckpt")
    flip(file, 5000, 2)
    judge = [*desk.probe_args(f"--output_base={desk.runs / 'judged'}"), f"--ssl_checkpoints_dir={desk.runs}"]
    code, _, said = desk.run(judge)
    assert_refused(code, said, f"{file.parent} is damaged (embedding_model.ckpt: another checksum", "train that task")
    code, out, _ = desk.run(desk.train_args())
    assert code == 0 and out.count("trained already") == 2 and f"{file.parent} is damaged" in out
    assert_same_weights(desk, trained)
    assert not list(desk.runs.glob("*/save/task1/.damaged*"))


def test_evaluation_goes_on_once_a_file_may_be_large_enough(trained, desk, tmp_path):
    args = trained.probe_args("--linclf_train_type=full", f"--output_base={tmp_path / 'judged'}")
    run = tmp_path / "judged/linclf+seed_2022"
    with file_size_limit(15_000):
        code, out, said = desk.run(args)
    assert_refused(code, said, run, ".png", "File too large")
    assert "Traceback" not in out and not list(run.glob("*.png"))
    file = run / "save/task1.json"
    flip(file, file.read_text().index("confusion") + 15, 0)
    code, out, _ = desk.run(args)
    assert code == 0 and out.count("judged already") == 3 and out.count(f"{file} is damaged (") == 1
    assert len(list(run.glob("*.png"))) == 3


# Data sets


def test_demo_set_on_a_full_disk(small_disk):
    with pytest.raises(InputError, match=r"can't be written \(No space left on device\): free space"):
        demo.generate(small_disk.folder / "demo", clips_per_class=10, max_duration=0.3)
    assert os.listdir(small_disk.folder) == []
    small_disk.mount("remount", "size=50m")
    folder = demo.generate(small_disk.folder / "demo", clips_per_class=10, max_duration=0.3)
    assert len(list(folder.rglob("*.wav"))) == 100


# The store


def test_store_on_a_full_disk(simple, small_disk):  # noqa: F811
    data, paths = simple
    stores = small_disk.folder / "stores"
    (small_disk.folder / "other").write_bytes(bytes(30_000))
    with pytest.raises(InputError, match="store_folder="), pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_build, "_check_room", lambda plan: None)
        open_store(data, paths, store_folder=str(stores))
    assert os.listdir(only_folder(stores)) == [".lock"]
    (small_disk.folder / "other").unlink()
    small_disk.mount("remount", "size=1m")
    assert open_store(data, paths, store_folder=str(stores)).read(0).any()


def test_no_damaged_sample_is_used(simple, tmp_path, caplog):  # noqa: F811
    """Nor those of its clip: it is decoded again, and the next start builds the store again."""
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


@pytest.mark.parametrize("part", ["index", "store.json"])
def test_no_damaged_index_is_used(simple, tmp_path, part):  # noqa: F811
    data, paths = simple
    wanted = [open_store(data, paths, store_folder=None).read(clip) for clip in range(6)]
    open_store(data, paths, store_folder=str(tmp_path))
    (file,) = tmp_path.glob(f"*/{part}*")
    good, again, rng = file.stat().st_ino, 0, np.random.default_rng(1)
    for what in damaged_copies(file, rng, most=60):
        store = open_store(data, paths, store_folder=str(tmp_path))
        for clip, wav in enumerate(wanted):
            np.testing.assert_array_equal(store.read(clip), wav, what)
        again += file.stat().st_ino != good
        good = file.stat().st_ino
    assert again > 60


def test_workers_share_what_is_known_of_the_samples(simple, tmp_path):  # noqa: F811
    data, paths = simple
    open_store(data, paths, store_folder=str(tmp_path))
    (file,) = tmp_path.glob("*/samples*")
    flip(file, 40, 5)
    store = open_store(data, paths, store_folder=str(tmp_path))
    expected = Crops(open_store(data, paths, store_folder=None))
    for _ in range(2):
        loader = DataLoader(Crops(store), batch_size=None, num_workers=2, multiprocessing_context="fork")
        for wanted, found in zip(expected, loader, strict=False):
            np.testing.assert_array_equal(np.asarray(found), wanted)
    assert store._checked[:] == bytes([store_module.DAMAGED, *[store_module.GOOD] * 5])


def test_damage_that_a_worker_finds_is_one_line(simple, tmp_path, capsys):  # noqa: F811
    """Where the source has changed too, the clip can't be mended."""
    data, paths = simple
    open_store(data, paths, store_folder=str(tmp_path / "stores"))
    (file,) = (tmp_path / "stores").glob("*/samples*")
    flip(file, 40, 5)
    store = open_store(data, paths, store_folder=str(tmp_path / "stores"))
    os.replace(os.path.join(data, paths[1]), os.path.join(data, paths[0]))
    for spoil, words in ((lambda: None, f"and {paths[0]} has changed: start again"),
                         (lambda: os.unlink(os.path.join(data, paths[0])), "no such file")):  # fmt: skip
        spoil()
        with pytest.raises(SystemExit) as stop, user_errors():
            loader = SaveableDataLoader(Crops(store), batch_size=None, num_workers=1)
            with workers_ended(loader):
                list(itertools.islice(loader, 6))
        assert_refused(stop.value.code, capsys.readouterr().err, words)

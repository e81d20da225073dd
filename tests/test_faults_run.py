"""What a machine may do to a run: workers that die or hang, signals, locks, closed streams, no home, no compiler.

Each script runs in a fork of this process, which can be spoilt at will.
"""

import contextlib
import ctypes
import errno
import fcntl
import io
import itertools
import json
import logging
import multiprocessing.connection
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from datasets import store_build
from datasets.batches import ViewDataset, WholeClips
from datasets.store import open_store
from helpers.desk import write_sounds
from helpers.forks import Fork, at_call
from helpers.lab import REPO
from utils.io import locks
from utils.io.errors import InputError
from utils.io.locks import Busy, FolderLock
from utils.io.places import cache_path, home_path
from utils.results.figures import canvas
from utils.run import folder as run_folders
from utils.run.arguments import parse_arguments
from utils.run.config import load_config
from utils.training import workers
from utils.training.brain import TaskBrain
from utils.training.checkpoints import is_finished, latest_checkpoint

SETTINGS = ("--encoder=pann_tiny", "--emb_dim=8", "--device=cpu", "--precision=fp32", "--task_classes=[[0],[1],[2,3]]")
SETTINGS += ("--number_of_epochs=2", "--warmup_epochs=0", "--batch_size=4", "--train_duration=0.2")
UNASKED = "--ckpt_overhead=1e-6"  # no checkpoint but those that are asked for


class Life(Fork):
    """A script in a fork of this process, which must end and leave no process behind; its stderr is apart in `err`."""

    def __init__(self, place, *argv, spoil=lambda: None):
        self.place = place
        (place / "said.txt").unlink(missing_ok=True)  # of an earlier one

        def prepare():
            os.dup2(os.open("err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            spoil()

        super().__init__(*argv, cwd=place, prepare=prepare)

    def wait(self, seconds=60.0):
        if super().wait(seconds) is None:
            self.kill()
            super().wait()
            pytest.fail(f"it hangs; it said {self.said + self.err}")
        with pytest.raises(ProcessLookupError):
            os.killpg(self.pid, 0)
        return self.code

    def until(self, path):
        while not path.exists():
            assert super().wait(0.005) is None, self.said + self.err

    @property
    def err(self):
        return (self.place / "err").read_text(errors="replace")

    def assert_refused(self, *words):
        assert self.wait() == 2, self.said + self.err
        assert self.err.startswith("error: ") and self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.said
        assert [word for word in words if word not in self.err] == [], self.err


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with sounds, and runs that nothing disturbed."""
    folder = tmp_path_factory.mktemp("desk")
    write_sounds(folder / "sounds")
    for kind in ("supclr", "sup"):
        assert Life(folder, *command(folder, kind)).wait() == 0
    return folder


def command(desk, kind="supclr", *args):
    places = (f"--data_folder={desk / 'sounds'}", f"--store_folder={desk / 'store'}", "--output_base=runs")
    return [f"{kind}_train.py", REPO / f"hparams/us8k/{kind}_train.yaml", *SETTINGS, *places, UNASKED,
            "--num_workers=0", f"--experiment_name={kind}", *args]  # fmt: skip


def assert_same_weights(place, desk, kind="supclr"):
    for t in range(3):
        one, other = (latest_checkpoint(base / f"runs/{kind}+seed_2022/save/task{t}")[0] for base in (place, desk))
        first, second = (torch.load(folder / "embedding_model.ckpt") for folder in (one, other))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# Workers that die (case 1)


def in_workers(owner, name, action):
    """Call `action` at each call of a function in a process that this one forks."""
    main, old = os.getpid(), getattr(owner, name)

    def function(*args, **kwargs):
        if os.getpid() != main:
            action(*args)
        return old(*args, **kwargs)

    setattr(owner, name, function)


def in_worker(number, action, epoch=1, cls=ViewDataset, anywhere=False):
    """Call `action` in a worker (or also here) that reads its `number`-th clip, from 0, of an epoch of task 1."""

    def spoil():
        main, old, count = os.getpid(), cls.__getitem__, itertools.count()

        def item(self, key):
            here = not isinstance(key, tuple) or self.task == 1 and key[0] == epoch
            if here and (anywhere or os.getpid() != main) and next(count) == number:
                action()
            return old(self, key)

        cls.__getitem__ = item

    return spoil


def killed_by(number):
    return lambda: os.kill(os.getpid(), number)


def raises(error):
    def action(*_):
        raise error

    return action


def before_its_first_clip():
    workers.start_worker = lambda worker_id: killed_by(signal.SIGKILL)()


def in_the_middle_of_a_message():
    """Half a batch is in the pipe, and the lock on the pipe is held for ever."""

    def send_half(connection, content, *_):
        if len(content) > 100:
            os.write(connection._handle, bytes(content)[:50])
            os.kill(os.getpid(), signal.SIGKILL)

    in_workers(multiprocessing.connection.Connection, "_send", send_half)


def no_second_fork():
    at_call(2, os, "fork", raises(BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))))


def no_thread_in_workers():
    in_workers(threading.Thread, "start", raises(RuntimeError("can't start new thread")))


def temporary_folder_of_a_long_name():
    multiprocessing.current_process()._config.pop("tempdir", None)  # of loaders that this process had in earlier tests
    tempfile.tempdir = os.path.join(os.getcwd(), "x" * 100)
    os.mkdir(tempfile.tempdir)


def shared_memory(options):
    """Mount another /dev/shm, which this process and its children alone see."""

    def spoil():
        assert ctypes.CDLL(None).unshare(0x00020000) == 0  # CLONE_NEWNS
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", "/dev/shm"], check=True)

    return spoil


def may_mount():
    line = "mount --make-rprivate / && mount -t tmpfs tmpfs /dev/shm"
    with contextlib.suppress(OSError):
        return subprocess.run(["unshare", "-m", "sh", "-c", line], capture_output=True).returncode == 0
    return False


mounts = pytest.mark.skipif(not may_mount(), reason="a /dev/shm of its own takes root's right to mount")
SHM = ("--shm-size", "/dev/shm", "--num_workers=0")
DEATHS = {
    "killed at its start": (before_its_first_clip, ("SIGKILL", "Memory", "--num_workers=0")),
    "killed": (in_worker(3, killed_by(signal.SIGKILL)), ("SIGKILL", "Memory", "--num_workers=0")),
    "bus error": (in_worker(3, killed_by(signal.SIGBUS)), ("SIGBUS", *SHM)),
    "crashed": (in_worker(3, killed_by(signal.SIGSEGV)), ("SIGSEGV", "--num_workers=0")),
    "left": (in_worker(3, lambda: os._exit(5)), ("exit code 5", "--num_workers=0")),
    "killed in a message": (in_the_middle_of_a_message, ("SIGKILL", "--num_workers=0")),
    "memory": (in_worker(3, raises(MemoryError("no memory"))), ("MemoryError", "--num_workers=0")),
    "disk": (in_worker(3, raises(OSError(errno.EIO, "Input/output error"))), ("Input/output", "find what ended it")),
    "no process": (no_second_fork, ("can't be started", "ulimit -u", "--num_workers=0")),
    "no thread": (no_thread_in_workers, ("new thread", "ulimit -u", "--num_workers=0")),
    "socket": (temporary_folder_of_a_long_name, ("AF_UNIX", "TMPDIR", "--num_workers=0")),
}


@pytest.mark.parametrize("name", DEATHS)
def test_a_worker_that_fails_ends_the_run_in_one_line(desk, tmp_path, name):
    spoil, words = DEATHS[name]
    Life(tmp_path, *command(desk, "supclr", "--num_workers=2"), spoil=spoil).assert_refused(*words, "the same command")


@pytest.mark.parametrize(
    ("died", "words"),
    [("is killed by signal: Killed. ", "was killed by SIGKILL. Memory"),
     ("is killed by signal: Bus error. It is possible that workers are out of shared memory.", "by SIGBUS. /dev/shm"),
     ("exited unexpectedly with exit code 5.", "exited unexpectedly with exit code 5. What is saved")],
)  # fmt: skip
def test_a_worker_that_dies_while_others_start_is_told_alike(monkeypatch, died, words):
    """torch notices it in the middle of whatever runs, so also before there is a list of workers."""

    def start(loader):
        raise RuntimeError(f"DataLoader worker (pid 7) {died}")

    monkeypatch.setattr(workers.SaveableDataLoader, "__iter__", start)
    loader = workers.WatchedLoader([1, 2], num_workers=1)
    with pytest.raises(InputError, match=words), workers.workers_ended(loader):
        next(iter(loader))


@mounts
@pytest.mark.parametrize("options", ["size=64k", "size=64k,ro"])
def test_a_small_shared_memory_ends_the_run_in_one_line(desk, tmp_path, options):
    life = Life(tmp_path, *command(desk, "supclr", "--num_workers=2"), spoil=shared_memory(options))
    life.assert_refused(*SHM, "holds 0 MB")
    assert Life(tmp_path, *command(desk, "supclr"), spoil=shared_memory(options)).wait() == 0


def test_what_is_saved_stays_and_is_gone_on_from(desk, tmp_path):
    killed = in_worker(0, killed_by(signal.SIGKILL), epoch=2)
    line = command(desk, "supclr", "--num_workers=2", "--ckpt_overhead=1000")
    Life(tmp_path, *line, spoil=killed).assert_refused()
    assert [is_finished(tmp_path / f"runs/supclr+seed_2022/save/task{t}") for t in range(2)] == [True, False]
    assert Life(tmp_path, *command(desk, "supclr", "--num_workers=0")).wait() == 0
    assert_same_weights(tmp_path, desk)


def test_a_bug_in_a_worker_keeps_its_traceback(desk, tmp_path):
    spoil = in_worker(3, raises(RuntimeError("a bug")))
    life = Life(tmp_path, *command(desk, "supclr", "--num_workers=2"), spoil=spoil)
    assert life.wait() == 1 and "Traceback" in life.err and "a bug" in life.err


# Workers that hang, and signals (cases 1 and 11)


def hang():
    Path("hangs").touch()
    while True:
        time.sleep(0.1)


HANGS = {  # trainer, number of workers, where
    "first batch": ("supclr", 2, in_worker(0, hang)),
    "within an epoch": ("supclr", 1, in_worker(5, hang)),
    "second epoch, here": ("supclr", 0, in_worker(2, hang, epoch=2, anywhere=True)),
    "validation": ("sup", 1, in_worker(0, hang, cls=WholeClips)),
}


@pytest.mark.parametrize("name", HANGS)
def test_a_signal_ends_the_wait_for_a_batch(desk, tmp_path, name):
    kind, n, spoil = HANGS[name]
    life = Life(tmp_path, *command(desk, kind, f"--num_workers={n}"), spoil=spoil)
    life.until(tmp_path / "hangs")
    time.sleep(0.3)  # the main process has trained on what came before
    os.kill(life.pid, signal.SIGTERM)
    assert life.wait(20) == 128 + signal.SIGTERM, life.err
    assert life.err.splitlines()[-1].startswith("Stopped by SIGTERM.") and "Traceback" not in life.said + life.err
    assert Life(tmp_path, *command(desk, kind)).wait() == 0
    assert_same_weights(tmp_path, desk, kind)


def signals_itself(*numbers):
    """Send the process signals in the first step of task 1; task 0 has four."""
    return lambda: at_call(
        5, TaskBrain, "on_fit_batch_end", lambda: [os.kill(os.getpid(), number) for number in numbers]
    )


@pytest.mark.parametrize("numbers", [("SIGHUP", "SIGHUP"), ("SIGTERM", "SIGHUP")])
def test_a_closed_terminal_stops_a_run_as_sigterm_does(desk, tmp_path, numbers):
    """It sends two SIGHUPs, the shell's and the system's; systemd sends one after its SIGTERM."""
    numbers = [signal.Signals[name] for name in numbers]

    def spoil():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started under
        signals_itself(*numbers)()

    life = Life(tmp_path, *command(desk), spoil=spoil)
    assert life.wait() == 128 + numbers[0]
    assert f"Stopped by {numbers[0].name}." in life.err and "Traceback" not in life.err
    assert Life(tmp_path, *command(desk)).wait() == 0
    assert_same_weights(tmp_path, desk)


def test_under_nohup_a_closed_terminal_stops_nothing(desk, tmp_path):
    def spoil():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signals_itself(signal.SIGHUP)()

    assert Life(tmp_path, *command(desk), spoil=spoil).wait() == 0


# Locks (cases 4 and 5)


def no_flock(monkeypatch, number=errno.ENOSYS):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def record(folder, **fields):
    """Write who holds a lock; by default a process that has ended."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    holder = {"host": socket.gethostname(), "pid": ended.pid, "since": "then", "place": locks._place(), "started": 1}
    os.makedirs(folder, exist_ok=True)
    (Path(folder) / ".lock").write_text(json.dumps({**holder, **fields}))


LEFT = {
    "nothing": lambda folder: None,
    "empty": lambda folder: (folder / ".lock").write_text(""),
    "garbage": lambda folder: (folder / ".lock").write_text('{"pid": [1], "host"'),
    "another form": lambda folder: (folder / ".lock").write_text('["12"]'),
    "dead": record,
    "dead, its number taken": lambda folder: record(folder, pid=os.getppid()),
    "of another machine": lambda folder: record(folder, place="another", pid=os.getppid()),
}


@pytest.mark.parametrize("number", [None, errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
@pytest.mark.parametrize("left", LEFT)
def test_a_lock_file_that_is_left_holds_nothing(tmp_path, monkeypatch, caplog, left, number):
    """Whether or not the file system has locks."""
    logging.getLogger("utils").propagate = True
    LEFT[left](tmp_path)
    if number:
        no_flock(monkeypatch, number)
    for _ in range(2):
        run_folders.open_run_folder(str(tmp_path), {"seed": "1", "precision": "fp32"})
    said = {id(record) for record in caplog.records if "can't be locked" in record.getMessage()}  # each record once
    assert len(said) == bool(number)
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def in_another_process(folder, ready, number=None):
    """Hold a folder's lock in a fork until it is killed; its process number."""
    pid = os.fork()
    if pid == 0:
        with pytest.MonkeyPatch.context() as patch:
            if number:
                no_flock(patch, number)
            lock = FolderLock(folder)
            lock.acquire()
            ready.touch()
            while True:
                time.sleep(0.01)
    while not ready.exists():
        time.sleep(0.01)
    return pid


@pytest.mark.parametrize("number", [None, errno.ENOSYS])
def test_a_living_holder_is_named_and_a_dead_one_is_not_waited_for(tmp_path, monkeypatch, number):
    folder = tmp_path / "run"
    folder.mkdir()
    pid = in_another_process(folder, tmp_path / "ready", number)
    try:
        if number:
            no_flock(monkeypatch, number)
        with pytest.raises(InputError, match=rf"Another process is working in .*\(process {pid} on .*, since 20"):
            run_folders.open_run_folder(str(folder), {"seed": "1", "precision": "fp32"})
    finally:
        os.kill(pid, signal.SIGKILL)  # dead, and not yet waited for
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(InputError):
            run_folders.open_run_folder(str(folder), {"seed": "1", "precision": "fp32"})
            break
    os.waitpid(pid, 0)
    assert (folder / "settings.json").exists()


def test_a_lock_that_outlives_its_holder_is_passed_over(tmp_path, monkeypatch):
    """As some network file systems keep it. One whose holder isn't known, or may be alive elsewhere, is not."""
    monkeypatch.setattr(locks, "SETTLE", 0.1)
    lock = FolderLock(tmp_path)
    with FileLock(tmp_path / ".lock"):
        for fields in ({"place": "another"}, {"place": ""}):
            record(tmp_path, **fields)
            with pytest.raises(Busy, match="since then"):
                lock.acquire()
        (tmp_path / ".lock").write_text("")
        with pytest.raises(Busy, match="unknown"):
            lock.acquire()
        record(tmp_path)
        lock.acquire()
        assert "gone" in lock.why_open


PATHS = sorted(f"audio/fold{fold}/{fold}-{label}.wav" for fold in range(1, 11) for label in range(4))


def store_of(desk, folder):
    return open_store(desk / "sounds", PATHS, 16000, folder, progress=False)


def test_what_a_waiting_run_says(desk, tmp_path, monkeypatch, caplog):
    logging.getLogger("datasets").propagate = True
    monkeypatch.setattr(store_build, "FIRST_WAITS", (0.05,))
    monkeypatch.setattr(store_build, "NEXT_WAITS", 0.05)
    caplog.set_level(logging.INFO)
    store_of(desk, tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "store.json").unlink()
    pid = in_another_process(folder, tmp_path / "ready")
    timer = threading.Timer(1.0, os.kill, (pid, signal.SIGKILL))
    timer.start()
    assert len(store_of(desk, tmp_path)) == 40
    os.waitpid(pid, 0)
    lines = [line for line in caplog.messages if "waiting for it" in line]
    assert len(lines) >= 3 and all(f"process {pid} on" in line and "since 20" in line for line in lines)
    assert "so far" not in lines[0] and "(1 s so far)" in lines[-1]


def test_a_store_is_built_without_locks(desk, tmp_path, monkeypatch):
    """By two at a time, where neither knows of the other."""
    no_flock(monkeypatch)
    monkeypatch.setattr(locks, "_place", lambda: "")
    children = []
    for _ in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            with contextlib.suppress(BaseException):
                code = len(store_of(desk, tmp_path)) - 40
            os._exit(code)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    (folder,) = tmp_path.iterdir()
    assert sorted(name[:5] for name in os.listdir(folder)) == [".lock", "index", "sampl", "store"]
    before = (folder / "store.json").stat().st_mtime_ns
    assert (store_of(desk, tmp_path).read(0) == store_of(desk, desk / "store").read(0)).all()
    assert (folder / "store.json").stat().st_mtime_ns == before


# Standard streams (cases 6 and 15)


def closed(*numbers):
    """Close streams as a shell does before Python starts."""

    def spoil():
        for number in numbers:
            os.close(number)
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)

    return spoil


def no_reader():
    """Write stdout and stderr into a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)


def full_disk():
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


@pytest.mark.parametrize("spoil", [closed(2), closed(0, 1, 2), no_reader, full_disk])
def test_a_run_goes_on_without_its_streams(desk, tmp_path, spoil):
    life = Life(tmp_path, *command(desk, "sup"), spoil=spoil)
    assert life.wait() == 0, life.said + life.err
    assert "Traceback" not in life.said + life.err and "Logging error" not in life.err
    assert_same_weights(tmp_path, desk, "sup")
    log = (tmp_path / "runs/sup+seed_2022/log.txt").read_text()
    assert log.count(": 8 clips, 2 epochs, loss") == 2 and "task 3/3" in log


def test_a_signal_where_nobody_reads(desk, tmp_path):
    def spoil():
        no_reader()
        signals_itself(signal.SIGTERM)()

    assert Life(tmp_path, *command(desk), spoil=spoil).wait() == 128 + signal.SIGTERM
    assert Life(tmp_path, *command(desk)).wait() == 0
    assert_same_weights(tmp_path, desk)


@pytest.mark.parametrize("streams", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-", "| head -0", "2>&1 | head -1"])
def test_streams_of_a_new_process(desk, tmp_path, streams):
    """The report ends with its exit code, whoever reads it."""
    line = f'{{ "{sys.executable}" -m utils.report "{desk}/none"; echo $? > "{tmp_path}/code"; }} {streams}'
    done = subprocess.run(["sh", "-c", line], cwd=REPO, capture_output=True, text=True)
    assert (tmp_path / "code").read_text() == "2\n", done
    assert "Traceback" not in done.stdout + done.stderr and "Exception" not in done.stderr


def test_closed_streams_are_closed_for_no_child_process():
    """Else the next file that it opens takes the number, and what it says goes there."""
    code = "from utils.io.streams import mend_streams as m; m(); import os; print(*map(os.get_inheritable, range(3)))"
    done = subprocess.run(["sh", "-c", f'"{sys.executable}" -c "{code}" <&- 2>&-'], cwd=REPO, capture_output=True)
    assert done.stdout == b"True True True\n"


def test_names_that_a_stream_cant_say(desk, tmp_path):
    shutil.copytree(desk / "sounds", tmp_path / "sounds")
    table = tmp_path / "sounds/metadata/UrbanSound8K.csv"
    table.write_text(table.read_text().replace("siren", "サイレン").replace("drill", "$dr_{"), encoding="utf-8")

    def spoil():
        sys.stdout, sys.stderr = (io.TextIOWrapper(open(n, "wb", closefd=False), encoding="ascii") for n in (1, 2))

    places = (f"--data_folder={tmp_path / 'sounds'}", f"--store_folder={tmp_path / 'store'}")
    life = Life(tmp_path, *command(desk, "sup", *places), spoil=spoil)
    assert life.wait() == 0, life.err
    assert r"\u30b5\u30a4\u30ec\u30f3" in life.said and life.err == ""
    assert life.said.count("Glyph") == 0 and life.said.count("No font here") <= 1
    assert "サイレン" in (tmp_path / "runs/sup+seed_2022/log.txt").read_text(encoding="utf-8")


def draw(tmp_path, text):
    figure = canvas.make_figure(3, 2)
    axes = figure.subplots()
    axes.set_title(text)
    axes.set_xticks([0, 1], [text, "$x_{"])
    canvas.save(figure, tmp_path / "figure.png")
    return {family for label in (axes.title, *axes.get_xticklabels()) for family in label.get_fontfamily()}


def test_figures_use_a_font_that_has_the_characters(tmp_path, monkeypatch, caplog, recwarn):
    """The first is in STIX, which comes with matplotlib; the second is nobody's."""
    monkeypatch.setattr(canvas, "_boxes", set())
    logging.getLogger("utils").propagate = True
    assert draw(tmp_path, "dog") == {"sans-serif"} and not caplog.text
    assert draw(tmp_path, "\u24b6") == {"sans-serif", "STIXGeneral"} and not caplog.text
    draw(tmp_path, "\U0010ff0a")
    draw(tmp_path, "\u24b6 \U0010ff0b")
    warned = {id(record) for record in caplog.records if "No font here has the characters" in record.getMessage()}
    assert len(warned) == 1
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


# Places (cases 8 and 18)


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    """A user whom the system doesn't know, as in many containers."""

    def unknown(*_):
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def configured(*args):
    yaml = str(REPO / "hparams/us8k/supclr_train.yaml")
    file, options, overrides = parse_arguments("", [yaml, "--encoder=pann_tiny", "--data_folder=x", *args])
    return load_config(file, overrides, options)


def test_without_a_home_the_store_is_in_the_temporary_folder(no_home, tmp_path, caplog):
    logging.getLogger("utils").propagate = True
    own = str(tmp_path / f"continual-sound-{os.getuid()}")
    assert configured()["store_folder"] == own and "home folder isn't known" in caplog.text
    os.mkdir(own)
    assert cache_path("~/.cache/continual-sound") == own
    if os.getuid() == 0:
        os.chown(own, 12345, 12345)
        with pytest.raises(InputError, match="another user's"):
            cache_path("~/.cache/continual-sound")


@pytest.mark.parametrize("key", ["data_folder", "output_base", "store_folder", "pretrained_weights"])
@pytest.mark.parametrize("path", ["~/x", "~nobody_here/x"])
def test_without_a_home_no_folder_is_made_of_its_sign(no_home, tmp_path, key, path):
    with pytest.raises(InputError, match=f"{key}={path}: .*HOME"):
        configured(f"--{key}={path}")
    assert os.listdir(tmp_path) == []


def test_the_users_cache_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/me")
    assert configured()["store_folder"] == "/scratch/me/continual-sound"
    assert configured("--store_folder=~/x")["store_folder"] == "/home/me/x"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert configured()["store_folder"] == "/home/me/.cache/continual-sound"
    assert home_path("./~", "x") == "./~"


def test_no_temporary_folder(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent"])
    with pytest.raises(InputError, match="TMPDIR"):
        configured()


@pytest.mark.parametrize("pattern", ["", "store.json", "index*", "samples*"])
def test_a_store_that_another_user_may_not_read(desk, tmp_path, pattern):
    store_of(desk, tmp_path / "store")
    (folder,) = (tmp_path / "store").iterdir()
    (hidden,) = folder.glob(pattern) if pattern else [folder]
    "".encode("cp437")  # of zip files; else the other user would have to import it
    for above in (tmp_path, desk, *tmp_path.parents[:3]):
        above.chmod(0o755)
    hidden.chmod(0)
    before = sorted(os.listdir(folder))
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65534)
        with pytest.raises(InputError, match="chmod -R .*store_folder") as caught:
            store_of(desk, tmp_path / "store")
    finally:
        if is_root:
            os.seteuid(0)
        hidden.chmod(0o755)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(os.listdir(folder)) == before


# Messages, and what is not there (cases 10 and 18)


DEVICES = {"mps": "has none", "xla": "has none", "meta": "has none", "hpu": "No module", "cuda:99": "", "nonsense": ""}


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_is_not_there(device):
    with pytest.raises(InputError, match=f"--device={device}.*{DEVICES[device]}.*--device=cpu") as caught:
        configured(f"--device={device}")
    assert len(str(caught.value)) < 350 and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lr<0.1>", "null", "<no_such_key>"])
def test_names_that_are_no_names(name):
    with pytest.raises(InputError, match="experiment_name is "):
        configured(f"--experiment_name={name}")


def test_no_compiler(desk, tmp_path):
    def spoil():
        os.environ |= {"PATH": "/nonexistent", "CXX": "/nonexistent/g++", "TORCHINDUCTOR_CACHE_DIR": "cache"}

    store = f"--store_folder={tmp_path / 'store'}"
    life = Life(tmp_path, *command(desk, "supclr", store, "--compile", "--compile_module_keys=projector"), spoil=spoil)
    life.assert_refused("--compile can't be used here", "compiler", "CXX")
    assert not (tmp_path / "store").exists() and not (tmp_path / "runs").exists()

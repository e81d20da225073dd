"""Loaders whose worker processes can't hang a run: one that dies, or can't pass a batch on, ends it in one line."""

import contextlib
import multiprocessing
import multiprocessing.queues
import multiprocessing.util
import os
import re
import shutil
import signal

from speechbrain.dataio.dataloader import SaveableDataLoader
from torch._utils import ExceptionWrapper
from torch.utils.data import get_worker_info
from torch.utils.data._utils import signal_handling

from utils.io.errors import InputError
from utils.run.signals import quiet_worker, sigterm_blocked, stop_signals

SHARED_MEMORY = "/dev/shm"
NO_THREAD = 11  # exit code of a worker that can't start one
GO_ON = "What is saved stays: to go on from there, give the same command with --num_workers=0, or {}."


class WatchedLoader(SaveableDataLoader):
    """A loader that names why its workers fail, and lets a signal end the wait for a batch.

    Parameters
    ----------
    *args, **kwargs
        As for `torch.utils.data.DataLoader`, without `worker_init_fn`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, worker_init_fn=start_worker, **kwargs)

    def __iter__(self):
        """Yield batches.

        Raises
        ------
        InputError
            The workers can't be started, or their batches can't be received.
        Stopped
            A signal came while a batch was waited for.
        """
        with self._named("can't be started"):
            batches = self._start()
        while True:
            given = batches._num_yielded
            try:
                with stop_signals.waiting(), self._named("failed"):
                    batch = next(batches)
            except StopIteration:
                return
            except BaseException:
                batches._num_yielded = given  # a resumed run begins with this batch
                raise
            yield batch

    def _start(self):
        if self.num_workers:
            multiprocessing.util.get_temp_dir()  # in this process, as workers that are killed can't remove theirs
            try:
                multiprocessing.Lock()  # as the iterator makes; its own failure is reported twice
            except OSError as error:
                raise OSError(error.errno, f"no semaphore in {SHARED_MEMORY}: {error.strerror}") from error
        others = multiprocessing.active_children()
        try:
            with sigterm_blocked():
                return super().__iter__()
        except BaseException:  # not all of them could be started
            for worker in set(multiprocessing.active_children()).difference(others):
                worker.kill()
                worker.join()
            raise

    @contextlib.contextmanager
    def _named(self, what):
        """Turn an error of the system into one line; any other that was raised in a worker keeps its traceback."""
        try:
            yield
        except (OSError, EOFError, MemoryError, RuntimeError) as error:
            text = str(error).strip() or type(error).__name__
            is_bug = text.startswith("Caught RuntimeError") and "new thread" not in text
            if not self.num_workers or is_bug or _dead_workers([self]) or _told_by_torch(text):
                raise  # how a worker died is told by `workers_ended`
            reason = text.splitlines()[-1]
            raise InputError(f"The processes that load clips {what} ({reason}). {_remedy(reason)}") from error


def start_worker(worker_id):
    """Prepare a worker; a `worker_init_fn`."""
    try:
        quiet_worker(worker_id)
    except RuntimeError:  # torch's queue needs a thread too, so the error could not be passed on
        os._exit(NO_THREAD)
    for number in (signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE):  # torch would print what `workers_ended` says
        signal.signal(number, signal.SIG_DFL)
    multiprocessing.queues.Queue._on_queue_feeder_error = _send_error


def _send_error(queue, error, batch):
    """Put an error into the queue in place of a batch that can't be sent.

    Python prints such an error in the worker and goes on, and the main process waits for the batch for ever.
    """
    reason = " ".join(str(error).split()) or type(error).__name__
    try:
        raise InputError(f"A process that loads clips can't pass a batch on ({reason}). {_remedy(reason)}") from None
    except InputError:
        where = f"in DataLoader worker process {get_worker_info().id}"
        queue.put((batch[0], ExceptionWrapper(where=where)))


@contextlib.contextmanager
def workers_ended(*loaders):
    """Name why a worker of the loaders has died, and end all of them on leaving.

    An error's traceback keeps the loaders' iterators alive, so their workers would be waited for while Python exits.

    Parameters
    ----------
    *loaders : WatchedLoader or None

    Raises
    ------
    InputError
        A worker has died. torch notices at any point of a step, or at the latest after 5 s of waiting for a batch.
    """
    loaders = [loader for loader in loaders if loader is not None]
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        dead = _dead_workers(loaders) or _told_by_torch(str(error))
        if dead:
            raise InputError(f"A process that loads clips {dead[0]}. {_remedy(dead[0])}") from error
        raise
    finally:
        for loader in loaders:
            _end_workers(loader)


def _workers(loader):
    return getattr(loader._speechbrain_iterator, "_workers", ())  # there are none with num_workers=0


def _dead_workers(loaders):
    """How each worker that died ended, in words."""
    endings = {NO_THREAD: "can't start a new thread"}
    codes = [worker.exitcode for loader in loaders for worker in _workers(loader)]
    return [
        f"was killed by {signal.Signals(-code).name}" if code < 0 else endings.get(code, f"ended with exit code {code}")
        for code in codes
        if code  # None while it runs, 0 after a good end
    ]


def _told_by_torch(text):
    """How a worker died, in words, by torch's error: nothing else tells it where it died before all were started."""
    names = {signal.strsignal(number): number.name for number in signal.Signals}
    killed = re.findall(r"^DataLoader worker \(pid.*?\) is killed by signal: (.*?)\.", text, re.M)
    others = re.findall(r"^DataLoader worker \(pid.*?\) (.*?)\.?\s*$", text, re.M)
    return [f"was killed by {names.get(name, name)}" for name in killed[:1]] or others[:1]


def _remedy(reason):
    """What to do about a worker's end, by what is known of it."""
    if re.search("temporary|AF_UNIX|pymp-", reason):
        return GO_ON.format("set TMPDIR to a folder that can be written and has a short name")
    if re.search("shared memory|/dev/shm|SIGBUS|Bus error", reason):
        size = shutil.disk_usage(SHARED_MEMORY).total / 1e6 if os.path.isdir(SHARED_MEMORY) else 0.0
        more = GO_ON.format("enlarge it (docker run --shm-size=1g)")
        return f"{SHARED_MEMORY}, by which they pass batches on, holds {size:,.0f} MB. {more}"
    if re.search("SIGKILL|Killed|allocate memory|MemoryError", reason):
        return "Memory has probably run out. " + GO_ON.format("free memory")
    if re.search("Too many open files", reason):
        return GO_ON.format("raise the limit on open files (ulimit -n)")
    if re.search("Resource temporarily|new thread", reason):
        return GO_ON.format("raise the limit on processes (ulimit -u)")
    return GO_ON.format("find what ended it")


def _end_workers(loader):
    """Kill the workers of an iteration that was not finished: they hold nothing that is needed.

    torch's own way of ending them waits for locks, which a worker that was killed may hold for ever.
    """
    iterator = loader._speechbrain_iterator
    if getattr(iterator, "_shutdown", True):
        return
    iterator._shutdown = True
    signal_handling._remove_worker_pids(id(iterator))  # else torch takes their end for a failure
    iterator._worker_pids_set = False
    if iterator._pin_memory:
        iterator._pin_memory_thread_done_event.set()
    for worker in iterator._workers:
        worker.kill()
    for worker in iterator._workers:
        worker.join()

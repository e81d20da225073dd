"""A lock on a folder, which says who holds it, and which a file system without locks can't make wait for ever."""

import contextlib
import datetime
import errno
import json
import os
import socket
from pathlib import Path

import filelock

NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
SETTLE = 1.0  # seconds in which a lock's new holder has surely written who it is


class Busy(Exception):
    """Another process holds the lock. The text says which, and since when."""


class FolderLock:
    """A lock on a folder, kept in its file ``.lock``. It ends with the process, so a file that is left means nothing.

    The file tells who holds the lock. Where the file system has no locks, this alone keeps out other processes of the
    same machine.

    Parameters
    ----------
    folder : str or pathlib.Path

    Attributes
    ----------
    why_open : str
        Once it is acquired: why it keeps nobody out; empty if it does.
    """

    def __init__(self, folder):
        self.path = os.path.join(os.path.realpath(folder), ".lock")
        self.why_open = ""
        self._lock = filelock.FileLock(self.path, fallback_to_soft=False)  # a soft lock is held by any file left there

    def acquire(self, timeout=0.0):
        """Take the lock, or go on without it where there are no locks or where its holder is dead.

        Raises
        ------
        Busy
            Another process still holds it after `timeout` seconds.
        OSError
            The folder can't be written.
        """
        self.why_open = ""
        try:
            self._lock.acquire(timeout=timeout)
        except filelock.Timeout:
            self._pass_over_the_dead()
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            holder = self._read_holder()
            if holder is not None and holder["pid"] != os.getpid() and _is_alive(holder):
                raise Busy(_name(holder)) from None
            self.why_open = f"its file system has no locks ({error.strerror})"
        self._write_holder()

    def release(self):
        """Let others have it."""
        with contextlib.suppress(OSError):
            os.truncate(self.path, 0)
        self._lock.release()

    def _pass_over_the_dead(self):
        """Some network file systems keep the lock of a process that is gone."""
        holder = self._read_holder()
        if holder is None or _is_alive(holder) is not False:
            raise Busy(_name(holder)) from None
        try:
            self._lock.acquire(timeout=SETTLE)
        except filelock.Timeout:
            if self._read_holder() != holder:
                raise Busy(_name(self._read_holder())) from None
            self.why_open = f"the lock is still that of {_name(holder)}, which is gone"

    def _write_holder(self):
        """Write who holds the lock into its file. On a full disk it stays unknown."""
        since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        pid = os.getpid()
        holder = {"host": socket.gethostname(), "pid": pid, "since": since, "place": _place(), "started": _started(pid)}
        with contextlib.suppress(OSError), open(self.path, "w", encoding="utf-8") as file:
            json.dump(holder, file)

    def _read_holder(self):
        """Who wrote the file, None if nobody did or if it is damaged."""
        try:
            holder = json.loads(Path(self.path).read_bytes())
            return holder if {"host", "pid", "since", "place", "started"} <= holder.keys() else None
        except (OSError, ValueError, AttributeError, RecursionError):
            return None


def _name(holder):
    if holder is None:
        return "unknown process"
    return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"


def _place():
    """Where process numbers mean the same as here: start of the machine, and container; empty if that isn't known."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    return ""


def _started(pid):
    """When a process of this place started, in ticks since the machine's start; None if it isn't there or has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()  # from the third on: its state
        return int(fields[19]) if fields[0] not in "XZ" else None
    return None


def _is_alive(holder):
    """Whether a lock's holder is alive: True, False, or None for one of another machine or container."""
    if not holder["place"] or holder["place"] != _place():
        return None
    return _started(holder["pid"]) == holder["started"]

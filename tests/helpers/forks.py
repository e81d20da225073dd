"""Run scripts in forks of this process, where all is imported already: for tests that kill or signal them."""

import contextlib
import gc
import importlib
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from helpers.lab import REPO

USED_LATE = ("torch._dynamo", "torchmetrics", "matplotlib.pyplot", "PIL.PngImagePlugin")  # seconds of imports


class Fork:
    """A script in a fork of this process, in a process group of its own; its output goes to said.txt in `cwd`.

    `prepare` is called in the fork before the script, and may patch anything.
    """

    def __init__(self, script, *args, cwd, prepare=lambda: None):
        self.log, self.code = Path(cwd) / "said.txt", None
        for module in USED_LATE:  # else each fork imports them anew
            importlib.import_module(module)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            gc.freeze()  # the destructor of a TCPStore, say, would wait for a thread that a fork doesn't have
            self._run([str(REPO / script), *map(str, args)], cwd, prepare)

    def _run(self, argv, cwd, prepare):
        code = 1
        try:
            os.setsid()
            os.chdir(cwd)
            said = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number in (1, 2):
                os.dup2(said, number)
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
            sys.argv = argv
            prepare()
            runpy.run_path(argv[0], run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):  # nobody may read it
                sys.stdout.flush()
            os._exit(code)

    def wait(self, seconds=120.0):
        """Return the exit code, or minus the signal that ended it; None if it still runs after so many seconds."""
        end = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                return None
            else:
                time.sleep(0.002)
        return self.code

    def kill(self, number=signal.SIGKILL, group=True):
        """Signal the group, which the fork may not have made yet, or the fork alone."""
        with contextlib.suppress(ProcessLookupError):
            if group:
                with contextlib.suppress(ProcessLookupError):
                    return os.killpg(self.pid, number)
            os.kill(self.pid, number)

    @property
    def said(self):
        return self.log.read_text() if self.log.exists() else ""


def at_call(number, owner, name, action, setattr=setattr):
    """Patch a function to call `action` at the beginning of its `number`-th call, from 1."""
    old, count = getattr(owner, name), 0

    def method(*args, **kwargs):
        nonlocal count
        count += 1
        if count == number:
            action()
        return old(*args, **kwargs)

    setattr(owner, name, method)


def torchruns_environment(rank, world_size, port=None):
    """Return the environment in which torchrun starts a process; its store is at `port`, or the process makes one."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    store = {"MASTER_PORT": port or free_port(), "TORCHELASTIC_USE_AGENT_STORE": port is not None}
    return {"MASTER_ADDR": "localhost", **{name: str(value) for name, value in (numbers | store).items()}}


def free_port():
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]

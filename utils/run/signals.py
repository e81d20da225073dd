"""SIGTERM, SIGINT and SIGHUP: the first ends a run in good order, the second at once (torchrun: one after `ECHO`).

A cluster's time limit, a preemption, Ctrl-C and a closed terminal are ordinary events. During a training step the first
signal is only noted: the step is finished and saved, and the run ends. While a step's batch is waited for, the run is
saved as the last step left it, and ends. At any other time (the store is built, encoders are judged) nothing is lost by
ending right away, because files appear whole or not at all.
"""

import contextlib
import os
import signal
import threading
from time import monotonic

import torch

from utils.run.processes import launched

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ECHO = 10.0  # seconds in which torchrun may pass on what a cluster, or Ctrl-C, has sent to all processes anyway


class Stopped(KeyboardInterrupt):
    """A signal ends the run; like KeyboardInterrupt no Exception, so that no library takes it for an error of its own.

    Parameters
    ----------
    signum : int
    """

    def __init__(self, signum):
        super().__init__(signum)
        self.signum = int(signum)


class StopSignals:
    """What the process knows of the signals that ask it to stop.

    Attributes
    ----------
    signum : int
        The signal that has come; 0 while none has.
    """

    def __init__(self):
        self.signum, self._deferred, self._waiting, self._handled = 0, False, False, ()

    @contextlib.contextmanager
    def handled(self):
        """Take the signals inside; in a thread other than the main one Python allows no handlers: there, do nothing.

        A SIGHUP that is ignored, as under nohup, stays ignored.

        Raises
        ------
        Stopped
            At the first signal; see `deferred` and `waiting`. After that SIGINT and SIGTERM have their default effect,
            which is the end; under torchrun not before `ECHO`. A further SIGHUP is ignored: a terminal that is closed
            sends two, one by the shell and one by the system, and systemd sends one after its SIGTERM.
        """
        self.signum, self._deferred, self._waiting, self._owner = 0, False, False, os.getpid()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
        before = {number: signal.signal(number, self._take) for number in SIGNALS if number not in ignored}
        self._handled = tuple(before)
        try:
            yield
        finally:
            for number, handler in before.items() if not self.signum else ():  # a process that ends keeps what it has
                signal.signal(number, handler)

    def _take(self, signum, frame):
        if os.getpid() != self._owner:  # a worker that was forked a moment ago
            return
        first = not self.signum
        if not first and (signum == signal.SIGHUP or monotonic() - self._since < ECHO):
            return
        if not (first and launched()):
            for number in self._handled:
                signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
        if not first:
            os.kill(os.getpid(), signum)
            return
        self.signum, self._since = signum, monotonic()
        if self._waiting or not self._deferred:
            raise Stopped(signum)
        name = signal.Signals(signum).name
        second = f"A signal after {ECHO:.0f} s" if launched() else "A second signal"
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, f"\n{name}: this step is finished and saved. {second} ends at once.\n".encode())

    @contextlib.contextmanager
    def deferred(self):
        """Inside, the first signal is only noted, for `asked`; one that was not asked for ends the run afterwards."""
        self.check()
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    @contextlib.contextmanager
    def waiting(self):
        """Inside `deferred`, while a batch is waited for: end at the first signal, as the batch may never come.

        Not under torchrun: the processes must leave their common loop together, and torchrun kills what hangs.
        """
        self._waiting = not launched()
        try:
            if self._waiting:
                self.check()
            yield
        finally:
            self._waiting = False

    def check(self):
        """End the run if a signal has come."""
        if self.signum:
            raise Stopped(self.signum)

    def asked(self, device):
        """Whether to stop, the same in all processes of a run: they must leave their common loop together.

        Parameters
        ----------
        device : str or torch.device
            Of the tensors that the processes exchange.

        Returns
        -------
        int
            The signal, or 0.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.signum
        highest = torch.tensor(int(self.signum), device=device)
        torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX)
        return int(highest)


stop_signals = StopSignals()


@contextlib.contextmanager
def sigterm_blocked():
    """Block SIGTERM inside; it comes afterwards. Processes that are forked inside begin with it blocked.

    torch sets a handler of its own first thing in a worker, and a SIGTERM between that and `quiet_worker` would kill
    it.
    """
    if not hasattr(signal, "sigwaitinfo"):  # `quiet_worker` can't obey a parent there, so a worker must not block it
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def quiet_worker(worker_id):
    """Keep a DataLoader's worker at work while the main process finishes its step; a `worker_init_fn`.

    Ctrl-C and a closed terminal's SIGHUP go to all processes of a terminal, and many clusters send SIGTERM to all of a
    job: a worker that died of it would take the step with it. The parent's own SIGTERM is obeyed.
    """
    del worker_id
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # who has sent a signal is not known on macOS
        threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()  # may fail: block afterwards
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _obey_parent(parent):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)

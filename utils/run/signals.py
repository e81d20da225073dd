"""SIGTERM and SIGINT: the first ends a run in good order, the second at once (under torchrun: one after `ECHO`).

A cluster's time limit, a preemption and Ctrl-C are ordinary events. While a task is trained, the first signal is only
noted: the step is finished and saved, and the run ends. At any other time (the store is built, encoders are judged)
nothing is lost by ending right away, because files appear whole or not at all.
"""

import contextlib
import os
import signal
import threading
from time import monotonic

import torch

from utils.run.processes import launched

SIGNALS = (signal.SIGINT, signal.SIGTERM)
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
        self.signum, self._deferred = 0, False

    @contextlib.contextmanager
    def handled(self):
        """Take the signals inside; in a thread other than the main one Python allows no handlers: there, do nothing.

        Raises
        ------
        Stopped
            At the first signal; see `deferred`. After that both signals have their default effect, which is the end;
            under torchrun not before `ECHO`.
        """
        self.signum, self._deferred, self._owner = 0, False, os.getpid()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._take) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items() if not self.signum else ():  # a process that ends keeps what it has
                signal.signal(number, handler)

    def _take(self, signum, frame):
        if os.getpid() != self._owner:  # a worker that was forked a moment ago
            return
        first = not self.signum
        if not first and monotonic() - self._since < ECHO:
            return
        if not (first and launched()):
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
        if not first:
            os.kill(os.getpid(), signum)
            return
        self.signum, self._since = signum, monotonic()
        if not self._deferred:
            raise Stopped(signum)
        name = signal.Signals(signum).name
        second = f"A signal after {ECHO:.0f} s" if launched() else "A second signal"
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


def quiet_worker(worker_id):
    """Keep a DataLoader's worker at work while the main process finishes its step; a `worker_init_fn`.

    Ctrl-C goes to all processes of a terminal, and many clusters send SIGTERM to all of a job: a worker that died of it
    would take the step with it. The parent's own SIGTERM, by which it takes leave, is obeyed.
    """
    del worker_id
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # who has sent a signal is not known on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()


def _obey_parent(parent):
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)

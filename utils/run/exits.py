"""How a run ends: what the user can mend is one line on stderr and an exit code that is not 0."""

import contextlib
import logging
import logging.handlers
import re
import signal
import sys

from utils.io.errors import InputError
from utils.io.files import REMEDIES
from utils.io.streams import mend_streams
from utils.run.processes import is_lost_process, leave_processes, rank, speaks_first, world_size
from utils.run.signals import stop_signals

logger = logging.getLogger(__name__)

# What torch puts around the text of an error that was raised in a DataLoader's worker.
WORKER_ERROR = re.compile(r"^Caught \w+ in DataLoader worker process .*\n[\w.]+: ", re.DOTALL)


class EarlyMessages(logging.handlers.BufferingHandler):
    """Keeps what is logged before there is a log file."""

    def flush(self):
        """Keep it: `logging.config.dictConfig`, which opens the log file, flushes every handler."""


early_messages = EarlyMessages(10_000)


@contextlib.contextmanager
def user_errors():
    """Turn what the user can mend into one line on stderr: bad input and a full disk, with exit code 2; a signal that
    asks to stop, with 128 + its number; the loss of another process of this run, with 1.

    Until there is a run folder, messages go to the terminal, and are kept for its log.txt; see `save_versions`. Of
    several processes, number 0 gives messages, and whichever is first says why the run ends.
    """
    mend_streams()
    early_messages.buffer.clear()
    for name in ("datasets", "utils"):
        logging.getLogger(name).setLevel(logging.INFO if rank() == 0 else logging.ERROR)
        logging.getLogger(name).handlers = [logging.StreamHandler(sys.stdout), early_messages]
    try:
        with stop_signals.handled():
            yield
        leave_processes()
    except InputError as error:
        logger.debug("stopped by bad input", exc_info=True)
        _leave(f"error: {WORKER_ERROR.sub('', str(error)).strip()}", 2)
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        what = f"{error.filename or 'A file of the run folder'}: {error.strerror}"
        _leave(f"error: {what}. What was saved before is whole: {REMEDIES[error.errno]}, then give {_again()}.", 2)
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        logger.debug("stopped with another process", exc_info=True)
        lost = f"Process {rank()} of {world_size()} has lost another one, which has ended or hangs"
        _leave(f"error: {lost}. What is saved stays: to go on from there, give {_again()}.", 1)
    except KeyboardInterrupt as error:
        number = getattr(error, "signum", signal.SIGINT)
        name = signal.Signals(number).name
        _leave(f"\nStopped by {name}. What is done is saved: to go on from there, give {_again()}.", 128 + number)


def _leave(line, code):
    """End the process and say why, unless another process of this run has said it."""
    if speaks_first():
        print(line, file=sys.stderr)
    sys.exit(code)


def _again():
    """How a run is taken up: --overwrite would delete it."""
    given = any(re.match("--overwrite(=|$)", token) for token in sys.argv)
    return "the same command without --overwrite" if given else "the same command again"

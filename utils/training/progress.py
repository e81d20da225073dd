"""Report the progress of a run: one bar for all tasks, a line per task, a row of figures per epoch."""

import contextlib
import csv
import logging
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.run_opts import RunOptions
from tqdm import tqdm

from utils.io.files import naming, write_atomically
from utils.run.loggers import make_extra_loggers, text_log
from utils.run.processes import rank
from utils.training.plan import TaskPlan

logger = logging.getLogger(__name__)


def _mend_last_line(path):
    """Cut off an incomplete last line, left by a crash or a full disk. Its epoch was not saved, and is logged again."""
    content = Path(path).read_bytes() if os.path.isfile(path) else b""
    if content and not content.endswith(b"\n"):
        write_atomically(path, content[: content.rfind(b"\n") + 1])


def _whole_rows(path):
    """Remove damaged lines from train_log.csv and return its rows, each a dict."""
    _mend_last_line(path)
    if not os.path.isfile(path):
        return []
    header, *lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) or [""]
    names, rows = header.strip().split(","), {}
    for line in lines if {"task", "epoch", "loss"} <= set(names) else ():
        with contextlib.suppress(ValueError):  # not a number in a cell, or too few or too many cells
            row = dict(zip(names, line.rstrip("\n").split(","), strict=True))
            for name, cell in row.items():
                if cell or name in ("task", "epoch", "loss"):  # empty where a loss begins at a later task
                    float(cell)
            rows[line] = row
    if len(rows) < len(lines) or not rows:
        logger.warning("%s had %d damaged lines, which were removed.", path, len(lines) - len(rows))
        write_atomically(path, header + "".join(rows)) if rows else os.unlink(path)
    return list(rows.values())


def _epochs_in(path):
    """Return (task, epoch), as text, of each line of train_log.txt."""
    text = Path(path).read_text(encoding="utf-8", errors="replace") if os.path.isfile(path) else ""
    return set(re.findall(r"^task: (\d+), epoch: (\d+),", text, re.MULTILINE))


class RunProgress:
    """The bar over all steps of all tasks, and the logs.

    Where stderr is not a terminal there is no bar, so that a redirected log holds one line per task.

    Parameters
    ----------
    hparams
        Uses `output_folder` and `extra_logger`.
    run_opts
        Uses `noprogressbar`.
    plan
        One entry per task.
    """

    def __init__(self, hparams: dict, run_opts: RunOptions, plan: Sequence[TaskPlan]):
        self.plan, self.folder = plan, hparams["output_folder"]
        self.text_log = text_log(os.path.join(self.folder, "train_log.txt"))
        self.extra_loggers = make_extra_loggers(hparams["extra_logger"] if rank() == 0 else None, self.folder)
        self.csv_path = os.path.join(self.folder, "train_log.csv")
        writes = rank() == 0
        if writes:
            _mend_last_line(os.path.join(self.folder, "train_log.txt"))
        # Epochs that an earlier start of this run logged are not logged again: a repeated epoch has the same figures.
        rows = _whole_rows(self.csv_path) if writes else []
        self.logged = {(row["task"], row["epoch"]) for row in rows}
        self.told = _epochs_in(os.path.join(self.folder, "train_log.txt")) if writes else set()
        self.columns = list(rows[0]) if rows else None  # kept as an older version wrote them; None before any epoch
        self.off = run_opts.noprogressbar or not sys.stderr.isatty() or not writes
        self.first_loss = self.last_loss = None

    def __enter__(self):
        total = sum(step.total_steps for step in self.plan)
        self.bar = tqdm(total=total, disable=self.off, dynamic_ncols=True, unit="step", smoothing=0.05)
        return self

    def __exit__(self, *error):
        self.bar.close()

    def _steps_before(self, task, epoch=1):
        done = sum(step.total_steps for step in self.plan[:task])
        return done + (epoch - 1) * self.plan[task].steps

    def skip(self, task: int):
        """Advance the bar by a task that an earlier start of this run has finished."""
        logger.info("task %d/%d: trained already", task + 1, len(self.plan))
        self._jump(self._steps_before(task) + self.plan[task].total_steps)

    def _jump(self, step):
        """Set the bar after a resume; the jump doesn't count as speed."""
        self.bar.initial = self.bar.n = self.bar.last_print_n = step
        self.bar.start_t = self.bar._time() if not self.bar.disable else None

    def step(self, task: int, epoch: int, loss):
        """Advance the bar by one step."""
        if self.bar.disable:
            return
        if self.bar.n < self._steps_before(task, epoch):
            self._jump(self._steps_before(task, epoch))
        plan = self.plan[task]
        self.bar.set_description_str(f"task {task + 1}/{len(self.plan)} epoch {epoch}/{plan.epochs}", refresh=False)
        self.bar.update(1)

    @main_process_only
    def epoch(self, stats: dict):
        """Log an epoch's figures: `task`, `epoch`, `lr`, losses and measures, those of a validation as `valid_...`."""
        meta = {"task": stats["task"], "epoch": stats["epoch"], "lr": stats["lr"]}
        valid = {k.removeprefix("valid_"): v for k, v in stats.items() if k.startswith("valid_")} or None
        train = {k: v for k, v in stats.items() if k not in meta and not k.startswith("valid_")}
        self.first_loss = train["loss"] if self.first_loss is None else self.first_loss
        self.last_loss = train["loss"]
        self.bar.set_postfix_str(f"loss {train['loss']:.3f}", refresh=False)
        if (str(stats["task"]), str(stats["epoch"])) in self.logged:
            return
        if (str(stats["task"]), str(stats["epoch"])) not in self.told:  # a crash came before the row of train_log.csv
            with naming(self.text_log.save_file):
                self.text_log.log_stats(meta, train_stats=train, valid_stats=valid, verbose=False)
        for log in self.extra_loggers:  # epochs over all tasks: W&B drops points whose x goes back
            before = sum(step.epochs for step in self.plan[: stats["task"]])
            log.log_stats({**meta, "epoch": before + stats["epoch"]}, train, valid)
        new, self.columns = self.columns is None, self.columns or list(stats)
        if more := [name for name in stats if name not in self.columns]:
            self._add_columns(more)
        with naming(self.csv_path), open(self.csv_path, "a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.columns, extrasaction="ignore", lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(stats)
            file.flush()
            os.fsync(file.fileno())  # before the checkpoint: once that is saved, this epoch is never logged again

    def _add_columns(self, names):
        """Add columns to train_log.csv, empty in the rows so far, such as a loss that begins at a later task."""
        rows = _whole_rows(self.csv_path)
        self.columns = [*self.columns, *names]
        lines = [",".join(row.get(name, "") for name in self.columns) for row in rows]
        write_atomically(self.csv_path, "\n".join([",".join(self.columns), *lines]) + "\n")

    def task_done(self, task: int, name: str, seconds: float):
        """Log one line about a trained task."""
        plan, name = self.plan[task], textwrap.shorten(name, 60, placeholder=" ...")
        logger.info(
            "task %d/%d (%s): %d clips, %d epochs, loss %.3f -> %.3f, %.0f s",
            task + 1, len(self.plan), name, len(plan.rows), plan.epochs, self.first_loss, self.last_loss, seconds,
        )  # fmt: skip
        self.first_loss = None

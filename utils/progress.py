"""What a run says while it goes on: one bar for all of it, a line a task, a log line an epoch."""

import csv
import logging
import os
import sys
import textwrap

from datasets.errors import InputError
from utils.distributed import process

from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.train_logger import FileTrainLogger
from tqdm import tqdm

logger = logging.getLogger(__name__)


def _tensorboard(folder):
    from speechbrain.utils.train_logger import TensorboardLogger

    return TensorboardLogger(os.path.join(folder, "tensorboard"))


def _wandb(folder):
    import wandb
    from speechbrain.utils.train_logger import WandBLogger

    return WandBLogger(initializer=wandb.init, dir=folder, project="continual-sound", name=os.path.basename(folder))


EXTRA_LOGGERS = {"tensorboard": _tensorboard, "wandb": _wandb}  # imported only when asked for


def make_extra_loggers(name, folder):
    """The loggers beside train_log.txt: none, or the one that `extra_logger` names.

    Raises
    ------
    InputError
        Unknown name, or its package is not installed.
    """
    if name is None:
        return []
    if name not in EXTRA_LOGGERS:
        raise InputError(f"extra_logger is {name!r}: choose null or one of {', '.join(EXTRA_LOGGERS)}.")
    try:
        return [EXTRA_LOGGERS[name](folder)]
    except ImportError as error:
        raise InputError(f"extra_logger: {name} needs a package that is not installed: pip install {name}.") from error


class RunProgress:
    """The bar over all steps of all tasks, and the logs.

    Where stderr is no terminal there is no bar, so a redirected log holds one line a task and no debris.

    Parameters
    ----------
    hparams : dict
        Uses `output_folder` and `extra_logger`.
    run_opts : speechbrain.utils.run_opts.RunOptions
        Uses `noprogressbar`.
    plan : list of dict
        As `utils.loop.plan_tasks` returns it.
    """

    def __init__(self, hparams, run_opts, plan):
        self.plan, self.folder = plan, hparams["output_folder"]
        self.loggers = [FileTrainLogger(os.path.join(self.folder, "train_log.txt"), precision=4)]
        self.loggers += make_extra_loggers(hparams["extra_logger"], self.folder)
        self.csv_path = os.path.join(self.folder, "train_log.csv")
        self.logged = set()  # by an earlier start of this run; an epoch trained again has the same figures
        if os.path.isfile(self.csv_path):
            with open(self.csv_path, encoding="utf-8", newline="") as file:
                self.logged = {(row["task"], row["epoch"]) for row in csv.DictReader(file)}
        self.off = run_opts.noprogressbar or not sys.stderr.isatty() or process() > 0
        self.first_loss = self.last_loss = None

    def __enter__(self):
        total = sum(step["epochs"] * step["steps"] for step in self.plan)
        self.bar = tqdm(total=total, disable=self.off, dynamic_ncols=True, unit="step", smoothing=0.05)
        return self

    def __exit__(self, *error):
        self.bar.close()

    def _steps_before(self, task, epoch=1):
        done = sum(step["epochs"] * step["steps"] for step in self.plan[:task])
        return done + (epoch - 1) * self.plan[task]["steps"]

    def skip(self, task):
        """Count a task that an earlier start of this run has finished."""
        logger.info("task %d/%d: trained already", task + 1, len(self.plan))
        self._jump(self._steps_before(task) + self.plan[task]["epochs"] * self.plan[task]["steps"])

    def _jump(self, step):
        """Set the bar after a resume, without counting the jump into the speed."""
        self.bar.initial = self.bar.n = self.bar.last_print_n = step
        self.bar.start_t = self.bar._time() if not self.bar.disable else None

    def step(self, task, epoch, loss):
        """Count one step."""
        if self.bar.disable:
            return
        if self.bar.n < self._steps_before(task, epoch):
            self._jump(self._steps_before(task, epoch))
        plan = self.plan[task]
        self.bar.set_description_str(f"task {task + 1}/{len(self.plan)} epoch {epoch}/{plan['epochs']}", refresh=False)
        self.bar.update(1)

    @main_process_only
    def epoch(self, stats):
        """Log an epoch's figures."""
        meta = {"task": stats["task"], "epoch": stats["epoch"], "lr": stats["lr"]}
        valid = {k.removeprefix("valid_"): v for k, v in stats.items() if k.startswith("valid_")} or None
        train = {k: v for k, v in stats.items() if k not in meta and not k.startswith("valid_")}
        self.first_loss = train["loss"] if self.first_loss is None else self.first_loss
        self.last_loss = train["loss"]
        self.bar.set_postfix_str(f"loss {train['loss']:.3f}", refresh=False)
        if (str(stats["task"]), str(stats["epoch"])) in self.logged:
            return
        for log in self.loggers:
            if isinstance(log, FileTrainLogger):
                log.log_stats(meta, train_stats=train, valid_stats=valid, verbose=False)
            else:  # epochs counted over all tasks: W&B takes them for the x axis, and drops what goes back on it
                before = sum(step["epochs"] for step in self.plan[: stats["task"]])
                log.log_stats({**meta, "epoch": before + stats["epoch"]}, train, valid)
        new = not os.path.exists(self.csv_path)
        with open(self.csv_path, "a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(stats), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(stats)

    def task_done(self, task, name, seconds):
        """Say in a line what a task did."""
        plan, name = self.plan[task], textwrap.shorten(name, 60, placeholder=" ...")
        logger.info(
            "task %d/%d (%s): %d clips, %d epochs, loss %.3f -> %.3f, %.0f s",
            task + 1, len(self.plan), name, len(plan["rows"]), plan["epochs"], self.first_loss, self.last_loss, seconds,
        )  # fmt: skip
        self.first_loss = None

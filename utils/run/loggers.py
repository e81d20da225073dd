"""Make the loggers of an epoch's figures beside train_log.csv: train_log.txt, TensorBoard, Weights & Biases."""

import logging
import os

from utils.io.errors import InputError


def text_log(path: str):
    """Make SpeechBrain's FileTrainLogger.

    Its module is imported here, after a filter for its warning that pictures can't be saved. None are saved.
    """
    logging.getLogger("speechbrain.utils.train_logger").addFilter(lambda record: "torchvision" not in str(record.msg))
    from speechbrain.utils.train_logger import FileTrainLogger

    return FileTrainLogger(path, precision=4)


def _tensorboard(folder):
    from speechbrain.utils.train_logger import TensorboardLogger

    return TensorboardLogger(os.path.join(folder, "tensorboard"))


def _wandb(folder):
    import wandb
    from speechbrain.utils.train_logger import WandBLogger

    return WandBLogger(initializer=wandb.init, dir=folder, project="continual-sound", name=os.path.basename(folder))


EXTRA_LOGGERS = {"tensorboard": _tensorboard, "wandb": _wandb}  # imported only when asked for


def make_extra_loggers(name: str | None, folder: str) -> list:
    """Make the logger that `extra_logger` names; return a list of it, or an empty one for None.

    Raises
    ------
    InputError
        The name is unknown, or its package is not installed.
    """
    if name is None:
        return []
    if name not in EXTRA_LOGGERS:
        raise InputError(f"extra_logger is {name!r}: choose null or one of {', '.join(EXTRA_LOGGERS)}.")
    try:
        return [EXTRA_LOGGERS[name](folder)]
    except ImportError as error:
        raise InputError(f"extra_logger: {name} needs a package that is not installed: pip install {name}.") from error

"""Where an epoch's figures are logged beside the run's own table: a text log, TensorBoard, Weights & Biases."""

import logging
import os

from utils.io.errors import InputError


def text_log(path):
    """SpeechBrain's text log, imported once its warning that it can't save pictures is silenced: none are saved."""
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
